package gate

import (
	"net"
	"net/netip"
	"time"
)

// Readings makes a Watch that reads from functions. told is the runtime's limit.
func Readings(o WatchOptions, told int64, files func() (used, limit int), memory func() (needed, held int64)) (*Watch, error) {
	return newWatch(o, told, sources{files, memory})
}

// Measure reads the real memory.
func Measure() (needed, held int64) { return memory() }

// Files counts the real descriptors.
func Files() (used, limit int) { return files() }

// Passing tells whether Accept tries again after an error.
func Passing(err error) bool { return passing(err) }

// Filled is what is in an empty bucket after it was told these times.
func Filled(rate, burst float64, times ...time.Duration) float64 {
	var b bucket
	for _, now := range times {
		b.fill(now, rate, burst)
	}
	return b.tokens
}

// Sizes of what is remembered.
func (r *Rate) Sizes() (young, old int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.young), len(r.old)
}

// Bounded is what counts as one address.
var Bounded = bounded

// PeerOf is the address at the other end of a connection.
func PeerOf(c net.Conn) netip.Addr { return peerOf(c) }

// The most bytes that are read of a request that is refused before it is answered.
const AnswerHead = answerHead
