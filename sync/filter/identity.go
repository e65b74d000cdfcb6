package filter

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"math"

	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
)

// record is what an identity is the hash of. Everything in it says first what it is, and how
// long, so that no two things are written the same way.
type record []byte

func (r *record) tag(c byte)    { *r = append(*r, c) }
func (r *record) number(n int)  { *r = binary.AppendUvarint(*r, uint64(n)) }
func (r *record) bits(n uint64) { *r = binary.BigEndian.AppendUint64(*r, n) }
func (r *record) text(s string) {
	r.number(len(s))
	*r = append(*r, s...)
}

// identify returns the identity of a program with claims.
func (p *program) identify(claims *object) string {
	r := record{}
	r.text(string(p.canon))
	r.value(claims)
	sum := sha256.Sum256(r)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// value adds one of a claim, or a literal.
func (r *record) value(v ref.Val) {
	switch v := v.(type) {
	case types.Null:
		r.tag('0')
	case types.Bool:
		r.tag('f')
		if v {
			(*r)[len(*r)-1] = 't'
		}
	case types.Int:
		r.tag('i')
		r.bits(uint64(v))
	case types.Uint:
		r.tag('u')
		r.bits(uint64(v))
	case types.Double:
		r.tag('d')
		r.bits(math.Float64bits(float64(v)))
	case types.String:
		r.tag('s')
		r.text(string(v))
	case types.Bytes:
		r.tag('b')
		r.text(string(v))
	case wide:
		r.tag('w')
		r.text(string(v))
	case *object:
		r.tag('o')
		r.number(len(v.names))
		for i, name := range v.names {
			r.text(name)
			r.value(v.values[i])
		}
	case traits.Lister:
		n := v.Size().(types.Int)
		r.tag('l')
		r.number(int(n))
		for i := types.Int(0); i < n; i++ {
			r.value(v.Get(i))
		}
	default:
		panic("filter: a value without an identity")
	}
}

// canonical is an expression without what does not count: white space, comments, brackets
// and how a literal is spelled.
func canonical(tree *ast.AST) []byte {
	r := record{}
	r.expr(tree.Expr())
	return r
}

func (r *record) exprs(of ...ast.Expr) {
	r.number(len(of))
	for _, e := range of {
		r.expr(e)
	}
}

func (r *record) expr(e ast.Expr) {
	switch e.Kind() {
	case ast.LiteralKind:
		r.tag('=')
		r.value(e.AsLiteral())
	case ast.IdentKind:
		r.tag('$')
		r.text(e.AsIdent())
	case ast.SelectKind:
		s := e.AsSelect()
		r.tag('.')
		if s.IsTestOnly() {
			(*r)[len(*r)-1] = '?'
		}
		r.text(s.FieldName())
		r.expr(s.Operand())
	case ast.CallKind:
		c := e.AsCall()
		r.tag('(')
		if c.IsMemberFunction() {
			(*r)[len(*r)-1] = '>'
			r.expr(c.Target())
		}
		r.text(c.FunctionName())
		r.exprs(c.Args()...)
	case ast.ListKind:
		r.tag('[')
		r.exprs(e.AsList().Elements()...)
	case ast.MapKind:
		r.tag('{')
		r.number(e.AsMap().Size())
		for _, entry := range e.AsMap().Entries() {
			r.expr(entry.AsMapEntry().Key())
			r.expr(entry.AsMapEntry().Value())
		}
	case ast.ComprehensionKind:
		c := e.AsComprehension()
		r.tag('@')
		r.text(c.IterVar())
		r.text(c.AccuVar())
		r.exprs(c.IterRange(), c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result())
	default:
		panic("filter: an expression without an identity")
	}
}
