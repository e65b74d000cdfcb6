package filter_test

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/filter"
)

func TestUsersOfTheSameTeamShareTheirWorkAndNoOthers(t *testing.T) {
	const team = `row.team == claims.team`
	of := func(expr, c string) string { return compile(t, expr, c).Identity() }
	red := of(team, `{"sub":"ada","team":"red"}`)
	for _, same := range [][2]string{
		{team, `{"sub":"bob","team":"red"}`},
		{" row.team\n==claims . team // theirs", `{"team":"red"}`},
		{`(row.team) == ((claims.team))`, `{"team":"red"}`},
		{team, `{"team":"\u0072ed"}`},
	} {
		if of(same[0], same[1]) != red {
			t.Errorf("%v has an identity of its own", same)
		}
	}
	seen := map[string]string{red: "red"}
	for _, other := range [][2]string{
		{team, `{"team":"blue"}`},
		{team, `{"team":"Red"}`},
		{team, `{"team":["red"]}`},
		{team, `{"team":{"red":null}}`},
		{team, `{"team":null}`},
		{team, `{}`},
		{team, `{"team":""}`},
		{team, `{"team":1}`},
		{team, `{"team":"1"}`},
		{team, `{"team":1.5}`},
		{team, `{"team":9007199254740993}`},
		{team, `{"team":9007199254740992}`},
		{team, `{"team":18446744073709551616}`},
		{team, `{"team":"18446744073709551616"}`},
		{team, `{"team":true}`},
		{team, `{"team":[]}`},
		{team, `{"team":[[]]}`},
		{team, `{"team":{}}`},
		{team, `{"team":["a","b"]}`},
		{team, `{"team":["ab"]}`},
		{team, `{"team":["b","a"]}`},
		{team, `{"team":{"a":{"b":1}}}`},
		{team, `{"team":{"a":{},"b":1}}`},
		{`row.team != claims.team`, `{"team":"red"}`},
		{`row.tean == claims.team`, `{"team":"red"}`},
		{`row.team == claims.team && true`, `{"team":"red"}`},
		{`row.owner == claims.sub`, `{"sub":"ada"}`},
		{`row.owner == claims.sub`, `{"sub":"bob"}`},
		{`row.owner == 'ada'`, `{}`},
		{`row.owner == b'ada'`, `{}`},
		{`row.n == 1`, `{}`},
		{`row.n == 1.0`, `{}`},
		{`row.n == 1u`, `{}`},
		{`row.n == '1'`, `{}`},
		{`has(row.n.a)`, `{}`},
		{`row.n.a`, `{}`},
		{`row.l.exists(x, x == 1)`, `{}`},
		{`row.l.all(x, x == 1)`, `{}`},
		{`row.l.exists_one(x, x == 1)`, `{}`},
		{`(row.a && row.b) || row.c`, `{}`},
		{`row.a && (row.b || row.c)`, `{}`},
		{`claims == row`, `{"a":1}`},
		{`claims == row`, `{"a":1,"b":1}`},
		{`claims == row`, `{}`},
	} {
		id := of(other[0], other[1])
		if was, ok := seen[id]; ok {
			t.Errorf("%v has the identity of %s", other, was)
		}
		seen[id] = other[0] + " of " + other[1]
	}
}

// TestAnIdentityIsThatOfTheClaimsThatCount compares filters by their identities and by what
// these are made of.
func TestAnIdentityIsThatOfTheClaimsThatCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		exprs := []string{`row.a == claims.a`, `row.a == claims.a || row.b == claims.b.c`, `row.a in claims.l`, `row == claims`}
		counts := [][]string{{"a"}, {"a", "b"}, {"l"}, {"a", "b", "l", "x"}}
		type half struct {
			expr   int
			claims map[string]any
		}
		draw := func(name string) half {
			h := half{rapid.IntRange(0, len(exprs)-1).Draw(t, name), map[string]any{}}
			for _, k := range []string{"a", "b", "l", "x"} {
				if rapid.Bool().Draw(t, name+" has "+k) {
					h.claims[k] = value(2).Draw(t, name+"."+k)
				}
			}
			return h
		}
		// said is what counts of a half, in words: Go sorts the names.
		said := func(h half) string {
			some := map[string]any{}
			for _, k := range counts[h.expr] {
				if v, ok := h.claims[k]; ok {
					some[k] = v
				}
			}
			b, _ := json.Marshal(some)
			return exprs[h.expr] + string(b)
		}
		a := draw("one")
		b := half{a.expr, map[string]any{}}
		if rapid.Bool().Draw(t, "apart") {
			b = draw("other")
		} else {
			for k, v := range a.claims {
				b.claims[k] = v
			}
			b.claims["x"] = value(1).Draw(t, "other.x")
		}
		fa, errA := filter.Compile(exprs[a.expr], a.claims)
		fb, errB := filter.Compile(exprs[b.expr], b.claims)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if same := said(a) == said(b); same != (fa.Identity() == fb.Identity()) {
			t.Fatalf("%s and %s: the same is %v", said(a), said(b), same)
		}
	})
}
