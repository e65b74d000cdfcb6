package history_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/broker/history"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// change is one change as a reader sees it.
type change struct {
	seq                     feed.Seq
	epoch                   feed.Epoch
	tenant, collection, key string
	value, client, id       string
	op                      feed.Op
	at                      int64
}

// log is a log in memory, and a list of all that was ever written.
type log struct {
	mu     sync.Mutex
	epoch  feed.Epoch
	groups [][]byte      // from position first on
	first  feed.Position // 1 more than what was trimmed
	next   feed.Seq
	sum    feed.Sum
	at     int64
	all    []change
	trim   func() // called by Get and Read, once: what others do meanwhile
}

func newLog() *log { return &log{epoch: feed.NewEpoch(), first: 1, next: 1, at: 1_760_000_000_000} }

func (l *log) Epoch() feed.Epoch { return l.epoch }

func (l *log) Bounds(context.Context) (oldest, newest feed.Position, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first, l.first + feed.Position(len(l.groups)) - 1, nil
}

func (l *log) Get(_ context.Context, p feed.Position) ([]byte, error) {
	l.meanwhile()
	l.mu.Lock()
	defer l.mu.Unlock()
	if p < l.first || p >= l.first+feed.Position(len(l.groups)) {
		return nil, &feed.Damage{At: p, What: "it is not there"}
	}
	return l.groups[p-l.first], nil
}

func (l *log) Read(ctx context.Context, after feed.Position, fn func(feed.Position, []byte) error) error {
	l.meanwhile()
	l.mu.Lock()
	first, groups := l.first, l.groups
	l.mu.Unlock()
	if after+1 < first {
		return &feed.Damage{At: after + 1, What: "it was trimmed"}
	}
	for i := int(after + 1 - first); i < len(groups); i++ {
		if err := fn(first+feed.Position(i), groups[i]); err != nil {
			return err
		}
	}
	return nil
}

func (l *log) meanwhile() {
	l.mu.Lock()
	trim := l.trim
	l.trim = nil
	l.mu.Unlock()
	if trim != nil {
		trim()
	}
}

// append adds a group with changes of tenants.
func (l *log) append(later int64, list ...change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at += later
	g := &feed.Group{Epoch: l.epoch, Position: l.first + feed.Position(len(l.groups)), First: l.next, At: l.at, Prev: l.sum, Times: feed.Times{Age: l.at, Steady: l.at}}
	if len(list) == 0 {
		g.ForgetIDs = l.at
	}
	for _, c := range list {
		g.Transactions = append(g.Transactions, feed.Transaction{Tenant: c.tenant, Client: c.client,
			Records: []feed.Record{{Op: c.op, Collection: c.collection, Key: c.key, Value: c.value, ID: c.id}}})
		c.seq, c.epoch, c.at = l.next, l.epoch, l.at
		l.next++
		l.all = append(l.all, c)
	}
	b, sum := feed.AppendGroup(nil, g)
	l.groups, l.sum = append(l.groups, b), sum
}

// trimTo forgets the groups before a position, as a log does that has archived them.
func (l *log) trimTo(before feed.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := int(before) - int(l.first); n > 0 {
		l.groups, l.first = l.groups[n:], before
	}
}

// reborn begins a new epoch whose sequences jump ahead.
func (l *log) reborn(jump feed.Seq) {
	l.epoch, l.groups, l.first, l.next, l.sum = feed.NewEpoch(), nil, 1, l.next+jump, feed.Sum{}
}

func put(key string) change {
	return change{tenant: "acme", collection: "todos", key: key, op: feed.Insert, value: `{"k":"` + key + `"}`}
}

func open(t testing.TB, o history.Options) *history.Store {
	t.Helper()
	s, err := history.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func archive(t testing.TB, s *history.Store, l *log, before feed.Position) {
	t.Helper()
	if err := s.Archive(t.Context(), l, before); err != nil {
		t.Fatal(err)
	}
	l.trimTo(before)
}

func wants(r feed.HistoryRange, c change) bool {
	return c.tenant == r.Tenant && (len(r.Collections) == 0 || slices.Contains(r.Collections, c.collection)) && (r.Key == "" || r.Key == c.key) &&
		c.seq >= r.From && (r.To == 0 || c.seq <= r.To) && c.at >= r.Since && (r.Until == 0 || c.at <= r.Until)
}

// of returns the changes of a group that are in a range.
func of(r feed.HistoryRange, g *feed.Group) (list []change) {
	seq := g.First
	for _, x := range g.Transactions {
		for _, rec := range x.Records {
			c := change{seq, g.Epoch, x.Tenant, rec.Collection, rec.Key, rec.Value, x.Client, rec.ID, rec.Op, g.At}
			if wants(r, c) {
				list = append(list, c)
			}
			seq++
		}
	}
	return list
}

func want(l *log, r feed.HistoryRange) (list []change) {
	for _, c := range l.all {
		if wants(r, c) {
			list = append(list, c)
		}
	}
	return list
}

var errEnough = errors.New("enough")

// read reads a range to its end, in pages that end after some steps; 0: in one.
func read(ctx context.Context, s *history.Store, l *log, r feed.HistoryRange, steps int) (list []change, holes []feed.HistoryHole, begins feed.Seq, err error) {
	for asked := r; ; {
		n, place := 0, feed.Seq(0)
		var b feed.Seq
		b, err = s.History(ctx, l, r, func(step feed.HistoryStep) error {
			if step.Place < place {
				return fmt.Errorf("the place goes back from %d to %d", place, step.Place)
			}
			place = step.Place
			if step.Hole != nil {
				holes = append(holes, *step.Hole)
			}
			if step.Group != nil {
				if step.Group.Last() > step.Place {
					return errors.New("the place is before the group")
				}
				list = append(list, of(r, step.Group)...)
			}
			if n++; n == steps && place >= r.From {
				return errEnough
			}
			if steps > 0 && n > steps && place >= r.From {
				return errEnough
			}
			return nil
		})
		if begins == 0 {
			begins = b
		}
		if !errors.Is(err, errEnough) {
			return list, holes, begins, err
		}
		r = asked
		r.From = place + 1
		if r.To > 0 && r.From > r.To {
			return list, holes, begins, nil
		}
	}
}

func check(t testing.TB, s *history.Store, l *log, r feed.HistoryRange, steps int) {
	t.Helper()
	got, _, _, err := read(t.Context(), s, l, r, steps)
	if err != nil {
		t.Fatal(err)
	}
	if want := want(l, r); !slices.Equal(got, want) {
		t.Fatalf("%+v in pages of %d steps gives %d changes instead of %d:\n%v\n%v", r, steps, len(got), len(want), got, want)
	}
}

func verified(t testing.TB, s *history.Store) {
	t.Helper()
	found, err := s.Verify(t.Context(), nil)
	if err != nil || len(found) > 0 {
		t.Fatalf("a history that is well: %v, %v", found, err)
	}
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Whatever was written, trimmed, reborn and reopened: the pages of any question are the
// changes that a plain list has.
func TestPagesAreExactlyWhatWasWritten(t *testing.T) {
	root := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		dir := filepath.Join(root, fmt.Sprint(runs))
		defer os.RemoveAll(dir)
		l := newLog()
		o := history.Options{Dir: dir, SegmentBytes: int64(rapid.SampledFrom([]int{1, 400, 5000, 1 << 20}).Draw(t, "segment"))}
		s, err := history.Open(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { s.Close() }()
		name := func(what string, of ...string) string { return rapid.SampledFrom(of).Draw(t, what) }
		page := func(what string) (r feed.HistoryRange) {
			r.Tenant = name("tenant", "acme", "a", "none")
			if rapid.Bool().Draw(t, "some") {
				r.Collections = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"todos", "lists", "c/d", "none"}), 1, 2, rapid.ID).Draw(t, "collections")
				if len(r.Collections) == 1 && rapid.Bool().Draw(t, "keyed") {
					r.Key = name("key", "1", "2", "3", "none")
				}
			}
			if rapid.Bool().Draw(t, "from") {
				r.From = feed.Seq(rapid.Uint64Range(1, uint64(l.next)+2).Draw(t, "From"))
			}
			if rapid.Bool().Draw(t, "to") {
				r.To = feed.Seq(rapid.Uint64Range(1, uint64(l.next)+2).Draw(t, "To"))
			}
			time := func(what string) int64 {
				if len(l.all) > 0 && rapid.IntRange(0, 2).Draw(t, what) == 0 {
					return rapid.SampledFrom(l.all).Draw(t, what).at + int64(rapid.IntRange(-1, 1).Draw(t, what))
				}
				return 0
			}
			r.Since, r.Until = time("since"), time("until")
			return r
		}
		archive := func() {
			before := feed.Position(rapid.Uint64Range(1, uint64(l.first)+uint64(len(l.groups))).Draw(t, "before"))
			if err := s.Archive(context.Background(), l, before); err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "trim") {
				l.trimTo(before)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				for range rapid.IntRange(1, 8).Draw(t, "groups") {
					var list []change
					for range rapid.IntRange(0, 4).Draw(t, "changes") {
						c := change{tenant: name("tenant", "acme", "a"), collection: name("collection", "todos", "lists", "c/d"), key: name("key", "1", "2", "3"),
							op: feed.Op(rapid.IntRange(1, 4).Draw(t, "op")), client: name("client", "", "c-1"), id: name("id", "", "m-7")}
						if c.op < feed.Remove {
							c.value = `{"v":"` + strings.Repeat("v", rapid.IntRange(0, 300).Draw(t, "size")) + `"}`
						}
						list = append(list, c)
					}
					l.append(int64(rapid.IntRange(0, 2).Draw(t, "later")), list...)
				}
			},
			"archive": func(*rapid.T) { archive() },
			"reborn": func(t *rapid.T) {
				if err := s.Archive(context.Background(), l, l.first+feed.Position(len(l.groups))); err != nil {
					t.Fatal(err)
				}
				l.reborn(feed.Seq(rapid.IntRange(0, 1000).Draw(t, "jump")))
			},
			"forget": func(t *rapid.T) {
				all := l.first + feed.Position(len(l.groups))
				if err := s.Archive(context.Background(), l, all); err != nil {
					t.Fatal(err)
				}
				l.trimTo(all)
				tenant, upTo := name("forgotten", "acme", "a", "none"), l.next-1
				if rapid.Bool().Draw(t, "up to") {
					upTo = feed.Seq(rapid.Uint64Range(1, uint64(l.next)).Draw(t, "upTo"))
				}
				if err := s.Forget(context.Background(), tenant, upTo); err != nil {
					t.Fatal(err)
				}
				l.all = slices.DeleteFunc(l.all, func(c change) bool { return c.tenant == tenant && c.seq <= upTo })
			},
			"reopen": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if s, err = history.Open(context.Background(), o); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				r := page("range")
				if len(l.groups) > 0 && rapid.Bool().Draw(t, "meanwhile") {
					l.trim = archive
				}
				got, _, _, err := read(context.Background(), s, l, r, rapid.IntRange(0, 3).Draw(t, "steps"))
				l.trim = nil
				if err != nil {
					t.Fatal(err)
				}
				if want := want(l, r); !slices.Equal(got, want) {
					t.Fatalf("%+v gives %v instead of %v", r, got, want)
				}
				if found, err := s.Verify(context.Background(), nil); err != nil || len(found) > 0 {
					t.Fatalf("a history that is well: %v, %v", found, err)
				}
			},
		})
	})
}

func TestAQuestionReadsOnlyWhatMayAnswerIt(t *testing.T) {
	l := newLog()
	dir := t.TempDir()
	s := open(t, history.Options{Dir: dir, SegmentBytes: 10_000})
	for i := range 4000 {
		c := put(fmt.Sprint("key", i))
		switch {
		case i == 1700:
			c.collection = "rare"
		case i == 2100:
			c.tenant = "other"
		}
		l.append(1000, c)
	}
	archive(t, s, l, 4000)
	total := int64(0)
	for _, f := range segments(t, dir) {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	for what, r := range map[string]feed.HistoryRange{
		"collection": {Tenant: "acme", Collections: []string{"rare"}},
		"tenant":     {Tenant: "other"},
		"key":        {Tenant: "acme", Collections: []string{"todos"}, Key: "key77"},
		"sequences":  {Tenant: "acme", From: 2000, To: 2010},
		"times":      {Tenant: "acme", Since: l.all[3000].at, Until: l.all[3010].at},
	} {
		n := int64(0)
		list := 0
		if _, err := s.History(t.Context(), l, r, func(step feed.HistoryStep) error {
			n += step.Read
			if step.Group != nil {
				list += len(of(r, step.Group))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if list != len(want(l, r)) || list == 0 || n > total/4 {
			t.Errorf("by %s: %d changes, and %d of %d bytes were read", what, list, n, total)
		}
	}
}

// What is kept does not cost the start anything: one segment is read, whichever there
// are.
func TestStartDoesNotDependOnHowMuchIsKept(t *testing.T) {
	l := newLog()
	o := history.Options{Dir: t.TempDir(), SegmentBytes: 2000}
	s := open(t, o)
	for i := range 1000 {
		l.append(1, put(fmt.Sprint(i)))
	}
	archive(t, s, l, 1001)
	s.Close()
	all := segments(t, o.Dir)
	// Nothing but the newest can be read, and Open does not mind.
	for _, f := range all[:len(all)-1] {
		if err := os.Truncate(f, 0); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, o)
	if _, p := s.Last(); p != 1000 || len(all) < 40 {
		t.Errorf("of %d segments, the last position is %d", len(all), p)
	}
}

func TestOldHistoryGoesByAgeAndBySizeAndTheRestStays(t *testing.T) {
	size := func(dir string) (n int64) {
		for _, f := range segments(t, dir) {
			info, err := os.Stat(f)
			if err != nil {
				t.Fatal(err)
			}
			n += info.Size()
		}
		return n
	}
	for what, o := range map[string]history.Options{
		"age":                           {Keep: 1000 * time.Second},
		"size":                          {Bytes: 600_000},
		"both":                          {Keep: 1000 * time.Second, Bytes: 600_000},
		"age, a segment would take all": {Keep: 1000 * time.Second, SegmentBytes: 1 << 40},
	} {
		t.Run(what, func(t *testing.T) {
			o.Dir = t.TempDir()
			l := newLog()
			s := open(t, o)
			for round := range 10 {
				for i := range 2000 {
					c := put(fmt.Sprint(i))
					c.value = `{"v":"` + strings.Repeat("v", 100) + `"}`
					l.append(1000, c)
				}
				archive(t, s, l, l.first+feed.Position(len(l.groups)))
				if round == 5 {
					s.Close()
					s = open(t, o)
				}
			}
			got, holes, begins, err := read(t.Context(), s, l, feed.HistoryRange{Tenant: "acme"}, 0)
			if err != nil || len(got) == 0 || len(holes) > 0 {
				t.Fatal(len(got), holes, err)
			}
			all := want(l, feed.HistoryRange{Tenant: "acme"})
			if rest := all[len(all)-len(got):]; !slices.Equal(got, rest) || begins != got[0].seq {
				t.Fatalf("what is left is not the newest; it begins with %d", begins)
			}
			if o.Keep > 0 && (len(got) > 1300 || o.Bytes == 0 && len(got) < 1000) {
				t.Errorf("%d changes, one a second, are left of %s", len(got), o.Keep)
			}
			if n := size(o.Dir); o.Bytes > 0 && (n > o.Bytes*9/8 || o.Keep == 0 && n < o.Bytes/2) {
				t.Errorf("%d bytes are left of %d", n, o.Bytes)
			}
			verified(t, s)
		})
	}
}

// The process is killed, or the power fails, with any part of what was not synced
// written: what was synced is there, and the log can be added to it again.
func TestACrashLosesNothingThatTheLogMayForget(t *testing.T) {
	dir := t.TempDir()
	l := newLog()
	o := history.Options{Dir: dir, SegmentBytes: 1500}
	s := open(t, o)
	for i := range 20 {
		l.append(1, put(fmt.Sprint(i)))
	}
	archive(t, s, l, 11)
	mark, err := os.ReadFile(filepath.Join(dir, "mark"))
	if err != nil {
		t.Fatal(err)
	}
	before := len(segments(t, dir))
	synced, err := os.ReadFile(segments(t, dir)[before-1])
	if err != nil {
		t.Fatal(err)
	}
	archive(t, s, l, 21)
	s.Close()
	all := segments(t, dir)
	content := make([][]byte, len(all))
	for i, f := range all {
		if content[i], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	if len(all) <= before {
		t.Fatal("the test wants a segment more after the sync")
	}
	whole := everything(l)
	tries := 0
	try := func(what string, last feed.Position) {
		t.Helper()
		s := open(t, o)
		defer s.Close()
		if _, p := s.Last(); p != last {
			t.Fatalf("%s: the last position is %d instead of %d", what, p, last)
		}
		verified(t, s)
		check(t, s, whole, feed.HistoryRange{Tenant: "acme"}, 0)
		if tries++; tries%16 > 0 { // syncing takes its time
			return
		}
		if err := s.Archive(t.Context(), whole, 21); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		check(t, s, l, feed.HistoryRange{Tenant: "acme"}, 0)
	}
	restore := func(files map[string][]byte) {
		t.Helper()
		for _, f := range segments(t, dir) {
			os.Remove(f)
		}
		for f, b := range files {
			if err := os.WriteFile(f, b, 0o640); err != nil {
				t.Fatal(err)
			}
		}
	}
	files := func(upTo int) map[string][]byte {
		m := map[string][]byte{filepath.Join(dir, "mark"): mark}
		for i := range upTo {
			m[all[i]] = content[i]
		}
		return m
	}
	for cut := len(synced); cut <= len(content[before-1]); cut++ {
		m := files(before)
		m[all[before-1]] = content[before-1][:cut]
		restore(m)
		try(fmt.Sprintf("cut at byte %d", cut), 10)
	}
	for cut := range len(content[before]) + 1 {
		m := files(before)
		m[all[before]] = content[before][:cut]
		restore(m)
		try(fmt.Sprintf("the next segment cut at byte %d", cut), 10)
	}
}

// everything is a log that still has all that was ever written.
func everything(l *log) *log {
	again := newLog()
	again.epoch = l.epoch
	for _, c := range l.all {
		again.append(1, change{tenant: c.tenant, collection: c.collection, key: c.key, op: c.op, value: c.value, client: c.client, id: c.id})
	}
	return again
}

// The mark is lost: it is made anew, and the newest segment counts up to its last whole
// record, wherever it was cut.
func TestAStoreWhoseMarkIsLostEndsWithItsLastWholeGroup(t *testing.T) {
	dir := t.TempDir()
	o := history.Options{Dir: dir}
	l := newLog()
	s := open(t, o)
	var ends []int64 // of the file after each group
	for i := range 5 {
		l.append(1, put(fmt.Sprint(i)))
		archive(t, s, l, feed.Position(i+2))
		info, err := os.Stat(segments(t, dir)[0])
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, info.Size())
	}
	s.Close()
	file := segments(t, dir)[0]
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(b) + 1 {
		os.Remove(filepath.Join(dir, "mark"))
		if err := os.WriteFile(file, b[:cut], 0o640); err != nil {
			t.Fatal(err)
		}
		s := open(t, o)
		whole, _ := slices.BinarySearch(ends, int64(cut)+1)
		if _, p := s.Last(); p != feed.Position(whole) {
			t.Fatalf("cut at byte %d, it ends with group %d instead of %d", cut, p, whole)
		}
		verified(t, s)
		log := everything(l)
		if cut%16 == 0 {
			archive(t, s, log, 6)
		}
		check(t, s, log, feed.HistoryRange{Tenant: "acme"}, 0)
		s.Close()
	}
}

// damaged is a store of three segments and more, of 60 changes of about 100 bytes.
func damaged(t *testing.T) (o history.Options, l *log, files []string) {
	t.Helper()
	o = history.Options{Dir: t.TempDir(), SegmentBytes: 1800}
	l = newLog()
	s := open(t, o)
	for i := range 60 {
		l.append(1, put(fmt.Sprint("key", i%7)))
	}
	archive(t, s, l, 61)
	verified(t, s)
	s.Close()
	if files = segments(t, o.Dir); len(files) < 4 {
		t.Fatal(len(files), "segments")
	}
	return o, l, files
}

// Whichever bit flips: the answer is right, or says what is missing; and Verify finds it.
func TestHarmIsNeverSkippedInSilence(t *testing.T) {
	o, l, files := damaged(t)
	r := feed.HistoryRange{Tenant: "acme"}
	all := want(l, r)
	missed := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			harmed := bytes.Clone(b)
			harmed[i] ^= 1 << (i % 8)
			if err := os.WriteFile(file, harmed, 0o640); err != nil {
				t.Fatal(err)
			}
			s := open(t, o)
			got, _, _, err := read(t.Context(), s, l, r, 0)
			var d *feed.HistoryDamage
			switch {
			case err == nil && slices.Equal(got, all):
			case errors.As(err, &d) && errors.Is(err, feed.ErrDamaged):
				missed++
				if len(got) != int(d.First)-1 || !slices.Equal(got, all[:len(got)]) || d.Last > 60 || d.Last < d.First {
					t.Fatalf("%s, byte %d: after %d changes %v", file, i, len(got), err)
				}
				if d.Last-d.First >= 30 || !strings.Contains(err.Error(), file) {
					t.Fatalf("%s, byte %d: too much is said to be missing: %v", file, i, err)
				}
				if i%7 == 0 { // and what follows can be read
					next := r
					next.From = d.Last + 1
					if rest, _, _, err := read(t.Context(), s, l, next, 0); err != nil || !slices.Equal(rest, all[d.Last:]) {
						t.Fatalf("%s, byte %d: from %d: %d changes, %v", file, i, next.From, len(rest), err)
					}
				}
			default:
				t.Fatalf("%s, byte %d: %d changes, %v", file, i, len(got), err)
			}
			if i%7 == 0 {
				if found, err := s.Verify(t.Context(), nil); err != nil || len(found) == 0 {
					t.Fatalf("%s, byte %d is harmed, and Verify finds %v, %v", file, i, found, err)
				}
			}
			s.Close()
		}
		if err := os.WriteFile(file, b, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if missed < 4000 {
		t.Errorf("only %d bytes matter", missed)
	}
}

func TestASegmentThatIsMissingIsMissedByWhoWantsItAlone(t *testing.T) {
	for i := range 4 {
		o, l, files := damaged(t)
		if i == 3 {
			i = len(files) - 1
		}
		if err := os.Remove(files[i]); err != nil {
			t.Fatal(err)
		}
		s := open(t, o)
		all := want(l, feed.HistoryRange{Tenant: "acme"})
		got, _, _, err := read(t.Context(), s, l, feed.HistoryRange{Tenant: "acme"}, 0)
		var d *feed.HistoryDamage
		if !errors.As(err, &d) || len(got) != int(d.First)-1 {
			t.Fatalf("segment %d: after %d changes %v", i, len(got), err)
		}
		r := feed.HistoryRange{Tenant: "acme", From: d.Last + 1}
		if got, _, _, err := read(t.Context(), s, l, r, 0); err != nil || !slices.Equal(got, all[d.Last:]) {
			t.Errorf("segment %d: from %d %d changes, %v", i, r.From, len(got), err)
		}
		if d.First > 1 {
			check(t, s, l, feed.HistoryRange{Tenant: "acme", To: d.First - 1}, 0)
		}
		if found, err := s.Verify(t.Context(), nil); err != nil || len(found) == 0 {
			t.Errorf("segment %d: %v, %v", i, found, err)
		}
		// And it is kept on.
		l.append(1, put("new"))
		archive(t, s, l, 62)
		check(t, s, l, feed.HistoryRange{Tenant: "acme", From: 61}, 0)
	}
}

func TestWhatNobodyKeptIsAHoleAndSaidToBe(t *testing.T) {
	dir := t.TempDir()
	l := newLog()
	write := func(n int) {
		for range n {
			l.append(1, put("k"))
		}
	}
	write(10)
	l.trimTo(6) // before the first start with a history
	s := open(t, history.Options{Dir: dir})
	holes := func(r feed.HistoryRange, want ...feed.HistoryHole) {
		t.Helper()
		r.Tenant = "acme"
		_, got, begins, err := read(t.Context(), s, l, r, 0)
		if err != nil || !slices.Equal(got, want) || begins != 6 {
			t.Fatalf("%v beginning with %d instead of %v: %v", got, begins, want, err)
		}
	}
	holes(feed.HistoryRange{})
	holes(feed.HistoryRange{From: l.next, To: l.next - 1}) // who asks for news, where there are none
	archive(t, s, l, 9)
	holes(feed.HistoryRange{From: l.next, To: l.next - 1})
	s.Close()
	holes1 := feed.HistoryHole{First: 9, Last: 14}
	write(10)
	l.trimTo(15) // without one
	s = open(t, history.Options{Dir: dir})
	holes(feed.HistoryRange{}, holes1)
	archive(t, s, l, 18)
	holes(feed.HistoryRange{}, holes1)
	archive(t, s, l, 21)
	l.reborn(100)
	write(3)
	holes2 := feed.HistoryHole{First: 21, Last: 120}
	holes(feed.HistoryRange{}, holes1, holes2)
	archive(t, s, l, 3)
	holes(feed.HistoryRange{}, holes1, holes2)
	holes(feed.HistoryRange{From: 12, To: 50}, feed.HistoryHole{First: 12, Last: 14}, feed.HistoryHole{First: 21, Last: 50})
	holes(feed.HistoryRange{From: 15, To: 20})
	verified(t, s)
}

func TestAnotherLogIsNotTakenForThisOne(t *testing.T) {
	l := newLog()
	s := open(t, history.Options{Dir: t.TempDir()})
	l.append(1, put("a"))
	l.append(1, put("b"))
	archive(t, s, l, 3)
	other := newLog()
	other.append(1, put("a"))
	if err := s.Archive(t.Context(), other, 2); err == nil {
		t.Error("a log whose sequences were used already")
	}
	fork := newLog() // an older copy of the log went on by itself
	fork.epoch = l.epoch
	fork.append(1, put("a"))
	fork.append(1, put("x"))
	if err := s.Archive(t.Context(), fork, 3); err == nil {
		t.Error("a log with another newest group")
	}
	fork.append(1, put("y"))
	if err := s.Add(3, fork.groups[2]); err == nil {
		t.Error("a group that does not follow")
	}
	if err := s.Add(4, fork.groups[2]); err == nil {
		t.Error("a group of another position")
	}
	l.append(1, put("c"))
	archive(t, s, l, 4)
	check(t, s, l, feed.HistoryRange{Tenant: "acme"}, 0)
}

// A write that fails leaves no group half there, nor twice.
func TestAWriteThatFailsIsMadeGoodByTheNext(t *testing.T) {
	l := newLog()
	dir := filepath.Join(t.TempDir(), "history")
	s := open(t, history.Options{Dir: dir, SegmentBytes: 700})
	for i := range 30 {
		l.append(1, put(fmt.Sprint(i)))
	}
	archive(t, s, l, 10)
	// Something is where the next segment, or the mark, should be written.
	for i, name := range []string{"mark.new", "mark.new"} {
		block := filepath.Join(dir, name)
		if err := os.Mkdir(block, 0o750); err != nil {
			t.Fatal(err)
		}
		if err := s.Archive(t.Context(), l, 20); err == nil {
			t.Fatal("a mark that can't be written is no error")
		}
		check(t, s, l, feed.HistoryRange{Tenant: "acme"}, 0)
		if i == 0 {
			if err := s.Archive(t.Context(), l, 20); err == nil {
				t.Fatal("it still can't be written")
			}
		}
		if err := os.Remove(block); err != nil {
			t.Fatal(err)
		}
		archive(t, s, l, feed.Position(11+i))
		verified(t, s)
	}
	archive(t, s, l, 31)
	check(t, s, l, feed.HistoryRange{Tenant: "acme"}, 1)
	verified(t, s)
}

func TestReadersAndTheWriterDoNotMeet(t *testing.T) {
	l := newLog()
	s := open(t, history.Options{Dir: t.TempDir(), SegmentBytes: 5000, Bytes: 1 << 20})
	l.append(1, put("k"))
	var written atomic.Int64
	written.Store(1)
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		readers.Go(func() {
			for last := false; !last; {
				select {
				case <-done:
					last = true
				default:
				}
				least := written.Load() // acknowledged: it must be there at once
				next := feed.Seq(0)
				_, err := s.History(t.Context(), l, feed.HistoryRange{Tenant: "acme"}, func(step feed.HistoryStep) error {
					if step.Hole != nil {
						return fmt.Errorf("a hole: %v", step.Hole)
					}
					if g := step.Group; g != nil {
						if next != 0 && g.First != next {
							return fmt.Errorf("sequence %d follows %d", g.First, next-1)
						}
						next = g.Last() + 1
					}
					return nil
				})
				if err != nil || int64(next) <= least {
					t.Errorf("up to %d of %d: %v", next, least, err)
					return
				}
			}
		})
	}
	for i := range 1500 {
		l.append(1, put(fmt.Sprint("k", i)))
		written.Add(1)
		if i%50 == 0 {
			archive(t, s, l, l.first+feed.Position(len(l.groups)/2))
		}
	}
	close(done)
	readers.Wait()
	verified(t, s)
}

func TestACloseEndsWhatIsUnderWay(t *testing.T) {
	l := newLog()
	s := open(t, history.Options{Dir: t.TempDir()})
	for i := range 10 {
		l.append(1, put(fmt.Sprint(i)))
	}
	archive(t, s, l, 11)
	reading, over := make(chan struct{}), make(chan error)
	go func() {
		first := true
		over <- s.Read(context.Background(), feed.HistoryRange{Tenant: "acme"}, func(feed.HistoryStep) error {
			if first {
				first = false
				close(reading)
			}
			return nil
		})
	}()
	<-reading
	s.Close()
	if err := <-over; err != nil && !errors.Is(err, history.ErrClosed) {
		t.Error(err)
	}
	l.append(1, put("late"))
	for what, err := range map[string]error{
		"read": s.Read(t.Context(), feed.HistoryRange{}, nil), "add": s.Add(11, l.groups[0]), "sync": s.Sync(), "retain": s.Retain(), "close": s.Close(),
	} {
		if !errors.Is(err, history.ErrClosed) && what != "close" || what == "close" && err != nil {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s = open(t, history.Options{Dir: t.TempDir()})
	archive(t, s, l, 12)
	if err := s.Read(ctx, feed.HistoryRange{}, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestOptionsThatMakeNoSenseAreErrors(t *testing.T) {
	for _, o := range []history.Options{{}, {Dir: "x", Keep: -1}, {Dir: "x", Bytes: -1}, {Dir: "x", SegmentBytes: -1}, {Dir: filepath.Join(t.TempDir(), "a", "b")}} {
		if _, err := history.Open(t.Context(), o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}
