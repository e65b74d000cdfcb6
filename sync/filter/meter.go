package filter

import (
	"errors"
	"regexp"
	"regexp/syntax"

	"github.com/google/cel-go/checker"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/overloads"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/interpreter"
)

// Steps is how many an expression may take for one row: one for each variable, field and
// call, as often as it is evaluated, and one for each ten bytes or two values that it goes
// over. One is 50 to 150 ns.
const Steps = 200_000

const (
	perStep  = 10 // bytes that are gone over in a step
	perValue = 5  // bytes that a value counts as, besides its own
)

// meterName is the variable that the meter is found by. No expression can name it.
const meterName = "@meter"

var errSteps = errors.New("too many steps")

// pay takes steps for going over so much. It ends the evaluation where none are left, by a
// panic, as CEL does with its own limit: an error could be absorbed.
//
// CEL's own limit is not used. It keeps a stack that grows with each item of a loop, and
// looks through all of it for each: a loop over 10,000 items then takes 200 ms, where this
// takes 10. It also counts a comparison of two lists by their lengths, whatever is in them, and
// only after it was made.
func pay(frame *interpreter.ExecutionFrame, size int) {
	if s := meter(frame); s != nil {
		if s.steps -= 1 + size/perStep; s.steps < 0 {
			panic(errSteps)
		}
	}
}

func meter(frame *interpreter.ExecutionFrame) *scope {
	v, _ := frame.ResolveName(meterName)
	s, _ := v.(*scope)
	return s
}

// metered makes a part of a program pay for what it does. What can be made to go over much
// pays before it does; all else pays for the texts that come of it.
func metered(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	switch i := i.(type) {
	case interpreter.InterpretableConst, interpreter.InterpretableConstructor, payingField:
		return i, nil
	case interpreter.InterpretableAttribute:
		return payingField{i}, nil
	case interpreter.InterpretableCall:
		args := i.Args()
		switch i.Function() {
		case operators.Equals:
			return &pair{i.ID(), args[0], args[1], both, types.Equal}, nil
		case operators.NotEquals:
			return &pair{i.ID(), args[0], args[1], both, func(l, r ref.Val) ref.Val {
				return types.Bool(types.Equal(l, r) != types.True)
			}}, nil
		case operators.In:
			return payingIn{i, &pair{i.ID(), args[0], args[1], both, in}}, nil
		case overloads.Matches:
			return matching(i.ID(), args[0], args[1])
		}
		return payingCall{i}, nil
	}
	return payingPart{i}, nil
}

// payingField is a variable with the fields taken of it, or a choice between two.
type payingField struct {
	interpreter.InterpretableAttribute
}

func (p payingField) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	v := p.InterpretableAttribute.Exec(frame)
	pay(frame, length(v))
	return v
}

func (p payingField) Eval(vars interpreter.Activation) ref.Val {
	return p.Exec(interpreter.AsFrame(vars))
}

type payingCall struct{ interpreter.InterpretableCall }

func (p payingCall) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	v := p.InterpretableCall.Exec(frame)
	pay(frame, length(v))
	return v
}

func (p payingCall) Eval(vars interpreter.Activation) ref.Val {
	return p.Exec(interpreter.AsFrame(vars))
}

// payingPart is anything else: || and &&, and loops.
type payingPart struct{ interpreter.InterpretableV2 }

func (p payingPart) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	v := p.InterpretableV2.Exec(frame)
	pay(frame, 0)
	return v
}

func (p payingPart) Eval(vars interpreter.Activation) ref.Val {
	return p.Exec(interpreter.AsFrame(vars))
}

// pair is what is done with two values, once it is paid for.
type pair struct {
	id          int64
	left, right interpreter.InterpretableV2
	size        func(l, r ref.Val) int
	of          func(l, r ref.Val) ref.Val
}

func (p *pair) ID() int64 { return p.id }

func (p *pair) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	l := p.left.Exec(frame)
	if types.IsError(l) {
		return l
	}
	r := p.right.Exec(frame)
	if types.IsError(r) {
		return r
	}
	pay(frame, p.size(l, r))
	return p.of(l, r)
}

func (p *pair) Eval(vars interpreter.Activation) ref.Val {
	return p.Exec(interpreter.AsFrame(vars))
}

// payingIn is x in list. CEL makes one over a list of literals a set, if it is a call.
type payingIn struct {
	interpreter.InterpretableCall
	pair *pair
}

func (p payingIn) Exec(frame *interpreter.ExecutionFrame) ref.Val { return p.pair.Exec(frame) }

func (p payingIn) Eval(vars interpreter.Activation) ref.Val {
	return p.pair.Exec(interpreter.AsFrame(vars))
}

func in(item, of ref.Val) ref.Val {
	c, ok := of.(traits.Container)
	if !ok {
		return types.MaybeNoSuchOverloadErr(of)
	}
	return c.Contains(item)
}

// matching matches a pattern that is compiled once, in texts that are not too long.
func matching(id int64, text, pattern interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	literal, _ := pattern.(interpreter.InterpretableConst)
	if literal == nil {
		return nil, errors.New("the pattern is not a literal")
	}
	source, _ := literal.Value().(types.String)
	re, err := regexp.Compile(string(source))
	if err != nil {
		return nil, err
	}
	n, err := instructions(string(source))
	if err != nil {
		return nil, err
	}
	// Every byte may meet every instruction of the pattern.
	size := func(v, _ ref.Val) int { return min(length(v), maxMatched) * (1 + n/4) }
	return &pair{id, text, pattern, size, func(v, _ ref.Val) ref.Val {
		text, ok := v.(types.String)
		switch {
		case !ok:
			return types.MaybeNoSuchOverloadErr(v)
		case len(text) > maxMatched:
			return types.NewErr("a text of more than %d bytes is not matched", maxMatched)
		}
		return types.Bool(re.MatchString(string(text)))
	}}, nil
}

// instructions is how many the program of a pattern has.
func instructions(pattern string) (int, error) {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return 0, err
	}
	program, err := syntax.Compile(re.Simplify())
	if err != nil {
		return 0, err
	}
	return len(program.Inst), nil
}

func length(v ref.Val) int {
	switch v := v.(type) {
	case types.String:
		return len(v)
	case types.Bytes:
		return len(v)
	}
	return 0
}

// both is how much there is to go over in two values.
func both(l, r ref.Val) int { return weigh(l, weigh(r, 0)) }

// weigh returns a size with that of a value added, or enough to end the evaluation.
func weigh(v ref.Val, size int) int {
	size += perValue + length(v)
	switch v := v.(type) {
	case *object:
		for i := 0; i < len(v.values) && size < Steps*perStep; i++ {
			size = weigh(v.values[i], size+len(v.names[i]))
		}
	case traits.Lister:
		for i, n := types.Int(0), v.Size().(types.Int); i < n && size < Steps*perStep; i++ {
			size = weigh(v.Get(i), size)
		}
	}
	return size
}

// unknown knows nothing of a row's size before there is one.
type unknown struct{}

func (unknown) EstimateSize(checker.AstNode) *checker.SizeEstimate { return nil }

func (unknown) EstimateCallCost(_, _ string, _ *checker.AstNode, _ []checker.AstNode) *checker.CallEstimate {
	return nil
}
