package hub

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/sync/fault"
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
	// TTL is for how long the row lives from now: 1 s to MaxTTL. 0: for ever, but modify
	// then leaves the row the time that it has.
	TTL time.Duration
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

	outOfSight Status = "out-of-sight" // a filter does not let the row through
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
	grant  Grant
	epoch  feed.Epoch // see EpochOf
	writes []prepared
	one    [1]prepared // the memory of writes where there is one
	texts  []byte      // where their values and patches stand, until the group that they are in is over
	size   int64
	made   int64 // of size, what patches were found to make
	own    bool  // it is the hub's: names and bounds of clients do not count

	patient bool // its tenant writes more than it may: it waits a while, and is in nobody's way

	since time.Duration // when it came, since its hub began, where a group waited for company

	done   chan struct{}       // room for one: it comes when what follows is set
	then   func(Result, error) // is called instead, unless it is nil
	result Result
	err    error
}

// prepared is a Write whose JSON was checked.
type prepared struct {
	value, patch string
	digest       feed.Digest
	filters      []Filter // a row that does not pass them can't be written, nor be found
	blind        bool     // the caller may not read: no row is shown

	// What the filters said, before it stood in line (see look) and since then: of value, and of the rows that the
	// request met, by sequence; all its changes share that. nil: there are no filters.
	fits   bool   // value passes, or what the patch makes
	merged string // what a patch makes of the row as it was then
	*asked
}

// asked is what the filters said of the rows that a request met, by sequence.
type asked struct {
	seen  map[feed.Seq]bool
	spent time.Duration // on asking while others waited
}

// askTime is what the filters of one request may take while others wait. It is only needed where rows change between the
// look and the decision.
const askTime = 50 * time.Millisecond

func (a *asked) ask(filters []Filter, value string) bool {
	began := time.Now()
	defer func() { a.spent += time.Since(began) }()
	return sees(filters, value)
}

// Write writes a request and waits until it is durable, or refused. A *Refusal says
// what to do, and that nothing happened unless it is Unknown; a context that ends
// means that it may or may not happen.
func (h *Hub) Write(ctx context.Context, g Grant, req Request) (Result, error) {
	p := h.borrow(g, req)
	if p.done == nil {
		p.done = make(chan struct{}, 1)
	}
	if err := h.begin(p); err != nil {
		h.giveBack(p)
		return Result{}, err
	}
	select {
	case <-p.done:
		result, err := p.result, p.err
		h.giveBack(p)
		return result, err
	case <-ctx.Done():
		return Result{}, ctx.Err() // it is the writer's
	}
}

// Begin checks a request and puts it in line, after all that were begun before. The
// caller must not change what the request holds until it is answered, but for the
// bytes of values and patches, which are free when Begin returns.
func (h *Hub) Begin(g Grant, req Request) (*Pending, error) {
	p := &Pending{req: req, grant: g, done: make(chan struct{}, 1)}
	if err := h.begin(p); err != nil {
		return nil, err
	}
	return p, nil
}

// BeginThen is Begin for who does not wait: then is called once with what Wait would return, unless BeginThen
// returns an error. The writer calls it, between two groups, so it must return at once.
func (h *Hub) BeginThen(g Grant, req Request, then func(Result, error)) error {
	p := h.borrow(g, req)
	p.then = then
	err := h.begin(p)
	if err != nil {
		h.giveBack(p)
	}
	return err
}

// borrow is a new Pending where nobody outside sees it, so that it can be used again: they were the half of what a write
// allocates, and each collection of garbage that 256 writers bring about is 3 ms that all of them wait.
func (h *Hub) borrow(g Grant, req Request) *Pending {
	p, ok := h.pendings.Get().(*Pending)
	if !ok {
		p = new(Pending)
	}
	p.req, p.grant = req, g
	return p
}

// giveBack is for who has the last word of a request that was borrowed.
func (h *Hub) giveBack(p *Pending) {
	texts := p.texts
	if cap(texts) > textsKept {
		texts = nil
	}
	clear(texts) // who has kept one of them would see it
	*p = Pending{done: p.done, texts: texts[:0]}
	h.pendings.Put(p)
}

func (h *Hub) begin(p *Pending) error {
	if err := h.mayUse(&p.grant, p.req.Tenant); err != nil {
		return err
	}
	if err := p.prepare(); err != nil {
		return err
	}
	if len(p.grant.Filters) > 0 {
		p.look(h.state.lookup(p.req.Tenant))
	}
	p.epoch = h.EpochOf(p.grant)
	return h.enqueue(p)
}

// look asks the filters before the request stands in line, where nobody but its sender waits for them: of what it is to
// write, and of the rows as they are now.
func (p *Pending) look(t *tenant) {
	all := &asked{seen: make(map[feed.Seq]bool)}
	made, room := make(map[rowKey]string), maxTransaction // what the changes before make of rows
	for i := range p.writes {
		x, w := &p.writes[i], &p.req.Writes[i]
		x.asked = all
		if len(x.filters) == 0 {
			continue
		}
		x.fits = x.value != "" && sees(x.filters, x.value)
		key := rowKey{"", w.Collection, w.Key}
		value, changed := made[key]
		if !changed && t != nil {
			var c *feed.Change
			t.mu.RLock()
			if v := t.views[w.Collection]; v != nil {
				c = v.row(w.Key)
			}
			t.mu.RUnlock()
			if c != nil && x.sees(c.Seq(), c.Value()) {
				value = c.Value()
			}
		}
		if x.patch != "" && value != "" && room >= 0 {
			merged, err := mergePatch(value, x.patch)
			if room -= len(merged); err == nil && room >= 0 { // else it is refused
				x.merged, x.fits = merged, sees(x.filters, merged)
				p.size, p.made = p.size+int64(len(merged)), p.made+int64(len(merged)) // which it keeps in line
			}
		}
		switch {
		case x.patch != "":
			made[key] = x.merged
		case w.Key != "":
			made[key] = x.value
		}
	}
	all.spent = 0 // nobody waited
}

// enqueue puts a request in line.
func (h *Hub) enqueue(p *Pending) error {
	h.gate.RLock()
	defer h.gate.RUnlock()
	if h.closed != nil {
		return h.refused()
	}
	if err := h.log.Ready(); err != nil {
		return notReady(err)
	}
	if h.unsettled.Load() {
		return noAnswer()
	}
	if err := h.fences.enter(p); err != nil {
		return h.counted(p.req.Tenant, err)
	}
	h.note(p, len(h.queue)+1)
	h.queue <- p // there is room: no more have entered than it holds
	return nil
}

// Wait waits for the outcome; see Write.
func (p *Pending) Wait(ctx context.Context) (Result, error) {
	select {
	case <-p.done:
		p.done <- struct{}{} // for who asks again
		return p.result, p.err
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}

// answer is the writer's last look at a request.
func (h *Hub) answer(p *Pending, r Result, err error) {
	if p.then != nil {
		p.then(r, err)
		h.giveBack(p)
		return
	}
	p.result, p.err = r, err
	p.done <- struct{}{}
}

// prepare checks all that can be said about a request without knowing the state.
func (p *Pending) prepare() error {
	r, g := &p.req, &p.grant
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
	texts := 0
	for i := range r.Writes {
		w := &r.Writes[i]
		texts += len(w.Value) + len(w.Patch)
		p.size += int64(len(w.Key)+len(w.Collection)+len(w.ID)) + writeCost
	}
	p.size += int64(texts)
	if p.size > maxQueued/4 {
		return refuse(TooLarge, "the request has %d bytes; at most %d: split it", p.size, maxQueued/4)
	}
	if p.writes = p.one[:]; len(r.Writes) > 1 {
		p.writes = make([]prepared, len(r.Writes))
	}
	p.texts = slices.Grow(p.texts, texts)
	for i := range r.Writes {
		if err := p.check(&p.writes[i], &r.Writes[i]); err != nil {
			var refusal *Refusal
			if errors.As(err, &refusal) && len(r.Writes) > 1 {
				refusal.Detail = fmt.Sprintf("changes[%d]: %s", i, refusal.Detail)
			}
			return err
		}
		w := &r.Writes[i]
		if p.own {
			continue
		}
		if !g.may(g.Write, r.Tenant, w.Collection) {
			return refuse(Forbidden, "the credential does not cover writing to %s of tenant %s", w.Collection, r.Tenant)
		}
		p.writes[i].filters, p.writes[i].blind = g.filters(w.Collection), !g.may(g.Read, r.Tenant, w.Collection)
	}
	return nil
}

func (p *Pending) check(x *prepared, w *Write) (err error) {
	if err := feed.CheckCollection(w.Collection); err != nil && !p.own {
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
	if err := w.checkTTL(); err != nil {
		return err
	}
	switch w.Op {
	case "insert", "put":
		if w.Patch != nil {
			return refuse(BadRequest, "%s takes a value, not a patch", w.Op)
		}
		x.value, err = p.compact("value", w.Value)
	case "modify":
		switch {
		case (w.Value == nil) == (w.Patch == nil):
			return refuse(BadRequest, "modify takes either a patch, which is merged into the row, or a value, which replaces it")
		case w.Patch != nil:
			x.patch, err = p.compact("patch", w.Patch)
		default:
			x.value, err = p.compact("value", w.Value)
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
	b := make([]byte, 0, 64+len(w.Key)+len(x.value)+len(x.patch))
	for _, s := range []string{w.Op, w.Collection, w.Key, x.value, x.patch} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	if w.If != nil {
		b = binary.AppendUvarint(append(b, 1), uint64(*w.If))
	}
	if w.IfExists {
		b = append(b, 2)
	}
	if w.TTL != 0 {
		b = binary.AppendUvarint(append(b, 3), uint64(w.TTL.Milliseconds()))
	}
	full := sha256.Sum256(b)
	x.digest = feed.Digest(full[:16])
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
	// leaveTogether is how many leave at a time, because those who come in want the same lock.
	leaveTogether = 64
	writeCost     = 200      // bytes of a change in line beside its texts, about
	textsKept     = 4 << 10  // bytes
	maxQueued     = 64 << 20 // bytes
	// maxTransaction is what one transaction may weigh in the log: below
	// feed.MaxGroup, with room for names and headers.
	maxTransaction = 4 << 20
)

// notReady says why nothing is written now.
func notReady(why error) error { return unavailable(5*time.Second, "%s", why) }

func noAnswer() error {
	return unavailable(5*time.Second, "the log does not answer, and nothing was written: try again in a moment")
}

// run is the writer: it takes all that waits, decides it in order, appends it as one
// group and applies it. While one group is made durable the next one gathers.
func (h *Hub) run() {
	defer close(h.done)
	forget := time.NewTicker(h.forgetEvery())
	defer forget.Stop()
	wake := time.NewTimer(wakeMost)
	defer wake.Stop()
	h.later.over = time.NewTimer(0)
	defer h.later.over.Stop()
	for {
		var due <-chan time.Time
		if until := h.untilDeadline(); until >= 0 {
			wake.Reset(until)
			due = wake.C
		}
		select {
		case p := <-h.queue:
			if h.stand(p) {
				h.gather()
				h.write()
			}
		case <-h.later.over.C:
			h.line = append(h.line, h.later.leave()...)
			h.write()
		case <-due:
			h.expire()
		case fn := <-h.door:
			fn()
		case <-forget.C:
			h.forget()
		case <-h.stop:
			for h.another() {
			}
			h.line = append(h.line, h.later.leave()...)
			h.write()
			return
		}
	}
}

// inWriter runs fn in the writer, between two groups: the state is at rest meanwhile. An
// error says why it was not run.
func (h *Hub) inWriter(ctx context.Context, fn func()) error {
	if err := h.Err(); err != nil {
		return err
	}
	return h.atRest(ctx, fn)
}

// atRest is inWriter for what only looks: the state is as whole as ever where the hub has failed.
func (h *Hub) atRest(ctx context.Context, fn func()) error {
	ran := make(chan struct{})
	select {
	case h.door <- func() { fn(); close(ran) }:
		<-ran
		return nil
	case <-h.done:
		return h.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// patients are the requests of tenants that write more than they may: what they may write waits, and then has
// groups of its own. In groups of others it is delivered at the same moment as theirs, and a sync of the disk for each
// of its requests would be what others wait for.
type patients struct {
	all  []*Pending
	of   map[string]struct{} // whose they are
	over *time.Timer         // fires patientFor after the first
}

// patientFor is how long the first of them waits.
const patientFor = 20 * time.Millisecond

func (s *patients) add(p *Pending) {
	if len(s.all) == 0 {
		s.over.Reset(patientFor)
	}
	if s.of == nil {
		s.of = make(map[string]struct{})
	}
	s.all, s.of[p.req.Tenant] = append(s.all, p), struct{}{}
}

// leave returns them, in their order.
func (s *patients) leave() []*Pending {
	all := s.all
	s.all, s.of = nil, nil
	return all
}

// stand puts a request that was taken out of the queue in line. false: it waits, because it is patient, or because
// one of its tenant's from before does.
func (h *Hub) stand(p *Pending) bool {
	if _, waits := h.later.of[p.req.Tenant]; waits || p.patient {
		h.later.add(p)
		return false
	}
	h.line = append(h.line, p)
	return true
}

// write sees all that stands in line through, in groups.
func (h *Hub) write() {
	for len(h.line) > 0 {
		h.writeGroup()
	}
}

// writeGroup decides what stands in line and what is behind it, up to a group's size, and sees
// that through.
func (h *Hub) writeGroup() {
	g := h.newGroup()
	g.expire()
	n, left := 0, 0
	for ; g.size < feed.GroupSize && (n < len(h.line) || h.another() || h.more()); n++ {
		if n-left == leaveTogether {
			h.fences.leave(h.line[left:n]...)
			left = n
		}
		p := h.line[n]
		if result, err := h.decide(g, p); err != nil {
			h.fences.leave(h.line[left : n+1]...)
			left = n + 1
			h.answer(p, Result{}, h.counted(p.req.Tenant, err))
		} else {
			p.result = result
			g.decided = append(g.decided, p)
		}
	}
	h.fences.leave(h.line[left:n]...)
	h.line = slices.Delete(h.line, 0, n)
	early := h.boundIDs(g)
	err := h.commit(g)
	if err == nil && early {
		h.warnOfIDs()
	}
	for _, p := range g.decided {
		if err != nil {
			h.answer(p, Result{}, err)
		} else {
			h.answer(p, p.result, nil)
		}
	}
	clear(g.decided)
	g.decided = g.decided[:0]
}

// another takes a request that does not wait out of the queue, if there is one.
func (h *Hub) another() bool {
	for {
		select {
		case p := <-h.queue:
			if h.stand(p) {
				return true
			}
		default:
			return false
		}
	}
}

// more lets who is about to write do so, and tells whether somebody did.
func (h *Hub) more() bool {
	runtime.Gosched()
	return h.another()
}

// decide decides one request, unless its credential was revoked or has ended while it stood in line.
func (h *Hub) decide(g *group, p *Pending) (Result, error) {
	if !p.own {
		if err := h.counts(&p.grant, p.req.Tenant); err != nil {
			return Result{}, err
		}
	}
	return g.decide(p, h.opts.Memory, h.fences.of(p.req.Tenant))
}

// commit appends a group and applies it; the group is over then. An error is a *Refusal.
func (h *Hub) commit(g *group) (err error) {
	defer func() {
		if err != nil {
			h.state.expiring.putBack(g.due)
		}
		g.clear()
	}()
	if len(g.txns) == 0 && g.forgetTombstones == 0 && g.forgetIDs == 0 && !g.empty {
		return nil
	}
	if h.failed {
		h.gate.RLock()
		defer h.gate.RUnlock()
		return h.refused()
	}
	s := h.state
	for i := range g.txns {
		g.logged = append(g.logged, g.txns[i].Transaction)
	}
	enc := feed.Group{
		Epoch: s.epoch, Position: s.position + 1, First: s.next, At: g.at, Times: g.times, Prev: s.sum,
		Transactions:     g.logged,
		ForgetTombstones: g.forgetTombstones, ForgetIDs: g.forgetIDs, ForgetIDsOf: g.forgetIDsOf, Drop: g.drop,
	}
	var sum feed.Sum
	h.buf, sum = feed.AppendGroup(h.buf[:0], &enc)
	fault.Point("decided")
	if g.next-s.next < manyChanges {
		g.encode()
	} else { // on its way to the disk, when the processors have nothing else to do: who wrote waits for it
		g.encoding.Go(g.encode)
	}
	err = h.append(h.buf)
	g.encoding.Wait()
	if err != nil {
		if now := time.Now(); now.Sub(h.told) > time.Second { // a disk that is full refuses every write
			h.told = now
			h.opts.Logger.Error("append to the log", "position", enc.Position, "err", err)
		}
		if errors.Is(err, feed.ErrNotReady) && !errors.Is(err, feed.ErrUnknown) {
			if why := h.log.Ready(); why != nil {
				err = why // without what is only for the logger
			}
			return notReady(err)
		}
		if errors.Is(err, feed.ErrUnknown) && !errors.Is(err, feed.ErrNotWritten) {
			return &Refusal{Code: Unavailable, Retry: 5 * time.Second, Unknown: true,
				Detail: "the log did not say whether it took the write: send it again with the same ids"}
		}
		return unavailable(5*time.Second, "the log did not take the write: try again in a moment")
	}
	for _, p := range g.decided {
		p.settle(g.changes, s.next)
	}
	fault.Point("appended")
	s.position, s.sum, s.at, s.times = enc.Position, sum, enc.At, enc.Times
	touched := s.apply(g.txns)
	s.forget(g.forgetTombstones, g.forgetIDs, g.forgetIDsOf)
	s.drop(g.drop)
	s.head.Store(uint64(s.next - 1))
	for v := range touched {
		v.wake()
	}
	h.grown(int64(len(h.buf)))
	if cap(h.buf) > 2*feed.GroupSize {
		h.buf = nil
	}
	fault.Point("applied")
	return nil
}

// settle has the outcomes of a request hold values of the changes of its group, the first of which is at a sequence,
// instead of texts that go with the request that brought them.
func (p *Pending) settle(changes []*feed.Change, first feed.Seq) {
	for i := range p.result.Outcomes {
		if o := &p.result.Outcomes[i]; o.Value != "" && o.Seq >= first {
			o.Value = changes[o.Seq-first].Value()
		}
	}
}

// append settles what became of a group: an unknown outcome is tried again, at the
// same place with the same bytes, until the log either has it there or refuses it
// for good. Who else wants to write is told meanwhile that the log does not answer. Where
// somebody else writes, or the outcome stays unknown, the hub fails; feed.ErrUnknown is
// the error then, unless the group is certainly not there.
func (h *Hub) append(group []byte) error {
	unknown := false
	defer h.unsettled.Store(false)
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
		case errors.Is(err, feed.ErrNotWritten):
			return err
		case errors.Is(err, feed.ErrFenced):
			h.fail(err)
			return err
		case errors.Is(err, feed.ErrDamaged):
			h.fail(err)
			if unknown {
				err = fmt.Errorf("%w: %w", feed.ErrUnknown, err)
			}
			return err
		case errors.Is(err, feed.ErrUnknown):
			unknown = true
			h.unsettled.Store(true)
		case !unknown:
			return err
		}
		h.opts.Logger.Warn("the outcome of an append is not known; asking again", "position", h.state.position+1, "err", err)
		for over := time.After(pause); over != nil; {
			select {
			case p := <-h.queue:
				h.fences.leave(p)
				h.answer(p, Result{}, noAnswer())
			case <-over:
				over = nil
			case <-h.ctx.Done():
				err = fmt.Errorf("%w: stopped while asking: %w", feed.ErrUnknown, err)
				h.fail(err)
				return err
			}
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
	g := h.newGroup()
	before := g.times.Age - h.opts.Tombstones.Milliseconds()
	if t, ok := h.state.tombs.front(); ok && t.age < before {
		g.forgetTombstones = before
	}
	before = g.times.Age - h.opts.IDs.Milliseconds()
	for t := range h.state.all() {
		if id, ok := t.seen.front(); ok && id.age < before {
			g.forgetIDs = before
			break
		}
	}
	_ = h.commit(g) // it has said why; it is tried again at the next tick
}

// boundIDs has the oldest ids forgotten of tenants that get too many with the group, and
// tells whether that is before their time.
func (h *Hub) boundIDs(g *group) (early bool) {
	for name, n := range g.added {
		t := h.state.lookup(name)
		if t == nil {
			continue
		}
		over := min(t.seen.len()+n-h.opts.IDCount, t.seen.len())
		if over <= 0 {
			continue
		}
		last := t.seen.items[t.seen.from+over-1]
		g.forgetIDsOf = append(g.forgetIDsOf, feed.IDFloor{Tenant: t.name, Seq: t.ids[last.key].change.Seq()})
		early = early || last.age >= g.times.Age-h.opts.IDs.Milliseconds()
	}
	return early
}

func (h *Hub) warnOfIDs() {
	if now := time.Now(); now.Sub(h.toldIDs) > time.Minute {
		h.toldIDs = now
		h.opts.Logger.Warn("a tenant writes so many ids that they are forgotten before their time: a late retry may be done twice",
			"most", h.opts.IDCount, "window", h.opts.IDs)
	}
}

func (h *Hub) forgetEvery() time.Duration {
	return min(max(min(h.opts.Tombstones, h.opts.IDs)/20, 50*time.Millisecond), 10*time.Minute)
}
