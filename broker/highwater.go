package broker

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tidemark-sync/tidemark/sync/fault"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// highWater remembers, outside of JetStream, the newest group that was acknowledged: a
// log that ends before it, or has another group there, has lost something. It is
// written after the group is durable, so it never says too much. To sync it before the
// group is acknowledged would double the price of an append; it is synced beside the
// appends that follow, at most syncPause after it was written.
//
// The file has two slots, big-endian:
//
//	position[8] size[4] crc[4] check[16]
//
// size and CRC-32C are the group's; check is the first half of a SHA-256 over the epoch
// and what is before it. They are written in turn and lie in sectors of their own, so
// that a torn write harms one and the other still holds. In format 1 a slot was the
// position and a check of 8 bytes.
type highWater struct {
	f     *os.File // static
	epoch feed.Epoch
	wake  chan struct{} // room for one: there is something to sync
	done  chan struct{} // closed by the syncer when it has ended; nil before start

	mu     sync.Mutex
	mark   mark  // guarded by mu; only ever grows
	failed error // guarded by mu: why the mark could not be written or synced the last time
}

// mark is what a slot says.
type mark struct {
	pos  feed.Position
	size uint32
	crc  uint32
	only bool // of format 1: there is nothing but the position
}

// of is the mark of a group at a position.
func markOf(pos feed.Position, group []byte) mark {
	return mark{pos: pos, size: uint32(len(group)), crc: crc32.Checksum(group, castagnoli)}
}

const (
	slotSize    = 32
	oldSlotSize = 16
	slotGap     = 512 // the smallest sector
	// syncPause is the least time between two syncs of the mark. Beside appends that follow
	// each other it costs them a few hundredths; after a power cut, what was
	// acknowledged longer ago than this and the time of one sync is not lost unnoticed.
	syncPause = 10 * time.Millisecond
)

func (h *highWater) slot(m mark) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, slotSize), uint64(m.pos))
	if m.only {
		return append(b, h.check(b, oldSlotSize-8)...)
	}
	b = binary.BigEndian.AppendUint32(b, m.size)
	b = binary.BigEndian.AppendUint32(b, m.crc)
	return append(b, h.check(b, slotSize-16)...)
}

func (h *highWater) check(b []byte, n int) []byte {
	sum := sha256.Sum256(append(append(make([]byte, 0, slotSize+16), h.epoch...), b...))
	return sum[:n]
}

// read reads a slot, of either form.
func (h *highWater) read(b []byte) (m mark, ok bool) {
	m = mark{pos: feed.Position(binary.BigEndian.Uint64(b)), size: binary.BigEndian.Uint32(b[8:]), crc: binary.BigEndian.Uint32(b[12:])}
	if string(h.slot(m)) == string(b[:slotSize]) {
		return m, true
	}
	old := mark{pos: m.pos, only: true}
	return old, string(h.slot(old)) == string(b[:oldSlotSize])
}

// newMark is the content of a mark at 0.
func newMark(epoch feed.Epoch) []byte {
	h := &highWater{epoch: epoch}
	b := make([]byte, slotGap+slotSize)
	copy(b, h.slot(mark{}))
	copy(b[slotGap:], h.slot(mark{}))
	return b
}

// createHighWater makes a mark at 0.
func createHighWater(dir string, epoch feed.Epoch) error {
	if err := writeSynced(filepath.Join(dir, highName), newMark(epoch)); err != nil {
		return fmt.Errorf("make the high-water mark: %w", err)
	}
	return nil
}

// openHighWater reads the mark; one that can't be read is *feed.Damage.
func openHighWater(dir string, epoch feed.Epoch) (*highWater, error) {
	path := filepath.Join(dir, highName)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, &feed.Damage{What: "the high-water mark " + path + " is missing"}
	}
	if err != nil {
		return nil, fmt.Errorf("open the high-water mark: %w", err)
	}
	h := &highWater{f: f, epoch: epoch, wake: make(chan struct{}, 1)}
	if h.mark, err = h.stored(); err != nil {
		f.Close()
		return nil, err
	}
	return h, nil
}

// stored is the mark as the file has it.
func (h *highWater) stored() (newest mark, err error) {
	found := false
	for _, at := range []int64{0, slotGap} {
		var b [slotSize]byte
		if _, err := h.f.ReadAt(b[:], at); err != nil && err != io.EOF {
			return mark{}, fmt.Errorf("read the high-water mark: %w", err)
		}
		if m, ok := h.read(b[:]); ok && (!found || m.pos > newest.pos) {
			newest, found = m, true
		}
	}
	if !found {
		return mark{}, &feed.Damage{What: "the high-water mark " + h.f.Name() + " can't be read, or is of another log"}
	}
	return newest, nil
}

// start starts the syncer, which close ends.
func (h *highWater) start() {
	h.done = make(chan struct{})
	go func() {
		defer close(h.done)
		for range h.wake {
			// Not at once: the group that was acknowledged just now is on its way to its followers.
			time.Sleep(syncPause)
			_ = h.sync() // kept, and told by err
		}
	}()
}

// now is the newest group that was acknowledged, as far as is known.
func (h *highWater) now() mark {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mark
}

// advance raises the mark to a group that is durable in the log. An error says that the
// file does not have it; it has it when advance or sync succeeds later.
func (h *highWater) advance(m mark) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.pos <= h.mark.pos {
		return nil
	}
	h.mark = m
	if h.failed = h.write(); h.failed != nil {
		return h.failed
	}
	select {
	case h.wake <- struct{}{}:
	default:
	}
	return nil
}

// write needs mu.
func (h *highWater) write() error {
	if _, err := h.f.WriteAt(h.slot(h.mark), int64(h.mark.pos%2)*slotGap); err != nil {
		return fmt.Errorf("write the high-water mark: %w", err)
	}
	return nil
}

// sync makes the mark durable.
func (h *highWater) sync() error {
	if fault.Bug("mark-not-fsynced") {
		return nil
	}
	h.mu.Lock()
	again := h.failed != nil
	if again {
		// A page whose write failed once is not written again by itself.
		if h.failed = h.write(); h.failed != nil {
			defer h.mu.Unlock()
			return h.failed
		}
	}
	h.mu.Unlock()
	err := dataSync(h.f)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("sync the high-water mark: %w", err)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed = err
	return err
}

// err is why the mark could not be made durable the last time.
func (h *highWater) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed
}

// close ends the syncer, makes the mark durable and closes the file. Nothing may
// advance it any more.
func (h *highWater) close() error {
	close(h.wake)
	if h.done != nil {
		<-h.done
	}
	err := h.sync()
	if cerr := h.f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close the high-water mark: %w", cerr)
	}
	return err
}
