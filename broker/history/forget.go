package history

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// A group of which something was forgotten is as feed.Wipe leaves it: it has its place and its
// length, and its sum is the one that it had, which the group after it carries. It says so by
// its first bytes; the record's own checksum proves what is left.
const (
	groupMagic     = "tmg"
	wipedMagic     = "tmx"
	forgettingName = "forgetting" // the file in which a segment is written anew
)

// unwiped is a group's bytes as feed.DecodeGroup reads them and, where something of it was
// forgotten, the sum that it had.
func unwiped(b []byte) (whole []byte, had *feed.Sum) {
	var sum feed.Sum
	if len(b) < len(wipedMagic)+len(sum) || string(b[:len(wipedMagic)]) != wipedMagic {
		return b, nil
	}
	whole = slices.Clone(b)
	copy(whole, groupMagic)
	body := whole[:len(b)-len(sum)]
	copy(sum[:], b[len(body):])
	own := sha256.Sum256(body)
	copy(whole[len(body):], own[:])
	return whole, &sum
}

// Forget takes what a tenant wrote, up to a sequence, out of all that is there. When it
// returns, no byte of that is in the files, and a reader goes over it as over another tenant's;
// a Read that was under way may still tell of it. What is harmed can't be told apart, and is
// wiped where the tenant has written to the same segment: it is lost as before, and still said
// to be. How many changes there were, and how long, stays; so does all that others wrote.
//
// It takes as long as to read and write again what the tenant has written to, a segment at a
// time, and groups can be added meanwhile. After an error or a crash some may be left:
// Forget again finishes it.
func (s *Store) Forget(ctx context.Context, tenant string, upTo feed.Seq) error {
	if tenant == "" {
		return errors.New("take a tenant out of the history: none is named")
	}
	if err := s.Sync(); err != nil { // a segment may be there of which no reader knows yet
		return fmt.Errorf("take a tenant out of the history: %w", err)
	}
	v, err := s.beginRead()
	if err == nil {
		defer s.calls.Done()
		for _, x := range v.segments {
			if err = ctx.Err(); err == nil && x.seq <= upTo+1 {
				err = s.forgetIn(ctx, x, tenant, upTo)
			}
			if err != nil {
				break
			}
		}
	}
	if err != nil {
		return fmt.Errorf("take a tenant out of the history: %w", err)
	}
	return nil
}

// forgetIn takes a tenant out of one segment.
func (s *Store) forgetIn(ctx context.Context, x segment, tenant string, upTo feed.Seq) error {
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.ready(); err != nil {
		return err
	}
	end := int64(-1) // the footer says it
	grows := s.open != nil && s.open.number == x.number
	switch {
	case grows:
		if s.open.offset > s.open.synced {
			if err := s.sync(false); err != nil {
				s.failed = true
				return err
			}
		}
		end = s.open.offset
	case x.number == s.mark.newest && !s.mark.closed:
		end = s.mark.offset
	}
	path := filepath.Join(s.opts.Dir, forgettingName)
	shorter, changed, err := s.wipe(ctx, x, path, end, tenant, upTo)
	if err != nil || !changed {
		if rerr := os.Remove(path); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	if err := os.Rename(path, s.path(x)); err != nil {
		return err
	}
	if err := syncPath(s.opts.Dir); err != nil {
		s.failed = true
		return err
	}
	if s.bytes >= 0 {
		s.bytes -= shorter
	}
	if !grows {
		return nil
	}
	s.open.f.Close() // all of it is durable
	if s.open, err = s.reopen(ctx, x); err != nil {
		s.open, s.failed = nil, true
	}
	return err
}

// wipe writes a segment anew without a tenant, into the file at path, and tells by how much it
// is shorter; changed is false where it holds nothing of the tenant, and there is no use for the
// file. end is where its records end, -1 where that is for its footer to say.
func (s *Store) wipe(ctx context.Context, x segment, path string, end int64, tenant string, upTo feed.Seq) (shorter int64, changed bool, err error) {
	f, err := os.Open(s.path(x))
	if errors.Is(err, os.ErrNotExist) {
		return 0, false, nil // dropped, or missing: that is for whoever wants it
	}
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	var t *trailer
	if end < 0 {
		if t, err = readTrailer(f); err == nil {
			err = t.readIndex(f)
		}
		switch {
		case err == nil && !t.names(hash(tenant)):
			return 0, false, nil
		case err == nil:
			end = t.records
		case errors.Is(err, errBad): // then all is gone over to the file's end
			info, err := f.Stat()
			if err != nil {
				return 0, false, err
			}
			t, end = nil, info.Size()
		default:
			return 0, false, err
		}
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return 0, false, err
	}
	defer out.Close()
	w := bufio.NewWriterSize(out, 256<<10)
	if _, err := io.Copy(w, io.NewSectionReader(f, 0, headerSize)); err != nil {
		return 0, false, err
	}
	idx, changed, whole, err := wipeRecords(ctx, w, newRecords(f, headerSize, end, x.start()), tenant, upTo)
	if err != nil {
		return 0, false, err
	}
	if t != nil {
		footer := idx.footer(t.records, t.last)
		if !whole { // it says what there was; names are hashes in it
			if footer, err = io.ReadAll(io.NewSectionReader(f, t.records, t.size-t.records)); err != nil {
				return 0, false, err
			}
		}
		shorter = t.size - t.records - int64(len(footer))
		if _, err := w.Write(footer); err != nil {
			return 0, false, err
		}
	}
	if err := w.Flush(); err != nil {
		return 0, false, err
	}
	return shorter, changed, out.Sync()
}

// wipeRecords writes all records up to their end, without a tenant, in the length that they
// have; whole is false where some are harmed.
func wipeRecords(ctx context.Context, w io.Writer, r *records, tenant string, upTo feed.Seq) (idx index, changed, whole bool, err error) {
	whole = true
	lost := func(n int64) error {
		if n > 0 {
			changed, whole = true, false
		}
		_, err := io.CopyN(w, zeros{}, n)
		return err
	}
	for err == nil {
		if err = ctx.Err(); err != nil {
			break
		}
		at := r.offset
		g, n, rerr := r.next()
		switch {
		case errors.Is(rerr, errBad):
			var found bool
			if found, err = r.skip(); err == nil && found {
				err = lost(r.offset - at)
			}
			if !found {
				return idx, changed, whole, errors.Join(err, lost(r.end-at))
			}
			continue
		case errors.Is(rerr, io.EOF):
			return idx, changed, whole, lost(r.end - at) // a footer that is harmed
		case rerr != nil:
			return idx, changed, whole, rerr
		}
		record := r.buf[:n]
		group := record[recordHead:]
		had := string(group[:len(wipedMagic)])
		copy(group, groupMagic) // with its version, as Wipe reads it: others may have been wiped from it before
		mine := feed.Wipe(group, tenant, upTo)
		copy(group, had)
		if mine {
			changed = true
			copy(group, wipedMagic)
			record = appendRecord(nil, group)
			if g, _, err = decode(record); err != nil {
				return idx, changed, whole, err
			}
		}
		idx.add(g, at)
		_, err = w.Write(record)
	}
	return idx, changed, whole, err
}

// zeros is an endless file.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
