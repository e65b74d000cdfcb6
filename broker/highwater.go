package broker

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// highWater remembers, outside of JetStream, the newest position that was
// acknowledged: a log that ends before it has lost something. It is written after the
// group is durable, so it never says too much; it is not synced with each group (that
// would double the price of an append), so after a power cut it may say too little.
//
// The file has two slots, each a position and the first half of a SHA-256 over the
// epoch and it. They are written in turn and lie in sectors of their own, so that a
// torn write harms one and the other still holds.
type highWater struct {
	f     *os.File // static
	epoch feed.Epoch

	mu  sync.Mutex
	pos feed.Position // guarded by mu; only ever grows
}

const (
	slotSize = 16
	slotGap  = 512 // the smallest sector
)

func (h *highWater) slot(pos feed.Position) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, slotSize), uint64(pos))
	sum := sha256.Sum256(append(append(make([]byte, 0, slotSize+8), h.epoch...), b...))
	return append(b, sum[:slotSize-8]...)
}

// createHighWater makes a mark at 0.
func createHighWater(dir string, epoch feed.Epoch) (*highWater, error) {
	h := &highWater{epoch: epoch}
	b := make([]byte, slotGap+slotSize)
	copy(b, h.slot(0))
	copy(b[slotGap:], h.slot(0))
	if err := writeSynced(filepath.Join(dir, highName), b); err != nil {
		return nil, fmt.Errorf("make the high-water mark: %w", err)
	}
	return openHighWater(dir, epoch)
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
	h := &highWater{f: f, epoch: epoch}
	found := false
	for _, at := range []int64{0, slotGap} {
		var b [slotSize]byte
		if _, err := f.ReadAt(b[:], at); err != nil && err != io.EOF {
			f.Close()
			return nil, fmt.Errorf("read the high-water mark: %w", err)
		}
		pos := feed.Position(binary.BigEndian.Uint64(b[:]))
		if string(h.slot(pos)) == string(b[:]) {
			h.pos, found = max(h.pos, pos), true
		}
	}
	if !found {
		f.Close()
		return nil, &feed.Damage{What: "the high-water mark " + path + " can't be read, or is of another log"}
	}
	return h, nil
}

// position is the newest position that was acknowledged, as far as is known.
func (h *highWater) position() feed.Position {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pos
}

// advance raises the mark to a position that is durable in the log.
func (h *highWater) advance(pos feed.Position) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if pos <= h.pos {
		return nil
	}
	h.pos = pos
	if _, err := h.f.WriteAt(h.slot(pos), int64(pos%2)*slotGap); err != nil {
		return fmt.Errorf("write the high-water mark: %w", err)
	}
	return nil
}

// sync makes the mark durable.
func (h *highWater) sync() error {
	if err := h.f.Sync(); err != nil {
		return fmt.Errorf("sync the high-water mark: %w", err)
	}
	return nil
}

func (h *highWater) close() error {
	err := h.sync()
	if cerr := h.f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close the high-water mark: %w", cerr)
	}
	return err
}
