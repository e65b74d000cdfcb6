package feed_test

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

func TestEveryCursorHasOneText(t *testing.T) {
	for _, c := range []feed.Cursor{{Epoch: "k3f9a1", Seq: 1042}, {Epoch: "0000", Seq: 0}, {Epoch: "zzzzzzzzzzzzzzzz", Seq: feed.MaxSeq}} {
		got, err := feed.ParseCursor(c.String())
		if err != nil || got != c {
			t.Errorf("%v became %v, %v", c, got, err)
		}
	}
	for _, s := range []string{
		"", "-", "k3f9a1", "k3f9a1-", "-1", "k3f9a1-01", "k3f9a1-00", "k3f9a1-+1", "k3f9a1--1", "k3f9a1-1 ", " k3f9a1-1", "k3f9a1-1.0",
		"k3f9a1-1e3", "k3f9a1-0x1", "k3f9a1-1_0", "k3f9a1-9007199254740992", "k3f9a1-99999999999999999999", "abc-1", "aaaaaaaaaaaaaaaaa-1",
		"K3F9A1-1", "k3f9a1-1-2", "k3f9a1-१",
	} {
		if c, err := feed.ParseCursor(s); !errors.Is(err, feed.ErrCursor) {
			t.Errorf("%q was read as %v, %v", s, c, err)
		}
	}
}

func FuzzCursor(f *testing.F) {
	for _, s := range []string{"k3f9a1-1042", "k3f9a1-0", "k3f9a1-01", "k3f9a1-9007199254740991", "k3f9a1-9007199254740992"} {
		f.Add(s)
	}
	form := regexp.MustCompile(`\A[0-9a-z]{4,16}-(0|[1-9][0-9]{0,15})\z`)
	f.Fuzz(func(t *testing.T, s string) {
		want := form.MatchString(s)
		if want {
			n, _ := strconv.ParseUint(s[strings.IndexByte(s, '-')+1:], 10, 64)
			want = n < 1<<53
		}
		c, err := feed.ParseCursor(s)
		switch {
		case (err == nil) != want:
			t.Fatalf("%q: %v, want it read: %v", s, err, want)
		case err == nil && (c.String() != s || !c.Epoch.Valid() || string(c.Append([]byte("x"))) != "x"+s):
			t.Fatalf("%q was read as %q", s, c)
		case err != nil && (!errors.Is(err, feed.ErrCursor) || c != feed.Cursor{}):
			t.Fatalf("%q: %v, %v", s, c, err)
		}
	})
}

func TestEpochsAreNewEachTime(t *testing.T) {
	seen := make(map[feed.Epoch]bool)
	for range 1000 {
		e := feed.NewEpoch()
		if !e.Valid() || seen[e] {
			t.Fatalf("epoch %q: valid %v, seen before %v", e, e.Valid(), seen[e])
		}
		seen[e] = true
	}
	for _, e := range []feed.Epoch{"", "abc", "aaaaaaaaaaaaaaaaa", "ABCD", "ab-d", "ab d", "abcé"} {
		if e.Valid() {
			t.Errorf("%q is taken for an epoch", e)
		}
	}
}

func TestAFeedStartsAtTheNewestCursorOfThisEpochAndElseSaysWhyNot(t *testing.T) {
	for _, c := range []struct {
		cursors string
		want    feed.Seq
		reason  feed.Reason
	}{
		{"", 0, ""},
		{"here-7", 7, ""},
		{"here-0", 0, ""},
		{"here-7 here-9 here-8", 9, ""},
		{"there-99 here-7", 7, ""},
		{"here-7 there-99", 7, ""},
		{"nonsense here-7", 7, ""},
		{"here-0 there-99", 0, ""},
		{"there-99", 0, feed.ResetEpoch},
		{"there-0", 0, feed.ResetEpoch},
		{"nonsense", 0, feed.ResetMalformed},
		{"nonsense there-99", 0, feed.ResetEpoch},
		{"there-99 nonsense", 0, feed.ResetEpoch},
		{"here-9007199254740991", feed.MaxSeq, ""},
	} {
		seq, reason := feed.Start{Collection: "todos", Cursors: strings.Fields(c.cursors)}.Choose("here")
		if seq != c.want || reason != c.reason {
			t.Errorf("%q: %d %q, want %d %q", c.cursors, seq, reason, c.want, c.reason)
		}
	}
	if _, reason := (feed.Start{Cursors: []string{""}}).Choose("here"); reason != feed.ResetMalformed {
		t.Errorf("a cursor that is empty gives %q", reason)
	}
}
