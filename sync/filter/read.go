package filter

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
)

// maxNest is how deep objects and arrays may be in each other, as for encoding/json.
const maxNest = 10_000

var errMalformed = errors.New("is not a JSON object")

// reader reads a JSON text that is known to be valid: it was checked when it was written. It
// does not check what it passes over, and only must not panic at a text that is not.
type reader struct {
	text string
	at   int // how far it has come
}

// fields reads those of an object that are wanted, in order, into the values; nil for those
// that are not there.
func (r *reader) fields(wanted []string, values []ref.Val) error {
	clear(values)
	err := r.members(func(name string) error {
		i, ok := slices.BinarySearch(wanted, name)
		if !ok {
			return r.pass()
		}
		v, err := r.value(1)
		values[i] = v
		return err
	})
	if err != nil {
		return err
	}
	return r.end()
}

// whole reads an object with everything in it.
func (r *reader) whole() (*object, error) {
	o, err := r.object(0)
	if err != nil {
		return nil, err
	}
	return o, r.end()
}

func (r *reader) end() error {
	if r.next(); r.at < len(r.text) {
		return errMalformed
	}
	return nil
}

// next passes white space, and returns the byte that follows, 0 at the end.
func (r *reader) next() byte {
	for ; r.at < len(r.text); r.at++ {
		if c := r.text[r.at]; c > ' ' || c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c
		}
	}
	return 0
}

// members calls a function for each member of an object. The function reads or passes the
// value.
func (r *reader) members(of func(name string) error) error {
	if r.next() != '{' {
		return errMalformed
	}
	r.at++
	if r.next() == '}' {
		r.at++
		return nil
	}
	for {
		if r.next() != '"' {
			return errMalformed
		}
		name, err := r.string()
		if err != nil {
			return err
		}
		if r.next() != ':' {
			return errMalformed
		}
		r.at++
		r.next()
		if err := of(name); err != nil {
			return err
		}
		switch r.next() {
		case ',':
			r.at++
		case '}':
			r.at++
			return nil
		default:
			return errMalformed
		}
	}
}

func (r *reader) object(depth int) (*object, error) {
	members := make([]member, 0, 8)
	err := r.members(func(name string) error {
		v, err := r.value(depth + 1)
		members = append(members, member{name, v})
		return err
	})
	if err != nil {
		return nil, err
	}
	return newObject(members), nil
}

func (r *reader) array(depth int) (ref.Val, error) {
	var values []ref.Val
	r.at++
	if r.next() == ']' {
		r.at++
		return newList(values), nil
	}
	for {
		r.next()
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
		switch r.next() {
		case ',':
			r.at++
		case ']':
			r.at++
			return newList(values), nil
		default:
			return nil, errMalformed
		}
	}
}

func newList(values []ref.Val) ref.Val { return types.NewRefValList(types.DefaultTypeAdapter, values) }

// value reads one that begins here.
func (r *reader) value(depth int) (ref.Val, error) {
	if r.at >= len(r.text) || depth > maxNest {
		return nil, errMalformed
	}
	switch r.text[r.at] {
	case '{':
		return r.object(depth)
	case '[':
		return r.array(depth)
	case '"':
		s, err := r.string()
		if err != nil {
			return nil, err
		}
		return types.String(s), nil
	}
	switch word := r.word(); word {
	case "true":
		return types.True, nil
	case "false":
		return types.False, nil
	case "null":
		return types.NullValue, nil
	default:
		if n := number(word); n != nil {
			return n, nil
		}
		return nil, errMalformed
	}
}

// word reads what goes on to the next white space or sign.
func (r *reader) word() string {
	from := r.at
	for r.at < len(r.text) {
		switch r.text[r.at] {
		case ',', '}', ']', ':', ' ', '\n', '\t', '\r', '"', '{', '[':
			return r.text[from:r.at]
		}
		r.at++
	}
	return r.text[from:]
}

// string reads one that begins here. It is a part of the text where it can be.
func (r *reader) string() (string, error) {
	from := r.at
	if !r.quoted() {
		return "", errMalformed
	}
	s := r.text[from+1 : r.at-1]
	if strings.IndexByte(s, '\\') < 0 && utf8.ValidString(s) {
		return s, nil
	}
	var plain string
	if json.Unmarshal([]byte(r.text[from:r.at]), &plain) != nil {
		return "", errMalformed
	}
	return plain, nil
}

// quoted passes a string, and tells whether it ends.
func (r *reader) quoted() bool {
	from := r.at + 1
	for at := from; ; {
		n := strings.IndexByte(r.text[at:], '"')
		if n < 0 {
			return false
		}
		at += n
		slashes := 0
		for i := at - 1; i >= from && r.text[i] == '\\'; i-- {
			slashes++
		}
		at++
		if slashes%2 == 0 {
			r.at = at
			return true
		}
	}
}

// pass passes a value that begins here.
func (r *reader) pass() error {
	depth := 0
	for r.at < len(r.text) {
		switch r.text[r.at] {
		case '"':
			if !r.quoted() {
				return errMalformed
			}
		case '{', '[':
			depth++
			r.at++
		case '}', ']':
			depth--
			r.at++
		default:
			if depth > 0 {
				r.at++
				continue
			}
			if r.word() == "" {
				return errMalformed
			}
		}
		if depth <= 0 {
			return nil
		}
	}
	return errMalformed
}
