package follow_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/tidemark-sync/tidemark/transport/follow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bubble runs a test with a clock of its own, and a network of pipes beside it. It
// hangs, and so fails, if a goroutine is left behind.
func bubble(t *testing.T, handler http.HandlerFunc, test func(t *testing.T, o follow.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ln := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		var wg sync.WaitGroup
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			wg.Add(1)
			defer wg.Done()
			handler(w, r)
		})}
		wg.Go(func() { srv.Serve(ln) })
		tr := &http.Transport{DialContext: ln.dial}
		test(t, follow.Options{
			URL: "http://tidemark.test", Tenant: "demo",
			Collections: []follow.Collection{{Name: "todos"}},
			HTTP:        &http.Client{Transport: tr},
		})
		tr.CloseIdleConnections()
		srv.Close()
		wg.Wait()
	})
}

// pipes is a listener whose connections are net.Pipes: waiting for them is something
// that synctest understands.
type pipes struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
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
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// mouth says frames over whichever transport was asked for.
type mouth struct {
	t   *testing.T
	w   http.ResponseWriter
	r   *http.Request
	ws  *websocket.Conn
	how string
}

func speak(t *testing.T, w http.ResponseWriter, r *http.Request) *mouth {
	m := &mouth{t: t, w: w, r: r, how: r.URL.Query().Get("transport")}
	switch m.how {
	case follow.WebSocket:
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error("accept:", err)
			panic(http.ErrAbortHandler)
		}
		m.ws = ws
	case follow.SSE:
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "retry: 1000\n\n")
	case follow.Poll:
		w.Header().Set("Content-Type", "application/x-ndjson")
	default:
		t.Errorf("the request asks for the transport %q", m.how)
		panic(http.ErrAbortHandler)
	}
	return m
}

func (m *mouth) raw(s string) {
	if m.ws != nil {
		m.ws.Write(m.r.Context(), websocket.MessageText, []byte(s))
		return
	}
	fmt.Fprint(m.w, s)
	http.NewResponseController(m.w).Flush()
}

// say sends frames in one write.
func (m *mouth) say(frames ...string) {
	switch m.how {
	case follow.SSE:
		var b strings.Builder
		for _, f := range frames {
			var x struct{ Type string }
			if err := json.Unmarshal([]byte(f), &x); err != nil {
				m.t.Error("a frame of the test's own:", err)
			}
			fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", x.Type, f)
		}
		m.raw(b.String())
	case follow.Poll:
		m.raw(strings.Join(frames, "\n") + "\n")
	default:
		m.raw(strings.Join(frames, "\n"))
	}
}

// cut ends the connection in the middle.
func (m *mouth) cut() {
	if m.ws != nil {
		m.ws.CloseNow()
	}
	panic(http.ErrAbortHandler)
}

// hang waits for the client to go.
func (m *mouth) hang() {
	if m.ws != nil {
		m.ws.Read(context.Background())
		m.ws.CloseNow()
		return
	}
	<-m.r.Context().Done()
}

// finish ends the answer in order.
func (m *mouth) finish() {
	if m.ws != nil {
		m.ws.Close(websocket.StatusNormalClosure, "")
	}
}

const epoch = "k3f9a1"

func opened() string {
	return `{"type":"open","epoch":"` + epoch + `","session":"s1","heartbeat":10,"server":"v1","transports":["websocket","sse","poll"],"network":"n"}`
}

func put(seq int, collection, key string, more ...bool) string {
	tail := ""
	if len(more) > 0 {
		tail = `,"more":true`
	}
	return fmt.Sprintf(`{"type":"change","seq":%d,"collection":%q,"op":"insert","key":%q,"at":"2026-03-01T10:00:00.123Z","value":{"n":%d}%s}`, seq, collection, key, seq, tail)
}

func remove(seq int, collection, key string) string {
	return fmt.Sprintf(`{"type":"change","seq":%d,"collection":%q,"op":"remove","key":%q,"at":"2026-03-01T10:00:00.123Z"}`, seq, collection, key)
}

func reset(reason string, collections ...string) string {
	names, _ := json.Marshal(collections)
	return fmt.Sprintf(`{"type":"reset","collections":%s,"reason":%q}`, names, reason)
}

func live(seq int) string { return fmt.Sprintf(`{"type":"live","cursor":"%s-%d"}`, epoch, seq) }

// counter numbers requests, from 0.
type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) next() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n - 1
}

func (c *counter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// each runs a test once per transport.
func each(t *testing.T, test func(t *testing.T, transport string)) {
	for _, transport := range follow.Transports {
		t.Run(transport, func(t *testing.T) { test(t, transport) })
	}
}

func (m *mouth) closeWith(code int) { m.ws.Close(websocket.StatusCode(code), "because") }
