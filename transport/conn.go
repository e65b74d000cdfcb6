package transport

import (
	"errors"
	"net"
	"net/http"
	"os"
	"time"
)

// stalled is how long a connection may take no byte of what waits for it before it
// is closed; its client resumes by cursor.
const stalled = 30 * time.Second

// Listen wraps a listener so that a connection whose peer takes no byte for 30 s is
// closed: one whose peer's buffers are full, and one whose peer is silently gone. A
// slow peer that takes something now and then is not.
func Listen(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		closeUnacknowledged(tcp, stalled)
	}
	return &conn{c}, nil
}

// conn gives each write time for as long as it gets on.
type conn struct{ net.Conn }

func (c *conn) Write(b []byte) (n int, err error) {
	for {
		if err := c.SetWriteDeadline(time.Now().Add(stalled)); err != nil {
			return n, err
		}
		m, err := c.Conn.Write(b[n:])
		n += m
		if m == 0 || n == len(b) || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
	}
}

// writer writes answers that stream.
type writer struct {
	w       http.ResponseWriter
	control *http.ResponseController
	shared  bool // the connection is other streams' too: HTTP/2
}

func newWriter(w http.ResponseWriter, r *http.Request) *writer {
	return &writer{w, http.NewResponseController(w), r.ProtoMajor >= 2}
}

// send writes and flushes. On HTTP/2 a stream stalls by itself, not with its
// connection, so it is given its time here, a piece at a time.
func (w *writer) send(b []byte) error {
	if !w.shared {
		if _, err := w.w.Write(b); err != nil {
			return err
		}
		return w.control.Flush()
	}
	const piece = 8 << 10
	for len(b) > 0 {
		if err := w.control.SetWriteDeadline(time.Now().Add(stalled)); err != nil {
			return err
		}
		n := min(piece, len(b))
		if _, err := w.w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
		if err := w.control.Flush(); err != nil {
			return err
		}
	}
	return nil
}
