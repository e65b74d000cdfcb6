package transport

import (
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watches says that sockets can be watched here.
const watches = true

// readable tells when sockets can be read that nobody reads: a goroutine that waits in Read
// costs 2.8 KB for an event stream, and 6 for a WebSocket with what the library holds
// meanwhile. Its zero value is ready; one goroutine runs while any socket is watched.
type readable struct {
	mu   sync.Mutex
	file *os.File            // guarded by mu: of the epoll, nil while none is watched
	fd   int                 // guarded by mu
	last uint64              // guarded by mu
	fns  map[uint64]*watcher // guarded by mu
}

// watcher is who watches a socket.
type watcher struct {
	fn func(id uint64)
	on bool // see watchOn
}

// watch calls fn, which must return at once, when the socket can be read, its peer has closed,
// or it failed: once, and again each time after again. before is the watch whose place it takes, 0 if there is none.
// false: it can't be watched.
func (r *readable) watch(raw syscall.RawConn, before uint64, fn func(id uint64)) (id uint64, ok bool) {
	return r.add(raw, before, unix.EPOLLONESHOT, &watcher{fn: fn})
}

// watchOn is watch, where fn is called whenever more has come: again is not needed, nor its system call. It is called twice
// for what came together with the peer's end: who reads the first of it is not told of the other.
func (r *readable) watchOn(raw syscall.RawConn, before uint64, fn func(id uint64)) (id uint64, ok bool) {
	return r.add(raw, before, unix.EPOLLET, &watcher{fn, true})
}

func (r *readable) add(raw syscall.RawConn, before uint64, how uint32, w *watcher) (id uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fns[before] != nil {
		r.fns[before] = w
		return before, r.control(raw, unix.EPOLL_CTL_MOD, how, before)
	}
	if r.file == nil && !r.start() {
		return 0, false
	}
	r.last++
	r.fns[r.last] = w
	if !r.control(raw, unix.EPOLL_CTL_ADD, how, r.last) {
		r.remove(r.last)
		return 0, false
	}
	return r.last, true
}

// again watches a socket for which fn was called.
func (r *readable) again(raw syscall.RawConn, id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fns[id] != nil {
		r.control(raw, unix.EPOLL_CTL_MOD, unix.EPOLLONESHOT, id)
	}
}

// forget ends the watch; fn may be running, and is not called any more. The kernel's part ends when
// the socket is closed.
func (r *readable) forget(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(id)
}

// drop is forget for a socket that is not closed, and may be watched again.
func (r *readable) drop(raw syscall.RawConn, id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fns[id] != nil {
		r.control(raw, unix.EPOLL_CTL_DEL, 0, id)
		r.remove(id)
	}
}

// control needs mu. A socket that is closed is none of ours any more.
func (r *readable) control(raw syscall.RawConn, op int, how uint32, id uint64) (ok bool) {
	_ = raw.Control(func(fd uintptr) {
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | how, Fd: int32(id), Pad: int32(id >> 32)}
		ok = unix.EpollCtl(r.fd, op, int(fd), &event) == nil
	})
	return ok
}

// remove needs mu.
func (r *readable) remove(id uint64) {
	if r.fns[id] == nil {
		return
	}
	if delete(r.fns, id); len(r.fns) == 0 {
		_ = r.file.Close() // and run ends
		r.file, r.fns = nil, nil
	}
}

// start needs mu.
func (r *readable) start() bool {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	_ = unix.SetNonblock(fd, true) // so that os has the runtime's poller wait for it
	file := os.NewFile(uintptr(fd), "epoll")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return false
	}
	r.file, r.fd, r.fns = file, fd, make(map[uint64]*watcher)
	go r.run(raw)
	return true
}

func (r *readable) run(raw syscall.RawConn) {
	var events [128]unix.EpollEvent
	type call struct {
		id uint64
		fn func(id uint64)
	}
	var calls []call
	for {
		n := 0
		err := raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events[:], 0)
			return n > 0
		})
		if err != nil {
			return
		}
		r.mu.Lock()
		for _, e := range events[:n] {
			// Numbers are not used twice, so one that was watched by an epoll before is not here.
			id := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
			if w := r.fns[id]; w != nil {
				calls = append(calls, call{id, w.fn})
				if w.on && e.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
					calls = append(calls, call{id, w.fn})
				}
			}
		}
		r.mu.Unlock()
		for _, c := range calls {
			c.fn(c.id)
		}
		clear(calls)
		calls = calls[:0]
	}
}

// arrived reads what is there, without waiting; peek leaves it there. over: the peer has closed,
// or the socket has failed. n may be 0 also where there is nothing to read now.
func arrived(raw syscall.RawConn, b []byte, peek bool) (n int, over bool) {
	r := receipts.Get().(*receipt)
	if r.b, r.flags = b, unix.MSG_DONTWAIT; peek {
		r.flags |= unix.MSG_PEEK
	}
	err := raw.Control(r.fn)
	n, over = max(r.n, 0), r.over || err != nil
	r.b, r.n, r.over = nil, 0, false
	receipts.Put(r)
	return n, over
}

// receipt is a call of arrived. A closure for each was a tenth of what a write over HTTP allocates.
type receipt struct {
	fn    func(fd uintptr)
	b     []byte
	flags int
	n     int
	over  bool
}

var receipts = sync.Pool{New: func() any {
	r := new(receipt)
	r.fn = r.receive
	return r
}}

func (r *receipt) receive(fd uintptr) {
	for {
		// Raw, as it does not wait: see sendNow.
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(r.b))), uintptr(len(r.b)), uintptr(r.flags), 0, 0)
		if errno != syscall.EINTR {
			r.n, r.over = int(n), n == 0 && errno == 0 || errno != 0 && errno != syscall.EAGAIN
			return
		}
	}
}
