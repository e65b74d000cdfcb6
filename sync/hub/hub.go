package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark-sync/tidemark/sync/fault"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Options of a hub. The zero value works; negative values are errors.
type Options struct {
	// Memory bounds what rows, tombstones and remembered ids may hold, in bytes.
	// Writes beyond it are refused. Default 1 GiB.
	Memory int64
	// Tombstones is for how long a remove is remembered. Default 7 days.
	Tombstones time.Duration
	// IDs is for how long the id of a change is remembered. Default 1 h.
	IDs time.Duration
	// IDCount is how many ids of one tenant are remembered at most: the oldest are
	// forgotten before their time where there are more. What is written at one moment
	// may exceed it, until the next. Default 1,000,000.
	IDCount int
	// Gather is how long changes that come one by one, but fast, wait for each other, so that they share a group: one
	// is not begun before this time after the one before. With the default hardly anybody waits below some 1,300 a second, nor, but
	// for one time in two thousand, where only those write who wait for their answers. At most MaxGather; 1 ns has
	// nobody wait. Default 4 ms.
	Gather time.Duration
	// Log is how much of the log is kept at least before a checkpoint replaces it, in
	// bytes; it grows with the state, so that checkpoints write each byte about once
	// more. Default 64 MiB.
	Log int64
	// Sessions is how many sessions may be open. Default 20000.
	Sessions int
	// Limits are those of a tenant, TenantLimits those of some by name: what is 0 there is as
	// in Limits.
	Limits       Limits
	TenantLimits map[string]Limits
	// Tenants are all that there are. Default (nil): a tenant comes to be when somebody uses it.
	Tenants []string
	// Logger gets what an operator must know. Default: nobody.
	Logger *slog.Logger
	// Clock tells the time. Default: Go's own clocks.
	Clock Clock
}

func (o *Options) validate() error {
	if o.Memory < 0 || o.Tombstones < 0 || o.IDs < 0 || o.IDCount < 0 || o.Log < 0 || o.Sessions < 0 || o.Gather < 0 {
		return errors.New("hub: an option is negative")
	}
	if o.Gather > MaxGather {
		return fmt.Errorf("hub: changes would wait %s for each other; at most %s", o.Gather, MaxGather)
	}
	if o.Gather == 0 {
		o.Gather = 4 * time.Millisecond
	}
	if o.Memory == 0 {
		o.Memory = 1 << 30
	}
	if o.Tombstones == 0 {
		o.Tombstones = 7 * 24 * time.Hour
	}
	if o.IDs == 0 {
		o.IDs = time.Hour
	}
	if o.IDCount == 0 {
		o.IDCount = 1_000_000
	}
	if o.Log == 0 {
		o.Log = 64 << 20
	}
	if o.Sessions == 0 {
		o.Sessions = 20_000
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = goClock{time.Now()}
	}
	return nil
}

// Hub is many sessions on one log. All methods may be called concurrently.
type Hub struct {
	// Static after construction.
	log   feed.Log
	opts  Options
	began time.Time
	state *state
	queue chan *Pending
	door  chan func()   // what inWriter runs
	stop  chan struct{} // closed by Drain: the writer finishes what waits, and ends
	done  chan struct{} // closed by the writer when it has
	ctx   context.Context
	abort context.CancelCauseFunc

	fences    *fences
	gathering *gathering
	pendings  sync.Pool   // see borrow
	unsettled atomic.Bool // it is not known what became of a group: the log does not answer

	// Owned by the writer.
	times      times // static once the log was read back
	buf        []byte
	line       []*Pending // what was taken out of the queue and is not decided
	later      patients   // and what was taken out and waits before it stands in line
	group      group      // the one that is being built, and the memory that the next one takes over
	failed     bool       // the log can't be written to any more
	told       time.Time  // when the logger last heard that an append failed
	toldIDs    time.Time  // and that ids are forgotten early
	expireLate bool       // the log did not take what is due
	logBytes   int64      // since the last checkpoint
	saveAt     int64      // save the next checkpoint when logBytes gets here
	checkpoint *saving    // the one under way, or that was not looked at since; nil: none

	saving sync.WaitGroup // the checkpoint under way

	gate    sync.RWMutex
	closed  error // guarded by gate: why nothing new is taken
	stopped bool  // guarded by gate: stop is closed

	mu       sync.Mutex
	sessions map[*Session]struct{} // guarded by mu

	sieves  sieves
	parking parking
	lanes   sync.Pool // of *lane, which sessions that are not parked use

	inquiries sync.WaitGroup // of sessions, about their grants
}

// Open reads the log back and starts the writer. The caller must Drain the hub
// before it closes the log.
func Open(ctx context.Context, log feed.Log, opts Options) (*Hub, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	fences, err := newFences(&opts)
	if err != nil {
		return nil, err
	}
	h := &Hub{
		log: log, opts: opts, began: time.Now(), fences: fences, state: newState(log.Epoch()),
		queue: make(chan *Pending, queueLength), door: make(chan func()), stop: make(chan struct{}), done: make(chan struct{}),
		sessions: make(map[*Session]struct{}), gathering: newGathering(opts.Gather),
	}
	h.parking.over = make(chan struct{})
	if err := h.load(ctx); err != nil {
		return nil, fmt.Errorf("read the log back: %w", err)
	}
	h.ctx, h.abort = context.WithCancelCause(context.Background())
	go h.run()
	return h, nil
}

// load folds checkpoint and log into the state.
func (h *Hub) load(ctx context.Context) error {
	s := h.state
	at, err := s.restore(ctx, h.log)
	if err != nil {
		return err
	}
	from, anchored, unpurged := at, at == 0, 0
	if at > 0 {
		from-- // the checkpoint's own group is still there: the chain begins with it
	}
	err = h.log.Read(ctx, from, func(p feed.Position, b []byte) error {
		g, sum, err := feed.DecodeGroup(b)
		if err == nil && !anchored {
			if p == at && sum == s.sum {
				anchored = true
				return nil
			}
			err = errors.New("it is not the group that the checkpoint was made after")
		}
		if err == nil {
			err = s.follows(g, p)
		}
		if err != nil {
			return &feed.Damage{At: p, What: err.Error()}
		}
		h.logBytes += int64(len(b))
		s.replay(g, p, sum)
		unpurged += len(g.Drop)
		if fault.Bug("ids-forgotten") {
			s.dropIDs()
		}
		return nil
	})
	if unpurged > 0 {
		h.opts.Logger.Warn("a tenant was forgotten, and it was not seen through: the log's files may still hold it; forget it again", "tenants", unpurged)
	}
	if err == nil && !anchored {
		err = &feed.Damage{At: at, What: "the group that the checkpoint was made after is missing"}
	}
	if err != nil {
		return err
	}
	if fault.Bug("sequence-reused") && s.position > 0 {
		s.next -= min(3, s.next-1)
	}
	if fault.Bug("ids-forgotten") {
		s.dropIDs()
	}
	s.head.Store(uint64(s.next - 1))
	h.times = countTimes(h.opts.Clock, s.position, s.times)
	h.plan()
	return nil
}

// replay folds a group of the log.
func (s *state) replay(g *feed.Group, p feed.Position, sum feed.Sum) {
	s.position, s.sum, s.at, s.times = p, sum, g.At, g.Times
	txns := make([]txn, len(g.Transactions))
	seq := g.First
	var e feed.Encoder
	for i := range txns {
		txns[i] = txn{g.Transactions[i], seq, s.appendChanges(nil, &e, &g.Transactions[i], seq, g.At)}
		seq += feed.Seq(len(txns[i].Records))
	}
	s.apply(txns)
	s.forget(g.ForgetTombstones, g.ForgetIDs, g.ForgetIDsOf)
	s.drop(g.Drop)
}

// follows tells whether g is the group after the last one applied.
func (s *state) follows(g *feed.Group, p feed.Position) error {
	switch {
	case g.Epoch != s.epoch:
		return fmt.Errorf("it is of epoch %s, the log is %s", g.Epoch, s.epoch)
	case p != s.position+1:
		return fmt.Errorf("it comes after position %d", s.position)
	case g.Position != p:
		return fmt.Errorf("it was written for position %d", g.Position)
	case g.First != s.next && !fault.Bug("sequence-reused"):
		return fmt.Errorf("it begins with sequence %d instead of %d", g.First, s.next)
	case g.Prev != s.sum:
		return errors.New("it does not follow from the group before it")
	case g.At < s.at:
		return errors.New("its time is before that of the group before it")
	case g.Age < s.times.Age || g.Steady < s.times.Steady:
		return errors.New("its clocks go back behind those of the group before it")
	}
	return nil
}

// Epoch is the log's epoch.
func (h *Hub) Epoch() feed.Epoch { return h.state.epoch }

// Stats are figures about a hub at one moment.
type Stats struct {
	Head     feed.Seq // the last sequence that can be seen
	Rows     int64    // rows that are there
	Bytes    int64    // what the state holds, about
	Memory   int64    // and may hold
	Sessions int
	Encoded  int64           // frames encoded since the start: one a change, whatever the number of sessions
	Refused  map[Limit]int64 // what was since the start, by the limit of a tenant that it would have broken
}

// Stats returns figures for logs and pages.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	sessions := len(h.sessions)
	h.mu.Unlock()
	s := h.state
	return Stats{
		Head: feed.Seq(s.head.Load()), Rows: s.rows.Load(), Bytes: s.bytes.Load(),
		Memory: h.opts.Memory, Sessions: sessions, Encoded: s.encoded.Load(), Refused: h.fences.refused.counts(),
	}
}

func (h *Hub) register(s *Session) error {
	h.gate.RLock()
	defer h.gate.RUnlock()
	if h.closed != nil {
		return h.refused()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.sessions) >= h.opts.Sessions {
		return unavailable(5*time.Second, "the server has %d feeds open, as many as it takes; try again later", h.opts.Sessions)
	}
	t, l := s.tenant, h.fences.of(s.tenant.name)
	if t.sessions >= l.Sessions {
		return h.counted(t.name, tooManyOf(t.name, LimitSessions, l.Sessions, "feeds open", "close some, or let pages share one"))
	}
	h.sessions[s] = struct{}{}
	t.sessions++
	return nil
}

func (h *Hub) unregister(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions, s)
	s.tenant.sessions--
	s.tenant.followed -= s.followed
	s.followed = 0
}

// followMore counts collections that a session follows more, or fewer.
func (h *Hub) followMore(s *Session, n int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, l := s.tenant, h.fences.of(s.tenant.name)
	if n > 0 && t.followed+n > l.Subscriptions {
		return h.counted(t.name, tooManyOf(t.name, LimitSubscriptions, l.Subscriptions, "collections followed by its feeds", "follow fewer in each"))
	}
	t.followed += n
	s.followed += n
	return nil
}

// end ends all sessions, each with a retry of its own, spread so that their clients
// do not come back as one: over a second, or half a millisecond each if that is more.
func (h *Hub) end(reason string) {
	h.mu.Lock()
	all := make([]*Session, 0, len(h.sessions))
	for s := range h.sessions {
		all = append(all, s)
	}
	h.mu.Unlock()
	spread := max(time.Second, time.Duration(len(all))*time.Millisecond/2)
	for _, s := range all {
		s.End(&Ended{Reason: reason, Retry: 100*time.Millisecond + rand.N(spread)})
	}
}

// Why a hub takes nothing new.
var (
	ErrDraining = errors.New("the server is about to stop")
	ErrFailed   = errors.New("the server can't write to its log")
)

// Err is why the hub takes no new sessions and writes, nil while it does: ErrDraining,
// or ErrFailed, with what became of the log. It does not recover from either.
func (h *Hub) Err() error {
	h.gate.RLock()
	defer h.gate.RUnlock()
	return h.closed
}

// Ready is why the hub takes no writes now, though it serves: its log's disk is full or
// fails. nil while it takes them.
func (h *Hub) Ready() error { return h.log.Ready() }

// Fail ends the hub's work for good, because its log can't be trusted any more: sessions
// end with "failed", and nothing new is taken.
func (h *Hub) Fail(ctx context.Context, why error) error {
	return h.inWriter(ctx, func() { h.fail(why) })
}

// fail ends the hub's work for good: the log is not ours any more, or can't be trusted
// to be as the state says.
func (h *Hub) fail(why error) {
	h.failed = true
	h.gate.Lock()
	if h.closed == nil {
		h.closed = fmt.Errorf("%w: %w", ErrFailed, why)
	}
	h.gate.Unlock()
	h.end(EndFailed)
}

// refused is what is said to those who come while closed; it needs gate.
func (h *Hub) refused() error {
	if errors.Is(h.closed, ErrFailed) {
		return unavailable(30*time.Second, "%s: its operator must look at it", ErrFailed)
	}
	return unavailable(time.Second, "%s: try again in a moment", h.closed)
}

// Drain ends all sessions, takes no new ones and no new writes, and returns when
// all writes that were taken are answered and nothing of the hub runs any more. If
// the context ends first, waiting writes are given up: their outcome is unknown.
func (h *Hub) Drain(ctx context.Context) error {
	h.gate.Lock()
	if h.closed == nil {
		h.closed = ErrDraining
	}
	if !h.stopped {
		h.stopped = true
		close(h.stop)
	}
	h.gate.Unlock()
	h.end(EndDraining)
	h.inquiries.Wait() // they were stopped
	stop := context.AfterFunc(ctx, func() { h.abort(context.Cause(ctx)) })
	defer stop()
	<-h.done
	h.parking.close()
	h.abort(ErrDraining) // a checkpoint under way is given up: the log has it all
	h.saving.Wait()
	return ctx.Err()
}
