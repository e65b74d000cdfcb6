package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidemark-sync/tidemark/broker/history"
	"github.com/tidemark-sync/tidemark/sync/fault"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Options are the choices of Open. Dir is required.
type Options struct {
	// Dir is the store's directory. It is made if it is not there; its parent must be.
	Dir string
	// Logger takes what is worth telling: the state of the log when it is opened, and the
	// NATS server's own lines, most of them as Debug. nil: nothing is told.
	Logger *slog.Logger
	// Timeout is how long one request to the stored log may take: one group or part of a
	// checkpoint to be written and synced, or up to 4 MiB to be read. 0: 10 s.
	Timeout time.Duration
	// Relaxed acknowledges what the system holds in memory, and makes it durable about once
	// a second. A log that was not closed is then opened no more: see ErrUnclean.
	Relaxed bool
	// Reserve is the free space of the file system, in bytes, below which nothing is
	// written, so that the store itself never meets a full disk. 0: 64 MiB.
	Reserve int64
	// Scrub is how long one reading of all files takes, about, while the log is open: what
	// is harmed on the disk is found before it is needed. 0: 6 h. Below 0: never.
	Scrub time.Duration
	// Damaged is told what the scrub finds, and what is found when a disk that failed is
	// back, as a *feed.Damage. Close waits for it; its context ends then. nil: the logger
	// alone is told.
	Damaged func(context.Context, error)

	// History keeps what is trimmed, in the directory history; its own Dir and Logger are
	// not looked at. nil: what is trimmed is gone.
	History *history.Options

	maxStore int64 // bytes of both streams, beyond which no checkpoint is taken; for tests. 0: no limit but the disk's
}

func (o *Options) validate() error {
	if o.Dir == "" {
		return errors.New("open the log: no directory is given")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Timeout < 0 || o.Reserve < 0 {
		return fmt.Errorf("open the log: a timeout of %s, a reserve of %d bytes", o.Timeout, o.Reserve)
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Reserve == 0 {
		o.Reserve = 64 << 20
	}
	if o.Scrub == 0 {
		o.Scrub = 6 * time.Hour
	}
	if o.Damaged == nil {
		o.Damaged = func(context.Context, error) {}
	}
	if o.maxStore == 0 {
		o.maxStore = 1 << 60
	}
	return nil
}

var (
	// ErrClosed is returned by the methods of a Log that is closed, and matched by the
	// error of a call that Close cut short.
	ErrClosed = errors.New("the log is closed")
	// ErrUnclean is returned by Open for a log that was relaxed and that nobody closed: its
	// end may be lost, and nobody can tell. What is there can be read by Inspect, and made
	// into a new log by Replace.
	ErrUnclean = errors.New("the log was open in relaxed durability and was not closed: what it acknowledged last may be lost")
)

// Log is a feed.Log on disk. Open makes one, Close ends it.
type Log struct {
	// Static after construction.
	opts    Options
	epoch   feed.Epoch
	logger  *slog.Logger
	locked  *locks
	marker  marker
	opened  bool // Open has succeeded
	high    *highWater
	history *history.Store // nil: none is kept
	done    chan struct{}  // closed by Close

	nats       atomic.Pointer[embedded] // a stopped one while the log is mended
	space      atomic.Pointer[notReady] // the disk is too full
	plenty     atomic.Int64             // bytes that may be written before free space is asked for again
	broken     atomic.Pointer[notReady] // the disk fails, or has failed
	look       chan struct{}            // room for one: the scrub is to look now
	anew       atomic.Bool              // what is written goes to the new store of Rewrite
	newMark    mark                     // owned by Rewrite and the Append that it has called: that store's mark
	mending    sync.Mutex               // held by what stops the server and starts another
	forgetting sync.Mutex               // held by whoever opens a history that is not kept on
	looking    sync.Mutex               // held by what looks at the files for readers of the history, and what removes some
	looked     time.Time                // guarded by looking; when the files were last found as they were written
	closing    sync.Once
	calls      sync.WaitGroup // the calls under way; added to under mu, while not closed
	watching   sync.WaitGroup // what runs while the log is open

	mu      sync.Mutex
	closed  bool                 // guarded by mu
	readers map[*reader]struct{} // guarded by mu; reads of groups under way
	floor   feed.Position        // guarded by mu; groups before it are trimmed or being trimmed
	trims   int                  // guarded by mu; how often the floor or a checkpoint moved
	loads   int                  // guarded by mu; reads of checkpoints under way
}

var _ feed.Log = (*Log)(nil)

// reader is a Read under way: no group from its position on is trimmed meanwhile.
type reader struct{ from feed.Position }

// The genesis message has the stream's sequence 1, so the group at position p has p+1.
func sequence(p feed.Position) uint64 { return uint64(p) + 1 }
func position(s uint64) feed.Position { return feed.Position(s - 1) }

func genesis(epoch feed.Epoch) []byte { return []byte("tidemark log 1 " + string(epoch)) }

// genesisRecord is the most bytes that the genesis message takes in a block file:
// lengths, sequence, time and hash, 34 bytes, with the subject, the header that bears
// the fence, and the payload with the longest epoch.
const genesisRecord = int64(34 + len(logSubject) +
	len("NATS/1.0\r\n"+server.JSExpectedLastSeq+": 0\r\n\r\n") + len("tidemark log 1 ") + 16)

// Open opens the log in a directory, or makes it where there is none. ctx bounds the
// opening alone. The log is the caller's to close.
//
// ErrInUse: another process has it. feed.ErrDamaged, as a *feed.Damage: something that
// was stored is missing or harmed; nothing is served, and nothing is made anew. The
// files are read whole before the server may touch them, so that what is harmed
// stays as it was found.
func Open(ctx context.Context, opts Options) (*Log, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(opts.Dir, 0o750); err == nil {
		if err := syncPath(filepath.Dir(opts.Dir)); err != nil {
			return nil, fmt.Errorf("make the store's directory: %w", err)
		}
	} else if !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make the store's directory: %w", err)
	}
	locked, err := lock(opts.Dir)
	if err != nil {
		return nil, err
	}
	l := &Log{
		opts:    opts,
		logger:  opts.Logger,
		locked:  locked,
		done:    make(chan struct{}),
		look:    make(chan struct{}, 1),
		readers: make(map[*reader]struct{}),
	}
	if err := l.open(ctx); err != nil {
		l.release()
		return nil, fmt.Errorf("open the log in %s: %w", opts.Dir, err)
	}
	if opts.History != nil {
		if l.history, err = history.Open(ctx, opts.historyOptions()); err != nil {
			l.release()
			return nil, err
		}
		// Now, and not only when something is added: less of it may be what makes room for that.
		if err := l.history.Retain(); err != nil {
			l.logger.Error("drop old history; it is tried again", "err", err)
		}
	}
	l.opened = true
	l.start()
	return l, nil
}

// start starts what runs while the log is open.
func (l *Log) start() {
	l.high.start()
	l.watching.Go(l.watch)
	if l.opts.Scrub > 0 {
		l.watching.Go(l.scrub)
	}
}

func (l *Log) open(ctx context.Context) error {
	dir := l.opts.Dir
	m, found, err := readMarker(dir)
	if err != nil {
		return err
	}
	if !found {
		return l.create(ctx)
	}
	if m.Moving != "" {
		if err := finishMove(dir, &m); err != nil {
			return err
		}
	}
	if err := removeForgotten(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, newName)); err != nil { // it was to replace this one, and does not
		return err
	}
	if m.Relaxed {
		return ErrUnclean
	}
	l.marker, l.epoch = m, m.Epoch
	if l.high, err = openHighWater(dir, l.epoch); err != nil {
		return err
	}
	if err := l.begin(ctx); err != nil {
		return err
	}
	if m.Format == format && !l.opts.Relaxed {
		return nil
	}
	m.Format, m.Relaxed = format, l.opts.Relaxed
	l.marker = m
	return writeMarker(dir, m)
}

// begin checks the files, and starts a server on them.
func (l *Log) begin(ctx context.Context) error {
	dir := l.opts.Dir
	last, err := verifyFiles(ctx, dir, l.epoch, l.high.now())
	if err != nil {
		return err
	}
	// What a killed process wrote but had not synced is made durable before anybody can
	// read it.
	if err := syncTree(filepath.Join(dir, natsName)); err != nil {
		return err
	}
	// From here on it is as good as acknowledged: whoever reads it takes it for that.
	if last.pos > l.high.now().pos {
		if err := l.high.advance(last); err != nil {
			return err
		}
		if err := l.high.sync(); err != nil {
			return err
		}
	}
	if err := forgetIndex(dir); err != nil {
		return err
	}
	server, err := startServer(dir, l.opts)
	if err != nil {
		return err
	}
	l.nats.Store(server)
	return l.check(ctx, sequence(last.pos))
}

// create makes a new log; the marker, written last, makes it one.
func (l *Log) create(ctx context.Context) error {
	dir := l.opts.Dir
	if err := removeUnfinished(dir); err != nil {
		return err
	}
	if fresh := filepath.Join(dir, newName); hasLog(fresh) {
		return fmt.Errorf("a restore was cut short, and %s is what it left: restore again, or remove it to begin with nothing", fresh)
	}
	m := marker{Format: format, Epoch: feed.NewEpoch(), Created: time.Now().UTC().Truncate(time.Second), Relaxed: l.opts.Relaxed}
	l.marker, l.epoch = m, m.Epoch
	err := createHighWater(dir, l.epoch)
	if err == nil {
		l.high, err = openHighWater(dir, l.epoch)
	}
	if err != nil {
		return err
	}
	server, err := startServer(dir, l.opts)
	if err != nil {
		return err
	}
	l.nats.Store(server)
	for _, want := range streamConfigs(l.epoch) {
		if err := server.createStream(ctx, want); err != nil {
			return err
		}
	}
	if err := server.publish(ctx, logStream, logSubject, 0, genesis(l.epoch)); err != nil {
		return fmt.Errorf("write the genesis message: %w", err)
	}
	if err := syncTree(dir); err != nil {
		return err
	}
	if err := writeMarker(dir, m); err != nil {
		return err
	}
	l.logger.Info("made a new log", "dir", dir, "epoch", l.epoch)
	return l.check(ctx, 1)
}

// check compares what the server has restored with what must be there; ends is the
// sequence of the last message that its files hold.
func (l *Log) check(ctx context.Context, ends uint64) error {
	for _, want := range streamConfigs(l.epoch) {
		if err := l.nats.Load().checkStream(ctx, want); err != nil {
			return err
		}
	}
	if err := l.nats.Load().takeGroups(); err != nil {
		return err
	}
	state, err := l.state(ctx)
	if err != nil {
		return err
	}
	first, last := position(state.FirstSeq), position(state.LastSeq)
	if state.FirstSeq == 1 {
		b, err := l.get(ctx, logStream, 1)
		if errors.Is(err, errMissing) || err == nil && string(b) != string(genesis(l.epoch)) {
			return &feed.Damage{What: "the genesis message is missing, harmed, or of another log"}
		}
		if err != nil {
			return err
		}
	}
	c, found, err := l.newest(ctx)
	if err != nil {
		return err
	}
	if err := fits(state.FirstSeq, state.LastSeq, c, found); err != nil {
		return err
	}
	if state.LastSeq != ends {
		return &feed.Damage{At: last + 1, What: fmt.Sprintf("the server ends the log before it, and its files hold groups up to %d", position(ends))}
	}
	l.mu.Lock()
	l.floor = max(l.floor, first)
	l.mu.Unlock()
	l.logger.Info("opened the log", "epoch", l.epoch, "first", first, "last", last, "checkpoint", c.at, "bytes", state.Bytes)
	return nil
}

// state asks for the log's state; where it has holes, it is *feed.Damage.
func (l *Log) state(ctx context.Context) (server.StreamState, error) {
	info, err := l.nats.Load().info(ctx, logStream)
	if err != nil {
		return server.StreamState{}, err
	}
	s := info.State
	if s.FirstSeq == 0 || s.LastSeq < s.FirstSeq || s.Msgs == 0 {
		return s, &feed.Damage{What: "the log is empty: not even its genesis message is there"}
	}
	if held := s.LastSeq - s.FirstSeq + 1; s.Msgs != held {
		return s, &feed.Damage{What: fmt.Sprintf("between position %d and %d, %d of %d messages are there", position(s.FirstSeq), position(s.LastSeq), s.Msgs, held)}
	}
	return s, nil
}

// Epoch is the log's epoch. It was made with the store.
func (l *Log) Epoch() feed.Epoch { return l.epoch }

// Append writes a group of at most feed.MaxGroup bytes; see feed.Log. Where the
// context ends or the time is over before the answer is there, the outcome is
// feed.ErrUnknown. Where the disk failed, what was not acknowledged is cut off before
// the log goes on, and the outcome is feed.ErrNotWritten. The bytes are not kept.
func (l *Log) Append(ctx context.Context, after feed.Position, group []byte) (feed.Position, error) {
	if err := l.enter(); err != nil {
		return 0, err
	}
	defer l.calls.Done()
	doing := func(err error) error { return fmt.Errorf("append a group at position %d: %w", after+1, err) }
	if len(group) > feed.MaxGroup {
		return 0, doing(fmt.Errorf("nothing was written: %d bytes are over the limit of %d", len(group), feed.MaxGroup))
	}
	n := l.nats.Load()
	if err := l.room(int64(len(group))); err != nil {
		return 0, doing(n.certainly(err))
	}
	if err := n.put(ctx, sequence(after), group); err != nil {
		if errors.Is(err, feed.ErrFenced) && !l.anew.Load() {
			l.markIfThere(ctx, after+1, group)
		}
		if errors.Is(err, feed.ErrUnknown) && n.failing() && !l.anew.Load() {
			err = l.settle(ctx, n, err)
		}
		if l.anew.Load() {
			err = fmt.Errorf("%w: %w", feed.ErrNotWritten, err) // that store does not count yet, and will not
		}
		return 0, doing(err)
	}
	if l.anew.Load() {
		l.newMark = markOf(after+1, group) // once the store is in its place
		return after + 1, nil
	}
	fault.Point("append-published")
	if err := l.high.advance(markOf(after+1, group)); err != nil {
		// The group is durable: its writer must not be told otherwise. But nothing more is
		// taken until the mark can be written again.
		l.markBroken(err)
	}
	fault.Point("mark-written")
	return after + 1, nil
}

// markIfThere raises the mark to a group that is in the log already: an Append whose
// outcome was unknown has written it, and who finds it there takes it for acknowledged.
func (l *Log) markIfThere(ctx context.Context, at feed.Position, group []byte) {
	b, err := l.get(ctx, logStream, sequence(at))
	if err != nil || !bytes.Equal(b, group) {
		return
	}
	if err := l.high.advance(markOf(at, group)); err != nil {
		l.markBroken(err)
	}
}

// Trim forgets the groups before the position given; see feed.Log. It leaves those
// that a Read under way may yet want to the next Trim.
func (l *Log) Trim(ctx context.Context, before feed.Position) error {
	if err := l.enter(); err != nil {
		return err
	}
	defer l.calls.Done()
	c, _, err := l.newest(ctx)
	if err != nil {
		return fmt.Errorf("trim the log: %w", err)
	}
	if before > c.at {
		return fmt.Errorf("trim the log before position %d: the newest checkpoint is at %d", before, c.at)
	}
	if l.history != nil {
		if err := l.archive(ctx, before); err != nil {
			return fmt.Errorf("trim the log: %w", err)
		}
	}
	l.mu.Lock()
	for r := range l.readers {
		before = min(before, r.from)
	}
	// Raised before the purge and never lowered: a Read that comes now is told so, rather
	// than losing groups from under it.
	l.floor = max(l.floor, before)
	l.trims++
	l.mu.Unlock()

	state, err := l.state(ctx)
	if err != nil {
		return fmt.Errorf("trim the log: %w", err)
	}
	if before <= max(1, position(state.FirstSeq)) {
		return nil // there is nothing before it; the genesis message goes with group 1
	}
	l.looking.Lock()
	defer l.looking.Unlock()
	starts, err := l.untouched(ctx, l.nats.Load(), logStream, logSubject, state.LastSeq)
	if err != nil {
		return fmt.Errorf("trim the log: %w", err)
	}
	rest := trimPause(int64(state.Bytes))
	pause := func() {
		select {
		case <-time.After(rest):
		case <-ctx.Done():
		case <-l.done:
		}
	}
	// A file at a time: while the server removes files, nothing can be appended. All eight of a log of 64 MiB took 75 ms
	// together, of an ext4 that discards what is free; and see linger.
	for i, of := range starts {
		upTo := sequence(before)
		if i+1 < len(starts) {
			upTo = min(upTo, starts[i+1].seq)
		}
		if upTo <= state.FirstSeq {
			continue
		}
		free := linger(filepath.Join(msgsDir(l.nats.Load().dir, logStream), of.file))
		err := l.nats.Load().purge(ctx, logStream, upTo)
		l.mu.Lock()
		l.trims++ // again, because a scrub that began meanwhile may read it
		l.mu.Unlock()
		free(pause)
		if err != nil {
			return fmt.Errorf("trim the log: %w", err)
		}
		if upTo == sequence(before) {
			break
		}
	}
	// Purges have emptied streams before (nats-server 2.14): look.
	trimmed, err := l.state(ctx)
	if err != nil {
		return fmt.Errorf("trim the log: %w", err)
	}
	if trimmed.FirstSeq != sequence(before) || trimmed.LastSeq < state.LastSeq {
		return &feed.Damage{At: before, What: fmt.Sprintf("after trimming before it, the log holds %d to %d", position(trimmed.FirstSeq), position(trimmed.LastSeq))}
	}
	return nil
}

// freedAtOnce is how much of a removed file is freed at a time.
const freedAtOnce = 512 << 10

// trimPause is how long a Trim of so many bytes, at most, waits between two pieces of what it frees: 3 ms, so that few who
// append wait for it more than once; and no more than half a second in all, so that a log that grows fast is
// not trimmed more slowly than it grows. With 256 writers, 2.2 % of the writes were in groups that took more than 2 ms
// without, 1.1 % with it.
func trimPause(size int64) time.Duration {
	return min(3*time.Millisecond, 500*time.Millisecond/time.Duration(size/freedAtOnce+1))
}

// archive gives the history what is before a position. It is read by the server, so not where
// a file is harmed.
func (l *Log) archive(ctx context.Context, before feed.Position) error {
	state, err := l.state(ctx)
	if err != nil {
		return err
	}
	if err := l.room(int64(state.Bytes)); err != nil {
		return err
	}
	if _, err := l.untouched(ctx, l.nats.Load(), logStream, logSubject, state.LastSeq); err != nil {
		return err
	}
	return l.history.Archive(ctx, archived{l}, before)
}

// Close ends what is under way, waits for it, and stops the server. An Append that it
// cuts short is feed.ErrUnknown. A Read ends after the call of its fn, so fn must not
// call Close. Close may be called again, which does nothing but wait.
func (l *Log) Close() error {
	var err error
	l.closing.Do(func() {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		close(l.done)
		l.nats.Load().hangUp() // what waits for an answer stops waiting
		var herr error
		if l.history != nil {
			herr = l.history.Close() // reads of it end
		}
		l.watching.Wait()
		l.calls.Wait()
		err = errors.Join(herr, l.release())
	})
	return err
}

// release gives back what Open took, in the reverse order.
func (l *Log) release() error {
	var errs []error
	if l.history != nil {
		errs = append(errs, l.history.Close()) // nothing, where it is closed
	}
	if n := l.nats.Load(); n != nil {
		n.stop()
	}
	if l.high != nil {
		errs = append(errs, l.high.close())
	}
	if l.opened && l.marker.Relaxed {
		errs = append(errs, l.settleRelaxed())
	}
	if err := l.locked.Close(); err != nil {
		errs = append(errs, fmt.Errorf("unlock the store: %w", err))
	}
	return errors.Join(errs...)
}

// settleRelaxed makes a relaxed log durable, and says so in its marker.
func (l *Log) settleRelaxed() error {
	if err := syncTree(filepath.Join(l.opts.Dir, natsName)); err != nil {
		return err
	}
	l.marker.Relaxed = false
	return writeMarker(l.opts.Dir, l.marker)
}

// context ends when the log is closed, or by the function that it returns.
func (l *Log) context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case <-l.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// enter counts a call in, so that Close waits for it.
func (l *Log) enter() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.calls.Add(1)
	return nil
}
