package transport

import (
	"net"
	"net/http"
	"slices"
	"syscall"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Stalled is how long a connection may take no byte.
const Stalled = stalled

// ListenFor is Listen with another patience than Stalled.
func ListenFor(l net.Listener, d time.Duration) net.Listener { return listener{l, d} }

// Routes lists what a server answers, by method and pattern.
func Routes(s *Server) []string {
	return append(routesOf(s.router, ""), routesOf(s.Administration().(chi.Routes), "administration: ")...)
}

func routesOf(r chi.Routes, prefix string) (all []string) {
	_ = chi.Walk(r, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		all = append(all, prefix+method+" "+route)
		return nil
	})
	slices.Sort(all)
	return all
}

// ShelfHolds is how many bytes of frames an attendant keeps after it has made so many of such a size.
func ShelfHolds(many, size int) (held int) {
	var s shelf
	for range many {
		buf := make([]byte, size)
		s.oldest().keep(new(feed.Batch), buf, buf)
	}
	for i := range s.all {
		held += cap(s.all[i].buf)
	}
	return held
}

// Visitors is how many connections there are on which clients poll past net/http.
func Visitors(s *Server) int { return guestsOf[*visitor](s) }

// Posters is how many connections there are on which clients write past net/http.
func Posters(s *Server) int { return guestsOf[*poster](s) }

func guestsOf[H host](s *Server) (n int) {
	s.guests.mu.Lock()
	defer s.guests.mu.Unlock()
	for g := range s.guests.all {
		if _, ok := g.host.(H); ok {
			n++
		}
	}
	return n
}

// SetPatience sets how long a request of changes may take to come. What it returns sets it back.
func SetPatience(d time.Duration) (back func()) {
	before := wholeWithin
	wholeWithin = d
	return func() { wholeWithin = before }
}

// LengthIn is how many bytes the head of a request has, and its body.
func LengthIn(request []byte) (head, body int, ok bool) {
	l, ok := lengthIn(request)
	return l.head, l.n, ok
}

// OutcomeJSON is an outcome as an answer and as a problem show it.
func OutcomeJSON(o hub.Outcome) (answer, problem []byte) {
	out := outcomeOf(o)
	return out.append(nil), encode(out)
}

// ScanBody reads a body as those are read that are written as most are; false: it is not one of them.
func ScanBody(raw []byte) (any, bool) {
	return scan(raw)
}

// DecodeBody reads a body by the library.
func DecodeBody(raw []byte) (any, error) {
	var b body
	err := decode(raw, &b)
	return b, err
}

// Sends gathers what goes out on sockets.
type Sends struct{ s sends }

// Add has b sent; done gets what the socket did not take.
func (s *Sends) Add(c net.Conn, b []byte, done func(left []byte)) {
	if left, waits := s.s.copied(rawSocket(c), b, told(done)); !waits {
		done(left)
	}
}

// Flush sends what waits.
func (s *Sends) Flush() { s.s.flush() }

// Waiting is how many sends wait, and the bytes that are held for them.
func (s *Sends) Waiting() (sends, bytes int) {
	for _, b := range append(append(s.s.used, s.s.spare...), s.s.joined, s.s.large) {
		bytes += cap(b)
	}
	return len(s.s.all), bytes
}

type told func(left []byte)

func (fn told) sent(left []byte) { fn(left) }

// Pinged is a link to a client, which many others' attendant writes to.
type Pinged struct {
	link *link
	raw  syscall.RawConn
	memo memo
}

// NewPinged has the connection be of such a link.
func NewPinged(c net.Conn) *Pinged { return &Pinged{link: &link{Conn: c}, raw: rawSocket(c)} }

// Deliver sends a message of so many bytes as an attendant does, while a ping comes. false: the client takes no more.
func (p *Pinged) Deliver(size int) bool {
	if p.link.attempt(&p.memo, p.raw, append(appendHeader(nil, opText, size), make([]byte, size)...), p) {
		p.link.pong(make([]byte, 125))
		p.memo.sends.flush()
	}
	return !p.link.torn
}

func (p *Pinged) sent(left []byte) { p.link.sent(p.raw, left) }
