package broker

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"iter"
	"path/filepath"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// A checkpoint is a run of messages of the stream CHECKPOINT: its parts, and right
// after them its commit. Until the commit is there, the one before stands; after it,
// what is before it is purged. Parts without a commit are of a save that did not come
// to its end, and go with the next that does. Numbers are big-endian:
//
//	part    "tmb" 1 'p' crc[4] at[8] number[4] bytes…
//	commit  "tmb" 1 'c' crc[4] at[8] count[4] size[8] sum[16] epoch…
//
// crc is CRC-32C of all that follows it. number counts from 0, so it tells where the
// run begins. sum is the first half of a SHA-256 over the heads of the parts in
// order, which bear their checksums: parts of two saves can't be mixed.
const (
	frameMagic = "tmb\x01"
	crcAt      = len(frameMagic) + 1
	partHead   = crcAt + 4 + 8 + 4
	commitHead = crcAt + 4 + 8 + 4 + 8 + 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// commit is the message that makes the parts before it a checkpoint.
type commit struct {
	at    feed.Position
	count uint32 // of parts
	size  uint64 // bytes of all parts
	sum   [16]byte
	epoch feed.Epoch

	seq uint64 // its sequence in the stream
}

func sealFrame(b []byte) []byte {
	binary.BigEndian.PutUint32(b[crcAt:], crc32.Checksum(b[crcAt+4:], castagnoli))
	return b
}

func appendPart(dst []byte, at feed.Position, number uint32, part []byte) []byte {
	dst = append(dst, frameMagic...)
	dst = append(dst, 'p', 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, uint64(at))
	dst = binary.BigEndian.AppendUint32(dst, number)
	return sealFrame(append(dst, part...))
}

func (c *commit) encode() []byte {
	b := append(make([]byte, 0, commitHead+len(c.epoch)), frameMagic...)
	b = append(b, 'c', 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(c.at))
	b = binary.BigEndian.AppendUint32(b, c.count)
	b = binary.BigEndian.AppendUint64(b, c.size)
	b = append(b, c.sum[:]...)
	return sealFrame(append(b, c.epoch...))
}

// frame is a message of the stream, read: a commit, or a part.
type frame struct {
	commit *commit // nil for a part
	at     feed.Position
	number uint32
	head   []byte
	part   []byte
}

// readFrame reads a message; ok is false where it is no whole frame.
func readFrame(b []byte) (f frame, ok bool) {
	if len(b) < partHead || string(b[:len(frameMagic)]) != frameMagic ||
		binary.BigEndian.Uint32(b[crcAt:]) != crc32.Checksum(b[crcAt+4:], castagnoli) {
		return frame{}, false
	}
	fields := b[crcAt+4:]
	f.at = feed.Position(binary.BigEndian.Uint64(fields))
	f.number = binary.BigEndian.Uint32(fields[8:])
	switch kind := b[len(frameMagic)]; {
	case kind == 'p':
		f.head, f.part = b[:partHead], b[partHead:]
	case kind == 'c' && len(b) >= commitHead:
		f.commit = &commit{at: f.at, count: f.number, size: binary.BigEndian.Uint64(fields[12:]), epoch: feed.Epoch(b[commitHead:])}
		copy(f.commit.sum[:], fields[20:])
	default:
		return frame{}, false
	}
	return f, true
}

// SaveCheckpoint stores a state; see feed.Log. A part has at most feed.MaxPart bytes.
// The position must be that of a group, the log must have come to it, and it must not
// be before the newest checkpoint's. The bytes are not kept.
func (l *Log) SaveCheckpoint(ctx context.Context, at feed.Position, parts iter.Seq2[[]byte, error]) error {
	if err := l.enter(); err != nil {
		return err
	}
	defer l.calls.Done()
	doing := func(err error) error { return fmt.Errorf("save a checkpoint at position %d: %w", at, err) }
	state, err := l.state(ctx)
	if err != nil {
		return doing(err)
	}
	if last := position(state.LastSeq); at == 0 || at > last {
		return doing(fmt.Errorf("the log holds groups up to position %d", last))
	}
	n := l.nats.Load()
	info, err := n.info(ctx, checkpointStream)
	if err != nil {
		return doing(err)
	}
	if _, err := l.untouched(ctx, n, checkpointStream, checkpointSubject, info.State.LastSeq); err != nil {
		return doing(err)
	}
	before, _, err := l.newest(ctx)
	if err != nil {
		return doing(err)
	}
	if at < before.at {
		return doing(fmt.Errorf("there is one at %d", before.at))
	}
	// A checkpoint that has to be given up half-way keeps its room until the next one.
	most := before.size + before.size/4
	if before.count == 0 {
		most = state.Bytes
	}
	if err := l.room(int64(most)); err != nil {
		return doing(err)
	}
	first := info.State.LastSeq + 1
	c := commit{at: at, epoch: l.epoch}
	sum := sha256.New()
	var buf []byte
	for part, err := range parts {
		if err != nil {
			return err
		}
		if len(part) > feed.MaxPart {
			return doing(fmt.Errorf("a part of %d bytes is over the limit of %d", len(part), feed.MaxPart))
		}
		buf = appendPart(buf[:0], at, c.count, part)
		sum.Write(buf[:partHead])
		if err := n.publish(ctx, checkpointStream, checkpointSubject, first-1+uint64(c.count), buf); err != nil {
			return doing(fmt.Errorf("write part %d: %w", c.count, err))
		}
		c.count++
		c.size += uint64(len(part))
	}
	c.sum = sum16(sum)
	if err := n.publish(ctx, checkpointStream, checkpointSubject, first-1+uint64(c.count), c.encode()); err != nil {
		return doing(fmt.Errorf("write the commit: %w", err))
	}
	if l.opts.Relaxed {
		// What goes next is what it stands for.
		if err := syncTree(filepath.Join(n.dir, natsName)); err != nil {
			return doing(err)
		}
	}
	// From here on it is saved, whatever happens to what is tidied up.
	if err := l.high.sync(); err != nil {
		l.logger.Error("the log's end is less well guarded", "err", err)
	}
	l.mu.Lock()
	busy := l.loads > 0
	l.trims++
	l.mu.Unlock()
	if busy {
		return nil // somebody reads what is before it; the next save purges it
	}
	if err := n.purge(ctx, checkpointStream, first); err != nil {
		l.logger.Warn("the checkpoint before the newest is kept until the next one", "err", err)
	}
	return nil
}

// LoadCheckpoint calls fn with the parts of the newest checkpoint; see feed.Log. One
// that is committed but not whole is *feed.Damage; fn may by then have seen parts.
func (l *Log) LoadCheckpoint(ctx context.Context, fn func(part []byte) error) (feed.Position, error) {
	if err := l.enter(); err != nil {
		return 0, err
	}
	defer l.calls.Done()
	defer l.hold()()
	c, found, err := l.newest(ctx)
	if err != nil || !found {
		return 0, err
	}
	damage := func(number uint32, what string) error {
		return &feed.Damage{At: c.at, What: fmt.Sprintf("part %d of the checkpoint's %d %s", number+1, c.count, what)}
	}
	var read uint32
	var size uint64
	sum := sha256.New()
	err = l.scan(ctx, checkpointStream, c.seq-uint64(c.count), c.seq-1, func(_ uint64, b []byte) error {
		f, ok := readFrame(b)
		if !ok || f.commit != nil || f.at != c.at || f.number != read {
			return damage(read, "is harmed, or another's")
		}
		read++
		size += uint64(len(f.part))
		sum.Write(f.head)
		return fn(f.part)
	})
	if errors.Is(err, errMissing) {
		return 0, damage(read, "is missing")
	}
	if err != nil {
		return 0, err
	}
	if size != c.size || sum16(sum) != c.sum {
		return 0, &feed.Damage{At: c.at, What: "the parts of the checkpoint are not those that were committed"}
	}
	return c.at, nil
}

// newest finds the newest checkpoint. It begins with the stream's last message: if
// that is a part, the run that it belongs to never came to its commit, and what is
// before the run is looked at.
func (l *Log) newest(ctx context.Context) (c commit, found bool, err error) {
	defer l.hold()()
	info, err := l.nats.Load().info(ctx, checkpointStream)
	if err != nil {
		return commit{}, false, err
	}
	first, seq := info.State.FirstSeq, info.State.LastSeq
	damage := func(what string) error {
		return &feed.Damage{What: fmt.Sprintf("message %d of the checkpoints, of %d to %d, %s", seq, first, info.State.LastSeq, what)}
	}
	if seq != 0 && first > seq {
		return commit{}, false, damage("is missing")
	}
	for seq >= first && seq != 0 {
		b, err := l.get(ctx, checkpointStream, seq)
		if errors.Is(err, errMissing) {
			return commit{}, false, damage("is missing")
		}
		if err != nil {
			return commit{}, false, err
		}
		f, ok := readFrame(b)
		switch {
		case !ok:
			return commit{}, false, damage("is harmed")
		case uint64(f.number) > seq-first:
			return commit{}, false, damage("belongs to parts that are missing")
		case f.commit != nil && f.commit.epoch != l.epoch:
			return commit{}, false, damage("is of the log " + string(f.commit.epoch))
		case f.commit != nil:
			f.commit.seq = seq
			return *f.commit, true, nil
		}
		seq -= uint64(f.number) + 1
	}
	return commit{}, false, nil
}

// hold keeps the checkpoint from being purged, if it is replaced, until the function
// that it returns is called.
func (l *Log) hold() (release func()) {
	l.mu.Lock()
	l.loads++
	l.mu.Unlock()
	return func() {
		l.mu.Lock()
		l.loads--
		l.mu.Unlock()
	}
}

func sum16(h hash.Hash) (s [16]byte) {
	copy(s[:], h.Sum(nil))
	return s
}
