//go:build linux

package transport_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/transport"
)

// counted is a site that counts the connections which net/http reads.
func counted(t *testing.T) (s *site, byNetHTTP *atomic.Int64) {
	byNetHTTP = new(atomic.Int64)
	return open(t, settings{state: func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			byNetHTTP.Add(1)
		}
	}}), byNetHTTP
}

// says sends a text in parts on a connection of its own, and then, if it is answered, asks once more. It returns what
// both came to, without what is another each time.
func (s *site) says(parts ...string) string {
	c := s.caller()
	defer c.conn.Close()
	for i, part := range parts {
		if i > 0 {
			time.Sleep(5 * time.Millisecond)
		}
		if _, err := io.WriteString(c.conn, part); err != nil {
			break // it was refused before the end
		}
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	method, _, _ := strings.Cut(parts[0], " ")
	answer := told(c.in, method)
	_, _ = io.WriteString(c.conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") // which may be closed
	return answer + "\n" + told(c.in, "GET")
}

// ownText is what is another in each answer.
var ownText = regexp.MustCompile(`"session":"[^"]*"|"epoch":"[^"]*"|"cursor":"[^"]*"|W/"[^"]*"`)

func told(in *bufio.Reader, method string) string {
	r, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		return "nothing"
	}
	body, err := io.ReadAll(r.Body)
	if r.Header.Get("Date") != "" {
		r.Header.Set("Date", "now")
	}
	text := fmt.Sprintln(r.Proto, r.Status, r.ContentLength, r.TransferEncoding, r.Close, err != nil && !r.Close) // what is cut off may be reset
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		text += fmt.Sprintln(name, r.Header[name])
	}
	return ownText.ReplaceAllString(text+string(body), "")
}

// Whatever a client sends first, it is answered as net/http answers it.
func TestAnOddFirstRequestIsReadInOneWayOnly(t *testing.T) {
	shortly := settings{header: time.Second}
	door := open(t, shortly)
	shortly.listen = transport.Listen
	plain := open(t, shortly)
	compare := func(t interface{ Errorf(string, ...any) }, parts ...string) {
		var got, want string
		var both sync.WaitGroup
		both.Go(func() { got = door.says(parts...) })
		both.Go(func() { want = plain.says(parts...) })
		if both.Wait(); got != want {
			t.Errorf("%q\n is answered\n%s\n and by net/http\n%s", parts, got, want)
		}
	}
	const usual = "GET /v1/acme/feed?c=todos&wait=0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
	var all sync.WaitGroup
	few := make(chan struct{}, 8)
	with := func(line string) string { return strings.TrimSuffix(usual, "\r\n") + line + "\r\n\r\n" }
	for _, text := range []string{
		usual, usual + usual, usual + "GE", "\r\n" + usual, strings.ReplaceAll(usual, "\r\n", "\n"),
		strings.Replace(usual, "Host: localhost", "Host:localhost", 1), strings.Replace(usual, "Host: localhost", "Host:  localhost ", 1), strings.Replace(usual, "Host: localhost", "host: localhost", 1),
		strings.Replace(usual, "Host: localhost", "Host: example.com", 1), strings.Replace(usual, "Host: localhost", "Host: lo cal", 1), strings.Replace(usual, "Host: localhost", "Host: a/b", 1),
		strings.Replace(usual, "Host: localhost", "Host:", 1), strings.Replace(usual, "Host: localhost\r\n", "", 1), with("Host: localhost"), strings.Replace(usual, "Host:", "Host :", 1),
		strings.Replace(usual, "GET", "get", 1), strings.Replace(usual, "GET", "HEAD", 1), strings.Replace(usual, "GET", "DELETE", 1), strings.Replace(usual, "GET ", "GET  ", 1),
		strings.Replace(usual, "1.1", "1.0", 1), strings.Replace(usual, "1.1", "1.2", 1), strings.Replace(usual, "1.1", "2.0", 1), strings.Replace(usual, " HTTP/1.1", "", 1),
		strings.Replace(usual, "/v1", "http://localhost/v1", 1), strings.Replace(usual, "acme", "a%63me", 1), strings.Replace(usual, "acme", "a%2fb", 1), strings.Replace(usual, "acme", "a b", 1),
		strings.Replace(usual, "acme", "a?b", 1), strings.Replace(usual, "acme/", "/", 1), strings.Replace(usual, "feed?", "feed/?", 1), strings.Replace(usual, "feed?", "feed/", 1), strings.Replace(usual, "feed?", "feeds?", 1),
		strings.Replace(usual, "feed?", "feed#?", 1), strings.Replace(usual, "todos", "%zz", 1), strings.Replace(usual, "todos", "tod\xffos", 1), strings.Replace(usual, "todos", "..", 1), strings.Replace(usual, "c=todos&", "", 1),
		strings.Replace(usual, "wait=0", "wait=x", 1), strings.Replace(usual, "wait=0", "wait=0&transport=websocket", 1), strings.Replace(usual, "wait=0", "wait=0&ticket=none", 1), strings.Replace(usual, "wait=0", "wait=0;limit=0", 1),
		strings.Replace(usual, "todos", strings.Repeat("c", 9000), 1), with("X: " + strings.Repeat("x", 5000)), with("X: " + strings.Repeat("x", 20_000)), with(strings.Repeat("X: x\r\n", 101) + "Y: y"),
		with("Connection: close"), with("Connection: keep-alive, close"), with("Connection: Upgrade"), with("Connection: Upgrade\r\nUpgrade: h2c"), with("Upgrade: websocket"), with("Connection: Upgrade\r\nUpgrade: websocket"),
		strings.Replace(with("Connection: Upgrade\r\nUpgrade: websocket"), "wait=0", "wait=0&transport=poll", 1), strings.Replace(with("Connection: Upgrade\r\nUpgrade: websocket"), "wait=0", "wait=0&t%72ansport=poll", 1),
		strings.Replace(with("Connection: Upgrade\r\nUpgrade: websocket"), "wait=0", "wait=0;limit=0", 1), strings.Replace(with("Connection: Upgrade\r\nUpgrade: websocket"), "wait=0", "wait=%zz", 1),
		with("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 12"),
		with("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x"),
		with("Content-Length: 0"), with("Content-Length: 2") + "{}", with("Content-Length: x"), with("Content-Length: 1\r\nContent-Length: 2"), with("Transfer-Encoding: chunked") + "0\r\n\r\n", with("Transfer-Encoding: x"),
		with("Expect: 100-continue"), with("Expect: x"), with("Te: trailers"), with("Trailer: X"), with(" folded"), with("X: a\r\n b"), with("X"), with(": x"), with("X Y: z"), with("X\t: z"), with("X: \x00"), with("X: \x7f"), with("X: \xff"), with("X: a\tb"), with("X: a\rb"), with("X: a\nY: b"),
		with("X:"), with("X_Y: z"), with("X!: z"), with("Origin: http://evil.example"), with("Origin: http://localhost:3000"), with("Sec-Fetch-Site: cross-site"), with("If-None-Match: *"), with("Accept-Encoding: gzip"), with("Last-Event-ID: x-1"),
		with("Authorization: Bearer x"), with("Cookie: tidemark=x; tidemark=y"),
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET /v1/acme/rows/todos HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET /v1/feed HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET /v1/a/b/feed HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET ", "", "\r\n\r\n", "POST /v1/acme/changes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
	} {
		few <- struct{}{}
		all.Go(func() {
			defer func() { <-few }()
			compare(t, text)
			if n := len(text) / 2; n > 0 && n < 1000 {
				compare(t, text[:n], text[n:])
			}
		})
	}
	all.Wait()
	if testing.Short() || t.Failed() {
		return
	}
	rapid.Check(t, func(t *rapid.T) {
		pick := func(what string, from ...string) string { return rapid.SampledFrom(from).Draw(t, what) }
		end := func() string { return pick("end", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "") }
		text := pick("method", "GET", "GET", "GET", "POST", "G") + pick("space", " ", " ", "  ", "\t") + pick("target", "/v1/acme/feed?c=todos&wait=0", "/v1/acme/feed", "/v1/acme/feed/c=todos&wait=0", "/v1//feed?c=a&wait=0", "/v1/a?/feed", "*") +
			pick("version", " HTTP/1.1", " HTTP/1.1", " HTTP/1.1", " HTTP/1.0", " HTTP/1.1 ", "") + end()
		for range rapid.IntRange(0, 4).Draw(t, "lines") {
			text += pick("line", "Host: localhost", "Host: localhost", "Host: localhost", "X: y", "Connection: close", "Content-Length: 0", "Upgrade: websocket", "Connection: Upgrade", "Transfer-Encoding: chunked", " x", "x", ":", "X:\x01", "If-None-Match: *") + end()
		}
		text += pick("last", "\r\n", "\r\n", "\r\n\r\n", "\n\n", "\r\n\r\nGET")
		at := rapid.IntRange(0, len(text)).Draw(t, "at")
		compare(t, text[:at], text[at:])
	})
}

func TestFeedsThatComeBackAtOnceDoNotWaitForAGoroutineEach(t *testing.T) {
	s, n := counted(t)
	for _, transport := range transports {
		f := s.feed(transport, "c=todos&wait=0")
		f.until("live")
		f.close()
	}
	if n.Load() != 0 {
		t.Errorf("net/http has read %d of 3 connections", n.Load())
	}
}

func TestConnectionsThatAskNothingHoldNoGoroutineAndAreClosedInTheEnd(t *testing.T) {
	s := open(t, settings{header: time.Second})
	before := runtime.NumGoroutine()
	var all []*caller
	for range 50 {
		all = append(all, s.caller())
	}
	time.Sleep(50 * time.Millisecond)
	if n := runtime.NumGoroutine() - before; n > 10 {
		t.Errorf("50 connections hold %d goroutines", n)
	}
	for _, c := range all {
		_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.conn.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("%d, %v", n, err)
		}
	}
}

func TestAStoppingServerWaitsForNobodyWhoAsksNothing(t *testing.T) {
	s, n := counted(t)
	c := s.caller()
	s.follow(sse, "c=todos").until("live") // so the one before was let in, too
	if n.Load() != 0 {
		t.Errorf("net/http has read %d connections", n.Load())
	}
	began := time.Now()
	s.close()
	if _, err := c.conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open")
	}
	if took := time.Since(began); took > 4*time.Second { // net/http gives a new connection 5 s
		t.Errorf("it took %v", took)
	}
}

// TestARefusalAtTheDoorLeavesTheConnectionAsItWas: with time for the next request, which may be any, and in nobody's way.
func TestARefusalAtTheDoorLeavesTheConnectionAsItWas(t *testing.T) {
	s := open(t, settings{idle: time.Minute, header: 500 * time.Millisecond})
	refused := func() *caller {
		c := s.caller()
		c.send("GET /v1/acme/feed?c=todos&wait=x HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if r, _ := c.answer(); r.StatusCode != 400 || r.Close {
			t.Fatal(r.Status, r.Close)
		}
		return c
	}
	c := refused()
	_ = c.conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.in.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("it was closed: %v", err)
	}
	_ = c.conn.SetReadDeadline(time.Time{})
	for _, path := range []string{"/healthz", "/v1/acme/feed?c=todos&wait=0", "/healthz"} {
		c.send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if r, _ := c.answer(); r.StatusCode != 200 {
			t.Errorf("%s: %s", path, r.Status)
		}
	}
	refused()
	began := time.Now()
	s.close()
	if took := time.Since(began); took > 4*time.Second { // net/http waits 5 s for who has not asked anything
		t.Errorf("the server took %s to stop", took)
	}
}

func TestAPollOverAUnixSocketIsAnsweredAsByNetHTTP(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(context.Context) (net.Conn, error) { return net.Dial("unix", path) }
	s := start(t, settings{}, l, dial, "http://localhost")
	s.put("a", `{}`)
	c, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /v1/acme/feed?c=todos&wait=0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(r.Body); r.StatusCode != 200 || err != nil || !strings.Contains(string(body), `"key":"a"`) {
		t.Errorf("%s %s %v", r.Status, body, err)
	}
}
