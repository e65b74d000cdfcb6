package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPlainChangesNothingOfWhatAClientSees(t *testing.T) {
	bubble(t, "plain", func(t *testing.T, b *bed) {
		got := b.must("POST", "/v1/acme/changes?a=%2F&b", "hello", "Origin", "http://127.0.0.1")
		if want := "1: POST /v1/acme/changes?a=%2F&b host=127.0.0.1:7333 origin=http://127.0.0.1:7333 last= upgrade= body=hello"; got != want {
			t.Errorf("the server was asked %q, not %q", got, want)
		}
		res := b.events()
		if ct := res.Header.Get("Content-Type"); ct != "text/event-stream; charset=utf-8" {
			t.Errorf("the Content-Type is %q", ct)
		}
		lines := bufio.NewScanner(res.Body)
		elapsed := took(func() {
			for i := range 3 {
				lines.Scan()
				if got := lines.Text(); got != fmt.Sprintf("data: %d", i) {
					t.Errorf("event %d is %q", i, got)
				}
				lines.Scan()
			}
		})
		if elapsed != 2*time.Second {
			t.Errorf("three events came in %v, not as they were sent", elapsed)
		}
		res.Body.Close()
		if kind := <-b.server.gone; kind != "sse" {
			t.Errorf("%s has ended", kind)
		}
		s := b.upgraded()
		io.WriteString(s, "hi\n")
		if got := s.hears(); got != "heard hi" {
			t.Errorf("the client hears %q", got)
		}
		io.WriteString(s, "bye\n")
		if got := s.hears(); got != "EOF" {
			t.Errorf("after the server's end the client hears %q", got)
		}
	})
}

func TestStrippedUpgradeArrivesAsPlainGet(t *testing.T) {
	for _, name := range []string{"upgrade-stripped", "sse-held", "sse-held-headers", "sse-cut-3s", "sse-reset-16s", "cache"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, name, func(t *testing.T, b *bed) {
				res, s := b.upgrade()
				defer s.Close()
				if res.StatusCode != http.StatusOK {
					t.Errorf("it was answered %s", res.Status)
				}
				r := b.server.last()
				if r.Method != "GET" || r.Header.Get("Upgrade") != "" || strings.Contains(strings.ToLower(r.Header.Get("Connection")), "upgrade") {
					t.Errorf("the server was asked %s with %v", r.Method, r.Header)
				}
				if r.Header.Get("Sec-WebSocket-Key") == "" {
					t.Error("more was removed than the headers between neighbours")
				}
			})
		})
	}
}

func TestRefusedUpgradeNeverReachesTheServer(t *testing.T) {
	for _, name := range []string{"upgrade-403", "dies-after-900-bytes"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, name, func(t *testing.T, b *bed) {
				res, s := b.upgrade()
				defer s.Close()
				if res.StatusCode != http.StatusForbidden || b.server.count() != 0 {
					t.Errorf("answered %s after %d requests to the server", res.Status, b.server.count())
				}
				b.must("GET", "/v1/acme/feed", "")
			})
		})
	}
}

func TestHangingUpgradeIsNeverAnsweredNorClosed(t *testing.T) {
	bubble(t, "upgrade-hangs", func(t *testing.T, b *bed) {
		c, err := b.front.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, upgradeRequest)
		if s := (&socket{c, bufio.NewReader(c)}); !s.silent(24 * time.Hour) {
			t.Error("it was answered, or closed")
		}
		b.must("GET", "/v1/acme/feed", "")
		if b.server.count() != 1 {
			t.Error("the upgrade went to the server")
		}
	})
}

func TestKilledWebSocketWorksUntilItIsKilled(t *testing.T) {
	for name, life := range map[string]time.Duration{"websocket-killed-100": 100 * time.Millisecond, "websocket-killed-200": 200 * time.Millisecond, "websocket-killed-450": 450 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			bubble(t, name, func(t *testing.T, b *bed) {
				s := b.upgraded()
				elapsed := took(func() {
					io.WriteString(s, "hi\n")
					if got := s.hears(); got != "heard hi" {
						t.Errorf("the client hears %q", got)
					}
					if got := s.hears(); got != "EOF" {
						t.Errorf("then it hears %q", got)
					}
				})
				if elapsed != life {
					t.Errorf("it was killed after %v", elapsed)
				}
				if kind := <-b.server.gone; kind != "websocket" {
					t.Errorf("%s has ended at the server", kind)
				}
				res := b.events()
				time.Sleep(time.Minute)
				if all, err := io.ReadAll(res.Body); err != nil || strings.Count(string(all), "data") != 20 {
					t.Errorf("an event stream is harmed: %q %v", all, err)
				}
			})
		})
	}
}

func TestMuteDownKeepsEverythingFromTheClient(t *testing.T) {
	bubble(t, "websocket-mute-down", func(t *testing.T, b *bed) {
		s := b.upgraded()
		if !s.silent(time.Hour) {
			t.Error("something came down")
		}
		io.WriteString(s, "bye\n") // which the server hears: it closes its end
		<-b.server.gone
		if !s.silent(time.Hour) {
			t.Error("the client learns that the server is gone")
		}
		io.WriteString(s, "anybody?\n")
		if !s.silent(time.Hour) {
			t.Error("the client learns that the server is gone once it speaks")
		}
		s.Close()
	})
}

func TestMuteUpKeepsEverythingFromTheServer(t *testing.T) {
	bubble(t, "websocket-mute-up", func(t *testing.T, b *bed) {
		s := b.upgraded()
		for range 5 {
			io.WriteString(s, "hi\n")
			if got := s.hears(); got != "tick" {
				t.Fatalf("the client hears %q", got)
			}
		}
		s.Close()
		if kind := <-b.server.gone; kind != "websocket" {
			t.Errorf("%s has ended at the server", kind)
		}
	})
}

func TestHeldStreamComesWhenItIsOver(t *testing.T) {
	for name, headers := range map[string]time.Duration{"sse-held": 20 * time.Second, "sse-held-headers": 0} {
		t.Run(name, func(t *testing.T) {
			bubble(t, name, func(t *testing.T, b *bed) {
				start := time.Now()
				res := b.events()
				if d := time.Since(start); d != headers {
					t.Errorf("the headers came after %v", d)
				}
				first := make([]byte, 1)
				if _, err := io.ReadFull(res.Body, first); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(start); d != 20*time.Second {
					t.Errorf("the first byte came after %v", d)
				}
				rest, err := io.ReadAll(res.Body)
				if err != nil || strings.Count(string(first)+string(rest), "data") != 20 {
					t.Errorf("the stream is not whole: %q %v", rest, err)
				}
				if took(func() { b.must("GET", "/v1/acme/feed?held=1s", "") }) != time.Second {
					t.Error("a poll is held too")
				}
			})
		})
	}
}

func TestHeldStreamIsBounded(t *testing.T) {
	r := &heldReader{body: endless{}}
	if n, err := r.Read(make([]byte, 10)); n != 0 || err != errReset {
		t.Errorf("of an endless stream it gives %d bytes, %v", n, err)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestCutStreamEndsInTheMiddle(t *testing.T) {
	for name, life := range map[string]time.Duration{"sse-cut-3s": 3 * time.Second, "sse-reset-16s": 16 * time.Second} {
		t.Run(name, func(t *testing.T) {
			bubble(t, name, func(t *testing.T, b *bed) {
				res := b.events()
				var all []byte
				var err error
				if d := took(func() { all, err = io.ReadAll(res.Body) }); d != life {
					t.Errorf("it was cut after %v", d)
				}
				if err == nil {
					t.Error("it looks as if it had ended by itself")
				}
				if n := strings.Count(string(all), "data"); n < int(life.Seconds()) {
					t.Errorf("only %d events came before", n)
				}
				<-b.server.gone
				b.must("GET", "/v1/acme/feed?held=20s", "") // a poll may take longer
			})
		})
	}
}

func TestIdleConnectionIsKilledAndBusyOneLives(t *testing.T) {
	bubble(t, "idle-killed-5s", func(t *testing.T, b *bed) {
		res := b.events() // one each second
		if all, err := io.ReadAll(res.Body); err != nil || strings.Count(string(all), "data") != 20 {
			t.Errorf("a stream with events was killed: %q %v", all, err)
		}
		b.must("GET", "/v1/acme/feed?held=4s", "")
		if d := took(func() {
			if _, _, err := b.ask("POST", "/v1/acme/feed?held=1h", "x"); err == nil {
				t.Error("an answer came after an hour of silence")
			}
		}); d != 5*time.Second {
			t.Errorf("a silent exchange was killed after %v", d)
		}
		s := b.upgraded()
		for range 10 { // ticks in one direction are enough
			if got := s.hears(); got != "tick" {
				t.Fatalf("the client hears %q", got)
			}
		}
		s.Close()
		c, err := b.front.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		idle := &socket{c, bufio.NewReader(c)}
		if d := took(func() { idle.hears() }); d != 5*time.Second {
			t.Errorf("a connection without a request was closed after %v", d)
		}
	})
}

func TestNoMoreThan900BytesOfOneAnswerArrive(t *testing.T) {
	bubble(t, "dies-after-900-bytes", func(t *testing.T, b *bed) {
		for range 3 { // one answer's bytes, not a connection's
			if got := b.must("GET", "/v1/acme/feed?n=900", ""); len(got) != 900 {
				t.Errorf("of 900 bytes %d came", len(got))
			}
		}
		if _, got, err := b.ask("GET", "/v1/acme/feed?n=901", ""); err == nil || len(got) != 900 {
			t.Errorf("of 901 bytes %d came: %v", len(got), err)
		}
		if got := b.must("GET", "/client.js?n=5000", ""); len(got) != 5000 {
			t.Errorf("of a module's 5000 bytes %d came: there is no client", len(got))
		}
		res := b.events()
		if all, err := io.ReadAll(res.Body); err != nil || len(all) > 900 {
			t.Errorf("a short stream is harmed: %d bytes, %v", len(all), err)
		}
	})
}

func TestCacheReplaysOldAnswers(t *testing.T) {
	bubble(t, "cache", func(t *testing.T, b *bed) {
		first := b.must("GET", "/v1/acme/feed?c=todos", "")
		time.Sleep(10*time.Second - 1)
		if got := b.must("GET", "/v1/acme/feed?c=todos", ""); got != first {
			t.Errorf("the poll was answered anew: %q", got)
		}
		if got := b.must("GET", "/v1/acme/feed?c=todos&fresh=1", ""); got == first {
			t.Error("another URL has the same answer")
		}
		time.Sleep(time.Nanosecond)
		if got := b.must("GET", "/v1/acme/feed?c=todos", ""); got == first {
			t.Error("it is replayed for longer than 10 s")
		}
		n := b.server.count()
		b.must("POST", "/v1/acme/changes", "x")
		b.must("POST", "/v1/acme/changes", "x")
		if b.server.count() != n+2 {
			t.Error("a write was answered by the cache")
		}
		for range 2 {
			res, err := b.begin("GET", "/v1/acme/feed?events", "", "Accept", "text/event-stream")
			if err != nil {
				t.Fatal(err)
			}
			if d := took(func() { io.ReadAll(res.Body) }); d != 20*time.Second {
				t.Errorf("an event stream took %v: it was gathered or replayed", d)
			}
		}
	})
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache(time.Hour)
	for i := range 2 * answersMost {
		c.put(fmt.Sprint(i), answer{body: make([]byte, 64<<10)})
	}
	if len(c.answers) > answersMost || c.size > cacheMost || c.size != len(c.answers)*64<<10 {
		t.Errorf("it keeps %d answers of %d bytes", len(c.answers), c.size)
	}
	k := &keeper{}
	for range 3 {
		k.Write(make([]byte, bodyMost/2))
	}
	if !k.over || len(k.body) > bodyMost {
		t.Errorf("it keeps %d bytes of a body", len(k.body))
	}
}

func TestStrippedQueryNeverArrives(t *testing.T) {
	bubble(t, "query-stripped", func(t *testing.T, b *bed) {
		got := b.must("GET", "/v1/acme/feed?c=todos&cursor=a-1", "", "Last-Event-ID", "a-1")
		if !strings.Contains(got, "GET /v1/acme/feed host=") || !strings.Contains(got, "last= ") {
			t.Errorf("the server was asked %q", got)
		}
		if got := b.must("GET", "/v1/acme/rows/feed?key=a", ""); !strings.Contains(got, "/rows/feed?key=a") {
			t.Errorf("for rows the server was asked %q", got)
		}
		s := b.upgraded()
		s.Close()
		if r := b.server.last(); r.URL.RawQuery != "" {
			t.Errorf("for a WebSocket the server was asked %s", r.URL)
		}
	})
}

func TestStrippedLastEventIDLosesThePlaceUnlessItIsInTheName(t *testing.T) {
	bubble(t, "last-event-id-stripped", func(t *testing.T, b *bed) {
		got := b.must("GET", "/v1/acme/feed?c=todos@a-1&cursor=a-2&c=x%2Fy&last%5Fevent_id=a-3&wait=1", "", "Last-Event-ID", "a-4")
		if !strings.Contains(got, "/v1/acme/feed?c=todos@a-1&c=x%2Fy&wait=1 ") || !strings.Contains(got, "last= ") {
			t.Errorf("the server was asked %q", got)
		}
	})
}

func TestOneConnectionMakesOthersWaitInLine(t *testing.T) {
	bubble(t, "one-connection", func(t *testing.T, b *bed) {
		b.must("GET", "/v1/acme/feed", "") // its idle connection counts for nothing
		s := b.upgraded()
		order := make(chan int, 3)
		for i := range 3 {
			go func() {
				b.must("GET", "/v1/acme/feed?held=1s", "")
				order <- i
			}()
			synctest.Wait()
		}
		if d := took(func() { b.told() }); d != 0 {
			t.Errorf("what came through could be asked after %v only", d)
		}
		time.Sleep(time.Hour / 2)
		if n := b.server.count(); n != 2 {
			t.Errorf("%d requests went on beside a WebSocket", n-2)
		}
		s.Close()
		if d := took(func() {
			for want := range 3 {
				if got := <-order; got != want {
					t.Errorf("%d had the turn of %d", got, want)
				}
			}
		}); d != 3*time.Second {
			t.Errorf("three polls of 1 s took %v", d)
		}
		synctest.Wait()
		b.hop.line.mu.Lock()
		defer b.hop.line.mu.Unlock()
		if len(b.hop.line.hosts) != 0 {
			t.Error("the line remembers who is gone")
		}
	})
}

func TestWhoLeavesTheLineHoldsNobodyUp(t *testing.T) {
	bubble(t, "one-connection", func(t *testing.T, b *bed) {
		s := b.upgraded()
		waits, err := b.front.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(waits, upgradeRequest)
		synctest.Wait()
		waits.Close()
		synctest.Wait()
		s.Close()
		if d := took(func() { b.must("GET", "/v1/acme/feed", "") }); d > time.Second {
			t.Errorf("the next was held up for %v", d)
		}
	})
}

func TestLatencyDelaysEveryPieceAlikeAndKeepsTheirOrder(t *testing.T) {
	bubble(t, "latency-300", func(t *testing.T, b *bed) {
		if d := took(func() { b.must("GET", "/v1/acme/feed", "") }); d != 600*time.Millisecond {
			t.Errorf("the first request on a connection took %v", d)
		}
		if d := took(func() { b.must("GET", "/v1/acme/feed", "") }); d != 300*time.Millisecond {
			t.Errorf("the next request took %v", d)
		}
		if got := b.must("GET", "/v1/acme/feed?n=3000000", ""); len(got) != 3000000 {
			t.Errorf("of 3,000,000 bytes %d came", len(got))
		}
		res := b.events()
		if d := took(func() { // pieces are late, but not more and more
			all, err := io.ReadAll(res.Body)
			if want := "data: 0\n\ndata: 1\n\ndata: 2\n\n"; err != nil || !strings.HasPrefix(string(all), want) {
				t.Errorf("the events are %q, %v", all, err)
			}
		}); d != 20*time.Second {
			t.Errorf("20 s of events took %v", d)
		}
		s := b.upgraded()
		if d := took(func() {
			io.WriteString(s, "hi\n")
			if got := s.hears(); got != "heard hi" {
				t.Errorf("the client hears %q", got)
			}
		}); d != 300*time.Millisecond {
			t.Errorf("a word and its answer took %v", d)
		}
		if d := took(func() { s.Close(); <-b.server.gone; <-b.server.gone }); d != 150*time.Millisecond {
			t.Errorf("the server learned of the end after %v", d)
		}
	})
}

func TestBlackHoleSwallowsStreamsAfterTwoSecondsAndNoPolls(t *testing.T) {
	bubble(t, "black-hole", func(t *testing.T, b *bed) {
		for range 2 { // a new one works again
			s := b.upgraded()
			for range 2 {
				if got := s.hears(); got != "tick" {
					t.Errorf("the client hears %q", got)
				}
			}
			time.Sleep(time.Second)
			io.WriteString(s, "bye\n") // which nobody hears
			if !s.silent(time.Hour) {
				t.Error("something passed after 2 s")
			}
			if len(b.server.gone) != 0 {
				t.Error("the server heard the client, or of its end")
			}
			s.Close()
			<-b.server.gone
		}
		res := b.events()
		read := make(chan string)
		go func() {
			all, err := io.ReadAll(res.Body)
			read <- string(all) + fmt.Sprint(err)
		}()
		time.Sleep(time.Hour) // the server has ended it long ago
		select {
		case got := <-read:
			t.Errorf("the stream ended: %q", got)
		default:
		}
		res.Body.Close()
		if got := <-read; !strings.Contains(got, "data: 1") || strings.Contains(got, "data: 3") {
			t.Errorf("of the stream came %q", got)
		}
		if d := took(func() { b.must("GET", "/v1/acme/feed?held=50s", "") }); d != 50*time.Second {
			t.Errorf("a poll took %v", d)
		}
	})
}

var errTest = errors.New("test")

func TestHeldStreamThatBrokeOffIsNotWhole(t *testing.T) {
	r := &heldReader{body: io.MultiReader(strings.NewReader("part"), broken{})}
	if all, err := io.ReadAll(r); string(all) != "part" || err != errTest {
		t.Errorf("%q %v", all, err)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errTest }
