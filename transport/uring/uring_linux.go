package uring

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ring is two queues that are shared with the kernel. It is used by one goroutine at a time.
type Ring struct {
	// Static after construction.
	fd           int
	memory, rows []byte // the kernel's: the two queues, and the entries of the first
	todo         []Entry
	todoTail     *uint32
	todoMask     uint32
	done         []completion
	doneHead     *uint32
	doneTail     *uint32
	doneMask     uint32
}

// Entry is struct io_uring_sqe, completion is struct io_uring_cqe and parameters struct io_uring_params
// of linux/io_uring.h.
type Entry struct {
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
	opReceive     = 27         // IORING_OP_RECV
	offsetTodo    = 0          // IORING_OFF_SQ_RING, which since Linux 5.4 has both queues
	offsetEntries = 0x10000000 // IORING_OFF_SQES
	singleMap     = 1 << 0     // IORING_FEAT_SINGLE_MMAP
	waitForDone   = 1 << 0     // IORING_ENTER_GETEVENTS
)

// New makes a Ring for so many things at a time, a power of two.
func New(most uint32) (*Ring, error) {
	var p parameters
	fd, _, errno := syscall.Syscall(unix.SYS_IO_URING_SETUP, uintptr(most), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, ErrUnsupported
	}
	r := &Ring{fd: int(fd)}
	if p.features&singleMap == 0 || p.todoEntries < most || p.doneEntries < most {
		r.Close()
		return nil, ErrUnsupported
	}
	const readWrite, shared = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	size := max(int(p.todo.array+p.todoEntries*4), int(p.done.completions+p.doneEntries*uint32(unsafe.Sizeof(completion{}))))
	var err error
	if r.memory, err = unix.Mmap(r.fd, offsetTodo, size, readWrite, shared); err == nil {
		r.rows, err = unix.Mmap(r.fd, offsetEntries, int(p.todoEntries)*int(unsafe.Sizeof(Entry{})), readWrite, shared)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	number := func(at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.memory[at])) }
	r.todo = unsafe.Slice((*Entry)(unsafe.Pointer(&r.rows[0])), p.todoEntries)
	r.todoTail, r.todoMask = number(p.todo.tail), *number(p.todo.mask)
	r.done = unsafe.Slice((*completion)(unsafe.Pointer(&r.memory[p.done.completions])), p.doneEntries)
	r.doneHead, r.doneTail, r.doneMask = number(p.done.head), number(p.done.tail), *number(p.done.mask)
	for i := range p.todoEntries {
		*number(p.todo.array + 4*i) = i
	}
	if !r.works() {
		r.Close()
		return nil, ErrUnsupported
	}
	return r, nil
}

// Close gives the kernel's memory back.
func (r *Ring) Close() {
	for _, memory := range [][]byte{r.rows, r.memory} {
		if memory != nil {
			_ = unix.Munmap(memory)
		}
	}
	_ = unix.Close(r.fd)
}

// Send asks for what a socket takes at once of b. One that is full is an error, and nothing goes on behind our back.
func Send(fd int, b []byte) Entry { return entry(opSend, fd, b) }

// Receive asks for what a socket has, and waits for nothing.
func Receive(fd int, b []byte) Entry { return entry(opReceive, fd, b) }

func entry(op uint8, fd int, b []byte) Entry {
	return Entry{
		op: op, fd: int32(fd), address: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), length: uint32(len(b)),
		how: unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL,
	}
}

// Do does n things, at most as many as the Ring was made for. false: the kernel would not take those for which Done was
// not called; they were not begun, and the Ring must be closed.
func (r *Ring) Do(w Work, n int) (ok bool) {
	tail := *r.todoTail
	for i := range n {
		e := &r.todo[(tail+uint32(i))&r.todoMask]
		*e = w.Entry(i)
		e.user = uint64(i)
	}
	atomic.StoreUint32(r.todoTail, tail+uint32(n))
	taken := 0
	for left := n; left > 0; {
		took, _, errno := syscall.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n-taken), uintptr(left), waitForDone, 0, 0)
		if errno == 0 {
			taken += int(took)
		}
		head := *r.doneHead
		for ; head != atomic.LoadUint32(r.doneTail); head++ {
			c := &r.done[head&r.doneMask]
			w.Done(int(c.user), int(c.result))
			left--
		}
		atomic.StoreUint32(r.doneHead, head)
		switch {
		case errno == 0 || errno == unix.EINTR:
		case taken+left == n: // the kernel holds none of ours
			return false
		default:
			runtime.Gosched()
		}
	}
	runtime.KeepAlive(w)
	return true
}

// one is a send by itself.
type one struct {
	e      Entry
	result int
}

func (o *one) Entry(int) Entry    { return o.e }
func (o *one) Done(_, result int) { o.result = result }

// works tells whether the kernel does what is needed: a ring may be there, but what it does forbidden, and where
// the kernel waits for a socket that is full, others would wait with it.
func (r *Ring) works() bool {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(pair[1])
	defer unix.Close(pair[0])
	letter := make([]byte, 1)
	o := &one{e: Send(pair[0], letter)}
	if !r.Do(o, 1) || o.result != 1 {
		return false
	}
	for full := make([]byte, 64<<10); err == nil; {
		_, err = unix.Write(pair[0], full)
	}
	before := *r.doneHead
	tail := *r.todoTail
	r.todo[tail&r.todoMask] = o.e
	atomic.StoreUint32(r.todoTail, tail+1)
	_, _, errno := syscall.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 1, 0, waitForDone, 0, 0)
	if errno != 0 || atomic.LoadUint32(r.doneTail) == before {
		return false
	}
	result := syscall.Errno(-r.done[before&r.doneMask].result)
	atomic.StoreUint32(r.doneHead, before+1)
	runtime.KeepAlive(letter)
	return result == unix.EAGAIN
}
