package transport

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// guest is a client whose connection was taken over from net/http, where it goes back to with the first request
// that is not answered here. Between its requests it costs no goroutine, and no buffers.
type guest struct {
	// Static after construction.
	server   *Server
	host     host
	returns  *returns
	conn     net.Conn
	raw      syscall.RawConn
	common   string // header fields of all answers
	vary     string // of those that are not cached
	patience time.Duration
	watched  uint64

	mu        sync.Mutex
	state     visit         // guarded by mu
	more      int           // guarded by mu: so often there may be something to read, and nobody watches
	since     time.Time     // guarded by mu: when it was answered last, or has begun to ask
	most      time.Duration // guarded by mu: how long it may ask nothing from then on
	timer     *time.Timer   // guarded by mu: ends it when it has
	forgotten bool          // guarded by mu

	// Owned by whoever serves the request under way.
	parting bool   // the connection ends with the answer
	early   []byte // what came after the request
	strikes int    // how often it went back to net/http since it asked what is known
}

// host is what a guest is the connection of. Each method is called by one goroutine at a time.
type host interface {
	// next reads a request, and has it answered. It must not wait, and must have await called.
	next()
	// called is told that there is something to read while a request is held. It is called with mu.
	called()
	// tired has the connection closed, or given back: nothing came for too long.
	tired()
	// ended is called when the connection is not the host's any more.
	ended()
}

// visit is what a guest is about.
type visit int

const (
	busy   visit = iota // its request is read, or answered
	held                // its request may be parked
	asking              // it may ask again
	over
)

const (
	// mostStrikes is how often in a row a connection may go back to net/http. One that many
	// share behind a proxy, or that is used for other things in between, stays there.
	mostStrikes = 3
	// idleUsual is how long a connection may ask nothing where http.Server.IdleTimeout does not say.
	idleUsual = 2 * time.Minute
	// mostAsked is the most bytes of a request that is looked at here.
	mostAsked = 4 << 10
)

// speaksOfBody are the fields that change what a body is, or when it comes.
var speaksOfBody = []string{"Expect", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// mayTakeOver tells whether what a request came on may be taken over.
func mayTakeOver(r *http.Request) bool {
	if !watches || r.ProtoMajor != 1 || r.ProtoMinor == 0 || r.TLS != nil {
		return false
	}
	for _, name := range speaksOfBody {
		if r.Header[name] != nil {
			return false
		}
	}
	_, tcp := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return tcp
}

// takeOver takes the connection over that a request came on; whatever was read of it is read. false: it stays where it
// is. asked is the request as it came, where that is known. The host must call watch next.
func (g *guest) takeOver(s *Server, w http.ResponseWriter, r *http.Request, h host) (asked []byte, ok bool) {
	server, _ := r.Context().Value(http.ServerContextKey).(*http.Server)
	if server == nil || !mayTakeOver(r) {
		return nil, false
	}
	t, err := take(w)
	if err != nil {
		return nil, false
	}
	g.server, g.host, g.returns, g.patience = s, h, s.returnsTo(server), server.IdleTimeout
	g.conn, g.early, g.strikes, g.watched = t.conn, t.early, t.strikes, t.watched
	if g.patience <= 0 {
		g.patience = idleUsual
	}
	g.vary = field("Vary", w.Header()["Vary"]...)
	for name, values := range w.Header() {
		if name != "Vary" {
			g.common += field(name, values...)
		}
	}
	g.raw = rawSocket(g.conn)
	g.parting = r.Close
	return t.asked, true
}

// watch begins to look for what comes.
func (g *guest) watch() {
	g.server.streams.add()
	g.server.guests.enter(g)
	if g.raw != nil {
		g.watched, _ = g.server.idle.watchOn(g.raw, g.watched, g.readable)
	}
	g.parting = g.parting || g.watched == 0 // nobody would see the next request
}

func field(name string, values ...string) string {
	line := ""
	for _, value := range values {
		line += name + ": " + value + "\r\n"
	}
	return line
}

// appendCommon appends the header fields that all answers have; vary is g.vary but for those that are cached.
func (g *guest) appendCommon(dst []byte, vary string) []byte {
	dst = append(append(appendDate(dst), vary...), g.common...)
	if g.parting {
		dst = append(dst, "Connection: close\r\n"...)
	}
	return dst
}

// dated is the header field Date of one second.
type dated struct {
	second int64
	field  string
}

var lastDate atomic.Pointer[dated]

// appendDate appends the header field Date. It is made once a second.
func appendDate(dst []byte) []byte {
	now := time.Now()
	d := lastDate.Load()
	if d == nil || d.second != now.Unix() {
		d = &dated{now.Unix(), field("Date", now.UTC().Format(http.TimeFormat))}
		lastDate.Store(d)
	}
	return append(dst, d.field...)
}

// goOn waits for the next request, or whatever comes next, once the request under way was answered.
func (g *guest) goOn() {
	early := g.early
	g.early = nil
	switch {
	case g.parting:
		g.close()
	case len(early) > 0:
		go g.giveBack(early)
	default:
		g.await(g.patience)
	}
}

// readable is called when there is something to read.
func (g *guest) readable(uint64) {
	g.mu.Lock()
	state := g.state
	switch state {
	case busy:
		g.again()
	case held:
		g.again()
		g.host.called()
	case asking:
		g.state = busy
	}
	g.mu.Unlock()
	if state == asking {
		g.host.next()
	}
}

// again has it looked once more: at most for what there was no room for, for a request, and for the peer's end, which may
// come together. It needs mu.
func (g *guest) again() { g.more = min(g.more+1, 3) }

// await waits for what comes next, for at most so long.
func (g *guest) await(most time.Duration) {
	if g.came(most) {
		g.host.next()
	}
}

// came tells whether that was there before; else it is waited for.
func (g *guest) came(most time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.more > 0 {
		g.more, g.state = g.more-1, busy
		return true
	}
	g.state, g.since = asking, time.Now()
	shorter := most < g.most
	g.most = most
	switch {
	case g.timer == nil:
		g.timer = time.AfterFunc(most, g.look)
	case shorter:
		g.timer.Reset(most)
	}
	if g.server.guests.shut.Load() {
		g.timer.Reset(0)
	}
	return false
}

// look ends a guest that asks nothing for too long, and looks again when it may have. To set the
// timer anew for each request would cost more.
func (g *guest) look() {
	g.mu.Lock()
	more := g.most
	if g.state == asking {
		more -= time.Since(g.since)
	}
	tired := g.state == asking && (more <= 0 || g.server.guests.shut.Load())
	switch {
	case tired:
		g.state = over
	case g.state != over && g.timer != nil:
		g.timer.Reset(more)
	}
	g.mu.Unlock()
	if tired {
		g.host.tired()
	}
}

// end forgets the guest, once.
func (g *guest) end() {
	g.mu.Lock()
	ended := g.forgotten
	g.state, g.forgotten = over, true
	if g.timer != nil {
		g.timer.Stop()
	}
	g.mu.Unlock()
	if ended {
		return
	}
	g.host.ended()
	g.server.idle.forget(g.watched)
	g.server.guests.leave(g)
	g.server.streams.done()
}

func (g *guest) close() {
	g.end()
	_ = g.conn.Close()
}

// giveBack gives the connection back to net/http, with what was read.
func (g *guest) giveBack(asked []byte) {
	g.server.idle.drop(g.raw, g.watched)
	g.end()
	back := &returned{Conn: g.conn, early: asked, asked: asked, strikes: g.strikes + 1}
	if len(asked) > mostLearned+mostAsked || back.strikes >= mostStrikes {
		back.asked = nil // nobody will look at it
	}
	g.returns.put(back)
}

// guests are those of a server.
type guests struct {
	mu   sync.Mutex
	all  map[*guest]struct{} // guarded by mu
	shut atomic.Bool         // set with mu: who is answered leaves
}

func (s *guests) enter(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[*guest]struct{})
	}
	s.all[g] = struct{}{}
}

func (s *guests) leave(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, g)
}

// close ends those that ask nothing, now and from now on.
func (s *guests) close() {
	s.mu.Lock()
	s.shut.Store(true)
	all := make([]*guest, 0, len(s.all))
	for g := range s.all {
		all = append(all, g)
	}
	s.mu.Unlock()
	for _, g := range all {
		g.look()
	}
}
