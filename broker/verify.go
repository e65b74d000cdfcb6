package broker

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/minio/highwayhash"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// The block files of a stream are checked before the server opens them: once it has,
// it is too late. Where a record is harmed, nats-server 2.15.2 cuts the file off there
// when it rebuilds its index, later records and all; or, after a clean stop, it
// trusts the record's sequence before it has looked at the hash, and fills what seems to
// be a hole with up to 2^62 entries of memory (indexCacheBuf in server/filestore.go).
//
// A block file is a list of records, little-endian (writeMsgRecordLocked, same file):
//
//	length[4], its highest bit set with headers; sequence[8] time[8] subject length[2]
//	subject {header length[4] header} message hash[8]
//
// The hash is HighwayHash-64 over sequence, time, subject, header and message; its key
// is the SHA-256 of "LOG-7" in the stream LOG's file 7.blk. The lengths are not in it:
// that they can't be harmed unnoticed either, a record must have the stream's subject
// and one header block. A sequence with one of its two highest bits set is no message:
// it marks one that was removed. The sequences of the messages follow each other
// without a hole, also from file to file; the first of them may be marked as removed.
const (
	recordHead = 4 + 8 + 8 + 2
	recordHash = 8
	recordMin  = recordHead + recordHash // what a mark takes
	hasHeader  = 1 << 31
	isMark     = 3 << 62

	sector = 512 // what a disk writes whole or not at all
)

// verifier reads the blocks of one stream.
type verifier struct {
	stream, subject string
	last            uint64                // the sequence of the last message found; 0: none yet
	least           uint64                // of the first message found; 0: none yet
	removed         map[uint64]bool       // messages that are marked as removed, though their bytes are still there
	hash            *highwayhash.Digest64 // of the file that is being read
	cold            bool                  // read from the disk, not from the system's memory

	// each is given every message that is whole, where the file has it; nil: nobody wants
	// them. The bytes are valid until it returns.
	each func(file string, at int, seq uint64, data []byte) error
	// harmed is told what is harmed or missing; what it returns ends the reading. nil: the
	// first harm does, as a *feed.Damage.
	harmed func(harm) error
}

// harm is a place where a stream's files are not as they were written.
type harm struct {
	file string
	at   int    // the byte at which it begins
	what string // is wrong
	// The messages that are harmed or missing are those after, up to before, both not
	// included; before is 0 where no message follows.
	after, before uint64
	bytes         []byte // what is there instead, valid as long as the call that tells of it
}

// errEnough ends a reading that has seen enough.
var errEnough = errors.New("enough")

// verifyFiles checks all files of both streams, and that what they hold fits together and
// to the mark, and returns the mark of the log's last group. What is harmed or missing is
// *feed.Damage. A record at the very end that was cut short as it was written, and so was
// never acknowledged, is not: the server drops it.
func verifyFiles(ctx context.Context, dir string, epoch feed.Epoch, acked mark) (last mark, err error) {
	for _, stream := range []string{logStream, checkpointStream} {
		if what, err := verifyMeta(dir, stream); what != "" || err != nil {
			if err == nil {
				err = &feed.Damage{What: what}
			}
			return mark{}, err
		}
	}
	log := &verifier{stream: logStream, subject: logSubject}
	log.each = func(_ string, _ int, seq uint64, data []byte) error {
		if seq == 1 && string(data) != string(genesis(epoch)) {
			return &feed.Damage{What: "the genesis message is harmed, or of another log"}
		}
		if seq == sequence(acked.pos) && seq > 1 && !acked.only && markOf(acked.pos, data) != acked {
			return &feed.Damage{At: acked.pos, What: "it is not the group that was acknowledged here"}
		}
		if p := position(seq); p >= acked.pos {
			last = markOf(p, data)
		}
		return nil
	}
	if err := log.run(ctx, dir); err != nil {
		return mark{}, err
	}
	if log.last == 0 {
		return mark{}, &feed.Damage{What: "the log is empty: not even its genesis message is there"}
	}
	if position(log.last) < acked.pos {
		return mark{}, &feed.Damage{At: position(log.last + 1), What: fmt.Sprintf("the log ends before it, and groups up to %d were acknowledged", acked.pos)}
	}
	c, found, err := verifyCheckpoint(ctx, dir, epoch)
	if err != nil {
		return mark{}, err
	}
	return last, fits(log.first(), log.last, c, found)
}

// fits compares where the log begins and ends with the newest checkpoint.
func fits(first, last uint64, c commit, found bool) error {
	switch {
	case first > 1 && !found:
		return &feed.Damage{What: fmt.Sprintf("the log begins at position %d, and there is no checkpoint that stands for what was before", position(first))}
	case first > 1 && position(first) > c.at:
		return &feed.Damage{At: position(first), What: fmt.Sprintf("the log begins here, and the newest checkpoint is at %d", c.at)}
	case found && position(last) < c.at:
		return &feed.Damage{At: position(last) + 1, What: fmt.Sprintf("the log ends before it, and the newest checkpoint is at %d", c.at)}
	}
	return nil
}

// verifyCheckpoint finds the newest checkpoint in the files, with all its parts.
func verifyCheckpoint(ctx context.Context, dir string, epoch feed.Epoch) (newest commit, found bool, err error) {
	v := &verifier{stream: checkpointStream, subject: checkpointSubject}
	v.each = func(_ string, _ int, seq uint64, data []byte) error {
		f, ok := readFrame(data)
		switch {
		case !ok:
			return &feed.Damage{What: fmt.Sprintf("message %d of the checkpoints is harmed, or another's", seq)}
		case f.commit == nil:
		case f.commit.epoch != epoch:
			return &feed.Damage{What: fmt.Sprintf("message %d of the checkpoints is of the log %s", seq, f.commit.epoch)}
		default:
			newest, found = *f.commit, true
			newest.seq = seq
		}
		return nil
	}
	if err := v.run(ctx, dir); err != nil {
		return commit{}, false, err
	}
	if found && newest.seq-uint64(newest.count) < v.first() {
		return commit{}, false, &feed.Damage{At: newest.at, What: fmt.Sprintf("of the checkpoint's %d parts, some are missing", newest.count)}
	}
	return newest, found, nil
}

// forgetIndex removes what the server wrote down of its streams when it was stopped: it
// finds out by itself, from files that were checked. What it had written down is not.
func forgetIndex(dir string) error {
	for _, stream := range []string{logStream, checkpointStream} {
		if err := os.Remove(filepath.Join(msgsDir(dir, stream), "index.db")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an index: %w", err)
		}
	}
	return nil
}

// verifyMeta tells what is wrong with what says that a stream is there: the server would
// leave such a stream out.
func verifyMeta(dir, stream string) (what string, err error) {
	read := func(name string) (b []byte) {
		if err == nil && what == "" {
			b, err = os.ReadFile(filepath.Join(filepath.Dir(msgsDir(dir, stream)), name))
			if errors.Is(err, fs.ErrNotExist) {
				what, err = fmt.Sprintf("the stream %s has no %s", stream, name), nil
			}
		}
		return b
	}
	meta, sum := read("meta.inf"), read("meta.sum")
	if what != "" || err != nil {
		return what, err
	}
	key := sha256.Sum256([]byte(stream))
	hash, err := highwayhash.NewDigest64(key[:])
	if err != nil {
		return "", err
	}
	hash.Write(meta)
	if string(sum) != hex.EncodeToString(hash.Sum(nil)) {
		return fmt.Sprintf("the stream %s has a meta.inf or meta.sum that is harmed", stream), nil
	}
	return "", nil
}

// msgsDir is where a stream's blocks are.
func msgsDir(dir, stream string) string {
	return filepath.Join(dir, natsName, "jetstream", "$G", "streams", stream, "msgs")
}

// block is a file of messages.
type block struct {
	name   string
	number uint64
}

// blocksOf lists a stream's block files in the order of their messages.
func blocksOf(msgs string) ([]block, error) {
	entries, err := os.ReadDir(msgs)
	if err != nil {
		return nil, err
	}
	var blocks []block
	for _, entry := range entries {
		if digits, ok := strings.CutSuffix(entry.Name(), ".blk"); ok {
			if number, err := strconv.ParseUint(digits, 10, 32); err == nil {
				blocks = append(blocks, block{entry.Name(), number})
			}
		}
	}
	slices.SortFunc(blocks, func(a, b block) int { return cmp.Compare(a.number, b.number) })
	return blocks, nil
}

// run reads the stream's files, one after the other.
func (v *verifier) run(ctx context.Context, dir string) error {
	msgs := msgsDir(dir, v.stream)
	blocks, err := blocksOf(msgs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // what that means shows when the server says what it has
	}
	if err != nil {
		return fmt.Errorf("check the stream %s: %w", v.stream, err)
	}
	var buf pages // a file has at most 8 MiB, or one message
	defer buf.free()
	for i, block := range blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := os.Open(filepath.Join(msgs, block.name))
		if err == nil {
			if v.cold {
				uncache(f)
			}
			err = buf.read(f)
			f.Close()
		}
		if err != nil {
			return fmt.Errorf("check the stream %s: %w", v.stream, err)
		}
		key := sha256.Sum256(fmt.Appendf(nil, "%s-%d", v.stream, block.number))
		if v.hash, err = highwayhash.NewDigest64(key[:]); err != nil {
			return fmt.Errorf("check the stream %s: %w", v.stream, err)
		}
		if err := v.block(block.name, buf.bytes(), i == len(blocks)-1); errors.Is(err, errEnough) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// inOneGo is how much is read or checked before others have their turn. Else, with two processors, whoever writes has one
// of them for as long as a file takes.
const inOneGo = 128 << 10

// pages are memory for whole files, from outside of the heap where that is known how to. Fresh pages of the heap are
// cleared in one go that nothing in the process can interrupt, not even for a collection that everybody waits for: on a
// virtual machine where each page costs 15 us or more, nothing was written for 65 to 200 ms.
type pages struct {
	all []byte
	n   int // are of the file that was read
}

func (p *pages) bytes() []byte { return p.all[:p.n] }

func (p *pages) free() {
	freePages(p.all)
	*p = pages{}
}

// read reads a file, in place of what was read before.
func (p *pages) read(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	p.n = 0
	for size := info.Size() + 1; ; size = 2 * int64(len(p.all)) { // it may grow meanwhile
		if err := p.room(int(size)); err != nil {
			return err
		}
		for p.n < len(p.all) {
			runtime.Gosched()
			n, err := f.Read(p.all[p.n:min(p.n+inOneGo, len(p.all))])
			p.n += n
			if err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
}

// room makes room for size bytes, at least; what was read stays.
func (p *pages) room(size int) error {
	if size <= len(p.all) {
		return nil
	}
	more, err := newPages(size)
	if err != nil {
		return fmt.Errorf("no memory for %d bytes: %w", size, err)
	}
	copy(more, p.all[:p.n])
	freePages(p.all)
	p.all = more
	return nil
}

// block checks one file; newest tells whether it is the one that is written to.
func (v *verifier) block(name string, b []byte, newest bool) error {
	turn := 0
	for at := 0; at < len(b); {
		if at-turn >= inOneGo {
			turn = at
			runtime.Gosched()
		}
		size, seq, ok := v.record(b[at:])
		switch {
		case !ok && newest && v.torn(b, at):
			return nil
		case !ok:
			size = v.next(b[at:])
			h := harm{file: name, at: at, what: "a record is harmed", after: v.last, bytes: b[at : at+size]}
			for next := at + size; next < len(b) && h.before == 0; {
				n, seq, ok := v.record(b[next:])
				switch {
				case !ok:
					n = v.next(b[next:])
				case seq&isMark == 0:
					h.before = seq
				}
				next += n
			}
			if err := v.tell(h); err != nil {
				return err
			}
			if h.before != 0 {
				v.last = max(v.last, h.before-1) // told already
			}
		case seq&isMark != 0:
			if v.removed == nil {
				v.removed = make(map[uint64]bool)
			}
			v.removed[seq&^isMark] = true
		case v.last != 0 && seq <= v.last:
			if err := v.tell(harm{file: name, at: at, what: fmt.Sprintf("message %d comes after %d", seq, v.last), after: v.last, before: v.last + 1}); err != nil {
				return err
			}
		default:
			if v.last != 0 && seq != v.last+1 {
				err := v.tell(harm{file: name, at: at, what: fmt.Sprintf("message %d is missing, %d follows", v.last+1, seq), after: v.last, before: seq})
				if err != nil {
					return err
				}
			}
			v.last = seq
			if v.least == 0 {
				v.least = seq
			}
			if v.each != nil {
				if err := v.each(name, at, seq, messageOf(b[at:at+size], len(v.subject))); err != nil {
					return err
				}
			}
		}
		at += size
	}
	return nil
}

// first is the sequence of the first message that is not removed; 0: there is none.
func (v *verifier) first() uint64 {
	for seq := v.least; seq != 0 && seq <= v.last; seq++ {
		if !v.removed[seq] {
			return seq
		}
	}
	return 0
}

func (v *verifier) tell(h harm) error {
	if v.harmed != nil {
		return v.harmed(h)
	}
	return v.damage(h)
}

// damage tells of a harm.
func (v *verifier) damage(h harm) *feed.Damage {
	d := &feed.Damage{What: fmt.Sprintf("in the stream %s, file %s, byte %d: %s", v.stream, h.file, h.at, h.what)}
	if v.stream == logStream && v.last != 0 {
		d.At = position(v.last + 1)
	}
	return d
}

// next is how many bytes, at least one, stand before the next record that is whole.
func (v *verifier) next(b []byte) int {
	for i := 1; i+recordMin <= len(b); i++ {
		// A hash is computed only where the lengths of a record could be.
		if n := int(binary.LittleEndian.Uint16(b[i+20:])); n != 0 && n != len(v.subject) {
			continue
		}
		if _, _, ok := v.record(b[i:]); ok {
			return i
		}
	}
	return len(b)
}

// messageOf is the message in a record that is whole.
func messageOf(record []byte, subject int) []byte {
	rest := record[recordHead+subject : len(record)-recordHash]
	return rest[4+binary.LittleEndian.Uint32(rest):]
}

// record reads the record that b begins with.
func (v *verifier) record(b []byte) (size int, seq uint64, ok bool) {
	if len(b) < recordMin {
		return 0, 0, false
	}
	length := binary.LittleEndian.Uint32(b)
	size = int(length &^ hasHeader)
	if size < recordMin || size > len(b) {
		return 0, 0, false
	}
	seq, ok = v.whole(b[:size], length&hasHeader != 0)
	return size, seq, ok
}

// whole tells whether b is one record, whatever its length field says.
func (v *verifier) whole(b []byte, header bool) (seq uint64, ok bool) {
	seq = binary.LittleEndian.Uint64(b[4:])
	subject := int(binary.LittleEndian.Uint16(b[20:]))
	rest := b[recordHead : len(b)-recordHash]
	v.hash.Reset()
	v.hash.Write(b[4:20])
	if seq&isMark != 0 {
		if header || subject != 0 || len(rest) != 0 {
			return 0, false
		}
	} else {
		head := len(v.subject) + 4
		if !header || subject != len(v.subject) || len(rest) < head || string(rest[:subject]) != v.subject {
			return 0, false
		}
		n := binary.LittleEndian.Uint32(rest[subject:])
		rest = rest[head:]
		if uint64(n) > uint64(len(rest)) || !bytes.HasPrefix(rest[:n], []byte("NATS/1.0\r\n")) || bytes.Index(rest[:n], []byte("\r\n\r\n")) != int(n)-4 {
			return 0, false
		}
		v.hash.Write([]byte(v.subject))
		v.hash.Write(rest)
	}
	var sum [recordHash]byte
	return seq, bytes.Equal(v.hash.Sum(sum[:0]), b[len(b)-recordHash:])
}

// torn tells whether what is at the end of the newest file, from at on, may be a write
// that a crash cut short. Each message is synced before the next is written, so only the
// last can be torn, and nobody was told that it is there. In doubt, it is damage.
func (v *verifier) torn(b []byte, at int) bool {
	rest := b[at:]
	message := len(rest) >= recordHead+len(v.subject) &&
		(int(binary.LittleEndian.Uint16(rest[20:])) == len(v.subject) || string(rest[recordHead:recordHead+len(v.subject)]) == v.subject)
	marks := false
	for i := v.next(rest); i < len(rest); i += v.next(rest[i:]) {
		if _, seq, _ := v.record(rest[i:]); seq&isMark == 0 || message {
			return false // it was written when this one had long been durable
		}
		marks = true
	}
	if marks {
		return true // marks are written many at a time; without them, more is kept than need be
	}
	if len(rest) >= recordMin {
		if _, ok := v.whole(rest, true); ok {
			return false // nothing is wrong with it but its length
		}
		if size := int(binary.LittleEndian.Uint32(rest) &^ hasHeader); size > len(rest) && size <= maxMessage+recordMin {
			return true // it ends before its length
		}
	} else {
		return true
	}
	// It has its length, but a sector of it was never written.
	for from := at; from < len(b); {
		to := min(len(b), (from/sector+1)*sector)
		if len(bytes.Trim(b[from:to], "\x00")) == 0 {
			return true
		}
		from = to
	}
	return false
}
