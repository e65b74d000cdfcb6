package gate

import (
	"fmt"
	"math"
	"net/http"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is what somebody wants.
type Kind int

// What can be wanted.
const (
	Connection Kind = iota // it was accepted already, and has its descriptor
	Feed                   // on a connection that is there
)

// How much of the memory may be needed before something new is refused. Feeds stop
// first, so that who is in can still make requests.
const (
	feedShare       = 0.80
	connectionShare = 0.90
	heldShare       = 0.95
)

// A reading is this old at least before there is another; and where reading is slow it
// takes at most a hundredth of the time. But one that was slow because the process was
// stopped meanwhile must not hold for long.
const (
	readingLasts     = 100 * time.Millisecond
	readingLastsMost = time.Second
)

// WatchOptions of a Watch. 0 is the default.
type WatchOptions struct {
	// Memory is how many bytes the process may use: of the control group or the machine.
	// Where the Go runtime was told less (GOMEMLIMIT), that holds. Default: what the
	// runtime was told, else 2 GiB.
	Memory int64
	// Descriptors is how many file descriptors are kept from connections, for the log.
	// Default: a tenth of what the process may have, and at least 64, or half if that is
	// less.
	Descriptors int
}

// Watch knows whether the process has enough descriptors and memory for somebody new.
//
// Descriptors are counted against the soft RLIMIT_NOFILE, which Go raises to the hard
// one when a program starts; those of connections that came since the last count are
// added. Only Linux is watched: elsewhere there are always enough.
//
// Memory is what the Go runtime says of itself (runtime/metrics). Needed is what can't
// be given back: the heap that the last collection found alive, stacks, and the
// runtime's own. From 80 % of the limit on there are no new feeds, from 90 % on no new
// connections. Held is what it has from the system, with garbage: nothing new comes
// from 95 % on, unless the runtime was told a limit, since it then lets garbage grow
// up to that and keeps it there. Mapped files and C memory are not seen.
//
// There is no goroutine: who asks reads anew, if the last reading is 100 ms old.
type Watch struct {
	// Static after construction.
	memory   int64
	governed bool // the runtime keeps what it holds below memory
	reserve  int  // as it was asked for; 0: by the limit
	sources  sources

	came atomic.Int64 // connections since the last reading
	last atomic.Pointer[dated]
	mu   sync.Mutex // held by who reads anew
}

// sources are where readings come from.
type sources struct {
	files  func() (used, limit int) // a limit of 0: not known
	memory func() (needed, held int64)
}

type dated struct {
	Reading
	at    time.Time
	lasts time.Duration
}

// Reading is what a Watch saw. Bytes, and numbers of descriptors.
type Reading struct {
	Descriptors, DescriptorReserve, DescriptorLimit int // all 0 where they are not watched
	Needed, Held, MemoryLimit                       int64
}

// NewWatch makes a Watch, and reads once. What the runtime is told later
// (debug.SetMemoryLimit) it does not learn.
func NewWatch(o WatchOptions) (*Watch, error) {
	return newWatch(o, debug.SetMemoryLimit(-1), sources{files, memory})
}

func newWatch(o WatchOptions, told int64, s sources) (*Watch, error) {
	if o.Memory < 0 || o.Descriptors < 0 {
		return nil, fmt.Errorf("a memory limit of %d bytes with a reserve of %d descriptors: neither may be negative", o.Memory, o.Descriptors)
	}
	w := &Watch{memory: o.Memory, reserve: o.Descriptors, sources: s}
	if told > 0 && told != math.MaxInt64 && (w.memory == 0 || told <= w.memory) {
		w.memory, w.governed = told, true
	}
	if w.memory == 0 {
		w.memory = 2 << 30
	}
	r := w.read()
	if r.DescriptorLimit > 0 && r.DescriptorReserve >= r.DescriptorLimit {
		return nil, fmt.Errorf("a reserve of %d descriptors leaves none: the process may have %d (ulimit -n)", r.DescriptorReserve, r.DescriptorLimit)
	}
	return w, nil
}

// Admit tells whether one more may come now. A Connection that is let in counts as a
// descriptor until the next reading. The error is a [*Refusal]: 503. A nil Watch lets
// everybody in.
func (w *Watch) Admit(k Kind) error {
	if w == nil {
		return nil
	}
	r := w.look()
	share := feedShare
	if k == Connection {
		share = connectionShare
	}
	if float64(r.Needed) >= share*float64(w.memory) || !w.governed && float64(r.Held) >= heldShare*float64(w.memory) {
		return short(Memory, "the server is short of memory: come back later")
	}
	if k == Connection && r.DescriptorLimit > 0 && !w.take(int64(r.DescriptorLimit-r.DescriptorReserve-r.Descriptors)) {
		return short(Descriptors, "the server has no room for more connections: come back later")
	}
	return nil
}

// take counts one more, if those that came since the last reading are not over room.
// It may be one over: that one has its descriptor already, and the reading may have
// seen it.
func (w *Watch) take(room int64) bool {
	for {
		came := w.came.Load()
		if came > room {
			return false
		}
		if w.came.CompareAndSwap(came, came+1) {
			return true
		}
	}
}

func short(what Short, detail string) error {
	return &Refusal{
		Status: http.StatusServiceUnavailable, Code: codeUnavailable, Short: what, Retry: between(5*time.Second, 15*time.Second),
		Detail: detail,
	}
}

// Reading is the last reading: at most 100 ms old where reading is fast, and 1 s where it
// is slow, not counting the time that it takes.
func (w *Watch) Reading() Reading { return w.look().Reading }

func (w *Watch) look() *dated {
	last := w.last.Load()
	if last.holds() || !w.mu.TryLock() {
		return last
	}
	defer w.mu.Unlock()
	if last = w.last.Load(); last.holds() { // another has read meanwhile
		return last
	}
	return w.read()
}

func (d *dated) holds() bool { return time.Since(d.at) < d.lasts }

// read reads anew. Its caller holds w.mu, or is the only one.
func (w *Watch) read() *dated {
	start := time.Now()
	w.came.Store(0) // before counting: twice does less harm than not at all
	d := &dated{at: start, Reading: Reading{MemoryLimit: w.memory}}
	d.Descriptors, d.DescriptorLimit = w.sources.files()
	if d.DescriptorLimit > 0 {
		d.DescriptorReserve = w.reserve
		if w.reserve == 0 {
			d.DescriptorReserve = min(max(64, d.DescriptorLimit/10), d.DescriptorLimit/2)
		}
	}
	d.Needed, d.Held = w.sources.memory()
	took := time.Since(start)
	d.lasts = max(readingLasts, took+min(99*took, readingLastsMost))
	w.last.Store(d)
	return d
}

// memory reads what the Go runtime says of itself. It does not stop the world.
func memory() (needed, held int64) {
	s := []metrics.Sample{
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"},
	}
	metrics.Read(s)
	value := func(i int) int64 {
		if s[i].Value.Kind() != metrics.KindUint64 {
			return 0 // a runtime that does not know it
		}
		return int64(s[i].Value.Uint64())
	}
	held = value(0) - value(1)
	return held - value(2) - value(3) - value(4) + value(5), held
}
