package hub

import (
	"context"
	"fmt"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// MergePatch is mergePatch.
func MergePatch(target, patch string) (string, error) { return mergePatch(target, patch) }

// Compact is compact.
func Compact(raw []byte) (string, error) { return new(Pending).compact("value", raw) }

// Remembered is how many tombstones, ids and collections the hub holds on to, also where
// they are of no use any more, and how many tenants. Nothing may be written meanwhile.
func (h *Hub) Remembered() (tombstones, ids, collections, tenants int) {
	s := h.state
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, t := range s.tenants {
		t.mu.RLock()
		collections += len(t.views)
		ids += t.seen.len()
		t.mu.RUnlock()
	}
	return s.tombs.len(), ids, collections, len(s.tenants)
}

// Index is index.
type Index struct{ x index }

func (i *Index) Get(key string) *feed.Change           { return i.x.get(key) }
func (i *Index) Put(c *feed.Change) (old *feed.Change) { return i.x.put(c) }
func (i *Index) Remove(c *feed.Change) bool            { return i.x.remove(c) }
func (i *Index) Sizes() (entries, places int)          { return i.x.n, len(i.x.hashes) }

// After is how many changes a collection of acme has after seq, and how many slots in all.
func (h *Hub) After(collection string, seq feed.Seq) (changes, slots int) {
	t := h.state.lookup("acme")
	t.mu.RLock()
	defer t.mu.RUnlock()
	v := t.views[collection]
	for r := v.after(seq); r.next != nil; r.advance() {
		changes++
	}
	return changes, len(v.slots)
}

// Search is the index of the first of some sequences, in order, that is above seq.
func Search(of []feed.Seq, seq feed.Seq) int {
	v := &view{slots: make([]slot, len(of))}
	for i, s := range of {
		v.slots[i].seq = s
	}
	return v.search(seq)
}

// Deadlines is how many rows have one, and how many entries are held for them.
func (h *Hub) Deadlines() (rows, entries int) {
	_ = h.inWriter(context.Background(), func() { rows, entries = len(h.state.expiring.at), len(h.state.expiring.next) })
	return rows, entries
}

// Checkpoint saves a checkpoint of the state as it is now, trims the log and waits until
// that is done. Where nothing was ever written it does nothing.
func (h *Hub) Checkpoint(ctx context.Context) error {
	for {
		var c *saving
		ours := false
		err := h.inWriter(ctx, func() {
			h.lookSaved()
			if h.state.position == 0 || h.failed {
				return
			}
			if h.checkpoint == nil {
				h.save()
				ours = true
			}
			c = h.checkpoint
		})
		switch {
		case err != nil:
			return fmt.Errorf("save a checkpoint: %w", err)
		case c == nil:
			return h.Err()
		}
		select {
		case <-c.over:
			if ours {
				return c.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// KeepPast sets how many changes are kept of a small collection for those who see some of
// its rows, and returns what sets it back. No hub may be open.
func KeepPast(n int) (back func()) {
	before := pastLeast
	pastLeast = n
	return func() { pastLeast = before }
}

// Rates is how many tenants have their rates counted.
func (h *Hub) Rates() int {
	h.fences.mu.Lock()
	defer h.fences.mu.Unlock()
	return len(h.fences.rates)
}
