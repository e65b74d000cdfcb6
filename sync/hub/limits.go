package hub

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Limits are what one tenant may have and do. In each, 0 is the default; none can be
// switched off.
type Limits struct {
	Sessions      int   // feeds that are open, held polls among them. Default 50,000
	Subscriptions int   // collections that they follow, together. Default 500,000
	Writes        int   // changes a second; two seconds' worth at once. Default 100,000
	Bytes         int64 // bytes of changes a second (keys, names, values, patches); two seconds' worth at once. Default 64 MiB
	Rows          int64 // Default 10,000,000
	Size          int64 // bytes of rows, tombstones and remembered ids, as Options.Memory counts them. Default: Options.Memory
	RowBytes      int   // bytes of one row's value. Default, and most: MaxValue
}

// Limit names a limit of a tenant.
type Limit string

// The limits, as Limits has them.
const (
	LimitSessions      Limit = "sessions"
	LimitSubscriptions Limit = "subscriptions"
	LimitWrites        Limit = "writes"
	LimitBytes         Limit = "bytes"
	LimitRows          Limit = "rows"
	LimitSize          Limit = "size"
	LimitRowBytes      Limit = "row-size"
)

// AllLimits are all of them.
var AllLimits = [...]Limit{LimitSessions, LimitSubscriptions, LimitWrites, LimitBytes, LimitRows, LimitSize, LimitRowBytes}

// refusals counts what was refused, by limit. Its zero value is ready.
type refusals [len(AllLimits)]atomic.Int64

func (r *refusals) add(l Limit) { r[slices.Index(AllLimits[:], l)].Add(1) }

// counts are those above 0.
func (r *refusals) counts() map[Limit]int64 {
	counts := make(map[Limit]int64)
	for i, l := range AllLimits {
		if n := r[i].Load(); n > 0 {
			counts[l] = n
		}
	}
	return counts
}

// counted counts a refusal, if it is because of a tenant's limit, and returns it.
func (h *Hub) counted(tenant string, err error) error {
	if r := (*Refusal)(nil); errors.As(err, &r) && r.Limit != "" {
		h.fences.refused.add(r.Limit)
		if t := h.state.lookup(tenant); t != nil {
			t.refused.add(r.Limit)
		}
	}
	return err
}

// or fills in what is 0.
func (l Limits) or(d Limits) Limits {
	return Limits{
		Sessions: pick(l.Sessions, d.Sessions), Subscriptions: pick(l.Subscriptions, d.Subscriptions), Writes: pick(l.Writes, d.Writes),
		Bytes: pick(l.Bytes, d.Bytes), Rows: pick(l.Rows, d.Rows), Size: pick(l.Size, d.Size), RowBytes: pick(l.RowBytes, d.RowBytes),
	}
}

func pick[N int | int64](n, otherwise N) N {
	if n == 0 {
		return otherwise
	}
	return n
}

func (l Limits) check() error {
	if l.Sessions < 0 || l.Subscriptions < 0 || l.Writes < 0 || l.Bytes < 0 || l.Rows < 0 || l.Size < 0 || l.RowBytes < 0 || l.RowBytes > MaxValue {
		return fmt.Errorf("hub: a limit of a tenant is negative, or a row's above %d bytes", MaxValue)
	}
	return nil
}

// fences keeps tenants within their limits.
type fences struct {
	// Static after construction.
	usual Limits
	own   map[string]*Limits
	only  map[string]bool // nil: a tenant comes to be when somebody uses it

	refused refusals // of all tenants together

	mu     sync.Mutex
	rates  map[string]*rate // guarded by mu
	sweep  int              // guarded by mu: look for what can be forgotten when there are so many
	queued rate             // guarded by mu: what waits, of all
}

// rate is what a tenant has of its rates left, and what of it waits for the writer. One
// that is full and waits for nothing is as good as none, and is forgotten.
type rate struct {
	at, over      time.Time // over: when it was last refused
	writes, bytes float64
	waiting       int
	waitingBytes  int64
}

// patience is for how long the writes of a tenant that was refused wait for those of others.
const patience = time.Second

// rateBurst is for how long a tenant may save up.
const rateBurst = 2 * time.Second

func newFences(o *Options) (*fences, error) {
	if err := o.Limits.check(); err != nil {
		return nil, err
	}
	usual := o.Limits.or(Limits{Sessions: 50_000, Subscriptions: 500_000, Writes: 100_000, Bytes: 64 << 20, Rows: 10_000_000, Size: o.Memory, RowBytes: MaxValue})
	f := &fences{usual: usual, own: make(map[string]*Limits), rates: make(map[string]*rate), sweep: 1024}
	for name, l := range o.TenantLimits {
		if err := errors.Join(feed.CheckTenant(name), l.check()); err != nil {
			return nil, err
		}
		l = l.or(usual)
		f.own[name] = &l
	}
	if o.Tenants != nil {
		f.only = make(map[string]bool)
		for _, name := range o.Tenants {
			if err := feed.CheckTenant(name); err != nil {
				return nil, err
			}
			f.only[name] = true
		}
	}
	return f, nil
}

func (f *fences) of(tenant string) *Limits {
	if l, ok := f.own[tenant]; ok {
		return l
	}
	return &f.usual
}

// admits refuses tenants that are not on the list, if there is one.
func (f *fences) admits(tenant string) error {
	if f.only == nil || f.only[tenant] || tenant == allTenants {
		return nil
	}
	return refuse(Forbidden, "there is no tenant %s on this server: its operator says which there are (--tenants)", tenant)
}

// bursts are what a tenant may save up of its rates: at least one request of any size.
func (l *Limits) bursts() (writes, bytes float64) {
	return max(float64(l.Writes)*rateBurst.Seconds(), feed.MaxChanges), max(float64(l.Bytes)*rateBurst.Seconds(), maxQueued/4)
}

// fill brings a tenant's rates up to now, and tells whether it has saved up all that it may.
func (r *rate) fill(l *Limits, now time.Time) (full bool) {
	mostWrites, mostBytes := l.bursts()
	since := max(0, now.Sub(r.at).Seconds())
	r.at = now
	r.writes, r.bytes = min(mostWrites, r.writes+since*float64(l.Writes)), min(mostBytes, r.bytes+since*float64(l.Bytes))
	return r.writes == mostWrites && r.bytes == mostBytes
}

// enter lets a request in line, or says which limit it would break; then nothing is taken off
// its rates. What is let in must leave. It may take half of the room that is free: so however
// many tenants fill the line, there is room for one more.
func (f *fences) enter(p *Pending) error {
	name, n, size := p.req.Tenant, len(p.req.Writes), p.size-p.made-int64(len(p.req.Writes))*writeCost
	l := f.of(name)
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.rates[name]
	if r == nil {
		f.tidy(now)
		r = &rate{at: now}
		r.writes, r.bytes = l.bursts()
		f.rates[name] = r
	}
	r.fill(l, now)
	if !p.own {
		if r.writes < float64(n) || r.bytes < float64(size) {
			r.over = now
		}
		p.patient = now.Sub(r.over) < patience
		switch {
		case r.writes < float64(n):
			return tooMuch(name, LimitWrites, (float64(n)-r.writes)/float64(l.Writes), "%d changes a second", l.Writes)
		case r.bytes < float64(size):
			return tooMuch(name, LimitBytes, (float64(size)-r.bytes)/float64(l.Bytes), "%d bytes of changes a second", l.Bytes)
		}
	}
	if r.waiting > 0 && (r.waiting >= queueLength-f.queued.waiting || r.waitingBytes+p.size > maxQueued-f.queued.waitingBytes) ||
		f.queued.waiting >= queueLength || f.queued.waitingBytes+p.size > maxQueued {
		return unavailable(time.Second, "too many writes are waiting; try again in a second")
	}
	if !p.own {
		r.writes -= float64(n)
		r.bytes -= float64(size)
	}
	for _, q := range []*rate{r, &f.queued} {
		q.waiting++
		q.waitingBytes += p.size
	}
	return nil
}

// leave is the opposite of enter, once the writer has taken the requests.
func (f *fences) leave(taken ...*Pending) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range taken {
		for _, q := range []*rate{f.rates[p.req.Tenant], &f.queued} {
			q.waiting--
			q.waitingBytes -= p.size
		}
	}
}

// tidy forgets what is as good as none, now and then. It needs mu.
func (f *fences) tidy(now time.Time) {
	if len(f.rates) < f.sweep {
		return
	}
	for name, r := range f.rates {
		if r.waiting == 0 && r.fill(f.of(name), now) {
			delete(f.rates, name)
		}
	}
	f.sweep = max(1024, 2*len(f.rates))
}

// tooMuch refuses what comes too fast; what was refused together does not come back together.
func tooMuch(tenant string, l Limit, seconds float64, limit string, args ...any) error {
	wait := max(time.Second, time.Duration(seconds*float64(time.Second)))
	return &Refusal{Code: TooMany, Limit: l, Retry: wait + rand.N(wait),
		Detail: fmt.Sprintf("tenant %s writes more than "+limit+", which is its limit: write slower, or ask for more", append([]any{tenant}, args...)...)}
}

// tooManyOf refuses what a tenant has too many of at one time.
func tooManyOf(tenant string, l Limit, most int, what, help string) error {
	return &Refusal{Code: TooMany, Limit: l, Retry: 5*time.Second + rand.N(10*time.Second),
		Detail: fmt.Sprintf("tenant %s has %d %s, which is its limit: %s, or ask for more", tenant, most, what, help)}
}

// TenantStats are figures about a tenant at one moment, and its limits.
type TenantStats struct {
	Sessions      int    `json:"sessions"`
	Subscriptions int    `json:"subscriptions"`
	Rows          int64  `json:"rows"`  // revocations among them
	Size          int64  `json:"bytes"` // of memory, about
	Limits        Limits `json:"limits"`
	// Refused is how much was, by limit, since the tenant was there; of one that has neither
	// rows nor feeds nothing is remembered.
	Refused map[Limit]int64 `json:"refused"`
}

// TenantStats returns figures about a tenant, all 0 where there is none.
func (h *Hub) TenantStats(tenant string) TenantStats {
	stats := TenantStats{Limits: *h.fences.of(tenant)}
	if t := h.state.lookup(tenant); t != nil {
		stats.Rows, stats.Size, stats.Refused = t.count.Load(), t.bytes.Load(), t.refused.counts()
		h.mu.Lock()
		stats.Sessions, stats.Subscriptions = t.sessions, t.followed
		h.mu.Unlock()
	}
	return stats
}
