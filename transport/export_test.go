package transport

import (
	"net"
	"time"
)

// Stalled is how long a connection may take no byte.
const Stalled = stalled

// ListenFor is Listen with another patience than Stalled.
func ListenFor(l net.Listener, d time.Duration) net.Listener { return listener{l, d} }
