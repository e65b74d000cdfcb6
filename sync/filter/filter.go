package filter

import (
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
)

// Filter is an expression with the claims it is asked for. It may be used concurrently.
type Filter struct {
	program  *program
	claims   *object // those that the expression refers to
	identity string
}

// Compile returns the filter of an expression for a token's claims, as encoding/json decodes
// them: with UseNumber, as a float64 can't hold every number, and one that may not be what
// it was is refused. It keeps nothing of the claims but what the expression refers to.
//
// The error is an *Error, and may be shown to the holder of the token.
func Compile(expr string, claims map[string]any) (*Filter, error) {
	p, err := programs.get(expr)
	if err != nil {
		return nil, err
	}
	chosen, err := choose(claims, p.claims)
	if err != nil {
		return nil, err
	}
	return &Filter{p, chosen, p.identify(chosen)}, nil
}

// Identity names the filter: the same for the same expression, whatever its white space, with
// the same values of the claims it refers to, and for no other. It tells nothing of them to
// somebody who can't guess them.
func (f *Filter) Identity() string { return f.identity }

// Sees tells whether the expression is true of a row, by its value: a valid JSON object. Of
// anything else it tells nothing that could be relied on, and does not panic.
func (f *Filter) Sees(value string) bool { return f.sees(value, f.program.row) }

// sees is Sees, with those fields of the row decoded.
func (f *Filter) sees(value string, decode uses) (seen bool) {
	// CEL turns its panics into errors. This is for those of ours, and of what CEL does not
	// expect: a row must not stop whoever writes it.
	defer func() {
		if recover() != nil {
			seen = false
		}
	}()
	s := scopes.Get().(*scope)
	out, err := f.ask(s, value, decode)
	scopes.Put(s) // after a panic it is left alone
	return err == nil && out == types.True
}

// ask evaluates the expression.
func (f *Filter) ask(s *scope, value string, decode uses) (ref.Val, error) {
	defer s.clear()
	if err := s.read(value, decode); err != nil {
		return nil, err
	}
	s.claims, s.steps = f.claims, Steps
	out, _, err := f.program.plan.Eval(s)
	return out, err
}

// scope is what the variables stand for in one evaluation.
type scope struct {
	row    *object
	claims *object
	steps  int // that are left

	part   object    // the row, where only some of its fields are decoded
	values []ref.Val // its values, kept for the next
}

var scopes = sync.Pool{New: func() any { return new(scope) }}

var _ cel.Activation = (*scope)(nil)

// read decodes a row.
func (s *scope) read(value string, decode uses) (err error) {
	r := reader{text: value}
	if decode.whole {
		s.row, err = r.whole()
		return err
	}
	n := len(decode.fields)
	if cap(s.values) < n {
		s.values = make([]ref.Val, n)
	}
	s.values = s.values[:n]
	s.part = object{decode.fields, s.values}
	s.row = &s.part
	return r.fields(decode.fields, s.values)
}

// clear lets go of what was read.
func (s *scope) clear() {
	clear(s.values)
	*s = scope{values: s.values[:0], steps: s.steps}
}

// ResolveName returns the value of a variable.
func (s *scope) ResolveName(name string) (any, bool) {
	switch name {
	case "row":
		return s.row, true
	case "claims":
		return s.claims, true
	case meterName:
		return s, true
	}
	return nil, false
}

// Parent returns nil: there are no other variables.
func (s *scope) Parent() cel.Activation { return nil }
