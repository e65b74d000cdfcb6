//go:build linux

package main

import (
	"math"
	"syscall"

	"github.com/tidemark-sync/tidemark/transport/uring"
)

// reads are what many sockets are read into, in one system call where the kernel lets us. One by one the reader was still
// busy 6 to 8 ms after a fast server had written to the last of 1,000 followers: what was measured was the reader.
type reads struct {
	ring  *uring.Ring // nil: they are read one by one
	slots [mostReads][]byte
	of    [mostReads]*follower
	n     [mostReads]int // bytes that were read, or the negative errno
}

const (
	mostReads = 64
	fewReads  = 3        // cost less one by one
	readSize  = 32 << 10 // what 100 messages need
	unread    = math.MinInt
)

func newReads() *reads {
	r := new(reads)
	r.ring, _ = uring.New(mostReads)
	for i := range r.slots {
		r.slots[i] = make([]byte, readSize)
	}
	return r
}

func (r *reads) close() {
	if r.ring != nil {
		r.ring.Close()
		r.ring = nil
	}
}

// fill reads the sockets that the first events are of, and tells how many those are.
func (r *reads) fill(c *crowd, events []syscall.EpollEvent) (n int) {
	n = min(len(events), mostReads)
	c.mu.Lock()
	for i := range n {
		r.of[i] = c.followers[events[i].Fd]
	}
	c.mu.Unlock()
	for i := range n {
		r.n[i] = unread
	}
	if r.ring != nil && n >= fewReads && !r.ring.Do(r, n) {
		r.close()
	}
	for i := range n {
		if r.n[i] != unread {
			continue
		}
		got, err := syscall.Read(r.of[i].fd, r.slots[i])
		if errno, ok := err.(syscall.Errno); ok {
			got = -int(errno)
		}
		r.n[i] = got
	}
	return n
}

// Entry is uring.Work's.
func (r *reads) Entry(i int) uring.Entry { return uring.Receive(r.of[i].fd, r.slots[i]) }

// Done is uring.Work's.
func (r *reads) Done(i, result int) { r.n[i] = result }

// got is what was read of the i-th.
func (r *reads) got(i int) (f *follower, b []byte, err error) {
	if n := r.n[i]; n < 0 {
		err = syscall.Errno(-n)
	} else {
		b = r.slots[i][:n]
	}
	return r.of[i], b, err
}
