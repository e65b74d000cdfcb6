package hub

import (
	"crypto/sha256"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// sieve is what somebody sees of a collection: the rows that pass all of its filters.
// Sessions whose filters are the same share one, and what it found.
type sieve struct {
	identity string
	filters  []Filter

	held  atomic.Int32                    // so many quick answers in a row until it counts as quick again; see ask
	slow  atomic.Bool                     // it took long once: who sees by it is served alone
	refs  int                             // guarded by sieves.mu
	found atomic.Pointer[[]atomic.Uint64] // nil while there is one that uses it: it asks once for each change
}

// A shared sieve remembers so many changes, eight bytes each: by how many share it, so that it costs none of them much.
const (
	sievePlaces      = 8192
	sievePlacesOfOne = 64 // a power of two, as the other is
)

// sieves are those in use.
type sieves struct {
	mu  sync.Mutex
	all map[string]*sieve // guarded by mu, by identity
}

// filters are those of a grant that count for a collection.
func (g *Grant) filters(collection string) []Filter {
	var all []Filter
	for _, f := range g.Filters {
		if match(f.Pattern, collection) {
			all = append(all, f.Filter)
		}
	}
	return all
}

// identity names a list of filters, whatever its order; "" for none.
func identity(filters []Filter) string {
	if len(filters) == 0 {
		return ""
	}
	names := make([]string, len(filters))
	for i, f := range filters {
		names[i] = strconv.Quote(f.Identity())
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " ")
}

// join returns the sieve of filters, nil where there are none: everything is seen. leave is
// its opposite.
func (s *sieves) join(filters []Filter) *sieve {
	name := identity(filters)
	if name == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.all[name]
	if x == nil {
		x = &sieve{identity: name, filters: filters}
		if s.all == nil {
			s.all = make(map[string]*sieve)
		}
		s.all[name] = x
	}
	x.refs++
	if n := min(x.refs*sievePlacesOfOne, sievePlaces); x.refs > 1 && n&(n-1) == 0 {
		if places := x.found.Load(); places == nil || len(*places) < n {
			found := make([]atomic.Uint64, n) // what was found before is asked again
			x.found.Store(&found)
		}
	}
	return x
}

func (s *sieves) leave(x *sieve) {
	if x == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.refs--; x.refs == 0 {
		delete(s.all, x.identity)
	}
}

// sees tells whether a change leaves a row that is seen.
func (x *sieve) sees(c *feed.Change) bool {
	if c.Op() >= feed.Remove {
		return false
	}
	places := x.found.Load()
	if places == nil {
		return x.ask(c)
	}
	// A sequence names one change, and a change is seen always or never.
	place := &(*places)[uint64(c.Seq())%uint64(len(*places))]
	if had := place.Load(); had>>1 == uint64(c.Seq()) {
		return had&1 == 1
	}
	now := uint64(c.Seq()) << 1
	if x.ask(c) {
		now |= 1
	}
	place.Store(now)
	return now&1 == 1
}

// slowFilter is from when on a filter is slow: others are not to wait for it.
const slowFilter = time.Millisecond

// quickAfter is after how many quick answers in a row a slow one is forgotten.
const quickAfter = 64

func (x *sieve) ask(c *feed.Change) bool {
	began := time.Now()
	seen := sees(x.filters, c.Value())
	// Anybody is held up for a millisecond now and then.
	if time.Since(began) >= slowFilter {
		x.held.Store(quickAfter)
		x.slow.Store(true)
	} else if x.slow.Load() && x.held.Add(-1) <= 0 {
		x.slow.Store(false)
	}
	return seen
}

// slow tells whether a session sees by a filter that is.
func (s *Session) slow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.subs, func(u *sub) bool { return u.sieve != nil && u.sieve.slow.Load() })
}

// EpochOf is the log's epoch as a grant's bearer is told it, in cursors too: who comes back with a cursor of another is
// reset. A grant with filters has one of its own, because a cursor says nothing of rows that its bearer did not see, or sees
// no more, since then.
func (h *Hub) EpochOf(g Grant) feed.Epoch {
	const digits = "0123456789abcdefghijklmnopqrstuv"
	if len(g.Filters) == 0 {
		return h.state.epoch
	}
	names := make([]string, len(g.Filters))
	for i, f := range g.Filters {
		names[i] = strconv.Quote(f.Pattern) + strconv.Quote(f.Identity())
	}
	slices.Sort(names)
	sum := sha256.Sum256([]byte(strings.Join(slices.Compact(names), " ")))
	epoch := []byte(h.state.epoch)
	for _, b := range sum[:min(6, 16-len(epoch))] {
		epoch = append(epoch, digits[b&31])
	}
	return feed.Epoch(epoch)
}

// sees tells whether a row passes all filters.
func sees(filters []Filter, value string) bool {
	for _, f := range filters {
		if !ask(f, value) {
			return false
		}
	}
	return true
}

// ask asks a filter. One that panics sees nothing: it is called where the log is written.
func ask(f Filter, value string) (seen bool) {
	defer func() {
		if recover() != nil {
			seen = false
		}
	}()
	return f.Sees(value)
}
