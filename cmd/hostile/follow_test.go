package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
	"github.com/tidemark-sync/tidemark/transport/follow"
)

// tidemark starts the real server on a log in memory, and returns its URL.
func tidemark(t *testing.T) string {
	t.Helper()
	h, err := hub.Open(t.Context(), feedtest.NewMemory(), hub.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := transport.New(transport.Options{Authorizer: transport.Loopback{}})
	s.Serve(h)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s}
	served := make(chan error, 1)
	go func() { served <- server.Serve(transport.Listen(l)) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(h.Drain(ctx), server.Shutdown(ctx), s.Wait(ctx)); err != nil {
			t.Error("stop the server:", err)
			server.Close()
		}
		<-served
	})
	return "http://" + l.Addr().String()
}

// write writes one change.
func write(url, change string) error {
	res, err := http.Post(url+"/v1/acme/changes", "application/json", strings.NewReader(`{"changes":[`+change+`]}`))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, b)
	}
	return err
}

// TestLongPollSurvivesEveryHop: users behind one of these networks for whom nothing
// works, or who end with rows that the server does not have.
func TestLongPollSurvivesEveryHop(t *testing.T) {
	t.Parallel()
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	var all sync.WaitGroup // not t.Parallel: they mostly wait, and may be more at once than there are cores
	defer all.Wait()
	follows := func(p personality) {
		t.Run(p.Name, func(t *testing.T) {
			direct := tidemark(t)
			f := &poller{url: open(t, p, direct), client: &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}, rows: make(map[string]string),
				polled: make(chan struct{}, 1), quiet: make(chan struct{}, 1)}
			defer f.client.CloseIdleConnections()
			want := make(map[string]string)
			written := make(chan error, 1)
			go func() { written <- history(t.Context(), direct, want, f) }()
			for end := time.Now().Add(50 * time.Second); f.rows["last"] == ""; {
				if time.Now().After(end) {
					t.Fatalf("it is at %s, with %d rows, after %d polls: %v", f.cursor, len(f.rows), f.polls, f.err)
				}
				f.poll(t.Context())
			}
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(f.rows, want) {
				t.Errorf("the follower has\n%v, the server\n%v", f.rows, want)
			}
		})
	}
	for _, p := range personalities {
		if p.Name != "query-stripped" { // the question never arrives: TestStrippedQueryFailsLoudly
			all.Go(func() { follows(p) })
		}
	}
}

// history writes 200 changes to 40 rows, ten with each poll, and one more that tells the
// follower that it has all; want is then what there is. In the middle it waits until
// the follower was told that there is nothing new: an answer that a cache replays.
func history(ctx context.Context, url string, want map[string]string, f *poller) error {
	for i := range 200 {
		if i%10 == 0 && !wait(ctx, f.polled) {
			return ctx.Err()
		}
		if i == 100 {
			select {
			case <-f.quiet: // of before
			default:
			}
			if !wait(ctx, f.quiet) {
				return ctx.Err()
			}
		}
		key, value := fmt.Sprint("k", i%40), fmt.Sprintf(`{"n":%d}`, i)
		change := fmt.Sprintf(`{"op":"put","collection":"todos","key":%q,"value":%s}`, key, value)
		want[key] = value
		if i%7 == 6 {
			change = fmt.Sprintf(`{"op":"remove","collection":"todos","key":%q}`, key)
			delete(want, key)
		}
		if err := write(url, change); err != nil {
			return err
		}
	}
	want["last"] = `{"n":200}`
	return write(url, `{"op":"insert","collection":"todos","key":"last","value":{"n":200}}`)
}

func wait(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}

func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // one that nobody has seen yet says the same
	}
}

// poller is a follower as somebody would write it in an hour.
type poller struct {
	url    string
	client *http.Client
	rows   map[string]string
	cursor string
	polls  int
	err    error // how the last poll ended

	polled, quiet chan struct{} // an answer has come; and it brought nothing
}

// poll asks once and takes every whole line of the answer, however it ends. After an
// answer that brought nothing it waits a little, as one must.
func (p *poller) poll(ctx context.Context) {
	p.polls++
	before := p.cursor
	p.err = p.ask(ctx)
	tell(p.polled)
	if p.cursor == before {
		tell(p.quiet)
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (p *poller) ask(ctx context.Context) error {
	query := url.Values{"c": {"todos"}, "wait": {"1"}}
	if p.cursor != "" {
		query.Set("c", "todos@"+p.cursor)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/v1/acme/feed?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	epoch := ""
	for lines := bufio.NewReader(res.Body); ; {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var f struct {
			Type, Epoch, Cursor, Op, Key string
			Seq                          uint64
			Value                        json.RawMessage
		}
		if err := json.Unmarshal(bytes.TrimSpace(line), &f); err != nil {
			return err
		}
		switch f.Type {
		case "open":
			epoch = f.Epoch
		case "change":
			if f.Op == "remove" {
				delete(p.rows, f.Key)
			} else {
				p.rows[f.Key] = string(f.Value)
			}
			p.cursor = fmt.Sprintf("%s-%d", epoch, f.Seq)
		case "live", "next":
			p.cursor = f.Cursor
		}
	}
}

// TestStrippedQueryFailsLoudly: a client that waits for ever for a feed that nobody
// asked for.
func TestStrippedQueryFailsLoudly(t *testing.T) {
	t.Parallel()
	to := open(t, named(t, "query-stripped"), tidemark(t))
	got, err := say(t, to, "GET /v1/acme/feed?c=todos HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
	if err != nil || !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, "bad-request") {
		t.Errorf("it was answered %q, %v", got, err)
	}
}

// TestEveryTransportOfTheRealServerPassesAHarmlessHop: a bed whose control is itself a
// hostile network.
func TestEveryTransportOfTheRealServerPassesAHarmlessHop(t *testing.T) {
	t.Parallel()
	direct := tidemark(t)
	if err := write(open(t, named(t, "plain"), direct), `{"op":"insert","collection":"todos","key":"a","value":{"n":1}}`); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", "latency-300", "last-event-id-stripped", "one-connection", "idle-killed-5s"} {
		for _, way := range []string{follow.WebSocket, follow.SSE, follow.Poll} {
			t.Run(name+"/"+way, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				o := follow.Options{URL: open(t, named(t, name), direct), Tenant: "acme", Transport: way, Collections: []follow.Collection{{Name: "todos"}}}
				c, err := follow.Dial(ctx, o)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				var rows follow.Rows
				ticks := 0 // a poll has none
				for !rows.Live() || ticks == 0 && way != follow.Poll {
					f, err := c.Next(ctx)
					if err != nil {
						t.Fatal(err)
					}
					rows.Apply(f)
					if f.Type == "tick" {
						ticks++
					}
				}
				if _, ok := rows.Get("todos", "a"); !ok {
					t.Error("the row has not come")
				}
			})
		}
	}
}
