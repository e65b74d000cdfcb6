package history

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Options are the choices of Open. Dir is required; without Keep and Bytes all is kept
// for ever.
type Options struct {
	// Dir is the store's directory, the Store's alone. It is made if it is not there; its
	// parent must be.
	Dir string
	// Keep is for how long a change is kept at least, by the log's own steady clock and not
	// the wall clock, which may be set: as long as nothing is added, nothing ages. 0: no
	// limit.
	Keep time.Duration
	// Bytes is how much is kept on disk, about. 0: no limit.
	Bytes int64
	// SegmentBytes is how large a segment becomes, about; less where Bytes is small.
	// Default 8 MiB.
	SegmentBytes int64
	// ReadOnly changes no file, for whoever only looks: what is newer than the last Sync
	// stays, and is not read. Nothing can be added.
	ReadOnly bool
	// Logger gets what an operator must know. Default: nobody.
	Logger *slog.Logger
}

func (o *Options) validate() error {
	if o.Dir == "" {
		return errors.New("open the history: no directory is given")
	}
	if o.Keep < 0 || o.Bytes < 0 || o.SegmentBytes < 0 {
		return errors.New("open the history: an option is negative")
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 8 << 20
	}
	if o.Bytes > 0 {
		o.SegmentBytes = min(o.SegmentBytes, max(o.Bytes/8, 64<<10))
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// ErrClosed is returned by the methods of a Store that is closed.
var ErrClosed = errors.New("the history is closed")

// Store is a history on disk. Open makes one, Close ends it. One Store at a time may
// have a directory; that is for the caller to see to.
type Store struct {
	// Static after construction.
	opts Options
	done chan struct{} // closed by Close

	closing sync.Once
	calls   sync.WaitGroup // reads under way; added to under mu, while not closed

	write  sync.Mutex // held by whoever changes files
	open   *writer    // guarded by write; the segment that grows. nil: the next Add begins one
	tail   place      // guarded by write; after the newest group that was added
	failed bool       // guarded by write; the files may hold more than the mark says
	bytes  int64      // guarded by write; of all segments. -1: not counted yet
	lost   error      // what was wrong with the mark, told by Verify of a store that only looks; static after Open

	mu       sync.Mutex
	closed   bool      // guarded by mu
	mark     mark      // guarded by mu; what is durable
	segments []segment // guarded by mu; those of mark, in order. Elements are never changed
}

// writer is the segment that grows.
type writer struct {
	segment
	f      *os.File
	b      *bufio.Writer
	offset int64 // where the next record goes
	synced int64
	index  index
}

// Open opens the history in a directory, or makes it where there is none. It takes the
// same time however much is kept: the directory is listed, and the segment that grows
// is read. Damage is told to Options.Logger and by Read, and is no error here; what is
// newer than the last Sync goes. The Store is the caller's to close.
func Open(ctx context.Context, opts Options) (*Store, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if opts.ReadOnly {
		if _, err := os.Stat(opts.Dir); err != nil {
			return nil, fmt.Errorf("open the history: %w", err)
		}
	} else if err := os.Mkdir(opts.Dir, 0o750); err == nil {
		if err := syncPath(filepath.Dir(opts.Dir)); err != nil {
			return nil, fmt.Errorf("make the history's directory: %w", err)
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the history's directory: %w", err)
	}
	s := &Store{opts: opts, done: make(chan struct{}), bytes: -1}
	if err := s.load(ctx); err != nil {
		return nil, fmt.Errorf("open the history in %s: %w", opts.Dir, err)
	}
	opts.Logger.Info("opened the history", "dir", opts.Dir, "segments", len(s.segments), "epoch", s.tail.epoch, "last", s.tail.position)
	return s, nil
}

// load finds out what is durable.
func (s *Store) load(ctx context.Context) error {
	all, err := s.list()
	if err != nil {
		return err
	}
	m, err := readMark(s.opts.Dir)
	newest := uint64(0)
	if len(all) > 0 {
		newest = all[len(all)-1].number
	}
	switch {
	case err == nil && newest > m.newest+1:
		err = bad("the mark is older than the segments")
		fallthrough
	case errors.Is(err, errBad), errors.Is(err, fs.ErrNotExist) && newest > 0:
		s.opts.Logger.Warn("the history's mark is made anew, from its segments", "dir", s.opts.Dir, "err", err)
		if s.opts.ReadOnly {
			s.lost = err // and will be told again: nothing was mended
		}
		if m, err = s.remark(ctx, all); err == nil && !s.opts.ReadOnly {
			err = m.write(s.opts.Dir)
		}
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		return err
	}
	s.mark = m
	if !s.opts.ReadOnly {
		if err := os.Remove(filepath.Join(s.opts.Dir, forgettingName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return s.resume(ctx)
}

// list returns the segments that are there.
func (s *Store) list() (all []segment, err error) {
	d, err := os.Open(s.opts.Dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if x, ok := parseName(name); ok {
			all = append(all, x)
		} else if strings.HasSuffix(name, suffix) {
			s.opts.Logger.Warn("a file is named like a segment of the history, and is none", "dir", s.opts.Dir, "file", name)
		}
	}
	slices.SortFunc(all, func(a, b segment) int {
		if a.number < b.number {
			return -1
		}
		return 1
	})
	for i := 1; i < len(all); i++ {
		if all[i].number == all[i-1].number {
			return nil, fmt.Errorf("%s and %s have the same number: one of them is not of this history", all[i-1].name(), all[i].name())
		}
	}
	return all, nil
}

// remark makes the mark from the segments: the newest ends with its last whole record.
func (s *Store) remark(ctx context.Context, all []segment) (mark, error) {
	for i := len(all) - 1; i >= 0; i-- {
		m := mark{oldest: all[0].number, newest: all[i].number}
		f, err := os.Open(s.path(all[i]))
		if err != nil {
			return m, err
		}
		m, err = s.scan(ctx, m, all[i], f)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return m, err
		}
		if m.offset > 0 {
			return m, nil
		}
		if i < len(all)-1 {
			return m, fmt.Errorf("%s and %s can't be read, nor can the mark: look at them, and move them away", all[i].name(), all[i+1].name())
		}
	}
	return mark{}, nil // the very first sync was cut short
}

// scan finds the end of a segment whose mark is lost; the offset stays 0 where nothing
// of it is whole.
func (s *Store) scan(ctx context.Context, m mark, x segment, f *os.File) (mark, error) {
	t, err := readTrailer(f)
	if err == nil {
		m.offset, m.closed, m.last = t.size, true, t.last
		return m, nil
	}
	if !errors.Is(err, errBad) {
		return m, err
	}
	info, err := f.Stat()
	if err != nil {
		return m, err
	}
	if _, err := x.readHeader(f); err != nil {
		if errors.Is(err, errBad) {
			err = nil
		}
		return m, err
	}
	for r := newRecords(f, headerSize, info.Size(), x.start()); ; {
		_, _, err := r.next()
		if errors.Is(err, errBad) || errors.Is(err, io.EOF) {
			return m, nil
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return m, err
		}
		m.offset, m.last = r.offset, r.at
	}
}

// resume makes the files what the mark says, and goes on where it ends. It needs write.
func (s *Store) resume(ctx context.Context) error {
	all, err := s.list()
	if err != nil {
		return err
	}
	m := s.mark
	var kept []segment
	for _, x := range all {
		if x.number >= m.oldest && x.number <= m.newest {
			kept = append(kept, x)
			continue
		}
		// Dropped by Retain, or not synced when the process ended.
		if s.opts.ReadOnly {
			continue
		}
		if err := os.Remove(s.path(x)); err != nil {
			return err
		}
	}
	s.open, s.tail, s.bytes = nil, m.last, -1
	if n := len(kept); s.opts.ReadOnly {
		s.failed = true
	} else if n > 0 && kept[n-1].number == m.newest {
		if s.open, err = s.reopen(ctx, kept[n-1]); err != nil {
			return err
		}
	} else if m.newest > 0 {
		s.opts.Logger.Error("the history's newest segment is missing", "dir", s.opts.Dir, "segment", m.newest)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments = kept
	return nil
}

// reopen cuts the newest segment where the mark says, and reads it to go on with it;
// nil where it is closed or harmed, so that the next group begins another.
func (s *Store) reopen(ctx context.Context, x segment) (_ *writer, err error) {
	f, err := os.OpenFile(s.path(x), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	m := s.mark
	w := &writer{segment: x, f: f, offset: m.offset, synced: m.offset}
	defer func() {
		if err != nil || w == nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch size := info.Size(); {
	case size > m.offset:
		if err := f.Truncate(m.offset); err != nil {
			return nil, err
		}
	case size < m.offset && !(m.closed && wholeTo(f, m.last)): // a footer gets shorter by Forget
		s.opts.Logger.Error("the history is damaged: its newest segment is cut short", "file", s.path(x), "bytes", size, "want", m.offset)
	}
	if m.closed {
		w = nil
		return nil, nil
	}
	r := newRecords(f, headerSize, m.offset, x.start())
	_, err = x.readHeader(f)
	for err == nil && r.offset < r.end {
		var g *feed.Group
		offset := r.offset
		if g, _, err = r.next(); err == nil {
			w.index.add(g, offset)
			err = ctx.Err()
		}
	}
	if err == nil && r.at != m.last {
		err = bad("it does not end where the mark says")
	}
	if errors.Is(err, errBad) || errors.Is(err, io.EOF) {
		s.opts.Logger.Error("the history is damaged", "file", s.path(x), "byte", r.offset, "err", err)
		w = nil
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(m.offset, io.SeekStart); err != nil {
		return nil, err
	}
	w.b = bufio.NewWriterSize(f, 256<<10)
	return w, nil
}

// wholeTo tells whether a segment has a footer, and ends at a place.
func wholeTo(f *os.File, last place) bool {
	t, err := readTrailer(f)
	return err == nil && t.last == last
}

func (s *Store) path(x segment) string { return filepath.Join(s.opts.Dir, x.name()) }

// Last is the newest group that is durable, and the epoch of its log; 0 if there is none.
func (s *Store) Last() (feed.Epoch, feed.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mark.last.epoch, s.mark.last.position
}

// Add adds the group at a position of its log: the one after the newest, or one that is
// there already, which does nothing. A position further on, or another epoch, begins a
// segment and, where sequences are left out, a hole, which is logged. It is durable
// after the next Sync. The bytes are not kept.
//
// A group that can't follow (its sequences were used before, it is not of the newest
// one's chain) is an error, and nothing is added.
func (s *Store) Add(p feed.Position, group []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	g, sum, err := feed.DecodeGroup(group)
	if err == nil && g.Position != p {
		err = fmt.Errorf("it was written for position %d", g.Position)
	}
	if err == nil {
		err = s.ready()
	}
	if err == nil {
		err = s.add(g, sum, group)
	}
	if err != nil {
		return fmt.Errorf("add position %d to the history: %w", p, err)
	}
	return nil
}

// ready gets over what a write that failed has left behind. It needs write.
func (s *Store) ready() error {
	select {
	case <-s.done:
		return ErrClosed
	default:
	}
	if s.opts.ReadOnly {
		return errors.New("it is open for reading alone")
	}
	if !s.failed {
		return nil
	}
	if s.open != nil {
		s.open.f.Close()
		s.open = nil
	}
	// It may be newer on disk than it was said to be: then what is cut would be missed.
	if err := s.mark.write(s.opts.Dir); err != nil {
		return err
	}
	if err := s.resume(context.Background()); err != nil {
		return err
	}
	s.failed = false
	return nil
}

func (s *Store) add(g *feed.Group, sum feed.Sum, group []byte) error {
	t := s.tail
	same := g.Epoch == t.epoch
	if same && g.Position <= t.position {
		if g.Position == t.position && sum != t.sum {
			return errors.New("the history holds another group there: the log is not the one that it was")
		}
		return nil
	}
	if g.First < t.next {
		return fmt.Errorf("it begins with sequence %d of epoch %s, and the history holds sequences up to %d of epoch %s", g.First, g.Epoch, t.next-1, t.epoch)
	}
	next := same && g.Position == t.position+1
	if next {
		if err := t.follows(g); err != nil {
			return err
		}
	}
	if w := s.open; w != nil && (!next || w.offset >= s.opts.SegmentBytes ||
		s.opts.Keep > 0 && g.Steady-w.steady > s.opts.Keep.Milliseconds()/8) {
		if err := s.seal(); err != nil {
			s.failed = true
			return err
		}
	}
	if !next && t.epoch != "" && g.First > t.next {
		s.opts.Logger.Warn("the history has a hole: these changes were not kept", "first", t.next, "last", g.First-1, "epoch", g.Epoch)
	}
	if s.open == nil {
		if err := s.begin(g); err != nil {
			s.failed = true
			return err
		}
	}
	w := s.open
	record := appendRecord(nil, group)
	if _, err := w.b.Write(record); err != nil {
		s.failed = true
		return err
	}
	w.index.add(g, w.offset)
	w.offset += int64(len(record))
	s.tail = after(g, sum)
	return nil
}

// begin makes a segment for a group.
func (s *Store) begin(g *feed.Group) error {
	x := segment{s.mark.newest + 1, g.First, g.Position, g.At, g.Steady, g.Epoch}
	f, err := os.OpenFile(s.path(x), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o640)
	if err != nil {
		return err
	}
	s.open = &writer{segment: x, f: f, b: bufio.NewWriterSize(f, 256<<10), offset: headerSize}
	if err := syncPath(s.opts.Dir); err != nil {
		return err
	}
	_, err = s.open.b.Write(x.header(s.tail))
	return err
}

// seal closes the segment that grows.
func (s *Store) seal() error {
	w := s.open
	footer := w.index.footer(w.offset, s.tail)
	if _, err := w.b.Write(footer); err != nil {
		return err
	}
	w.offset += int64(len(footer))
	if err := s.sync(true); err != nil {
		return err
	}
	s.open = nil
	return w.f.Close()
}

// Sync makes durable what was added.
func (s *Store) Sync() error {
	s.write.Lock()
	defer s.write.Unlock()
	err := s.ready()
	if err == nil && s.open != nil && s.open.offset > s.open.synced {
		if err = s.sync(false); err != nil {
			s.failed = true
		}
	}
	if err != nil {
		return fmt.Errorf("sync the history: %w", err)
	}
	return nil
}

func (s *Store) sync(closed bool) error {
	w := s.open
	if err := w.b.Flush(); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	m := mark{oldest: max(s.mark.oldest, 1), newest: w.number, offset: w.offset, closed: closed, last: s.tail}
	if err := m.write(s.opts.Dir); err != nil {
		return err
	}
	if s.bytes >= 0 {
		s.bytes += w.offset - w.synced
	}
	w.synced = w.offset
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mark = m
	if n := len(s.segments); n == 0 || s.segments[n-1].number != w.number {
		s.segments = append(s.segments, w.segment)
	}
	return nil
}

// Retain drops the oldest segments that Keep or Bytes says no to.
func (s *Store) Retain() error {
	s.write.Lock()
	defer s.write.Unlock()
	err := s.ready()
	if err == nil {
		err = s.retain()
	}
	if err != nil {
		return fmt.Errorf("drop old history: %w", err)
	}
	return nil
}

func (s *Store) retain() error {
	drop := 0
	all := s.segments
	if s.opts.Keep > 0 {
		// A segment ends no later than the one after it begins.
		limit := s.mark.last.steady - s.opts.Keep.Milliseconds()
		for drop+1 < len(all) && all[drop+1].steady < limit {
			drop++
		}
	}
	sizes := make([]int64, 0, drop) // of those that go
	if s.opts.Bytes > 0 {
		if s.bytes < 0 {
			total := int64(0)
			for _, x := range all {
				n, err := s.size(x)
				if err != nil {
					return err
				}
				total += n
			}
			s.bytes = total
		}
		left := s.bytes
		for i := 0; i+1 < len(all) && (i < drop || left > s.opts.Bytes); i++ {
			n, err := s.size(all[i])
			if err != nil {
				return err
			}
			left -= n
			sizes = append(sizes, n)
			drop = max(drop, i+1)
		}
	}
	if drop == 0 {
		return nil
	}
	// First said, then done: a crash on the way leaves the rest to Open.
	m := s.mark
	m.oldest = all[drop].number
	if err := m.write(s.opts.Dir); err != nil {
		s.failed = true
		return err
	}
	for _, n := range sizes {
		s.bytes -= n
	}
	s.mu.Lock()
	s.mark = m
	s.segments = slices.Clone(all[drop:])
	s.mu.Unlock()
	s.opts.Logger.Info("dropped old history", "segments", drop, "begins", all[drop].seq)
	var errs []error
	for _, x := range all[:drop] {
		if err := os.Remove(s.path(x)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// size is how many bytes a segment has; a missing one has none.
func (s *Store) size(x segment) (int64, error) {
	info, err := os.Stat(s.path(x))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Close waits for writes under way, and ends reads. What was not synced is given up.
// It may be called again.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		close(s.done)
		s.calls.Wait()
		s.write.Lock()
		defer s.write.Unlock()
		if s.open != nil {
			err = s.open.f.Close()
			s.open = nil
		}
	})
	return err
}
