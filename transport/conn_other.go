//go:build !linux

package transport

import (
	"net"
	"syscall"
	"time"
)

// tune does nothing here: the keep-alive probes that Go switches on find out about a
// peer that is gone, a little later, and a peer that reads slowly but steadily may look
// stalled where the kernel's buffers are large.
func tune(*net.TCPConn, time.Duration) {}

// sendNow writes what a socket takes without waiting.
func sendNow(fd uintptr, b []byte) (int, error) { return syscall.Write(int(fd), b) }
