package hub

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
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
// that nothing happened and what to do; a context that ends means that it may or may
// not happen.
func (h *Hub) Write(ctx context.Context, g Grant, req Request) (Result, error) {
	p, err := h.Begin(g, req)
	if err != nil {
		return Result{}, err
	}
	return p.Wait(ctx)
}

// Begin checks a request and puts it in line, after all that were begun before.
func (h *Hub) Begin(g Grant, req Request) (*Pending, error) {
	p := &Pending{req: req, done: make(chan struct{})}
	if err := p.prepare(g); err != nil {
		return nil, err
	}
	h.gate.RLock()
	defer h.gate.RUnlock()
	if h.closed != nil {
		return nil, unavailable(time.Second, "%s; try again in a moment", h.closed)
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
		p.size += int64(len(w.Value)+len(w.Patch)+len(w.Key)+len(w.Collection)+len(w.ID)) + 200
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

// commit appends a group and applies it. An error is a *Refusal: nothing happened.
func (h *Hub) commit(g *group, forgetTombstones, forgetIDs int64) error {
	if len(g.txns) == 0 && forgetTombstones == 0 && forgetIDs == 0 {
		return nil
	}
	if h.failed != nil {
		return unavailable(30*time.Second, "the log can't be written to: %s", h.failed)
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
		h.opts.Logger.Error("append to the log", "position", enc.Position, "err", err)
		if h.failed != nil {
			h.end(EndFailed)
		}
		return unavailable(5*time.Second, "the log did not take the write: %s", err)
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
// for good. It sets failed where somebody else writes.
func (h *Hub) append(group []byte) error {
	unknown := false
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		_, err := h.log.Append(h.ctx, h.state.position, group)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, feed.ErrFenced):
			if unknown {
				ours, rerr := h.isThere(group)
				if ours {
					return nil
				}
				if rerr != nil {
					err = fmt.Errorf("%w; reading what is there: %w", err, rerr)
				}
			}
			h.failed = err
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
			h.failed = fmt.Errorf("stopped before the outcome of an append was known: %w", err)
			return h.failed
		}
	}
}

// isThere tells whether the log's last group is this one.
func (h *Hub) isThere(group []byte) (ours bool, err error) {
	n := 0
	err = h.log.Read(h.ctx, h.state.position, func(_ feed.Position, b []byte) error {
		n++
		ours = bytes.Equal(b, group)
		return nil
	})
	return ours && n == 1 && err == nil, err
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
		if err := h.commit(h.newGroup(), tombstones, ids); err != nil {
			h.opts.Logger.Error("forget tombstones and ids", "err", err)
		}
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
	rows map[rowKey]rowState
	ids  map[tenantID]seenID

	undo []func() // of the transaction that is being decided
}

type rowKey struct{ tenant, collection, key string }

// rowState is a row as a request finds it; seq 0: not there.
type rowState struct {
	seq   feed.Seq
	value string
}

type tenantID struct {
	tenant string
	idKey
}

type seenID struct {
	digest  feed.Digest
	outcome Outcome
}

func (h *Hub) newGroup() *group {
	return &group{s: h.state, at: h.now(), next: h.state.next, rows: make(map[rowKey]rowState), ids: make(map[tenantID]seenID)}
}

// decide decides one request. An error is a *Refusal, and nothing of it happens.
func (g *group) decide(p *Pending, memory int64) (Result, error) {
	r := &p.req
	result := Result{Outcomes: make([]Outcome, len(r.Writes))}
	var records []feed.Record
	first, size, mem := g.next, g.size, g.mem
	for i := range r.Writes {
		o, rec, logged := g.one(r, &r.Writes[i], &p.writes[i])
		result.Outcomes[i] = o
		if logged {
			records = append(records, rec)
		}
		if o.Status == tooLarge {
			g.rollback(first, size, mem)
			return Result{}, refuse(TooLarge, "the row %q of %s would have more than %d bytes: split it into several rows", o.Key, r.Writes[i].Collection, MaxValue)
		}
		if r.Atomic && o.Status != OK && o.Status != Duplicate {
			result.Refused = true
		}
	}
	if result.Refused {
		g.rollback(first, size, mem)
		for i := range result.Outcomes {
			if o := &result.Outcomes[i]; o.Status == OK || o.Status == Duplicate {
				*o = Outcome{ID: o.ID, Status: Aborted}
			}
		}
		return result, nil
	}
	if g.size-size > maxTransaction {
		g.rollback(first, size, mem)
		return Result{}, refuse(TooLarge, "the rows of one request would have %d bytes; at most %d: split it", g.size-size, maxTransaction)
	}
	if grow := g.mem - mem; grow > 0 && g.s.bytes.Load()+g.mem > memory {
		g.rollback(first, size, mem)
		return Result{}, unavailable(30*time.Second, "the server's memory for rows (%d MiB, --memory) is used up: remove rows or give it more", memory>>20)
	}
	g.undo = g.undo[:0]
	result.Cursor = feed.Cursor{Epoch: g.s.epoch, Seq: g.next - 1}
	var newest feed.Seq
	for _, o := range result.Outcomes {
		if o.Status == OK || o.Status == Duplicate {
			newest = max(newest, o.Seq)
		}
	}
	if newest > 0 {
		result.Cursor.Seq = newest
	}
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
	for i := len(g.undo) - 1; i >= 0; i-- {
		g.undo[i]()
	}
	g.undo = g.undo[:0]
	g.next, g.size, g.mem = next, size, mem
}

// one decides one change; logged tells whether it leaves a record.
func (g *group) one(r *Request, w *Write, p *prepared) (o Outcome, rec feed.Record, logged bool) {
	t := g.s.lookup(r.Tenant)
	if w.ID != "" {
		if seen, ok := g.seen(t, r, w.ID); ok {
			if seen.digest == p.digest {
				o = seen.outcome
				o.ID, o.Status = w.ID, Duplicate
				return o, rec, false
			}
			key := w.Key
			if key == "" {
				key = seen.outcome.Key
			}
			row := g.row(t, rowKey{r.Tenant, w.Collection, key})
			return Outcome{ID: w.ID, Status: IDReused, Key: key, Seq: row.seq, Value: row.value}, rec, false
		}
	}
	key := rowKey{r.Tenant, w.Collection, w.Key}
	if w.Key == "" {
		key.key = uuid.Must(uuid.NewV7()).String()
	}
	row := g.row(t, key)
	o = Outcome{ID: w.ID, Key: key.key, Seq: row.seq, Value: row.value}
	rec = feed.Record{Collection: w.Collection, Key: key.key, ID: w.ID, Digest: p.digest}
	if w.If != nil && *w.If != row.seq || w.IfExists && row.seq == 0 {
		o.Status = Conflict
		return o, rec, false
	}
	switch w.Op {
	case "insert":
		if row.seq != 0 {
			o.Status = Exists
			return o, rec, false
		}
		rec.Op, rec.Value = feed.Insert, p.value
	case "put":
		rec.Op, rec.Value = feed.Insert, p.value
		if row.seq != 0 {
			rec.Op = feed.Modify
		}
	case "modify":
		if row.seq == 0 {
			o.Status = Missing
			return o, rec, false
		}
		rec.Op, rec.Value = feed.Modify, p.value
		if p.patch != "" {
			merged, err := mergePatch(row.value, p.patch)
			if err != nil {
				panic("hub: a row can't be read back: " + err.Error())
			}
			rec.Value = merged
		}
	case "remove":
		rec.Op = feed.Remove
		if row.seq == 0 {
			if w.ID == "" {
				o.Status, o.Seq = OK, g.next-1 // nothing to log; as of now it is gone
				return o, rec, false
			}
			rec.Op = feed.Noop
		}
	}
	if len(rec.Value) > MaxValue {
		o.Status = tooLarge
		return o, rec, false
	}
	o.Status, o.Seq, o.Value = OK, g.next, rec.Value
	g.next++
	size := len(rec.Value) + len(rec.Key) + len(rec.Collection) + len(rec.ID)
	g.size += size + 40
	g.mem += int64(len(rec.Value) - len(row.value))
	if rec.Value != "" { // what takes away is never refused for want of memory
		if row.seq == 0 {
			g.mem += int64(size-len(rec.Value)) + 150 + rowCost
		}
		if w.ID != "" {
			g.mem += idCost
		}
	}
	if rec.Op != feed.Noop {
		now := rowState{o.Seq, o.Value}
		if rec.Op == feed.Remove {
			now = rowState{}
		}
		set(g, g.rows, key, now)
	}
	if w.ID != "" {
		set(g, g.ids, tenantID{r.Tenant, idKey{r.Client, w.ID}}, seenID{p.digest, o})
	}
	return o, rec, true
}

// set changes an entry of the group, so that rollback can take it back.
func set[K comparable, V any](g *group, m map[K]V, key K, value V) {
	before, had := m[key]
	m[key] = value
	g.undo = append(g.undo, func() {
		if had {
			m[key] = before
		} else {
			delete(m, key)
		}
	})
}

// row is a row as it stands, after what the group did.
func (g *group) row(t *tenant, key rowKey) rowState {
	if row, ok := g.rows[key]; ok {
		return row
	}
	if t == nil {
		return rowState{}
	}
	v := t.find(key.collection)
	if v == nil {
		return rowState{}
	}
	if c := v.row(key.key); c != nil {
		return rowState{c.Seq(), c.Value()}
	}
	return rowState{}
}

// seen is what an id of this client was answered before.
func (g *group) seen(t *tenant, r *Request, id string) (seenID, bool) {
	key := idKey{r.Client, id}
	if s, ok := g.ids[tenantID{r.Tenant, key}]; ok || t == nil {
		return s, ok
	}
	record, ok := t.ids[key]
	if !ok {
		return seenID{}, false
	}
	c := record.change
	return seenID{record.digest, Outcome{Key: c.Key(), Seq: c.Seq(), Value: c.Value()}}, true
}
