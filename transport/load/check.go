package load

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Check holds what one follower is given against what was written. It is not for concurrent
// use.
type Check struct {
	Doubles, Disorder, Resets int

	base uint64   // the first sequence that counts
	last uint64   // the last one that came
	bits []uint64 // which came, from base on
}

// Begin starts to check, from the sequence after last.
func (c *Check) Begin(last uint64) { *c = Check{base: last + 1} }

// Begun tells whether Begin was called.
func (c *Check) Begun() bool { return c.base > 0 }

// Saw takes in a sequence that came.
func (c *Check) Saw(seq uint64) {
	if c.base == 0 || seq < c.base {
		return // before the beginning
	}
	at := seq - c.base
	for at/64 >= uint64(len(c.bits)) {
		c.bits = append(c.bits, 0)
	}
	switch bit := uint64(1) << (at % 64); {
	case c.bits[at/64]&bit != 0:
		c.Doubles++
	case seq < c.last:
		c.Disorder++
		fallthrough
	default:
		c.bits[at/64] |= bit
	}
	c.last = max(c.last, seq)
}

// Reset says that every row comes again: what came before counts no more.
func (c *Check) Reset() {
	c.Resets++
	c.last = 0
	clear(c.bits)
}

func (c *Check) came(seq uint64) bool {
	at := seq - c.base
	return seq >= c.base && at/64 < uint64(len(c.bits)) && c.bits[at/64]&(1<<(at%64)) != 0
}

// Written is a write that was acknowledged.
type Written struct {
	Seq uint64
	Key int
}

// Gaps is how many of the writes did not come. One whose key was written again need not: that
// a newer row stands in its place is what the protocol promises.
func (c *Check) Gaps(writes []Written) (gaps int) {
	newest := make(map[int]uint64, len(writes))
	for _, w := range writes {
		newest[w.Key] = max(newest[w.Key], w.Seq)
	}
	for _, w := range writes {
		if w.Seq >= c.base && !c.came(w.Seq) && (newest[w.Key] == w.Seq || !c.came(newest[w.Key])) {
			gaps++
		}
	}
	return gaps
}

// Histogram counts durations, to about 3 %. It may be used concurrently, and its zero value is
// ready.
type Histogram struct {
	counts [64 * 32]atomic.Int64
	max    atomic.Int64
}

// Add counts one.
func (h *Histogram) Add(d time.Duration) {
	n := uint64(max(d, 0))
	h.counts[slot(n)].Add(1)
	for was := h.max.Load(); int64(n) > was && !h.max.CompareAndSwap(was, int64(n)); was = h.max.Load() {
	}
}

// slot is 32 to each power of two.
func slot(n uint64) int {
	if n < 32 {
		return int(n)
	}
	shift := bits.Len64(n) - 6
	return shift*32 + int(n>>shift)
}

// N is how many were counted.
func (h *Histogram) N() (n int64) {
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

// Quantile is what q of them, 0 to 1, are not above.
func (h *Histogram) Quantile(q float64) time.Duration {
	left := int64(q * float64(h.N()))
	for i := range h.counts {
		if left -= h.counts[i].Load(); left < 0 {
			return min(h.Max(), top(i))
		}
	}
	return h.Max()
}

// top is the largest that falls into a slot.
func top(i int) time.Duration {
	if i < 64 {
		return time.Duration(i)
	}
	shift := i/32 - 1
	return time.Duration(uint64(i-shift*32+1)<<shift - 1)
}

// Max is the longest.
func (h *Histogram) Max() time.Duration { return time.Duration(h.max.Load()) }
