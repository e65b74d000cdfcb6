package filter_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/filter"
)

// names are few, so that rows and expressions meet.
var names = []string{"a", "b", "c", "owner", "é", `q"`, "__proto__"}

// value draws a JSON value, as encoding/json decodes it with UseNumber.
func value(depth int) *rapid.Generator[any] {
	scalars := []*rapid.Generator[any]{
		rapid.Just[any](nil),
		rapid.Map(rapid.Bool(), func(b bool) any { return b }),
		rapid.Map(rapid.SampledFrom([]string{"", "a", "b", "ada", "é\n\"\\", "a b"}), func(s string) any { return s }),
		rapid.Map(rapid.SampledFrom([]string{"0", "1", "2", "-1", "1.5", "2.5e3", "9007199254740993", "9007199254740992", "18446744073709551615", "36893488147419103232"}),
			func(n string) any { return json.Number(n) }),
	}
	if depth == 0 {
		return rapid.OneOf(scalars...)
	}
	return rapid.OneOf(append(scalars,
		rapid.Map(rapid.SliceOfN(value(depth-1), 0, 4), func(l []any) any { return l }),
		rapid.Map(rapid.MapOfN(rapid.SampledFrom(names), value(depth-1), 0, 4), func(m map[string]any) any { return m }),
	)...)
}

// term draws an expression of any type, and condition one that may be a bool.
func term(depth int) *rapid.Generator[string] {
	field := rapid.Map(rapid.SampledFrom([]string{"a", "b", "c", "owner"}), func(n string) string { return "row." + n })
	claim := rapid.Map(rapid.SampledFrom([]string{"a", "b", "c", "owner"}), func(n string) string { return "claims." + n })
	index := rapid.Map(rapid.SampledFrom([]string{`row['é']`, `row['q"']`, `row['__proto__']`, `row[claims.owner]`, `dyn(row)`, `row.a[0]`, `row.a.b`, `row.b['c']`}), func(s string) string { return s })
	literal := rapid.SampledFrom([]string{`1`, `1.5`, `'a'`, `'ada'`, `null`, `true`, `[]`, `[dyn(1), 'a']`})
	if depth == 0 {
		return rapid.OneOf(field, claim, index, literal)
	}
	sub := term(depth - 1)
	return rapid.OneOf(field, claim, index, rapid.Custom(func(t *rapid.T) string {
		form := rapid.SampledFrom([]string{"dyn(%s) + dyn(%s)", "[%s, %s]", "(dyn(%s) == 1 ? dyn(1) : dyn(%s))", "size(dyn(%s)) - size(dyn(%s))"}).Draw(t, "form")
		return fmt.Sprintf(form, sub.Draw(t, "left"), sub.Draw(t, "right"))
	}))
}

func condition(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		forms := []string{"dyn(%s) == dyn(%s)", "dyn(%s) != dyn(%s)", "dyn(%s) < dyn(%s)", "dyn(%s) in dyn(%s)", "dyn(%s).startsWith(dyn(%s))",
			"dyn(%s).exists(x, x == dyn(%s))", "dyn(%s).all(x, x in dyn(%s))", "dyn(%s).filter(x, x != dyn(%s)) == [1]", "dyn(%s).map(x, [x, x]) == dyn(%s)"}
		of := term(1)
		if depth > 0 {
			if form := rapid.SampledFrom([]string{"", "(%s) && (%s)", "(%s) || (%s)", "!(%s) || (%s)"}).Draw(t, "of conditions"); form != "" {
				c := condition(depth - 1)
				return fmt.Sprintf(form, c.Draw(t, "left"), c.Draw(t, "right"))
			}
			if rapid.IntRange(0, 5).Draw(t, "presence") == 0 {
				return rapid.SampledFrom([]string{"has(row.a)", "has(row.a.b)", "'a' in row", "has(claims.a)", "!has(row.owner)"}).Draw(t, "has")
			}
		}
		return fmt.Sprintf(rapid.SampledFrom(forms).Draw(t, "form"), of.Draw(t, "left"), of.Draw(t, "right"))
	})
}

func drawRow(t *rapid.T) (map[string]any, string) {
	row := rapid.MapOfN(rapid.SampledFrom(names), value(2), 0, 7).Draw(t, "row")
	text, err := json.Marshal(row)
	if err != nil {
		t.Fatal(err)
	}
	return row, string(text)
}

// TestWhatIsNotDecodedDoesNotChangeWhatIsSeen compares the answers with some of a row
// decoded and with all.
func TestWhatIsNotDecodedDoesNotChangeWhatIsSeen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		expr := condition(2).Draw(t, "expr")
		c := rapid.MapOfN(rapid.SampledFrom(names), value(2), 0, 7).Draw(t, "claims")
		f, err := filter.Compile(expr, c)
		if err != nil {
			t.Skip(err)
		}
		for range 4 {
			_, row := drawRow(t)
			seen, _ := f.Ask(row)
			if f.Sees(row) != seen || f.SeesDecoded(row) != seen {
				t.Fatalf("%s\n  of %s\n  is seen: %v, and not", expr, row, seen)
			}
		}
	})
}

// plain is CEL as it comes, without our reader, objects, meter and rules.
func plain(t *rapid.T, expr string, row, claims map[string]any) bool {
	object := cel.MapType(cel.StringType, cel.DynType)
	env, err := cel.NewEnv(cel.Variable("row", object), cel.Variable("claims", object), cel.CrossTypeNumericComparisons(true))
	if err != nil {
		t.Fatal(err)
	}
	checked, issues := env.Compile(expr)
	if issues.Err() != nil {
		t.Fatal(issues.Err())
	}
	program, err := env.Program(checked)
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := program.Eval(map[string]any{"row": native(row), "claims": native(claims)})
	return err == nil && out == types.True
}

// native is a decoded value as CEL takes it. A number that is too large for 64 bits is
// replaced by a value that is equal to itself, and nothing else.
func native(v any) any {
	switch v := v.(type) {
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i
		}
		if strings.ContainsAny(string(v), ".e") {
			f, _ := v.Float64()
			return f
		}
		var u uint64
		if _, err := fmt.Sscan(string(v), &u); err == nil {
			return u
		}
		return types.NewObjectType("wide." + string(v))
	case []any:
		l := make([]any, len(v))
		for i := range v {
			l[i] = native(v[i])
		}
		return l
	case map[string]any:
		m := make(map[string]any, len(v))
		for k := range v {
			m[k] = native(v[k])
		}
		return m
	}
	return v
}

// TestAFilterSeesWhatCELSays compares the answers with those of CEL, used in the plain way.
func TestAFilterSeesWhatCELSays(t *testing.T) {
	asked, told := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		row, text := drawRow(t)
		c := row
		if rapid.Bool().Draw(t, "apart") {
			c, _ = drawRow(t)
		}
		for range 4 {
			expr := condition(1).Draw(t, "expr")
			f, err := filter.Compile(expr, c)
			if err != nil {
				continue
			}
			want := plain(t, expr, row, c)
			if f.Sees(text) != want {
				t.Fatalf("%s\n  of %s\n  is seen: %v", expr, text, !want)
			}
			if asked++; want {
				told++
			}
		}
	})
	if t.Logf("%d of %d are seen", told, asked); told == 0 {
		t.Error("nothing was seen: this test tests nothing")
	}
}
