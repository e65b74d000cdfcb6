package transport

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// closeUnacknowledged has the kernel close a connection when what was sent is not
// acknowledged for d (TCP_USER_TIMEOUT, tcp(7)): without it a peer that lost its
// power is noticed after 15 minutes of retransmissions.
func closeUnacknowledged(c *net.TCPConn, d time.Duration) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // the connection is closed already
	}
	_ = raw.Control(func(fd uintptr) {
		// A kernel that lacks it falls back to its own, longer, patience.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}
