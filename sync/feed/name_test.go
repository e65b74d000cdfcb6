package feed_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

func TestNamesThatUsersChooseAreTakenAndOthersSaidNoTo(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, c := range []struct {
		check     func(string) error
		what      string
		good, bad []string
	}{
		{feed.CheckTenant, "tenant",
			[]string{"a", "acme", "ACME-7_x", "-", "_", "0", long},
			[]string{"", long + "a", "a/b", "a b", "a.b", "é", "a\n", "*", "..", "a\x00"}},
		{feed.CheckCollection, "collection",
			[]string{"todos", "projects/7/todos", "a/b/c/d/e/f/g/h", long + "/" + long, "-/_"},
			[]string{"", "/", "a/", "/a", "a//b", "a/b/c/d/e/f/g/h/i", long + "a", "a/" + long + "a", "*", "**", "a/*", "to dos", "ä", "a\\b"}},
		{feed.CheckKey, "key",
			[]string{"1", "a b", "ключ", `"\/`, "💡", strings.Repeat("k", 256), "\u2028", "\u00a0", "a/../b", "__proto__"},
			[]string{"", strings.Repeat("k", 257), strings.Repeat("é", 129), "a\n", "\x00", "\x7f", "\u0085", "\xff", "a\xc3"}},
		{feed.CheckID, "id", []string{"m-7"}, []string{"", "\t", strings.Repeat("k", 257)}},
		{feed.CheckClient, "client", []string{"c-81"}, []string{"", "\r", strings.Repeat("k", 257)}},
	} {
		for _, name := range c.good {
			if err := c.check(name); err != nil {
				t.Errorf("%s %q: %v", c.what, name, err)
			}
		}
		for _, name := range c.bad {
			var bad *feed.NameError
			if err := c.check(name); !errors.As(err, &bad) || bad.What != c.what || bad.Want == "" {
				t.Errorf("%s %q: %v instead of a NameError that says what a good one looks like", c.what, name, err)
			}
		}
	}
}

// What follows is written down again, in other words than the code's.
var (
	tenantForm     = regexp.MustCompile(`\A[A-Za-z0-9_-]{1,64}\z`)
	collectionForm = regexp.MustCompile(`\A[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,7}\z`)
	cc             = regexp.MustCompile(`[\x00-\x1f\x7f-\x{9f}]`)
)

func FuzzNames(f *testing.F) {
	for _, s := range []string{"acme", "projects/7/todos", "a//b", "\xff", "\u0085", strings.Repeat("€", 90), strings.Repeat("x", 79) + "€"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text := utf8.ValidString(s) && s != "" && len(s) <= 256 && !cc.MatchString(s)
		for _, c := range []struct {
			err  error
			want bool
		}{
			{feed.CheckTenant(s), tenantForm.MatchString(s)},
			{feed.CheckCollection(s), collectionForm.MatchString(s)},
			{feed.CheckKey(s), text},
			{feed.CheckID(s), text},
			{feed.CheckClient(s), text},
		} {
			if (c.err == nil) != c.want {
				t.Errorf("%q: %v, want it taken: %v", s, c.err, c.want)
			}
			if c.err != nil && (!utf8.ValidString(c.err.Error()) || len(c.err.Error()) > 1000 || strings.ContainsAny(c.err.Error(), "\r\n")) {
				t.Errorf("%q: the error is not fit to print: %q", s, c.err)
			}
		}
	})
}
