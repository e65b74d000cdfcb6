package hub_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// lasting gives a write a ttl.
func lasting(ttl time.Duration, w hub.Write) hub.Write {
	w.TTL = ttl
	return w
}

// Thousands are due when the server starts, and go a group at a time; whoever writes
// meanwhile finds no row that should be gone.
func TestNobodyFindsARowAfterItsDeadlineHoweverManyAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		h := open(t, log, hub.Options{})
		const many = 2200
		for i := range many {
			write(t, h, lasting(time.Minute+time.Duration(i)*time.Millisecond, put("todos", fmt.Sprint(i), `{}`)))
		}
		h.Drain(context.Background())
		time.Sleep(time.Hour) // of the bubble
		before := log.Appends()
		log.OnAppend = func(feed.Position, []byte) error { time.Sleep(time.Second); return nil }
		h = open(t, log, hub.Options{})
		r := write(t, h, insert("todos", fmt.Sprint(many-1), `{"new":true}`))
		if r.Outcomes[0].Status != hub.OK {
			t.Errorf("%+v", r.Outcomes)
		}
		time.Sleep(time.Minute)
		if got := rows(t, h, "todos"); len(got) != 1 || !strings.Contains(got[0], "new") {
			t.Errorf("%d rows are there: %.200q", len(got), got)
		}
		if n := log.Appends() - before; n < 5 || n > 8 {
			t.Errorf("it took %d groups", n)
		}
	})
}

func TestRowsThatAreDueGoOnceTheLogTakesThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		var full atomic.Bool
		var fails atomic.Int64
		log.OnReady = func() error {
			if full.Load() {
				return feed.ErrNotReady
			}
			return nil
		}
		log.OnAppend = func(feed.Position, []byte) error {
			if n := fails.Add(1); n > 1 && n < 5 {
				return errors.New("boom")
			}
			return nil
		}
		h := open(t, log, hub.Options{})
		write(t, h, lasting(time.Minute, put("todos", "a", `{}`)), lasting(time.Minute, put("todos", "b", `{}`)))
		full.Store(true)
		time.Sleep(2 * time.Minute) // of the bubble
		if len(rows(t, h, "todos")) != 2 {
			t.Error("a row is gone that the log did not lose")
		}
		full.Store(false)
		time.Sleep(10 * time.Second)
		if got := rows(t, h, "todos"); len(got) != 0 || fails.Load() != 5 {
			t.Errorf("%q after %d attempts", got, fails.Load()-1)
		}
	})
}

func TestRowsThatAreWrittenAgainAndAgainLeaveOneDeadline(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	for i := range 3000 {
		write(t, h, lasting(time.Hour, put("todos", fmt.Sprint(i%3), `{}`)))
	}
	if rows, entries := h.Deadlines(); rows != 3 || entries > 200 {
		t.Errorf("%d entries for %d deadlines", entries, rows)
	}
	before := h.Stats().Bytes
	for i := range 3 {
		write(t, h, put("todos", fmt.Sprint(i), `{}`))
	}
	if rows, entries := h.Deadlines(); rows+entries != 0 || h.Stats().Bytes >= before {
		t.Errorf("%d entries for %d deadlines, %d bytes, before %d", entries, rows, h.Stats().Bytes, before)
	}
}

// wildClock is one whose owner does what owners do.
type wildClock struct {
	wall time.Time
	up   atomic.Int64
}

func (c *wildClock) Wall() time.Time             { return c.wall }
func (c *wildClock) Up() (uint64, time.Duration) { return 7, time.Duration(c.up.Load()) }

func TestAClockThatIsAbsurdBreaksNothing(t *testing.T) {
	log := feedtest.NewMemory()
	for _, x := range []struct {
		wall time.Time
		up   time.Duration
	}{{time.Unix(-1e10, 0), 0}, {time.Unix(1e12, 0), time.Hour}, {}, {time.Unix(0, 0), -time.Hour}, {time.Unix(1e9, 0), 1<<63 - 1}} {
		c := &wildClock{wall: x.wall}
		c.up.Store(int64(x.up))
		h := open(t, log, hub.Options{Clock: c})
		write(t, h, lasting(hub.MaxTTL, as("id", put("todos", "a", `{}`))))
		write(t, h, put("todos", "b", `{}`))
		c.up.Add(-1 << 40)
		write(t, h, put("todos", "b", `{}`))
		h.Drain(context.Background())
	}
}

func TestAnOperatorIsToldWhenIDsAreForgottenEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told bytes.Buffer
		h := open(t, feedtest.NewMemory(), hub.Options{IDCount: 2, Logger: slog.New(slog.NewTextHandler(&told, nil))})
		for i := range 10 {
			write(t, h, as(fmt.Sprint(i), put("todos", "a", `{}`)))
		}
		if n := strings.Count(told.String(), "level=WARN"); n != 1 {
			t.Errorf("told %d times:\n%s", n, told.String())
		}
		time.Sleep(2 * time.Minute) // of the bubble
		write(t, h, as("more", put("todos", "a", `{}`)))
		if n := strings.Count(told.String(), "level=WARN"); n != 2 {
			t.Errorf("told %d times:\n%s", n, told.String())
		}
	})
}

func TestACheckpointThatIsAskedForIsThereWhenItIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		saves := 0
		log.OnSave = func(feed.Position) error { saves++; time.Sleep(time.Second); return nil }
		h := open(t, log, hub.Options{Log: 1})
		if err := h.Checkpoint(t.Context()); err != nil || saves != 0 {
			t.Fatalf("of nothing: %v, %d saved", err, saves)
		}
		write(t, h, put("todos", "a", `{}`)) // one begins by itself
		write(t, h, put("todos", "b", `{}`))
		if err := h.Checkpoint(t.Context()); err != nil || saves != 2 || log.Held() != 1 {
			t.Errorf("%v, %d saved, %d groups are held", err, saves, log.Held())
		}
		boom := errors.New("boom")
		log.OnSave = func(feed.Position) error { return boom }
		if err := h.Checkpoint(t.Context()); !errors.Is(err, boom) {
			t.Errorf("one that fails: %v", err)
		}
		log.OnSave = func(feed.Position) error { time.Sleep(time.Hour); return nil }
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := h.Checkpoint(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one that takes too long: %v", err)
		}
		h.Drain(context.Background())
		if err := h.Checkpoint(t.Context()); !errors.Is(err, hub.ErrDraining) {
			t.Errorf("after the end: %v", err)
		}
		h = open(t, log, hub.Options{})
		if got := rows(t, h, "todos"); len(got) != 2 {
			t.Errorf("%q", got)
		}
	})
}

// Each part of a checkpoint says what it belongs to.
func TestAPartOfACheckpointCanBeReadWithoutTheOthers(t *testing.T) {
	log := aLog(t, 400_000)
	var parts [][]byte
	log.HarmCheckpoint(func(p [][]byte) [][]byte { parts = p; return p })
	if len(parts) < 4 {
		t.Fatalf("%d parts are too few", len(parts))
	}
	for i, p := range parts {
		d := feed.NewDecoder(string(p[:len(p)-16]))
		d.Take(4)
		number, kind, epoch := d.Uint(), d.Byte(), feed.Epoch(d.Text())
		d.Uint() // position
		d.Take(16)
		d.Time()
		d.Times()
		d.Uint() // next
		if d.Err() != nil || number != uint64(i+1) || kind != 'h' || epoch != log.Epoch() || len(p) > feed.MaxPart {
			t.Fatalf("part %d: number %d, %q of %s, %v", i+1, number, kind, epoch, d.Err())
		}
		if kind := d.Byte(); i > 0 && kind != 'e' && (kind != 't' || !slices.Contains([]string{"acme", "other"}, d.Text())) {
			t.Errorf("part %d begins with %q and no tenant", i+1, kind)
		}
	}
}
