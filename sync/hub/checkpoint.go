package hub

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/sync/fault"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// A checkpoint is the state written down, so that the log before it can go. It is a
// list of entries in parts, "tmc" 2 number entry… sum[16]. The sum is over the part alone,
// and a part begins with the head and, where its first entry is of a tenant or a
// collection that began in a part before, with that one's entry again: so each can be
// read and verified without the others. The end's sum is over the sums of all parts
// before its own: they are all there, and in order. Numbers are unsigned varints, parts
// count from 1, strings have their length before them:
//
//	head        'h' epoch position sum[16] at age steady boot up next
//	dropped     'd' seq      the last at which a tenant was forgotten: only where one was, after the first head
//	tenant      't' name floor idsGone
//	collection  'c' name floor      of the tenant before it
//	change      'r' seq op tail at key client id value expires      of the collection before it, by sequence; of a remove, its age instead of expires
//	id          'i' client id digest[16] age seq collection key held [op tail at key client id value]      of the tenant before it
//	end         'e' changes ids sum[16]
//
// Version 1, which is still read, had one head with one idsGone for all, after next; no
// numbers, no ages (they are the times), no expires, and the sum of a part was over it and
// the sum of the part before it.
const (
	checkpointMagic = "tmc\x02"
	checkpointFirst = "tmc\x01"
)

const (
	// partSize is where a part is closed: beyond it there is room for one entry more, the
	// largest being a change with a value of MaxValue.
	partSize = feed.MaxPart - MaxValue - 16<<10
	sumSize  = 16
)

// saving is a checkpoint that is being saved.
type saving struct {
	bytes int64         // of the log that it replaces
	over  chan struct{} // closed when it is over, and err is set
	err   error
}

// grown is called by the writer after each group: it saves a checkpoint when the log
// has grown enough.
func (h *Hub) grown(n int64) {
	h.logBytes += n
	h.lookSaved()
	if h.checkpoint == nil && h.logBytes >= h.saveAt && !h.failed {
		h.save()
	}
}

// save begins to save a checkpoint, one at a time. It is called by the writer.
func (h *Hub) save() {
	c := &saving{bytes: h.logBytes, over: make(chan struct{})}
	h.checkpoint = c
	frozen := h.state.freeze()
	h.saving.Go(func() {
		defer close(c.over)
		fault.Point("checkpoint-begin")
		if c.err = h.log.SaveCheckpoint(h.ctx, frozen.position, frozen.parts()); c.err != nil {
			return
		}
		fault.Point("checkpoint-saved")
		if c.err = h.log.Trim(h.ctx, frozen.position); c.err == nil {
			fault.Point("trimmed")
		}
	})
}

// lookSaved looks how the checkpoint went, if it is over. It is called by the writer.
func (h *Hub) lookSaved() {
	c := h.checkpoint
	if c == nil {
		return
	}
	select {
	case <-c.over:
		h.checkpoint = nil
	default:
		return
	}
	h.plan()
	switch {
	case c.err == nil:
		h.logBytes -= c.bytes
	case h.ctx.Err() != nil: // stopping: the log has it all
	case errors.Is(c.err, feed.ErrDamaged):
		h.opts.Logger.Error("save a checkpoint and trim the log", "err", c.err)
		h.fail(c.err)
	default:
		h.opts.Logger.Error("save a checkpoint; the log is kept, and it is tried again when it has grown", "err", c.err)
		h.saveAt = h.logBytes + h.opts.Log
	}
}

// Renew gives the state in memory, which is whole, to rewrite, which puts a new log in the
// place of one whose files are damaged. rewrite must call save, once the new log takes
// groups: it appends one that holds nothing, and saves a checkpoint of it. Writers wait.
func (h *Hub) Renew(ctx context.Context, rewrite func(ctx context.Context, save func(context.Context) error) error) error {
	var err error
	werr := h.inWriter(ctx, func() {
		if c := h.checkpoint; c != nil { // it was of the old log: what became of it does not count
			<-c.over
			h.checkpoint = nil
		}
		h.saveAt = 1<<63 - 1
		err = rewrite(ctx, func(ctx context.Context) error {
			g := h.newGroup()
			g.empty = true
			if err := h.commit(g); err != nil {
				return err
			}
			f := h.state.freeze()
			return h.log.SaveCheckpoint(ctx, f.position, f.parts())
		})
		if err == nil {
			h.logBytes = 0
		}
		h.plan()
	})
	if werr != nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("renew the log: %w", err)
	}
	return nil
}

// plan says when the next checkpoint is due.
func (h *Hub) plan() { h.saveAt = max(h.opts.Log, h.state.bytes.Load()) }

// frozen is the state at one position: the changes are immutable, so only the lists
// of them are copied.
type frozen struct {
	epoch    feed.Epoch
	position feed.Position
	sum      feed.Sum
	at       int64
	times    feed.Times
	next     feed.Seq
	dropped  feed.Seq
	tenants  []frozenTenant
	ages     []aged                 // of the tombstones, by sequence
	expires  map[*feed.Change]int64 // of the rows that have a deadline
}

// aged is the age of the change at seq.
type aged struct {
	seq feed.Seq
	age int64
}

type frozenTenant struct {
	name    string
	floor   feed.Seq
	idsGone feed.Seq
	views   []frozenView
	ids     []frozenID
}

type frozenView struct {
	name    string
	floor   feed.Seq
	changes []*feed.Change
}

type frozenID struct {
	key    idKey
	record idRecord
	held   bool // the record's change is no row's any more: it must be written whole
}

// freeze is called by the writer.
func (s *state) freeze() *frozen {
	f := &frozen{epoch: s.epoch, position: s.position, sum: s.sum, at: s.at, times: s.times, next: s.next, expires: maps.Clone(s.expiring.at)}
	f.ages = make([]aged, 0, s.tombs.len())
	for _, t := range s.tombs.items[s.tombs.from:] {
		f.ages = append(f.ages, aged{t.change.Seq(), t.age})
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	f.dropped = s.dropped
	for _, t := range s.tenants {
		if !t.kept {
			continue
		}
		t.mu.RLock()
		ft := frozenTenant{name: t.name, floor: t.floor, idsGone: t.idsGone}
		for _, v := range t.views {
			if v.rows.n == 0 {
				continue // its floor is the tenant's
			}
			fv := frozenView{name: v.name, floor: v.floor, changes: make([]*feed.Change, 0, v.rows.n)}
			for _, slot := range v.slots {
				if slot.change != nil {
					fv.changes = append(fv.changes, slot.change)
				}
			}
			ft.views = append(ft.views, fv)
		}
		for key, r := range t.ids {
			v := t.views[r.change.Collection()]
			held := v == nil || v.rows.get(r.change.Key()) != r.change
			ft.ids = append(ft.ids, frozenID{key, r, held})
		}
		t.mu.RUnlock()
		f.tenants = append(f.tenants, ft)
	}
	return f
}

// parts encodes the state, a part at a time.
func (f *frozen) parts() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		var p partWriter
		p.yield = yield
		p.begin('h')
		p.text(string(f.epoch))
		p.uint(uint64(f.position))
		p.buf = append(p.buf, f.sum[:]...)
		p.uint(uint64(f.at))
		p.buf = f.times.Append(p.buf)
		p.uint(uint64(f.next))
		p.head = p.last()
		if f.dropped > 0 {
			p.begin('d')
			p.uint(uint64(f.dropped))
		}
		var changes, ids uint64
		for _, t := range f.tenants {
			p.begin('t')
			p.text(t.name)
			p.uint(uint64(t.floor))
			p.uint(uint64(t.idsGone))
			p.tenant = p.last()
			for _, v := range t.views {
				p.begin('c')
				p.text(v.name)
				p.uint(uint64(v.floor))
				p.view = p.last()
				for _, c := range v.changes {
					p.begin('r')
					p.uint(uint64(c.Seq()))
					p.change(c)
					if c.Op() == feed.Remove {
						p.uint(uint64(f.age(c)))
					} else {
						p.uint(uint64(f.expires[c]))
					}
					changes++
				}
			}
			for _, id := range t.ids {
				p.begin('i')
				p.text(id.key.client)
				p.text(id.key.id)
				p.buf = append(p.buf, id.record.digest[:]...)
				p.uint(uint64(id.record.age))
				p.uint(uint64(id.record.change.Seq()))
				p.text(id.record.change.Collection())
				p.text(id.record.change.Key())
				if id.held {
					p.buf = append(p.buf, 1)
					p.change(id.record.change)
				} else {
					p.buf = append(p.buf, 0)
				}
				ids++
			}
		}
		p.begin('e')
		p.uint(changes)
		p.uint(ids)
		p.buf = p.sums.append(p.buf)
		p.flush()
	}
}

// age is a tombstone's.
func (f *frozen) age(c *feed.Change) int64 {
	i, ok := slices.BinarySearchFunc(f.ages, c.Seq(), func(a aged, seq feed.Seq) int { return cmp.Compare(a.seq, seq) })
	if !ok {
		return f.times.Age
	}
	return f.ages[i].age
}

// sums is the sums of parts, one after the other.
type sums []byte

// append appends the sum of them all.
func (s sums) append(dst []byte) []byte {
	full := sha256.Sum256(s)
	return append(dst, full[:sumSize]...)
}

type partWriter struct {
	yield  func([]byte, error) bool
	buf    []byte
	from   int    // in buf: where the entry begins
	number uint64 // of the part
	sums   sums   // of the parts before
	ended  bool   // the reader wants no more

	// The entries that a part begins with.
	head, tenant, view []byte
}

// begin starts an entry, and a part where the one before is full.
func (p *partWriter) begin(kind byte) {
	if len(p.buf) > partSize {
		p.flush()
	}
	if len(p.buf) == 0 {
		p.number++
		p.buf = append(p.buf, checkpointMagic...)
		p.uint(p.number)
		p.buf = append(p.buf, p.head...)
		if kind == 'c' || kind == 'r' || kind == 'i' {
			p.buf = append(p.buf, p.tenant...)
		}
		if kind == 'r' {
			p.buf = append(p.buf, p.view...)
		}
	}
	p.from = len(p.buf)
	p.buf = append(p.buf, kind)
}

// last is the entry that was written last.
func (p *partWriter) last() []byte { return bytes.Clone(p.buf[p.from:]) }

func (p *partWriter) flush() {
	if len(p.buf) > 0 && !p.ended {
		full := sha256.Sum256(p.buf)
		p.buf = append(p.buf, full[:sumSize]...)
		p.sums = append(p.sums, full[:sumSize]...)
		p.ended = !p.yield(p.buf, nil)
	}
	p.buf = p.buf[:0]
}

func (p *partWriter) uint(n uint64) { p.buf = binary.AppendUvarint(p.buf, n) }

func (p *partWriter) text(s string) {
	p.uint(uint64(len(s)))
	p.buf = append(p.buf, s...)
}

func (p *partWriter) change(c *feed.Change) {
	client, id := c.By()
	p.buf = append(p.buf, byte(c.Op()))
	p.uint(uint64(c.Tail()))
	p.uint(uint64(c.At()))
	p.text(c.Key())
	p.text(client)
	p.text(id)
	p.text(c.Value())
}

// restore folds the log's newest checkpoint into an empty state.
func (s *state) restore(ctx context.Context, log feed.Log) (feed.Position, error) {
	r := partReader{s: s}
	at, err := log.LoadCheckpoint(ctx, r.part)
	if err != nil {
		return 0, err
	}
	if at == 0 {
		return 0, nil
	}
	if err := r.finish(at); err != nil {
		return 0, &feed.Damage{At: at, What: "checkpoint: " + err.Error()}
	}
	return at, nil
}

type partReader struct {
	encoder      feed.Encoder
	s            *state
	tolerant     bool // parts may be missing, and with them what others refer to
	first        bool // version 1
	n            int
	head         string        // its entry
	idsGone      feed.Seq      // version 1: of all tenants
	begins       bool          // nothing of the part was read but what it repeats
	sum          [sumSize]byte // version 1: of the part before
	sums         sums
	tenant       *tenant
	view         *view
	changes, ids uint64
	wantChanges  uint64
	wantIDs      uint64
	ended        bool
}

var errPart = errors.New("a part can't be read")

func (r *partReader) part(b []byte) error {
	r.n++
	err := r.read(b)
	if err != nil {
		return &feed.Damage{What: fmt.Sprintf("checkpoint, part %d: %s", r.n, err)}
	}
	return nil
}

func (r *partReader) read(b []byte) error {
	if len(b) < len(checkpointMagic)+sumSize {
		return errors.New("it is too short")
	}
	body, magic := b[:len(b)-sumSize], string(b[:len(checkpointMagic)])
	full := sha256.New()
	if magic == checkpointFirst {
		full.Write(r.sum[:])
	}
	full.Write(body)
	copy(r.sum[:], full.Sum(nil))
	switch {
	case string(r.sum[:]) != string(b[len(body):]):
		return errors.New("its checksum does not match, or a part before it is missing")
	case magic != checkpointMagic && magic != checkpointFirst:
		return fmt.Errorf("it begins with %q: of a newer version?", magic)
	case r.n == 1:
		r.first = magic == checkpointFirst
	case r.first != (magic == checkpointFirst):
		return errors.New("it is of another version than the part before it")
	}
	text := string(body) // what is read shares it
	d := feed.NewDecoder(text[len(magic):])
	if !r.first {
		if number := d.Uint(); number != uint64(r.n) && d.Err() == nil {
			return fmt.Errorf("it is part %d", number)
		}
	}
	r.begins = true
	for head := !r.first || r.n == 1; d.Rest() > 0 && d.Err() == nil; head = false {
		if err := r.entry(&d, text, head); err != nil {
			return err
		}
	}
	r.sums = append(r.sums, r.sum[:]...)
	return d.Done()
}

// entry reads the next entry of a part, which must be the head or must not.
func (r *partReader) entry(d *feed.Decoder, part string, head bool) error {
	from := len(part) - d.Rest()
	kind := d.Byte()
	if (kind == 'h') != head || r.ended {
		return errors.New("it is out of order")
	}
	switch kind {
	case 'h':
		if err := r.readHead(d); err != nil {
			return err
		}
		entry := part[from : len(part)-d.Rest()]
		if r.n > 1 && entry != r.head && d.Err() == nil {
			return errors.New("it is of another checkpoint than the part before it")
		}
		r.head = entry
		return d.Err()
	case 'd':
		if r.s.dropped = feed.Seq(d.Uint()); r.first || r.n != 1 || r.tenant != nil || r.s.dropped == 0 || r.s.dropped >= r.s.next {
			return errPart
		}
		return d.Err()
	case 't':
		return r.readTenant(d)
	case 'c':
		return r.readView(d)
	}
	r.begins = false
	switch kind {
	case 'r':
		return r.change(d)
	case 'i':
		return r.id(d)
	case 'e':
		r.wantChanges, r.wantIDs, r.ended = d.Uint(), d.Uint(), true
		if !r.first && d.Take(sumSize) != string(r.sums.append(nil)) && d.Err() == nil {
			return errors.New("the parts before it are not those that it was made with")
		}
	default:
		return fmt.Errorf("its kind %q is not known: of a newer version?", kind)
	}
	return d.Err()
}

func (r *partReader) readHead(d *feed.Decoder) error {
	s := r.s
	if epoch := feed.Epoch(d.Text()); epoch != s.epoch && d.Err() == nil {
		return fmt.Errorf("it is of epoch %s, the log is %s", epoch, s.epoch)
	}
	s.position = feed.Position(d.Uint())
	copy(s.sum[:], d.Take(len(s.sum)))
	s.at = d.Time()
	if r.first {
		s.times = feed.Times{Age: s.at, Steady: s.at}
	} else {
		s.times = d.Times()
	}
	s.next = feed.Seq(d.Uint())
	if r.first {
		r.idsGone = feed.Seq(d.Uint())
	}
	if s.next == 0 || s.next > feed.MaxSeq {
		d.Fail("its next sequence is out of bounds")
	}
	return nil
}

func (r *partReader) readTenant(d *feed.Decoder) error {
	name, floor, idsGone := d.Text(), feed.Seq(d.Uint()), r.idsGone
	if !r.first {
		idsGone = feed.Seq(d.Uint())
	}
	if d.Err() != nil || feed.CheckTenant(name) != nil && name != allTenants {
		return errPart
	}
	t := r.s.lookup(name)
	if again := t != nil && t == r.tenant && r.begins && !r.first; again {
		if t.floor != floor || t.idsGone != idsGone {
			return errPart
		}
		return nil
	}
	if t != nil {
		return errPart
	}
	r.begins = false
	r.tenant, r.view = r.s.keep(name), nil
	r.tenant.floor, r.tenant.idsGone = floor, idsGone
	return nil
}

func (r *partReader) readView(d *feed.Decoder) error {
	name, floor := d.Text(), feed.Seq(d.Uint())
	if r.tenant == nil || d.Err() != nil || feed.CheckCollection(name) != nil && name != revocations {
		return errPart
	}
	v := r.tenant.views[name]
	if again := v != nil && v == r.view && r.begins && !r.first; again {
		if v.floor != floor {
			return errPart
		}
		return nil
	}
	if v != nil {
		return errPart
	}
	r.begins = false
	r.view = r.tenant.view(name)
	r.view.floor = floor
	return nil
}

// fields reads what partWriter.change writes.
func (r *partReader) fields(d *feed.Decoder, seq feed.Seq, collection string) (feed.Fields, error) {
	f := feed.Fields{Seq: seq, Collection: collection, Op: feed.Op(d.Byte())}
	tail := d.Uint()
	f.Tail, f.At = uint16(tail), d.Time()
	f.Key, f.Client, f.ID, f.Value = d.Text(), d.Text(), d.Text(), d.Text()
	switch {
	case d.Err() != nil:
		return f, d.Err()
	case seq == 0 || seq >= r.s.next && !fault.Bug("sequence-reused") || tail >= feed.MaxChanges || f.Op < feed.Insert || f.Op > feed.Noop,
		feed.CheckKey(f.Key) != nil, f.ID != "" && feed.CheckID(f.ID) != nil, f.Client != "" && feed.CheckClient(f.Client) != nil,
		(f.Value == "") != (f.Op == feed.Remove || f.Op == feed.Noop),
		f.Value != "" && (!strings.HasPrefix(f.Value, "{") || len(f.Value) > MaxValue):
		return f, errPart
	}
	return f, nil
}

func (r *partReader) change(d *feed.Decoder) error {
	v := r.view
	if v == nil {
		return errPart
	}
	f, err := r.fields(d, feed.Seq(d.Uint()), v.name)
	if err != nil {
		return err
	}
	age, expires := f.At, int64(0)
	if !r.first {
		if f.Op == feed.Remove {
			age = d.Time()
		} else {
			expires = d.Time()
		}
		if d.Err() != nil {
			return d.Err()
		}
	}
	if f.Seq <= v.last() && !fault.Bug("sequence-reused") || f.Op == feed.Noop || v.rows.get(f.Key) != nil {
		return errPart
	}
	c := r.s.change(&r.encoder, f)
	r.s.put(r.tenant, v, c, age, expires)
	r.tenant.applied = max(r.tenant.applied, f.Seq)
	r.changes++
	return nil
}

func (r *partReader) id(d *feed.Decoder) error {
	if r.tenant == nil {
		return errPart
	}
	key := idKey{d.Text(), d.Text()}
	var record idRecord
	copy(record.digest[:], d.Take(len(record.digest)))
	record.age = d.Time()
	seq, collection, row, held := feed.Seq(d.Uint()), d.Text(), d.Text(), d.Byte()
	if d.Err() != nil {
		return d.Err()
	}
	if key.id == "" || held > 1 || feed.CheckCollection(collection) != nil {
		return errPart
	}
	if held == 1 {
		f, err := r.fields(d, seq, collection)
		if err != nil {
			return err
		}
		record.change = r.s.change(&r.encoder, f)
		if f.Op != feed.Noop { // remember counts those
			r.s.weigh(r.tenant, record.change.Size())
		}
	} else if v := r.tenant.views[collection]; v != nil {
		record.change = v.rows.get(row)
	}
	if record.change == nil || record.change.Seq() != seq {
		if r.tolerant {
			return nil // an id whose row is lost
		}
		return errPart
	}
	if _, twice := r.tenant.ids[key]; twice {
		return errPart
	}
	r.s.remember(r.tenant, key, record)
	r.ids++
	return nil
}

// finish checks that the checkpoint was whole, and brings what ages into its order.
func (r *partReader) finish(at feed.Position) error {
	switch {
	case !r.ended:
		return errors.New("its end is missing")
	case r.changes != r.wantChanges || r.ids != r.wantIDs:
		return errors.New("its counts do not match")
	case r.s.position != at:
		return fmt.Errorf("it was made at position %d", r.s.position)
	}
	r.s.tombs.items = sorted(r.s.tombs.items, func(t tomb) feed.Seq { return t.change.Seq() })
	for t := range r.s.all() {
		t.seen.items = sorted(t.seen.items, func(i idRef) feed.Seq { return t.ids[i.key].change.Seq() })
	}
	return nil
}
