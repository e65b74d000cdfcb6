package transport

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// stalled is how long a connection may take no byte of what waits for it before it
// is closed; its client resumes by cursor.
const stalled = 30 * time.Second

// Listen wraps a listener so that a connection whose peer takes no byte for 30 s is
// closed: one whose peer's buffers are full, and one whose peer is silently gone. A
// slow peer that takes something now and then is not.
func Listen(l net.Listener) net.Listener { return listener{l, stalled} }

type listener struct {
	net.Listener
	patience time.Duration
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := socketOf(c).(*net.TCPConn); ok {
		tune(tcp, l.patience)
	}
	return &conn{c, l.patience}, nil
}

// socketOf is the connection within, if somebody has wrapped it.
func socketOf(c net.Conn) net.Conn {
	for {
		within, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = within.NetConn()
	}
}

// rawSocket is the socket of a connection, nil where what is written on it is not what was
// written on the connection: TLS.
func rawSocket(c net.Conn) syscall.RawConn {
	for {
		if _, ok := c.(*tls.Conn); ok {
			return nil
		}
		if s, ok := c.(syscall.Conn); ok {
			raw, err := s.SyscallConn()
			if err != nil {
				return nil
			}
			return raw
		}
		within, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = within.NetConn()
	}
}

// conn gives each write time for as long as it gets on.
type conn struct {
	net.Conn
	patience time.Duration
}

func (c *conn) NetConn() net.Conn { return c.Conn }

func (c *conn) Write(b []byte) (n int, err error) {
	for {
		if err := c.SetWriteDeadline(time.Now().Add(c.patience)); err != nil {
			return n, err
		}
		m, err := c.Conn.Write(b[n:])
		n += m
		if m == 0 || n == len(b) || !errors.Is(err, os.ErrDeadlineExceeded) {
			_ = c.SetWriteDeadline(time.Time{}) // it would fail what is written past us: see attempt
			return n, err
		}
	}
}

// CloseWrite lets net/http end an answer to somebody who is still sending without a
// reset, which would take the answer away from them.
func (c *conn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}
