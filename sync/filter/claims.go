package filter

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
)

// claim is the value of one, as encoding/json decodes it, or as a program put it there.
func claim(v any, depth int) (ref.Val, error) {
	if depth > maxNest {
		return nil, errors.New("nests too deep")
	}
	switch v := v.(type) {
	case nil:
		return types.NullValue, nil
	case bool:
		return types.Bool(v), nil
	case float64:
		return float(v)
	case int:
		return types.Int(v), nil
	case int64:
		return types.Int(v), nil
	case json.Number:
		if n := number(string(v)); n != nil {
			return n, nil
		}
		return nil, errors.New("holds a json.Number that is not a number")
	case []any:
		values := make([]ref.Val, len(v))
		for i, x := range v {
			var err error
			if values[i], err = claim(x, depth+1); err != nil {
				return nil, err
			}
		}
		return newList(values), nil
	case map[string]any:
		members := make([]member, 0, len(v))
		for name, x := range v {
			value, err := claim(x, depth+1)
			if err != nil {
				return nil, err
			}
			members = append(members, member{name, value})
		}
		return newObject(members), nil
	}
	// A string also comes here: of one that was not decoded nobody knows that it is UTF-8.
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("holds a %T, which has no JSON", v)
	}
	return (&reader{text: string(text)}).value(depth)
}

// choose returns those of the claims that an expression refers to.
func choose(claims map[string]any, by uses) (*object, error) {
	var members []member
	put := func(name string, v any) error {
		value, err := claim(v, 1)
		if err != nil {
			return refuse(0, 0, "the claim %q %v", name, err)
		}
		members = append(members, member{name, value})
		return nil
	}
	if by.whole {
		for name, v := range claims {
			if err := put(name, v); err != nil {
				return nil, err
			}
		}
		return newObject(members), nil
	}
	for _, name := range by.fields {
		if v, ok := claims[name]; ok {
			if err := put(name, v); err != nil {
				return nil, err
			}
		}
	}
	return newObject(members), nil
}
