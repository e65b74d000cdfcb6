package transport_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
	"github.com/tidemark-sync/tidemark/transport/gate"
)

// All that a feed can go over.
const (
	sse       = "sse"
	websocket = "websocket"
	poll      = "poll"
)

var transports = []string{sse, websocket, poll}

// site is a server under test, on a log in memory.
type site struct {
	t      testing.TB
	log    *feedtest.Memory
	hub    *hub.Hub
	server *transport.Server
	http   *http.Server
	url    string
	dial   func(context.Context) (net.Conn, error)
	client *http.Client
	served chan error
	once   sync.Once
}

// settings are what a test may want otherwise. The zero value is the usual.
type settings struct {
	hub     hub.Options
	options transport.Options
	listen  func(net.Listener) net.Listener // default: the server's Door, or transport.Listen with TLS
	log     *feedtest.Memory
	unready bool                           // the server is not given its hub
	tls     bool                           // TLS, with HTTP/2 for who wants it
	idle    time.Duration                  // http.Server.IdleTimeout
	header  time.Duration                  // http.Server.ReadHeaderTimeout
	state   func(net.Conn, http.ConnState) // http.Server.ConnState
}

// open starts a site on a loopback socket.
func open(t testing.TB, o settings) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return start(t, o, l, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}, "http://"+l.Addr().String())
}

// bubble runs a test in a synctest bubble, with a site whose network are pipes: time
// passes when everybody waits, and synctest.Wait returns when all is delivered.
func bubble(t *testing.T, o settings, test func(t *testing.T, s *site)) {
	t.Helper()
	certificate() // outside of the bubble
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		s := start(t, o, p, p.dial, "http://127.0.0.1")
		test(t, s)
		s.close()
	})
}

func start(t testing.TB, o settings, l net.Listener, dial func(context.Context) (net.Conn, error), address string) *site {
	t.Helper()
	if o.log == nil {
		o.log = feedtest.NewMemory()
	}
	if o.options.Authorizer == nil {
		o.options.Authorizer, o.options.Origins = transport.Loopback{}, transport.LoopbackOrigins
	}
	s := &site{t: t, log: o.log, url: address, dial: dial, served: make(chan error, 1)}
	if o.listen == nil {
		o.listen = func(l net.Listener) net.Listener { return s.server.Door(l, s.http) }
		if o.tls {
			o.listen = transport.Listen
		}
	}
	pool := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	if o.tls {
		s.url = "https" + strings.TrimPrefix(address, "http")
		listen := o.listen
		o.listen = func(l net.Listener) net.Listener {
			return tls.NewListener(listen(l), &tls.Config{Certificates: certificate(), NextProtos: []string{"h2", "http/1.1"}})
		}
		pool.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
		pool.ForceAttemptHTTP2 = true
		pool.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}
	}
	h, err := hub.Open(t.Context(), o.log, o.hub)
	if err != nil {
		t.Fatal(err)
	}
	s.hub, s.server = h, transport.New(o.options)
	if !o.unready {
		s.server.Serve(h)
	}
	s.http = &http.Server{Handler: s.server, IdleTimeout: o.idle, ReadHeaderTimeout: o.header, ConnState: o.state, MaxHeaderBytes: gate.MaxHeaderBytes}
	s.client = &http.Client{Transport: pool}
	go func() { s.served <- s.http.Serve(o.listen(l)) }()
	t.Cleanup(s.close)
	return s
}

// close stops the site in the order in which a program does.
func (s *site) close() {
	s.once.Do(func() {
		s.server.NotReady("draining")
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.hub.Drain(ctx); err != nil {
			s.t.Error("drain:", err)
		}
		s.client.CloseIdleConnections()
		if err := s.http.Shutdown(ctx); err != nil {
			s.t.Error("shutdown:", err)
			s.http.Close()
		}
		if err := s.server.Wait(ctx); err != nil {
			s.t.Error("wait for WebSockets:", err)
		}
		s.client.CloseIdleConnections()
		<-s.served
	})
}

// certificate is one that nobody trusts.
var certificate = sync.OnceValue(func() []tls.Certificate {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	return s.TLS.Certificates
})

// response is an answer that was read to its end.
type response struct {
	status int
	header http.Header
	body   string
}

func (r response) problem(t testing.TB) problem {
	t.Helper()
	var p problem
	if ct := r.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("the Content-Type of an error is %q (%d %s)", ct, r.status, r.body)
	}
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		t.Fatalf("not a problem: %v: %q", err, r.body)
	}
	if p.Type == "" || p.Title == "" || p.Detail == "" || p.Code == "" || p.Status != r.status {
		t.Errorf("a problem lacks something: status %d, %s", r.status, r.body)
	}
	return p
}

type problem struct {
	Type, Title, Detail, Code, Limit string
	Status                           int
	Results                          []result
	Key                              string
	Seq                              *uint64
	Value                            json.RawMessage
}

type result struct {
	ID, Status, Key string
	Seq             *uint64
	Value           json.RawMessage
}

// do makes a request; headers are pairs.
func (s *site) do(method, path, body string, headers ...string) response {
	s.t.Helper()
	r, err := s.try(method, path, body, headers...)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *site) try(method, path, body string, headers ...string) (response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, reader)
	if err != nil {
		return response{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, string(b)}, err
}

// answer is that of a write.
type answer struct {
	Cursor  string
	Results []result
}

// write posts a body to changes and must succeed.
func (s *site) write(body string) answer {
	s.t.Helper()
	r := s.do("POST", "/v1/acme/changes", body)
	if r.status != 200 {
		s.t.Fatalf("write %s: %d %s", body, r.status, r.body)
	}
	var a answer
	if err := json.Unmarshal([]byte(r.body), &a); err != nil {
		s.t.Fatal(err)
	}
	return a
}

// put puts one row, into collection "todos" unless the key names another ("a:key").
func (s *site) put(key, value string) answer {
	s.t.Helper()
	return s.write(changes(put(key, value)))
}

func (s *site) remove(key string) answer {
	s.t.Helper()
	return s.write(changes(remove(key)))
}

// changes makes the body of a write of changes.
func changes(list ...string) string { return `{"changes":[` + strings.Join(list, ",") + `]}` }

func split(key string) (collection, name string) {
	if c, k, ok := strings.Cut(key, ":"); ok {
		return c, k
	}
	return "todos", key
}

func put(key, value string) string {
	c, k := split(key)
	return `{"op":"put","collection":"` + c + `","key":` + quote(k) + `,"value":` + value + `}`
}

func remove(key string) string {
	c, k := split(key)
	return `{"op":"remove","collection":"` + c + `","key":` + quote(k) + `}`
}

func quote(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// serverRows is what the server says that a collection holds, page by page.
func (s *site) serverRows(collection string, limit string) map[string]string {
	s.t.Helper()
	rows := make(map[string]string)
	for after := ""; ; {
		p := s.page(collection, after, limit)
		for _, row := range p.Rows {
			rows[row.Key] = string(row.Value)
		}
		if after = p.Next; after == "" {
			return rows
		}
	}
}

type page struct {
	Cursor, Next string
	Rows         []struct {
		Key   string
		Seq   uint64
		Value json.RawMessage
	}
}

func (s *site) page(collection, after, limit string) page {
	s.t.Helper()
	q := url.Values{}
	if after != "" {
		q.Set("after", after)
	}
	if limit != "" {
		q.Set("limit", limit)
	}
	r := s.do("GET", "/v1/acme/rows/"+collection+"?"+q.Encode(), "")
	if r.status != 200 {
		s.t.Fatalf("rows: %d %s", r.status, r.body)
	}
	var p page
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		s.t.Fatal(err)
	}
	return p
}

// sessions waits until the hub has as many sessions, on real sockets.
func (s *site) sessions(want int) {
	s.t.Helper()
	s.eventually("sessions", func() bool { return s.hub.Stats().Sessions == want })
}

// eventually polls until something is so: where a real socket is the point.
func (s *site) eventually(what string, so func() bool) {
	s.t.Helper()
	for end := time.Now().Add(15 * time.Second); !so(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("%s: still not so after 15 s; %d sessions", what, s.hub.Stats().Sessions)
		}
	}
}

// pipes is a listener whose connections are net.Pipes: synctest knows when somebody
// waits for one.
type pipes struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
