package hub

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// A backup is the state at one sequence, as the parts of a checkpoint. It proves itself:
//
//	"tidemark backup 1\n"
//	header: one line of JSON, a BackupHeader
//	parts:  length[4] part…      big-endian; each part bears its own checksum
//	end:    0[4] sum[32]         the SHA-256 of all before the sum
const backupMagic = "tidemark backup 1\n"

// BackupHeader is what a backup says of itself.
type BackupHeader struct {
	Epoch   feed.Epoch `json:"epoch"` // of the log that it was made of
	Seq     feed.Seq   `json:"seq"`   // all changes up to it are in it
	Rows    int64      `json:"rows"`
	Bytes   int64      `json:"bytes"` // what follows, about
	Created time.Time  `json:"created"`
}

// Backup writes the state as it is now, while everything else goes on. The writer rests
// only while the lists of rows are copied. An error of w is returned. It can be made of a hub
// that has failed, too: where the files are lost, what is in memory is all that there is.
func (h *Hub) Backup(ctx context.Context, w io.Writer) (BackupHeader, error) {
	var f *frozen
	var header BackupHeader
	err := h.atRest(ctx, func() {
		f = h.state.freeze()
		header = BackupHeader{Epoch: h.state.epoch, Seq: h.state.next - 1, Rows: h.state.rows.Load(), Bytes: h.state.bytes.Load(),
			Created: h.opts.Clock.Wall().UTC().Truncate(time.Second)}
	})
	if err != nil {
		return header, fmt.Errorf("back up: %w", err)
	}
	return header, f.backup(ctx, w, header)
}

// Backup writes what was rebuilt, which must be whole, as Hub.Backup writes a state: nothing
// of what it was rebuilt from changes by it.
func (r *Rebuilt) Backup(ctx context.Context, w io.Writer, created time.Time) (BackupHeader, error) {
	header := BackupHeader{Epoch: r.state.epoch, Seq: r.Seq, Rows: r.Rows, Bytes: r.state.bytes.Load(), Created: created.UTC().Truncate(time.Second)}
	return header, r.state.freeze().backup(ctx, w, header)
}

// backup writes a state as a backup.
func (f *frozen) backup(ctx context.Context, w io.Writer, header BackupHeader) error {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	line, err := json.Marshal(header)
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	fmt.Fprintf(out, "%s%s\n", backupMagic, line) // out keeps the first error, for Flush
	for part, err := range f.parts() {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = binary.Write(out, binary.BigEndian, uint32(len(part)))
		}
		if err == nil {
			_, err = out.Write(part)
		}
		if err != nil {
			return fmt.Errorf("back up: %w", err)
		}
	}
	out.Write(make([]byte, 4))
	if err := out.Flush(); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	if _, err := w.Write(sum.Sum(nil)); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	return nil
}

// ErrBackup is matched by errors of bytes that are no whole backup.
var ErrBackup = errors.New("not a whole backup")

// CheckBackup reads a backup to its end and gives each part to fn, whose error ends it;
// nil: only what is around them is checked. What is no whole backup is ErrBackup.
func CheckBackup(r io.Reader, began func(BackupHeader), fn func(number int, part []byte) error) (BackupHeader, error) {
	var header BackupHeader
	bad := func(what string, err error) (BackupHeader, error) {
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return header, err
		}
		return header, fmt.Errorf("%w: %s", ErrBackup, what)
	}
	sum := sha256.New()
	in := bufio.NewReaderSize(r, 64<<10)
	magic := make([]byte, len(backupMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != backupMagic {
		return bad("it does not begin as one; one of a newer version is read by a newer program", err)
	}
	sum.Write(magic)
	line, err := in.ReadSlice('\n')
	if err != nil || json.Unmarshal(line, &header) != nil || !header.Epoch.Valid() {
		return bad("its header can't be read", nil)
	}
	sum.Write(line)
	if began != nil {
		began(header)
	}
	var buf []byte
	for number := 0; ; number++ {
		var size [4]byte
		if _, err := io.ReadFull(in, size[:]); err != nil {
			return bad("it is cut off", err)
		}
		sum.Write(size[:])
		n := binary.BigEndian.Uint32(size[:])
		if n == 0 {
			break
		}
		if n > feed.MaxPart {
			return bad("a part has no length", nil)
		}
		if uint32(cap(buf)) < n {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		if _, err := io.ReadFull(in, buf); err != nil {
			return bad("it is cut off", err)
		}
		sum.Write(buf)
		if fn != nil {
			if err := fn(number, buf); err != nil {
				return header, err
			}
		}
	}
	want := make([]byte, sha256.Size)
	if _, err := io.ReadFull(in, want); err != nil {
		return bad("it is cut off", err)
	}
	if string(want) != string(sum.Sum(nil)) {
		return bad("its checksum does not match", nil)
	}
	if _, err := in.ReadByte(); err == nil {
		return bad("something follows its end", nil)
	}
	return header, nil
}

// ReadBackup reads a backup into a state that Save makes a log of. Nothing can be used of
// one that is not whole.
func ReadBackup(r io.Reader, began func(BackupHeader)) (*Rebuilt, BackupHeader, error) {
	rebuilt := &Rebuilt{}
	var parts partReader
	header, err := CheckBackup(r, func(h BackupHeader) {
		rebuilt.state = newState(h.Epoch)
		parts.s = rebuilt.state
		if began != nil {
			began(h)
		}
	}, func(_ int, part []byte) error {
		if err := parts.part(part); err != nil {
			return fmt.Errorf("%w: %w", ErrBackup, err)
		}
		return nil
	})
	if err != nil {
		return nil, header, err
	}
	if err := parts.finish(parts.s.position); err != nil {
		return nil, header, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	rebuilt.done()
	rebuilt.Epoch = header.Epoch
	if rebuilt.Seq != header.Seq || rebuilt.Rows != header.Rows {
		return nil, header, fmt.Errorf("%w: it holds %d rows up to sequence %d, its header says %d and %d", ErrBackup, rebuilt.Rows, rebuilt.Seq, header.Rows, header.Seq)
	}
	return rebuilt, header, nil
}
