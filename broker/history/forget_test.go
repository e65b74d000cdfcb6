package history_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tidemark-sync/tidemark/broker/history"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// canary is in all that a tenant can write.
const canary = "CANARY"

func canaryChange(i int) change {
	c := change{tenant: canary, collection: canary + "/x", key: fmt.Sprint(canary, i%5), client: canary + "-c", id: fmt.Sprint(canary, i), op: feed.Modify, value: `{"v":"` + strings.Repeat(canary, i%9) + `"}`}
	if i%4 == 0 {
		c.op, c.value = feed.Remove, ""
	}
	return c
}

// names is the files in a directory that hold the canary.
func names(t testing.TB, dir string) (in []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(canary)) {
			in = append(in, e.Name())
		}
	}
	return in
}

// mixed is a store in which a tenant has written to every other group, and a log that ends with
// the step that drops it.
func mixed(t *testing.T, segment int64) (o history.Options, l *log, s *history.Store) {
	t.Helper()
	o = history.Options{Dir: t.TempDir(), SegmentBytes: segment}
	l, s = newLog(), nil
	s = open(t, o)
	for i := range 60 {
		l.append(1, put(fmt.Sprint("key", i%7)))
		l.append(1, canaryChange(i), put("beside"), canaryChange(i+1))
	}
	quiet := func() { // so that nothing but the step itself names it in a segment
		for range 40 {
			l.append(1, put("quiet"))
		}
	}
	quiet()
	l.drop(canary)
	quiet()
	return o, l, s
}

// drop appends a group that drops a tenant, as the hub does.
func (l *log) drop(tenant string) {
	l.append(1, change{tenant: "*", collection: "$dropped", key: "-", op: feed.Noop})
	last := len(l.groups) - 1
	g, _, err := feed.DecodeGroup(l.groups[last])
	if err != nil {
		panic(err)
	}
	g.Drop, g.ForgetIDsOf = []string{tenant}, []feed.IDFloor{{Tenant: tenant, Seq: 1}}
	l.groups[last], l.sum = feed.AppendGroup(nil, g)
}

func (l *log) forget(tenant string, upTo feed.Seq) {
	l.all = slices.DeleteFunc(l.all, func(c change) bool { return c.tenant == tenant && c.seq <= upTo })
}

// TestAForgottenTenantLeavesNoByteInTheHistory: the one place where every value that it ever had is kept.
func TestAForgottenTenantLeavesNoByteInTheHistory(t *testing.T) {
	o, l, s := mixed(t, 1800)
	upTo := l.next - 1
	l.append(1, canaryChange(1)) // it came to be anew
	l.append(1, put("after"))
	end := l.first + feed.Position(len(l.groups))
	archive(t, s, l, end)
	before := segments(t, o.Dir)
	if in := names(t, o.Dir); len(in) < len(before)/2 {
		t.Fatalf("it is in %v of %v", in, before)
	}
	if err := s.Forget(t.Context(), canary, upTo); err != nil {
		t.Fatal(err)
	}
	l.forget(canary, upTo)
	questions := func(s *history.Store) {
		t.Helper()
		for _, tenant := range []string{canary, "acme", "*"} {
			check(t, s, l, feed.HistoryRange{Tenant: tenant}, 0)
			check(t, s, l, feed.HistoryRange{Tenant: tenant, From: 50, To: 120}, 1)
		}
		check(t, s, l, feed.HistoryRange{Tenant: canary, Collections: []string{canary + "/x"}, Key: canary + "1"}, 0)
		check(t, s, l, feed.HistoryRange{Tenant: "acme", Collections: []string{"todos"}, Key: "beside"}, 0)
		verified(t, s)
	}
	questions(s)
	// What it wrote anew is there, and goes by the next time, with its last segment still growing.
	if in := names(t, o.Dir); len(in) != 1 {
		t.Errorf("it is in %v", in)
	}
	if err := s.Forget(t.Context(), canary, l.next-1); err != nil {
		t.Fatal(err)
	}
	l.forget(canary, l.next-1)
	if in := names(t, o.Dir); len(in) != 0 {
		t.Errorf("it is in %v", in)
	}
	questions(s)
	// It is kept on, and reopened.
	for range 2 {
		for range 30 {
			l.append(1, put("more"))
		}
		end = l.first + feed.Position(len(l.groups))
		archive(t, s, l, end)
		questions(s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, o)
		questions(s)
	}
	if after := segments(t, o.Dir); !slices.Equal(after[:len(before)], before) {
		t.Errorf("segments were %v and are %v", before, after)
	}
}

// TestForgettingInterruptedAnywhereLosesNothingOfOthers stops it between any two segments.
func TestForgettingInterruptedAnywhereLosesNothingOfOthers(t *testing.T) {
	o, l, s := mixed(t, 1800)
	archive(t, s, l, l.first+feed.Position(len(l.groups)))
	upTo := l.next - 1
	for n := 0; ; n++ {
		ctx := &endsAfter{Context: t.Context(), left: n}
		err := s.Forget(ctx, canary, upTo)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		check(t, s, l, feed.HistoryRange{Tenant: "acme"}, 0)
		verified(t, s)
		if n%20 == 0 || err == nil {
			if err := os.WriteFile(filepath.Join(o.Dir, "forgetting"), []byte(canary), 0o640); err != nil { // a crash leaves it
				t.Fatal(err)
			}
			s.Close()
			s = open(t, o)
			check(t, s, l, feed.HistoryRange{Tenant: "acme"}, 0)
		}
		if err == nil {
			break
		}
	}
	if in := names(t, o.Dir); len(in) != 0 {
		t.Errorf("it is in %v", in)
	}
}

// endsAfter is a context that has ended when it was asked so often.
type endsAfter struct {
	context.Context
	left int
}

func (c *endsAfter) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestHarmHidesNoForgottenTenant: a record that can't be read any more still holds its bytes.
func TestHarmHidesNoForgottenTenant(t *testing.T) {
	for _, segment := range []int64{1800, 1} { // 1: the harmed record is the only one
		harmHides(t, segment)
	}
}

func harmHides(t *testing.T, segment int64) {
	o, l, s := mixed(t, segment)
	archive(t, s, l, l.first+feed.Position(len(l.groups)))
	s.Close()
	upTo := l.next - 1
	file := segments(t, o.Dir)[3]
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	others := want(l, feed.HistoryRange{Tenant: "acme"})
	const step = 40 // each takes some syncs of the disk; runs begin at different bytes, so that together they see all
	for i := 144 + rand.IntN(step); i < len(whole); i += step {
		harmed := bytes.Clone(whole)
		harmed[i] ^= 0x10
		if err := os.WriteFile(file, harmed, 0o640); err != nil {
			t.Fatal(err)
		}
		s := open(t, o)
		_, _, _, before := read(t.Context(), s, l, feed.HistoryRange{Tenant: "acme"}, 0)
		if err := s.Forget(t.Context(), canary, upTo); err != nil {
			t.Fatalf("byte %d: %v", i, err)
		}
		if in := names(t, o.Dir); len(in) != 0 {
			t.Fatalf("byte %d is harmed, and it is in %v", i, in)
		}
		got, _, _, err := read(t.Context(), s, l, feed.HistoryRange{Tenant: "acme"}, 0)
		var d, was *feed.HistoryDamage
		switch {
		case err == nil && before == nil && slices.Equal(got, others):
		case errors.As(err, &d) && errors.As(before, &was) && d.First == was.First && d.Last == was.Last:
			next := feed.HistoryRange{Tenant: "acme", From: d.Last + 1}
			if rest, _, _, err := read(t.Context(), s, l, next, 0); err != nil || !slices.Equal(rest, want(l, next)) {
				t.Fatalf("byte %d: from %d %d changes, %v", i, next.From, len(rest), err)
			}
		default:
			t.Fatalf("byte %d: before it was %v, and now %d changes and %v", i, before, len(got), err)
		}
		s.Close()
	}
}

func TestOnlyATenantWithANameIsForgotten(t *testing.T) {
	o, _, s := mixed(t, 1800)
	if err := s.Forget(t.Context(), "", 1); err == nil {
		t.Error("nobody is forgotten")
	}
	s.Close()
	if err := s.Forget(t.Context(), canary, 1); !errors.Is(err, history.ErrClosed) {
		t.Errorf("of a history that is closed: %v", err)
	}
	o.ReadOnly = true
	if err := open(t, o).Forget(t.Context(), canary, feed.MaxSeq-1); err == nil && len(segments(t, o.Dir)) > 0 {
		t.Error("one that is only looked at is changed")
	}
}

// TestASegmentThatGotShorterIsNotSaidToBeHarmed: its footer has less to say.
func TestASegmentThatGotShorterIsNotSaidToBeHarmed(t *testing.T) {
	o, l, s := mixed(t, 1)
	l.append(1, canaryChange(1))
	end := l.first + feed.Position(len(l.groups))
	archive(t, s, l, end)
	l.append(1, put("next"))
	if err := s.Add(end, l.groups[0]); err != nil { // it closes the segment before, and is not synced
		t.Fatal(err)
	}
	s.Close()
	s = open(t, o)
	if err := s.Forget(t.Context(), canary, l.next-1); err != nil {
		t.Fatal(err)
	}
	l.forget(canary, l.next-1)
	s.Close()
	var told bytes.Buffer
	o.Logger = slog.New(slog.NewTextHandler(&told, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s = open(t, o)
	archive(t, s, l, end+1)
	check(t, s, l, feed.HistoryRange{Tenant: "acme"}, 0)
	verified(t, s)
	if told.Len() > 0 || len(names(t, o.Dir)) > 0 {
		t.Errorf("%s%v", &told, names(t, o.Dir))
	}
}

// TestTenantsAreForgottenOneAfterTheOther, in a group of any version: what is left of it is still one of that version.
func TestTenantsAreForgottenOneAfterTheOther(t *testing.T) {
	old, err := os.ReadFile("../../sync/feed/testdata/group.v1")
	if err != nil {
		t.Fatal(err)
	}
	both := func(g feed.Group) []byte {
		g.Epoch, g.Position, g.First, g.At = feed.NewEpoch(), 1, 1, 1
		for _, tenant := range []string{"acme", "globex", "other"} {
			g.Transactions = append(g.Transactions, feed.Transaction{Tenant: tenant, Records: []feed.Record{{Op: feed.Insert, Collection: tenant, Key: tenant, Value: `"` + tenant + `"`}}})
		}
		b, _ := feed.AppendGroup(nil, &g)
		return b
	}
	for version, b := range map[int][]byte{
		1: old,
		2: both(feed.Group{ForgetIDsOf: []feed.IDFloor{{Tenant: "other", Seq: 1}, {Tenant: "acme", Seq: 1}}}),
		3: both(feed.Group{Drop: []string{"acme", "other"}}),
	} {
		g, sum, err := feed.DecodeGroup(b)
		if err != nil {
			t.Fatal(err)
		}
		o := history.Options{Dir: t.TempDir()}
		s := open(t, o)
		if err := s.Add(g.Position, b); err != nil { // not even synced
			t.Fatal(err)
		}
		for _, tenant := range []string{"acme", "other"} {
			if err := s.Forget(t.Context(), tenant, feed.MaxSeq-1); err != nil {
				t.Fatal(err)
			}
		}
		verified(t, s)
		content, err := os.ReadFile(segments(t, o.Dir)[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, tenant := range []string{"acme", "other"} {
			if bytes.Contains(content, []byte(tenant)) {
				t.Errorf("a group of version %d still names %s: %q", version, tenant, content[144:])
			}
		}
		if n := bytes.Count(content, []byte("globex")); version > 1 && n != 4 {
			t.Errorf("version %d: another tenant is there %d times: %q", version, n, content[144:])
		}
		if !bytes.HasSuffix(content, sum[:]) {
			t.Errorf("version %d: its sum is another", version)
		}
	}
}

// TestNobodyMeetsForgetting: readers, the writer and Verify go on while a tenant goes, and see all that others wrote.
func TestNobodyMeetsForgetting(t *testing.T) {
	o := history.Options{Dir: t.TempDir(), SegmentBytes: 3000}
	l, s := newLog(), (*history.Store)(nil)
	s = open(t, o)
	var written atomic.Int64 // sequences that are acknowledged
	write := func(i int) {
		l.append(1, put(fmt.Sprint("k", i)), canaryChange(i))
		written.Store(int64(l.next) - 1)
	}
	write(0)
	done := make(chan struct{})
	var running sync.WaitGroup
	for range 2 {
		running.Go(func() {
			for last := false; !last; {
				select {
				case <-done:
					last = true
				default:
				}
				least, n, next := written.Load(), int64(0), feed.Seq(0)
				_, err := s.History(t.Context(), l, feed.HistoryRange{Tenant: "acme"}, func(step feed.HistoryStep) error {
					if g := step.Group; g != nil {
						if step.Hole != nil || next != 0 && g.First != next {
							return fmt.Errorf("sequence %d follows %d, with a hole %v", g.First, next-1, step.Hole)
						}
						next = g.Last() + 1
						n += int64(len(of(feed.HistoryRange{Tenant: "acme"}, g)))
					}
					return nil
				})
				if err != nil || n < least/2 {
					t.Errorf("%d changes of %d: %v", n, least/2, err)
					return
				}
				if found, err := s.Verify(t.Context(), nil); err != nil || len(found) > 0 {
					t.Errorf("%v, %v", found, err)
					return
				}
			}
		})
	}
	running.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := s.Forget(t.Context(), canary, feed.Seq(written.Load())); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := 1; i < 600; i++ {
		write(i)
		if i%20 == 0 {
			archive(t, s, l, l.first+feed.Position(len(l.groups)/2))
		}
	}
	archive(t, s, l, l.first+feed.Position(len(l.groups)))
	close(done)
	running.Wait()
	if err := s.Forget(t.Context(), canary, l.next-1); err != nil {
		t.Fatal(err)
	}
	l.forget(canary, l.next-1)
	check(t, s, l, feed.HistoryRange{Tenant: "acme"}, 0)
	verified(t, s)
	if in := names(t, o.Dir); len(in) > 0 {
		t.Errorf("it is in %v", in)
	}
}
