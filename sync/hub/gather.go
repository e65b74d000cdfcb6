package hub

import (
	"sync/atomic"
	"time"
)

// gathering has changes that come one by one, but fast, wait for each other. Else each has a group of its own, with a
// sync of the disk and all the threads that are woken for one: of 2,000 changes a second with five followers each that
// was 40 % of the CPU. Who waits for each answer before writing on, be it one or many, is told from those by this: after
// them nobody comes while they wait.
type gathering struct {
	on   atomic.Bool   // a group waits
	full chan struct{} // room for one: gatherMost stand in line behind it

	most time.Duration // after the group before, one that waits begins; static. The timers of a server may be 1 ms late

	// Owned by the writer.
	began time.Time   // when the group before did
	over  *time.Timer // fires when the wait is over
	worth int         // goes up when a wait was worth it, and down when it was not
	skip  int         // how many groups are not to wait
	rest  int         // how many the next time that it does not seem worth it
}

const (
	// MaxGather bounds Options.Gather.
	MaxGather = 100 * time.Millisecond
	// gatherMost ends a wait: a sync is shared by so many as it is.
	gatherMost = 16
	// gatherLeast is how many must come during a wait for it to be worth it. With 1,000 changes a second about three do: that
	// spared a fifth of the CPU and took three times the time; with 2,000 it spares 40 %.
	gatherLeast = 5

	// None is left out where every fifth is worth it: what one client sends may come in clumps.
	worthUp, worthDown, worthMost = 4, 1, 8

	restLeast = 64
	restMost  = 2048 // for who writes alone, with 0.3 ms a sync, one vain wait in so many groups is 1 % of the time
)

func newGathering(most time.Duration) *gathering {
	g := &gathering{most: most, full: make(chan struct{}, 1), over: time.NewTimer(time.Hour), skip: restLeast, rest: restLeast}
	g.over.Stop()
	return g
}

// note is called for each request before it stands in line, as the one that n makes.
func (h *Hub) note(p *Pending, n int) {
	g := h.gathering
	if !g.on.Load() {
		return
	}
	p.since = time.Since(h.began)
	if n >= gatherMost {
		select {
		case g.full <- struct{}{}:
		default:
		}
	}
}

// gather waits for company of who stands in line, where it is likely to come.
func (h *Hub) gather() {
	g := h.gathering
	now := time.Now()
	began, until := g.began, g.began.Add(g.most)
	g.began = now
	if now.Sub(began) >= g.most*3/8 || len(h.queue) >= gatherMost/4 {
		return // it is not so fast, or others came during the group before and share a sync as it is
	}
	if g.skip > 0 {
		g.skip--
		return
	}
	g.on.Store(true)
	g.over.Reset(until.Sub(now))
	select {
	case <-g.over.C:
	case <-g.full:
	}
	g.over.Stop()
	g.on.Store(false)
	select {
	case <-g.full: // it came too late
	default:
	}
	n := len(h.line)
	for h.another() {
	}
	g.began = time.Now()
	// Who waits for an answer before they write again have all come in the first half.
	last := h.line[len(h.line)-1].since
	if len(h.line)-n >= gatherLeast && last > now.Add(until.Sub(now)/2).Sub(h.began) {
		g.worth, g.rest = min(g.worth+worthUp, worthMost), restLeast
	} else if g.worth -= worthDown; g.worth < 0 {
		g.worth, g.skip, g.rest = 0, g.rest, min(2*g.rest, restMost)
	}
}
