package transport

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Door is Listen for the listener of an http.Server whose handler the Server is:
//
//	server.Serve(front.Door(l, server))
//
// Until something has come on a connection it costs no goroutine and no buffers; what comes must do so within
// http.Server.ReadHeaderTimeout, or 30 s where that is 0. A feed that is asked for then, as most ask for it, is
// answered past net/http. All else is net/http's, to the byte. What is spoken on l must be plain HTTP: for TLS there is Listen.
//
// Its connections are read by the Server, so Shutdown of the http.Server closes those on which nothing has come yet.
// Where sockets can't be watched (they can on Linux) it is Listen.
func (s *Server) Door(l net.Listener, server *http.Server) net.Listener {
	if !watches {
		return Listen(l)
	}
	patience := server.ReadHeaderTimeout
	if patience <= 0 {
		patience = stalled
	}
	idle := server.IdleTimeout
	if idle <= 0 {
		idle = idleUsual
	}
	return &door{
		Listener: Listen(l), server: s, http: server, patience: patience, idle: idle,
		ctx: context.WithValue(context.Background(), http.ServerContextKey, server), arrivals: make(map[*arrival]struct{}),
	}
}

// door lets connections in. 2,000 followers that come back at once have what they missed after 237 ms over SSE, 243 over
// WebSocket and 269 over long poll, and after 293, 300 and 399 where net/http reads them first (medians of 12 runs in turn):
// its goroutines, buffers and contexts were nearly half of the server's CPU.
type door struct {
	net.Listener
	server   *Server
	http     *http.Server
	patience time.Duration   // with who has not asked yet
	idle     time.Duration   // and with who has
	ctx      context.Context // requests' are made of it

	mu       sync.Mutex
	shut     bool                  // guarded by mu
	arrivals map[*arrival]struct{} // guarded by mu: those on which nothing has come
}

// Accept waits for a connection that net/http has to read.
func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if !d.seat(c, d.patience, 0) {
			return c, nil
		}
	}
}

// Close closes the listener within, and the connections on which nothing has come.
func (d *door) Close() error {
	err := d.Listener.Close()
	d.mu.Lock()
	d.shut = true
	all := make([]*arrival, 0, len(d.arrivals))
	for a := range d.arrivals {
		all = append(all, a)
	}
	d.mu.Unlock()
	for _, a := range all {
		a.tired()
	}
	return err
}

// arrival is a connection on which nothing has come yet.
type arrival struct {
	// Static after construction.
	door *door
	conn net.Conn
	raw  syscall.RawConn

	mu      sync.Mutex
	watched uint64      // guarded by mu
	timer   *time.Timer // guarded by mu
	over    bool        // guarded by mu: something has come, or nobody waits for it any more
}

// seat waits for what comes on a connection, for at most so long; watched is what readable calls it, 0 if it is new. false:
// that can't be.
func (d *door) seat(c net.Conn, most time.Duration, watched uint64) bool {
	a := &arrival{door: d, conn: c, raw: rawSocket(c)}
	if a.raw == nil {
		return false
	}
	d.mu.Lock()
	if d.shut {
		d.mu.Unlock()
		return false
	}
	d.arrivals[a] = struct{}{}
	d.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over { // the door was closed meanwhile
		return true
	}
	var ok bool
	if a.watched, ok = d.server.idle.watch(a.raw, watched, a.readable); !ok {
		a.over = true
		d.leave(a)
		return false
	}
	a.timer = time.AfterFunc(most, a.tired)
	return true
}

func (d *door) leave(a *arrival) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.arrivals, a)
}

// end tells whether nobody has before.
func (a *arrival) end() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return false
	}
	a.over = true
	if a.timer != nil {
		a.timer.Stop()
	}
	a.door.leave(a)
	return true
}

// tired closes the connection if nothing has come.
func (a *arrival) tired() {
	if a.end() {
		a.close()
	}
}

func (a *arrival) close() {
	a.door.server.idle.forget(a.watched)
	_ = a.conn.Close()
}

// readable is called when there is something to read.
func (a *arrival) readable(uint64) {
	if a.end() {
		a.door.server.streams.add()
		go a.enter()
	}
}

// enter reads what has come, and has it answered.
func (a *arrival) enter() {
	defer a.door.server.streams.done()
	defer func() { // a panic costs the connection, not the process
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler {
				a.door.server.opts.Logger.Error("panic at the door", "panic", v)
			}
			a.close()
		}
	}()
	deepen()
	asked, over := a.read()
	if over {
		a.close()
		return
	}
	if r := a.request(asked); r != nil {
		a.serve(r, asked)
	} else {
		a.giveBack(asked)
	}
}

// leastRead is room for a request of a feed, unless it is unusual: as much as net/http has.
const leastRead = 4 << 10

// read returns what has come, in memory of its own: where 10,000 came back at once, thousands waited for each other with a
// buffer each.
func (a *arrival) read() (asked []byte, over bool) {
	_ = withBuffer(func(b []byte) ([]byte, error) {
		n := 0
		for _, size := range []int{leastRead, mostRead} {
			b = slices.Grow(b[:n], size-n)[:size]
			var more int
			more, over = arrived(a.raw, b[n:], false)
			if n += more; over || n < size {
				break
			}
		}
		if over = over && n == 0; !over { // what came before the end is asked for all the same
			asked = slices.Clone(b[:n])
		}
		return b, nil
	})
	return asked, over
}

// giveBack gives the connection to net/http, with what was read.
func (a *arrival) giveBack(early []byte) {
	a.door.server.idle.drop(a.raw, a.watched)
	a.door.server.returnsTo(a.door.http).put(&returned{Conn: a.conn, early: early, asked: early})
}

// readers read what is in memory.
var readers = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// request reads a request for a feed, nil where net/http has to.
func (a *arrival) request(asked []byte) *http.Request {
	s := a.door.server
	// While a server starts, or asks elsewhere who somebody is, net/http notices that they leave.
	if who, ok := s.opts.Authorizer.(Steady); !ok || !who.Steady() || s.serving() != nil || !plainFeed(asked) {
		return nil
	}
	in := readers.Get().(*bufio.Reader)
	defer readers.Put(in)
	in.Reset(bytes.NewReader(asked))
	r, err := http.ReadRequest(in)
	if err != nil {
		return nil
	}
	if _, tcp := a.conn.LocalAddr().(*net.TCPAddr); !tcp {
		return nil // it could not be taken over: see mayTakeOver
	}
	if r.Header["Upgrade"] != nil { // which a feed over something else does not take over
		var q url.Values
		if raw := r.URL.RawQuery; strings.Contains(raw, "transport") || strings.Contains(raw, "%") { // else it names none
			if q, err = query(r); err != nil {
				return nil
			}
		}
		if transport, err := choose(r, q); err != nil || transport != websocketName {
			return nil
		}
	}
	r.RemoteAddr = a.conn.RemoteAddr().String()
	return r.WithContext(context.WithValue(a.door.ctx, http.LocalAddrContextKey, a.conn.LocalAddr()))
}

// plainFeed tells whether a text is one whole request for a feed, in HTTP/1.1, in which there is nothing that readers
// of HTTP differ about.
func plainFeed(asked []byte) bool {
	line, head, _ := bytes.Cut(asked, []byte("\r\n"))
	target, get := bytes.CutPrefix(line, []byte("GET /v1/"))
	target, version := bytes.CutSuffix(target, []byte(" HTTP/1.1"))
	tenant, rest, _ := bytes.Cut(target, []byte("/"))
	rest, feed := bytes.CutPrefix(rest, []byte("feed"))
	if !get || !version || !feed || len(rest) > 0 && rest[0] != '?' && rest[0] != '/' || bytes.ContainsAny(tenant, "?#") || !printable(target, '!') {
		return false
	}
	hosts := 0
	for {
		line, after, whole := bytes.Cut(head, []byte("\r\n"))
		if head = after; !whole {
			return false
		}
		if len(line) == 0 {
			return len(head) == 0 && hosts == 1
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.Trim(value, " ")
		if len(name) == len(line) || !bare(name) || !printable(value, ' ') {
			return false
		}
		switch at := string(name); {
		case strings.EqualFold(at, "Host"):
			if hosts++; len(bytes.Trim(value, hostText)) > 0 || len(value) == 0 {
				return false
			}
		case strings.EqualFold(at, "Upgrade"):
		case strings.EqualFold(at, "Content-Length"), slices.ContainsFunc(speaksOfBody, func(s string) bool { return strings.EqualFold(at, s) }):
			return false
		}
	}
}

// hostText is what names and addresses of hosts are written with, and their ports.
const hostText = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:[]"

// printable tells whether a text is ASCII from a character on.
func printable(text []byte, from byte) bool {
	return !slices.ContainsFunc(text, func(c byte) bool { return c < from || c >= 0x7f })
}

// serve answers a request, of which asked is the text.
func (a *arrival) serve(r *http.Request, asked []byte) {
	w := &greeting{recorder: recorder{header: make(http.Header)}, conn: &returned{Conn: a.conn, asked: asked, watched: a.watched}}
	a.door.server.ServeHTTP(w, r)
	if w.conn == nil {
		return
	}
	answer := appendDate(w.appendHead(nil))
	if r.Close {
		answer = append(answer, "Connection: close\r\n"...)
	}
	answer = append(strconv.AppendInt(append(answer, "Content-Length: "...), int64(len(w.body)), 10), "\r\n\r\n"...)
	if _, err := a.conn.Write(append(answer, w.body...)); err != nil || r.Close {
		a.close()
		return
	}
	// To net/http it would be a new one: with less time to ask again, and in the way of Shutdown for 5 s.
	if d := a.door; !d.seat(a.conn, d.idle, a.watched) {
		a.giveBack(nil)
	}
}

// greeting is the answer to a first request. What does not take the connection over is said when all of it is known.
type greeting struct {
	recorder
	conn *returned // nil: it was taken over
}

// Hijack is http.Hijacker's. Nothing was read beyond the request, so there is no reader.
func (g *greeting) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn := g.conn
	if g.conn = nil; conn == nil {
		return nil, nil, http.ErrHijacked
	}
	return conn, nil, nil
}
