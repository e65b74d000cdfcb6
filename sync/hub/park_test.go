package hub_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// seat follows with a session that parks, and takes what it is given as long as it has room.
type seat struct {
	t *testing.T
	s *hub.Session

	mu      sync.Mutex
	got     []feed.Seq
	lives   int
	batches int // batches that came while it was parked
	leaves  int
	ticks   []time.Time
	replies int
	full    bool          // it takes nothing
	pause   time.Duration // it takes so long to take what comes first
	ended   *hub.Ended
	at      time.Time // when it ended
}

func sit(t *testing.T, h *hub.Hub, g hub.Grant, opts hub.SessionOptions) *seat {
	t.Helper()
	x := seatOf(t, h, g, opts)
	go x.lane()
	return x
}

// await is sit without Next.
func await(t *testing.T, h *hub.Hub, pause time.Duration) *seat {
	t.Helper()
	x := seatOf(t, h, hub.Everything, hub.SessionOptions{Tick: true})
	x.pause = pause
	if !x.s.Await() {
		t.Fatal("a new session was not parked")
	}
	return x
}

func seatOf(t *testing.T, h *hub.Hub, g hub.Grant, opts hub.SessionOptions) *seat {
	t.Helper()
	s, err := h.Open(g, "acme", []feed.Start{{Collection: "todos"}}, opts)
	if err != nil {
		t.Fatal(err)
	}
	x := &seat{t: t, s: s}
	s.Park(x)
	t.Cleanup(func() { h.Drain(t.Context()); synctest.Wait() })
	return x
}

func (x *seat) take(b *feed.Batch) {
	for _, i := range b.Items {
		x.got = append(x.got, i.Seq)
	}
	x.replies += len(b.Replies)
	if b.Announce {
		x.lives++
	}
	if b.Tick {
		x.ticks = append(x.ticks, time.Now())
	}
}

// told is how often it was told that it is live.
func (x *seat) told() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.lives
}

// ticked is how often it was given a tick.
func (x *seat) ticked() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.ticks)
}

func (x *seat) lane() {
	for {
		b, err := x.s.Next(x.t.Context())
		if errors.Is(err, hub.ErrParked) {
			return
		}
		x.mu.Lock()
		if err != nil {
			errors.As(err, &x.ended)
			x.at = time.Now()
			x.mu.Unlock()
			x.s.Close()
			return
		}
		x.take(b)
		x.mu.Unlock()
	}
}

func (x *seat) Deliver(b *feed.Batch, _ *hub.Desk) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	time.Sleep(x.pause)
	x.pause = 0
	x.batches++
	x.take(b) // what does not fit now is the receiver's all the same
	return !x.full
}

func (x *seat) Leave() {
	x.mu.Lock()
	x.leaves++
	x.mu.Unlock()
	go x.lane()
}

func inParking(t *testing.T, fn func(t *testing.T, h *hub.Hub)) {
	synctest.Test(t, func(t *testing.T) { fn(t, open(t, feedtest.NewMemory(), hub.Options{})) })
}

func TestAParkedSessionGetsWhatIsWrittenOnceAndInOrder(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		x := sit(t, h, hub.Everything, hub.SessionOptions{Tick: true})
		write(t, h, put("todos", "0", `{}`))
		time.Sleep(time.Second) // the tick is out
		synctest.Wait()
		for i := 1; i < 20; i++ {
			write(t, h, put("todos", fmt.Sprint(i), `{}`))
			if i == 10 {
				x.s.Unpark() // and back
			}
			if i%3 == 0 {
				synctest.Wait()
			}
		}
		// More than one batch at a time, and more than a parked session gets in a row.
		large := `{"a":"` + strings.Repeat("x", 60_000) + `"}`
		for i := 20; i < 60; i++ {
			write(t, h, put("todos", fmt.Sprint(i), large))
		}
		synctest.Wait()
		var all []feed.Seq
		for i := range 60 {
			all = append(all, feed.Seq(i+1))
		}
		if !slices.Equal(x.got, all) {
			t.Error("it got", x.got)
		}
		if x.batches < 5 || x.leaves == 0 {
			t.Errorf("%d batches came while it was parked, and it left %d times", x.batches, x.leaves)
		}
	})
}

func TestAStreamThatIsParkedFromItsBeginningIsShownTheRowsAtOnceAndTicksAfterThem(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		write(t, h, put("todos", "0", `{}`))
		x := await(t, h, 0)
		synctest.Wait()
		first := time.Now()
		if !slices.Equal(x.got, []feed.Seq{1}) || x.lives != 1 || len(x.ticks) != 0 {
			t.Fatalf("at first it got %d, was told %d times that it is live, and ticked %d times", x.got, x.lives, len(x.ticks))
		}
		for i := range 10 { // what comes meanwhile neither brings the tick nor puts it off
			time.Sleep(70 * time.Millisecond)
			write(t, h, put("todos", "0", fmt.Sprintf(`{"n":%d}`, i)))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(x.ticks) != 1 || x.ticks[0].Sub(first) != 300*time.Millisecond || x.leaves != 0 || len(x.got) != 11 {
			t.Errorf("it ticked %v after %v, left %d times and got %d", x.ticks, first, x.leaves, x.got)
		}
	})
}

// TestTheTickIsASecondWriteHoweverLateTheFirstIs: else a proxy that lets only one write through
// would pass for one that lets all through.
func TestTheTickIsASecondWriteHoweverLateTheFirstIs(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		const busy = time.Second
		for range runtime.GOMAXPROCS(0) { // as many attendants
			await(t, h, busy)
		}
		x := await(t, h, 0)
		time.Sleep(busy + 250*time.Millisecond)
		synctest.Wait()
		if lives, ticks := x.told(), x.ticked(); lives != 1 || ticks != 0 {
			t.Fatalf("behind others it was told %d times that it is live, and ticked %d times", lives, ticks)
		}
		time.Sleep(2 * busy)
		synctest.Wait()
		if ticks := x.ticked(); ticks != 1 {
			t.Errorf("it ticked %d times", ticks)
		}
	})
}

// TestManyRowsOutOfSightAreGoneOverByNobodyWhomOthersWaitFor: else one who begins with a filter, or where
// many rows were removed, holds up all who are live.
func TestManyRowsOutOfSightAreGoneOverByNobodyWhomOthersWaitFor(t *testing.T) {
	const rows = 20_000
	for name, c := range map[string]struct {
		grant   hub.Grant
		removed bool
	}{
		"hidden by a filter": {of("me"), false},
		"removed":            {hub.Everything, true},
	} {
		t.Run(name, func(t *testing.T) {
			inParking(t, func(t *testing.T, h *hub.Hub) {
				for from := 0; from < rows; from += 500 {
					var puts, then []hub.Write
					for i := from; i < from+500; i++ {
						puts = append(puts, put("todos", fmt.Sprint(i), `{"owner":"her"}`))
						if c.removed {
							then = append(then, remove("todos", fmt.Sprint(i)))
						}
					}
					write(t, h, puts...)
					if len(then) > 0 {
						write(t, h, then...)
					}
				}
				last := write(t, h, put("todos", "mine", `{"owner":"me"}`))
				x := seatOf(t, h, c.grant, hub.SessionOptions{})
				x.s.Reply("answer")
				if !x.s.Await() {
					t.Fatal("a new session was not parked")
				}
				synctest.Wait()
				if x.leaves != 1 || x.replies != 1 || x.told() != 1 || !slices.Equal(x.got, []feed.Seq{last.Cursor.Seq}) {
					t.Errorf("it left %d times, was answered %d times, was told %d times that it is live, and got %d", x.leaves, x.replies, x.lives, x.got)
				}
			})
		})
	}
}

func TestAParkedSessionThatIsSlowLosesNothing(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		slow, other := sit(t, h, hub.Everything, hub.SessionOptions{}), sit(t, h, hub.Everything, hub.SessionOptions{})
		synctest.Wait()
		slow.mu.Lock()
		slow.full = true
		slow.mu.Unlock()
		for i := range 30 {
			write(t, h, put("todos", fmt.Sprint(i), `{}`))
			synctest.Wait()
		}
		if len(slow.got) != 30 || len(other.got) != 30 || slow.leaves != 30 || other.leaves != 0 {
			t.Errorf("the slow one got %d and left %d times, the other got %d and left %d times", len(slow.got), slow.leaves, len(other.got), other.leaves)
		}
	})
}

func TestAParkedSessionIsToldThatItIsLiveOnceAHeartbeat(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		x := sit(t, h, hub.Everything, hub.SessionOptions{Heartbeat: 10 * time.Second})
		synctest.Wait()
		for range 3 {
			lives := x.told()
			time.Sleep(7 * time.Second)
			write(t, h, put("todos", "1", `{}`)) // a batch is as good
			time.Sleep(10*time.Second - time.Millisecond)
			synctest.Wait()
			if n := x.told(); n != lives {
				t.Errorf("it was told %d times before it was due", n-lives)
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if n := x.told(); n != lives+1 {
				t.Errorf("it was told %d times when it was due", n-lives)
			}
		}
		if x.leaves != 0 {
			t.Errorf("it left %d times", x.leaves)
		}
	})
}

func TestAParkedSessionEndsWithItsCredential(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		began := time.Now()
		expires, taken := sit(t, h, given("ann", "1", 100*time.Second), hub.SessionOptions{}), sit(t, h, given("bob", "2", time.Hour), hub.SessionOptions{})
		longer := sit(t, h, given("eve", "3", 50*time.Second), hub.SessionOptions{})
		time.Sleep(20 * time.Second)
		if err := longer.s.Renew(given("eve", "4", 500*time.Second), "{}"); err != nil {
			t.Fatal(err)
		}
		if err := h.Revoke(t.Context(), root, hub.Revocation{Tenant: "acme", Subject: "bob"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if taken.ended == nil || taken.ended.Reason != hub.EndRevoked || taken.at.Sub(began) != 20*time.Second {
			t.Errorf("it was revoked after 20 s, and ended %+v after %s", taken.ended, taken.at.Sub(began))
		}
		time.Sleep(580 * time.Second)
		synctest.Wait()
		if expires.ended == nil || expires.ended.Reason != hub.EndExpired || expires.at.Sub(began) != 100*time.Second {
			t.Errorf("it expires after 100 s, and ended %+v after %s", expires.ended, expires.at.Sub(began))
		}
		if longer.ended == nil || longer.ended.Reason != hub.EndExpired || longer.at.Sub(began) != 520*time.Second {
			t.Errorf("it expires after 520 s, and ended %+v after %s", longer.ended, longer.at.Sub(began))
		}
	})
}

func TestAParkedSessionIsAskedAboutAtEveryHeartbeat(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		began := time.Now()
		asked := 0
		g := given("ann", "1", time.Hour)
		g.Check = func(context.Context) error {
			if asked++; asked == 3 {
				return &hub.Ended{Reason: hub.EndRevoked}
			}
			return nil
		}
		x := sit(t, h, g, hub.SessionOptions{Heartbeat: 10 * time.Second})
		time.Sleep(time.Minute)
		synctest.Wait()
		if x.ended == nil || x.ended.Reason != hub.EndRevoked || x.at.Sub(began) != 30*time.Second {
			t.Errorf("it ended %+v after %s, asked %d times", x.ended, x.at.Sub(began), asked)
		}
	})
}

// TestPanicsOfAReceiverCostItsSessionOnly: others that are served by the same attendant go on.
func TestPanicsOfAReceiverCostItsSessionOnly(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		var all []*seat
		for range 8 {
			all = append(all, sit(t, h, hub.Everything, hub.SessionOptions{}))
		}
		synctest.Wait()
		all[3].s.Park(bomb{all[3]})
		write(t, h, put("todos", "1", `{}`))
		synctest.Wait()
		write(t, h, put("todos", "2", `{}`))
		synctest.Wait()
		for i, x := range all {
			if i == 3 {
				if x.ended == nil || x.ended.Reason != hub.EndFailed {
					t.Errorf("it ended %+v", x.ended)
				}
			} else if len(x.got) != 2 {
				t.Errorf("%d got %d changes", i, len(x.got))
			}
		}
	})
}

type bomb struct{ *seat }

func (bomb) Deliver(*feed.Batch, *hub.Desk) bool { panic("boom") }

// TestASessionWhoseClientLeavesAsItIsParkedIsLetGo: else it would stay until its next heartbeat.
func TestASessionWhoseClientLeavesAsItIsParkedIsLetGo(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		s := follow(t, h, hub.Everything)
		s.Park(&seat{t: t, s: s})
		if _, err := s.Next(t.Context()); err != nil { // live
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		leave()
		s.Unpark()
		if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestAParkedPollIsHeldForAsLongAsItAskedFor(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		at := write(t, h, put("todos", "0", `{}`)).Cursor
		s, err := h.Open(hub.Everything, "acme", []feed.Start{{Collection: "todos", Cursors: []string{at.String()}}}, hub.SessionOptions{Hold: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		x := &seat{t: t, s: s, full: true} // one answer is all that it takes
		s.Park(x)
		if _, err := s.Next(t.Context()); !errors.Is(err, hub.ErrParked) {
			t.Fatal(err)
		}
		time.Sleep(19 * time.Second)
		synctest.Wait()
		if x.told() != 0 {
			t.Error("it was answered too early")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if x.told() != 1 || x.leaves != 1 {
			t.Errorf("told %d times, left %d times", x.told(), x.leaves)
		}
		h.Drain(t.Context())
		synctest.Wait()
	})
}

// TestSessionsThatStandTogetherLoseNothingWhenOneGoesItsOwnWay: what comes for all is taken once, so
// whoever is alone for a moment must neither miss what the others were given nor be given it twice.
func TestSessionsThatStandTogetherLoseNothingWhenOneGoesItsOwnWay(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		var all []*seat
		for range 40 {
			all = append(all, sit(t, h, hub.Everything, hub.SessionOptions{}))
		}
		n := 0
		more := func(value string) {
			n++
			write(t, h, put("todos", fmt.Sprint(n), value))
		}
		for range 3 { // they are served one by one, and stand together after that
			more(`{}`)
			synctest.Wait()
		}
		for i := range 60 {
			x := all[i%len(all)]
			switch i % 4 {
			case 0:
				x.s.Unpark() // and back
			case 1:
				x.s.Reply(`{"type":"done"}`)
			case 2:
				x.mu.Lock()
				x.full = !x.full
				x.mu.Unlock()
			}
			more(`{}`)
			if i%3 > 0 {
				synctest.Wait()
			}
		}
		// More than one of them gets in a row: they break up, and each goes on by itself.
		for range 40 {
			more(`{"a":"` + strings.Repeat("x", 60_000) + `"}`)
		}
		synctest.Wait()
		more(`{}`)
		synctest.Wait()
		for i, x := range all {
			for at, seq := range x.got {
				if seq != feed.Seq(at+1) {
					t.Fatalf("%d got change %d at place %d", i, seq, at)
				}
			}
			if len(x.got) != n {
				t.Errorf("%d got %d of %d changes", i, len(x.got), n)
			}
		}
	})
}

func TestSessionsThatStandTogetherGetNothingAfterTheirOwnEnd(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		began := time.Now()
		short, revoked := sit(t, h, given("ann", "1", 30*time.Second), hub.SessionOptions{}), sit(t, h, given("bob", "2", time.Hour), hub.SessionOptions{})
		rest := []*seat{sit(t, h, given("eve", "3", time.Hour), hub.SessionOptions{}), sit(t, h, hub.Everything, hub.SessionOptions{})}
		for i := range 3 {
			write(t, h, put("todos", fmt.Sprint(i), `{}`))
			synctest.Wait()
		}
		if err := h.Revoke(t.Context(), root, hub.Revocation{Tenant: "acme", Subject: "bob"}); err != nil {
			t.Fatal(err)
		}
		write(t, h, put("todos", "3", `{}`))
		time.Sleep(30*time.Second - time.Since(began)) // both are due at this moment: the end, and the change
		write(t, h, put("todos", "4", `{}`))
		synctest.Wait()
		if len(revoked.got) != 3 || revoked.ended == nil || revoked.ended.Reason != hub.EndRevoked {
			t.Errorf("the revoked one got %v and ended %+v", revoked.got, revoked.ended)
		}
		if len(short.got) != 4 || short.ended == nil || short.ended.Reason != hub.EndExpired || short.at.Sub(began) != 30*time.Second {
			t.Errorf("the one for 30 s got %v and ended %+v after %s", short.got, short.ended, short.at.Sub(began))
		}
		for _, x := range rest {
			if len(x.got) != 5 || x.ended != nil {
				t.Errorf("another got %v and ended %+v", x.got, x.ended)
			}
		}
	})
}

func TestASessionThatStoodWithOthersHearsNothingOfWhatItUnfollowed(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		x, other := sit(t, h, hub.Everything, hub.SessionOptions{}), sit(t, h, hub.Everything, hub.SessionOptions{})
		for i := range 3 {
			write(t, h, put("todos", fmt.Sprint(i), `{}`))
			synctest.Wait()
		}
		x.s.Unsubscribe([]string{"todos"}, `{"type":"done"}`)
		synctest.Wait()
		write(t, h, put("todos", "3", `{}`))
		synctest.Wait()
		if len(x.got) != 3 || len(other.got) != 4 {
			t.Errorf("it got %v, the other %v", x.got, other.got)
		}
		if err := x.s.Subscribe([]feed.Start{{Collection: "todos"}}, `{"type":"done"}`); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			write(t, h, put("todos", fmt.Sprint(4+i), `{}`))
			synctest.Wait()
		}
		if n := len(x.got) - 3; n != 7 || len(other.got) != 7 {
			t.Errorf("from nothing it got %v, the other %v", x.got[3:], other.got)
		}
	})
}

// TestACrowdThatStandsTogetherIsToldThatItIsLiveOnceAHeartbeat: more than one cohort holds.
func TestACrowdThatStandsTogetherIsToldThatItIsLiveOnceAHeartbeat(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		var all []*seat
		for range 1200 {
			all = append(all, sit(t, h, hub.Everything, hub.SessionOptions{Heartbeat: 10 * time.Second}))
		}
		for i := range 3 {
			write(t, h, put("todos", fmt.Sprint(i), `{}`))
			synctest.Wait()
		}
		began := all[0].told()
		for i := range 3 {
			time.Sleep(10*time.Second - time.Millisecond)
			synctest.Wait()
			for _, x := range all {
				if x.told() != began+i {
					t.Fatalf("told %d times before it was due", x.told()-began-i)
				}
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
			for _, x := range all {
				if x.told() != began+i+1 {
					t.Fatalf("told %d times when it was due", x.told()-began-i)
				}
			}
		}
	})
}

// heavy is a filter that takes its time.
type heavy struct{ owner }

func (f heavy) Sees(value string) bool {
	time.Sleep(50 * time.Millisecond)
	return f.owner.Sees(value)
}

// prompt is a seat that knows when the last change came.
type prompt struct {
	*seat
	came atomic.Int64 // UnixNano; 0: none did while it was parked
}

func (p *prompt) Deliver(b *feed.Batch, d *hub.Desk) bool {
	if len(b.Items) > 0 {
		p.came.Store(time.Now().UnixNano())
	}
	return p.seat.Deliver(b, d)
}

// prompts sits down a seat of that kind.
func prompts(t *testing.T, h *hub.Hub, g hub.Grant, tenant string) *prompt {
	t.Helper()
	s, err := h.Open(g, tenant, []feed.Start{{Collection: "todos"}}, hub.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := &prompt{seat: &seat{t: t, s: s}}
	s.Park(p)
	go p.lane()
	time.Sleep(time.Second)
	return p
}

func TestNobodyIsToldLateBecauseOthersSeeBySlowFilters(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		for i := range 40 {
			g := of(fmt.Sprint(i))
			g.Filters[0].Filter = heavy{owner(fmt.Sprint(i))}
			sit(t, h, g, hub.SessionOptions{})
		}
		p := prompts(t, h, hub.Everything, "globex")
		for round := range 2 { // the first time nobody knows that they are slow
			write(t, h, put("todos", "1", `{"owner":"ann"}`))
			if _, err := h.Write(t.Context(), hub.Everything, hub.Request{Tenant: "globex", Writes: []hub.Write{put("todos", "1", `{}`)}}); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			time.Sleep(5 * time.Second)
			if late := time.Unix(0, p.came.Load()).Sub(began); p.came.Load() == 0 || round > 0 && late > 100*time.Millisecond {
				t.Errorf("the follower of another tenant was told after %s", late)
			}
		}
	})
}

// hiccup is a fast filter whose goroutine is once preempted for 3 ms.
type hiccup struct {
	owner
	n *atomic.Int64
}

func (f hiccup) Sees(value string) bool {
	if f.n.Add(1) == 1 {
		time.Sleep(3 * time.Millisecond)
	}
	return f.owner.Sees(value)
}

func TestAFilterThatWasHeldUpOnceIsParkedAgain(t *testing.T) {
	inParking(t, func(t *testing.T, h *hub.Hub) {
		g := of("ann")
		g.Filters[0].Filter = hiccup{"ann", new(atomic.Int64)}
		p := prompts(t, h, g, "acme")
		write(t, h, put("todos", "first", `{"owner":"ann"}`)) // it is held up here
		time.Sleep(time.Second)
		p.came.Store(0)
		for i := range 300 {
			write(t, h, put("todos", fmt.Sprint(i), `{"owner":"ann"}`))
			time.Sleep(100 * time.Millisecond)
		}
		if p.came.Load() == 0 {
			t.Error("one stall of 3 ms, and it is not parked after 300 asks that took nothing")
		}
	})
}
