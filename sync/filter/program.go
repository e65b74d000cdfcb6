package filter

import (
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
)

const (
	maxExpr    = 2 << 10  // bytes of an expression
	maxParse   = 64       // how deep it may nest
	maxLoops   = 4        // loops in each other, or one over what another made
	maxPattern = 128      // instructions of a pattern's program
	maxMatched = 16 << 10 // bytes of a text that a pattern is looked for in
)

// program is an expression that is ready to be asked, for any claims.
type program struct {
	plan   cel.Program
	row    uses
	claims uses
	canon  []byte // its tree, see canonical
}

// uses tells which fields of a variable an expression refers to.
type uses struct {
	fields []string // in order, each once
	whole  bool     // any of them: it takes the variable as a whole, or computes a name
}

// environment is the language: what an expression may name.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	// CEL keeps one value for this error and notes in it where it first came up, without a
	// lock. Noted once, here, it is only read.
	types.LabelErrNode(1, types.NoSuchOverloadErr())

	object := cel.MapType(cel.StringType, cel.DynType)
	return cel.NewCustomEnv(
		cel.StdLib(),
		cel.Variable("row", object),
		cel.Variable("claims", object),
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(maxExpr),
		cel.ParserRecursionLimit(maxParse),
		cel.ParserErrorRecoveryLimit(4),
		cel.ExpressionNodeLimit(4*maxExpr),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(),
			cel.ValidateTimestampLiterals(),
			cel.ValidateComprehensionNestingLimit(maxLoops),
		),
	)
})

// newProgram makes the program of an expression. Its error is an *Error.
func newProgram(expr string) (p *program, err error) {
	defer func() {
		if recover() != nil {
			p, err = nil, refuse(0, 0, "the expression can't be compiled: write it in another way")
		}
	}()
	switch {
	case len(expr) > maxExpr:
		return nil, refuse(0, 0, "the expression has %d bytes; at most %d are allowed: move what differs between users into claims", len(expr), maxExpr)
	case !utf8.ValidString(expr):
		return nil, refuse(0, 0, "the expression is not UTF-8: send it as JSON")
	case strings.TrimSpace(expr) == "":
		return nil, refuse(0, 0, "the expression is empty: write true to let every row be seen, or leave the filter out")
	}
	env, err := environment()
	if err != nil {
		return nil, refuse(0, 0, "the server can't compile expressions: %v", err)
	}
	checked, issues := env.Compile(expr)
	if err := refusal(issues); err != nil {
		return nil, err
	}
	tree := checked.NativeRep()
	found, err := look(tree)
	if err != nil {
		return nil, err
	}
	switch checked.OutputType().Kind() {
	case types.BoolKind, types.DynKind:
	default:
		return nil, refuse(0, 0, "the expression is a %s, which can't be true of a row: compare it with something", checked.OutputType())
	}
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if found.heavy() {
		if least, err := env.EstimateCost(checked, unknown{}); err == nil && least.Min > Steps {
			return nil, refuse(0, 0, "the expression takes %d steps or more for each row; at most %d are allowed: let it loop less", least.Min, Steps)
		}
		options = append(options, cel.CustomDecoratorV2(metered))
	}
	plan, err := env.Program(checked, options...)
	if err != nil {
		return nil, refuse(0, 0, "the expression can't be evaluated: %v", err)
	}
	return &program{plan, found.row, found.claims, canonical(tree)}, nil
}

// refusal returns the first of what CEL found wrong, nil for nothing.
func refusal(issues *cel.Issues) error {
	if issues.Err() == nil {
		return nil
	}
	errs := issues.Errors()
	if len(errs) == 0 {
		return refuse(0, 0, "the expression is not valid: %v", issues.Err())
	}
	e := errs[0]
	text := e.Message
	switch {
	case strings.HasPrefix(text, "undeclared reference"):
		text += ": use row, claims and the standard functions of CEL"
	case strings.HasPrefix(text, "comprehension exceeds nesting limit"):
		text = "too many loops in each other, or over what another made: use fewer of all, exists, exists_one, map and filter"
	case strings.HasPrefix(text, "found no matching overload"):
		text += ": compare or convert values of types that fit"
	case strings.Contains(text, "recursion limit"), strings.Contains(text, "max recursion depth"):
		text = "the expression nests too deep: use fewer brackets, or && and || instead of ?:"
	}
	if e.Location.Line() < 1 {
		return refuse(0, 0, "%s", text)
	}
	return refuse(e.Location.Line(), e.Location.Column()+1, "%s", text)
}
