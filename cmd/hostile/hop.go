package main

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// connectionsMost is how many connections a hop has at once; more are closed at once.
const connectionsMost = 1000

// hop is a reverse proxy of one personality before one server. Its methods may be
// called concurrently; serve once.
type hop struct {
	// Static after construction.
	p      personality
	target *url.URL
	up     *http.Transport
	server *http.Server
	record *record
	cache  *cache
	line   *line
	end    context.CancelFunc // ends everything that is under way

	accepted atomic.Int64 // connections that are open
	served   chan struct{}

	mu      sync.Mutex
	closed  bool           // guarded by mu
	running sync.WaitGroup // is added to under mu, and never once closed is set
}

// dialer makes a connection to the server.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// newHop makes a hop before the server at target, which has a scheme and a host, and
// nothing else. A nil dial is the system's. It starts nothing.
func newHop(p personality, target *url.URL, dial dialer) *hop {
	ctx, end := context.WithCancel(context.Background())
	h := &hop{
		p:      p,
		target: target,
		// Every request has a connection of its own to the server, so that what becomes
		// of one exchange is never the fault of another. Compression is the client's affair.
		up:     &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true},
		record: newRecord(p),
		cache:  newCache(p.cache),
		line:   newLine(),
		end:    end,
		served: make(chan struct{}),
	}
	h.server = &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // clients that go away are what this is for
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	return h
}

// serve accepts connections from l until close; it returns at once.
func (h *hop) serve(l net.Listener) {
	go func() {
		defer close(h.served)
		_ = h.server.Serve(&listener{Listener: l, hop: h}) // it ends with close
	}()
}

// close ends all connections, and returns when nothing runs any more.
func (h *hop) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.end()
	_ = h.server.Close() // the listener's error is of no use to anybody
	<-h.served
	h.running.Wait()
	h.up.CloseIdleConnections()
}

// start runs f in a goroutine that close waits for. It tells whether it does: not once
// the hop is closed.
func (h *hop) start(f func()) bool {
	if !h.begin() {
		return false
	}
	go func() {
		defer h.running.Done()
		f()
	}()
	return true
}

// begin announces what close must wait for, and what ends with running.Done.
func (h *hop) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.running.Add(1)
	return true
}

// listener hands connections to the hop's server.
type listener struct {
	net.Listener
	hop *hop
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.hop.accepted.Add(1) > connectionsMost {
			l.hop.accepted.Add(-1)
			c.Close()
			continue
		}
		if l.hop.p.delay > 0 {
			c = l.hop.delayed(c)
		}
		return newConn(c, l.hop), nil
	}
}

// conn is a client's connection.
type conn struct {
	net.Conn
	hop *hop

	mu      sync.Mutex
	timer   *time.Timer // guarded by mu; closes it when it is idle; nil: never
	counted bool        // guarded by mu; it has carried a request of a client
	closed  bool        // guarded by mu
}

type connKey struct{}

// connOf is the connection that a request came over.
func connOf(r *http.Request) *conn { return r.Context().Value(connKey{}).(*conn) }

func newConn(c net.Conn, h *hop) *conn {
	own := &conn{Conn: c, hop: h}
	if h.p.idle > 0 {
		own.mu.Lock()
		own.timer = time.AfterFunc(h.p.idle, func() { own.Close() })
		own.mu.Unlock()
	}
	return own
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.moved(n)
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.moved(n)
	return n, err
}

// moved says that bytes went over the connection.
func (c *conn) moved(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 && c.timer != nil && !c.closed {
		c.timer.Reset(c.hop.p.idle)
	}
}

// count counts the connection among those of clients, from its first request on: one
// that only asked what came through is not one of theirs.
func (c *conn) count() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.counted && !c.closed {
		c.counted = true
		c.hop.record.opened()
	}
}

// reset closes the connection so that its client sees a reset, if it is one of TCP.
func (c *conn) reset() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // closed already, then
	}
	c.Close()
}

func (c *conn) Close() error {
	if !c.leave() {
		return net.ErrClosed
	}
	return c.Conn.Close()
}

// leave takes the connection out of all counts. It tells whether it was the first to.
func (c *conn) leave() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.hop.accepted.Add(-1)
	if c.counted {
		c.hop.record.closed()
	}
	return true
}
