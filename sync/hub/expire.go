package hub

import (
	"cmp"
	"container/heap"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// MaxTTL is the longest time that a row may be given to live.
const MaxTTL = 10 * 365 * 24 * time.Hour

// expiring is the rows that go by themselves. It is owned by the writer.
type expiring struct {
	at   map[*feed.Change]int64 // their deadlines, in the log's steady time
	next deadlines              // the same as a heap, and some that were dropped since
}

// deadline is when a row goes, unless it has changed by then.
type deadline struct {
	at     int64
	change *feed.Change
	tenant *tenant
	view   *view
}

func (e *expiring) add(d deadline) {
	if e.at == nil {
		e.at = make(map[*feed.Change]int64)
	}
	e.at[d.change] = d.at
	heap.Push(&e.next, d)
}

// drop forgets the deadline of a change, and tells whether it had one.
func (e *expiring) drop(c *feed.Change) bool {
	if _, ok := e.at[c]; !ok {
		return false
	}
	if delete(e.at, c); len(e.at) == 0 {
		*e = expiring{} // a map that was large stays so
	}
	// Rows that are written again and again must not leave more behind than there are rows.
	if len(e.next) > 64 && len(e.next) > 2*len(e.at) {
		kept := make(deadlines, 0, len(e.at)*5/4)
		for _, d := range e.next {
			if e.holds(d) {
				kept = append(kept, d)
			}
		}
		e.next = kept
		heap.Init(&e.next)
	}
	return true
}

func (e *expiring) holds(d deadline) bool { _, ok := e.at[d.change]; return ok }

// first is the next deadline.
func (e *expiring) first() (d deadline, ok bool) {
	for len(e.next) > 0 {
		if e.holds(e.next[0]) {
			return e.next[0], true
		}
		heap.Pop(&e.next)
	}
	return d, false
}

// take takes out the rows that are due, in the order of their deadlines, at most some;
// they are put back unless they go.
func (e *expiring) take(now int64, most int) (due []deadline) {
	for len(due) < most {
		d, ok := e.first()
		if !ok || d.at > now {
			break
		}
		due = append(due, d)
		heap.Pop(&e.next)
	}
	return due
}

func (e *expiring) putBack(due []deadline) {
	for _, d := range due {
		heap.Push(&e.next, d)
	}
}

// deadlines is a heap, the next one first; of the same time, in the order of the log.
type deadlines []deadline

func (d deadlines) Len() int { return len(d) }
func (d deadlines) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(d[i].at, d[j].at), cmp.Compare(d[i].change.Seq(), d[j].change.Seq())) < 0
}
func (d deadlines) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *deadlines) Push(x any)   { *d = append(*d, x.(deadline)) }
func (d *deadlines) Pop() any {
	last := len(*d) - 1
	x := (*d)[last]
	(*d)[last] = deadline{}
	*d = (*d)[:last]
	return x
}

// maxExpired is how many rows that are due go in one group.
const maxExpired = feed.MaxChanges

// expire removes what is due, before anything else of the group.
func (g *group) expire() {
	g.due = g.s.expiring.take(g.times.Steady, maxExpired)
	for _, d := range g.due {
		g.remove(d.tenant.name, d.view.name, d.change.Key())
	}
	g.crowded = len(g.due) == maxExpired
}

// expireOf removes the rows of a request that are due though expire left them for later:
// nobody finds a row after its deadline.
func (g *group) expireOf(t *tenant, r *Request) {
	if t == nil {
		return
	}
	for i := range r.Writes {
		w := &r.Writes[i]
		row := g.row(t, rowKey{r.Tenant, w.Collection, w.Key})
		if row.seq != 0 && row.expires != 0 && row.expires <= g.times.Steady {
			g.remove(r.Tenant, w.Collection, w.Key)
		}
	}
}

// remove removes a row that is there: a transaction of its own, and nobody's.
func (g *group) remove(tenant, collection, key string) {
	seq := g.next
	g.next++
	g.size += len(key) + len(collection) + len(tenant) + recordCost
	grown := g.grown[tenant]
	grown.rows--
	g.grown[tenant] = grown
	g.rows.set(rowKey{tenant, collection, key}, rowState{last: seq})
	g.rows.keep()
	g.add(&Request{Tenant: tenant}, []feed.Record{{Op: feed.Remove, Collection: collection, Key: key}}, seq)
}

// Waking up for deadlines: at the next one, and once a minute while there is any, since
// Go's timers stand still while the machine sleeps.
const (
	wakeMost  = time.Minute
	wakeAgain = time.Second // after the log did not take it
)

// expire removes what is due, without waiting for a write.
func (h *Hub) expire() {
	if h.expireLate = h.log.Ready() != nil; h.expireLate {
		return
	}
	g := h.newGroup()
	g.expire()
	h.expireLate = h.commit(g) != nil // it has said why
}

// untilDeadline is when to look for what is due, negative for never.
func (h *Hub) untilDeadline() time.Duration {
	d, ok := h.state.expiring.first()
	if !ok || h.failed {
		return -1
	}
	if h.expireLate {
		return wakeAgain
	}
	return min(time.Duration(max(d.at-h.times.now().Steady, 0))*time.Millisecond, wakeMost)
}

// checkTTL refuses a time to live that a write can't have.
func (w *Write) checkTTL() error {
	switch {
	case w.TTL == 0:
		return nil
	case w.Op == "remove":
		return refuse(BadRequest, "remove takes no ttl: leave it out")
	case w.TTL < time.Second || w.TTL > MaxTTL:
		return refuse(BadRequest, "ttl must be 1 to %d seconds (10 years); for a row that lives for ever leave it out", int(MaxTTL.Seconds()))
	}
	return nil
}
