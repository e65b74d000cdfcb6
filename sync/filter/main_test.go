package filter_test

import (
	"encoding/json"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tidemark-sync/tidemark/sync/filter"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ hub.Filter = (*filter.Filter)(nil)

// claims decodes a token's, as who reads tokens does.
func claims(t testing.TB, text string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var c map[string]any
	if err := d.Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

func compile(t testing.TB, expr, of string) *filter.Filter {
	t.Helper()
	f, err := filter.Compile(expr, claims(t, of))
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return f
}

// sees asks a filter in all ways, which must agree.
func sees(t testing.TB, f *filter.Filter, row string) bool {
	t.Helper()
	seen := f.Sees(row)
	if f.SeesDecoded(row) != seen {
		t.Fatalf("%s is seen: %v, with all of it decoded: %v", row, seen, !seen)
	}
	if asked, _ := f.Ask(row); asked != seen {
		t.Fatalf("%s is seen: %v, and then: %v", row, seen, asked)
	}
	return seen
}
