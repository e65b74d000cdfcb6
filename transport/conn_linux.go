package transport

import (
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// unsent is how much may wait in the kernel for a peer's window (TCP_NOTSENT_LOWAT).
// Without it a connection takes up to 4 MiB at once and then nothing until a third of
// them is gone: a peer that reads 100 kB/s would look stalled for 13 s, and what it
// gets would be as old.
const unsent = 64 << 10

// tune has the kernel close a connection when what was sent is not acknowledged for d,
// or its peer's window stays shut for so long (TCP_USER_TIMEOUT, tcp(7)): without it a
// peer that lost its power is noticed after 15 minutes of retransmissions.
func tune(c *net.TCPConn, d time.Duration) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // the connection is closed already
	}
	_ = raw.Control(func(fd uintptr) {
		// A kernel that lacks one of them falls back to its own, longer, patience.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	})
}

// sendNow writes what a socket takes without waiting. It is a raw system call: as it never waits, the
// runtime need not know of it. For calls that it knows of, it takes the processor's work elsewhere when
// one lasts 20 µs, and looks for such every 20 µs: with a thousand followers 9 % of the server's CPU.
func sendNow(fd uintptr, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
