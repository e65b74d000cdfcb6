package hub

import (
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// cohort is parked sessions of one attendant that follow the same collection and nothing else, see
// all of it and stand at the same place: what comes for one comes for all, so it is taken once. It
// has a session of its own, which is parked in their place, and which its collection wakes instead of
// them. Whatever concerns one member alone takes that one out first: then it is a parked session like
// any other, and joins again when it has been served.
//
// All of it is its attendant's.
type cohort struct {
	attendant *attendant
	key       cohortKey
	s         *Session
	members   []*Session

	// Where the members stand, which is behind s while a batch is handed out.
	at   feed.Seq
	sent time.Time
	live bool
}

type cohortKey struct {
	view      *view
	heartbeat time.Duration
}

// cohortMost is how many members a cohort has: their heartbeats come in one go, and others wait.
const cohortMost = 256

// join makes a session that was just served one of a cohort, where it can be.
func (a *attendant) join(s *Session) {
	s.mu.Lock()
	u := s.alone()
	s.mu.Unlock()
	if u == nil {
		return
	}
	key := cohortKey{u.view, s.heartbeat}
	c := a.cohorts[key]
	if c == nil || len(c.members) == cohortMost {
		c = a.newCohort(key, s, u)
	} else if a.serve(c.s); c.s == nil {
		return // all of it left
	}
	if !c.enter(s, u) && len(c.members) == 0 {
		c.close()
	}
}

// alone is a session's only subscription, if it may be one of a cohort. It needs mu.
func (s *Session) alone() *sub {
	if len(s.subs) != 1 || s.place.cohort != nil || s.place.stands || !s.live || !s.held || s.ended != nil || s.closed || len(s.replies) > 0 || s.grant.Check != nil || s.tick != 0 || s.limit != batchItems {
		return nil
	}
	if u := s.subs[0]; u.sieve == nil && u.reason == "" && !u.fresh {
		return u
	}
	return nil
}

// enter makes a session a member, unless it has something to look at.
func (c *cohort) enter(s *Session, u *sub) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.alone() != u || !c.live {
		return false
	}
	t := s.tenant
	t.mu.RLock()
	same := u.view.last() <= min(u.pos, c.at)
	t.mu.RUnlock()
	if !same {
		return false
	}
	// Nothing came between the two places, so one is as good as the other.
	c.at = max(c.at, u.pos)
	c.s.subs[0].pos = c.at
	u.view.drop(s) // with mu: it may be followed anew at any time, and is to be woken then
	p := &s.place
	c.attendant.disarm(p)
	p.cohort, p.sub, p.seat, p.expires = c, u, int32(len(c.members)), s.grant.Expires
	c.members = append(c.members, s)
	if !p.expires.IsZero() {
		c.attendant.armAt(s, p.expires)
	}
	return true
}

// newCohort begins one where a session stands.
func (a *attendant) newCohort(key cohortKey, s *Session, u *sub) *cohort {
	c := &cohort{attendant: a, key: key, at: u.pos, sent: s.sent, live: true}
	c.s = &Session{
		epoch: s.epoch, hub: s.hub, tenant: s.tenant, heartbeat: key.heartbeat, limit: batchItems,
		sent: s.sent, held: true, live: true, subs: []*sub{{view: u.view, pos: u.pos}},
	}
	c.s.place = place{attendant: a, parked: c, taken: true, stands: true}
	u.view.add(c.s)
	a.arm(c.s, time.Now())
	if a.cohorts == nil {
		a.cohorts, a.every = make(map[cohortKey]*cohort), make(map[*cohort]struct{})
	}
	a.cohorts[key], a.every[c] = c, struct{}{}
	return c
}

// close ends a cohort, whose members have left.
func (c *cohort) close() {
	a, s := c.attendant, c.s
	if s == nil {
		return
	}
	c.s = nil
	a.disarm(&s.place)
	p := &s.place
	p.mu.Lock()
	p.taken = false
	p.mu.Unlock()
	delete(a.every, c)
	if a.cohorts[c.key] == c {
		delete(a.cohorts, c.key)
	}
	t := s.tenant
	t.mu.Lock()
	c.key.view.drop(s)
	s.hub.state.tidy(t, c.key.view)
	t.mu.Unlock()
}

// takeOut makes a member a parked session of its own, at a place.
func (c *cohort) takeOut(m *Session, at feed.Seq, live bool, sent time.Time) {
	p := &m.place
	last := len(c.members) - 1
	moved := c.members[last]
	c.members[p.seat], moved.place.seat = moved, p.seat
	c.members[last] = nil
	c.members = c.members[:last]
	c.attendant.disarm(p)
	u := p.sub
	p.cohort, p.sub, p.seat, p.at = nil, nil, 0, 0
	m.sent = sent
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.subs, u) {
		return // it was unfollowed meanwhile
	}
	u.pos = max(u.pos, at)
	m.live = m.live && live
	m.tenant.mu.Lock()
	u.view.add(m)
	m.tenant.mu.Unlock()
}

// Deliver is Parked's: it hands a batch to all members that have nothing else to look at.
func (c *cohort) Deliver(b *feed.Batch, d *Desk) bool {
	if len(b.Resets) > 0 {
		return false
	}
	a, now, at := c.attendant, c.s.sent, c.s.subs[0].pos
	for i := len(c.members) - 1; i >= 0; i-- { // from the end: the last one takes the place of whoever leaves
		m := c.members[i]
		p := &m.place
		switch {
		case p.called.Load():
			c.takeOut(m, c.at, c.live, c.sent) // it is in line
		case !p.expires.IsZero() && !now.Before(p.expires):
			c.takeOut(m, c.at, c.live, c.sent)
			m.look()
		case !a.give(m, b, d):
			c.takeOut(m, at, b.Live, now)
			a.leave(m)
		}
	}
	c.at, c.live, c.sent = at, b.Live, now
	return len(c.members) > 0
}

// Leave is Parked's: the cohort breaks up.
func (c *cohort) Leave() {
	for len(c.members) > 0 {
		m := c.members[len(c.members)-1]
		c.takeOut(m, c.at, c.live, c.sent)
		m.look()
	}
	c.close()
}
