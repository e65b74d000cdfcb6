package transport

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport/gate"
)

// Options of a Server. Authorizer must be set; the rest may be zero.
type Options struct {
	Authorizer Authorizer
	// Origins are the pages whose browsers are told that they may use the API. Default:
	// only pages of the server's own host.
	Origins Origins
	// Tickets keeps tickets. Default: NewTickets.
	Tickets Tickets
	// Gate bounds what strangers may take. Default: nothing.
	Gate Gate
	// Forget forgets a tenant: DELETE /v1/{tenant}. Default: that is answered 404.
	Forget func(ctx context.Context, g hub.Grant, tenant string) (any, error)
	// Version is what the frame open says of the server. Default "dev".
	Version string
	// NetworkKey keys the hash of client addresses in the frame open: secret, and the
	// same after a restart. Default: none, and an empty hash.
	NetworkKey []byte
	// Body is the most bytes that a request's body, or a client's WebSocket message,
	// may have. Default 1 MiB.
	Body int64
	// PollCache is what Cache-Control says on long-poll answers that end in next: they
	// are the same for everybody who asks the same. Default "private, max-age=60".
	PollCache string
	// OneByOne has a system call for each socket that is written to. Default: on Linux those that are written to at
	// the same time share one, by io_uring(7), where the kernel lets us.
	OneByOne bool
	// Remark is what /readyz says beside that the server is ready. Default: nothing.
	Remark string
	// Logger gets what an operator must know. Default: nobody.
	Logger *slog.Logger
}

// Server answers HTTP requests. It says that it is not ready until it is given a hub.
// All methods may be called concurrently.
type Server struct {
	opts    Options
	router  *chi.Mux
	hub     atomic.Pointer[hub.Hub]
	why     atomic.Pointer[string] // why it does not serve
	ready   chan struct{}          // closed by the first Serve
	streams tally                  // on connections that were taken over, which http.Server does not wait for
	csrf    *http.CrossOriginProtection
	idle    readable // sockets of streams that wait

	guests guests
	crew   crew
	macs   sync.Pool // of network's

	mu       sync.Mutex
	problems map[hub.Code]uint64       // guarded by mu
	returns  map[*http.Server]*returns // guarded by mu
}

// Gate is what a Server asks before it does something for a stranger. Each part may be
// nil, and then is not asked.
type Gate struct {
	Watch   *gate.Watch
	Rate    *gate.Rate
	Feeds   *gate.Feeds
	Trusted []netip.Prefix // proxies whose X-Forwarded-For counts; see gate.ClientAddr
}

// readyWithin is how long an event stream waits for a server that starts: a browser's
// EventSource that is answered 503 once never comes back.
const readyWithin = 20 * time.Second

// New makes a server. It starts nothing.
func New(opts Options) *Server {
	if opts.Authorizer == nil {
		panic("transport: Options.Authorizer must be set")
	}
	if opts.Version == "" {
		opts.Version = "dev"
	}
	if opts.Body <= 0 {
		opts.Body = 1 << 20
	}
	if opts.PollCache == "" {
		opts.PollCache = "private, max-age=60"
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Tickets == nil {
		opts.Tickets = NewTickets()
	}
	s := &Server{opts: opts, router: chi.NewRouter(), ready: make(chan struct{}), csrf: http.NewCrossOriginProtection(), problems: map[hub.Code]uint64{}, returns: map[*http.Server]*returns{}}
	for code := range statuses {
		s.problems[code] = 0 // a counter that is not there until it counts hides its first
	}
	s.crew.plain = opts.OneByOne
	s.NotReady("starting")
	r := s.router
	r.Use(s.guard, s.cors, s.narrow)
	r.NotFound(s.notFound)
	r.MethodNotAllowed(s.methodNotAllowed)
	health := map[string]http.HandlerFunc{"/healthz": s.healthz, "/readyz": s.readyz}
	for path, handler := range health {
		r.Get(path, handler)
		r.Head(path, handler)
	}
	r.Get("/v1/{tenant}/feed", s.handleAs(s.admitFeed))
	r.Get("/v1/{tenant}/feed/*", s.feedInPath)
	r.Post("/v1/{tenant}/changes", s.handle(s.changes))
	r.Post("/v1/{tenant}/tickets", s.handle(s.issueTicket))
	r.Post("/v1/{tenant}/revocations", s.handle(s.revoke))
	if opts.Forget != nil {
		r.Delete("/v1/{tenant}", s.handle(s.forget))
	}
	history := s.handle(s.history())
	r.Get("/v1/{tenant}/history", history)
	r.Head("/v1/{tenant}/history", history)
	const rows = "/v1/{tenant}/rows/*"
	r.Get(rows, s.handle(s.readRows))
	r.Head(rows, s.handle(s.readRows))
	for _, method := range []string{http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodPost} {
		r.Method(method, rows, s.handle(s.writeRow))
	}
	return s
}

// Mount serves paths that begin with pattern by a handler of the caller's: pages.
// It must not be called once requests are served.
func (s *Server) Mount(pattern string, handler http.Handler) {
	s.router.Get(pattern, handler.ServeHTTP)
	s.router.Head(pattern, handler.ServeHTTP)
}

// Serve makes the server ready: requests are answered from h from now on.
func (s *Server) Serve(h *hub.Hub) {
	first := s.hub.Swap(h) == nil
	s.why.Store(nil)
	if first {
		close(s.ready)
	}
}

// NotReady makes the server refuse all that needs a hub, saying why.
func (s *Server) NotReady(why string) { s.why.Store(&why) }

// Problems counts the requests that were answered with a problem, by its code: those of WebSockets, too, and codes that
// none was answered with yet.
func (s *Server) Problems() map[hub.Code]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.problems)
}

// refuse answers with a problem, and counts it.
func (s *Server) refuse(w http.ResponseWriter, p *problem) {
	s.count(p.Code)
	p.write(w)
}

func (s *Server) count(code hub.Code) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems[code]++
}

// Wait waits until all feeds are gone that are on connections which http.Server does not know of: over HTTP/1. They go
// when their hub is drained. It must be called after that.
func (s *Server) Wait(ctx context.Context) error {
	s.guests.close()
	return s.streams.wait(ctx)
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.router.ServeHTTP(w, r) }

func (s *Server) healthz(w http.ResponseWriter, r *http.Request) { plain(w, http.StatusOK, "ok") }

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	why := ""
	if p := s.why.Load(); p != nil {
		why = *p
	} else if err := s.hub.Load().Err(); err != nil {
		why = err.Error()
	}
	if why != "" {
		w.Header().Set("Retry-After", "1")
		plain(w, http.StatusServiceUnavailable, "not ready: "+why)
		return
	}
	text := "ready"
	if s.opts.Remark != "" {
		text += "; " + s.opts.Remark
	}
	if err := s.hub.Load().Ready(); err != nil { // it serves what it has
		text += "; writes are refused: " + err.Error()
	}
	plain(w, http.StatusOK, text)
}

func plain(w http.ResponseWriter, status int, text string) {
	begin(w, "text/plain; charset=utf-8", "no-store")
	w.WriteHeader(status)
	w.Write([]byte(text + "\n"))
}

// call is a request that was let in.
type call struct {
	hub    *hub.Hub
	grant  hub.Grant
	tenant string

	// Of feeds.
	client netip.Addr // the zero Addr where it is not known
	papers papers     // what it was let in for
}

// handle makes a handler of fn: who may is settled before, and errors are answered after.
func (s *Server) handle(fn func(w http.ResponseWriter, r *http.Request, c call) error) http.HandlerFunc {
	return s.handleAs(func(w http.ResponseWriter, r *http.Request) error { return s.admit(w, r, fn) })
}

// handleAs makes a handler of what returns an error to answer.
func (s *Server) handleAs(fn func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := fn(w, r); err != nil {
			s.failed(err, r.Method, chi.RouteContext(r.Context()).RoutePattern(), r.Context().Err()).write(w)
		}
	}
}

// failed counts what a request is refused with, and tells the logger what its sender can't help, unless it has gone.
func (s *Server) failed(err error, method, route string, gone error) *problem {
	p := problemOf(err)
	s.count(p.Code)
	if p.Code == codeInternal && gone == nil {
		s.opts.Logger.Error("answer a request", "method", method, "route", route, "err", err)
	}
	return p
}

func (s *Server) admit(w http.ResponseWriter, r *http.Request, fn func(w http.ResponseWriter, r *http.Request, c call) error) error {
	c, err := s.callOf(r)
	if err != nil {
		return err
	}
	if c.grant, err = s.opts.Authorizer.Authorize(r); err != nil {
		return unauthenticated(err)
	}
	if err := s.attach(r, &c); err != nil {
		return err
	}
	return fn(w, r, c)
}

// callOf reads what a request says of itself.
func (s *Server) callOf(r *http.Request) (c call, err error) {
	if err := s.sameSite(r); err != nil {
		return c, err
	}
	c.tenant, err = param(r, "tenant")
	return c, err
}

// attach gives a call the hub.
func (s *Server) attach(r *http.Request, c *call) error {
	if s.why.Load() != nil && acceptsEvents(r.Header["Accept"]) {
		s.await(r)
	}
	if err := s.serving(); err != nil {
		return err
	}
	c.hub = s.hub.Load()
	return nil
}

// admitFeed is admit for feeds.
func (s *Server) admitFeed(w http.ResponseWriter, r *http.Request) error {
	c, err := s.callOf(r)
	if err != nil {
		return err
	}
	c.client = gate.ClientAddr(r, s.opts.Gate.Trusted)
	q, bad := query(r) // what is wrong with it is said when it is known who asks
	if err := s.letIn(r, q, &c); err != nil {
		return err
	}
	if err := s.attach(r, &c); err != nil {
		return err
	}
	if bad != nil {
		return bad
	}
	return s.feed(w, r, q, c)
}

// letIn settles who may follow a feed.
func (s *Server) letIn(r *http.Request, q url.Values, c *call) (err error) {
	// Before credentials are looked at: that costs, too.
	if err := s.stranger(r, q, c.client); err != nil {
		return err
	}
	c.papers = papersOf(r)
	if q.Has("ticket") {
		c.grant, c.papers, err = s.redeem(r, q)
	} else {
		c.grant, err = s.opts.Authorizer.Authorize(r)
	}
	if err != nil {
		return unauthenticated(err)
	}
	return nil
}

// feedInPath answers a feed whose query stands in the path.
func (s *Server) feedInPath(w http.ResponseWriter, r *http.Request) {
	if !queryInPath(r) {
		s.notFound(w, r)
		return
	}
	s.handleAs(s.admitFeed)(w, r)
}

// changed tells whether requests are not answered from a hub any more.
func (s *Server) changed(h *hub.Hub) bool { return s.serving() != nil || s.hub.Load() != h }

// serving refuses while there is no hub.
func (s *Server) serving() error {
	why := s.why.Load()
	if why == nil {
		return nil
	}
	p := newProblem(hub.Unavailable, "not ready: %s; try again in a moment", *why)
	p.retry = time.Second
	return p
}

// unauthenticated makes an Authorizer's error one that says what to answer.
func unauthenticated(err error) error {
	var p *problem
	var refusal *hub.Refusal
	if errors.As(err, &p) || errors.As(err, &refusal) {
		return err
	}
	return newProblem(hub.Unauthenticated, "%s", err)
}

// stranger asks the gate whether a feed may begin. A poll that has a cursor goes on with
// a feed that began before.
func (s *Server) stranger(r *http.Request, q url.Values, client netip.Addr) error {
	if err := s.opts.Gate.Watch.Admit(gate.Feed); err != nil {
		return err
	}
	if s.opts.Gate.Rate == nil || s.resumes(r, q) {
		return nil
	}
	return s.opts.Gate.Rate.Take(client)
}

// resumes tells whether a request is a poll with a cursor of this log's epoch.
func (s *Server) resumes(r *http.Request, q url.Values) bool {
	h := s.hub.Load()
	if h == nil {
		return false
	}
	if transport, err := choose(r, q); err != nil || transport != pollName {
		return false
	}
	epoch := string(h.Epoch()) // what follows is whose it is, see hub.EpochOf
	if strings.HasPrefix(q.Get("cursor"), epoch) || strings.HasPrefix(r.Header.Get("Last-Event-ID"), epoch) || strings.HasPrefix(q.Get("last_event_id"), epoch) {
		return true
	}
	for _, c := range q["c"] {
		if _, own, _ := strings.Cut(c, "@"); strings.HasPrefix(own, epoch) {
			return true
		}
	}
	return false
}

// narrow refuses requests whose URL or header is too large.
func (s *Server) narrow(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := gate.CheckRequest(r); err != nil {
			s.refuse(w, problemOf(err))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// await keeps an event stream waiting while the server starts. While it stops, the
// connection is cut: to an EventSource that is the network's fault, and it tries again.
func (s *Server) await(r *http.Request) {
	if s.hub.Load() != nil {
		panic(http.ErrAbortHandler)
	}
	timeout := time.NewTimer(readyWithin)
	defer timeout.Stop()
	select {
	case <-s.ready:
	case <-timeout.C:
	case <-r.Context().Done():
	}
}

// guard turns a panic in one request into a 500 for its sender, or, once the answer
// has begun, into an answer that is cut off; and gives a body its time to come.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Over HTTP/2 a body may be under way that is declared to have no bytes: its end is a frame of its own.
		if r.ContentLength != 0 || r.ProtoMajor >= 2 {
			// Also where nobody reads it: net/http does, to get to the next request. Where
			// there are no deadlines (a test's recorder) there is no connection to hold up.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(stalled))
		}
		defer func() {
			if v := recover(); v != nil {
				if v == http.ErrAbortHandler {
					panic(v)
				}
				s.opts.Logger.Error("panic in a request", "method", r.Method, "route", chi.RouteContext(r.Context()).RoutePattern(), "panic", v)
				if begun(w) {
					panic(http.ErrAbortHandler)
				}
				s.refuse(w, newProblem(codeInternal, "something went wrong in the server; its log says what"))
			}
		}()
		next.ServeHTTP(w, r)
	})
}

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	s.refuse(w, newProblem(codeNotFound, "there is nothing at this path: feeds are at /v1/{tenant}/feed, rows at /v1/{tenant}/rows/{collection}, writes go to /v1/{tenant}/changes"))
}

func (s *Server) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	path := r.URL.RawPath
	if path == "" {
		path = r.URL.Path
	}
	var allowed []string
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		if s.router.Match(chi.NewRouteContext(), m, path) {
			allowed = append(allowed, m)
		}
	}
	p := newProblem(hub.BadRequest, "%s is not for this path; it takes %s", r.Method, strings.Join(allowed, ", "))
	p.status(http.StatusMethodNotAllowed)
	p.allow = strings.Join(allowed, ", ")
	s.refuse(w, p)
}
