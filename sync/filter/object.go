package filter

import (
	"reflect"
	"slices"
	"strings"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
)

// object is a JSON object as CEL sees it: a map that is gone over in the order of its
// names, as a row must be seen always or never.
type object struct {
	names  []string  // in order, each once
	values []ref.Val // nil for a name that is not there, which only a row has that is not whole
}

// member is a name and its value.
type member struct {
	name  string
	value ref.Val
}

// newObject is the object of members in any order. Of a name that comes twice the last
// counts. It changes the slice.
func newObject(members []member) *object {
	slices.SortStableFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	o := &object{make([]string, 0, len(members)), make([]ref.Val, 0, len(members))}
	for i, m := range members {
		if i+1 < len(members) && members[i+1].name == m.name {
			continue
		}
		o.names = append(o.names, m.name)
		o.values = append(o.values, m.value)
	}
	return o
}

// get returns the value of a name, nil for none.
func (o *object) get(name string) ref.Val {
	i, ok := slices.BinarySearch(o.names, name)
	if !ok {
		return nil
	}
	return o.values[i]
}

// Find returns the value of a key, and whether it is there.
func (o *object) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return nil, false
	}
	v := o.get(string(name))
	return v, v != nil
}

// Get returns the value of a key, or an error. That does not quote the key, which could be
// as large as the row.
func (o *object) Get(key ref.Val) ref.Val {
	if v, ok := o.Find(key); ok {
		return v
	}
	return types.NewErr("no such key")
}

// Contains tells whether a key is there.
func (o *object) Contains(key ref.Val) ref.Val {
	_, ok := o.Find(key)
	return types.Bool(ok)
}

// Equal tells whether another value is a map with the same members.
func (o *object) Equal(other ref.Val) ref.Val {
	m, ok := other.(traits.Mapper)
	if !ok || m.Size() != o.Size() {
		return types.False
	}
	for i, name := range o.names {
		v, ok := m.Find(types.String(name))
		if !ok || types.Equal(o.values[i], v) != types.True {
			return types.False
		}
	}
	return types.True
}

func (o *object) Size() ref.Val                             { return types.Int(len(o.names)) }
func (o *object) Type() ref.Type                            { return types.MapType }
func (o *object) Value() any                                { return o }
func (o *object) ConvertToNative(reflect.Type) (any, error) { return nil, errNoNative }
func (o *object) Iterator() traits.Iterator                 { return &names{of: o.names} }

func (o *object) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.MapType:
		return o
	case types.TypeType:
		return types.MapType
	}
	return types.NewErr("a map can't be converted")
}

// names goes over those of an object.
type names struct {
	traits.Iterator // nil: an iterator is a value by CEL's interfaces, and never used as one
	of              []string
}

func (n *names) HasNext() ref.Val { return types.Bool(len(n.of) > 0) }

func (n *names) Next() ref.Val {
	if len(n.of) == 0 {
		return nil
	}
	name := n.of[0]
	n.of = n.of[1:]
	return types.String(name)
}
