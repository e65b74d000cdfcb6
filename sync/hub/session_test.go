package hub_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
	"weak"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// fold follows a session until it has come to a sequence that until returns, and returns
// the rows that it ends up with.
func fold(s *hub.Session, until func() feed.Seq) (map[string]string, error) {
	rows := make(map[string]string)
	var prev feed.Seq
	for {
		b, err := s.Next(context.Background())
		if err != nil {
			return nil, err
		}
		for _, r := range b.Resets {
			return nil, fmt.Errorf("%v is reset because of %s", r.Collections, r.Reason)
		}
		for _, i := range b.Items {
			if i.Seq <= prev {
				return nil, fmt.Errorf("%d comes after %d", i.Seq, prev)
			}
			prev = i.Seq
			if c := wireOf(i); c.Op == "remove" {
				delete(rows, c.Collection+" "+c.Key)
			} else {
				rows[c.Collection+" "+c.Key] = string(c.Value)
			}
		}
		if b.Cursor.Seq < prev {
			return nil, fmt.Errorf("the cursor is %d, after %d", b.Cursor.Seq, prev)
		}
		if end := until(); end > 0 && b.Live && b.Cursor.Seq >= end {
			return rows, nil
		}
	}
}

func TestEverybodyEndsUpWithTheSameRowsWhileManyWriteAndReadersComeAndGo(t *testing.T) {
	log := feedtest.NewMemory()
	h := open(t, log, hub.Options{Log: 100_000, Tombstones: time.Second, IDs: time.Second})
	all := []string{"a", "b", "c"}
	const writers, writes, followers = 8, 300, 12
	var end atomic.Uint64
	var writing, reading sync.WaitGroup
	var stop atomic.Bool

	results := make([]map[string]string, followers)
	var sessions []*hub.Session
	for i := range followers {
		s := session(t, h, all...)
		sessions = append(sessions, s)
		reading.Go(func() {
			var err error
			if results[i], err = fold(s, func() feed.Seq { return feed.Seq(end.Load()) }); err != nil {
				t.Error(err)
			}
		})
	}
	// These come, read a little, change their minds and go.
	for range 4 {
		reading.Go(func() {
			for !stop.Load() {
				s, err := h.Open(hub.Everything, []string{"acme", "other"}[rand.IntN(2)],
					[]feed.Start{{Collection: all[rand.IntN(3)]}, {Collection: "never written"[:5]}}, hub.SessionOptions{Limit: 10})
				if err != nil {
					t.Error(err)
					return
				}
				for range rand.IntN(5) {
					ctx, cancel := context.WithCancel(context.Background())
					cancel()
					s.Next(ctx)
					s.Subscribe([]feed.Start{{Collection: all[rand.IntN(3)]}, {Collection: fmt.Sprint("x", rand.IntN(5))}}, "done")
					s.Unsubscribe([]string{all[rand.IntN(3)], "x1"}, "done")
					h.Stats()
					if _, err := h.Rows(hub.Everything, "acme", all[rand.IntN(3)], "", 10); err != nil {
						t.Error(err)
					}
				}
				s.Close()
			}
		})
	}
	for n := range writers {
		writing.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(n)))
			for i := range writes {
				c, key := all[r.IntN(3)], fmt.Sprint(r.IntN(50))
				w := []hub.Write{put(c, key, fmt.Sprintf(`{"by":%d,"n":%d}`, n, i)), remove(c, key), put(all[r.IntN(3)], key, `{}`)}
				if i%3 == 0 {
					w[0] = as(fmt.Sprint(n, "-", i), w[0])
				}
				if _, err := try(h, w[:1+r.IntN(3)]...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writing.Wait()
	stop.Store(true)
	end.Store(uint64(write(t, h, put("a", "end", `{}`)).Cursor.Seq))
	write(t, h, put("a", "end", `{"very":true}`)) // wakes those who saw the one before before it was the end
	reading.Wait()
	want := make(map[string]string)
	for _, c := range all {
		page, err := h.Rows(hub.Everything, "acme", c, "", 10_000)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range page.Rows {
			want[c+" "+row.Key()] = row.Value()
		}
	}
	for i, got := range results {
		for k, v := range want {
			if got[k] != v && k != "a end" {
				t.Fatalf("follower %d has %q for %s instead of %q", i, got[k], k, v)
			}
		}
		for k := range got {
			if want[k] == "" {
				t.Fatalf("follower %d has %s, which is gone", i, k)
			}
		}
	}
	for _, s := range sessions {
		s.Close()
	}
	if _, _, collections, tenants := h.Remembered(); collections > len(all) || tenants != 1 || h.Stats().Sessions != 0 {
		t.Errorf("%d collections, %d tenants and %d sessions are left", collections, tenants, h.Stats().Sessions)
	}
}

func TestSessionsLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, feedtest.NewMemory(), hub.Options{Tombstones: time.Minute, IDs: time.Minute})
		write(t, h, put("todos", "a", `{}`))
		var open []*hub.Session
		for i := range 100 {
			s, err := h.Open(hub.Everything, fmt.Sprint("tenant", i%10), []feed.Start{{Collection: "todos"}, {Collection: fmt.Sprint(i)}}, hub.SessionOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Subscribe([]feed.Start{{Collection: "more"}}, "done"); err != nil {
				t.Fatal(err)
			}
			open = append(open, s, session(t, h, "todos", fmt.Sprint(i)))
		}
		write(t, h, remove("todos", "a"))
		time.Sleep(time.Hour) // of the bubble: the tombstone is forgotten while they look on
		for _, s := range open {
			s.Close()
		}
		tombstones, ids, collections, tenants := h.Remembered()
		if tombstones+ids+collections != 0 || tenants != 1 || h.Stats().Sessions != 0 {
			t.Errorf("%d tombstones, %d ids, %d collections, %d tenants and %d sessions are left", tombstones, ids, collections, tenants, h.Stats().Sessions)
		}
		// Not even the one that refuses.
		if _, err := h.Open(hub.Everything, "nobody", []feed.Start{{Collection: "//"}}, hub.SessionOptions{}); err == nil {
			t.Error("it is taken")
		}
		if _, _, _, tenants := h.Remembered(); tenants != 1 {
			t.Errorf("%d tenants", tenants)
		}
	})
}

func TestClientsOfAServerThatStopsDoNotComeBackAsOne(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	sessions := make([]*hub.Session, 4000)
	for i := range sessions {
		sessions[i] = session(t, h, "todos")
	}
	if err := h.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	var spread [4]int // over 2 s, for so many
	for _, s := range sessions {
		var ended *hub.Ended
		if _, err := s.Next(t.Context()); !errors.As(err, &ended) || ended.Reason != hub.EndDraining {
			t.Fatal(err)
		}
		after := ended.Retry - 100*time.Millisecond
		if after < 0 || after >= 2*time.Second {
			t.Fatalf("come back after %v", ended.Retry)
		}
		spread[after/(500*time.Millisecond)]++
	}
	for _, n := range spread {
		if n < 700 {
			t.Fatalf("%v come in each half second", spread)
		}
	}
}

func TestAChangeIsEncodedOnceForAllWhoFollow(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	sessions := make([]*hub.Session, 50)
	for i := range sessions {
		sessions[i] = session(t, h, "todos", fmt.Sprint("own", i))
	}
	before := h.Stats().Encoded
	for i := range 20 {
		write(t, h, put("todos", fmt.Sprint(i), `{}`))
	}
	frames := make(map[feed.Seq]*byte)
	for _, s := range sessions {
		b, err := s.Next(t.Context())
		if err != nil || len(b.Items) != 20 {
			t.Fatal(b, err)
		}
		for _, i := range b.Items {
			if at := frames[i.Seq]; at != nil && at != unsafe.StringData(i.Frame) {
				t.Fatalf("%d is in memory twice", i.Seq)
			}
			frames[i.Seq] = unsafe.StringData(i.Frame)
		}
	}
	if n := h.Stats().Encoded - before; n != 20 {
		t.Errorf("20 changes were encoded %d times", n)
	}
}

func TestARowThatIsOverwrittenIsOutOfMemory(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	s := session(t, h, "todos")
	old := make(map[string]weak.Pointer[feed.Change])
	for _, key := range []string{"a", "b", "c"} {
		write(t, h, put("todos", key, `{"old":true}`))
		row, err := h.Row(hub.Everything, "acme", "todos", key)
		if err != nil {
			t.Fatal(err)
		}
		old[key] = weak.Make(row)
	}
	if _, err := s.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, h, put("todos", "a", `{}`))
	write(t, h, remove("todos", "b"))
	runtime.GC()
	for key, gone := range map[string]bool{"a": true, "b": true, "c": false} {
		if (old[key].Value() == nil) != gone {
			t.Errorf("the old content of %s is gone: %v", key, !gone)
		}
	}
}

func TestAContextEndsTheWaitAndTheSessionGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, feedtest.NewMemory(), hub.Options{})
		s := session(t, h, "todos")
		s.Next(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if b, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(b, err)
		}
		write(t, h, put("todos", "a", `{}`))
		if b, err := s.Next(ctx); err != nil || len(b.Items) != 1 {
			t.Fatal("what is there is given though the context is over: ", b, err)
		}
	})
}

// The budget is 200 bytes; what is counted is what Options.Memory is held against.
func TestARowCostsAtMost200BytesBesideItsContentAndIsCountedAsThat(t *testing.T) {
	const rows = 60_000
	log := feedtest.NewMemory()
	before := heap()
	h := open(t, log, hub.Options{})
	size := fill(t, h, rows, rows)
	log.Harm(func([][]byte) [][]byte { return nil })
	cost, counted := (heap()-before-size)/rows, (h.Stats().Bytes-size)/rows
	if cost > 200 || counted < cost-10 || counted > cost+20 {
		t.Errorf("a row costs %d bytes beside its content, and is counted as %d", cost, counted)
	}
}

// A transport reads the place of a feed off any batch.
func TestEveryBatchSaysWhereTheFeedIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, feedtest.NewMemory(), hub.Options{})
		write(t, h, put("todos", "a", `{}`))
		s, err := h.Open(hub.Everything, "acme", []feed.Start{{Collection: "todos"}}, hub.SessionOptions{Tick: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		want := feed.Cursor{Epoch: h.Epoch(), Seq: 1}
		for _, what := range []string{"changes", "tick", "heartbeat", "reply"} {
			if what == "reply" {
				s.Reply("{}")
			}
			b, err := s.Next(t.Context())
			if err != nil || b.Cursor != want || !b.Live || !b.Resumes || b.Tick != (what == "tick") || b.Announce != (what == "changes" || what == "heartbeat") {
				t.Errorf("%s: %+v, %v", what, b, err)
			}
		}
	})
}

// Whatever a page's limit is, reading goes on and ends.
func TestPagesOfAnySize(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	for i := range 7 {
		write(t, h, put("todos", fmt.Sprint(i), `{}`))
	}
	for _, limit := range []int{-1, 0, 1, 3, 7, 10_000} {
		n, after := 0, ""
		for pages := 0; pages < 10; pages++ {
			page, err := h.Rows(hub.Everything, "acme", "todos", after, limit)
			if err != nil {
				t.Fatal(err)
			}
			n += len(page.Rows)
			if after = page.Next; after == "" {
				break
			}
		}
		if n != 7 {
			t.Errorf("pages of %d have %d rows in all", limit, n)
		}
	}
	_, err := h.Rows(hub.Everything, "ac me", "todos", "", 1)
	refusal(t, err, hub.BadName)
	_, err = h.Rows(hub.Everything, "acme", "/", "", 1)
	refusal(t, err, hub.BadName)
	_, err = h.Row(hub.Everything, "acme", "todos", "\n")
	refusal(t, err, hub.BadName)
	if row, err := h.Row(hub.Everything, "nobody", "todos", "a"); row != nil || err != nil {
		t.Error(row, err)
	}
	if page, err := h.Rows(hub.Everything, "nobody", "todos", "", 1); err != nil || len(page.Rows) != 0 || page.Cursor.Seq != 7 {
		t.Error(page, err)
	}
}
