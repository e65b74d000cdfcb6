package hub

import (
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Page is a part of a collection's rows, in sequence order.
type Page struct {
	// Cursor is where a feed goes on once all pages were read: it is the first
	// page's, so that what changed or went between the pages comes again.
	Cursor feed.Cursor
	Rows   []*feed.Change
	Next   string // what to ask for the page after it; "": this is the last
}

// Rows returns the page of a collection that follows after, "" for the first: at
// most limit rows, at least 1. How many at most is the caller's to bound.
func (h *Hub) Rows(g Grant, tenant, collection, after string, limit int) (Page, error) {
	limit = max(limit, 1)
	epoch := h.EpochOf(g)
	shown := feed.Seq(h.state.head.Load()) // before the tenant is looked up: one that is forgotten meanwhile ends after it
	t, err := h.reads(g, tenant, collection)
	if err != nil {
		return Page{}, err
	}
	var page Page
	var pos feed.Seq
	if after != "" {
		cursor, seq, ok := strings.Cut(after, ".")
		c, err := feed.ParseCursor(cursor)
		n, perr := strconv.ParseUint(seq, 10, 53)
		if !ok || err != nil || perr != nil {
			return Page{}, refuse(BadRequest, `after must be the "next" of the page before`)
		}
		if c.Epoch != epoch {
			return Page{}, refuse(BadRequest, "after is of another log: start again with the first page")
		}
		page.Cursor, pos = c, feed.Seq(n)
	}
	if after == "" {
		if t != nil {
			t.mu.RLock()
			shown = max(shown, t.applied)
			t.mu.RUnlock()
		}
		page.Cursor = feed.Cursor{Epoch: epoch, Seq: shown}
	}
	sieve := h.sieves.join(g.filters(collection))
	defer h.sieves.leave(sieve)
	for t != nil && page.Next == "" {
		var all bool
		if pos, all = page.read(t, collection, pos, sieve, limit); all {
			break
		}
	}
	return page, nil
}

// read adds the rows of a collection after pos, and returns how far it came: all, unless
// the page is full, or so much was out of sight that the writer gets a turn.
func (p *Page) read(t *tenant, collection string, pos feed.Seq, sieve *sieve, limit int) (upTo feed.Seq, all bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	v := t.views[collection]
	if v == nil {
		return pos, true
	}
	hidden, began := 0, time.Now()
	for r := v.after(pos); r.next != nil; r.advance() {
		if r.next.Op() == feed.Remove {
			continue
		}
		if sieve != nil && !sieve.sees(r.next) {
			if hidden++; hidden == batchHidden || time.Since(began) > batchTime {
				return r.next.Seq(), false
			}
			continue
		}
		if n := len(p.Rows); n == limit {
			p.Next = p.Cursor.String() + "." + strconv.FormatUint(uint64(p.Rows[n-1].Seq()), 10)
			return 0, false
		}
		p.Rows = append(p.Rows, r.next)
	}
	return 0, true
}

// Row returns one row, nil if it is not there.
func (h *Hub) Row(g Grant, tenant, collection, key string) (*feed.Change, error) {
	if err := feed.CheckKey(key); err != nil {
		return nil, refuse(BadName, "%s", err)
	}
	t, err := h.reads(g, tenant, collection)
	if t == nil || err != nil {
		return nil, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	v := t.views[collection]
	if v == nil {
		return nil, nil
	}
	c := v.row(key)
	if c == nil || !sees(g.filters(collection), c.Value()) {
		return nil, nil
	}
	return c, nil
}

// reads returns a tenant, nil if there is none, for one who may read the collection.
func (h *Hub) reads(g Grant, tenant, collection string) (*tenant, error) {
	if err := h.MayUse(g, tenant); err != nil {
		return nil, err
	}
	if err := feed.CheckCollection(collection); err != nil {
		return nil, refuse(BadName, "%s", err)
	}
	if !g.MayRead(tenant, collection) {
		return nil, refuse(Forbidden, "the credential does not cover reading %s of tenant %s", collection, tenant)
	}
	return h.state.lookup(tenant), nil
}
