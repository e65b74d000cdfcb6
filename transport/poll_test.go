package transport_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
)

func TestPollAnswersAtOnceWhenThereIsSomething(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		at := s.put("a", `{}`).Cursor
		start := time.Now()
		if got := types(s.ask("c=todos")); got != "open change live" {
			t.Errorf("from the beginning: %q", got)
		}
		s.put("b", `{}`)
		if got := types(s.ask("c=todos&cursor=" + at)); got != "open change live" {
			t.Errorf("from a cursor: %q", got)
		}
		if got := types(s.ask("c=todos&cursor=zzzz-1")); got != "open reset change change live" {
			t.Errorf("with a reset: %q", got)
		}
		if got := types(s.ask("c=empty&cursor=zzzz-1")); got != "open reset live" {
			t.Errorf("with a reset of nothing: %q", got)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
}

func TestPollIsHeldUntilSomethingComesOrTheWaitIsOver(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		at := s.put("a", `{}`).Cursor
		for query, want := range map[string]time.Duration{"": 25 * time.Second, "&wait=0": 0, "&wait=3": 3 * time.Second, "&wait=55": 55 * time.Second} {
			start := time.Now()
			got := s.ask("c=todos&cursor=" + at + query)
			if took := time.Since(start); took != want || types(got) != "open live" || got[1].Cursor != at {
				t.Errorf("%q: %v after %v", query, got, took)
			}
		}
		start := time.Now()
		go func() {
			time.Sleep(2 * time.Second)
			s.put("lists:other", `{}`) // another collection
			time.Sleep(2 * time.Second)
			s.write(changes(put("b", `{}`), put("c", `{}`)))
		}()
		got := s.ask("c=todos&cursor=" + at)
		if took := time.Since(start); took != 4*time.Second || types(got) != "open change change live" {
			t.Errorf("after %v: %v", took, got)
		}
		// What moved elsewhere moves the cursor, when the wait is over.
		go func() {
			time.Sleep(2 * time.Second)
			s.put("lists:other", `{}`)
		}()
		at = got[3].Cursor
		if got = s.ask("c=todos&cursor=" + at); types(got) != "open live" || got[1].Cursor == at {
			t.Errorf("from %s: %v", at, got)
		}
	})
}

func TestPollInPiecesBringsAllRowsAndKeepsTransactionsWhole(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		for i := range 40 {
			var list []string
			for j := range i%7 + 1 {
				list = append(list, put(fmt.Sprintf("%d-%d", i, j), `{}`), put(fmt.Sprintf("lists:%d-%d", i, j), `{}`))
			}
			s.write(changes(list...))
		}
		for _, limit := range []int{1, 2, 5, 50, 1000, 10_000} {
			f := newFold(t)
			query := fmt.Sprintf("c=todos&c=lists&limit=%d", limit)
			for n := 0; !f.live; n++ {
				if n > 100 {
					t.Fatalf("limit %d: it does not end", limit)
				}
				q := query
				if f.cursor != "" {
					q += "&cursor=" + f.cursor
				}
				got := s.ask(q)
				last := got[len(got)-1]
				if last.Type != "live" && last.Type != "next" {
					t.Fatalf("limit %d: the last frame is %s", limit, last)
				}
				if n := strings.Count(types(got), "change"); n >= limit+14 || last.Type == "next" && n < limit {
					t.Errorf("limit %d: an answer of %d changes ends in %s", limit, n, last.Type)
				}
				f.apply(got...)
			}
			f.check(s, "todos")
			f.check(s, "lists")
		}
	})
}

// Tombstones that are forgotten leave a floor below which a snapshot can't be resumed.
func TestPollInPiecesEndsThoughRemovesAreForgotten(t *testing.T) {
	bubble(t, settings{hub: hub.Options{Tombstones: time.Hour}}, func(t *testing.T, s *site) {
		for i := range 30 {
			s.put(fmt.Sprint("old", i), `{}`)
		}
		s.put("gone", `{}`)
		s.remove("gone")
		for i := range 30 {
			s.put(fmt.Sprint("new", i), `{}`)
		}
		time.Sleep(3 * time.Hour)
		f := newFold(t)
		answers := 0
		for q := "c=todos&limit=5"; !f.live; q = "c=todos&limit=5&cursor=" + f.cursor {
			got := s.ask(q)
			f.apply(got...)
			if answers++; answers > 20 {
				t.Fatal("it does not end")
			}
			if strings.Contains(types(got), "reset") {
				t.Fatalf("answer %d: %s", answers, types(got))
			}
		}
		f.check(s, "todos")
		t.Logf("%d answers", answers)
	})
}

func TestPollThatNothingHasChangedForCostsNoBody(t *testing.T) {
	for _, end := range []string{"live", "next"} {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			s.put("a", `{}`)
			s.put("b", `{}`)
			path := "/v1/acme/feed?c=todos&wait=0"
			if end == "next" {
				path += "&limit=1"
			}
			first := s.do("GET", path, "")
			tag := first.header.Get("ETag")
			if tag == "" || !strings.Contains(first.body, `{"type":"`+end+`"`) {
				t.Fatalf("%q %s", tag, first.body)
			}
			for _, match := range []string{tag, `"x", ` + tag, strings.TrimPrefix(tag, "W/")} {
				again := s.do("GET", path, "", "If-None-Match", match)
				if again.status != 304 || again.body != "" || again.header.Get("ETag") != tag {
					t.Errorf("If-None-Match %s: %d %s %v", match, again.status, again.body, again.header)
				}
				for _, name := range []string{"Cache-Control", "Vary"} {
					if again.header.Get(name) != first.header.Get(name) {
						t.Errorf("%s of a 304 is %q, not %q", name, again.header.Get(name), first.header.Get(name))
					}
				}
			}
			if r := s.do("GET", path, "", "If-None-Match", `"other"`); r.status != 200 || r.header.Get("ETag") != tag {
				t.Errorf("another tag: %d %v", r.status, r.header)
			}
			s.put("a", `{"n":2}`)
			if r := s.do("GET", path, "", "If-None-Match", tag); r.status != 200 || r.header.Get("ETag") == tag {
				t.Errorf("after a change: %d %v", r.status, r.header)
			}
		})
	}
}

func TestOnlyPollsThatEndInNextMayBeCached(t *testing.T) {
	for configured, want := range map[string]string{"": "private, max-age=60", "public, s-maxage=300": "public, s-maxage=300"} {
		bubble(t, settings{options: transport.Options{PollCache: configured}}, func(t *testing.T, s *site) {
			s.put("a", `{}`)
			s.put("b", `{}`)
			next := s.do("GET", "/v1/acme/feed?c=todos&limit=1", "")
			if got := next.header.Get("Cache-Control"); got != want {
				t.Errorf("next: %q, want %q", got, want)
			}
			for _, name := range []string{"Accept", "Last-Event-ID", "Origin"} {
				if got := strings.Join(next.header.Values("Vary"), ","); !strings.Contains(got, name) {
					t.Errorf("Vary: %s lacks %s", got, name)
				}
			}
			live := s.do("GET", "/v1/acme/feed?c=todos&limit=2", "")
			if got := live.header.Get("Cache-Control"); got != "no-store" || live.header.Get("ETag") == "" {
				t.Errorf("live: %q", got)
			}
		})
	}
}

// An answer of many batches goes out as it is made.
func TestLargePollIsCutOffAnywhereAndStillCountsToItsLastLine(t *testing.T) {
	s := open(t, settings{})
	for i := range 6 {
		var list []string
		for j := range 100 {
			list = append(list, put(fmt.Sprintf("%d-%d", i, j), fmt.Sprintf(`{"pad":%q}`, strings.Repeat("x", 800))))
		}
		s.write(`{"atomic":false,` + changes(list...)[1:])
	}
	whole := s.do("GET", "/v1/acme/feed?c=todos&limit=10000", "")
	if whole.header.Get("ETag") == "" || whole.header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", whole.header)
	}
	for _, cut := range []int{10, 300, 5000, 200_000, 500_000} {
		f := newFold(t)
		part := whole.body[:cut]
		part = part[:strings.LastIndexByte(part, '\n')+1]
		for line := range strings.Lines(part) {
			f.apply(parse(t, strings.TrimSuffix(line, "\n")))
		}
		if f.live {
			t.Fatalf("%d of %d bytes are all", cut, len(whole.body))
		}
		for !f.live {
			q := "c=todos"
			if f.cursor != "" {
				q += "&cursor=" + f.cursor
			}
			f.apply(s.ask(q)...)
		}
		f.check(s, "todos")
	}
}

func TestClientThatLeavesAHeldPollLeavesNothing(t *testing.T) {
	s := open(t, settings{})
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/v1/acme/feed?c=todos&wait=55", nil)
		if err != nil {
			t.Fatal(err)
		}
		gone := make(chan error)
		go func() {
			resp, err := s.client.Do(req)
			if err == nil {
				resp.Body.Close()
			}
			gone <- err
		}()
		s.sessions(1)
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		s.sessions(0)
	}
}

// A proxy or client that reuses its connection asks again on it.
func TestPollKeepsItsConnection(t *testing.T) {
	s := open(t, settings{})
	s.put("a", `{}`)
	c, err := s.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(c)
	for i := range 20 {
		fmt.Fprintf(c, "GET /v1/acme/feed?c=todos&wait=0&limit=%d HTTP/1.1\r\nHost: localhost\r\n\r\n", i+1)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(i, err)
		}
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || bytes.Count(b, []byte("\n")) != 3 {
			t.Fatalf("%d: %d %s %v", i, resp.StatusCode, b, err)
		}
	}
}

func TestPollThatIsHeldIsToldThatTheServerStops(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feedLater(poll, "c=todos&wait=55")
		synctest.Wait()
		s.server.NotReady("draining")
		if err := s.hub.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		answer := <-st
		got := answer.rest()
		if types(got) != "open end" || got[1].Reason != "draining" || got[1].Retry == nil || answer.header.Get("ETag") == "" || answer.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%v %v", got, answer.header)
		}
	})
}

// feedLater is feed in a goroutine: a held poll has not even headers.
func (s *site) feedLater(transport, query string) chan *stream {
	c := make(chan *stream, 1)
	go func() { c <- s.feed(transport, query) }()
	return c
}
