package filter

import (
	"math"
	"slices"
	"strings"

	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/overloads"
	"github.com/google/cel-go/common/types"
)

// findings are what a look at an expression's tree tells.
type findings struct {
	row, claims uses
	loops       bool // it has a loop
	grows       bool // it adds what may be texts or lists
	matches     bool // it looks for a pattern
	compares    int  // how often it compares what may be large
}

// heavy tells whether an expression must pay for its steps. Any other evaluates each of its
// parts once at most, and few of these go over all of a large row.
func (f findings) heavy() bool { return f.loops || f.grows || f.matches || f.compares > 16 }

// looker goes over a tree once.
type looker struct {
	tree  *ast.AST
	loops []loop // those around, the innermost last
	found findings
	err   *Error // the first rule that is broken
}

// loop is a loop, and the names it gives.
type loop struct{ item, result string }

// look goes over a checked tree, and refuses what a filter must not have.
func look(tree *ast.AST) (findings, error) {
	l := looker{tree: tree}
	l.value(tree.Expr())
	if l.err != nil {
		return findings{}, l.err
	}
	for _, u := range []*uses{&l.found.row, &l.found.claims} {
		slices.Sort(u.fields)
		u.fields = slices.Compact(u.fields)
	}
	return l.found, nil
}

func (l *looker) refuse(e ast.Expr, text string) {
	if l.err != nil {
		return
	}
	at := l.tree.SourceInfo().GetStartLocation(e.ID())
	l.err = refuse(max(0, at.Line()), at.Column()+1, "%s", text)
}

// value goes over an expression, and returns how large its value may be.
func (l *looker) value(e ast.Expr) bulk {
	if l.err != nil {
		return nil
	}
	b := l.of(e)
	if !l.holds(e) {
		b = bulk{scalars: 1} // a text may be long, but is paid for whenever it is made or fetched
	}
	if b.over() {
		l.refuse(e, "this may build a value many times as large as the row: build less with +, lists, map and filter")
	}
	return b
}

// holds tells whether the value of an expression may have others in it.
func (l *looker) holds(e ast.Expr) bool {
	switch l.tree.GetType(e.ID()).Kind() {
	case types.ListKind, types.MapKind, types.DynKind, types.TypeParamKind:
		return true
	}
	return false
}

// all goes over several, and returns how large they may be together.
func (l *looker) all(of ...ast.Expr) bulk {
	b := bulk{}
	for _, e := range of {
		b.add(l.value(e), 1)
	}
	return b
}

func (l *looker) of(e ast.Expr) bulk {
	switch e.Kind() {
	case ast.LiteralKind:
		if f, ok := e.AsLiteral().(types.Double); ok && math.Abs(float64(f)) >= exact && math.Abs(float64(f)) <= 1<<64 {
			l.refuse(e, "a double of this size can't tell integers apart: write an integer")
		}
		return bulk{scalars: 1}
	case ast.IdentKind:
		return l.name(e)
	case ast.SelectKind:
		s := e.AsSelect()
		return l.part(s.Operand(), s.FieldName(), true)
	case ast.CallKind:
		return l.call(e)
	case ast.ListKind:
		b := l.all(e.AsList().Elements()...)
		b.add(bulk{scalars: 1}, 1)
		if e.AsList().Size() > 0 {
			b[scalars]--
		}
		return b
	case ast.MapKind:
		l.refuse(e, "a map literal can only be looked up in: write {…}[x] or x in {…}")
		return nil
	case ast.ComprehensionKind:
		return l.loop(e)
	}
	l.refuse(e, "a filter can't make messages: use the fields of row and claims")
	return nil
}

// name goes over a name that is not followed by a field that is known.
func (l *looker) name(e ast.Expr) bulk {
	name := strings.TrimPrefix(e.AsIdent(), ".")
	for i := len(l.loops) - 1; i >= 0; i-- {
		switch name {
		case l.loops[i].item:
			return bulk{i: 1}
		case l.loops[i].result:
			return bulk{}
		}
	}
	if u := l.variable(e); u != nil {
		u.whole = true
		return bulk{data: 1}
	}
	return bulk{scalars: 1} // a type
}

// variable returns the uses of row or claims, nil if this is neither. No loop can hide them.
func (l *looker) variable(e ast.Expr) *uses {
	if e.Kind() != ast.IdentKind {
		return nil
	}
	switch strings.TrimPrefix(e.AsIdent(), ".") {
	case "row":
		return &l.found.row
	case "claims":
		return &l.found.claims
	}
	return nil
}

// part goes over what is looked up in a value, by a name if that is known.
func (l *looker) part(of ast.Expr, name string, known bool) bulk {
	if u := l.variable(of); u != nil && known {
		u.fields = append(u.fields, name)
		return bulk{data: 1}
	}
	return l.table(of)
}

// table goes over what is looked up in: only here a map literal may be. Its entries come in
// no order, and so a loop over them would not have the same result always.
func (l *looker) table(e ast.Expr) bulk {
	if e.Kind() != ast.MapKind {
		return l.value(e)
	}
	b := bulk{scalars: 1}
	for _, entry := range e.AsMap().Entries() {
		b.add(l.all(entry.AsMapEntry().Key(), entry.AsMapEntry().Value()), 1)
	}
	if b.over() {
		l.refuse(e, "this map is too large: name less in it")
	}
	return b
}

func (l *looker) call(e ast.Expr) bulk {
	c := e.AsCall()
	args := c.Args()
	if c.IsMemberFunction() {
		args = append([]ast.Expr{c.Target()}, args...)
	}
	switch name := c.FunctionName(); {
	case name == operators.Index:
		key, known := "", false
		if args[1].Kind() == ast.LiteralKind {
			var text types.String
			text, known = args[1].AsLiteral().(types.String)
			key = string(text)
		}
		l.value(args[1])
		return l.part(args[0], key, known)
	case name == operators.Conditional:
		l.value(args[0])
		return l.all(args[1:]...)
	case name == operators.Equals, name == operators.NotEquals:
		if l.holds(args[0]) && l.holds(args[1]) {
			l.found.compares++
		}
	case name == operators.In:
		l.found.compares++
		l.value(args[0])
		l.table(args[1])
		return bulk{scalars: 1}
	case name == overloads.Matches:
		l.found.matches = true
		l.pattern(args[1])
	case strings.HasPrefix(name, "get") && len(args) > 1:
		l.refuse(args[1], "parts of timestamps are those in UTC: leave the time zone out")
	case name == operators.Add:
		switch l.tree.GetType(e.ID()).Kind() {
		case types.IntKind, types.UintKind, types.DoubleKind, types.TimestampKind, types.DurationKind:
		default:
			l.found.grows = true
		}
	}
	return l.all(args...)
}

// pattern goes over one.
func (l *looker) pattern(e ast.Expr) {
	if e.Kind() != ast.LiteralKind {
		l.refuse(e, "the pattern of matches must be a literal, as it is compiled once: use contains, startsWith or endsWith")
		return
	}
	text, _ := e.AsLiteral().(types.String)
	switch n, err := instructions(string(text)); {
	case err != nil:
		l.refuse(e, "the pattern is not a regular expression of RE2: "+err.Error())
	case n > maxPattern:
		l.refuse(e, "the pattern is too large: repeat less in it, or use startsWith, endsWith or contains")
	}
}

// loop goes over a macro that was made a loop. What it makes has, for each item, what a step
// adds. That must be a part of the item, or a scalar: the sum is then not larger than what was
// looped over. A loop that repeated something else for each item could make a value of any size
// in a few steps, as lists share what is in them.
func (l *looker) loop(e ast.Expr) bulk {
	c := e.AsComprehension()
	l.found.loops = true
	if v := c.IterVar(); c.HasIterVar2() || v == "row" || v == "claims" {
		l.refuse(e, "row and claims can't be the name of an item: use another")
		return nil
	}
	over := l.value(c.IterRange())
	first := l.value(c.AccuInit())

	l.loops = append(l.loops, loop{c.IterVar(), c.AccuVar()})
	l.value(c.LoopCondition())
	step := l.value(c.LoopStep())
	l.value(c.Result())
	own := len(l.loops) - 1
	l.loops = l.loops[:own]

	made := bulk{}
	made.add(over, step[own]+step[scalars])
	made.add(first, 1)
	delete(step, own)
	delete(step, scalars)
	if len(step) > 0 {
		l.refuse(e, "map can't repeat for each item what is not of the item: use parts of the item, numbers, and text that says so: string(x)")
	}
	return made
}
