package hub

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Forgotten is what went with a tenant.
type Forgotten struct {
	Rows  int64 `json:"rows"`
	Bytes int64 `json:"bytes"` // of memory, about

	Seq feed.Seq `json:"-"` // the last sequence of which nothing of it is left
}

// dropMark names the change that a tenant's end is in the log: it has a sequence of its own, so
// that who had seen all before it is told. No name that clients use is like it.
const dropMark = "$dropped"

// Forget forgets a tenant wholly: its rows, tombstones, ids and collections, for whoever
// reads from then on; and then its part of the log, by rewrite, which is as Renew's and
// must leave nothing of the old files. It returns when both are done and durable. The caller
// needs a Grant with Admin for the tenant. An error that is no *Refusal may come between the two:
// the tenant is gone, and Forget again finishes the job.
//
// Its sessions end with "evicted", and clients that come back with a cursor of before are
// reset; so may be those of a tenant that nobody has written to yet. Who writes to it makes it
// anew. What stays is that credentials were revoked, with their subjects, until they would have
// expired: to forget that would let them in again. A history that the log keeps is the caller's
// to forget, up to Forgotten.Seq; what was copied elsewhere (backups, what was put aside as
// damaged) is its operator's.
//
// Where the process ends between the two, the next Open tells the logger: memory does not show
// that the files still hold something.
func (h *Hub) Forget(ctx context.Context, g Grant, tenant string, rewrite func(ctx context.Context, save func(context.Context) error) error) (Forgotten, error) {
	if err := h.administers(g, tenant); err != nil {
		return Forgotten{}, err
	}
	if tenant == allTenants {
		return Forgotten{}, refuse(BadName, "name one tenant: * stands for all, and all are not forgotten at once")
	}
	var gone Forgotten
	var err error
	werr := h.inWriter(ctx, func() {
		if t := h.state.lookup(tenant); t != nil {
			gone.Rows, gone.Bytes = t.count.Load(), t.bytes.Load()
		}
		x := h.newGroup()
		x.add(&Request{Tenant: allTenants}, []feed.Record{{Op: feed.Noop, Collection: dropMark, Key: "-"}}, x.next)
		gone.Seq = x.next
		x.next++
		x.drop = []string{tenant}
		err = h.commit(x)
	})
	if werr != nil {
		err = werr
	}
	if err != nil {
		return Forgotten{}, err
	}
	h.endIf(tenant, func(*Session) *Ended {
		return &Ended{Reason: EndEvicted, Detail: "tenant " + tenant + " was forgotten", Retry: time.Second}
	})
	if t := h.state.lookup(tenant); t != nil { // the revocations
		gone.Rows -= t.count.Load()
		gone.Bytes -= t.bytes.Load()
	}
	if err := h.Renew(ctx, rewrite); err != nil {
		return gone, fmt.Errorf("forget tenant %s: its rows are gone, but the log still holds them: %w", tenant, err)
	}
	return gone, nil
}

// drop forgets tenants. Their cursors of before are below the floor of all that comes to be
// from now on; that there was a tenant of this name need not be remembered for it.
func (s *state) drop(names []string) {
	for _, name := range names {
		s.mu.Lock()
		s.dropped = s.next - 1
		t := s.tenants[name]
		delete(s.tenants, name)
		s.mu.Unlock()
		if t == nil {
			continue
		}
		t.mu.Lock()
		t.gone.Store(true)
		stays := t.views[revocations]
		clear(t.views) // who still follows one reads from what it has, until it hears of its end
		t.mu.Unlock()
		s.tombs.keep(func(x tomb) bool { return x.tenant != t && x.view.rows.get(x.change.Key()) == x.change })
		s.replaced = 0
		expires := make(map[*feed.Change]int64)
		for _, d := range s.expiring.next {
			if d.tenant == t && s.expiring.holds(d) {
				expires[d.change] = d.at
			}
		}
		for c := range expires {
			s.expiring.drop(c)
		}
		s.bytes.Add(-t.bytes.Load())
		s.rows.Add(-t.count.Load())
		if stays == nil || stays.live == 0 {
			continue
		}
		again := s.keep(name)
		again.mu.Lock()
		v := again.view(revocations)
		for _, slot := range stays.slots {
			if c := slot.change; c != nil && c.Op() != feed.Remove {
				s.put(again, v, c, 0, expires[c])
				again.applied = c.Seq()
			}
		}
		again.mu.Unlock()
	}
}
