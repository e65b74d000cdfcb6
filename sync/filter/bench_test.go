package filter_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/sync/filter"
)

// ofSize is a row of about so many bytes, its owner in the middle.
func ofSize(size int) string {
	text := func(n int) string { return strings.Repeat("lorem ipsum ", n/12+1)[:n] }
	before := (size - 120) / 2
	row := map[string]any{
		"aTitle": text(before), "done": false, "owner": "u-1042", "position": 17,
		"tags": []string{"home", "week"}, "zNote": text(size - 120 - before),
	}
	b, err := json.Marshal(row)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// BenchmarkSees is what a filter costs for each change that it is asked about: with the
// fields it names decoded, with all decoded, and what encoding/json alone takes.
func BenchmarkSees(b *testing.B) {
	claims := map[string]any{"sub": "u-1042", "teams": []any{"red", "blue"}}
	for _, size := range []int{200, 4 << 10} {
		row := ofSize(size)
		f, err := filter.Compile(`row.owner == claims.sub`, claims)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("named/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !f.Sees(row) {
					b.Fatal("not seen")
				}
			}
		})
		b.Run(fmt.Sprintf("whole/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !f.SeesDecoded(row) {
					b.Fatal("not seen")
				}
			}
		})
		b.Run(fmt.Sprintf("json/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var all map[string]any
				if json.Unmarshal([]byte(row), &all) != nil {
					b.Fatal("not decoded")
				}
			}
		})
	}
}

// BenchmarkSeesOther is what other filters cost, on a row of 200 bytes.
func BenchmarkSeesOther(b *testing.B) {
	claims := map[string]any{"sub": "u-1042", "role": "member", "tags": []any{"week", "work"}}
	for _, expr := range []string{
		`claims.role == 'admin' || row.owner == claims.sub`,
		`row.owner in ['u-1', 'u-1042']`,
		`'week' in row.tags`,
		`row.tags.exists(t, t in claims.tags)`,
		`row.owner.matches('^u-[0-9]+$')`,
		`has(row.nope) || row.position > 3`,
	} {
		f, err := filter.Compile(expr, claims)
		if err != nil {
			b.Fatal(err)
		}
		row := ofSize(200)
		b.Run(expr, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !f.Sees(row) {
					b.Fatal("not seen")
				}
			}
		})
	}
}

// BenchmarkSeesTheWorst is the most that a row can cost by its steps: each is stopped.
func BenchmarkSeesTheWorst(b *testing.B) {
	members := make([]string, 10_000)
	for i := range members {
		members[i] = fmt.Sprintf(`{"id":"u-%d","n":%d}`, i, i)
	}
	long := strings.Repeat("a", 16<<10)
	row := `{"members":[` + strings.Join(members, ",") + `],"text":"` + long + `"}`
	for _, expr := range []string{
		`row.members.exists(m, m.id == claims.sub)`, // not the worst: this one ends
		`row.members.all(a, row.members.all(b, a != b || a == b))`,
		`row.members.exists(a, row.members == [a])`,
		`row.members.all(a, row.members == row.members)`,
		`row.members.filter(a, row.text.matches('(a|aa|aaa)*b')).size() == 0`,
		`row.members.filter(a, row.text.matches('(a?){20}[ab]{20}b')).size() == 0`,
		strings.TrimSuffix(strings.Repeat(`row.members != row.members || `, 16), ` || `),
		`row.members.map(a, a.id + a.id).map(a, a + a).map(a, a + a).map(a, a + a).size() > 1`,
		`row.members.all(a, row.text + row.text != 'x')`,
		`row.members.all(a, size(row.text) > 3)`,
	} {
		f, err := filter.Compile(expr, map[string]any{"sub": "nobody"})
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("%.75s", expr), func(b *testing.B) {
			for b.Loop() {
				f.Sees(row)
			}
		})
	}
}
