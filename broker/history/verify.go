package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Finding is something that is wrong with a history.
type Finding struct {
	File        string // empty: the store as a whole
	Byte        int64
	First, Last feed.Seq // the sequences that are lost, both inclusive; none where Last < First
	What        string
}

func (f Finding) String() string {
	text := f.What
	if f.File != "" {
		text = fmt.Sprintf("%s at byte %d: %s", f.File, f.Byte, f.What)
	}
	if f.First <= f.Last {
		text += fmt.Sprintf("; sequences %d to %d are lost", f.First, f.Last)
	}
	return text
}

// Verify reads all that was durable when it was called: each group, whether it follows
// from the one before it, whether a segment's footer says what its groups do, and
// whether a segment is missing. It takes as long as reading all of it. pace is called
// after each segment with its size in bytes, and may take its time; what it returns ends
// the reading. nil: there is no hurry to curb. The error is why it could not.
func (s *Store) Verify(ctx context.Context, pace func(bytes int64) error) ([]Finding, error) {
	v, err := s.beginRead()
	if err != nil {
		return nil, err
	}
	defer s.calls.Done()
	x := &verifying{s: s, ctx: ctx, v: v}
	if s.lost != nil {
		x.find(filepath.Join(s.opts.Dir, markName), 0, 1, 0, "what says how far the history goes is lost, so nobody can tell whether its end is: %s", s.lost)
	}
	number := v.mark.oldest
	for i, seg := range v.segments {
		if seg.number != number {
			x.find("", 0, 1, 0, "segments %d to %d are missing", number, seg.number-1)
		}
		number = seg.number + 1
		err := x.segment(i, seg)
		if n, serr := s.size(seg); err == nil && pace != nil {
			if err = serr; err == nil {
				err = pace(n)
			}
		}
		if err != nil {
			return x.found, fmt.Errorf("verify the history: %w", err)
		}
	}
	if v.mark.newest > 0 && number <= v.mark.newest {
		x.find("", 0, 1, 0, "segments %d to %d are missing", number, v.mark.newest)
	}
	if v.mark.newest > 0 && x.at != v.mark.last {
		x.find("", 0, x.at.next, v.mark.last.next-1, "it does not end where the mark says")
	}
	return x.found, nil
}

type verifying struct {
	s     *Store
	ctx   context.Context
	v     view
	at    place
	found []Finding
}

func (x *verifying) find(file string, offset int64, first, last feed.Seq, format string, args ...any) {
	x.found = append(x.found, Finding{file, offset, first, last, fmt.Sprintf(format, args...)})
}

func (x *verifying) segment(i int, seg segment) error {
	path := x.s.path(seg)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if !x.s.dropped(seg) {
			x.find(path, 0, 1, 0, "it is missing")
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	start := seg.start()
	before, err := seg.readHeader(f)
	switch {
	case errors.Is(err, errBad):
		x.find(path, 0, 1, 0, "%s", err)
	case err != nil:
		return err
	default:
		if i > 0 && x.at != before {
			x.find(path, 0, x.at.next, before.next-1, "it does not follow from what is before it")
		}
		if before.epoch == seg.epoch && before.position == start.position {
			start = before
		}
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	end := info.Size()
	var t *trailer
	if seg.number == x.v.mark.newest && !x.v.mark.closed {
		end = x.v.mark.offset
	} else if t, err = readTrailer(f); err == nil {
		end = t.records
	} else if errors.Is(err, errBad) {
		x.find(path, end, 1, 0, "%s", err)
	} else {
		return err
	}
	r := newRecords(f, headerSize, end, start)
	idx, whole, err := x.records(path, r)
	if err != nil {
		return err
	}
	if x.at = r.at; t == nil {
		return nil
	}
	if x.at = t.last; r.at != t.last {
		x.find(path, r.offset, r.at.next, t.last.next-1, "it does not end where its footer says")
	} else if whole {
		want := idx.footer(t.records, t.last)
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, t.records); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(got, want) {
			x.find(path, t.records, 1, 0, "its footer does not say what it holds")
		}
	}
	return nil
}

// records reads the records of a segment; whole is false where some could not be read.
func (x *verifying) records(path string, r *records) (idx index, whole bool, err error) {
	whole = true
	for {
		select {
		case <-x.s.done:
			return idx, whole, ErrClosed
		default:
		}
		if err := x.ctx.Err(); err != nil {
			return idx, whole, err
		}
		at := r.offset
		g, _, err := r.next()
		switch {
		case err == nil:
			idx.add(g, at)
		case errors.Is(err, io.EOF):
			return idx, whole, nil
		case errors.Is(err, errBad):
			whole = false
			was, why := r.at.next, err
			found, err := r.skip()
			if err != nil {
				return idx, whole, err
			}
			if !found {
				x.find(path, at, 1, 0, "%s", why) // what is lost is told where the segment ends, or the next begins
				return idx, whole, nil
			}
			x.find(path, at, was, r.at.next-1, "%s", why)
		default:
			return idx, whole, err
		}
	}
}
