package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bed is one hop before a server, in a synctest bubble: both networks are pipes, so
// that time passes when everybody waits. A goroutine that is left behind fails the test.
type bed struct {
	t      *testing.T
	hop    *hop
	front  *pipes
	server *upstream
	client *http.Client
}

// named is the personality of a name.
func named(t testing.TB, name string) personality {
	t.Helper()
	for _, p := range personalities {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("there is no %s", name)
	return personality{}
}

// bubble runs a test on a bed.
func bubble(t *testing.T, name string, test func(t *testing.T, b *bed)) {
	t.Helper()
	t.Parallel()
	p := named(t, name)
	synctest.Test(t, func(t *testing.T) {
		front, back := newPipes(), newPipes()
		b := &bed{t: t, front: front, server: &upstream{gone: make(chan string, 100)}}
		server := &http.Server{Handler: b.server}
		served := make(chan struct{})
		go func() { defer close(served); _ = server.Serve(back) }()
		b.hop = newHop(p, &url.URL{Scheme: "http", Host: "127.0.0.1:7333"}, back.dialer)
		b.hop.serve(front)
		pool := &http.Transport{DialContext: front.dialer, DisableCompression: true}
		b.client = &http.Client{Transport: pool}
		test(t, b)
		pool.CloseIdleConnections()
		b.hop.close()
		server.Close()
		<-served
	})
}

// upstream is a server that answers to every way of asking:
//
//	/v1/acme/feed  upgraded: says what it hears, and "tick" each 900 ms
//	               as an event stream: an event each second, 20 of them
//	               else what it was asked, after ?held=DURATION
//	/lines         body of ?n= bytes
//	else           what it was asked
type upstream struct {
	gone chan string // what kind of stream has ended
	mu   sync.Mutex
	seen []*http.Request // guarded by mu
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	u.seen = append(u.seen, r.Clone(context.Background()))
	u.mu.Unlock()
	switch {
	case upgradeOf(r.Header) != "":
		u.talk(w)
	case strings.Contains(r.Header.Get("Accept"), "text/event-stream"):
		defer func() { u.gone <- "sse" }()
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		rc := http.NewResponseController(w)
		rc.Flush()
		for i := range 20 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			rc.Flush()
			select {
			case <-time.After(time.Second):
			case <-r.Context().Done():
				return
			}
		}
	case r.URL.Query().Has("n"):
		n := 0
		fmt.Sscan(r.URL.Query().Get("n"), &n)
		io.WriteString(w, strings.Repeat("x", n))
	default:
		body, _ := io.ReadAll(r.Body) // net/http notices who leaves once it is read
		if held, err := time.ParseDuration(r.URL.Query().Get("held")); err == nil {
			select {
			case <-time.After(held):
			case <-r.Context().Done():
				u.gone <- "poll"
				return
			}
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		fmt.Fprintf(w, "%d: %s %s host=%s origin=%s last=%s upgrade=%s body=%s", len(u.seen), r.Method, r.URL.RequestURI(),
			r.Host, r.Header.Get("Origin"), r.Header.Get("Last-Event-ID"), r.Header.Get("Upgrade"), body)
	}
}

// talk is the server's side of an upgraded connection.
func (u *upstream) talk(w http.ResponseWriter) {
	defer func() { u.gone <- "websocket" }()
	c, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	var both sync.WaitGroup
	defer both.Wait()
	defer c.Close()
	heard := make(chan string)
	both.Go(func() {
		defer close(heard)
		for {
			line, err := buf.ReadString('\n')
			if err != nil {
				return
			}
			heard <- line
		}
	})
	for {
		said := "tick\n"
		select {
		case line, ok := <-heard:
			if !ok {
				return
			}
			if line == "bye\n" {
				c.Close()
				for range heard {
				}
				return
			}
			said = "heard " + line
		case <-time.After(900 * time.Millisecond):
		}
		if _, err := io.WriteString(c, said); err != nil {
			c.Close()
			for range heard {
			}
			return
		}
	}
}

// last is the request that came last, count how many came.
func (u *upstream) last() *http.Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.seen[len(u.seen)-1]
}

func (u *upstream) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.seen)
}

// ask makes a request and reads its answer; headers are pairs.
func (b *bed) ask(method, path, body string, headers ...string) (status int, text string, err error) {
	res, err := b.begin(method, path, body, headers...)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	all, err := io.ReadAll(res.Body)
	return res.StatusCode, string(all), err
}

// must is ask, answered 200.
func (b *bed) must(method, path, body string, headers ...string) string {
	b.t.Helper()
	status, text, err := b.ask(method, path, body, headers...)
	if err != nil || status != http.StatusOK {
		b.t.Fatalf("%s %s: %d %q %v", method, path, status, text, err)
	}
	return text
}

// begin makes a request and returns with the headers of its answer.
func (b *bed) begin(method, path, body string, headers ...string) (*http.Response, error) {
	req, err := http.NewRequest(method, "http://127.0.0.1"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return b.client.Do(req)
}

// events opens an event stream.
func (b *bed) events() *http.Response {
	b.t.Helper()
	res, err := b.begin("GET", "/v1/acme/feed?c=todos", "", "Accept", "text/event-stream")
	if err != nil {
		b.t.Fatal(err)
	}
	return res
}

// socket is a client's upgraded connection.
type socket struct {
	net.Conn
	r *bufio.Reader
}

const upgradeRequest = "GET /v1/acme/feed?c=todos HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"

// upgrade asks for a WebSocket, and returns with the headers of the answer.
func (b *bed) upgrade() (*http.Response, *socket) {
	b.t.Helper()
	c, err := b.front.dial(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	io.WriteString(c, upgradeRequest)
	s := &socket{c, bufio.NewReader(c)}
	res, err := http.ReadResponse(s.r, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return res, s
}

// upgraded is upgrade, answered 101.
func (b *bed) upgraded() *socket {
	b.t.Helper()
	res, s := b.upgrade()
	if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Upgrade") != "websocket" {
		b.t.Fatalf("not upgraded: %s %v", res.Status, res.Header)
	}
	return s
}

// hears returns the next line, and an error as its text.
func (s *socket) hears() string {
	line, err := s.r.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// silent tells whether nothing comes for a while, not even an end.
func (s *socket) silent(d time.Duration) bool {
	s.SetReadDeadline(time.Now().Add(d))
	defer s.SetReadDeadline(time.Time{})
	_, err := s.r.ReadByte()
	timeout, ok := err.(net.Error)
	return ok && timeout.Timeout()
}

// told is what the hop tells of itself.
func (b *bed) told() (out told) {
	b.t.Helper()
	if err := json.Unmarshal([]byte(b.must("GET", "/_hop", "")), &out); err != nil {
		b.t.Fatal(err)
	}
	return out
}

// took is how long something took, in the bubble's time.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// pipes is a listener whose connections are net.Pipes: synctest knows when somebody
// waits for one.
type pipes struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

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

func (p *pipes) dialer(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx) }

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
