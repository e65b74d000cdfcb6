package hub

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Request is a list of changes that a client wants. Hub.Write takes it.
type Request struct {
	Tenant string
	Client string // the writer's name for itself, "" if it has none; ids are its own
	Atomic bool   // all or nothing
	Writes []Write
}

// Write is one change of a request.
type Write struct {
	ID         string // makes it idempotent; "": it is not
	Collection string
	Op         string // insert, modify, put or remove
	Key        string // insert makes one where it is empty
	Value      []byte // JSON: insert and put, and modify where it replaces
	Patch      []byte // JSON: modify, a merge patch
	If         *feed.Seq
	IfExists   bool // the row must be there
}

// Status is how one change of a request fared.
type Status string

// The statuses.
const (
	OK        Status = "ok"
	Duplicate Status = "duplicate" // its id was seen before; answered as the first time
	Conflict  Status = "conflict"  // the row is not at the sequence that "if" names
	Exists    Status = "exists"    // insert: the row is there
	Missing   Status = "missing"   // modify: it is not
	IDReused  Status = "id-reused" // another change came under this id
	Aborted   Status = "aborted"   // another change of its transaction was refused
	tooLarge  Status = "too-large" // the row would be
)

// Outcome answers one change: with Seq and Value as the change left its row, or, where
// it was refused, as the row stands (Seq 0: it is not there).
type Outcome struct {
	ID     string
	Status Status
	Key    string
	Seq    feed.Seq
	Value  string
}

// Result answers a request. A feed that has come to Cursor shows all that it did.
type Result struct {
	Cursor   feed.Cursor
	Outcomes []Outcome // in the order of the request
	Refused  bool      // it was atomic, and nothing happened
}

// Pending is a request that stands in line.
type Pending struct {
	req    Request
	writes []prepared
	size   int64

	done   chan struct{} // closed when what follows is set
	result Result
	err    error
}

// prepared is a Write whose JSON was checked.
type prepared struct {
	value, patch string
	digest       feed.Digest
}

// Write writes a request and waits until it is durable, or refused. A *Refusal says
// what to do, and that nothing happened unless it is Unknown; a context that ends
// means that it may or may not happen.
func (h *Hub) Write(ctx context.Context, g Grant, req Request) (Result, error) {
	p, err := h.Begin(g, req)
	if err != nil {
		return Result{}, err
	}
	return p.Wait(ctx)
}

// Begin checks a request and puts it in line, after all that were begun before. The
// caller must not change what the request holds until it is answered, but for the
// bytes of values and patches, which are free when Begin returns.
func (h *Hub) Begin(g Grant, req Request) (*Pending, error) {
	p := &Pending{req: req, done: make(chan struct{})}
	if err := p.prepare(g); err != nil {
		return nil, err
	}
	h.gate.RLock()
	defer h.gate.RUnlock()
	if h.closed != nil {
		return nil, h.refused()
	}
	if h.queued.Add(p.size) <= maxQueued {
		select {
		case h.queue <- p:
			return p, nil
		default:
		}
	}
	h.queued.Add(-p.size)
	return nil, unavailable(time.Second, "too many writes are waiting; try again in a second")
}

// Wait waits for the outcome; see Write.
func (p *Pending) Wait(ctx context.Context) (Result, error) {
	select {
	case <-p.done:
		return p.result, p.err
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}

func (p *Pending) answer(r Result, err error) {
	p.result, p.err = r, err
	close(p.done)
}

// prepare checks all that can be said about a request without knowing the state.
func (p *Pending) prepare(g Grant) error {
	r := &p.req
	if err := feed.CheckTenant(r.Tenant); err != nil {
		return refuse(BadName, "%s", err)
	}
	if r.Client != "" {
		if err := feed.CheckClient(r.Client); err != nil {
			return refuse(BadName, "%s", err)
		}
	}
	if len(r.Writes) == 0 {
		return refuse(BadRequest, `changes must be a list of 1 to %d changes`, feed.MaxChanges)
	}
	if len(r.Writes) > feed.MaxChanges {
		return refuse(TooMany, "%d changes in one request; at most %d: split it", len(r.Writes), feed.MaxChanges)
	}
	for i := range r.Writes {
		w := &r.Writes[i]
		p.size += int64(len(w.Value)+len(w.Patch)+len(w.Key)+len(w.Collection)+len(w.ID)) + 200
	}
	if p.size > maxQueued/4 {
		return refuse(TooLarge, "the request has %d bytes; at most %d: split it", p.size, maxQueued/4)
	}
	p.writes = make([]prepared, len(r.Writes))
	for i := range r.Writes {
		if err := p.writes[i].check(&r.Writes[i]); err != nil {
			var refusal *Refusal
			if errors.As(err, &refusal) && len(r.Writes) > 1 {
				refusal.Detail = fmt.Sprintf("changes[%d]: %s", i, refusal.Detail)
			}
			return err
		}
		w := &r.Writes[i]
		if !g.MayWrite(r.Tenant, w.Collection) {
			return refuse(Forbidden, "the credential does not cover writing to %s of tenant %s", w.Collection, r.Tenant)
		}
	}
	return nil
}

func (p *prepared) check(w *Write) (err error) {
	if err := feed.CheckCollection(w.Collection); err != nil {
		return refuse(BadName, "%s", err)
	}
	if w.ID != "" {
		if err := feed.CheckID(w.ID); err != nil {
			return refuse(BadName, "%s", err)
		}
	}
	if w.Key != "" || w.Op != "insert" {
		if err := feed.CheckKey(w.Key); err != nil {
			return refuse(BadName, "%s", err)
		}
	}
	switch w.Op {
	case "insert", "put":
		if w.Patch != nil {
			return refuse(BadRequest, "%s takes a value, not a patch", w.Op)
		}
		p.value, err = compact("value", w.Value)
	case "modify":
		switch {
		case (w.Value == nil) == (w.Patch == nil):
			return refuse(BadRequest, "modify takes either a patch, which is merged into the row, or a value, which replaces it")
		case w.Patch != nil:
			p.patch, err = compact("patch", w.Patch)
		default:
			p.value, err = compact("value", w.Value)
		}
	case "remove":
		if w.Value != nil || w.Patch != nil {
			return refuse(BadRequest, "remove takes neither a value nor a patch")
		}
	default:
		return refuse(BadRequest, "op %q is not known: insert, modify, put or remove", cut(w.Op))
	}
	if err != nil || w.ID == "" {
		return err
	}
	b := make([]byte, 0, 64+len(w.Key)+len(p.value)+len(p.patch))
	for _, s := range []string{w.Op, w.Collection, w.Key, p.value, p.patch} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	if w.If != nil {
		b = binary.AppendUvarint(append(b, 1), uint64(*w.If))
	}
	if w.IfExists {
		b = append(b, 2)
	}
	full := sha256.Sum256(b)
	p.digest = feed.Digest(full[:16])
	return nil
}

func cut(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// Bounds of what waits for the writer.
const (
	queueLength = 4096
	maxQueued   = 64 << 20 // bytes
	// maxTransaction is what one transaction may weigh in the log: below
	// feed.MaxGroup, with room for names and headers.
	maxTransaction = 4 << 20
)

// run is the writer: it takes all that waits, decides it in order, appends it as one
// group and applies it. While one group is made durable the next one gathers.
func (h *Hub) run() {
	defer close(h.done)
	forget := time.NewTicker(h.forgetEvery())
	defer forget.Stop()
	for {
		select {
		case p := <-h.queue:
			h.write(p)
		case <-forget.C:
			h.forget()
		case <-h.stop:
			for {
				select {
				case p := <-h.queue:
					h.write(p)
					continue
				default:
				}
				return
			}
		}
	}
}

// write decides p and what waits behind it, up to a group's size, and sees it through.
func (h *Hub) write(p *Pending) {
	g := h.newGroup()
	var decided []*Pending
	for p != nil {
		h.queued.Add(-p.size)
		if result, err := g.decide(p, h.opts.Memory); err != nil {
			p.answer(Result{}, err)
		} else {
			p.result = result
			decided = append(decided, p)
		}
		p = nil
		if g.size < feed.GroupSize {
			select {
			case p = <-h.queue:
			default:
			}
		}
	}
	err := h.commit(g, 0, 0)
	for _, p := range decided {
		if err != nil {
			p.answer(Result{}, err)
		} else {
			p.answer(p.result, nil)
		}
	}
}

// commit appends a group and applies it. An error is a *Refusal.
func (h *Hub) commit(g *group, forgetTombstones, forgetIDs int64) error {
	if len(g.txns) == 0 && forgetTombstones == 0 && forgetIDs == 0 {
		return nil
	}
	if h.failed {
		h.gate.RLock()
		defer h.gate.RUnlock()
		return h.refused()
	}
	s := h.state
	enc := feed.Group{
		Epoch: s.epoch, Position: s.position + 1, First: s.next, At: g.at, Prev: s.sum,
		Transactions:     make([]feed.Transaction, len(g.txns)),
		ForgetTombstones: forgetTombstones, ForgetIDs: forgetIDs,
	}
	for i := range g.txns {
		enc.Transactions[i] = g.txns[i].Transaction
	}
	var sum feed.Sum
	h.buf, sum = feed.AppendGroup(h.buf[:0], &enc)
	if err := h.append(h.buf); err != nil {
		if now := time.Now(); now.Sub(h.told) > time.Second { // a disk that is full refuses every write
			h.told = now
			h.opts.Logger.Error("append to the log", "position", enc.Position, "err", err)
		}
		if errors.Is(err, feed.ErrUnknown) {
			return &Refusal{Code: Unavailable, Retry: 5 * time.Second, Unknown: true,
				Detail: "the log did not say whether it took the write: send it again with the same ids"}
		}
		return unavailable(5*time.Second, "the log did not take the write: try again in a moment")
	}
	s.position, s.sum, s.at = enc.Position, sum, enc.At
	touched := s.apply(g.txns)
	s.forget(forgetTombstones, forgetIDs)
	s.head.Store(uint64(s.next - 1))
	for v := range touched {
		v.wake()
	}
	h.grown(int64(len(h.buf)))
	if cap(h.buf) > 2*feed.GroupSize {
		h.buf = nil
	}
	return nil
}

// append settles what became of a group: an unknown outcome is tried again, at the
// same place with the same bytes, until the log either has it there or refuses it
// for good. Where somebody else writes, or the outcome stays unknown, the hub fails;
// feed.ErrUnknown is the error then, unless the group is certainly not there.
func (h *Hub) append(group []byte) error {
	unknown := false
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		_, err := h.log.Append(h.ctx, h.state.position, group)
		if errors.Is(err, feed.ErrFenced) && unknown {
			// Somebody may have been us.
			ours, rerr := h.isThere(group)
			switch {
			case ours:
				return nil
			case rerr != nil && !errors.Is(rerr, feed.ErrDamaged):
				err = rerr
			case rerr != nil:
				h.fail(rerr)
				return fmt.Errorf("%w: %w", feed.ErrUnknown, rerr)
			}
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, feed.ErrFenced):
			h.fail(err)
			return err
		case errors.Is(err, feed.ErrUnknown):
			unknown = true
		case !unknown:
			return err
		}
		h.opts.Logger.Warn("the outcome of an append is not known; asking again", "position", h.state.position+1, "err", err)
		select {
		case <-time.After(pause):
		case <-h.ctx.Done():
			err = fmt.Errorf("%w: stopped while asking: %w", feed.ErrUnknown, err)
			h.fail(err)
			return err
		}
	}
}

// isThere tells whether the group after the last one applied is this one.
func (h *Hub) isThere(group []byte) (ours bool, err error) {
	seen := errors.New("seen")
	err = h.log.Read(h.ctx, h.state.position, func(_ feed.Position, b []byte) error {
		ours = bytes.Equal(b, group)
		return seen
	})
	if errors.Is(err, seen) {
		err = nil
	}
	return ours, err
}

// forget lets the log say that what is older than its window is forgotten.
func (h *Hub) forget() {
	var tombstones, ids int64
	now := h.now()
	if t, ok := h.state.tombs.front(); ok && t.at < now-h.opts.Tombstones.Milliseconds() {
		tombstones = now - h.opts.Tombstones.Milliseconds()
	}
	if id, ok := h.state.ids.front(); ok && id.at < now-h.opts.IDs.Milliseconds() {
		ids = now - h.opts.IDs.Milliseconds()
	}
	if tombstones != 0 || ids != 0 {
		_ = h.commit(h.newGroup(), tombstones, ids) // it has said why; it is tried again at the next tick
	}
}

func (h *Hub) forgetEvery() time.Duration {
	return min(max(min(h.opts.Tombstones, h.opts.IDs)/20, 50*time.Millisecond), 10*time.Minute)
}

// now is the time as the log counts it: it never goes back.
func (h *Hub) now() int64 { return max(time.Now().UnixMilli(), h.state.at) }

// group is one that is being built: requests decided against the state and what the
// group did before them.
type group struct {
	s    *state
	at   int64
	next feed.Seq
	size int   // in the log, about
	mem  int64 // what it adds to the state's bytes, about
	txns []txn
	rows overlay[rowKey, rowState]
	ids  overlay[tenantID, seenID]
}

// overlay is what a group does to the state, so far; what the request that is being
// decided did can be taken back.
type overlay[K comparable, V any] struct {
	now  map[K]V
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

// clear empties the overlay. A map that was large is not kept: to clear it costs what
// it can hold, each time.
func (o *overlay[K, V]) clear() {
	if o.now == nil || len(o.now) > 256 {
		*o = overlay[K, V]{now: make(map[K]V)}
	}
	clear(o.now)
	clear(o.undo[:cap(o.undo)])
}

type rowKey struct{ tenant, collection, key string }

// rowState is a row as a request finds it; seq 0: not there.
type rowState struct {
	seq   feed.Seq
	value string
	last  feed.Seq // a feed that has come here shows the row so
}

type tenantID struct {
	tenant string
	idKey
}

type seenID struct {
	digest  feed.Digest
	outcome Outcome
	noop    bool
}

// newGroup begins a group; the one before it is over.
func (h *Hub) newGroup() *group {
	g := &h.group
	g.s, g.at, g.next, g.size, g.mem = h.state, h.now(), h.state.next, 0, 0
	clear(g.txns)
	g.txns = g.txns[:0]
	g.rows.clear()
	g.ids.clear()
	return g
}

// decide decides one request. An error is a *Refusal, and nothing of it happens.
func (g *group) decide(p *Pending, memory int64) (Result, error) {
	r := &p.req
	t := g.s.lookup(r.Tenant)
	result := Result{Outcomes: make([]Outcome, len(r.Writes)), Cursor: feed.Cursor{Epoch: g.s.epoch}}
	var records []feed.Record
	first, size, mem := g.next, g.size, g.mem
	for i := range r.Writes {
		d := g.one(t, r, &r.Writes[i], &p.writes[i])
		result.Outcomes[i] = d.Outcome
		if d.logged {
			records = append(records, d.record)
		}
		if d.Status == tooLarge {
			g.rollback(first, size, mem)
			return Result{}, refuse(TooLarge, "the row %q of %s would have more than %d bytes or %d elements: split it into several rows",
				d.Key, r.Writes[i].Collection, MaxValue, MaxElements)
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
			row := g.row(t, rowKey{r.Tenant, r.Writes[i].Collection, o.Key})
			o.Seq, o.Value = row.seq, row.value
		}
		result.Cursor = feed.Cursor{}
		return result, nil
	}
	if grow := g.mem - mem; grow > 0 && g.s.bytes.Load()+g.mem > memory {
		g.rollback(first, size, mem)
		return Result{}, unavailable(30*time.Second, "the server's memory for rows (%d MiB, --memory) is used up: remove rows or give it more", memory>>20)
	}
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

// add makes records that were decided into a transaction of the group.
func (g *group) add(r *Request, records []feed.Record, first feed.Seq) {
	x := txn{Transaction: feed.Transaction{Tenant: r.Tenant, Client: r.Client, Records: records}}
	x.changes = g.s.changes(&x.Transaction, first, g.at)
	g.txns = append(g.txns, x)
}

// changes encodes the changes of a transaction whose first sequence is given.
func (s *state) changes(x *feed.Transaction, first feed.Seq, at int64) []*feed.Change {
	changes := make([]*feed.Change, len(x.Records))
	for i := range x.Records {
		r := &x.Records[i]
		changes[i] = s.change(feed.Fields{
			Seq: first + feed.Seq(i), Collection: r.Collection, Op: r.Op, Key: r.Key, Value: r.Value,
			At: at, Client: x.Client, ID: r.ID, Tail: uint16(len(x.Records) - 1 - i),
		})
	}
	return changes
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
					d.shown = g.row(t, rowKey{r.Tenant, w.Collection, w.Key}).last
				}
				d.ID, d.Status = w.ID, Duplicate
				return d
			}
			d.Status, d.Key = IDReused, w.Key
			if d.Key == "" {
				d.Key = seen.outcome.Key
			}
			row := g.row(t, rowKey{r.Tenant, w.Collection, d.Key})
			d.Seq, d.Value, d.shown = row.seq, row.value, row.last
			return d
		}
	}
	key := rowKey{r.Tenant, w.Collection, w.Key}
	if w.Key == "" {
		key.key = uuid.Must(uuid.NewV7()).String()
	}
	row := g.row(t, key)
	d.Key, d.Seq, d.Value, d.shown = key.key, row.seq, row.value, row.last
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
	case "put":
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
			if len(merged) > MaxValue || len(merged) > MaxElements && CheckBounds([]byte(merged)) != nil {
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
	d.Status, d.Seq, d.Value, d.record, d.logged = OK, g.next, rec.Value, rec, true
	g.next++
	text := len(rec.Key) + len(rec.Collection) + len(rec.ID)
	g.size += text + len(rec.Value) + 40 + len(r.Tenant) + len(r.Client) // as if it were a transaction of its own
	g.mem += int64(len(rec.Value) - len(row.value))
	if rec.Op != feed.Remove { // what takes away is never refused for want of memory
		if row.seq == 0 {
			g.mem += int64(text) + 180 + rowCost
		}
		if w.ID != "" {
			g.mem += idCost
		}
	}
	if rec.Op != feed.Noop {
		d.shown = d.Seq
		now := rowState{d.Seq, d.Value, d.Seq}
		if rec.Op == feed.Remove {
			now.seq = 0
		}
		g.rows.set(key, now)
	}
	if w.ID != "" {
		g.ids.set(tenantID{r.Tenant, idKey{r.Client, w.ID}}, seenID{p.digest, d.Outcome, rec.Op == feed.Noop})
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
		return rowState{c.Seq(), c.Value(), c.Seq()}
	}
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
	return seenID{record.digest, Outcome{Key: c.Key(), Seq: c.Seq(), Value: c.Value()}, c.Op() == feed.Noop}, true
}
