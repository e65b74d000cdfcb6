package transport

import (
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring hands many sends to the kernel in one system call (io_uring(7), Linux 5.6). It is used by one goroutine at a
// time.
//
// A send by itself costs the way into the kernel and back, and often the processor: the kernel gives it to whoever
// was sent to, who reads one answer, and is woken anew for the next. On a machine with 2 cores, page-table isolation and
// no PCID, a thousand sends of 250 bytes took 7.6 to 9.2 µs of CPU each, 50 at a time 5.0 to 6.3, all at a time 4.4 to 4.8.
type ring struct {
	// Static after construction.
	fd           int
	memory, rows []byte // the kernel's: the two queues, and the entries of the first
	todo         []entry
	todoTail     *uint32
	todoMask     uint32
	done         []completion
	doneHead     *uint32
	doneTail     *uint32
	doneMask     uint32

	broken bool // it is not used again
}

// entry is struct io_uring_sqe, completion is struct io_uring_cqe and parameters struct io_uring_params
// of linux/io_uring.h.
type entry struct {
	op, flags uint8
	priority  uint16
	fd        int32
	offset    uint64
	address   uint64
	length    uint32
	how       uint32
	user      uint64
	_         [3]uint64
}

type completion struct {
	user   uint64
	result int32
	flags  uint32
}

type parameters struct {
	todoEntries, doneEntries, flags, cpu, idle, features, workers uint32
	_                                                             [3]uint32

	todo struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	done struct {
		head, tail, mask, entries, overflow, completions, flags, _ uint32
		_                                                          uint64
	}
}

const (
	opSend        = 26         // IORING_OP_SEND
	offsetTodo    = 0          // IORING_OFF_SQ_RING, which since Linux 5.4 has both queues
	offsetEntries = 0x10000000 // IORING_OFF_SQES
	singleMap     = 1 << 0     // IORING_FEAT_SINGLE_MMAP
	waitForDone   = 1 << 0     // IORING_ENTER_GETEVENTS
)

func newRing() (*ring, error) {
	var p parameters
	fd, _, errno := syscall.Syscall(unix.SYS_IO_URING_SETUP, mostSends, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, errno
	}
	r := &ring{fd: int(fd)}
	if p.features&singleMap == 0 || p.todoEntries < mostSends || p.doneEntries < mostSends {
		r.close()
		return nil, unix.ENOTSUP
	}
	const readWrite, shared = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	size := max(int(p.todo.array+p.todoEntries*4), int(p.done.completions+p.doneEntries*uint32(unsafe.Sizeof(completion{}))))
	var err error
	if r.memory, err = unix.Mmap(r.fd, offsetTodo, size, readWrite, shared); err == nil {
		r.rows, err = unix.Mmap(r.fd, offsetEntries, int(p.todoEntries)*int(unsafe.Sizeof(entry{})), readWrite, shared)
	}
	if err != nil {
		r.close()
		return nil, err
	}
	number := func(at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.memory[at])) }
	r.todo = unsafe.Slice((*entry)(unsafe.Pointer(&r.rows[0])), p.todoEntries)
	r.todoTail, r.todoMask = number(p.todo.tail), *number(p.todo.mask)
	r.done = unsafe.Slice((*completion)(unsafe.Pointer(&r.memory[p.done.completions])), p.doneEntries)
	r.doneHead, r.doneTail, r.doneMask = number(p.done.head), number(p.done.tail), *number(p.done.mask)
	for i := range p.todoEntries {
		*number(p.todo.array + 4*i) = i
	}
	return r, nil
}

func (r *ring) close() {
	for _, memory := range [][]byte{r.rows, r.memory} {
		if memory != nil {
			_ = unix.Munmap(memory)
		}
	}
	_ = unix.Close(r.fd)
}

// entry asks for a send, the i-th.
func (s *send) entry(i int) entry {
	return entry{
		op: opSend, fd: int32(s.fd), user: uint64(i),
		address: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(s.b)))), length: uint32(len(s.b)),
		// With MSG_DONTWAIT a socket that is full is an error, and nothing goes on behind our back.
		how: unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL,
	}
}

// send sends what sockets take at once, and tells with each how much that was. At most mostSends; their
// sockets must be kept open.
func (r *ring) send(all []send) {
	tail := *r.todoTail
	for i := range all {
		all[i].took = 0
		r.todo[(tail+uint32(i))&r.todoMask] = all[i].entry(i)
	}
	atomic.StoreUint32(r.todoTail, tail+uint32(len(all)))
	taken := 0
	for left := len(all); left > 0; {
		n, _, errno := syscall.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(len(all)-taken), uintptr(left), waitForDone, 0, 0)
		if errno == 0 {
			taken += int(n)
		}
		head := *r.doneHead
		for ; head != atomic.LoadUint32(r.doneTail); head++ {
			c := &r.done[head&r.doneMask]
			all[c.user].took = max(0, int(c.result))
			left--
		}
		atomic.StoreUint32(r.doneHead, head)
		switch {
		case errno == 0 || errno == unix.EINTR:
		case taken+left == len(all): // the kernel holds none of ours; what it did not take was not sent
			r.broken = true
			left = 0
		default:
			runtime.Gosched()
		}
	}
	runtime.KeepAlive(all)
}

// rings are those of the process. They are never closed.
var rings struct {
	try  sync.Once
	free chan *ring // nil: there is none
	made atomic.Int32
}

// takeRing takes a ring that nobody else uses, nil where there is none.
func takeRing() *ring {
	rings.try.Do(func() {
		if r, err := newRing(); err == nil {
			if !r.works() {
				r.close()
				return
			}
			rings.free = make(chan *ring, runtime.GOMAXPROCS(0))
			rings.made.Add(1)
			rings.free <- r
		}
	})
	select {
	case r := <-rings.free:
		return r
	default:
	}
	if rings.free == nil || int(rings.made.Add(1)) > cap(rings.free) {
		rings.made.Add(-1)
		return nil
	}
	r, err := newRing()
	if err != nil {
		rings.made.Add(-1)
		return nil
	}
	return r
}

// putRing gives one back.
func putRing(r *ring) {
	if r.broken {
		r.close()
		rings.made.Add(-1)
		return
	}
	rings.free <- r
}

// works tells whether the kernel does what send needs: a ring may be there, but what it does forbidden, and where
// the kernel waits for a socket that is full, others would wait with it.
func (r *ring) works() bool {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(pair[1])
	defer unix.Close(pair[0])
	probe := []send{{fd: pair[0], b: make([]byte, 1)}}
	if r.send(probe); probe[0].took != 1 {
		return false
	}
	for full := make([]byte, 64<<10); err == nil; {
		_, err = unix.Write(pair[0], full)
	}
	before := *r.doneHead
	tail := *r.todoTail
	r.todo[tail&r.todoMask] = probe[0].entry(0)
	atomic.StoreUint32(r.todoTail, tail+1)
	_, _, errno := syscall.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 1, 0, waitForDone, 0, 0)
	if errno != 0 || atomic.LoadUint32(r.doneTail) == before {
		return false
	}
	result := syscall.Errno(-r.done[before&r.doneMask].result)
	atomic.StoreUint32(r.doneHead, before+1)
	runtime.KeepAlive(probe)
	return result == unix.EAGAIN
}
