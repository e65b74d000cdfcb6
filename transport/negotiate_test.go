package transport_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// raw sends the bytes of a request on a connection of its own and reads the headers
// of the answer. Line ends are written as \n.
func (s *site) raw(request string) (*http.Response, *bufio.Reader, net.Conn) {
	s.t.Helper()
	c, err := s.dial(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, strings.ReplaceAll(request, "\n", "\r\n")); err != nil {
		s.t.Fatal(err)
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		s.t.Fatalf("%q: %v", request, err)
	}
	return resp, r, c
}

const upgrade = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\n"

func TestTransportIsWhatTheQuerySaysElseWhatTheHeadersAskFor(t *testing.T) {
	s := open(t, settings{})
	s.put("a", `{}`)
	const events = "Accept: text/event-stream\n"
	cases := []struct{ query, headers, want string }{
		{"", "", poll},
		{"", "Accept: */*\n", poll},
		{"", "Accept: application/x-ndjson\n", poll},
		{"", events, sse},
		{"", "Accept: text/html, Text/Event-Stream;q=0.9\n", sse},
		{"", "Accept: text/html\nAccept: text/event-stream\n", sse},
		{"", "Accept: text/event-streams\n", poll},
		{"", upgrade, websocket},
		{"", upgrade + events, websocket},
		{"", strings.ReplaceAll(upgrade, "Connection: Upgrade", "Connection: keep-alive, upgrade"), websocket},
		{"", strings.ReplaceAll(upgrade, "Upgrade: websocket", "Upgrade: WebSocket"), websocket},
		{"", "Upgrade: websocket\n", poll}, // a hop took Connection away
		{"", "Connection: Upgrade\n" + events, sse},
		{"", "Connection: Upgrade\nUpgrade: h2c\n", poll},
		{"transport=", events, sse},
		{"transport=websocket", upgrade, websocket},
		{"transport=websocket", upgrade + events, websocket},
		{"transport=websocket", "", "426"},
		{"transport=websocket", events, "426"},
		{"transport=websocket", "Upgrade: websocket\n", "426"},
		{"transport=websocket", "Connection: Upgrade\n", "426"},
		{"", "Accept: text/event-stream;q=0, application/x-ndjson\n", poll},
		{"", "Accept: text/event-stream; q=0.0\n", poll},
		{"", "Accept: text/event-stream; charset=utf-8; q=0.1\n", sse},
		{"transport=sse", "", sse},
		{"transport=sse", upgrade, sse},
		{"transport=sse", "Accept: application/json\n", sse},
		{"transport=poll", "", poll},
		{"transport=poll", upgrade, poll},
		{"transport=poll", events, poll},
		{"transport=poll", upgrade + events, poll},
		{"transport=WebSocket", upgrade, "400"},
		{"transport=carrier-pigeon", "", "400"},
	}
	for _, c := range cases {
		resp, _, conn := s.raw("GET /v1/acme/feed?c=todos&" + c.query + " HTTP/1.1\nHost: localhost\n" + c.headers + "\n")
		got := fmt.Sprint(resp.StatusCode)
		switch {
		case resp.StatusCode == 101:
			got = websocket
		case resp.StatusCode == 200 && resp.Header.Get("Content-Type") == "text/event-stream":
			got = sse
		case resp.StatusCode == 200 && resp.Header.Get("Content-Type") == "application/x-ndjson":
			got = poll
		}
		if got != c.want {
			t.Errorf("%q %q: %s, want %s", c.query, c.headers, got, c.want)
		}
		conn.Close()
	}
	s.sessions(0)
}

func TestQueryThatANetworkLosesMayBePartOfThePath(t *testing.T) {
	s := open(t, settings{})
	s.put("a", `{}`)
	for _, path := range []string{
		"feed/c=todos&wait=0&transport=poll",
		"feed/transport=poll&wait=0?c=todos",
	} {
		resp, _, _ := s.raw("GET /v1/acme/" + path + " HTTP/1.1\nHost: localhost\n\n")
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	if resp, _, _ := s.raw("GET /v1/acme/feed/wait=0 HTTP/1.1\nHost: localhost\n\n"); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("no collection: %s", resp.Status)
	}
}

func TestUpgradeThatANetworkTookAwayIsSaidAtOnce(t *testing.T) {
	s := open(t, settings{})
	for _, version := range []string{"1.1", "1.0"} {
		resp, _, _ := s.raw("GET /v1/acme/feed?c=todos&transport=websocket HTTP/" + version + "\nHost: localhost\n\n")
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 10_000))
		p := response{resp.StatusCode, resp.Header, string(b)}.problem(t)
		if p.Status != 426 || p.Code != "upgrade-required" || resp.Header.Get("Upgrade") != "websocket" || version == "1.1" && resp.Header.Get("Connection") != "Upgrade" {
			t.Errorf("HTTP/%s: %+v %v", version, p, resp.Header)
		}
	}
}

// A hop that speaks HTTP/1.0 upstream, as nginx does by default.
func TestFeedsPassThroughAHopThatSpeaksOldHTTP(t *testing.T) {
	s := open(t, settings{})
	s.put("a", `{}`)
	for _, host := range []string{"Host: localhost\n", ""} {
		resp, _, c := s.raw("GET /v1/acme/feed?c=todos&wait=0 HTTP/1.0\n" + host + "\n")
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || strings.Count(string(b), "\n") != 3 || len(resp.TransferEncoding) > 0 {
			t.Errorf("poll: %d %s %v", resp.StatusCode, b, err)
		}
		c.Close()
		resp, _, c = s.raw("GET /v1/acme/feed?c=todos HTTP/1.0\n" + host + "Accept: text/event-stream\n\n")
		line, err := bufio.NewReader(resp.Body).ReadString('\n')
		if err != nil || resp.StatusCode != 200 || line != "retry: 1000\n" || len(resp.TransferEncoding) > 0 {
			t.Errorf("SSE: %d %s %v", resp.StatusCode, line, err)
		}
		c.Close()
		// Such a hop can't carry a WebSocket, whatever its headers say.
		resp, _, c = s.raw("GET /v1/acme/feed?c=todos&wait=0 HTTP/1.0\n" + host + upgrade + "\n")
		b, err = io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || strings.Contains(string(b), `"websocket"`) {
			t.Errorf("an upgrade: %d %s %v", resp.StatusCode, b, err)
		}
		c.Close()
		resp, _, c = s.raw("GET /v1/acme/feed?c=todos&transport=websocket HTTP/1.0\n" + host + upgrade + "\n")
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 426 || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("an upgrade by name: %d %s %v", resp.StatusCode, b, err)
		}
		c.Close()
	}
}

func TestHandshakeThatIsMalformedIsToldWhy(t *testing.T) {
	s := open(t, settings{})
	for name, headers := range map[string]string{
		"no key":         strings.ReplaceAll(upgrade, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\n", ""),
		"a short key":    strings.ReplaceAll(upgrade, "AAAAAAAAAAAAAAAAAAAAAA==", "AAAA"),
		"no base64":      strings.ReplaceAll(upgrade, "AAAAAAAAAAAAAAAAAAAAAA==", "!!!!!!!!!!!!!!!!!!!!!!=="),
		"two keys":       upgrade + "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\n",
		"no version":     strings.ReplaceAll(upgrade, "Sec-WebSocket-Version: 13\n", ""),
		"a version of 8": strings.ReplaceAll(upgrade, "Version: 13", "Version: 8"),
	} {
		resp, _, _ := s.raw("GET /v1/acme/feed?c=todos HTTP/1.1\nHost: localhost\n" + headers + "\n")
		b, _ := io.ReadAll(io.LimitReader(resp.Body, resp.ContentLength))
		p := response{resp.StatusCode, resp.Header, string(b)}.problem(t)
		if strings.Contains(name, "version") {
			if p.Status != 426 || p.Code != "upgrade-required" || resp.Header.Get("Sec-WebSocket-Version") != "13" {
				t.Errorf("%s: %+v %v", name, p, resp.Header)
			}
		} else if p.Status != 400 || p.Code != "bad-request" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	s.sessions(0)
}

func TestHTTP2CarriesAllButWebSockets(t *testing.T) {
	s := open(t, settings{tls: true})
	s.put("a", `{"n":1}`)
	st := s.feed(sse, "c=todos&heartbeat=3")
	first := st.next()
	if got := strings.Join(first.Transports, " "); got != "sse poll" {
		t.Errorf("the transports offered are %s", got)
	}
	st.until("tick")
	s.put("b", `{}`)
	if f := st.next(); f.Key != "b" || f.id == "" {
		t.Errorf("over HTTP/2 comes %s", f)
	}
	if got := types(s.ask("c=todos&limit=1")); got != "open change next" {
		t.Errorf("a poll: %q", got)
	}
	if got := types(s.ask("c=todos&wait=0&cursor=" + s.put("c", `{}`).Cursor)); got != "open live" {
		t.Errorf("a poll: %q", got)
	}
	if rows := s.serverRows("todos", "2"); len(rows) != 3 {
		t.Errorf("rows: %v", rows)
	}
	r := s.do("GET", "/v1/acme/feed?c=todos&transport=websocket", "")
	if p := r.problem(t); p.Status != 426 || r.header.Get("Upgrade") != "" { // a field with which curl and Node refuse the answer (RFC 9113, 8.2.2)
		t.Errorf("a WebSocket over HTTP/2: %+v %v", p, r.header)
	}
	r = s.do("PUT", "/v1/acme/rows/todos?key=d", `{}`, "If-Match", `"99"`)
	if p := r.problem(t); p.Status != 412 {
		t.Errorf("%+v", p)
	}
	r = s.do("GET", "/v1/acme/feed?c=todos&transport=websocket", "")
	if p := r.problem(t); p.Status != 426 || p.Code != "upgrade-required" {
		t.Errorf("%+v", p)
	}
	resp, err := s.client.Get(s.url + "/healthz")
	if err != nil || resp.ProtoMajor != 2 {
		t.Fatalf("the test is not over HTTP/2: %v", err)
	}
	resp.Body.Close()
	// The same listener takes WebSockets from those who speak HTTP/1.1.
	s.client.Transport.(*http.Transport).CloseIdleConnections()
	s.client = &http.Client{Transport: &http.Transport{
		DialContext:     s.client.Transport.(*http.Transport).DialContext,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}},
	}}
	socket := s.feed(websocket, "c=todos")
	if f := socket.next(); strings.Join(f.Transports, " ") != "websocket sse poll" {
		t.Errorf("%s", f)
	}
	socket.until("live")
	socket.close()
	st.close()
	s.sessions(0)
}
