package hub

import (
	"cmp"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tidemark-sync/tidemark/sync/fault"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// state is the fold of the log: rows, tombstones and ids seen, of all tenants. The
// writer alone changes it; sessions read it.
type state struct {
	epoch feed.Epoch // static

	// Owned by the writer.
	position feed.Position // of the last group applied
	sum      feed.Sum      // its sum
	at       int64         // its time, milliseconds; time never goes back in a log
	times    feed.Times    // and by the clocks that nobody sets
	next     feed.Seq      // the next sequence to give
	tombs    queue[tomb]   // tombstones by age
	replaced int           // of tombs: how many are no tombstone any more, because their key is there again
	expiring expiring      // the rows that have a deadline

	head    atomic.Uint64 // all changes up to this sequence can be seen
	bytes   atomic.Int64  // what rows, tombstones and ids hold, about
	rows    atomic.Int64  // rows that are there
	encoded atomic.Int64  // frames encoded since the start

	mu      sync.RWMutex
	tenants map[string]*tenant // guarded by mu
	dropped feed.Seq           // guarded by mu, changed by the writer alone: the last at which a tenant was forgotten
}

// tenant is the wall: nothing below it knows of another.
type tenant struct {
	name string // static
	refs int    // guarded by state.mu: sessions
	kept bool   // guarded by state.mu: it was written to, so it stays

	bytes atomic.Int64 // its share of state.bytes
	count atomic.Int64 // its share of state.rows
	gone  atomic.Bool  // it was forgotten: a tenant of its name is another

	refused refusals

	// Guarded by Hub.mu.
	sessions, followed int

	// Owned by the writer.
	ids     map[idKey]idRecord
	seen    queue[idRef] // ids by age
	idsGone feed.Seq     // the ids of changes up to this one are forgotten

	mu      sync.RWMutex
	views   map[string]*view // guarded by mu
	floor   feed.Seq         // guarded by mu, changed by the writer alone: the highest floor of a collection that became empty
	applied feed.Seq         // guarded by mu: the last sequence applied here
}

// idKey names a change that a client may send again. Ids are the client's own:
// those of two clients never meet.
type idKey struct{ client, id string }

type idRecord struct {
	digest feed.Digest
	change *feed.Change // what it did, and so what it was answered
	age    int64        // when, in the log's age
}

type idRef struct {
	key idKey
	age int64
}

type tomb struct {
	tenant *tenant
	view   *view
	change *feed.Change
	age    int64 // when, in the log's age
}

// txn is a transaction that was decided: what the log holds of it, and its changes
// with their frames.
type txn struct {
	feed.Transaction
	first   feed.Seq
	changes []*feed.Change
}

// What a row, its deadline, a remembered id, a collection and a tenant cost beside their
// bytes: entries of index and maps, slots, what the allocator rounds up.
const (
	rowCost      = 45
	deadlineCost = 100
	idCost       = 200
	viewCost     = 400
	tenantCost   = 600
)

func newState(epoch feed.Epoch) *state {
	return &state{epoch: epoch, next: 1, tenants: make(map[string]*tenant)}
}

// lookup returns a tenant, nil if there is none.
func (s *state) lookup(name string) *tenant {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tenants[name]
}

// join returns a tenant for a session, making it if need be; leave is its opposite.
func (s *state) join(name string) *tenant {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.make(name)
	t.refs++
	return t
}

func (s *state) leave(t *tenant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.refs--; t.refs == 0 && !t.kept && s.tenants[t.name] == t {
		delete(s.tenants, t.name)
	}
}

// keep returns a tenant that is written to.
func (s *state) keep(name string) *tenant {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.make(name)
	if !t.kept {
		t.kept = true
		s.weigh(t, tenantCost)
		// As if it were new, whether or not a session kept it.
		t.mu.Lock()
		t.floor = max(t.floor, s.dropped)
		t.mu.Unlock()
	}
	return t
}

// weigh counts what a tenant holds, or does not any more.
func (s *state) weigh(t *tenant, n int64) {
	s.bytes.Add(n)
	t.bytes.Add(n)
}

// make needs mu.
func (s *state) make(name string) *tenant {
	t := s.tenants[name]
	if t == nil {
		t = &tenant{name: strings.Clone(name), views: make(map[string]*view), ids: make(map[idKey]idRecord), floor: s.dropped}
		s.tenants[t.name] = t
	}
	return t
}

// view returns a collection, making it if need be. It needs mu for writing.
func (t *tenant) view(name string) *view {
	v := t.views[name]
	if v == nil {
		v = newView(strings.Clone(name))
		v.floor = t.floor
		t.views[v.name] = v
	}
	return v
}

// tidy lets go of a collection that holds nothing any more, and that nobody follows.
// It needs t.mu for writing.
func (s *state) tidy(t *tenant, v *view) {
	if !v.unused() || t.views[v.name] != v {
		return
	}
	delete(t.views, v.name)
	if v.kept {
		s.weigh(t, -viewCost)
	}
	if v.past != nil {
		s.weigh(t, -v.past.bytes)
	}
}

// find returns a collection, nil if there is none, for reading by the writer.
func (t *tenant) find(name string) *view {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.views[name]
}

// change encodes one change: the only place where frames are made, once each.
func (s *state) change(e *feed.Encoder, f feed.Fields) *feed.Change {
	s.encoded.Add(1)
	return e.Change(f)
}

// apply folds transactions, in the order of the log, into the state, and returns the
// collections that were touched. Those of one tenant that stand together become
// visible together.
func (s *state) apply(txns []txn) map[*view]struct{} {
	touched := make(map[*view]struct{})
	for len(txns) > 0 {
		n := 1
		for n < len(txns) && txns[n].Tenant == txns[0].Tenant {
			n++
		}
		t := s.keep(txns[0].Tenant)
		t.mu.Lock()
		for i := range txns[:n] {
			s.fold(t, &txns[i], touched)
		}
		t.mu.Unlock()
		txns = txns[n:]
	}
	return touched
}

// fold needs t.mu for writing.
func (s *state) fold(t *tenant, x *txn, touched map[*view]struct{}) {
	for i, c := range x.changes {
		r := &x.Records[i]
		s.next = c.Seq() + 1
		t.applied = c.Seq()
		if c.Op() != feed.Noop {
			v := t.view(r.Collection)
			if v.rows.n == 0 {
				v.floor = max(v.floor, t.floor) // as if it were new, whether or not a session kept it
			}
			if !fault.Bug("drop-change") || c.Seq()%97 != 0 {
				s.put(t, v, c, s.times.Age, r.Expires)
			}
			touched[v] = struct{}{}
		}
		if r.ID != "" {
			s.remember(t, idKey{x.Client, r.ID}, idRecord{r.Digest, c, s.times.Age})
		}
	}
}

// put puts a change, made at some age of the log, whose row goes by itself at expires
// (0: never). It needs t.mu for writing.
func (s *state) put(t *tenant, v *view, c *feed.Change, age, expires int64) {
	if !v.kept {
		v.kept = true
		s.weigh(t, viewCost)
	}
	live := v.live
	old := v.put(c)
	if p := v.past; p != nil {
		bytes := p.bytes
		p.add(c, old, max(pastLeast, 2*v.live), max(pastBytes, v.bytes))
		s.weigh(t, p.bytes-bytes)
	}
	s.rows.Add(int64(v.live - live))
	t.count.Add(int64(v.live - live))
	s.weigh(t, c.Size())
	if old == nil {
		s.weigh(t, rowCost)
	} else {
		if !t.pinned(old) {
			s.weigh(t, -old.Size())
		}
		if s.expiring.drop(old) {
			s.weigh(t, -deadlineCost)
		}
	}
	if expires != 0 {
		s.expiring.add(deadline{expires, c, t, v})
		s.weigh(t, deadlineCost)
	}
	if old != nil && old.Op() == feed.Remove {
		// Keys that come and go must not leave more behind than there are tombstones.
		if s.replaced++; s.replaced > 64 && s.replaced > s.tombs.len()/2 {
			s.tombs.keep(func(t tomb) bool { return t.view.rows.get(t.change.Key()) == t.change })
			s.replaced = 0
		}
	}
	if c.Op() == feed.Remove {
		s.tombs.push(tomb{t, v, c, age})
	}
}

// pinned tells whether a change that was replaced is still held by the id that it bears.
func (t *tenant) pinned(c *feed.Change) bool { return c.HasID() && c.Seq() > t.idsGone }

func (s *state) remember(t *tenant, key idKey, r idRecord) {
	key = idKey{strings.Clone(key.client), strings.Clone(key.id)}
	t.ids[key] = r
	t.seen.push(idRef{key, r.age})
	s.weigh(t, idCost+int64(len(key.client)+len(key.id)))
	if r.change.Op() == feed.Noop {
		s.weigh(t, r.change.Size())
	}
}

// forget drops tombstones and ids that are below the ages given (0: none), and ids of
// tenants up to a sequence. A tombstone's collection can't serve cursors before it any more.
func (s *state) forget(tombstones, ids int64, idsOf []feed.IDFloor) {
	for {
		next, ok := s.tombs.front()
		if !ok || next.age >= tombstones {
			break
		}
		s.tombs.pop()
		t := next.tenant
		t.mu.Lock()
		if v := next.view; v.forget(next.change) {
			s.weigh(t, -rowCost)
			if !t.pinned(next.change) {
				s.weigh(t, -next.change.Size())
			}
			if v.rows.n == 0 {
				// Its floor lives on as the tenant's, also where a session keeps the
				// collection: every fold of the log has the same floors.
				t.floor = max(t.floor, v.floor)
			}
			s.tidy(t, v)
		} else {
			s.replaced--
		}
		t.mu.Unlock()
	}
	if ids != 0 {
		for t := range s.all() {
			s.forgetIDs(t, func(ref idRef) bool { return ref.age < ids })
		}
	}
	for _, f := range idsOf {
		if t := s.lookup(f.Tenant); t != nil {
			s.forgetIDs(t, func(ref idRef) bool { return t.ids[ref.key].change.Seq() <= f.Seq })
		}
	}
}

// forgetIDs drops a tenant's oldest ids, as long as fn says so.
func (s *state) forgetIDs(t *tenant, fn func(idRef) bool) {
	for {
		next, ok := t.seen.front()
		if !ok || !fn(next) {
			return
		}
		t.seen.pop()
		c := t.ids[next.key].change
		delete(t.ids, next.key)
		if len(t.ids) == 0 {
			t.ids = make(map[idKey]idRecord) // a map that was large stays so
		}
		t.idsGone = c.Seq()
		s.weigh(t, -idCost-int64(len(next.key.client)+len(next.key.id)))
		if v := t.find(c.Collection()); v == nil || v.rows.get(c.Key()) != c {
			s.weigh(t, -c.Size())
		}
	}
}

// dropIDs is a deliberate mistake; see fault.Bug.
func (s *state) dropIDs() {
	for t := range s.all() {
		t.ids, t.seen = make(map[idKey]idRecord), queue[idRef]{}
	}
}

// all is the tenants that were written to, for the writer.
func (s *state) all() iter.Seq[*tenant] {
	return func(yield func(*tenant) bool) {
		s.mu.RLock()
		defer s.mu.RUnlock()
		for _, t := range s.tenants {
			if t.kept && !yield(t) {
				return
			}
		}
	}
}

// queue is first in, first out.
type queue[T any] struct {
	items []T
	from  int
}

func (q *queue[T]) push(item T) { q.items = append(q.items, item) }

func (q *queue[T]) len() int { return len(q.items) - q.from }

func (q *queue[T]) front() (item T, ok bool) {
	if q.from == len(q.items) {
		return item, false
	}
	return q.items[q.from], true
}

func (q *queue[T]) pop() {
	var none T
	q.items[q.from] = none
	if q.from++; q.from > len(q.items)/2 && q.from > 64 {
		q.items, q.from = slices.Clone(q.items[q.from:]), 0 // and the memory of a longer one is free
	}
}

// keep drops the items that fn does not want.
func (q *queue[T]) keep(fn func(T) bool) {
	var kept []T
	for _, item := range q.items[q.from:] {
		if fn(item) {
			kept = append(kept, item)
		}
	}
	q.items, q.from = kept, 0
}

// sorted sorts by sequence, which is the order of time in a log.
func sorted[T any](items []T, seq func(T) feed.Seq) []T {
	slices.SortFunc(items, func(a, b T) int { return cmp.Compare(seq(a), seq(b)) })
	return items
}
