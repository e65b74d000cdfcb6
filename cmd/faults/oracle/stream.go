package oracle

import (
	"fmt"
	"slices"
	"sort"
	"time"
)

// follower is what somebody holds who follows, as the protocol says.
type follower struct {
	name   string
	life   int
	held   map[string]*rowSet
	stage  map[string]*rowSet // what a reset has brought so far
	seen   map[string]uint64
	wrong  map[string]bool // collections that were told to be wrong already
	live   cursor          // the last live
	places map[string]bool // the collections of its last stream
}

// rowSet is a collection with its fingerprint.
type rowSet struct {
	collection string
	rows       map[string]Row
	print      uint64
}

func (s *rowSet) remove(key string) {
	if r, ok := s.rows[key]; ok {
		s.print -= fingerprint(rowKey{s.collection, key}, r.Seq, r.Value)
		delete(s.rows, key)
	}
}

func (s *rowSet) put(key string, seq uint64, value string) {
	s.remove(key)
	s.rows[key] = Row{s.collection, key, seq, value}
	s.print += fingerprint(rowKey{s.collection, key}, seq, value)
}

func newFollower(name string, life int) *follower {
	return &follower{name: name, life: life, held: make(map[string]*rowSet), stage: make(map[string]*rowSet),
		seen: make(map[string]uint64), wrong: make(map[string]bool)}
}

// of is the collection that changes go to now.
func (f *follower) of(collection string) *rowSet {
	if s := f.stage[collection]; s != nil {
		return s
	}
	s := f.held[collection]
	if s == nil {
		s = &rowSet{collection: collection, rows: make(map[string]Row)}
		f.held[collection] = s
	}
	return s
}

func (f *follower) apply(x *Frame) {
	if x.Seq <= f.seen[x.Collection] {
		return
	}
	f.seen[x.Collection] = x.Seq
	if x.Op == "remove" {
		f.of(x.Collection).remove(x.Key)
	} else {
		f.of(x.Collection).put(x.Key, x.Seq, x.Value)
	}
}

func (c *checker) checkStreams() {
	followers := make(map[string]*follower)
	for _, s := range c.h.Streams {
		f := followers[s.Follower]
		if f == nil || f.life != s.Life {
			f = newFollower(s.Follower, s.Life)
			followers[s.Follower] = f
		}
		c.checkStream(f, s)
	}
	if c.h.Final == nil {
		return
	}
	final, _ := parseCursor(c.h.Final.Cursor)
	for _, name := range c.h.Settle {
		f := followers[name]
		switch {
		case f == nil:
			c.violate("converge", "%s never connected", name)
		case f.live.epoch != final.epoch || f.live.seq < final.seq:
			c.violate("converge", "%s was last live at %s, and the rows stopped changing at %s", name, f.live, final)
		default:
			c.checkSettled(f, final)
		}
	}
}

// checkSettled compares what a follower ended with with the final rows. Who ended after them
// saw rows go by themselves meanwhile: live has compared it with the model, as the final rows
// were.
func (c *checker) checkSettled(f *follower, final cursor) {
	if f.live.seq > final.seq {
		return
	}
	prints := make(map[string]uint64)
	for _, r := range c.h.Final.Rows {
		prints[r.Collection] += fingerprint(rowKey{r.Collection, r.Key}, r.Seq, r.Value)
	}
	for collection := range f.places {
		if !f.wrong[collection] && f.of(collection).print != prints[collection] {
			c.violate("converge", "%s ended with other rows of %s than the server", f.name, collection)
		}
	}
}

// reading is one stream, as far as it was read.
type reading struct {
	*checker
	f        *follower
	s        *Stream
	e        *epoch
	who      string
	last     uint64            // the last sequence
	from     map[string]uint64 // where each collection began
	needs    map[string]string // collections that must be reset first, with the cursor
	pending  []*Frame
	got      []uint64 // what was taken since the last live
	gotAt    []time.Duration
	position uint64 // of the stream's cursor
	checked  uint64 // up to here live has checked all
	lived    bool
}

func (c *checker) checkStream(f *follower, s *Stream) {
	r := &reading{checker: c, f: f, s: s, from: make(map[string]uint64), needs: make(map[string]string)}
	r.who = fmt.Sprintf("%s (life %d, %s, asked at %v)", s.Follower, s.Life, s.Transport, s.Asked.Round(time.Millisecond))
	f.places = make(map[string]bool)
	for _, p := range s.From {
		f.places[p.Collection] = true
	}
	for i := range s.Frames {
		x := &s.Frames[i]
		if (x.Type == "open") != (i == 0) {
			c.violate("order", "%s: frame %d is %s", r.who, i+1, x.Type)
			return
		}
		switch x.Type {
		case "open":
			if !r.open(x) {
				return
			}
		case "reset":
			r.reset(x)
		case "change":
			r.change(x)
		case "live":
			r.live(x)
		case "next":
			r.next(x)
		}
	}
	if n := len(s.Frames); n > 0 {
		r.gaps(s.Frames[n-1].At)
	}
}

func (r *reading) open(x *Frame) bool {
	r.e = r.byName[x.Epoch]
	if r.e == nil {
		r.violate("epoch", "%s: the epoch %s, which no start has shown", r.who, x.Epoch)
		return false
	}
	for _, e := range r.epochs[r.e.n+1:] {
		if e.start.Ready < r.s.Asked {
			r.violate("epoch", "%s: the epoch %s, when %s had begun", r.who, x.Epoch, e.name)
		}
	}
	first := true
	for _, p := range r.s.From {
		at, ok := parseCursor(p.Cursor)
		switch {
		case p.Cursor == "":
		case !ok || at.epoch != r.e.name:
			r.needs[p.Collection] = p.Cursor
		default:
			r.from[p.Collection] = at.seq
		}
		if from := r.from[p.Collection]; first || from < r.checked {
			r.checked, first = from, false
		}
	}
	return true
}

func (r *reading) reset(x *Frame) {
	for _, collection := range x.Collections {
		if !r.f.places[collection] {
			r.violate("stranger", "%s: a reset of %s, which was not asked for", r.who, collection)
			continue
		}
		asked := r.needs[collection]
		switch x.Reason {
		case "epoch":
			if asked == "" {
				r.violate("reset", "%s: %s, reason epoch, but it was asked for at %d of the epoch %s that is", r.who, collection, r.from[collection], r.e.name)
			}
		case "expired":
			if asked != "" {
				r.violate("reset", "%s: %s, reason expired, but it was asked for at %s and the epoch is %s", r.who, collection, asked, r.e.name)
			} else if !r.forgotten(max(r.from[collection], r.position), x.At) {
				r.violate("reset", "%s: %s, reason expired, but no remove after %d is older than %v", r.who, collection, r.from[collection], r.h.Tombstones)
			}
		default:
			r.violate("reset", "%s: %s, reason %q, at %d of %s (asked with %q)", r.who, collection, x.Reason, r.from[collection], r.e.name, asked)
		}
		delete(r.needs, collection)
		r.from[collection] = 0
		r.f.stage[collection] = &rowSet{collection: collection, rows: make(map[string]Row)}
		r.f.seen[collection] = 0
	}
	r.last, r.checked, r.got, r.gotAt = 0, 0, nil, nil
}

// forgotten tells whether a remove after seq may have been forgotten by a moment.
func (r *reading) forgotten(seq uint64, now time.Duration) bool {
	if r.h.Tombstones == 0 {
		return false
	}
	for _, x := range r.e.after(seq) {
		if x.removed && !x.noop && x.asked != nil && x.asked.sent()+r.h.Tombstones <= now {
			return true
		}
	}
	return false
}

// after are the changes after a sequence.
func (e *epoch) after(seq uint64) []*entry {
	return e.order[sort.Search(len(e.order), func(i int) bool { return e.order[i].seq > seq }):]
}

func (r *reading) change(x *Frame) {
	if !r.f.places[x.Collection] {
		r.violate("stranger", "%s: a change of %s, which was not asked for", r.who, x.Collection)
		return
	}
	if cursor, ok := r.needs[x.Collection]; ok {
		r.violate("reset", "%s: %s goes on without a reset from %s in the epoch %s", r.who, x.Collection, cursor, r.e.name)
		delete(r.needs, x.Collection)
	}
	switch {
	case x.Seq <= r.last:
		rule := "order"
		if _, twice := slices.BinarySearch(r.got, x.Seq); twice {
			rule = "doubled"
		}
		r.violate(rule, "%s: sequence %d comes after %d", r.who, x.Seq, r.last)
		if rule == "order" { // it came, all the same
			i, _ := slices.BinarySearch(r.got, x.Seq)
			r.got, r.gotAt = slices.Insert(r.got, i, x.Seq), slices.Insert(r.gotAt, i, x.At)
		}
	case x.Seq <= r.from[x.Collection]:
		r.violate("doubled", "%s: %s was asked for from %d on, and %d comes again", r.who, x.Collection, r.from[x.Collection], x.Seq)
	default:
		r.got, r.gotAt = append(r.got, x.Seq), append(r.gotAt, x.At)
	}
	r.last = max(r.last, x.Seq)
	r.pending = append(r.pending, x)
	if x.More {
		return
	}
	for _, p := range r.pending {
		r.f.apply(p)
	}
	r.whole(x)
	r.pending = nil
	r.position = max(r.position, x.Seq)
}

// whole checks that the transaction which has ended with a frame was all of it. Some may
// have been left out: what a newer change had overtaken, and removes of what is not
// held.
func (r *reading) whole(x *Frame) {
	entry := r.e.at[x.Seq]
	if entry == nil || entry.asked == nil {
		return
	}
	for _, m := range r.e.groups[entry.asked.write] {
		if !r.f.places[m.row.collection] || m.noop || m.seq <= r.from[m.row.collection] {
			continue
		}
		if _, ok := slices.BinarySearch(r.got, m.seq); ok {
			continue
		}
		if !r.excused(m, x.At) {
			r.violate("part", "%s: the transaction of %s is over at %d, and lacks %s", r.who, entry.asked.id, x.Seq, m)
		}
	}
}

// excused tells whether a change may have been left out by a moment.
func (r *reading) excused(m *entry, now time.Duration) bool {
	if m.next != nil && (m.next.asked == nil || m.next.asked.sent() < now) {
		return true
	}
	if m.dies > 0 && m.dies <= now {
		return true // it may have gone by itself
	}
	_, held := r.f.of(m.row.collection).rows[m.row.key]
	return m.removed && !held
}

func (r *reading) live(x *Frame) {
	at, ok := parseCursor(x.Cursor)
	if !ok || at.epoch != r.e.name {
		r.violate("live", "%s: the cursor %q in the epoch %s", r.who, x.Cursor, r.e.name)
		return
	}
	if at.seq < r.last {
		r.violate("live", "%s: the cursor %s after the change %d", r.who, at, r.last)
	}
	if len(r.pending) > 0 {
		r.violate("part", "%s: live at %s in the middle of the transaction of %s/%s", r.who, at, r.pending[0].Client, r.pending[0].ID)
		for _, p := range r.pending {
			r.f.apply(p)
		}
		r.pending = nil
	}
	for collection, cursor := range r.needs {
		r.violate("reset", "%s: %s goes on without a reset from %s in the epoch %s", r.who, collection, cursor, r.e.name)
	}
	clear(r.needs)
	if !r.lived {
		if told := r.e.acknowledged(r.s.Asked); at.seq < told {
			r.violate("live", "%s: live at %s, when %d had been acknowledged before it asked", r.who, at, told)
		}
	}
	r.lived = true
	r.report.Lives++
	for _, p := range r.s.From {
		collection := p.Collection
		if s := r.f.stage[collection]; s != nil {
			r.f.held[collection] = s
			delete(r.f.stage, collection)
		}
		s := r.f.of(collection)
		if s.print != printAt(r.e.lines[collection], at.seq) && !r.f.wrong[collection] {
			r.f.wrong[collection] = true
			r.compare(r.e, at.seq, x.At, collection, s.rows, r.who+" is live", "gap")
		}
		r.f.seen[collection] = max(r.f.seen[collection], at.seq)
	}
	r.checkLate(r.e, at.seq, x.At, r.who, func(k rowKey) uint64 {
		if !r.f.places[k.collection] {
			return 0
		}
		return r.f.of(k.collection).rows[k.key].Seq
	})
	r.f.live = at
	r.position, r.checked, r.got, r.gotAt = max(r.position, at.seq), at.seq, nil, nil
}

func (r *reading) next(x *Frame) {
	at, ok := parseCursor(x.Cursor)
	if !ok || at.epoch != r.e.name || at.seq < r.last || len(r.pending) > 0 {
		r.violate("order", "%s: next at %q in the epoch %s, after the change %d", r.who, x.Cursor, r.e.name, r.last)
		return
	}
	r.position = max(r.position, at.seq)
}

// gaps checks what a stream has passed since it was live the last time.
func (r *reading) gaps(now time.Duration) {
	if r.position <= r.checked {
		return
	}
	for _, x := range r.e.after(r.checked) {
		if x.seq > r.position {
			return
		}
		if x.noop || !r.f.places[x.row.collection] || x.seq <= r.from[x.row.collection] || r.f.wrong[x.row.collection] {
			continue
		}
		// It was passed when the next one was sent: what overtook it must have been there.
		passed := now
		i, ok := slices.BinarySearch(r.got, x.seq)
		if i < len(r.gotAt) {
			passed = r.gotAt[i]
		}
		if ok || r.excused(x, passed) {
			continue
		}
		r.violate("gap", "%s: at %d it has passed %s, which did not come", r.who, r.position, x)
		r.f.wrong[x.row.collection] = true
	}
}
