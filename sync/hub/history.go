package hub

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// historian is a log that keeps what it trims. See broker/history.
type historian interface {
	// History calls fn with all that it holds of a range, in the order of sequences, up to
	// the last group that is there when it is called, and returns the first sequence that
	// it holds, 0 if there is none. What fn returns ends it and is returned.
	//
	// feed.ErrNoHistory: it keeps none. *feed.HistoryDamage, after all that is before it:
	// something of the range is lost; reading on from after it is possible.
	History(ctx context.Context, r feed.HistoryRange, fn func(feed.HistoryStep) error) (begins feed.Seq, err error)
}

// HistoryQuery asks for changes. What is zero is no condition.
type HistoryQuery struct {
	Collections  []string // none: all that the grant covers
	Key          string   // with one collection
	From, To     feed.Seq // both inclusive
	Since, Until int64    // milliseconds since 1970, UTC; both inclusive
	After        string   // the Next of the page before
	Limit        int      // how many changes at most; at least 1, and the caller's to bound
}

// HistoryPage is a part of an answer, oldest first.
type HistoryPage struct {
	Changes []HistoryChange
	Holes   []feed.HistoryHole // what was never kept, of what the page went over
	Begins  feed.Seq           // the first sequence that the history holds; 0: it holds none
	Next    string             // what to ask for the page after it; "": this is the last
}

// HistoryChange is a change, and the epoch of the log that it was written to.
type HistoryChange struct {
	*feed.Change
	Epoch feed.Epoch
}

// A page ends when it holds this much, or when so much was gone over for it, whether or
// not it has found anything.
const (
	historyBytes = 4 << 20
	historyRead  = 64 << 20
	historyTime  = 2 * time.Second
)

// Codes of refusals that only the history gives.
const (
	NotFound Code = "not-found" // there is no history
	Internal Code = "internal"  // it is damaged
)

var errPageFull = errors.New("the page is full")

// History returns a page of what was written, each change, whatever came after it. A page
// may hold nothing and still have a Next. It waits for nobody, and nobody for it.
func (h *Hub) History(ctx context.Context, g Grant, tenant string, q HistoryQuery) (HistoryPage, error) {
	r, err := h.historyRange(g, tenant, q)
	if err != nil {
		return HistoryPage{}, err
	}
	log, ok := h.log.(historian)
	if !ok {
		return HistoryPage{}, noHistory()
	}
	x := &historyReader{page: &HistoryPage{}, r: r, limit: max(q.Limit, 1), place: r.From - 1, until: time.Now().Add(historyTime)}
	// What a filter sees now says nothing of what others changed then: nothing is shown of
	// what it narrows.
	x.reads = func(collection string) bool {
		return g.MayRead(tenant, collection) && collection != revocations && len(g.filters(collection)) == 0
	}
	x.page.Begins, err = log.History(ctx, r, x.step)
	var damage *feed.HistoryDamage
	switch {
	case err == nil:
		return *x.page, nil
	case errors.Is(err, feed.ErrNoHistory):
		return HistoryPage{}, noHistory()
	case errors.Is(err, errPageFull), errors.As(err, &damage) && x.place >= r.From:
		// What is damaged is told to whoever asks for what comes after it.
		if x.place < r.To {
			x.page.Next = strconv.FormatUint(uint64(x.place), 10)
		}
		return *x.page, nil
	case damage != nil:
		h.opts.Logger.Error("read the history", "err", err)
		if damage.Last < damage.First {
			return HistoryPage{}, refuse(Internal, "the history is damaged before sequence %d, and no change is known to be lost; ask from=%d to go on after it", damage.First, damage.First)
		}
		return HistoryPage{}, refuse(Internal, "the history is damaged: sequences %d to %d can't be read; ask from=%d for what follows", damage.First, damage.Last, damage.Last+1)
	}
	if why := h.log.Ready(); why != nil {
		return HistoryPage{}, notReady(why) // the disk fails: it is read again when that is over
	}
	return HistoryPage{}, err
}

func noHistory() error {
	return refuse(NotFound, "this server keeps no history: start it with --history")
}

// historyRange checks a query and says what to read for it.
func (h *Hub) historyRange(g Grant, tenant string, q HistoryQuery) (r feed.HistoryRange, err error) {
	if err := h.MayUse(g, tenant); err != nil {
		return r, err
	}
	if n := len(q.Collections); n > feed.MaxCollections {
		return r, refuse(TooMany, "%d collections; at most %d: ask for fewer", n, feed.MaxCollections)
	}
	for _, c := range q.Collections {
		if _, err := h.reads(g, tenant, c); err != nil {
			return r, err
		}
		if len(g.filters(c)) > 0 {
			return r, refuse(Forbidden, "the credential shows some rows of %s only: its history can't be shown", c)
		}
	}
	if q.Key != "" {
		if err := feed.CheckKey(q.Key); err != nil {
			return r, refuse(BadName, "%s", err)
		}
		if len(q.Collections) != 1 {
			return r, refuse(BadRequest, "a key is of one collection: name it, and no other")
		}
	}
	r = feed.HistoryRange{Tenant: tenant, Collections: q.Collections, Key: q.Key, From: max(q.From, 1), Since: q.Since, Until: q.Until}
	if q.To > 0 && q.To < r.From || q.Until > 0 && q.Until < q.Since {
		return r, refuse(BadRequest, "to is before from")
	}
	if q.After != "" {
		n, err := strconv.ParseUint(q.After, 10, 53)
		if err != nil || strconv.FormatUint(n, 10) != q.After {
			return r, refuse(BadRequest, `after must be the "next" of the page before`)
		}
		r.From = max(r.From, feed.Seq(n)+1)
	}
	// The log may hold what is not durable yet, and what nobody was shown.
	r.To = feed.Seq(h.state.head.Load())
	if t := h.state.lookup(tenant); t != nil {
		t.mu.RLock()
		r.To = max(r.To, t.applied)
		t.mu.RUnlock()
	}
	if q.To > 0 {
		r.To = min(r.To, q.To)
	}
	if r.To == 0 {
		r.To, r.From = 1, 2 // nothing was ever written
	}
	return r, nil
}

// historyReader makes a page of the steps of a reading.
type historyReader struct {
	page  *HistoryPage
	r     feed.HistoryRange
	reads func(collection string) bool
	limit int
	until time.Time
	place feed.Seq // all up to it was gone over
	size  int      // bytes of the page
	read  int64    // bytes gone over
}

func (x *historyReader) step(s feed.HistoryStep) error {
	if s.Hole != nil {
		x.page.Holes = append(x.page.Holes, *s.Hole)
	}
	if s.Group != nil && !x.group(s.Group) {
		return errPageFull
	}
	before := x.place
	x.place = max(x.place, s.Place)
	x.read += s.Read
	// Not before it has come on at all: groups that hold no change would be read again.
	if max(before, x.place) >= x.r.From && (len(x.page.Changes) >= x.limit || x.size >= historyBytes || x.read >= historyRead || time.Now().After(x.until)) {
		return errPageFull
	}
	return nil
}

// group adds the changes of a group; false: the page was full before its end.
func (x *historyReader) group(g *feed.Group) bool {
	seq := g.First
	var e feed.Encoder
	for i := range g.Transactions {
		t := &g.Transactions[i]
		if t.Tenant != x.r.Tenant {
			seq += feed.Seq(len(t.Records))
			continue
		}
		for j := range t.Records {
			r := &t.Records[j]
			if x.wants(g, r, seq) {
				if len(x.page.Changes) >= x.limit || x.size >= historyBytes {
					return false
				}
				// Encoded, and so copied: the group's memory is free.
				c := e.Change(feed.Fields{Seq: seq, Collection: r.Collection, Op: r.Op, Key: r.Key, Value: r.Value, At: g.At, Client: t.Client, ID: r.ID})
				x.page.Changes = append(x.page.Changes, HistoryChange{c, g.Epoch})
				x.size += len(c.Frame())
			}
			x.place = max(x.place, seq)
			seq++
		}
	}
	return true
}

func (x *historyReader) wants(g *feed.Group, r *feed.Record, seq feed.Seq) bool {
	if seq < x.r.From || seq > x.r.To || g.At < x.r.Since || x.r.Until > 0 && g.At > x.r.Until || r.Op == feed.Noop {
		return false
	}
	if x.r.Key != "" && r.Key != x.r.Key {
		return false
	}
	if len(x.r.Collections) == 0 {
		return x.reads(r.Collection)
	}
	for _, c := range x.r.Collections {
		if r.Collection == c {
			return true
		}
	}
	return false
}
