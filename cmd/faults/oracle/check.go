package oracle

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"time"
)

// Report is what Check found.
type Report struct {
	Violations []Violation // the first of them
	Found      int         // how many there were
	Lost       int         // acknowledged changes that a fault took, as it may
	Lives      int         // states that were compared with the model
}

// most is how many violations are told; one mistake of a server brings many.
const most = 40

// Check decides. It takes about n log n for n entries of a history.
func Check(h *History) Report {
	c := &checker{h: h, asked: make(map[writeID]*asked), byName: make(map[string]*epoch), contested: make(map[rowKey]bool), unseen: make(map[rowKey]bool)}
	for _, v := range h.Problems {
		c.violate(v.Rule, "%s", v.What)
	}
	c.indexWrites()
	c.indexEpochs()
	if len(c.epochs) == 0 {
		if len(h.Writes)+len(h.Streams) > 0 {
			c.violate("start", "the server was never ready")
		}
		return c.report
	}
	c.gather()
	for _, e := range c.epochs {
		e.sort()
		e.bound()
		c.build(e)
		e.mortal()
	}
	for i, e := range c.epochs[1:] {
		c.cut(c.epochs[i], e)
	}
	c.checkStarts()
	c.checkAnswers()
	c.checkRefusals()
	c.checkStreams()
	c.checkFinal()
	return c.report
}

type checker struct {
	h         *History
	report    Report
	asked     map[writeID]*asked
	epochs    []*epoch
	byName    map[string]*epoch
	contested map[rowKey]bool // keys of writes that may have happened after they were refused
	unseen    map[rowKey]bool // those of them that such a write may have removed, so that nobody was told
}

type writeID struct{ client, id string }

func (w writeID) String() string { return w.client + "/" + w.id }

type rowKey struct{ collection, key string }

func (k rowKey) String() string { return k.collection + ":" + k.key }

// asked is one change that somebody asked for.
type asked struct {
	id      writeID
	write   *Write
	i       int // which of its changes
	effects []*entry
}

func (a *asked) change() *Change { return &a.write.Changes[a.i] }

func (a *asked) sent() time.Duration { return a.write.Attempts[0].Sent }

// epoch is a log, as far as it is known.
type epoch struct {
	n        int
	name     string
	start    *Start
	base     uint64 // what is at or below it was before the epoch
	baseRows map[rowKey]Row

	at      map[uint64]*entry
	order   []*entry            // by sequence
	lines   map[string][]point  // of each collection: its fingerprint after each of its changes
	whole   []point             // and of all together
	keys    map[rowKey][]*entry // the changes of each row that are no noops
	cut     uint64              // what is above it may be lost with the epoch; MaxUint64: nothing is
	acks    []ack               // by time
	claimed map[rowKey]*entry   // of base rows, as pseudo changes
	groups  map[*Write][]*entry // of atomic writes with several changes
	late    []*entry            // rows that may have stayed too long
}

type point struct {
	seq   uint64
	print uint64
}

type ack struct {
	at  time.Duration
	max uint64 // the newest cursor acknowledged so far
}

// entry is one change of the model.
type entry struct {
	epoch   *epoch
	seq     uint64
	row     rowKey
	removed bool
	noop    bool // a remove of what was gone
	value   string
	asked   *asked
	acked   bool
	ackedAt time.Duration // the first time
	seen    time.Duration // the first evidence
	where   string
	next    *entry        // the same row's next change
	dies    time.Duration // before that, the row does not go by itself; 0: it never does
	old     bool          // it is from an epoch before, so nobody knows when it goes
	due     time.Duration // after that, the row should have gone; 0: it stays, or nobody knows
	told    bool          // that it is there after that
	from    time.Duration // it came to be between from and to
	to      time.Duration
}

func (e *entry) String() string {
	what := "put " + short(e.value)
	if e.removed {
		what = "remove"
	}
	by := ""
	if e.asked != nil {
		by = " by " + e.asked.id.String()
	}
	return fmt.Sprintf("%s-%d (%s %s%s)", e.epoch.name, e.seq, e.row, what, by)
}

func short(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}

func (c *checker) violate(rule, format string, args ...any) {
	c.report.Found++
	if len(c.report.Violations) < most {
		c.report.Violations = append(c.report.Violations, Violation{rule, fmt.Sprintf(format, args...)})
	}
}

func (c *checker) indexWrites() {
	for _, w := range c.h.Writes {
		if len(w.Attempts) == 0 {
			continue
		}
		limbo := false
		for i := range w.Changes {
			id := writeID{w.Client, w.Changes[i].ID}
			if c.asked[id] != nil {
				c.violate("stranger", "the harness used the id %s twice", id)
			}
			c.asked[id] = &asked{id: id, write: w, i: i}
		}
		for j := range w.Attempts {
			a := &w.Attempts[j]
			limbo = limbo || a.Twice || len(a.Results) == 0
			for i, r := range a.Results {
				if limbo && !r.ok() && i < len(w.Changes) {
					for _, ch := range w.Changes {
						c.contested[rowKey{ch.Collection, ch.Key}] = true
						if ch.Op == "remove" {
							c.unseen[rowKey{ch.Collection, ch.Key}] = true
						}
					}
				}
			}
		}
		if slices.ContainsFunc(w.Attempts, func(a Attempt) bool { return len(a.Results) > 0 }) {
			continue
		}
		for _, ch := range w.Changes {
			c.contested[rowKey{ch.Collection, ch.Key}] = true // nobody knows whether it happened
		}
		if last := w.Attempts[len(w.Attempts)-1]; c.h.Final != nil {
			c.violate("unanswered", "%s/%s: %d attempts, the last had status %d", w.Client, w.Changes[0].ID, len(w.Attempts), last.Status)
		}
	}
}

func (c *checker) indexEpochs() {
	for i, s := range c.h.Starts {
		if s.Ready == 0 {
			c.violate("start", "start %d (%s) was never ready", i, s.Fault)
			continue
		}
		if s.Epoch == "" {
			continue // nobody looked
		}
		if n := len(c.epochs); n > 0 {
			now := c.epochs[n-1]
			if now.name == s.Epoch {
				if s.MustEpoch {
					c.violate("epoch", "start %d (%s) kept the epoch %s", i, s.Fault, s.Epoch)
				}
				continue
			}
			if !s.NewEpoch && !s.MustEpoch {
				c.violate("epoch", "start %d (%s) made the epoch %s after %s, though nothing was lost", i, s.Fault, s.Epoch, now.name)
			}
			if c.byName[s.Epoch] != nil {
				c.violate("epoch", "start %d (%s) came back to the epoch %s", i, s.Fault, s.Epoch)
				continue
			}
		}
		e := &epoch{n: len(c.epochs), name: s.Epoch, start: s, at: make(map[uint64]*entry), cut: math.MaxUint64,
			baseRows: make(map[rowKey]Row), lines: make(map[string][]point), keys: make(map[rowKey][]*entry),
			claimed: make(map[rowKey]*entry), groups: make(map[*Write][]*entry)}
		if s.Base != nil && e.n > 0 {
			if at, ok := parseCursor(s.Base.Cursor); ok {
				e.base = at.seq
			}
			for _, r := range s.Base.Rows {
				e.baseRows[rowKey{r.Collection, r.Key}] = r
			}
		}
		c.epochs = append(c.epochs, e)
		c.byName[e.name] = e
	}
}

// of is the epoch in which a sequence that was seen in e was given.
func (c *checker) of(e *epoch, seq uint64) *epoch {
	for e.n > 0 && seq <= e.base {
		e = c.epochs[e.n-1]
	}
	return e
}

// evidence is somebody's word for what a sequence is.
type evidence struct {
	seq     uint64
	row     rowKey
	removed bool
	value   string
	asked   *asked
	at      time.Duration
	where   string
}

func (c *checker) learn(e *epoch, v evidence) *entry {
	e = c.of(e, v.seq)
	x := e.at[v.seq]
	if x == nil {
		x = &entry{epoch: e, seq: v.seq, row: v.row, removed: v.removed, value: v.value, asked: v.asked, seen: v.at, where: v.where}
		e.at[v.seq] = x
		if v.asked != nil {
			v.asked.effects = append(v.asked.effects, x)
		}
		return x
	}
	if x.row != v.row || x.removed != v.removed || x.value != v.value || x.asked != nil && v.asked != nil && x.asked != v.asked {
		c.violate("function", "%s according to %s, but %s says %s removed=%v %s", x, x.where, v.where, v.row, v.removed, short(v.value))
		return x
	}
	if x.asked == nil && v.asked != nil {
		x.asked = v.asked
		v.asked.effects = append(v.asked.effects, x)
	}
	x.seen = min(x.seen, v.at)
	return x
}

// gather learns from answers, frames and snapshots.
func (c *checker) gather() {
	for _, w := range c.h.Writes {
		for j := range w.Attempts {
			a := &w.Attempts[j]
			if !slices.ContainsFunc(a.Results, Result.ok) {
				continue
			}
			where := fmt.Sprintf("the answer to attempt %d of %s/%s", j+1, w.Client, w.Changes[0].ID)
			at, ok := parseCursor(a.Cursor)
			e := c.byName[at.epoch]
			if !ok || e == nil {
				c.violate("epoch", "%s has the cursor %q, of no epoch that was", where, a.Cursor)
				continue
			}
			e.acks = append(e.acks, ack{a.Answered, at.seq})
			for i, r := range a.Results {
				if !r.ok() || i >= len(w.Changes) {
					continue
				}
				ch := &w.Changes[i]
				if r.Seq == 0 || r.Seq > at.seq && ch.Op != "remove" {
					c.violate("answer", "%s: sequence %d, cursor %s", where, r.Seq, a.Cursor)
					continue
				}
				x := c.learn(e, evidence{seq: r.Seq, row: rowKey{ch.Collection, r.Key}, removed: ch.Op == "remove", value: r.Value,
					asked: c.asked[writeID{w.Client, ch.ID}], at: a.Answered, where: where})
				if !x.acked || a.Answered < x.ackedAt {
					x.acked, x.ackedAt = true, a.Answered
				}
			}
		}
	}
	for _, s := range c.h.Streams {
		var e *epoch
		for i := range s.Frames {
			f := &s.Frames[i]
			if f.Type == "open" {
				e = c.byName[f.Epoch]
			}
			if f.Type != "change" || e == nil {
				continue
			}
			where := "a frame to " + s.Follower
			a := c.asked[writeID{f.Client, f.ID}]
			if a == nil && f.Op == "remove" && f.Client == "" && f.ID == "" {
				// A row that went by itself; build looks whether it might.
				c.learn(e, evidence{seq: f.Seq, row: rowKey{f.Collection, f.Key}, removed: true, at: f.At, where: where})
				continue
			}
			if a == nil {
				c.violate("stranger", "%s has %s-%d %s:%s, by %q/%q: nobody asked for it", where, e.name, f.Seq, f.Collection, f.Key, f.Client, f.ID)
				continue
			}
			if ch := a.change(); ch.Collection != f.Collection || ch.Key != "" && ch.Key != f.Key || (ch.Op == "remove") != (f.Op == "remove") {
				c.violate("stranger", "%s has %s of %s:%s by %s, which asked for %s of %s:%s", where, f.Op, f.Collection, f.Key, a.id, ch.Op, ch.Collection, ch.Key)
				continue
			}
			if f.At < a.sent() {
				c.violate("stranger", "%s has the change %s before it was sent", where, a.id)
			}
			c.learn(e, evidence{seq: f.Seq, row: rowKey{f.Collection, f.Key}, removed: f.Op == "remove", value: f.Value, asked: a, at: f.At, where: where})
		}
	}
	for _, e := range c.epochs {
		slices.SortFunc(e.acks, func(a, b ack) int { return cmp.Compare(a.at, b.at) })
		for i := 1; i < len(e.acks); i++ {
			e.acks[i].max = max(e.acks[i].max, e.acks[i-1].max)
		}
		// In the order of their sequences, so that evidence is told the same way each time.
		for _, k := range slices.SortedFunc(maps.Keys(e.baseRows), func(a, b rowKey) int { return cmp.Compare(e.baseRows[a].Seq, e.baseRows[b].Seq) }) {
			r := e.baseRows[k]
			if r.Seq <= e.base {
				c.learn(e, evidence{seq: r.Seq, row: k, value: r.Value, at: e.start.Ready, where: "the rows that epoch " + e.name + " began with"})
			}
		}
	}
}

// acknowledged is the newest cursor of e that anybody was told before a moment.
func (e *epoch) acknowledged(before time.Duration) uint64 {
	i := sort.Search(len(e.acks), func(i int) bool { return e.acks[i].at >= before })
	if i == 0 {
		return 0
	}
	return e.acks[i-1].max
}

func (e *epoch) sort() {
	e.order = slices.SortedFunc(maps.Values(e.at), func(a, b *entry) int { return cmp.Compare(a.seq, b.seq) })
}

// build plays an epoch's changes.
func (c *checker) build(e *epoch) {
	now := make(map[rowKey]*entry)
	prints := make(map[string]uint64)
	var whole uint64
	for k, r := range e.baseRows {
		x := &entry{epoch: e, seq: r.Seq, row: k, value: r.Value, old: true}
		now[k], e.claimed[k] = x, x
		p := fingerprint(k, r.Seq, r.Value)
		prints[k.collection] += p
		whole += p
	}
	for collection, p := range prints {
		e.lines[collection] = []point{{0, p}}
	}
	e.whole = []point{{0, whole}}
	var group []*entry
	var of *Write
	flush := func() {
		if of != nil && of.Atomic && len(of.Changes) > 1 {
			e.groups[of] = group
		}
		group, of = nil, nil
	}
	for _, x := range e.order {
		var w *Write
		if x.asked != nil {
			w = x.asked.write
		}
		if w != of {
			flush()
			of = w
		}
		group = append(group, x)

		was := now[x.row]
		c.decided(x, was)
		collection := x.row.collection
		if was == nil && x.removed {
			x.noop = true
		} else {
			if was != nil {
				p := fingerprint(x.row, was.seq, was.value)
				prints[collection] -= p
				whole -= p
			}
			if x.removed {
				delete(now, x.row)
			} else {
				p := fingerprint(x.row, x.seq, x.value)
				prints[collection] += p
				whole += p
				now[x.row] = x
			}
			of := e.keys[x.row]
			if n := len(of); n > 0 {
				of[n-1].next = x
			} else if first := e.claimed[x.row]; first != nil {
				first.next = x
			}
			e.keys[x.row] = append(of, x)
			e.lines[collection] = append(e.lines[collection], point{x.seq, prints[collection]})
		}
		e.whole = append(e.whole, point{x.seq, whole})
	}
	flush()
	for w, group := range e.groups {
		acked := 0
		for _, x := range group {
			if x.acked {
				acked++
			}
		}
		if acked > 0 && len(group) != len(w.Changes) {
			c.violate("part", "the transaction of %s/%s has %d changes, %d of them took effect", w.Client, w.Changes[0].ID, len(w.Changes), len(group))
		}
	}
}

// print is the fingerprint of a line after all changes up to seq.
func printAt(line []point, seq uint64) uint64 {
	i := sort.Search(len(line), func(i int) bool { return line[i].seq > seq })
	if i == 0 {
		return 0
	}
	return line[i-1].print
}

// rows plays one collection up to seq; slow, for evidence.
func (e *epoch) rows(collection string, seq uint64) map[string]*entry {
	rows := make(map[string]*entry)
	for k, x := range e.claimed {
		if k.collection == collection {
			rows[k.key] = x
		}
	}
	for _, x := range e.order {
		if x.seq > seq {
			break
		}
		if x.row.collection != collection {
			continue
		}
		if x.removed {
			delete(rows, x.row.key)
		} else {
			rows[x.row.key] = x
		}
	}
	return rows
}

func (e *epoch) collections() []string { return slices.Sorted(maps.Keys(e.lines)) }

// fingerprint of a row. Those of a set of rows are added up: their order does not count.
func fingerprint(k rowKey, seq uint64, value string) uint64 {
	h := uint64(14695981039346656037)
	for _, s := range []string{k.collection, k.key, value} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
		h = (h ^ 0xff) * 1099511628211
	}
	h = (h ^ seq) * 1099511628211
	// FNV's low bits mix badly under addition.
	h ^= h >> 32
	h *= 0x9e3779b97f4a7c15
	return h ^ h>>29
}

// cut finds where the epoch before e ended: e must have begun with a state that it had,
// at the end of a transaction.
func (c *checker) cut(before, e *epoch) {
	if e.start.Base == nil {
		c.violate("epoch", "nobody looked what the epoch %s began with", e.name)
		return
	}
	var base uint64
	for k, r := range e.baseRows {
		base += fingerprint(k, r.Seq, r.Value)
	}
	inside := make(map[uint64]bool) // sequences after which no state may be cut
	for _, group := range before.groups {
		for _, x := range group[:len(group)-1] {
			inside[x.seq] = true
		}
	}
	if e.start.Holes && before.whole[len(before.whole)-1].print != base {
		c.holes(before, e)
		return
	}
	// Several places have the same rows where a change left none behind: the last that the
	// new log may have had is where it was cut, but what is after the first may be lost too.
	found, at, least := false, uint64(0), uint64(0)
	for _, p := range slices.Backward(before.whole) {
		if p.print == base && !inside[p.seq] && (p.seq <= e.base || p.seq == 0) {
			if !found {
				found, at = true, p.seq
			}
			least = p.seq
		}
	}
	if !found {
		nearest := before.nearest(e)
		c.violate("lost", "the epoch %s began with rows that %s never had together; beside its state at %d: %s", e.name, before.name, nearest, c.differences(before, nearest, e))
		return
	}
	before.cut = least
	lost, example := 0, (*entry)(nil)
	for _, x := range before.order {
		if x.seq > at && x.acked && !x.noop {
			if lost++; example == nil {
				example = x
			}
			if x.ackedAt < e.start.Since {
				c.violate("lost", "%s was acknowledged at %v and is gone in %s; %s may take what came after %v", x, x.ackedAt, e.name, e.start.Fault, e.start.Since)
			}
		}
	}
	c.report.Lost += lost
	if lost > 0 && !e.start.Loss {
		c.violate("lost", "%d acknowledged changes of epoch %s after %d are gone in %s, which %s does not allow; the first is %s", lost, before.name, at, e.name, e.start.Fault, example)
	}
}

// holes checks an epoch that began with what was left: rows that there were once, each
// by itself.
func (c *checker) holes(before, e *epoch) {
	before.cut = 0
	for k, r := range e.baseRows {
		if x := before.at[r.Seq]; x != nil && x.row == k && !x.removed && x.value == r.Value {
			continue
		}
		if b, ok := before.baseRows[k]; ok && b == r {
			continue
		}
		c.violate("stranger", "the epoch %s began with %s at %d, which never was: %s", e.name, k, r.Seq, short(r.Value))
	}
	end := before.order[len(before.order)-1].seq
	for _, collection := range before.collections() {
		for key, x := range before.rows(collection, end) {
			if x.acked && e.baseRows[rowKey{collection, key}].Seq != x.seq {
				c.report.Lost++
			}
		}
	}
}

// nearest is the newest sequence of which a new epoch has a row.
func (e *epoch) nearest(after *epoch) uint64 {
	var seq uint64
	for _, r := range after.baseRows {
		seq = max(seq, r.Seq)
	}
	return seq
}

func (c *checker) differences(before *epoch, at uint64, e *epoch) string {
	text, n := "", 0
	tell := func(format string, args ...any) {
		if n++; n <= 5 {
			text += fmt.Sprintf(format, args...) + "; "
		}
	}
	want := make(map[rowKey]*entry)
	for _, collection := range before.collections() {
		for key, x := range before.rows(collection, at) {
			want[rowKey{collection, key}] = x
		}
	}
	for k, x := range want {
		if r, ok := e.baseRows[k]; !ok {
			tell("%s is missing", x)
		} else if r.Seq != x.seq || r.Value != x.value {
			tell("%s is %s at %d", x, short(r.Value), r.Seq)
		}
	}
	for k, r := range e.baseRows {
		if want[k] == nil {
			tell("%s at %d should not be there", k, r.Seq)
		}
	}
	return fmt.Sprintf("%s%d differences", text, n)
}

// compare holds rows against the model at a cursor, as they were at a moment, and says
// how they differ.
func (c *checker) compare(e *epoch, seq uint64, now time.Duration, collection string, rows map[string]Row, who, missing string) {
	want := e.rows(collection, seq)
	told, excused := 0, 0
	tell := func(rule, format string, args ...any) {
		if told++; told <= 3 {
			c.violate(rule, "%s, at %s-%d: %s", who, e.name, seq, fmt.Sprintf(format, args...))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		x := want[key]
		switch r, ok := rows[key]; {
		case !ok && c.unseen[x.row]:
			excused++ // a remove that was refused, delivered once more, and whose answer got lost
		case !ok && x.dies > 0 && x.dies <= now:
			excused++ // it went by itself, and was written anew before anybody was told
		case !ok:
			tell(missing, "%s is not there", x)
		case r.Seq < x.seq:
			tell(missing, "%s is still as it was at %d: %s", x, r.Seq, short(r.Value))
		case r.Seq > x.seq:
			tell("stranger", "%s is there as of %d, later than the cursor: %s", x, r.Seq, short(r.Value))
		case r.Value != x.value:
			tell("function", "%s has the value %s", x, short(r.Value))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		if want[key] != nil {
			continue
		}
		k, r := rowKey{collection, key}, rows[key]
		var last *entry
		for _, x := range e.keys[k] {
			if x.seq <= seq {
				last = x
			}
		}
		if last != nil && last.removed {
			tell("undeleted", "%s is there as of %d, and was removed at %d", k, r.Seq, last.seq)
		} else {
			tell("stranger", "%s is there as of %d, which the server never had: %s", k, r.Seq, short(r.Value))
		}
	}
	if told == 0 && excused == 0 {
		c.violate("function", "%s, at %s-%d: the rows of %s differ only in their fingerprint", who, e.name, seq, collection)
	}
}
