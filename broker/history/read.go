package history

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// view is what the store held at one moment.
type view struct {
	mark     mark
	segments []segment
}

// beginRead makes a view for a read, after which the caller says calls.Done.
func (s *Store) beginRead() (view, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return view{}, ErrClosed
	}
	s.calls.Add(1)
	return view{s.mark, s.segments}, nil
}

// Read calls fn with what the store holds of a range, up to what was durable when it
// was called: fn gets each group that may hold some of it, and others too. What fn
// returns ends the reading and is returned. A segment is not read where its
// name or its footer says that it holds none of it.
//
// *feed.HistoryDamage, after all that is before it: something of the range was there and
// is not any more, or may have been. Reading on from after it is possible.
func (s *Store) Read(ctx context.Context, r feed.HistoryRange, fn func(feed.HistoryStep) error) error {
	v, err := s.beginRead()
	if err != nil {
		return err
	}
	defer s.calls.Done()
	return s.read(ctx, v, r, fn)
}

// reading is a Read under way.
type reading struct {
	s   *Store
	ctx context.Context
	r   feed.HistoryRange
	fn  func(feed.HistoryStep) error

	at   place // where the reading is; no epoch: not known
	over bool  // nothing that follows is in the range
}

func (s *Store) read(ctx context.Context, v view, r feed.HistoryRange, fn func(feed.HistoryStep) error) error {
	if r.To == 0 {
		r.To = feed.MaxSeq
	}
	x := &reading{s: s, ctx: ctx, r: r, fn: fn}
	all := v.segments
	first := max(0, sort.Search(len(all), func(i int) bool { return all[i].seq > r.From })-1)
	if v.mark.newest > 0 {
		begins := v.mark.last.next
		if len(all) > 0 {
			begins = all[0].seq
		}
		if (len(all) == 0 || all[0].number != v.mark.oldest) && r.From < begins {
			return x.missing(r.From, begins, fmt.Sprintf("segment %d", v.mark.oldest))
		}
	}
	for i := first; i < len(all) && !x.over; i++ {
		seg := all[i]
		ends := v.mark.last.next // the segment ends before it, or there is damage
		if i+1 < len(all) {
			ends = all[i+1].seq
		}
		if seg.seq > r.To {
			if x.at.epoch != "" && x.at.next <= r.To {
				return x.end(seg, i > 0) // what the range wants at its end is not where it was looked for
			}
			return nil
		}
		switch {
		case r.Until > 0 && seg.at > r.Until,
			r.Since > 0 && i+1 < len(all) && all[i+1].epoch == seg.epoch && all[i+1].at < r.Since:
			x.at = place{}
			continue
		}
		limit := int64(-1)
		if seg.number == v.mark.newest && !v.mark.closed {
			limit = v.mark.offset
		}
		if err := x.segment(seg, i > 0, limit, ends); err != nil {
			return err
		}
	}
	if n := len(all); !x.over && n > 0 && x.at.epoch != "" && x.at != v.mark.last {
		return x.missing(x.at.next, v.mark.last.next, fmt.Sprintf("the end of segment %d", all[n-1].number))
	}
	return nil
}

// missing is the damage that all from one sequence to before another are missing; nil
// where the range does not want them.
func (x *reading) missing(from, to feed.Seq, what string) error {
	from, to = max(from, x.r.From), min(to, x.r.To+1)
	if from >= to {
		return nil
	}
	return &feed.HistoryDamage{First: from, Last: to - 1, What: what + " is missing"}
}

// stopped is why the reading must end.
func (x *reading) stopped() error {
	select {
	case <-x.s.done:
		return ErrClosed
	default:
		return x.ctx.Err()
	}
}

// segment reads one segment. limit is where its records end, -1 where that is for the
// footer to say; ends is the sequence that it ends before.
func (x *reading) segment(seg segment, inner bool, limit int64, ends feed.Seq) error {
	if err := x.stopped(); err != nil {
		return err
	}
	path := x.s.path(seg)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if x.s.dropped(seg) {
			x.at = place{}
			return nil
		}
		x.at = place{}
		return x.missing(seg.seq, ends, path)
	}
	if err != nil {
		return fmt.Errorf("read the history: %w", err)
	}
	defer f.Close()
	start, err := x.header(f, seg, inner)
	if err != nil {
		return err
	}
	read := int64(headerSize)
	var t *trailer
	end := limit
	offset := int64(headerSize)
	if limit < 0 {
		t, err = readTrailer(f)
		if err == nil {
			read += trailerSize
			var holds bool
			var n int64
			holds, n, err = t.holds(f, x.r)
			read += n
			if err == nil && !holds {
				x.at = t.last
				return x.fn(feed.HistoryStep{Place: x.place(), Read: read})
			}
		}
		if err != nil && !errors.Is(err, errBad) {
			return fmt.Errorf("read the history: %s: %w", path, err)
		}
		if t != nil {
			end = t.records
			if p := t.begin(x.r); p.offset > offset {
				offset, start = p.offset, place{epoch: seg.epoch, position: p.position - 1, next: p.seq}
			}
		} else {
			info, err := f.Stat()
			if err != nil {
				return fmt.Errorf("read the history: %s: %w", path, err)
			}
			end = info.Size()
		}
	}
	x.at = start
	if err := x.fn(feed.HistoryStep{Place: x.place(), Read: read}); err != nil {
		return err
	}
	return x.records(f, seg, offset, end, t, limit < 0 && t == nil, ends)
}

// end looks at why a segment after the range does not begin where the one before it
// ended.
func (x *reading) end(seg segment, inner bool) error {
	f, err := os.Open(x.s.path(seg))
	if errors.Is(err, fs.ErrNotExist) {
		return x.missing(x.at.next, seg.seq, "what was before "+x.s.path(seg)+", which is missing too,")
	}
	if err != nil {
		return fmt.Errorf("read the history: %w", err)
	}
	defer f.Close()
	_, err = x.header(f, seg, inner)
	return err
}

// begin is the last of the points with nothing of the range before it.
func (t *trailer) begin(r feed.HistoryRange) (best point) {
	for _, p := range t.points {
		if p.seq > r.From && (r.Since == 0 || p.at >= r.Since) {
			break
		}
		best = p
	}
	return best
}

// header checks that the segment follows from where the reading is, tells of a hole
// before it, and returns the place at which it begins.
func (x *reading) header(f *os.File, seg segment, inner bool) (place, error) {
	start := seg.start()
	before, err := seg.readHeader(f)
	known := x.at.epoch != ""
	switch {
	case err != nil && !errors.Is(err, errBad):
		return start, fmt.Errorf("read the history: %s: %w", f.Name(), err)
	case err != nil && known && (x.at.epoch != seg.epoch || x.at.position != start.position || x.at.next != seg.seq):
		// There may have been a hole, or a segment.
		if err := x.missing(x.at.next, seg.seq, "what was before "+f.Name()+", whose header is harmed,"); err != nil {
			return start, err
		}
		return start, nil
	case err != nil:
		return start, nil // what it says is known from elsewhere, or of no interest
	case known && x.at != before:
		if err := x.missing(x.at.next, before.next, "what was before "+f.Name()); err != nil {
			return start, err
		}
	}
	if before.epoch == seg.epoch && before.position == start.position {
		start = before
	}
	if first, last := max(before.next, x.r.From), min(seg.seq-1, x.r.To); inner && first <= last {
		x.at = start
		err := x.fn(feed.HistoryStep{Place: x.place(), Hole: &feed.HistoryHole{First: first, Last: last}})
		if err != nil {
			return start, err
		}
	}
	return start, nil
}

// records reads the records of a segment from an offset on. open: end is where the file
// ends, which need not be where the records do.
func (x *reading) records(f *os.File, seg segment, offset, end int64, t *trailer, open bool, ends feed.Seq) error {
	for r := newRecords(f, offset, end, x.at); ; {
		if err := x.stopped(); err != nil {
			return err
		}
		g, n, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, errBad) {
			damage := &feed.HistoryDamage{First: r.at.next, What: fmt.Sprintf("%s at byte %d: %s", f.Name(), r.offset, err)}
			found, serr := r.skip()
			if serr != nil {
				return fmt.Errorf("read the history: %s: %w", f.Name(), serr)
			}
			if !found && open {
				break // the next segment's header says whether anything is missing
			}
			damage.Last = ends - 1
			if found {
				damage.Last = r.at.next - 1
			}
			// Where all that is missing is before the range, nobody asked for it. What holds
			// no sequence at all, but is harmed, is told of all the same.
			if damage.Last >= x.r.From && damage.First <= x.r.To {
				damage.First = max(damage.First, x.r.From)
				return damage
			}
			if !found {
				x.at = place{}
				return nil
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("read the history: %s: %w", f.Name(), err)
		}
		x.at = r.at
		if err := x.group(g, n); err != nil || x.over {
			return err
		}
		if x.r.Until > 0 && g.At > x.r.Until {
			x.at = place{} // a later epoch may have earlier times
			return nil
		}
	}
	if t != nil && x.at != t.last {
		return x.missing(x.at.next, t.last.next, "what "+f.Name()+" held before its end")
	}
	return nil
}

// group hands out a group of n bytes, if it may be wanted.
func (x *reading) group(g *feed.Group, n int64) error {
	if g.First > x.r.To {
		x.over = true
		return nil
	}
	step := feed.HistoryStep{Place: x.place(), Read: n}
	if g.Last() >= max(x.r.From, g.First) && g.At >= x.r.Since && (x.r.Until == 0 || g.At <= x.r.Until) {
		step.Group = g
	}
	return x.fn(step)
}

// place is the sequence up to which all was gone over.
func (x *reading) place() feed.Seq { return max(x.r.From, x.at.next, 1) - 1 }

// dropped tells whether Retain has dropped a segment since it was seen.
func (s *Store) dropped(seg segment) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return seg.number < s.mark.oldest
}

// Log is what a Store needs of the log whose groups it keeps; its methods may be called
// concurrently.
type Log interface {
	Epoch() feed.Epoch
	// Bounds are the oldest and the newest group that can be read; the oldest is the one
	// after the newest where there is none. Nothing older may be wanted from Archive.
	Bounds(ctx context.Context) (oldest, newest feed.Position, err error)
	// Get reads one group; feed.ErrDamaged where it is not there, or not any more. The
	// bytes are the caller's.
	Get(ctx context.Context, p feed.Position) ([]byte, error)
	// Read is feed.Log's.
	Read(ctx context.Context, after feed.Position, fn func(feed.Position, []byte) error) error
}

var errStop = errors.New("enough")

// Archive adds all groups of a log before a position, makes them durable, and drops
// what is too old. When it returns without error the log may forget them.
func (s *Store) Archive(ctx context.Context, log Log, before feed.Position) error {
	s.write.Lock()
	err := s.ready()
	tail := s.tail
	s.write.Unlock()
	if err != nil {
		return fmt.Errorf("add to the history: %w", err)
	}
	oldest, newest, err := log.Bounds(ctx)
	if err != nil {
		return fmt.Errorf("add to the history: %w", err)
	}
	from := oldest
	if tail.epoch == log.Epoch() {
		from = max(oldest, tail.position) // the newest one again, to see that it is the same
	}
	if from < before && from <= newest {
		err = log.Read(ctx, from-1, func(p feed.Position, b []byte) error {
			if p >= before {
				return errStop
			}
			return s.Add(p, b)
		})
	}
	if err != nil && !errors.Is(err, errStop) {
		return err
	}
	if err := s.Sync(); err != nil {
		return err
	}
	// The log forgets on our word: look at what is durable, not at what was done.
	epoch, last := s.Last()
	if want := min(before-1, newest); want >= oldest && (epoch != log.Epoch() || last < want) {
		return fmt.Errorf("add to the history: it ends with position %d instead of %d", last, want)
	}
	if err := s.Retain(); err != nil {
		// That there is too much of it is no reason to keep the log too.
		s.opts.Logger.Error("drop old history; it is tried again", "err", err)
	}
	return nil
}

// History reads the store and then, without a gap, what is newer in the log, up to the
// log's last group at some moment after the call; otherwise as Read. It returns the
// first sequence that is held, 0 where there is none.
func (s *Store) History(ctx context.Context, log Log, r feed.HistoryRange, fn func(feed.HistoryStep) error) (begins feed.Seq, err error) {
	x := &tailing{log: log, r: r}
	x.r.From = max(r.From, 1)
	x.fn = func(step feed.HistoryStep) error {
		x.r.From = max(x.r.From, step.Place+1)
		return fn(step)
	}
	var seen place
	for again := false; ; again = true {
		// The log first: what it does not hold any more is in the store by then.
		oldest, newest, err := log.Bounds(ctx)
		if err != nil {
			return x.begins, err
		}
		v, err := s.beginRead()
		if err != nil {
			return x.begins, err
		}
		if again && v.mark.last == seen {
			s.calls.Done()
			return x.begins, x.damage
		}
		err = x.through(ctx, s, v, oldest, newest)
		s.calls.Done()
		if err != nil || x.damage == nil {
			return x.begins, err
		}
		seen = v.mark.last // and what was trimmed since is in the store too
	}
}

// tailing is the reading of a store and, after it, of the log.
type tailing struct {
	log    Log
	r      feed.HistoryRange // from what was not gone over yet
	fn     func(feed.HistoryStep) error
	begins feed.Seq
	damage error // the log could not be read
}

// through reads the store, and of the log what is newer.
func (x *tailing) through(ctx context.Context, s *Store, v view, oldest, newest feed.Position) error {
	x.damage = nil
	if x.begins == 0 && len(v.segments) > 0 {
		x.begins = v.segments[0].seq
	}
	if err := s.read(ctx, v, x.r, x.fn); err != nil {
		return err
	}
	x.r.From = max(x.r.From, v.mark.last.next)
	follows := feed.Position(1)
	if v.mark.last.epoch == x.log.Epoch() {
		follows = v.mark.last.position + 1
	}
	if max(oldest, follows) > newest {
		return nil
	}
	if x.r.To > 0 && x.r.From > x.r.To {
		if x.begins == 0 {
			if g, err := x.get(ctx, max(oldest, follows)); err == nil { // else who asks for it is told
				x.begins = g.First
			}
		}
		return nil
	}
	err := x.tail(ctx, v.mark.last, oldest, follows, newest)
	if errors.Is(err, feed.ErrDamaged) {
		x.damage = err
		return nil
	}
	return err
}

// tail reads the log from the group after the store's last, or the oldest.
func (x *tailing) tail(ctx context.Context, last place, oldest, follows, newest feed.Position) error {
	from := max(oldest, follows)
	if last.epoch != x.log.Epoch() || oldest > follows {
		g, err := x.get(ctx, from)
		if err != nil {
			return err
		}
		if x.begins == 0 {
			x.begins = g.First
		}
		hole := feed.HistoryHole{First: max(last.next, x.r.From), Last: g.First - 1}
		if x.r.To > 0 {
			hole.Last = min(hole.Last, x.r.To)
		}
		if last.epoch != "" && hole.First <= hole.Last {
			if err := x.fn(feed.HistoryStep{Place: hole.Last, Hole: &hole}); err != nil {
				return err
			}
		}
	}
	// The first group that may hold something of the range.
	var err error
	from += feed.Position(sort.Search(int(newest+1-from), func(i int) bool {
		if err != nil {
			return true
		}
		var g *feed.Group
		if g, err = x.get(ctx, from+feed.Position(i)); err != nil {
			return true
		}
		return g.Last() >= x.r.From && g.At >= x.r.Since
	}))
	if err != nil || from > newest {
		return err
	}
	err = x.log.Read(ctx, from-1, func(p feed.Position, b []byte) error {
		g, _, err := feed.DecodeGroup(b)
		if err != nil {
			return &feed.Damage{At: p, What: err.Error()}
		}
		if x.r.To > 0 && g.First > x.r.To || x.r.Until > 0 && g.At > x.r.Until {
			return errStop
		}
		step := feed.HistoryStep{Place: max(g.Last(), x.r.From-1), Read: int64(len(b))}
		if g.Last() >= max(x.r.From, g.First) {
			step.Group = g
		}
		if err := x.fn(step); err != nil {
			return err
		}
		if p >= newest {
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

func (x *tailing) get(ctx context.Context, p feed.Position) (*feed.Group, error) {
	b, err := x.log.Get(ctx, p)
	if err != nil {
		return nil, err
	}
	g, _, err := feed.DecodeGroup(b)
	if err != nil {
		return nil, &feed.Damage{At: p, What: err.Error()}
	}
	return g, nil
}
