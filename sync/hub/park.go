package hub

import (
	"container/heap"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Parking is where live sessions wait without a goroutine of their own: what comes for them
// is handed out by a few attendants, which never wait for a client. It is an addition to
// Next, not another way: the same batches come out of the same take, and a session that
// needs more than that (it is slow, behind or over) goes back to Next.
//
// A goroutine that is woken for each session and change costs 3 to 4 µs of CPU beside a
// write's 5, and 2.8 KB while it waits.

// Parked is what a session that is parked does with its batches.
type Parked interface {
	// Deliver sends a batch without waiting. The batch is valid until it returns. false: not
	// all of it was sent, and the session must leave; what is left is the receiver's to send.
	// It is called from one goroutine at a time; desk is that one's. What is to be sent may
	// also wait for desk.Flush, and the session is to be unparked where that can't send all of it.
	Deliver(b *feed.Batch, desk *Desk) bool
	// Leave is called once, after the last Deliver and the Flush after it: the session is not parked any more,
	// and somebody must call Next again, or Close it. It must return at once.
	Leave()
}

// ErrParked is what Next returns when the session was parked.
var ErrParked = errors.New("the session is parked")

// Desk is what one attendant keeps between deliveries: Memo is for the receivers', who can
// share what they have made of a batch with those who get the same. Flush is called when all were served
// that had to be, where receivers have set it.
type Desk struct {
	Memo  any
	Flush func()
	lane  lane // lent to the session that is served
}

// parking is a hub's. It starts with the first session that parks.
type parking struct {
	start, end sync.Once
	attendants []*attendant // static once started
	next       atomic.Uint32
	over       chan struct{} // closed at the end
	running    sync.WaitGroup
}

// dueLeast is how soon a session is due again.
const dueLeast = 100 * time.Millisecond

// mostInARow is how many batches more than one a session gets while others wait.
const mostInARow = 8

// attendant looks after a part of the parked sessions.
type attendant struct {
	hub    *Hub
	desk   Desk
	signal chan struct{} // room for one: calls has something, or arrived

	mu      sync.Mutex
	calls   []*Session // guarded by mu: they have something to look at
	arrived []*Session // guarded by mu: they were parked, and are not in due yet
	over    bool       // guarded by mu: nobody is parked any more
	sleeps  time.Time  // guarded by mu: until when; zero: not at all, or until it is woken

	// Owned by run.
	due     dues
	work    []*Session // the memory that calls and arrived do not use
	leaving []*place   // they are not parked any more, and are told so after a flush
	cohorts map[cohortKey]*cohort
	every   map[*cohort]struct{} // also those that are full
}

// place is a session's place with an attendant.
type place struct {
	attendant *attendant // static once parked
	parked    Parked

	mu     sync.Mutex
	taken  bool        // guarded by mu: it is parked
	called atomic.Bool // changed with mu: it is among calls
	leave  bool        // guarded by mu: it was asked to leave

	// Owned by the attendant while taken.
	at      time.Duration // when it is due, since its hub began
	index   int32         // in due, plus 1; 0: it is not there
	seat    int32         // its place among the members of cohort
	served  bool          // it is being served
	stands  bool          // it is a cohort's own
	cohort  *cohort       // nil: it is in none
	sub     *sub          // what it follows in it
	expires time.Time     // its grant, zero: never
}

// Park lets the session be parked with p when there is nothing to send: Next then returns
// ErrParked, and must not be called again before p.Leave was. It is called by whom Next
// belongs to.
func (s *Session) Park(p Parked) { s.place.parked = p }

// Unpark has a parked session leave; one that is not parked waits once more in Next before it
// is, where it sees that its context has ended. It may be called concurrently.
func (s *Session) Unpark() {
	p := &s.place
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leave = true
	if p.taken {
		p.call(s)
	}
}

// look has a session looked at: by Next, or by its attendant.
func (s *Session) look() {
	p := &s.place
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken {
		p.call(s)
		return
	}
	if s.lane == nil {
		return // it looks before it waits
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// call puts a session among those that its attendant looks at. It needs mu.
func (p *place) call(s *Session) {
	if p.called.Load() {
		return
	}
	p.called.Store(true)
	a := p.attendant
	a.mu.Lock()
	a.calls = append(a.calls, s)
	a.mu.Unlock()
	a.wake()
}

func (a *attendant) wake() {
	select {
	case a.signal <- struct{}{}:
	default:
	}
}

// park parks a session that has nothing to send; false: it may not, or must look again.
func (s *Session) park() bool {
	p := &s.place
	if p.parked == nil || s.slow() {
		return false
	}
	if p.attendant == nil {
		if p.attendant = s.hub.parking.assign(s.hub); p.attendant == nil {
			return false
		}
	}
	due := s.dueAt(time.Now())
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leave {
		p.leave = false
		return false
	}
	if s.lane != nil {
		select {
		case <-s.wake:
			s.wake <- struct{}{} // for the wait that follows
			return false
		default:
		}
	}
	a := p.attendant
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return false
	}
	if s.lane != nil {
		s.exit()
	}
	p.taken = true
	a.arrived = append(a.arrived, s)
	if due.Before(a.sleeps) || a.sleeps.IsZero() {
		a.wake() // else it arms when it is awake for something else
	}
	return true
}

// Await parks a session in the place of a call to Next: its attendant looks at once whether there is
// something to send. false: Next must be called. It does not wait.
func (s *Session) Await() bool {
	if !s.park() {
		return false
	}
	if !s.idle() { // after park: what comes from now on calls it
		s.look()
	}
	return true
}

// idle tells whether take would certainly find nothing.
func (s *Session) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil || len(s.replies) > 0 || s.quiet() <= 0 {
		return false
	}
	t := s.tenant
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, u := range s.subs {
		if u.sieve != nil || u.reason != "" || u.fresh || u.view.last() > u.pos {
			return false
		}
	}
	return true
}

// assign gives out attendants in turn: as many as there are processors.
func (k *parking) assign(h *Hub) *attendant {
	k.start.Do(func() {
		for range runtime.GOMAXPROCS(0) {
			a := &attendant{hub: h, signal: make(chan struct{}, 1)}
			k.attendants = append(k.attendants, a)
			k.running.Go(func() { a.run(k.over) })
		}
	})
	if len(k.attendants) == 0 {
		return nil // the end came before the start
	}
	return k.attendants[int(k.next.Add(1))%len(k.attendants)]
}

// close has all leave, and waits for that.
func (k *parking) close() {
	k.start.Do(func() {})
	k.end.Do(func() { close(k.over) })
	k.running.Wait()
}

// run serves those who are called, and those who are due.
func (a *attendant) run(over <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		a.mu.Lock()
		arrived := a.arrived
		a.arrived = nil
		calls := a.calls
		a.calls, a.work = a.work, nil
		a.sleeps = time.Time{}
		a.mu.Unlock()
		now := time.Now()
		for _, s := range arrived {
			a.arm(s, now)
		}
		for _, s := range calls {
			a.serve(s)
		}
		clear(calls)
		a.work = calls[:0]
		for now = time.Now(); len(a.due) > 0 && a.due[0].place.at <= now.Sub(a.hub.began); {
			a.serve(a.due[0])
		}
		a.flush()
		timer.Stop()
		if len(a.due) > 0 {
			timer.Reset(a.due[0].place.at - now.Sub(a.hub.began))
			a.mu.Lock()
			a.sleeps = a.hub.began.Add(a.due[0].place.at)
			a.mu.Unlock()
		}
		select {
		case <-a.signal:
		case <-timer.C:
		case <-over:
			a.close()
			return
		}
	}
}

// close has all leave.
func (a *attendant) close() {
	a.mu.Lock()
	a.over = true
	arrived := a.arrived
	a.arrived, a.calls = nil, nil
	a.mu.Unlock()
	for c := range a.every {
		members := slices.Clone(c.members)
		c.Leave()
		arrived = append(arrived, members...)
	}
	for _, s := range append(arrived, slices.Clone(a.due)...) {
		a.leave(s)
	}
	a.flush()
}

// flush has sent what was delivered, and tells those who leave.
func (a *attendant) flush() {
	if a.desk.Flush != nil {
		a.desk.Flush()
	}
	for _, p := range a.leaving {
		p.mu.Lock()
		p.leave = false // that the flush may have set
		p.mu.Unlock()
		p.parked.Leave()
	}
	clear(a.leaving)
	a.leaving = a.leaving[:0]
}

// arm sets when a session is due without being called: for a heartbeat, or its grant.
func (a *attendant) arm(s *Session, now time.Time) { a.armAt(s, s.dueAt(now)) }

// dueAt is when a session is due.
func (s *Session) dueAt(now time.Time) time.Time {
	at := s.sent.Add(s.quiet())
	if tick := s.hub.began.Add(s.tick); s.tick > 0 && tick.Before(at) {
		at = tick
	}
	if until := now.Add(s.until(now)); until.Before(at) {
		at = until
	}
	if !at.After(now) {
		at = now.Add(dueLeast) // it could not be told now what it is due for
	}
	return at
}

func (a *attendant) armAt(s *Session, at time.Time) {
	p := &s.place
	if p.at = at.Sub(a.hub.began); p.index == 0 {
		heap.Push(&a.due, s)
	} else {
		heap.Fix(&a.due, int(p.index-1))
	}
}

// disarm has it due for nothing.
func (a *attendant) disarm(p *place) {
	if p.index > 0 {
		heap.Remove(&a.due, int(p.index-1))
	}
}

// serve hands a session what there is for it. One that can't be served here leaves.
func (a *attendant) serve(s *Session) {
	p := &s.place
	p.mu.Lock()
	p.called.Store(false)
	taken, leave := p.taken, p.leave
	p.mu.Unlock()
	if !taken {
		return // it left meanwhile
	}
	if c := p.cohort; c != nil {
		if c.takeOut(s, c.at, c.live, c.sent); len(c.members) == 0 {
			c.close()
		}
	}
	if leave || !a.deliver(s) {
		a.leave(s)
		return
	}
	a.join(s)
}

// deliver tells whether the session stays.
func (a *attendant) deliver(s *Session) (stays bool) {
	d := &a.desk
	s.lane, s.place.served = &d.lane, true
	defer func() {
		stays = a.saved(recover(), s) && stays
		// What a batch held must not be held by the desk.
		s.lane.clear()
		s.lane, s.place.served = nil, false
	}()
	now := time.Now()
	s.ask(now)
	first := !s.held
	b, err := s.take()
	if b == nil && err == nil && now.Sub(s.sent) >= s.quiet() {
		s.silent()
		b, err = s.take()
	}
	if err == nil {
		b = s.ticked(b, now)
	}
	anew := first && s.held // it must be armed
	for n := 0; b != nil && err == nil; n++ {
		s.sent = now
		anew = anew || len(b.Replies) > 0
		if !a.give(s, b, d) {
			return false
		}
		if b.Live {
			break
		}
		if n == mostInARow {
			return false // it is far behind, and others wait
		}
		b, err = s.take()
	}
	if err != nil || s.slow() {
		return false // Next says it again, or goes on
	}
	// One that is due too early is looked at then, and so costs nothing for each change; but
	// a reply may say that it has another grant, and one that had nothing yet was due at once.
	if p := &s.place; p.at <= now.Sub(a.hub.began) || anew {
		a.arm(s, now)
	}
	return true
}

// give hands a batch out; false: the session must leave.
func (a *attendant) give(s *Session, b *feed.Batch, d *Desk) (took bool) {
	defer func() { took = a.saved(recover(), s) && took }()
	return s.place.parked.Deliver(b, d)
}

// saved makes a panic cost the session, not the process.
func (a *attendant) saved(panicked any, s *Session) bool {
	if panicked == nil {
		return true
	}
	a.hub.opts.Logger.Error("panic while a parked session was served", "panic", panicked)
	s.End(&Ended{Reason: EndFailed})
	return false
}

// leave ends a session's being parked.
func (a *attendant) leave(s *Session) {
	p := &s.place
	a.disarm(p)
	p.mu.Lock()
	p.taken, p.leave = false, false
	p.called.Store(false) // whatever it was called for, Next looks at
	p.mu.Unlock()
	if p.stands {
		p.parked.Leave() // so that nobody joins it any more; it sends nothing itself
		return
	}
	a.leaving = append(a.leaving, p)
}

// silent has take say live again.
func (s *Session) silent() {
	s.held = true
	s.mu.Lock()
	s.live = false
	s.mu.Unlock()
}

// dues is a heap of sessions, the next one that is due first.
type dues []*Session

func (d dues) Len() int           { return len(d) }
func (d dues) Less(i, j int) bool { return d[i].place.at < d[j].place.at }
func (d dues) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place.index, d[j].place.index = int32(i+1), int32(j+1)
}
func (d *dues) Push(x any) {
	s := x.(*Session)
	*d = append(*d, s)
	s.place.index = int32(len(*d))
}
func (d *dues) Pop() any {
	last := len(*d) - 1
	s := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	s.place.index = 0
	return s
}
