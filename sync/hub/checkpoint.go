package hub

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// A checkpoint is the state written down, so that the log before it can go. It is a
// list of entries in parts, "tmc" 1 entry… sum[16]; the sum is over the part and the
// sum of the part before it, so that a part that is missing, exchanged or harmed is
// noticed. Numbers are unsigned varints, strings have their length before them:
//
//	head        'h' epoch position sum[16] at next idsGone
//	tenant      't' name floor
//	collection  'c' name floor      of the tenant before it
//	change      'r' seq op tail at key client id value      of the collection before it, by sequence
//	id          'i' client id digest[16] at seq collection key held [op tail at key client id value]      of the tenant before it
//	end         'e' changes ids
const checkpointMagic = "tmc\x01"

const (
	partSize = 256 << 10 // a part is closed beyond this
	sumSize  = 16
)

// saved tells how a checkpoint went.
type saved struct {
	bytes int64 // of the log that it replaces
	err   error
}

// grown is called by the writer after each group: it saves a checkpoint when the log
// has grown enough.
func (h *Hub) grown(n int64) {
	h.logBytes += n
	select {
	case r := <-h.saved:
		switch {
		case r.err == nil:
			h.logBytes -= r.bytes
		case errors.Is(r.err, feed.ErrDamaged):
			h.opts.Logger.Error("save a checkpoint and trim the log", "err", r.err)
			h.fail(r.err)
			return
		default:
			h.opts.Logger.Error("save a checkpoint; the log is kept, and it is tried again when it has grown", "err", r.err)
		}
		h.plan()
		if r.err != nil {
			h.saveAt = h.logBytes + h.opts.Log
		}
	default:
	}
	if h.logBytes < h.saveAt {
		return
	}
	h.saveAt = 1<<63 - 1 // one at a time
	frozen, replaced := h.state.freeze(), h.logBytes
	h.saving.Go(func() {
		err := h.log.SaveCheckpoint(h.ctx, frozen.position, frozen.parts())
		if err == nil {
			err = h.log.Trim(h.ctx, frozen.position)
		}
		if h.ctx.Err() != nil {
			err = nil // stopping: the log has it all
		}
		h.saved <- saved{replaced, err}
	})
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
	next     feed.Seq
	idsGone  feed.Seq
	tenants  []frozenTenant
}

type frozenTenant struct {
	name  string
	floor feed.Seq
	views []frozenView
	ids   []frozenID
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
	f := &frozen{epoch: s.epoch, position: s.position, sum: s.sum, at: s.at, next: s.next, idsGone: s.idsGone}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, t := range s.tenants {
		if !t.kept {
			continue
		}
		t.mu.RLock()
		ft := frozenTenant{name: t.name, floor: t.floor}
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
		p.uint(uint64(f.next))
		p.uint(uint64(f.idsGone))
		var changes, ids uint64
		for _, t := range f.tenants {
			p.begin('t')
			p.text(t.name)
			p.uint(uint64(t.floor))
			for _, v := range t.views {
				p.begin('c')
				p.text(v.name)
				p.uint(uint64(v.floor))
				for _, c := range v.changes {
					p.begin('r')
					p.uint(uint64(c.Seq()))
					p.change(c)
					changes++
				}
			}
			for _, id := range t.ids {
				p.begin('i')
				p.text(id.key.client)
				p.text(id.key.id)
				p.buf = append(p.buf, id.record.digest[:]...)
				p.uint(uint64(id.record.at))
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
		p.flush()
	}
}

type partWriter struct {
	yield func([]byte, error) bool
	buf   []byte
	sum   [sumSize]byte
	ended bool // the reader wants no more
}

// begin starts an entry, and a part where the one before is full.
func (p *partWriter) begin(kind byte) {
	if len(p.buf) > partSize {
		p.flush()
	}
	if len(p.buf) == 0 {
		p.buf = append(p.buf, checkpointMagic...)
	}
	p.buf = append(p.buf, kind)
}

func (p *partWriter) flush() {
	if len(p.buf) > 0 && !p.ended {
		full := sha256.New()
		full.Write(p.sum[:])
		full.Write(p.buf)
		copy(p.sum[:], full.Sum(nil))
		p.buf = append(p.buf, p.sum[:]...)
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
	s            *state
	n            int
	sum          [sumSize]byte
	tenant       *tenant
	view         *view
	changes, ids uint64
	wantChanges  uint64
	wantIDs      uint64
	ended        bool
	tombs        []tomb
	refs         []idRef
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
	body := b[:len(b)-sumSize]
	full := sha256.New()
	full.Write(r.sum[:])
	full.Write(body)
	copy(r.sum[:], full.Sum(nil))
	if string(r.sum[:]) != string(b[len(body):]) {
		return errors.New("its checksum does not match, or a part before it is missing")
	}
	d := feed.NewDecoder(string(body))
	if magic := d.Take(len(checkpointMagic)); magic != checkpointMagic {
		return fmt.Errorf("it begins with %q: of a newer version?", magic)
	}
	for first := r.n == 1; d.Rest() > 0 && d.Err() == nil; first = false {
		if err := r.entry(&d, first); err != nil {
			return err
		}
	}
	return d.Done()
}

// entry reads the next entry; first: of all.
func (r *partReader) entry(d *feed.Decoder, first bool) error {
	kind := d.Byte()
	if (kind == 'h') != first || r.ended {
		return errors.New("it is out of order")
	}
	switch kind {
	case 'h':
		s := r.s
		if epoch := feed.Epoch(d.Text()); epoch != s.epoch && d.Err() == nil {
			return fmt.Errorf("it is of epoch %s, the log is %s", epoch, s.epoch)
		}
		s.position = feed.Position(d.Uint())
		copy(s.sum[:], d.Take(len(s.sum)))
		s.at = d.Time()
		s.next = feed.Seq(d.Uint())
		s.idsGone = feed.Seq(d.Uint())
		if s.next == 0 || s.next > feed.MaxSeq {
			d.Fail("its next sequence is out of bounds")
		}
	case 't':
		name, floor := d.Text(), feed.Seq(d.Uint())
		if d.Err() == nil && feed.CheckTenant(name) == nil {
			r.tenant, r.view = r.s.keep(name), nil
			r.tenant.floor = floor
		} else {
			d.Fail("a tenant's name is wrong")
		}
	case 'c':
		name, floor := d.Text(), feed.Seq(d.Uint())
		if r.tenant == nil || d.Err() != nil || feed.CheckCollection(name) != nil || r.tenant.views[name] != nil {
			return errPart
		}
		r.view = r.tenant.view(name)
		r.view.floor = floor
	case 'r':
		return r.change(d)
	case 'i':
		return r.id(d)
	case 'e':
		r.wantChanges, r.wantIDs, r.ended = d.Uint(), d.Uint(), true
	default:
		return fmt.Errorf("its kind %q is not known: of a newer version?", kind)
	}
	return d.Err()
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
	case seq == 0 || seq >= r.s.next || tail >= feed.MaxChanges || f.Op < feed.Insert || f.Op > feed.Noop,
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
	if f.Seq <= v.last() || f.Op == feed.Noop || v.rows.get(f.Key) != nil {
		return errPart
	}
	c := r.s.change(f)
	r.s.put(r.tenant, v, c)
	r.tenant.applied = max(r.tenant.applied, f.Seq)
	if f.Op == feed.Remove {
		r.tombs = append(r.tombs, tomb{r.tenant, v, c, f.At})
	}
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
	record.at = d.Time()
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
		record.change = r.s.change(f)
		if f.Op != feed.Noop { // remember counts those
			r.s.bytes.Add(record.change.Size())
		}
	} else if v := r.tenant.views[collection]; v != nil {
		record.change = v.rows.get(row)
	}
	if record.change == nil || record.change.Seq() != seq {
		return errPart
	}
	if _, twice := r.tenant.ids[key]; twice {
		return errPart
	}
	r.s.remember(r.tenant, key, record)
	r.refs = append(r.refs, idRef{r.tenant, key, record.at})
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
	r.s.tombs = queue[tomb]{items: sorted(r.tombs, func(t tomb) feed.Seq { return t.change.Seq() })}
	r.s.ids = queue[idRef]{items: sorted(r.refs, func(i idRef) feed.Seq { return i.tenant.ids[i.key].change.Seq() })}
	return nil
}
