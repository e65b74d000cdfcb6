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
// needs more than that (it is slow, behind, over, or must be asked about) goes back to Next.
//
// A goroutine that is woken for each session and change costs 3 to 4 µs of CPU beside a
// write's 5, and 2.8 KB while it waits.

// Parked is what a session that is parked does with its batches.
type Parked interface {
	// Deliver sends a batch without waiting. The batch is valid until it returns. false: not
	// all of it was sent, and the session must leave; what is left is the receiver's to send.
	// It is called from one goroutine at a time; desk is that one's.
	Deliver(b *feed.Batch, desk *Desk) bool
	// Leave is called once, after the last Deliver: the session is not parked any more, and
	// somebody must call Next again, or Close it. It must return at once.
	Leave()
}

// ErrParked is what Next returns when the session was parked.
var ErrParked = errors.New("the session is parked")

// Desk is what one attendant keeps between deliveries: Memo is for the receivers', who can
// share what they have made of a batch with those who get the same.
type Desk struct {
	Memo  any
	items []feed.Item // lent to the session that is served
	heap  []reader
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

	// Owned by run.
	due  dues
	work []*Session // the memory that calls and arrived do not use
}

// place is a session's place with an attendant.
type place struct {
	attendant *attendant // static once parked
	parked    Parked

	mu     sync.Mutex
	taken  bool // guarded by mu: it is parked
	called bool // guarded by mu: it is among calls
	leave  bool // guarded by mu: it was asked to leave

	// Owned by the attendant while taken.
	at    time.Time // when it is due
	index int       // in due, plus 1; 0: it is not there
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
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// call puts a session among those that its attendant looks at. It needs mu.
func (p *place) call(s *Session) {
	if p.called {
		return
	}
	p.called = true
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
	if p.parked == nil || !s.ticked || !s.held {
		return false
	}
	if p.attendant == nil {
		if p.attendant = s.hub.parking.assign(s.hub); p.attendant == nil {
			return false
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leave {
		p.leave = false
		return false
	}
	select {
	case <-s.wake:
		s.wake <- struct{}{} // for the wait that follows
		return false
	default:
	}
	a := p.attendant
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return false
	}
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.batch, s.heap = feed.Batch{}, nil // the attendant lends its own
	p.taken = true
	a.arrived = append(a.arrived, s)
	a.wake()
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
		for now = time.Now(); len(a.due) > 0 && !a.due[0].place.at.After(now); {
			a.serve(a.due[0])
		}
		timer.Stop()
		if len(a.due) > 0 {
			timer.Reset(a.due[0].place.at.Sub(now))
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
	for _, s := range append(arrived, slices.Clone(a.due)...) {
		a.leave(s)
	}
}

// arm sets when a session is due without being called: for a heartbeat, or its grant.
func (a *attendant) arm(s *Session, now time.Time) {
	p := &s.place
	at := s.sent.Add(s.opts.Heartbeat)
	if until := now.Add(s.until(now)); until.Before(at) {
		at = until
	}
	if p.at = at; !at.After(now) {
		p.at = now.Add(dueLeast) // it could not be told now what it is due for
	}
	if p.index == 0 {
		heap.Push(&a.due, s)
	} else {
		heap.Fix(&a.due, p.index-1)
	}
}

// serve hands a session what there is for it. One that can't be served here leaves.
func (a *attendant) serve(s *Session) {
	p := &s.place
	p.mu.Lock()
	p.called = false
	taken, leave := p.taken, p.leave
	p.mu.Unlock()
	if !taken {
		return // it left meanwhile
	}
	if leave || !a.deliver(s) {
		a.leave(s)
	}
}

// deliver tells whether the session stays.
func (a *attendant) deliver(s *Session) (stays bool) {
	d := &a.desk
	s.batch.Items, s.heap = d.items[:0], d.heap[:0]
	defer func() {
		if v := recover(); v != nil {
			a.hub.opts.Logger.Error("panic while a parked session was served", "panic", v)
			s.End(&Ended{Reason: EndFailed})
			stays = false
		}
		// What a batch held must not be held by the desk.
		d.items, d.heap = s.batch.Items[:cap(s.batch.Items)], s.heap[:cap(s.heap)]
		clear(d.items)
		clear(d.heap)
		s.batch, s.heap = feed.Batch{}, nil
	}()
	now := time.Now()
	if s.mustAsk(now) {
		return false // it may take its time
	}
	b, err := s.take()
	if b == nil && err == nil && now.Sub(s.sent) >= s.opts.Heartbeat {
		s.silent()
		b, err = s.take()
	}
	renewed := false
	for n := 0; b != nil && err == nil; n++ {
		s.sent = now
		renewed = renewed || len(b.Replies) > 0
		if !s.place.parked.Deliver(b, d) {
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
	if err != nil {
		return false // Next says it again
	}
	// One that is due too early is looked at then, and so costs nothing for each change; but
	// a reply may say that it has another grant.
	if p := &s.place; !p.at.After(now) || renewed {
		a.arm(s, now)
	}
	return true
}

// leave ends a session's being parked.
func (a *attendant) leave(s *Session) {
	p := &s.place
	if p.index > 0 {
		heap.Remove(&a.due, p.index-1)
	}
	p.mu.Lock()
	p.taken, p.leave, p.called = false, false, false
	select { // whatever it was called for is to be looked at
	case s.wake <- struct{}{}:
	default:
	}
	p.mu.Unlock()
	p.parked.Leave()
}

// mustAsk tells whether the grant must be asked for.
func (s *Session) mustAsk(now time.Time) bool {
	return now.Sub(s.asked) >= s.opts.Heartbeat && s.Grant().Check != nil
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
func (d dues) Less(i, j int) bool { return d[i].place.at.Before(d[j].place.at) }
func (d dues) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place.index, d[j].place.index = i+1, j+1
}
func (d *dues) Push(x any) {
	s := x.(*Session)
	*d = append(*d, s)
	s.place.index = len(*d)
}
func (d *dues) Pop() any {
	last := len(*d) - 1
	s := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	s.place.index = 0
	return s
}
