package transport_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	ws "github.com/coder/websocket"
)

// hostile are names of tenants that somebody might mistake for something else, or for each other.
var hostile = []string{
	"a", "A", "a-", "a_", "-a", "_", "-", "0", "00", "null", "undefined", "constructor", "__proto__", "v1", "feed", "rows", "changes", "healthz",
	strings.Repeat("a", 63), strings.Repeat("a", 64),
}

// wiretap hears every byte that comes to a tenant, and the log hears its own.
type wiretap struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (w *wiretap) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.Write(b)
}

func (w *wiretap) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.String()
}

// canary is a word that is in all that a tenant writes, and in nothing else.
func canary(tenant int) string { return fmt.Sprintf("CANARY%02dOF", tenant) }

// TestNoByteCrossesBetweenTenants lets twenty tenants read and write at random, with the same
// collections, keys, ids and clients, and try what is each other's: paths, cursors, pages, tags, tickets. Nobody
// may hear another's canary, in a feed, a page, an answer, an error or the log.
func TestNoByteCrossesBetweenTenants(t *testing.T) {
	logged := &wiretap{}
	o := guarded(t)
	o.options.Logger = slog.New(slog.NewTextHandler(logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := open(t, o)
	heard := make([]*wiretap, len(hostile))
	tokens := make([]string, len(hostile))
	for i, tenant := range hostile {
		heard[i] = &wiretap{}
		claims := []any{"tenant", tenant, "sub", "user"}
		if i%2 == 0 {
			claims = append(claims, "jti", canary(i)+"jti")
		}
		tokens[i] = token(t, time.Hour, claims...)
	}
	var mu sync.Mutex
	var stolen []string // cursors, tags and tickets that anybody got
	steal := func() string {
		mu.Lock()
		defer mu.Unlock()
		if len(stolen) == 0 {
			return "x"
		}
		return stolen[rand.IntN(len(stolen))]
	}
	const steps = 150
	var all sync.WaitGroup
	for i, tenant := range hostile {
		ask := func(method, path, body string, headers ...string) (int, http.Header, string) {
			req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader(body))
			if err != nil {
				return 0, nil, "" // a stolen word that makes no path
			}
			req.Header.Set("Authorization", "Bearer "+tokens[i])
			for h := 0; h < len(headers); h += 2 {
				req.Header.Set(headers[h], headers[h+1])
			}
			resp, err := s.client.Do(req)
			if err != nil {
				return 0, nil, ""
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			fmt.Fprintln(heard[i], resp.Header, string(b))
			mu.Lock()
			if len(stolen) > 500 {
				stolen = stolen[250:]
			}
			if tag := resp.Header.Get("ETag"); tag != "" {
				stolen = append(stolen, tag)
			}
			for _, name := range []string{`"cursor":"`, `"next":"`, `"ticket":"`} {
				if _, after, ok := strings.Cut(string(b), name); ok {
					stolen = append(stolen, after[:strings.IndexByte(after, '"')])
				}
			}
			mu.Unlock()
			return resp.StatusCode, resp.Header, string(b)
		}
		value := func() string { return fmt.Sprintf(`{"x":"%s","n":%d}`, canary(i), rand.IntN(3)) }
		all.Go(func() { // a socket that follows all the time, and writes
			c, _, err := ws.Dial(t.Context(), s.url+"/v1/"+tenant+"/feed?c=todos&c=shared", &ws.DialOptions{HTTPClient: s.client, HTTPHeader: http.Header{"Authorization": {"Bearer " + tokens[i]}}})
			if err != nil {
				t.Errorf("%s: %v", tenant, err)
				return
			}
			defer c.CloseNow()
			var reading sync.WaitGroup
			reading.Go(func() {
				for {
					_, b, err := c.Read(t.Context())
					if err != nil {
						return
					}
					heard[i].Write(b)
				}
			})
			for n := range steps / 3 {
				frame := fmt.Sprintf(`{"type":"write","id":"w%d","client":"c","changes":[{"id":"ws%d","op":"put","collection":"shared","key":"k%d","value":%s}]}`, n, n, rand.IntN(9), value())
				if c.Write(t.Context(), ws.MessageText, []byte(frame)) != nil {
					break
				}
			}
			time.Sleep(100 * time.Millisecond) // what is under way may come
			c.CloseNow()
			reading.Wait()
		})
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), uint64(time.Now().UnixNano())))
			for n := range steps {
				own, other := "/v1/"+tenant, "/v1/"+hostile[r.IntN(len(hostile))]
				switch r.IntN(12) {
				case 0, 1, 2:
					ask("POST", own+"/changes", fmt.Sprintf(`{"client":"c","changes":[{"id":"m%d","op":"put","collection":"todos","key":"k%d","value":%s}]}`, n, r.IntN(9), value()))
				case 3:
					ask("PUT", own+"/rows/"+canary(i)+"?key="+canary(i), value(), "Idempotency-Key", "same")
				case 4:
					ask("DELETE", fmt.Sprintf("%s/rows/todos?key=k%d", own, r.IntN(9)), "")
				case 5:
					ask("GET", own+"/feed?c=todos&c=shared&wait=0&limit=2&cursor="+url.QueryEscape(steal()), "")
				case 6:
					ask("GET", own+"/feed?c=todos&wait=0", "", "If-None-Match", steal(), "Last-Event-ID", steal())
				case 7:
					ask("GET", own+"/rows/shared?limit=2&after="+url.QueryEscape(steal()), "")
				case 8:
					ask("POST", own+"/tickets", "")
				case 9:
					status, _, body := ask("GET", own+"/feed?c=todos&c=shared&wait=0&ticket="+url.QueryEscape(steal()), "")
					if status == 200 && strings.Contains(body, "CANARY") && !strings.Contains(body, canary(i)) {
						t.Errorf("%s got in by another's ticket", tenant)
					}
				default:
					if other == own {
						continue
					}
					for _, e := range [][3]string{
						{"GET", other + "/feed?c=todos&wait=0"}, {"GET", other + "/rows/shared"}, {"GET", other + "/rows/todos?key=k1"}, {"POST", other + "/tickets"},
						{"POST", other + "/changes", `{"changes":[{"op":"insert","collection":"todos","key":"k1","value":{}}]}`}, {"GET", own + "/..%2f" + other[4:] + "/rows/todos"}, {"GET", own + "%2f.." + other + "/rows/todos"},
					} {
						if status, _, body := ask(e[0], e[1], e[2]); status == 200 {
							t.Errorf("%s: %s %s: 200 %s", tenant, e[0], e[1], body)
						}
					}
				}
			}
		})
	}
	all.Wait()
	s.sessions(0)
	for i, tenant := range hostile {
		text := heard[i].String()
		if !strings.Contains(text, canary(i)) {
			t.Errorf("%s does not even hear itself", tenant)
		}
		for j := range hostile {
			if at := strings.Index(text, canary(j)); i != j && at >= 0 {
				t.Errorf("%s hears of %s: …%s…", tenant, hostile[j], text[max(0, at-200):min(len(text), at+100)])
			}
		}
	}
	if strings.Contains(logged.String(), "CANARY") {
		t.Errorf("the log holds what a tenant wrote:\n%s", logged.String())
	}
}
