package filter_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/sync/filter"
)

// crowd is a row with so many members.
func crowd(n int) string {
	members := make([]string, n)
	for i := range members {
		members[i] = fmt.Sprintf(`{"id":"u-%d","n":%d,"l":[%d]}`, i, i, i)
	}
	return `{"members":[` + strings.Join(members, ",") + `],"text":"` + strings.Repeat("a", 16<<10) + `"}`
}

// TestARowThatTakesTooLongIsNotSeenAndEnds asks what would take hours, of rows that are
// small enough to be answered, and of those that are not.
func TestARowThatTakesTooLongIsNotSeenAndEnds(t *testing.T) {
	small, large := crowd(10), crowd(10_000)
	for _, expr := range []string{
		`row.members.all(a, row.members.all(b, row.members.all(c, a.n + b.n + c.n >= 0)))`,
		`row.members.all(a, row.members.exists(b, b.n == a.n)) || true`,
		`true && row.members.map(a, row.members.filter(b, b.n > a.n).size()).size() > 0`,
		`row.members.all(a, row.members == row.members)`,
		`row.members.all(a, [row.members, a] != [row.members])`,
		`row.members.all(a, a in row.members)`,
		`row.members.all(a, [a] + row.members != row.members + [a] || true)`,
		`row.members.all(a, row.text + row.text != a.id)`,
		`row.members.all(a, row.text.contains(row.text))`,
		`row.members.all(a, size(row.text) > 3 && row.text.size() > 3)`,
		`row.members.all(a, bytes(row.text) == bytes(row.text))`,
		`row.members.all(a, row.text.matches('^(a|aa|a*)*$'))`,
		`row.members.map(a, a.l + a.l).map(l, l + l).map(l, l + l).all(l, l == l + l || l != l + l)`,
		`row.members.map(a, string(row.text) + a.id).size() > 0`,
		strings.Repeat(`row.members != row.members || `, 40) + `true`,
		`[string(row.members[0].id)].map(a, a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a).all(a, size(row.members) < 1000 || size(a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a+a) > 0)`,
		`row.members.map(a, row.text.size() > 0 ? [a.l, a.l] : []).map(a, [a, a]).all(a, a == a)`,
	} {
		f, err := filter.Compile(expr, nil)
		if err != nil {
			t.Fatalf("%s: %v", expr, err)
		}
		if seen, steps := f.Ask(small); !seen || steps > filter.Steps {
			t.Errorf("%s\n  of a small row is seen: %v after %d steps", expr, seen, steps)
		}
		// What ends it may have been paid for in one go, by all of the two values it is about.
		if seen, steps := f.Ask(large); seen || steps < filter.Steps || steps > 4*filter.Steps {
			t.Errorf("%s\n  of a large row is seen: %v after %d steps", expr, seen, steps)
		}
		if f.Sees(large) || !f.Sees(small) {
			t.Errorf("%s is not seen as it was asked", expr)
		}
	}
}

func TestALoopOverTenThousandMembersHasItsAnswer(t *testing.T) {
	row := crowd(10_000)
	for expr, want := range map[string]bool{
		`row.members.exists(m, m.id == claims.sub)`:                       true,
		`row.members.exists(m, m.id == claims.nope)`:                      false,
		`row.members.map(m, m.id).filter(i, i == claims.sub).size() == 1`: true,
	} {
		f := compile(t, expr, `{"sub":"u-9999","nope":"nobody"}`)
		seen, steps := f.Ask(row)
		if seen != want || steps > filter.Steps {
			t.Errorf("%s is seen: %v after %d steps of %d", expr, seen, steps, filter.Steps)
		}
	}
}

func TestALongTextIsNotMatched(t *testing.T) {
	f := compile(t, `row.text.matches('a$')`, `{}`)
	if !sees(t, f, `{"text":"`+strings.Repeat("a", 16<<10)+`"}`) {
		t.Error("a text of 16 KiB is not matched")
	}
	if sees(t, f, `{"text":"`+strings.Repeat("a", 16<<10+1)+`"}`) {
		t.Error("a longer text is")
	}
}

func TestAnExpressionThatAlwaysTakesTooLongIsRefused(t *testing.T) {
	list := "[" + strings.Repeat("1,", 60) + "1]"
	expr := fmt.Sprintf(`%s.map(a, %[1]s.map(b, %[1]s.map(c, %[1]s.filter(d, d > 0).size()).size()).size()).size() == 0`, list)
	if _, err := filter.Compile(expr, nil); err == nil || !strings.Contains(err.Error(), "loop less") {
		t.Error(err)
	}
}

func TestADeepRowIsReadWithoutEnd(t *testing.T) {
	const deep = 9_000
	row := `{"a":` + strings.Repeat("[", deep) + strings.Repeat("]", deep) + `,"b":1}`
	if !sees(t, compile(t, `row.a == row.a && row.b == 1`, `{}`), row) {
		t.Error("a row that nests is not seen")
	}
	row = `{"a":` + strings.Repeat("[", 1_000_000) + strings.Repeat("]", 1_000_000) + `,"b":1}`
	if compile(t, `row.a == row.a`, `{}`).Sees(row) {
		t.Error("a row that nests without end is seen")
	}
	if !compile(t, `row.b == 1`, `{}`).Sees(row) {
		t.Error("what is not named counts")
	}
}
