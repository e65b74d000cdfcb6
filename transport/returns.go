package transport

import (
	"net"
	"net/http"
	"slices"
	"sync"
)

// returns is a listener whose connections are those that go back to an http.Server.
type returns struct {
	conns chan net.Conn
	done  chan struct{} // closed by Close
	once  sync.Once
}

// returnsTo is where connections of an http.Server go back to.
func (s *Server) returnsTo(server *http.Server) *returns {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.returns[server]
	if l == nil {
		l = &returns{conns: make(chan net.Conn), done: make(chan struct{})}
		s.returns[server] = l
		go func() {
			_ = server.Serve(l) // until that server is closed
			_ = l.Close()
			s.mu.Lock()
			delete(s.returns, server)
			s.mu.Unlock()
		}()
	}
	return l
}

func (l *returns) put(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.done:
		_ = c.Close()
	}
}

func (l *returns) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *returns) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *returns) Addr() net.Addr { return &net.TCPAddr{} }

// returned is a connection that went back to net/http.
type returned struct {
	net.Conn
	asked   []byte // what was read before it went back
	early   []byte // owned by Read: what of it is to be read again
	more    bool   // owned by Read: something else was read
	strikes int
	watched uint64 // what readable calls it, where it never was with net/http
}

// taken is a connection that was taken over from who reads requests on it.
type taken struct {
	conn    net.Conn
	early   []byte // what was read after the request
	asked   []byte // the request as it came, where that is known; valid until its handler returns
	strikes int
	watched uint64
}

// take takes the connection of a request over.
func take(w http.ResponseWriter) (taken, error) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return taken{}, err
	}
	t := taken{conn: conn}
	if buffered != nil {
		early, _ := buffered.Reader.Peek(buffered.Reader.Buffered())
		t.early = slices.Clone(early)
	}
	if back, ok := conn.(*returned); ok {
		t.conn, t.strikes, t.watched = back.Conn, back.strikes, back.watched
		t.early = append(t.early, back.early...)
		if len(t.early) == 0 && !back.more {
			t.asked = back.asked
		}
	}
	return t, nil
}

func (c *returned) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		if c.early = c.early[n:]; len(c.early) == 0 {
			c.early = nil // it may have been a megabyte, and the connection may stay for long
		}
		return n, nil
	}
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.more, c.asked = true, nil
	}
	return n, err
}

// LocalAddr is no *net.TCPAddr where the connection is to stay with net/http: mayTakeOver sees that.
func (c *returned) LocalAddr() net.Addr {
	if c.strikes >= mostStrikes {
		return stays{c.Conn.LocalAddr()}
	}
	return c.Conn.LocalAddr()
}

type stays struct{ net.Addr }

// NetConn is the connection within.
func (c *returned) NetConn() net.Conn { return c.Conn }

// CloseWrite is as conn's.
func (c *returned) CloseWrite() error { return closeWrite(c.Conn) }
