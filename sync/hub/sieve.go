package hub

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// sieve is what somebody sees of a collection: the rows that pass all of its filters.
// Sessions whose filters are the same share one, and what it found.
type sieve struct {
	identity string
	filters  []Filter

	refs  int                             // guarded by sieves.mu
	found atomic.Pointer[[]atomic.Uint64] // nil while there is one session: it asks once for each change
}

// sievePlaces is how many changes a shared sieve remembers at most, eight bytes each.
const sievePlaces = 8192

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
	if x.refs++; x.refs == 2 && x.found.Load() == nil {
		found := make([]atomic.Uint64, sievePlaces)
		x.found.Store(&found)
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

// same tells whether filters see what the sieve, nil for everything, does.
func (x *sieve) same(filters []Filter) bool {
	if x == nil {
		return len(filters) == 0
	}
	return x.identity == identity(filters)
}

// sees tells whether a change leaves a row that is seen.
func (x *sieve) sees(c *feed.Change) bool {
	if c.Op() >= feed.Remove {
		return false
	}
	places := x.found.Load()
	if places == nil {
		return sees(x.filters, c.Value())
	}
	// A sequence names one change, and a change is seen always or never.
	place := &(*places)[uint64(c.Seq())%sievePlaces]
	if had := place.Load(); had>>1 == uint64(c.Seq()) {
		return had&1 == 1
	}
	now := uint64(c.Seq()) << 1
	if sees(x.filters, c.Value()) {
		now |= 1
	}
	place.Store(now)
	return now&1 == 1
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
