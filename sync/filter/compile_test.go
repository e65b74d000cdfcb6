package filter_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/tidemark-sync/tidemark/sync/filter"
)

func TestAnExpressionThatCantBeAFilterSaysWhereAndWhatToDo(t *testing.T) {
	for _, c := range []struct {
		expr         string
		line, column int
		says         string
	}{
		{``, 0, 0, "write true"},
		{"  \n", 0, 0, "write true"},
		{strings.Repeat(" ", 2048) + `true`, 0, 0, "at most 2048"},
		{strings.Repeat("é", 1025), 0, 0, "at most 2048"},
		{`row.owner == `, 1, 14, "Syntax error"},
		{"row.a == 1 &&\n  $", 2, 3, "Syntax error"},
		{"row.s == '\xff'", 0, 0, "UTF-8"},
		{`owner == claims.sub`, 1, 1, "use row, claims"},
		{`row.at < now()`, 1, 13, "use row, claims"},
		{`row`, 0, 0, "compare it"},
		{`row.n + 1 == 2 ? 'a' : 'b'`, 0, 0, "compare it"},
		{`1 in row`, 1, 3, "types that fit"},
		{`row == 1`, 1, 5, "types that fit"},
		{`row.exists(row, true)`, 1, 11, "use another"},
		{`row.exists(claims, claims == 'a')`, 1, 11, "use another"},
		{`row.id == 9007199254740993.0`, 1, 11, "write an integer"},
		{`row.s.matches(claims.pattern)`, 1, 21, "literal"},
		{`row.s.matches('(')`, 1, 15, "RE2"},
		{`row.s.matches('(a{30}){30}')`, 1, 15, "too large"},
		{`row.s.matches('(?=a)')`, 1, 15, "RE2"},
		{`timestamp(row.at).getHours('Europe/Berlin') == 1`, 1, 28, "UTC"},
		{`timestamp('soon') < timestamp(row.at)`, 1, 11, "timestamp"},
		{`size({'a': 1}) == 1`, 1, 6, "looked up"},
		{`{'a': 1, 'b': 2}.map(k, k)[0] == row.k`, 1, 1, "looked up"},
		{`google.protobuf.Value{number_value: 1.0} == row.a`, 1, 22, "messages"},
		{`optional.none() == row.a`, 1, 1, "use row, claims"},
		{strings.Repeat("(", 200) + `true` + strings.Repeat(")", 200), 0, 0, "too deep"},
		{`[1].all(a, [1].all(b, [1].all(c, [1].all(d, [1].all(e, true)))))`, 0, 0, "loops"},
		{`row.l.map(a, row).size() > 1`, 1, 10, "of the item"},
		{`row.l.map(a, row.l.map(b, a)).size() > 1`, 1, 23, "of the item"},
		{`row.l.map(a, [a,a,a,a,a]).map(a, [a,a,a,a,a]).map(a, [a,a,a,a,a]) == []`, 1, 50, "build less"},
		{`row.l.map(a, a+a+a+a+a).map(a, a+a+a+a+a).map(a, a+a+a+a+a) == []`, 1, 46, "build less"},
	} {
		_, err := filter.Compile(c.expr, nil)
		var e *filter.Error
		if !errors.As(err, &e) {
			t.Errorf("%.60q: %v", c.expr, err)
			continue
		}
		if !strings.Contains(e.Error(), c.says) || c.line > 0 && (e.Line != c.line || e.Column != c.column) {
			t.Errorf("%.60q, want %d:%d %q\n  %v", c.expr, c.line, c.column, c.says, e)
		}
		if len(e.Error()) > 500 || strings.Contains(e.Error(), "\n") {
			t.Errorf("%.60q has a reason of %d bytes: %q", c.expr, len(e.Error()), e)
		}
	}
}

func TestALongExpressionOfManyAlternativesIsAllowed(t *testing.T) {
	var all []string
	for i := range 100 {
		all = append(all, fmt.Sprintf("row.k == %d", i))
	}
	if f := compile(t, strings.Join(all, " || "), `{}`); !sees(t, f, `{"k":99}`) || sees(t, f, `{"k":100}`) {
		t.Fatal("the last alternative does not count")
	}
}

func TestAClaimThatCantBeReadIsNotGuessed(t *testing.T) {
	const secret = "s3cr3t"
	for name, v := range map[string]any{
		"rounded":  float64(1 << 53),
		"negative": float64(-1<<53 - 2),
		"function": func() {},
		"number":   map[string]any{"x": []any{secret, float64(1 << 60)}},
		"channel":  []any{secret, make(chan int)},
	} {
		_, err := filter.Compile(`row.x == claims.x`, map[string]any{"x": v, "y": secret})
		var e *filter.Error
		if !errors.As(err, &e) || !strings.Contains(e.Text, `"x"`) || strings.Contains(e.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
		// It is not asked for: then it does no harm.
		if _, err := filter.Compile(`row.x == claims.y`, map[string]any{"x": v, "y": secret}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClaimsOfGoTypesAreWhatTheirJSONIs(t *testing.T) {
	type names []string
	f, err := filter.Compile(`row.a in claims.names && row.n == claims.n && row.f == claims.f && row.m == claims.m && claims.none == null`, map[string]any{
		"names": names{"x", "y"}, "n": uint16(7), "f": 1.5, "m": map[string]int{"k": 1}, "none": nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !sees(t, f, `{"a":"y","n":7,"f":1.5,"m":{"k":1}}`) || sees(t, f, `{"a":"z","n":7,"f":1.5,"m":{"k":1}}`) {
		t.Fatal("not what their JSON is")
	}
}

func TestWhatIsDoneToClaimsLaterDoesNotCount(t *testing.T) {
	teams := []any{"red"}
	c := map[string]any{"teams": teams}
	f, err := filter.Compile(`row.team in claims.teams`, c)
	if err != nil {
		t.Fatal(err)
	}
	teams[0] = "blue"
	delete(c, "teams")
	if !sees(t, f, `{"team":"red"}`) || sees(t, f, `{"team":"blue"}`) {
		t.Fatal("the filter changed")
	}
}

func TestOnlyTheFieldsThatAreNamedAreDecoded(t *testing.T) {
	for _, c := range []struct {
		expr   string
		fields string
		whole  bool
	}{
		{`row.b == 1 && row.a.x == row['c'].y || has(row.d.z) || row.b == 2`, "a b c d", false},
		{`claims.sub == 'a'`, "", false},
		{`row.l.exists(x, x.row == row.o)`, "l o", false},
		{`'a' in row`, "", true},
		{`row[claims.f] == 1`, "", true},
		{`row[row.f] == 1`, "f", true},
		{`size(row) == 1 && row.a == 1`, "a", true},
		{`row.exists(k, k == 'a')`, "", true},
		{`dyn(row).a == 1`, "", true},
		{`[row][0].a == 1`, "", true},
		{`(claims.x ? row : row).a == 1`, "", true},
		{`{'a': row}.a.b == 1`, "", true},
		{`row == row`, "", true},
	} {
		fields, whole := compile(t, c.expr, `{}`).Fields()
		if got := strings.Join(fields, " "); got != c.fields || whole != c.whole {
			t.Errorf("%s decodes %q, all: %v; want %q, %v", c.expr, got, whole, c.fields, c.whole)
		}
	}
}

func TestAStormOfTheSameExpressionCompilesItOnce(t *testing.T) {
	const expr = `row.storm == claims.sub || row.storm == 'all'`
	all := make([]*filter.Filter, 64)
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			all[i], _ = filter.Compile(expr, map[string]any{"sub": fmt.Sprint(i)})
		})
	}
	wg.Wait()
	for i, f := range all {
		if f == nil || !filter.SameProgram(f, all[0]) {
			t.Fatalf("filter %d has a program of its own", i)
		}
		if !f.Sees(fmt.Sprintf(`{"storm":"%d"}`, i)) || f.Sees(fmt.Sprintf(`{"storm":"%d"}`, i+1)) {
			t.Fatalf("filter %d has the claims of another", i)
		}
	}
}

func TestManyExpressionsTakeBoundedMemory(t *testing.T) {
	first := compile(t, `row.first == claims.sub`, `{"sub":"ada"}`)
	for i := range filter.MaxPrograms + 100 {
		compile(t, fmt.Sprintf(`row.k == %d`, i), `{}`)
	}
	if n, _ := filter.Programs(); n > filter.MaxPrograms {
		t.Fatalf("%d are kept", n)
	}
	for i := range 300 {
		filter.Compile(fmt.Sprintf(`%d == '%s'`, i, strings.Repeat("x", 2000)), nil) // refused
	}
	if _, n := filter.Programs(); n > filter.MaxProgramBytes {
		t.Fatalf("%d bytes are kept", n)
	}
	if again := compile(t, `row.first == claims.sub`, `{"sub":"ada"}`); filter.SameProgram(first, again) || first.Identity() != again.Identity() {
		t.Fatal("it was kept, or is another now")
	}
	if !sees(t, first, `{"first":"ada"}`) {
		t.Fatal("a filter ended with its place")
	}
}

func TestAFilterIsAskedByManyAtOnce(t *testing.T) {
	filters := []*filter.Filter{
		compile(t, `row.owner == claims.sub`, `{"sub":"ada"}`),
		compile(t, `row.l.exists(x, x.a + x.b == claims.o.n) || row.owner in ['ada', 'eve']`, `{"o":{"n":3}}`),
		compile(t, `row.owner.matches('^a') && row.n < claims.l[0] && size(row) > 0`, `{"l":[5]}`),
		compile(t, `row.l + claims.l == claims.l + row.l || row.n < 'a'`, `{"l":[{"a":1}]}`),
	}
	rows := []string{
		`{"owner":"ada","l":[{"a":1,"b":2}],"n":1}`, `{"owner":"bob","l":[],"n":1}`, `{}`, `{"owner":1,"l":2,"n":"x"}`,
		`{"owner":"al","l":[{"a":"x"}],"n":4}`,
	}
	want := make(map[[2]int]bool)
	for i, f := range filters {
		for j, row := range rows {
			want[[2]int{i, j}] = sees(t, f, row)
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				for i, f := range filters {
					for j, row := range rows {
						if f.Sees(row) != want[[2]int{i, j}] {
							t.Errorf("filter %d of %s is another's answer", i, row)
							return
						}
					}
				}
			}
		})
	}
	wg.Wait()
}
