package main

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"
)

// open serves a hop on a real socket, and returns its URL.
func open(t testing.TB, p personality, server string) string {
	t.Helper()
	target, err := targetOf(server)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := newHop(p, target, nil)
	h.serve(l)
	t.Cleanup(h.close)
	return "http://" + l.Addr().String()
}

// say sends a request over a connection of its own, and returns all that comes, and
// how it ends.
func say(t *testing.T, to, request string) (string, error) {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	io.WriteString(c, request)
	all, err := io.ReadAll(c)
	return string(all), err
}

// TestResetIsAReset: a client that was only ever tested with connections that end in
// good order.
func TestResetIsAReset(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(&upstream{gone: make(chan string, 100)})
	t.Cleanup(server.Close)
	soon := named(t, "sse-reset-16s")
	soon.events.after = 50 * time.Millisecond
	events := strings.Replace(upgradeRequest, "Connection: keep-alive, Upgrade\r\n", "Accept: text/event-stream\r\n", 1)
	for _, x := range []struct {
		p             personality
		request, want string
	}{
		{named(t, "websocket-killed-100"), upgradeRequest, "101 Switching Protocols"},
		{soon, events, "data: 0"},
		{named(t, "dies-after-900-bytes"), "GET /v1/acme/feed?n=5000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", strings.Repeat("x", 900)},
	} {
		t.Run(x.p.Name, func(t *testing.T) {
			t.Parallel()
			got, err := say(t, open(t, x.p, server.URL), x.request)
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("it ended with %v", err)
			}
			if !strings.Contains(got, x.want) {
				t.Errorf("what came before is %q", got)
			}
		})
	}
	t.Run("sse-cut-3s", func(t *testing.T) {
		t.Parallel()
		p := named(t, "sse-cut-3s")
		p.events.after = 50 * time.Millisecond
		got, err := say(t, open(t, p, server.URL), events)
		if err != nil || !strings.Contains(got, "data: 0") || strings.HasSuffix(got, "0\r\n\r\n") {
			t.Errorf("a cut stream has brought %q, %v", got, err)
		}
	})
}

func TestServerThatIsDownIsABadGateway(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	to := open(t, named(t, "plain"), server.URL)
	got, err := say(t, to, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
	if err != nil || !strings.HasPrefix(got, "HTTP/1.1 502 ") {
		t.Errorf("it was answered %q, %v", got, err)
	}
}
