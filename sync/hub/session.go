package hub

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/tidemark-sync/tidemark/sync/fault"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// SessionOptions say how a session behaves. The zero value works.
type SessionOptions struct {
	// Heartbeat is after how long without a batch a live session says that it is
	// live. Default 15 s.
	Heartbeat time.Duration
	// Hold is how long the first batch is held back where it would say nothing but
	// live: a long poll. Default 0: not at all.
	Hold time.Duration
	// Tick asks for one batch with Tick, 300 ms after the first one.
	Tick bool
	// Limit is about how many items a batch has: a transaction is not split.
	// Default, and most, 1000.
	Limit int
}

const (
	tickAfter  = 300 * time.Millisecond
	tickLater  = -1
	batchItems = 1000
	// batchHidden is how many changes out of sight a session goes over in one go: whoever
	// writes waits meanwhile.
	batchHidden = 4096
	// batchTime is for how long it asks a filter in one go, for the same reason.
	batchTime  = 5 * time.Millisecond
	batchBytes = 256 << 10 // of frames in one batch, about: what a session costs while its client is slow
	// parkedBytes is the same while it is parked: what it is left with when its client turns slow.
	parkedBytes = 32 << 10
)

// Session is one client's place in the feed. Next, and what it returns, belongs to
// one goroutine; all other methods may be called concurrently.
type Session struct {
	// Static after construction.
	ID     string
	epoch  feed.Epoch // see EpochOf
	hub    *Hub
	tenant *tenant

	heartbeat, hold time.Duration // as SessionOptions has them
	limit           int

	place place // where it is parked

	followed int // guarded by Hub.mu: what it counts for at its tenant

	// Owned by the caller of Next, or by the attendant while it is parked.
	*lane               // nil before Next, and while it is parked and nobody serves it; changed with place.mu
	sent  time.Time     // when the last batch was handed out
	asked time.Time     // when the grant's Check was
	tick  time.Duration // when its tick is due, since its hub began; 0: none is any more; tickLater: after the first batch
	held  bool          // the first batch was given, or need not be held any more

	mu      sync.Mutex
	grant   Grant    // guarded by mu
	subs    []*sub   // guarded by mu
	replies []string // guarded by mu
	live    bool     // guarded by mu: the client was told that it is live, and nothing since says otherwise
	ended   *Ended   // guarded by mu
	closed  bool     // guarded by mu
	inquiry *inquiry // guarded by mu; nil: none is under way
}

// lane is what a session needs only while it is served. It costs more than the rest of a session
// that waits, so those that are parked have none: they are lent their attendant's.
type lane struct {
	batch feed.Batch
	heap  []reader

	// Of those that Next is called for.
	wake  chan struct{} // room for one: look again
	timer *time.Timer   // nil before the first wait
}

// enter gives a session a lane for Next. Whatever it was to look at before, it looks at now.
func (s *Session) enter() {
	if s.lane != nil {
		return
	}
	l, ok := s.hub.lanes.Get().(*lane)
	if !ok {
		l = &lane{wake: make(chan struct{}, 1)}
	}
	s.place.mu.Lock()
	defer s.place.mu.Unlock()
	s.lane = l
}

// exit takes it back. It needs place.mu, with nothing in wake.
func (s *Session) exit() {
	l := s.lane
	l.rest()
	if l.timer != nil {
		l.timer.Stop()
	}
	s.lane = nil
	s.hub.lanes.Put(l)
}

// sub is one collection of a session.
type sub struct {
	view   *view
	pos    feed.Seq    // all changes up to it were handed out
	base   feed.Seq    // the view's floor when the client began from nothing: below it, pos is still good
	gone   feed.Seq    // the log's head when the client began from nothing: tombstones up to it are no news
	fresh  bool        // it begins from nothing
	empty  bool        // but it knows the log from when there was nothing in it, and must hear of what went since
	reason feed.Reason // it must be reset first

	// Where some rows only are seen.
	sieve      *sieve   // nil: all are
	vetted     feed.Seq // up to it, nothing moved out of sight that the past has forgotten,
	vettedFrom feed.Seq // as long as the past begins here
}

// Open starts a session over collections of a tenant. A *Refusal says why it does
// not. The caller must Close it.
func (h *Hub) Open(g Grant, tenant string, starts []feed.Start, opts SessionOptions) (*Session, error) {
	if opts.Heartbeat <= 0 {
		opts.Heartbeat = 15 * time.Second
	}
	if opts.Limit <= 0 || opts.Limit > batchItems {
		opts.Limit = batchItems
	}
	var id [8]byte
	rand.Read(id[:])
	now := time.Now()
	s := &Session{
		ID: hex.EncodeToString(id[:]), epoch: h.EpochOf(g), hub: h, grant: g, heartbeat: opts.Heartbeat, hold: opts.Hold, limit: opts.Limit,
		sent: now, asked: now,
	}
	if opts.Tick {
		s.tick = tickLater
	}
	if err := s.check(g, tenant, starts); err != nil {
		return nil, err
	}
	s.tenant = h.state.join(tenant)
	if err := h.register(s); err != nil {
		h.state.leave(s.tenant)
		return nil, err
	}
	// Only now: who is revoked from here on is found among the sessions, and so is whose
	// tenant is forgotten.
	var err error
	switch {
	case h.revoked(&g, tenant):
		err = revoked()
	case s.tenant.gone.Load():
		err = unavailable(time.Second, "tenant %s was forgotten at this moment: try again", tenant)
	default:
		err = h.followMore(s, different(starts, nil))
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	s.mu.Lock()
	s.follow(starts)
	s.mu.Unlock()
	return s, nil
}

// Grant is what the session may do now.
func (s *Session) Grant() Grant {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.grant
}

// Renew puts another grant in the place of the session's: it lives as long as that one,
// and done is the reply. Where it sees other rows, the session ends after it with EndExpired, and
// the next one starts anew. A *Refusal: it is another's, or does not cover what is followed, and
// nothing was changed.
func (s *Session) Renew(g Grant, done string) error {
	if err := s.hub.MayUse(g, s.tenant.name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.Subject != s.grant.Subject {
		return refuse(Forbidden, "the credential is another subject's than that of this connection: open another")
	}
	for _, u := range s.subs {
		if !g.MayRead(s.tenant.name, u.view.name) {
			return refuse(Forbidden, "the credential does not cover reading %s of tenant %s, which is followed: unsubscribe from it first", u.view.name, s.tenant.name)
		}
	}
	if s.closed || s.ended != nil {
		return nil
	}
	// With mu: who revokes it from here on finds it here.
	if s.hub.revoked(&g, s.tenant.name) {
		return revoked()
	}
	s.grant = g
	s.inquiry.stop() // whatever is said of the other one
	s.inquiry = nil
	if s.hub.EpochOf(g) != s.epoch { // its cursors are those of what the other one sees
		s.ended = &Ended{Reason: EndExpired, Detail: "the new credential sees other rows: come back with it"}
	}
	s.reply(done)
	return nil
}

// narrow lets a collection be seen through filters. It needs mu.
func (s *Session) narrow(u *sub, filters []Filter) {
	s.hub.sieves.leave(u.sieve)
	if u.sieve = s.hub.sieves.join(filters); u.sieve != nil {
		s.tenant.mu.Lock()
		u.view.remember()
		s.tenant.mu.Unlock()
	}
}

// check refuses collections that can't be followed, or not by a grant.
func (s *Session) check(g Grant, tenant string, starts []feed.Start) error {
	if err := s.hub.MayUse(g, tenant); err != nil {
		return err
	}
	if len(starts) > feed.MaxCollections {
		return refuse(TooMany, "more than %d collections in one feed: open another", feed.MaxCollections)
	}
	for _, start := range starts {
		if err := feed.CheckCollection(start.Collection); err != nil {
			return refuse(BadName, "%s", err)
		}
		if !g.MayRead(tenant, start.Collection) {
			return refuse(Forbidden, "the credential does not cover reading %s of tenant %s", start.Collection, tenant)
		}
	}
	return nil
}

// follow needs mu. A collection that is followed already starts anew.
func (s *Session) follow(starts []feed.Start) {
	for _, start := range starts {
		s.unfollow(start.Collection)
		seq, reason := start.Choose(s.epoch)
		t := s.tenant
		t.mu.Lock()
		v := t.view(start.Collection)
		v.add(s)
		t.mu.Unlock()
		fresh := seq == 0
		if fault.Bug("resend-last") && seq > 0 {
			seq--
		}
		u := &sub{view: v, pos: seq, fresh: fresh, empty: len(start.Cursors) > 0, reason: reason}
		s.narrow(u, s.grant.filters(start.Collection))
		s.subs = append(s.subs, u)
	}
	s.live = false
}

// unfollow needs mu.
func (s *Session) unfollow(collection string) {
	i := slices.IndexFunc(s.subs, func(u *sub) bool { return u.view.name == collection })
	if i < 0 {
		return
	}
	v := s.subs[i].view
	s.hub.sieves.leave(s.subs[i].sieve)
	s.subs = slices.Delete(s.subs, i, i+1)
	s.tenant.mu.Lock()
	v.drop(s)
	s.hub.state.tidy(s.tenant, v)
	s.tenant.mu.Unlock()
}

// Subscribe adds collections, with done as the reply that goes before their changes.
// One that is followed already starts anew. A *Refusal: nothing was changed.
func (s *Session) Subscribe(starts []feed.Start, done string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	added := different(starts, s.subs)
	if len(s.subs)+added > feed.MaxCollections {
		return refuse(TooMany, "more than %d collections in one feed: open another", feed.MaxCollections)
	}
	if err := s.check(s.grant, s.tenant.name, starts); err != nil {
		return err
	}
	if s.closed || s.ended != nil {
		return nil
	}
	if err := s.hub.followMore(s, added); err != nil {
		return err
	}
	s.follow(starts)
	s.reply(done)
	return nil
}

// different is how many collections are named that are none of subs, each counted once.
func different(starts []feed.Start, subs []*sub) int {
	names := make(map[string]bool, len(starts)+len(subs))
	for _, u := range subs {
		names[u.view.name] = true
	}
	for _, start := range starts {
		names[start.Collection] = true
	}
	return len(names) - len(subs)
}

// Unsubscribe drops collections; none of their changes come after the reply done.
func (s *Session) Unsubscribe(collections []string, done string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.ended != nil {
		return
	}
	had := len(s.subs)
	for _, name := range collections {
		s.unfollow(name)
	}
	_ = s.hub.followMore(s, len(s.subs)-had) // fewer are never too many
	s.reply(done)
}

// Reply puts a frame before the next changes. How many may wait is the caller's to bound.
func (s *Session) Reply(frame string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reply(frame)
}

func (s *Session) reply(frame string) {
	s.replies = append(s.replies, frame)
	s.look()
}

// End makes Next return e, once the replies are out.
func (s *Session) End(e *Ended) {
	s.mu.Lock()
	if s.ended == nil {
		s.ended = e
	}
	s.inquiry.stop()
	s.mu.Unlock()
	s.look()
}

// Close lets go of the session's place. Next must not be called any more.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.inquiry.stop()
	for len(s.subs) > 0 {
		s.unfollow(s.subs[len(s.subs)-1].view.name)
	}
	s.hub.state.leave(s.tenant)
	s.hub.unregister(s)
}

// Next returns the next batch: all that there is, up to the session's limit, as soon
// as there is anything; else live, once a heartbeat. The batch is valid until the
// next call. *Ended when the session is over, ErrParked (see Park), or the context's error.
func (s *Session) Next(ctx context.Context) (*feed.Batch, error) {
	s.enter()
	for {
		s.ask(time.Now())
		b, err := s.take()
		now := time.Now()
		if err != nil {
			return nil, err
		}
		if b = s.ticked(b, now); b != nil {
			s.sent = now
			return b, nil
		}
		if ctx.Err() == nil && s.park() {
			return nil, ErrParked
		}
		s.rest()
		wait := s.quiet() - now.Sub(s.sent)
		due := true // at the end of wait, live is due again
		if s.tick > 0 {
			if until := s.tick - now.Sub(s.hub.began); until < wait {
				wait, due = until, false
			}
		}
		if until := s.until(now); until < wait {
			wait, due = until, false
		}
		if s.timer == nil {
			s.timer = time.NewTimer(wait)
		} else {
			s.timer.Reset(wait)
		}
		select {
		case <-s.wake:
			s.timer.Stop()
			continue
		case <-ctx.Done():
			s.timer.Stop()
			return nil, ctx.Err()
		case <-s.timer.C:
		}
		if due {
			s.silent()
		}
	}
}

// ticked is what take returned, with the tick if that is due: never in one write with what came
// first, since it is to show that a second write gets through.
func (s *Session) ticked(b *feed.Batch, now time.Time) *feed.Batch {
	if s.tick == 0 {
		return b
	}
	since := now.Sub(s.hub.began)
	if s.tick == tickLater && b != nil {
		s.tick = since + tickAfter
	}
	if s.tick == tickLater || since < s.tick {
		return b
	}
	s.tick = 0
	if b == nil {
		b = &s.batch // as take left it, with nothing to say
		b.Announce = false
	}
	b.Tick = true
	return b
}

// quiet is how long after the last batch a session that is live says so.
func (s *Session) quiet() time.Duration {
	if !s.held {
		return s.hold
	}
	return s.heartbeat
}

// until is how long nothing need be looked at for the grant's sake: it ends, or must be
// asked for.
func (s *Session) until(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	until := time.Duration(1<<63 - 1)
	if !s.grant.Expires.IsZero() {
		until = s.grant.Expires.Sub(now)
	}
	if s.grant.Check != nil {
		until = min(until, s.heartbeat-now.Sub(s.asked))
	}
	return max(until, 0)
}

// inquiry is a grant's Check that is under way.
type inquiry struct{ cancel context.CancelFunc }

func (q *inquiry) stop() {
	if q != nil {
		q.cancel()
	}
}

// ask asks once a heartbeat whether the grant still holds. Whoever is to say it may take their time: the session goes on
// meanwhile.
func (s *Session) ask(now time.Time) {
	if now.Sub(s.asked) < s.heartbeat {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	check := s.grant.Check
	if check == nil {
		return
	}
	s.asked = now
	if s.inquiry != nil || s.ended != nil || s.closed {
		return
	}
	ctx, cancel := context.WithCancel(s.hub.ctx)
	q := &inquiry{cancel}
	s.inquiry = q
	s.hub.inquiries.Go(func() {
		err := s.hub.answerOf(ctx, check)
		left := ctx.Err() != nil
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.inquiry != q {
			return // it has another grant now
		}
		s.inquiry = nil
		if err == nil || left || s.ended != nil {
			return
		}
		ended := &Ended{Reason: EndRevoked}
		errors.As(err, &ended)
		s.ended = ended
		s.look()
	})
}

// answerOf makes a panic of a Check cost the session, not the process.
func (h *Hub) answerOf(ctx context.Context, check func(context.Context) error) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			h.opts.Logger.Error("panic while it was asked whether a grant still holds", "panic", panicked)
			err = &Ended{Reason: EndFailed}
		}
	}()
	return check(ctx)
}

// rest lets go of what an idle session need not hold.
func (l *lane) rest() {
	if cap(l.batch.Items) > 64 {
		l.batch.Items = nil
	}
	if cap(l.heap) > 64 {
		l.heap = nil
	}
	l.clear()
}

// clear lets go of what the last batch held, but not of the memory that it lay in.
func (l *lane) clear() {
	clear(l.batch.Items[:cap(l.batch.Items)])
	l.batch = feed.Batch{Items: l.batch.Items[:0]}
	clear(l.heap[:cap(l.heap)])
}

// errFar is take's to who serves parked sessions.
var errFar = errors.New("there is much out of sight to be gone over")

// take returns what there is to send now, nil if that is nothing.
func (s *Session) take() (*feed.Batch, error) {
	b := &s.batch
	*b = feed.Batch{Items: b.Items[:0]}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil && s.grant.over(time.Now()) {
		s.ended = &Ended{Reason: EndExpired, Retry: s.grant.Again}
	}
	if s.ended != nil && len(s.replies) == 0 {
		return nil, s.ended
	}
	b.Replies, s.replies = s.replies, nil
	if s.ended != nil && (s.ended.Reason == EndExpired || s.ended.Reason == EndRevoked) {
		return b, nil // it may hear what became of its requests, and see nothing more
	}
	for !s.gather(b) {
		over := s.grant.over(time.Now())
		if !over && !s.place.served {
			continue
		}
		if s.replies = b.Replies; over {
			return nil, nil // the next look says so
		}
		return nil, errFar // others wait for who serves it
	}
	if b.Announce && !s.held && s.hold > 0 && len(b.Items)+len(b.Resets)+len(b.Replies) == 0 {
		return nil, nil
	}
	s.live = b.Live
	if len(b.Items)+len(b.Resets)+len(b.Replies) == 0 && !b.Announce {
		return nil, nil
	}
	s.held = true
	return b, nil
}

// gather puts what there is into a batch. false: it went over so much out of sight that the
// writer gets a turn; there is nothing to hand out yet, and it must be called again. It
// needs mu.
func (s *Session) gather(b *feed.Batch) (done bool) {
	t := s.tenant
	head := feed.Seq(s.hub.state.head.Load()) // first: all up to it can be seen below
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.gone.Load() {
		return true // its end is on the way; with a cursor from after that, what is gone would be kept
	}
	head = max(head, t.applied)
	if !s.vet() {
		return false
	}
	s.reset(b, head)
	upTo, all := s.collect(b)
	b.Resumes = true
	if !all {
		head = upTo
	}
	for _, u := range s.subs {
		if fault.Bug("snapshot-tail") && all && u.pos < u.gone { // the end of a snapshot
			u.pos = head + 1
		}
		u.pos = max(u.pos, head)
		b.Resumes = b.Resumes && u.pos >= u.view.floor
	}
	b.Cursor = feed.Cursor{Epoch: s.epoch, Seq: head}
	b.Live = all || fault.Bug("live-too-early")
	b.Announce = b.Live && !s.live
	return all || len(b.Items)+len(b.Resets) > 0
}

// reset puts what can't go on from where it is back to the beginning, and says so.
// It needs mu, and the tenant's for reading.
func (s *Session) reset(b *feed.Batch, head feed.Seq) {
	for _, u := range s.subs {
		floor := u.view.floor
		switch {
		case u.reason != "":
		case u.fresh:
			u.fresh, u.base = false, floor
			if !u.empty {
				u.gone = head
			}
			continue
		case u.pos > head && !fault.Bug("snapshot-tail"):
			u.reason = feed.ResetAhead
		case u.pos < floor && u.base < floor:
			u.reason = feed.ResetExpired
		default:
			continue
		}
		i := slices.IndexFunc(b.Resets, func(r feed.Reset) bool { return r.Reason == u.reason })
		if i < 0 {
			i = len(b.Resets)
			b.Resets = append(b.Resets, feed.Reset{Reason: u.reason})
		}
		b.Resets[i].Collections = append(b.Resets[i].Collections, u.view.name)
		u.pos, u.base, u.gone, u.fresh, u.reason = 0, floor, head, false, ""
		s.live = false
	}
}

// vet looks whether rows may have moved out of sight, after a collection's place, that its
// past has forgotten; then it must be reset. false: there is more to look at, and the writer
// gets a turn. It needs mu, and the tenant's for reading.
func (s *Session) vet() (done bool) {
	looked, began := 0, time.Now()
	for _, u := range s.subs {
		if u.sieve == nil || u.reason != "" || u.fresh && !u.empty {
			continue
		}
		knew, from := max(u.pos, u.gone), u.view.past.from
		if knew >= from {
			continue
		}
		if u.vettedFrom != from {
			u.vetted, u.vettedFrom = knew, from
		}
		for r := u.view.afterAll(max(knew, u.vetted)); r.next != nil; r.advance() {
			c := r.next
			if r.step != nil {
				c = r.step.old
			}
			if c != nil && c.Seq() > knew && c.Seq() <= from && !u.sieve.sees(c) {
				u.reason = feed.ResetExpired
				break
			}
			u.vetted = r.next.Seq()
			if looked++; looked > batchHidden || time.Since(began) > batchTime {
				return false
			}
		}
	}
	return true
}

// news is a change as the reader of a collection is told of it, nil if it is not: most see
// it as it is. last is where the transaction ends of what was told before. It needs the
// tenant's mu for reading.
func (r *reader) news(last feed.Seq) *feed.Change {
	c, u := r.next, r.sub
	switch {
	case u.sieve == nil:
		// A client that began from nothing needs no tombstone from before, unless a change
		// of the same transaction was just handed out: no cursor stands between the two.
		if c.Op() == feed.Remove && (c.Seq() <= u.gone && c.Last() != last || fault.Bug("tombstone-skipped")) {
			return nil
		}
		return c
	case r.step != nil:
		return u.view.past.through(u.sieve, *r.step, c.Seq() <= u.gone)
	case u.sieve.sees(c):
		return c
	}
	return nil
}

// collect adds the items after each collection's place, merged by sequence, up to the
// limits; all tells whether there are no more, and else how far it came. It needs mu, and
// the tenant's for reading.
func (s *Session) collect(b *feed.Batch) (upTo feed.Seq, all bool) {
	h := s.heap[:0]
	for _, u := range s.subs {
		if u.view.last() > u.pos {
			read := u.view.after
			if u.sieve != nil {
				read = u.view.afterAll
			}
			if r := read(u.pos); r.next != nil {
				r.sub = u
				h = append(h, r)
			}
		}
	}
	s.heap = h
	for i := len(h)/2 - 1; i >= 0; i-- {
		down(h, i)
	}
	most := batchBytes
	if s.place.served {
		most = parkedBytes
	}
	var size, hidden int
	began, filtered := time.Now(), slices.ContainsFunc(h, func(r reader) bool { return r.sub.sieve != nil })
	var last, over feed.Seq // where the transaction of the last item ends, and that of the last change
	for len(h) > 0 {
		c := h[0].next
		if over != c.Last() && (len(b.Items) >= s.limit || size >= most || hidden >= batchHidden || upTo > 0 && filtered && time.Since(began) > batchTime) {
			return upTo, false
		}
		if news := h[0].news(last); news != nil {
			if n := len(b.Items); n > 0 && c.Last() == last {
				b.Items[n-1].More = !fault.Bug("transaction-split")
			}
			item := feed.Item{Frame: news.Frame(), Seq: c.Seq()}
			b.Items = append(b.Items, item)
			size += item.Size()
			last = c.Last()
		} else {
			hidden++
		}
		upTo, over = c.Seq(), c.Last()
		if h[0].advance(); h[0].next == nil {
			h[0] = h[len(h)-1]
			h = h[:len(h)-1]
		}
		if len(h) > 1 {
			down(h, 0)
		}
	}
	return upTo, true
}

// down restores the heap of readers, least sequence first, below i.
func down(h []reader, i int) {
	for {
		least := 2*i + 1
		if least >= len(h) {
			return
		}
		if r := least + 1; r < len(h) && h[r].next.Seq() < h[least].next.Seq() {
			least = r
		}
		if h[i].next.Seq() <= h[least].next.Seq() {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}
