package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"

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

	maxStore int64 // bytes of both streams; for tests. 0: no limit but the disk's
}

func (o *Options) validate() error {
	if o.Dir == "" {
		return errors.New("open the log: no directory is given")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Timeout < 0 {
		return fmt.Errorf("open the log: a timeout of %s", o.Timeout)
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.maxStore == 0 {
		o.maxStore = 1 << 60
	}
	return nil
}

// ErrClosed is returned by the methods of a Log that is closed, and matched by the
// error of a call that Close cut short.
var ErrClosed = errors.New("the log is closed")

// Log is a feed.Log on disk. Open makes one, Close ends it.
type Log struct {
	// Static after construction.
	epoch   feed.Epoch
	logger  *slog.Logger
	timeout time.Duration
	locked  *os.File
	high    *highWater
	nats    *embedded
	done    chan struct{} // closed by Close

	closing sync.Once
	calls   sync.WaitGroup // the calls under way; added to under mu, while not closed

	mu      sync.Mutex
	closed  bool                 // guarded by mu
	readers map[*reader]struct{} // guarded by mu; reads of groups under way
	floor   feed.Position        // guarded by mu; groups before it are trimmed or being trimmed
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
		logger:  opts.Logger,
		timeout: opts.Timeout,
		locked:  locked,
		done:    make(chan struct{}),
		readers: make(map[*reader]struct{}),
	}
	if err := l.open(ctx, opts); err != nil {
		l.release()
		return nil, fmt.Errorf("open the log in %s: %w", opts.Dir, err)
	}
	return l, nil
}

func (l *Log) open(ctx context.Context, opts Options) error {
	m, found, err := readMarker(opts.Dir)
	if err != nil {
		return err
	}
	if !found {
		return l.create(ctx, opts)
	}
	l.epoch = m.Epoch
	if l.high, err = openHighWater(opts.Dir, l.epoch); err != nil {
		return err
	}
	last, err := verifyStream(ctx, opts.Dir, logStream, logSubject)
	if err != nil {
		return err
	}
	if _, err := verifyStream(ctx, opts.Dir, checkpointStream, checkpointSubject); err != nil {
		return err
	}
	if high := l.high.position(); last != 0 && position(last) < high {
		return &feed.Damage{At: position(last + 1), What: fmt.Sprintf("the log ends before it, and groups up to %d were acknowledged", high)}
	}
	// What a killed process wrote but had not synced is made durable before anybody can
	// read it.
	if err := syncTree(filepath.Join(opts.Dir, natsName)); err != nil {
		return err
	}
	if l.nats, err = startServer(opts.Dir, opts); err != nil {
		return err
	}
	return l.check(ctx, last)
}

// create makes a new log; the marker, written last, makes it one.
func (l *Log) create(ctx context.Context, opts Options) (err error) {
	if err := removeUnfinished(opts.Dir); err != nil {
		return err
	}
	m := marker{Format: format, Epoch: feed.NewEpoch(), Created: time.Now().UTC().Truncate(time.Second)}
	l.epoch = m.Epoch
	if l.high, err = createHighWater(opts.Dir, l.epoch); err != nil {
		return err
	}
	if l.nats, err = startServer(opts.Dir, opts); err != nil {
		return err
	}
	for _, want := range streamConfigs(l.epoch) {
		if err := l.nats.createStream(ctx, want); err != nil {
			return err
		}
	}
	if err := l.nats.publish(ctx, logStream, logSubject, 0, genesis(l.epoch)); err != nil {
		return fmt.Errorf("write the genesis message: %w", err)
	}
	if err := syncTree(opts.Dir); err != nil {
		return err
	}
	if err := writeMarker(opts.Dir, m); err != nil {
		return err
	}
	l.logger.Info("made a new log", "dir", opts.Dir, "epoch", l.epoch)
	return l.check(ctx, 1)
}

// check compares what the server has restored with what must be there; ends is the
// sequence of the last message that its files hold.
func (l *Log) check(ctx context.Context, ends uint64) error {
	for _, want := range streamConfigs(l.epoch) {
		if err := l.nats.checkStream(ctx, want); err != nil {
			return err
		}
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
	switch {
	case state.FirstSeq > 1 && !found:
		return &feed.Damage{What: fmt.Sprintf("the log begins at position %d, and there is no checkpoint that stands for what was before", first)}
	case state.FirstSeq > 1 && first > c.at:
		return &feed.Damage{At: first, What: fmt.Sprintf("the log begins here, and the newest checkpoint is at %d", c.at)}
	case found && last < c.at:
		return &feed.Damage{At: last + 1, What: fmt.Sprintf("the log ends before it, and the newest checkpoint is at %d", c.at)}
	}
	if state.LastSeq != ends {
		return &feed.Damage{At: last + 1, What: fmt.Sprintf("the server ends the log before it, and its files hold groups up to %d", position(ends))}
	}
	l.floor = first
	l.logger.Info("opened the log", "epoch", l.epoch, "first", first, "last", last, "checkpoint", c.at, "bytes", state.Bytes)
	return nil
}

// state asks for the log's state; where it has holes, it is *feed.Damage.
func (l *Log) state(ctx context.Context) (server.StreamState, error) {
	info, err := l.nats.info(ctx, logStream)
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
// feed.ErrUnknown. The bytes are not kept.
func (l *Log) Append(ctx context.Context, after feed.Position, group []byte) (feed.Position, error) {
	if err := l.begin(); err != nil {
		return 0, err
	}
	defer l.calls.Done()
	if len(group) > feed.MaxGroup {
		return 0, fmt.Errorf("append a group: nothing was written: %d bytes are over the limit of %d", len(group), feed.MaxGroup)
	}
	if err := l.nats.publish(ctx, logStream, logSubject, sequence(after), group); err != nil {
		return 0, fmt.Errorf("append a group at position %d: %w", after+1, err)
	}
	if err := l.high.advance(after + 1); err != nil {
		// The group is durable: its writer must not be told otherwise. What is lost is the
		// proof, should the log's end get lost too.
		l.logger.Error("the log's end is less well guarded", "position", after+1, "err", err)
	}
	return after + 1, nil
}

// Trim forgets the groups before the position given; see feed.Log. It leaves those
// that a Read under way may yet want to the next Trim.
func (l *Log) Trim(ctx context.Context, before feed.Position) error {
	if err := l.begin(); err != nil {
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
	l.mu.Lock()
	for r := range l.readers {
		before = min(before, r.from)
	}
	// Raised before the purge and never lowered: a Read that comes now is told so, rather
	// than losing groups from under it.
	l.floor = max(l.floor, before)
	l.mu.Unlock()

	state, err := l.state(ctx)
	if err != nil {
		return fmt.Errorf("trim the log: %w", err)
	}
	if before <= max(1, position(state.FirstSeq)) {
		return nil // there is nothing before it; the genesis message goes with group 1
	}
	if err := l.nats.purge(ctx, logStream, sequence(before)); err != nil {
		return fmt.Errorf("trim the log: %w", err)
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

// Ready is why the log takes no groups now; see feed.Log.
func (l *Log) Ready() error { return nil }

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
		l.nats.nc.Close() // what waits for an answer stops waiting
		l.calls.Wait()
		err = l.release()
	})
	return err
}

// release gives back what Open took, in the reverse order.
func (l *Log) release() error {
	if l.nats != nil {
		l.nats.stop()
	}
	var err error
	if l.high != nil {
		err = l.high.close()
	}
	if cerr := l.locked.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("unlock the store: %w", cerr)
	}
	return err
}

// begin counts a call in, so that Close waits for it.
func (l *Log) begin() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.calls.Add(1)
	return nil
}
