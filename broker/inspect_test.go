package broker_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/broker/history"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

func inspect(t testing.TB, dir string) *broker.Remains {
	t.Helper()
	r, err := broker.Inspect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// positions are those of the groups that are left.
func positions(t testing.TB, r *broker.Remains) (all []feed.Position) {
	t.Helper()
	if err := r.Read(t.Context(), func(p feed.Position, b []byte) error {
		if g, _, err := feed.DecodeGroup(b); err != nil || g.Position != p {
			t.Errorf("position %d: %v", p, err)
		}
		all = append(all, p)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func upTo(n feed.Position, but ...feed.Position) (all []feed.Position) {
	for p := feed.Position(1); p <= n; p++ {
		if !slices.Contains(but, p) {
			all = append(all, p)
		}
	}
	return all
}

func TestInspectionOfAWholeStoreFindsNothing(t *testing.T) {
	dir, c := stored(t)
	r := inspect(t, dir)
	if len(r.Damages) > 0 || r.Epoch != c.epoch || r.Format != 2 || r.Mark != 10 || r.First != 1 || r.Last != 10 || r.At != 5 || r.Parts != 1 {
		t.Errorf("%+v", r)
	}
	if got := positions(t, r); !slices.Equal(got, upTo(10)) {
		t.Errorf("groups %d", got)
	}
	if _, err := broker.Open(t.Context(), broker.Options{Dir: dir}); !errors.Is(err, broker.ErrInUse) {
		t.Errorf("opened while it is inspected: %v", err)
	}
}

// What one flipped bit costs is one group, wherever it is, and the damage says which.
func TestInspectionFindsWhatIsLeftAroundTheDamage(t *testing.T) {
	dir, _ := stored(t)
	blk := filepath.Join(logDir, "msgs/1.blk")
	whole := read(t, filepath.Join(dir, blk))
	fifth := bytes.Index(whole, []byte("key-5-0"))
	for name, c := range map[string]struct {
		at   int
		lost []feed.Position
	}{
		"in a group":           {fifth, []feed.Position{5}},
		"in the last group":    {len(whole) - 100, []feed.Position{10}},
		"in a record's length": {bytes.LastIndex(whole[:fifth], []byte("NATS/1.0")) - 4 - 3 - 22 + 1, nil}, // the group in it proves itself
		"in a record's hash":   {bytes.LastIndex(whole[:bytes.Index(whole, []byte("key-6-0"))], []byte("NATS/1.0")) - 4 - 3 - 22 - 5, nil},
	} {
		t.Run(name, func(t *testing.T) {
			harmed := copyStore(t, dir)
			b := bytes.Clone(whole)
			b[c.at] ^= 1
			write(t, filepath.Join(harmed, blk), b)
			r := inspect(t, harmed)
			if len(r.Damages) == 0 {
				t.Fatal("nothing is damaged")
			}
			if got := positions(t, r); !slices.Equal(got, upTo(10, c.lost...)) {
				t.Errorf("left are %d", got)
			}
			if len(c.lost) == 1 {
				d := r.Damages[0]
				named := feed.ReadHarmed(d.Bytes)
				if d.At != c.lost[0] || len(named) == 0 || named[0].Tenant != "acme" || named[0].Collection != "todos" || named[0].Seq != feed.Seq(c.lost[0]-1)*1000+1 {
					t.Errorf("%+v names %+v", d, named)
				}
			}
		})
	}
}

func TestInspectionNeedsNoMarkerMarkOrMeta(t *testing.T) {
	dir, c := stored(t)
	for _, name := range []string{"tidemark.json", "high-water", logDir + "/meta.inf", checkpointDir + "/meta.sum"} {
		remove(t, filepath.Join(dir, name))
	}
	r := inspect(t, dir)
	if r.Epoch != c.epoch || len(r.Damages) < 4 {
		t.Errorf("epoch %q, %v", r.Epoch, r.Damages)
	}
	if got := positions(t, r); !slices.Equal(got, upTo(10)) {
		t.Errorf("groups %d", got)
	}
}

func TestInspectionOfNothingIsAnError(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "missing")} {
		if _, err := broker.Inspect(t.Context(), dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// A checkpoint whose commit is harmed, or one of its parts, still gives the other parts.
func TestInspectionGivesThePartsThatAreLeft(t *testing.T) {
	dir := memoryDir(t)
	l := open(t, dir)
	fill(t, l, 5)
	if err := l.SaveCheckpoint(t.Context(), 5, func(yield func([]byte, error) bool) {
		_ = yield(bytes.Repeat([]byte("one"), 100), nil) && yield(bytes.Repeat([]byte("two"), 100), nil) && yield(bytes.Repeat([]byte("three"), 100), nil)
	}); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	blk := filepath.Join(dir, checkpointDir, "msgs/1.blk")
	whole := read(t, blk)
	for name, c := range map[string]struct {
		at   int
		want []int
	}{
		"whole":    {-1, []int{0, 1, 2}},
		"a part":   {bytes.Index(whole, []byte("twotwo")), []int{0, 2}},
		"the last": {bytes.Index(whole, []byte("threethree")), []int{0, 1}},
		"commit":   {len(whole) - 20, []int{0, 1, 2}},
	} {
		b := bytes.Clone(whole)
		if c.at >= 0 {
			b[c.at] ^= 1
		}
		write(t, blk, b)
		r := inspect(t, dir)
		var got []int
		if err := r.LoadCheckpoint(t.Context(), func(n int, _ []byte) error { got = append(got, n); return nil }, func(*feed.Damage) {}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, c.want) || (len(r.Damages) > 0) != (c.at >= 0) {
			t.Errorf("%s: parts %d, %v", name, got, r.Damages)
		}
		r.Close()
	}
}

// What is trimmed is in the history first, and what is left of a log that is replaced too.
func TestHistoryHasWhatTheLogForgets(t *testing.T) {
	dir := memoryDir(t)
	opts := broker.Options{Dir: dir, History: &history.Options{}}
	l := openWith(t, opts)
	var prev feed.Sum
	for p := feed.Position(1); p <= 15; p++ {
		var b []byte
		b, prev = feed.AppendGroup(nil, &feed.Group{Epoch: l.Epoch(), Position: p, First: feed.Seq(p), Prev: prev, Transactions: []feed.Transaction{
			{Tenant: "acme", Records: []feed.Record{{Op: feed.Insert, Collection: "todos", Key: "k", Value: "{}"}}},
		}})
		if _, err := l.Append(t.Context(), p-1, b); err != nil {
			t.Fatal(err)
		}
		if p != 10 {
			continue
		}
		save(t, l, 8, []byte("a state"))
		if err := l.Trim(t.Context(), 8); err != nil {
			t.Fatal(err)
		}
	}
	seqs := func(l *broker.Log) (n int) {
		var last feed.Seq
		if _, err := l.History(t.Context(), feed.HistoryRange{Tenant: "acme"}, func(s feed.HistoryStep) error {
			if s.Group != nil {
				if s.Group.First <= last {
					t.Errorf("sequence %d after %d", s.Group.First, last)
				}
				last = s.Group.First
				n++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := seqs(l); n != 15 {
		t.Errorf("%d groups of 15", n)
	}
	closeLog(t, l)
	r := inspect(t, dir)
	if err := r.Archive(t.Context(), opts, 12); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if found, err := broker.VerifyHistory(t.Context(), dir); err != nil || len(found) > 0 {
		t.Errorf("%v, %v", found, err)
	}
	if _, err := broker.Replace(t.Context(), opts, func(l *broker.Log) error {
		b, _ := feed.AppendGroup(nil, &feed.Group{Epoch: l.Epoch(), Position: 1, First: 1 << 32, Transactions: []feed.Transaction{
			{Tenant: "acme", Records: []feed.Record{{Op: feed.Insert, Collection: "todos", Key: "k", Value: "{}"}}},
		}})
		_, err := l.Append(t.Context(), 0, b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	l = openWith(t, opts)
	if n := seqs(l); n != 13 { // 12 of the old log, one of the new
		t.Errorf("%d groups of 13", n)
	}
	closeLog(t, l)
	mark := filepath.Join(dir, "history/mark")
	whole := read(t, mark)
	for what, harmed := range map[string][]byte{"harmed": append(bytes.Clone(whole[:len(whole)-1]), whole[len(whole)-1]^1), "cut": whole[:5], "gone": nil} {
		write(t, mark, harmed)
		if harmed == nil {
			remove(t, mark)
		}
		for range 2 { // looking mends nothing
			if found, err := broker.VerifyHistory(t.Context(), dir); err != nil || len(found) == 0 {
				t.Errorf("the history's mark is %s, and nobody is told: %v, %v", what, found, err)
			}
		}
	}
	write(t, mark, whole)
	if _, err := broker.VerifyHistory(t.Context(), t.TempDir()); err != nil {
		t.Errorf("where there is none: %v", err)
	}
}
