package filter

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"strconv"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
)

// exact is the first size from where a double can't tell integers apart.
const exact = 1 << 53

// number is the value of a JSON number, nil where the text is not one.
func number(text string) ref.Val {
	whole, ok := isNumber(text)
	if !ok {
		return nil
	}
	if whole {
		if i, err := strconv.ParseInt(text, 10, 64); err == nil {
			return types.Int(i)
		}
		if u, err := strconv.ParseUint(text, 10, 64); err == nil {
			return types.Uint(u)
		}
		return wide(text)
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return wide(text)
	}
	if size := math.Abs(f); size < exact || size > 1<<64 {
		return types.Double(f)
	}
	// CEL compares an int with a double as doubles: 2^53+1 would be equal to 2^53. So no
	// double of this size leaves here.
	if len(text) > 64 {
		return wide(text) // and no long text gets there
	}
	r, ok := new(big.Rat).SetString(text)
	if !ok || !r.IsInt() {
		return wide(text)
	}
	return number(r.Num().String())
}

// isNumber tells whether a text is a number by JSON's grammar, and one without a fraction
// or an exponent.
func isNumber(text string) (whole, ok bool) {
	i := 0
	digits := func() bool {
		from := i
		for i < len(text) && '0' <= text[i] && text[i] <= '9' {
			i++
		}
		return i > from
	}
	if i < len(text) && text[i] == '-' {
		i++
	}
	if i < len(text) && text[i] == '0' {
		i++
	} else if !digits() {
		return false, false
	}
	whole = true
	if i < len(text) && text[i] == '.' {
		whole = false
		if i++; !digits() {
			return false, false
		}
	}
	if i < len(text) && (text[i] == 'e' || text[i] == 'E') {
		whole = false
		if i++; i < len(text) && (text[i] == '+' || text[i] == '-') {
			i++
		}
		if !digits() {
			return false, false
		}
	}
	return whole, i == len(text)
}

// wide is a number that neither 64 bits nor a double can hold: its digits, or else its text.
// It is equal to itself, and nothing else is known of it.
type wide string

var (
	wideType = types.NewOpaqueType("wide")

	errNoNative = errors.New("a row filter has values of its own")
)

func (w wide) ConvertToNative(reflect.Type) (any, error) { return nil, errNoNative }

func (w wide) ConvertToType(t ref.Type) ref.Val {
	if t == types.TypeType {
		return wideType
	}
	return types.NewErr("a number is too large to be converted")
}

func (w wide) Equal(other ref.Val) ref.Val {
	o, ok := other.(wide)
	return types.Bool(ok && w == o)
}

func (w wide) Type() ref.Type { return wideType }
func (w wide) Value() any     { return string(w) }

// float is the value of a number that was decoded as a double.
func float(f float64) (ref.Val, error) {
	if size := math.Abs(f); size >= exact && size <= 1<<64 || math.IsNaN(f) {
		return nil, fmt.Errorf("holds a number from 2^53 on, decoded as a float64, which may not be what it was: decode with UseNumber")
	}
	return types.Double(f), nil
}
