package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatCameThroughIsTold(t *testing.T) {
	bubble(t, "upgrade-403", func(t *testing.T, b *bed) {
		if got := b.told(); got.Connections.Most != 0 || len(got.Requests) != 0 {
			t.Errorf("the question itself is counted: %+v", got)
		}
		time.Sleep(1500 * time.Millisecond)
		_, refused := b.upgrade()
		stream := b.events()
		b.must("GET", "/v1/acme/feed?c=todos", "")
		b.must("GET", "/v1/acme/feed?c=todos&transport=poll", "", "Accept", "*/*")
		b.must("POST", "/v1/acme/changes", "{}")
		b.must("DELETE", "/v1/acme/rows/todos?key=a", "")
		b.must("GET", "/client.js", "")
		got := b.told()
		if got.Name != "upgrade-403" || got.What == "" {
			t.Errorf("it does not say what it is: %+v", got)
		}
		for transport, want := range map[string]int{"websocket": 1, "sse": 1, "poll": 2, "post": 2, "other": 1} {
			if got.Counts[transport] != want {
				t.Errorf("%d requests by %s, want %d", got.Counts[transport], transport, want)
			}
		}
		if len(got.Requests) != 7 || *got.Requests[0] != (request{1500, "websocket", 403}) || *got.Requests[1] != (request{1500, "sse", 200}) {
			t.Errorf("the requests are %v", got.Requests)
		}
		if c := got.Connections; c.Open != 3 || c.Most != 3 {
			t.Errorf("there are %+v connections", c)
		}
		if status, _, err := b.ask("POST", "/_hop", ""); status != http.StatusNoContent || err != nil {
			t.Errorf("to forget was answered %d, %v", status, err)
		}
		refused.Close()
		stream.Body.Close()
		synctest.Wait()
		if got := b.told(); got.Connections.Open != 1 || got.Connections.Most != 3 || len(got.Requests) != 0 || got.Counts["post"] != 0 {
			t.Errorf("after it was forgotten there is %+v", got)
		}
		if status, _, _ := b.ask("PUT", "/_hop", ""); status != http.StatusMethodNotAllowed {
			t.Errorf("PUT was answered %d", status)
		}
	})
}

func TestListOfRequestsIsBoundedAndTheCountIsNot(t *testing.T) {
	r := newRecord(personality{})
	for range 3 * requestsMost {
		r.came("poll")(http.StatusOK)
	}
	if len(r.told.Requests) != requestsMost || r.told.Counts["poll"] != 3*requestsMost {
		t.Errorf("%d are listed, %d counted", len(r.told.Requests), r.told.Counts["poll"])
	}
}

// TestWhoLeavesIsLetGo: a server that keeps a session for each page that was ever open.
func TestWhoLeavesIsLetGo(t *testing.T) {
	for _, p := range personalities {
		t.Run(p.Name, func(t *testing.T) {
			bubble(t, p.Name, func(t *testing.T, b *bed) {
				streams := 0
				for _, request := range []string{
					upgradeRequest,
					"GET /v1/acme/feed?c=todos HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n",
					"GET /v1/acme/feed?c=todos&held=1h HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
				} {
					c, err := b.front.dial(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					io.WriteString(c, request)
					go io.Copy(io.Discard, c)
					time.Sleep(1500 * time.Millisecond)
					c.Close()
					time.Sleep(time.Second) // a pipe is noticed to be closed at the next word
					streams = b.server.count()
				}
				if b.hop.accepted.Load() != 0 {
					t.Errorf("%d connections are open", b.hop.accepted.Load())
				}
				short := p.upgrades == stripUpgrades || p.Name == "query-stripped" // some were answered at once
				if n := len(b.server.gone); n != streams && !short || n == 0 {
					t.Errorf("%d of %d requests have ended at the server", n, streams)
				}
			})
		})
	}
}

// TestCloseEndsEverything: a run of tests that leaves processes and ports behind.
func TestCloseEndsEverything(t *testing.T) {
	for _, p := range personalities {
		t.Run(p.Name, func(t *testing.T) {
			bubble(t, p.Name, func(t *testing.T, b *bed) {
				for _, request := range []string{
					upgradeRequest,
					"GET /v1/acme/feed?c=todos HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n",
					"GET /v1/acme/feed?c=todos&held=1h HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
					"POST /v1/acme/changes?held=1h HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\nhalf",
					"GET /",
				} {
					c, err := b.front.dial(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					io.WriteString(c, request)
					go io.Copy(io.Discard, c)
				}
				time.Sleep(2500 * time.Millisecond) // and the bubble ends, and looks for who is left
			})
		})
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	bubble(t, "plain", func(t *testing.T, b *bed) {
		var all []net.Conn
		for range connectionsMost + 1 {
			c, err := b.front.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
		synctest.Wait()
		s := socket{all[connectionsMost], bufio.NewReader(all[connectionsMost])}
		if got := s.hears(); got != "EOF" {
			t.Errorf("one too many hears %q", got)
		}
		for _, c := range all {
			c.Close()
		}
		synctest.Wait()
		b.must("GET", "/v1/acme/feed", "")
	})
}

// TestForeignPagesAreRefused: a page of the world that reaches a server without
// credentials, because the hop has replaced what the server checks.
func TestForeignPagesAreRefused(t *testing.T) {
	bubble(t, "plain", func(t *testing.T, b *bed) {
		for _, origin := range []string{"https://example.com", "null", "http://127.0.0.1.example.com", "http://localhost.example.com:80"} {
			if status, _, _ := b.ask("GET", "/v1/acme/feed", "", "Origin", origin); status != http.StatusForbidden {
				t.Errorf("a page of %s was answered %d", origin, status)
			}
		}
		for _, origin := range []string{"http://localhost:8080", "http://127.0.0.1:1", "http://[::1]:1"} {
			b.must("GET", "/v1/acme/feed", "", "Origin", origin)
		}
		n := b.server.count()
		for _, host := range []string{"example.com", "127.0.0.1.example.com:80", "10.0.0.1"} {
			req, _ := http.NewRequest("GET", "http://"+host+"/v1/acme/feed", nil)
			res, err := b.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if res.Body.Close(); res.StatusCode != http.StatusForbidden {
				t.Errorf("for the name %s it was answered %s", host, res.Status)
			}
		}
		if b.server.count() != n {
			t.Error("the server was asked")
		}
	})
}
