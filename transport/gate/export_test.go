package gate

import "net"

// Readings makes a Watch that reads from functions. told is the runtime's limit.
func Readings(o WatchOptions, told int64, files func() (used, limit int), memory func() (needed, held int64)) (*Watch, error) {
	return newWatch(o, told, sources{files, memory})
}

// Measure reads the real memory.
func Measure() (needed, held int64) { return memory() }

// Passing tells whether Accept tries again after an error.
func Passing(err error) bool { return passing(err) }

// Sizes of what is remembered.
func (r *Rate) Sizes() (young, old int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.young), len(r.old)
}

// Bounded is what counts as one address.
var Bounded = bounded

// PeerOf is the address at the other end of a connection.
func PeerOf(c net.Conn) string { return peerOf(c).String() }
