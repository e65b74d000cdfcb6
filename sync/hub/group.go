package hub

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// group is one that is being built: requests decided against the state and what the
// group did before them.
type group struct {
	s        *state
	at       int64
	times    feed.Times
	next     feed.Seq
	size     int   // in the log, about
	mem      int64 // what it adds to the state's bytes, about
	decided  []*Pending
	txns     []txn
	logged   []feed.Transaction // the same, as the log has them
	records  []feed.Record      // of them: memory for more
	changes  []*feed.Change     // of them, once they are encoded
	encoder  feed.Encoder
	encoding sync.WaitGroup // they are being
	rows     overlay[rowKey, rowState]
	ids      overlay[tenantID, seenID]
	added    map[string]int // ids, by tenant
	grown    map[string]growth
	grow     growth     // rows of the request that is being decided
	due      []deadline // rows that it removes because their time is over
	crowded  bool       // there may be more of them
	rowBytes int        // what the value of a row of that request may have
	empty    bool       // it is appended though it holds nothing

	// What is forgotten after it; see feed.Group.
	forgetTombstones, forgetIDs int64
	forgetIDsOf                 []feed.IDFloor
	drop                        []string
}

// recordCost is what a record takes in the log beside its texts, even if it is a
// transaction of its own.
const recordCost = 40

// overlay is what a group does to the state, so far; what the request that is being
// decided did can be taken back.
type overlay[K comparable, V any] struct {
	now  map[K]V
	most int // entries that now had, since it was made
	undo []entry[K, V]
}

type entry[K comparable, V any] struct {
	key    K
	before V
	had    bool
}

func (o *overlay[K, V]) set(key K, value V) {
	before, had := o.now[key]
	o.undo = append(o.undo, entry[K, V]{key, before, had})
	o.now[key] = value
}

// keep makes what was done stay.
func (o *overlay[K, V]) keep() { o.undo = o.undo[:0] }

// rollback is the opposite of keep.
func (o *overlay[K, V]) rollback() {
	for _, e := range slices.Backward(o.undo) {
		if e.had {
			o.now[e.key] = e.before
		} else {
			delete(o.now, e.key)
		}
	}
	o.keep()
}

// clear empties the overlay. A map that was much larger before is not kept: to clear it costs what
// it can hold, each time.
func (o *overlay[K, V]) clear() {
	if o.most = max(o.most, len(o.now)); o.now == nil || o.most > 256 && len(o.now) < o.most/8 {
		*o = overlay[K, V]{now: make(map[K]V)}
	}
	clear(o.now)
	clear(o.undo[:cap(o.undo)])
}

type rowKey struct{ tenant, collection, key string }

// rowState is a row as a request finds it; seq 0: not there.
type rowState struct {
	seq     feed.Seq
	value   string
	last    feed.Seq // a feed that has come here shows the row so
	expires int64    // 0: never
}

type tenantID struct {
	tenant string
	idKey
}

type seenID struct {
	digest     feed.Digest
	collection string
	outcome    Outcome
	noop       bool
}

// newGroup begins a group, which commit ends; the one before it is over.
func (h *Hub) newGroup() *group {
	g := &h.group
	g.s, g.at, g.times, g.next, g.size, g.mem = h.state, max(wallOf(h.opts.Clock), h.state.at), h.times.now(), h.state.next, 0, 0
	g.due, g.crowded, g.empty, g.forgetTombstones, g.forgetIDs, g.forgetIDsOf, g.drop = nil, false, false, 0, 0, nil, nil
	if g.added == nil {
		g.added, g.grown = make(map[string]int), make(map[string]growth)
		g.clear()
	}
	return g
}

// clear lets go of what the group held, once it is over.
func (g *group) clear() {
	clear(g.txns)
	g.txns, g.due = g.txns[:0], nil
	clear(g.logged)
	g.logged = g.logged[:0]
	clear(g.records)
	g.records = g.records[:0]
	clear(g.changes)
	g.changes = g.changes[:0]
	clear(g.added)
	clear(g.grown)
	g.rows.clear()
	g.ids.clear()
}

// decide decides one request. An error is a *Refusal, and nothing of it happens.
func (g *group) decide(p *Pending, memory int64, limits *Limits) (Result, error) {
	r := &p.req
	t := g.s.lookup(r.Tenant)
	if g.crowded {
		g.expireOf(t, r)
	}
	result := Result{Outcomes: make([]Outcome, len(r.Writes)), Cursor: feed.Cursor{Epoch: p.epoch}}
	records := g.room(len(r.Writes))
	first, size, mem := g.next, g.size, g.mem
	g.rowBytes = limits.RowBytes
	before := g.grown[r.Tenant]
	g.grow = growth{}
	for i := range r.Writes {
		d := g.one(t, r, &r.Writes[i], &p.writes[i])
		result.Outcomes[i] = d.Outcome
		if p.slow() {
			g.rollback(first, size, mem)
			return Result{}, busyRows()
		}
		if d.logged {
			records = append(records, d.record)
		}
		if d.Status == tooLarge {
			g.rollback(first, size, mem)
			return Result{}, &Refusal{Code: TooLarge, Limit: LimitRowBytes,
				Detail: fmt.Sprintf("the row %q of %s would have more than %d bytes or %d elements: split it into several rows", d.Key, r.Writes[i].Collection, limits.RowBytes, MaxElements)}
		}
		if d.Status == outOfSight {
			g.rollback(first, size, mem)
			return Result{}, refuse(Forbidden, "the credential's filter for %s does not cover the row %q as it is or would be", r.Writes[i].Collection, d.Key)
		}
		// At once, so that a few small patches of large rows can't ask for all memory.
		if g.size-size > maxTransaction {
			g.rollback(first, size, mem)
			return Result{}, refuse(TooLarge, "the rows of one request would have more than %d bytes: split it", maxTransaction)
		}
		result.Cursor.Seq = max(result.Cursor.Seq, d.shown)
		if r.Atomic && d.Status != OK && d.Status != Duplicate {
			result.Refused = true
		}
	}
	if result.Refused {
		g.rollback(first, size, mem)
		for i := range result.Outcomes {
			o := &result.Outcomes[i]
			if o.Status == OK || o.Status == Duplicate {
				*o = Outcome{ID: o.ID, Status: Aborted}
				continue
			}
			// As it stands now that nothing of the transaction happened.
			row := p.writes[i].find(g.row(t, rowKey{r.Tenant, r.Writes[i].Collection, o.Key}))
			o.Seq, o.Value = row.seq, row.value
		}
		if p.cover(&result); p.slow() {
			return Result{}, busyRows()
		}
		result.Cursor = feed.Cursor{}
		return result, nil
	}
	if grow := g.mem - mem; grow > 0 && !p.own && g.s.bytes.Load()+g.mem > memory {
		g.rollback(first, size, mem)
		return Result{}, unavailable(30*time.Second, "the server's memory for rows (%d MiB, --memory) is used up: remove rows or give it more", memory>>20)
	}
	if !p.own {
		if err := g.fits(t, r.Tenant, before, g.mem-mem, limits); err != nil {
			g.rollback(first, size, mem)
			return Result{}, err
		}
	}
	if p.cover(&result); p.slow() {
		g.rollback(first, size, mem)
		return Result{}, busyRows()
	}
	g.grown[r.Tenant] = growth{before.rows + g.grow.rows, before.mem + g.mem - mem}
	g.rows.keep()
	g.ids.keep()
	if r.Atomic && len(records) > 0 {
		g.add(r, records, first)
	} else {
		for i := range records {
			g.add(r, records[i:i+1], first+feed.Seq(i))
		}
	}
	return result, nil
}

// slow tells whether others have waited long enough for the filters of a request.
func (p *Pending) slow() bool {
	a := p.writes[0].asked
	return a != nil && a.spent > askTime
}

func busyRows() error {
	return unavailable(time.Second, "the rows were changed by others meanwhile, and the credential's filter takes long to look at them again: try again, with fewer changes")
}

// room is for so many records at most, of one request.
func (g *group) room(n int) []feed.Record {
	from := len(g.records)
	if from+n > cap(g.records) {
		g.records, from = make([]feed.Record, 0, max(n, min(2*cap(g.records), 1024), 16)), 0
	}
	g.records = g.records[:from+n]
	return g.records[from : from : from+n]
}

// growth is what a group adds to a tenant.
type growth struct{ rows, mem int64 }

// fits refuses a request that would let a tenant grow beyond its limits; one that lets it
// shrink is always taken.
func (g *group) fits(t *tenant, name string, before growth, mem int64, limits *Limits) error {
	have := before
	if t != nil {
		have.rows += t.count.Load()
		have.mem += t.bytes.Load()
	}
	full := func(l Limit, what string, most int64) error {
		return &Refusal{Code: TooMany, Limit: l, Retry: 30 * time.Second,
			Detail: fmt.Sprintf("tenant %s may have %d %s, and would have more: remove rows, or ask for more", name, most, what)}
	}
	switch {
	case g.grow.rows > 0 && have.rows+g.grow.rows > limits.Rows:
		return full(LimitRows, "rows", limits.Rows)
	case mem > 0 && have.mem+mem > limits.Size:
		return full(LimitSize, "bytes of rows, tombstones and ids", limits.Size)
	}
	return nil
}

// find is a row as the caller finds it: one out of sight is not there.
func (p *prepared) find(row rowState) rowState {
	if row.seq != 0 && !p.sees(row.seq, row.value) {
		return rowState{last: row.last}
	}
	return row
}

// sees tells whether the filters let a row through, which mostly was asked before.
func (p *prepared) sees(seq feed.Seq, value string) bool {
	if len(p.filters) == 0 {
		return true
	}
	seen, ok := p.seen[seq]
	if !ok {
		seen = p.ask(p.filters, value)
		p.seen[seq] = seen
	}
	return seen
}

// covers tells the same of what is to be written.
func (p *prepared) covers(value string) bool {
	switch {
	case len(p.filters) == 0:
		return true
	case value == p.value || value == p.merged:
		return p.fits
	}
	return p.ask(p.filters, value)
}

// cover takes out of a result what the caller may not see: rows that it did not write
// itself, whole, where it may not read, and what its id once did to a row that is out of
// its sight.
func (p *Pending) cover(r *Result) {
	for i := range r.Outcomes {
		w, o := &p.writes[i], &r.Outcomes[i]
		if w.blind && (o.Status != OK || w.value == "") || o.Status != OK && o.Value != "" && !w.sees(o.Seq, o.Value) {
			o.Value = ""
		}
	}
}

// add makes records that were decided into a transaction of the group.
func (g *group) add(r *Request, records []feed.Record, first feed.Seq) {
	g.txns = append(g.txns, txn{Transaction: feed.Transaction{Tenant: r.Tenant, Client: r.Client, Records: records}, first: first})
	for i := range records {
		if records[i].ID != "" {
			g.added[r.Tenant]++
		}
	}
}

// encode makes the changes of the group.
func (g *group) encode() {
	for i := range g.txns {
		x, from := &g.txns[i], len(g.changes)
		g.changes = g.s.appendChanges(g.changes, &g.encoder, &x.Transaction, x.first, g.at)
		x.changes = g.changes[from:len(g.changes):len(g.changes)]
	}
}

// manyChanges are worth waking another processor for.
const manyChanges = 32

// appendChanges encodes the changes of a transaction whose first sequence is given.
func (s *state) appendChanges(dst []*feed.Change, e *feed.Encoder, x *feed.Transaction, first feed.Seq, at int64) []*feed.Change {
	for i := range x.Records {
		r := &x.Records[i]
		dst = append(dst, s.change(e, feed.Fields{
			Seq: first + feed.Seq(i), Collection: r.Collection, Op: r.Op, Key: r.Key, Value: r.Value,
			At: at, Client: x.Client, ID: r.ID, Tail: uint16(len(x.Records) - 1 - i),
		}))
	}
	return dst
}

func (g *group) rollback(next feed.Seq, size int, mem int64) {
	g.rows.rollback()
	g.ids.rollback()
	g.next, g.size, g.mem = next, size, mem
}

// decision is what becomes of one change.
type decision struct {
	Outcome
	record feed.Record
	logged bool     // record is to be logged
	shown  feed.Seq // a feed that has come here shows the row so
}

// one decides one change.
func (g *group) one(t *tenant, r *Request, w *Write, p *prepared) (d decision) {
	d.ID = w.ID
	if w.ID != "" {
		if seen, ok := g.seen(t, r, w.ID); ok {
			if seen.digest == p.digest {
				d.Outcome, d.shown = seen.outcome, seen.outcome.Seq
				if seen.noop {
					key := rowKey{r.Tenant, w.Collection, w.Key}
					d.shown = g.shown(t, key, p, p.find(g.row(t, key)))
				}
				d.ID, d.Status = w.ID, Duplicate
				return d
			}
			key := rowKey{r.Tenant, w.Collection, w.Key}
			if w.Key == "" && seen.collection == w.Collection && !p.blind {
				key.key = seen.outcome.Key
			}
			row := p.find(g.row(t, key))
			if d.Status, d.Key = IDReused, w.Key; row.seq != 0 || len(p.filters) == 0 {
				d.Key = key.key
			}
			d.Seq, d.Value, d.shown = row.seq, row.value, g.shown(t, key, p, row)
			return d
		}
	}
	key := rowKey{r.Tenant, w.Collection, w.Key}
	if w.Key == "" {
		key.key = uuid.Must(uuid.NewV7()).String()
	}
	there := g.row(t, key)
	row := p.find(there)
	hidden := row.seq != there.seq
	d.Key, d.Seq, d.Value, d.shown = key.key, row.seq, row.value, g.shown(t, key, p, row)
	rec := feed.Record{Collection: w.Collection, Key: key.key, ID: w.ID, Digest: p.digest}
	if w.If != nil && *w.If != row.seq || w.IfExists && row.seq == 0 {
		d.Status = Conflict
		return d
	}
	switch w.Op {
	case "insert":
		if row.seq != 0 {
			d.Status = Exists
			return d
		}
		rec.Op, rec.Value = feed.Insert, p.value
		if hidden {
			d.Status = outOfSight
			return d
		}
	case "put":
		if hidden {
			d.Status = outOfSight
			return d
		}
		rec.Op, rec.Value = feed.Insert, p.value
		if row.seq != 0 {
			rec.Op = feed.Modify
		}
	case "modify":
		if row.seq == 0 {
			d.Status = Missing
			return d
		}
		rec.Op, rec.Value = feed.Modify, p.value
		if p.patch != "" {
			merged, err := mergePatch(row.value, p.patch)
			if err != nil {
				panic("hub: a row can't be read back: " + err.Error())
			}
			rec.Value = merged
			// It is no deeper than both were, and what is short has few elements.
			if len(merged) > MaxValue || len(merged) > MaxElements && CheckBounds([]byte(merged), MaxDepth, MaxElements) != nil {
				d.Status = tooLarge
				return d
			}
		}
	case "remove":
		rec.Op = feed.Remove
		if row.seq == 0 {
			if w.ID == "" {
				d.Status, d.Seq = OK, g.next-1 // nothing to log; as of now it is gone
				return d
			}
			rec.Op = feed.Noop
		}
	}
	if rec.Op < feed.Remove {
		if len(rec.Value) > max(g.rowBytes, len(there.value)) { // what was larger before the limit got lower may shrink
			d.Status = tooLarge
			return d
		}
		if !p.covers(rec.Value) {
			d.Status = outOfSight
			return d
		}
		switch {
		case w.TTL > 0:
			rec.Expires = min(g.times.Steady+w.TTL.Milliseconds(), feed.MaxTime)
		case w.Op == "modify":
			rec.Expires = row.expires
		}
	}
	d.Status, d.Seq, d.Value, d.record, d.logged = OK, g.next, rec.Value, rec, true
	if len(p.filters) > 0 && rec.Op < feed.Remove {
		p.seen[d.Seq] = true // covers said so
	}
	g.next++
	text := len(rec.Key) + len(rec.Collection) + len(rec.ID)
	g.size += text + len(rec.Value) + recordCost + len(r.Tenant) + len(r.Client) // as if it were a transaction of its own
	g.mem += int64(len(rec.Value) - len(row.value))
	if rec.Op != feed.Remove { // what takes away is never refused for want of memory
		if row.seq == 0 {
			g.mem += int64(text) + 180 + rowCost
			if rec.Op != feed.Noop {
				g.grow.rows++
			}
		}
		if w.ID != "" {
			g.mem += idCost
		}
		if rec.Expires != 0 && row.expires == 0 {
			g.mem += deadlineCost
		}
	}
	if rec.Op != feed.Noop {
		d.shown = d.Seq
		now := rowState{d.Seq, d.Value, d.Seq, rec.Expires}
		if rec.Op == feed.Remove {
			now.seq = 0
			g.grow.rows--
		}
		g.rows.set(key, now)
	}
	if w.ID != "" {
		g.ids.set(tenantID{r.Tenant, idKey{r.Client, w.ID}}, seenID{p.digest, w.Collection, d.Outcome, rec.Op == feed.Noop})
	}
	return d
}

// row is a row as it stands, after what the group did.
func (g *group) row(t *tenant, key rowKey) rowState {
	if row, ok := g.rows.now[key]; ok {
		return row
	}
	if t == nil {
		return rowState{}
	}
	v := t.find(key.collection)
	if v == nil {
		return rowState{last: t.floor}
	}
	switch c := v.rows.get(key.key); {
	case c == nil:
		return rowState{last: max(v.floor, v.last())}
	case c.Op() == feed.Remove:
		return rowState{last: c.Seq()}
	default:
		return rowState{c.Seq(), c.Value(), c.Seq(), g.s.expiring.at[c]}
	}
}

// shown is the sequence at which a feed shows a row as the caller finds it. When a row changed that is not there
// for them is none of their business: then it is that of the collection.
func (g *group) shown(t *tenant, key rowKey, p *prepared, row rowState) feed.Seq {
	if _, ours := g.rows.now[key]; ours || row.seq != 0 || len(p.filters) == 0 || t == nil {
		return row.last
	}
	if v := t.find(key.collection); v != nil {
		return max(v.floor, v.last())
	}
	return row.last
}

// seen is what an id of this client was answered before.
func (g *group) seen(t *tenant, r *Request, id string) (seenID, bool) {
	key := idKey{r.Client, id}
	if s, ok := g.ids.now[tenantID{r.Tenant, key}]; ok || t == nil {
		return s, ok
	}
	record, ok := t.ids[key]
	if !ok {
		return seenID{}, false
	}
	c := record.change
	return seenID{record.digest, c.Collection(), Outcome{Key: c.Key(), Seq: c.Seq(), Value: c.Value()}, c.Op() == feed.Noop}, true
}
