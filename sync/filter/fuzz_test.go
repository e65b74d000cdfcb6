package filter_test

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/tidemark-sync/tidemark/sync/filter"
)

// FuzzCompile compiles anything and asks it of some rows, by two at once.
func FuzzCompile(f *testing.F) {
	for _, expr := range []string{
		`row.owner == claims.sub`, `has(row.a.b) || row['x'] in claims.l`, `row.l.exists(x, x.a > 1 && x.b < 2.5)`,
		`row.l.map(x, x + x).filter(y, y != 'a').size() == 2`, `{'a': 1}[row.k] == 1`, `row.s.matches('^a+$')`,
		`timestamp(row.t).getHours() > 3`, `size(row) == 2`, `-row.n % 3 == 1u`, `b'\xff' == bytes(row.s)`, `claims == row`,
		`row.l.all(a, row.l.all(b, [a, b] + [a] == [b, a]))`, `row.?a`, `x{`, `'''a`, `1e400`, `row.a == 0x7fffffffffffffff`,
	} {
		f.Add(expr)
	}
	const secret = "s3cr3t-7f"
	claims := map[string]any{"sub": secret, "l": []any{secret, json.Number("1")}, "n": json.Number("9007199254740993"), "o": map[string]any{"a": nil}}
	rows := []string{
		`{}`, `{"owner":"s3cr3t-7f","a":{"b":1},"x":1,"l":[{"a":2,"b":1}],"k":"a","s":"aaa","t":"2026-01-01T04:00:00Z","n":5}`,
		`{"l":["a","b",[1,2],null,18446744073709551616],"n":1.5,"s":"","k":{}}`,
	}
	f.Fuzz(func(t *testing.T, expr string) {
		x, err := filter.Compile(expr, claims)
		if err != nil {
			var e *filter.Error
			if !errors.As(err, &e) {
				t.Fatalf("%q: %T %v", expr, err, err)
			}
			if strings.Contains(err.Error(), secret) && !strings.Contains(expr, secret) {
				t.Fatalf("%q: tells a claim: %v", expr, err)
			}
			if strings.Contains(err.Error(), "can't be compiled") {
				t.Fatalf("%q: a panic", expr)
			}
			return
		}
		y, err := filter.Compile(expr+" ", claims)
		if err == nil && y.Identity() != x.Identity() {
			t.Fatalf("%q: white space makes it another", expr)
		}
		for _, row := range rows {
			seen, steps := x.Ask(row)
			if steps > 4*filter.Steps {
				t.Fatalf("%q: %d steps", expr, steps)
			}
			var wg sync.WaitGroup
			wg.Go(func() { x.Sees(row) })
			if x.Sees(row) != seen || x.SeesDecoded(row) != seen {
				t.Errorf("%q of %s is seen: %v, and not", expr, row, seen)
			}
			wg.Wait()
		}
	})
}

// FuzzSees asks of anything, by filters that name fields and one that compares all of a row
// with what encoding/json reads.
func FuzzSees(f *testing.F) {
	for _, row := range []string{
		`{}`, `{"owner":"ada"}`, `{"owner":"ada","owner":1}`, ` {"a" : [1, 2.50, -0, 1e3, {"b":null}], "é\u00e9":"\ud800\"" } `,
		`{"n":9007199254740993.0,"m":18446744073709551616,"k":1e999}`, `{"a":{"a":[[],{}]},"b":"}]\\"}`, `[`, `{"a`, `{"a":tru}`, `{"a":1,}`, `{"owner":"\`,
	} {
		f.Add(row)
	}
	of := map[string]any{"sub": "ada", "l": []any{"a", json.Number("1")}}
	var filters []*filter.Filter
	for _, expr := range []string{
		`row.owner == claims.sub`, `has(row.a.a) || row.b != null`, `row.a.exists(x, x in claims.l)`, `row.exists(k, row[k] == 1)`, `row.owner.matches('a+') && size(row.a) < 5`,
		`row.n + 1 > row.m`, `row.a + row.b != row.owner`, `size(row) != 1`, `row['é'] == row['q"']`,
	} {
		x, err := filter.Compile(expr, of)
		if err != nil {
			f.Fatal(err)
		}
		filters = append(filters, x)
	}
	f.Fuzz(func(t *testing.T, row string) {
		d := json.NewDecoder(strings.NewReader(row))
		d.UseNumber()
		var decoded map[string]any
		valid := json.Valid([]byte(row)) && d.Decode(&decoded) == nil && decoded != nil
		for i, x := range filters {
			seen, _ := x.Ask(row)
			var wg sync.WaitGroup
			wg.Go(func() { x.Sees(row) })
			if x.Sees(row) != seen {
				t.Errorf("filter %d of %q is seen: %v, and not", i, row, seen)
			}
			wg.Wait()
			if valid && x.SeesDecoded(row) != seen {
				t.Errorf("filter %d of %q is seen: %v, and not when decoded", i, row, seen)
			}
		}
		if !valid {
			return
		}
		same, err := filter.Compile(`row == claims.row`, map[string]any{"row": decoded})
		if err != nil {
			t.Fatal(err)
		}
		if !same.Sees(row) {
			t.Errorf("%q is read in another way than by encoding/json", row)
		}
	})
}
