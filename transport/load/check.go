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

	came  int              // sequences that came,
	sum   uint64           // and of what they were
	base  uint64           // the first sequence that counts
	last  uint64           // the last one that came
	pages map[uint64]*page // which came: a log that was made anew goes on 2^32 further on
	page  *page            // of the last one,
	at    uint64           // which is this
}

// page says of so many sequences in a row which came.
type page [32]uint64

const perPage = 64 * uint64(len(page{}))

// find finds where it stands whether a sequence came; nil: nowhere, as none near it did.
func (c *Check) find(seq uint64) (word *uint64, bit uint64) {
	if at := seq / perPage; c.page == nil || at != c.at {
		c.page, c.at = c.pages[at], at
	}
	if bit = 1 << (seq % 64); c.page == nil {
		return nil, bit
	}
	return &c.page[seq%perPage/64], bit
}

// Begin starts to check, from the sequence after last.
func (c *Check) Begin(last uint64) { *c = Check{base: last + 1} }

// Begun tells whether Begin was called.
func (c *Check) Begun() bool { return c.base > 0 }

// Saw takes in a sequence that came, with the key and the time of sending of its row; both are 0 of what can't be a
// write of ours.
func (c *Check) Saw(seq uint64, key int, sent int64) {
	if c.base == 0 || seq < c.base {
		return // before the beginning
	}
	word, bit := c.find(seq)
	if word == nil {
		if c.pages == nil {
			c.pages = make(map[uint64]*page)
		}
		c.page = new(page)
		c.pages[c.at] = c.page
		word, bit = c.find(seq)
	}
	switch {
	case *word&bit != 0:
		c.Doubles++
	case seq < c.last:
		c.Disorder++
		fallthrough
	default:
		*word |= bit
		c.came++
		c.sum += mark(seq, key, sent)
	}
	c.last = max(c.last, seq)
}

// Reset says that every row comes again: what came before counts no more.
func (c *Check) Reset() {
	c.Resets++
	c.last, c.page, c.came, c.sum = 0, nil, 0, 0
	clear(c.pages)
}

func (c *Check) has(seq uint64) bool {
	word, bit := c.find(seq)
	return seq >= c.base && word != nil && *word&bit != 0
}

// Written is a write that was acknowledged.
type Written struct {
	Seq  uint64
	Key  int
	Sent int64 // in its value
}

// mark stands for one change: the sum of many tells whether one of them is another.
func mark(seq uint64, key int, sent int64) uint64 {
	n := seq*0x9E3779B97F4A7C15 ^ uint64(key)*0xBF58476D1CE4E5B9 ^ uint64(sent)
	n = (n ^ n>>30) * 0x94D049BB133111EB
	return n ^ n>>31
}

// Strange is how many changes came that nobody wrote, and at least 1 if what came of the others is not what was written.
func (c *Check) Strange(writes []Written) int {
	came, sum := 0, uint64(0)
	for _, w := range writes {
		if w.Seq >= c.base && c.has(w.Seq) {
			came, sum = came+1, sum+mark(w.Seq, w.Key, w.Sent)
		}
	}
	if c.came == came && c.sum != sum {
		return 1
	}
	return c.came - came
}

// Gaps is how many of the writes did not come. One whose key was written again need not: that
// a newer row stands in its place is what the protocol promises.
func (c *Check) Gaps(writes []Written) (gaps int) {
	newest := make(map[int]uint64, len(writes))
	for _, w := range writes {
		newest[w.Key] = max(newest[w.Key], w.Seq)
	}
	for _, w := range writes {
		if w.Seq >= c.base && !c.has(w.Seq) && (newest[w.Key] == w.Seq || !c.has(newest[w.Key])) {
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
