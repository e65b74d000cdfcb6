package transport_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
)

// keeping is a log that keeps every group.
type keeping struct {
	*feedtest.Memory
	before func() error // static; called before the history is read
	hole   *feed.HistoryHole

	mu     sync.Mutex
	groups [][]byte // guarded by mu
}

func (k *keeping) Append(ctx context.Context, after feed.Position, group []byte) (feed.Position, error) {
	p, err := k.Memory.Append(ctx, after, group)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.groups = append(k.groups, append([]byte(nil), group...))
	return p, err
}

func (k *keeping) History(_ context.Context, r feed.HistoryRange, fn func(feed.HistoryStep) error) (feed.Seq, error) {
	if k.before != nil {
		if err := k.before(); err != nil {
			return 0, err
		}
	}
	k.mu.Lock()
	groups := k.groups
	k.mu.Unlock()
	for _, b := range groups {
		g, _, err := feed.DecodeGroup(b)
		if err == nil && g.Last() >= r.From {
			err = fn(feed.HistoryStep{Group: g, Place: g.Last(), Hole: k.hole})
		}
		if err != nil {
			return 1, err
		}
	}
	return 1, nil
}

// historySite is a server on a log that keeps a history; requests go to its handler.
type historySite struct {
	t      testing.TB
	hub    *hub.Hub
	server *transport.Server
}

func openHistory(t testing.TB, log feed.Log, o transport.Options) *historySite {
	t.Helper()
	h, err := hub.Open(t.Context(), log, hub.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Drain(context.Background()) })
	if o.Authorizer == nil {
		o.Authorizer = transport.Loopback{}
	}
	s := &historySite{t, h, transport.New(o)}
	s.server.Serve(h)
	return s
}

func (s *historySite) do(method, path, body string) response {
	r := httptest.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	w := httptest.NewRecorder()
	s.server.ServeHTTP(w, r)
	return response{w.Code, w.Header(), w.Body.String()}
}

func (s *historySite) write(list ...string) {
	s.t.Helper()
	body := strings.Replace(changes(list...), "{", `{"client":"c-81",`, 1)
	if r := s.do("POST", "/v1/acme/changes", body); r.status != 200 {
		s.t.Fatal(r.status, r.body)
	}
}

type historyPage struct {
	Changes []struct {
		Seq                     uint64
		Collection, Op, Key, At string
		Value                   json.RawMessage
		Epoch                   string
		By                      *struct{ Client, ID string }
		Type                    *string
		More                    *bool
	}
	Begins uint64
	Next   string
	Holes  []struct{ First, Last uint64 }
}

func (s *historySite) page(query string) historyPage {
	s.t.Helper()
	r := s.do("GET", "/v1/acme/history?"+query, "")
	var p historyPage
	if r.status != 200 || json.Unmarshal([]byte(r.body), &p) != nil || p.Changes == nil {
		s.t.Fatalf("%s: %d %s", query, r.status, r.body)
	}
	if r.header.Get("Content-Type") != "application/json" || r.header.Get("Cache-Control") != "no-store" {
		s.t.Errorf("%s: %v", query, r.header)
	}
	return p
}

// tell says what a page holds, one word a change.
func (p historyPage) tell() string {
	var words []string
	for _, c := range p.Changes {
		words = append(words, fmt.Sprintf("%d:%s/%s", c.Seq, c.Collection, c.Key))
	}
	return strings.Join(words, " ")
}

func TestAnAuditorSeesWhoDidWhatAndWhenUncompacted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openHistory(t, &keeping{Memory: feedtest.NewMemory()}, transport.Options{})
		start := time.Now().UTC()
		s.write(put("a", `{"n":1}`), put("lists:ä\"", `{"html":"<&>\u2028"}`))
		time.Sleep(time.Minute) // in the bubble
		s.write(put("a", `{"n":2}`))
		s.write(strings.Replace(remove("a"), "{", `{"id":"m-7",`, 1))
		time.Sleep(time.Minute)
		s.write(put("a", `{"n":3}`))

		p := s.page("")
		if p.Begins != 1 || p.Next != "" || p.Holes != nil {
			t.Errorf("%+v", p)
		}
		if got := p.tell(); got != `1:todos/a 2:lists/ä" 3:todos/a 4:todos/a 5:todos/a` {
			t.Error(got)
		}
		third := p.Changes[3]
		if third.Op != "remove" || third.Value != nil || third.By == nil || third.By.Client != "c-81" || third.By.ID != "m-7" ||
			third.Epoch != string(s.hub.Epoch()) || third.At != start.Add(time.Minute).Format("2006-01-02T15:04:05.000Z") || third.Type != nil || third.More != nil {
			t.Errorf("%+v", third)
		}
		if c := p.Changes[1]; string(c.Value) != "{\"html\":\"<&>\u2028\"}" || c.Op != "insert" {
			t.Errorf("%+v", c)
		}
		at := func(d time.Duration) string { return url.QueryEscape(start.Add(d).Format(time.RFC3339Nano)) }
		east := url.QueryEscape(start.Add(time.Minute).In(time.FixedZone("", 7200)).Format(time.RFC3339))
		for query, want := range map[string]string{
			"c=todos":                      "1:todos/a 3:todos/a 4:todos/a 5:todos/a",
			"c=lists&c=none":               `2:lists/ä"`,
			"c=lists&key=%C3%A4%22":        `2:lists/ä"`,
			"c=lists&key=a":                "",
			"from=2&to=3":                  `2:lists/ä" 3:todos/a`,
			"from=6":                       "",
			"from=9007199254740991":        "",
			"from=" + at(time.Second):      "3:todos/a 4:todos/a 5:todos/a",
			"from=" + east + "&to=" + east: "3:todos/a 4:todos/a",
			"from=" + at(time.Minute+1):    "5:todos/a", // a microsecond later
			"to=" + at(time.Minute-1):      `1:todos/a 2:lists/ä"`,
			"from=4&to=" + at(time.Minute): "4:todos/a",
			"to=1969-12-31T00:00:00Z":      "",
			"limit=10000&after=3":          "4:todos/a 5:todos/a",
			"from=3&after=1":               "3:todos/a 4:todos/a 5:todos/a",
		} {
			if got := s.page(query); got.tell() != want || got.Begins != 1 {
				t.Errorf("%s: %+v", query, got)
			}
		}
		if err := s.hub.Drain(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestHistoryComesInPages(t *testing.T) {
	log := &keeping{Memory: feedtest.NewMemory(), hole: &feed.HistoryHole{First: 7, Last: 9}}
	s := openHistory(t, log, transport.Options{})
	value := `{"v":"` + strings.Repeat("v", 1000) + `"}`
	for i := range 30 {
		var list []string
		for k := range 100 {
			list = append(list, put(fmt.Sprint(i, "-", k), value))
		}
		s.write(list...)
	}
	seen := uint64(0)
	for pages, after := 0, ""; ; pages++ {
		p := s.page("limit=701&after=" + after)
		if len(p.Changes) > 701 || len(p.Holes) == 0 || p.Holes[0].First != 7 || p.Holes[0].Last != 9 {
			t.Fatalf("%d changes, %v", len(p.Changes), p.Holes)
		}
		for _, c := range p.Changes {
			if seen++; c.Seq != seen {
				t.Fatalf("%d instead of %d", c.Seq, seen)
			}
		}
		if after = p.Next; after == "" {
			if pages != 4 {
				t.Errorf("%d pages", pages+1)
			}
			break
		}
	}
	if seen != 3000 {
		t.Errorf("%d changes", seen)
	}
	if p := s.page(""); len(p.Changes) != 1000 {
		t.Errorf("by default a page has %d changes", len(p.Changes))
	}
}

func TestAMalformedQuestionForHistoryIsToldWhatToDo(t *testing.T) {
	s := openHistory(t, &keeping{Memory: feedtest.NewMemory()}, transport.Options{})
	many := strings.Repeat("c=a&", feed.MaxCollections+1)
	for query, code := range map[string]string{
		"c=":                             "bad-name",
		"c=a//b":                         "bad-name",
		"c=todos@k3f9a1-1":               "bad-name",
		"c=todos&key=":                   "bad-name",
		"c=todos&key=%0a":                "bad-name",
		"c=todos&key=a&key=b":            "bad-request",
		"key=a":                          "bad-request",
		"c=todos&c=lists&key=a":          "bad-request",
		"from=":                          "bad-request",
		"from=0":                         "bad-request",
		"from=-1":                        "bad-request",
		"from=%2B1":                      "bad-request",
		"from=01":                        "bad-request",
		"from=9007199254740992":          "bad-request",
		"from=yesterday":                 "bad-request",
		"from=2026-01-31":                "bad-request",
		"to=2026-01-31T12:00:00":         "bad-request",
		"from=2026-01-31T12:00:00+02:00": "bad-request", // the + is a space
		"to=0":                           "bad-request",
		"from=2&to=1":                    "bad-request",
		"from=2026-01-31T12:00:00Z&to=2026-01-31T11:00:00Z": "bad-request",
		"from=1&from=2":   "bad-request",
		"to=1&to=2":       "bad-request",
		"limit=0":         "bad-request",
		"limit=10001":     "bad-request",
		"limit=":          "bad-request",
		"after=x":         "bad-request",
		"after=-1":        "bad-request",
		"after=1&after=2": "bad-request",
		"x=%zz":           "bad-request",
		many:              "too-many",
	} {
		r := s.do("GET", "/v1/acme/history?"+query, "")
		if p := r.problem(t); p.Status != 400 || p.Code != code {
			t.Errorf("%s: %+v", clipped(query), p)
		}
	}
	if p := s.do("GET", "/v1/a%20b/history", "").problem(t); p.Code != "bad-name" {
		t.Errorf("%+v", p)
	}
}

func clipped(s string) string { return s[:min(len(s), 60)] }

func TestTheHistorysPathIsLikeTheOthers(t *testing.T) {
	s := openHistory(t, &keeping{Memory: feedtest.NewMemory()}, transport.Options{})
	s.write(put("a", `{}`))
	get, head := s.do("GET", "/v1/acme/history", ""), s.do("HEAD", "/v1/acme/history", "")
	if head.status != 200 {
		t.Errorf("HEAD: %+v", head)
	}
	for _, name := range []string{"Content-Type", "Content-Length", "Cache-Control"} {
		if head.header.Get(name) != get.header.Get(name) || get.header.Get(name) == "" {
			t.Errorf("HEAD: %s is %q, not %q", name, head.header.Get(name), get.header.Get(name))
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
		r := s.do(method, "/v1/acme/history", "")
		if p := r.problem(t); p.Status != http.StatusMethodNotAllowed || r.header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %+v %v", method, p, r.header)
		}
	}
	if p := s.do("GET", "/v1/acme/history/todos", "").problem(t); p.Status != 404 {
		t.Errorf("%+v", p)
	}
	off := openHistory(t, feedtest.NewMemory(), transport.Options{})
	if p := off.do("GET", "/v1/acme/history", "").problem(t); p.Status != 404 || p.Code != "not-found" || !strings.Contains(p.Detail, "--history") {
		t.Errorf("%+v", p)
	}
}

func TestHistoryIsNotShownToWhoMayNotReadIt(t *testing.T) {
	log := &keeping{Memory: feedtest.NewMemory()}
	all := openHistory(t, log, transport.Options{})
	all.write(put("a", `{}`), put("secret:a", `{}`))
	all.hub.Drain(t.Context())
	s := openHistory(t, log, transport.Options{Authorizer: grants{hub.Grant{Tenant: "acme", Read: []string{"todos"}}}})
	if p := s.page(""); p.tell() != "1:todos/a" {
		t.Errorf("%+v", p)
	}
	for _, path := range []string{"/v1/acme/history?c=secret", "/v1/acme/history?c=todos&c=secret", "/v1/other/history"} {
		if p := s.do("GET", path, "").problem(t); p.Status != 403 || p.Code != "forbidden" {
			t.Errorf("%s: %+v", path, p)
		}
	}
}

func TestDamageOfTheHistoryNamesWhatIsLost(t *testing.T) {
	log := &keeping{Memory: feedtest.NewMemory(), before: func() error { return &feed.HistoryDamage{First: 1, Last: 41, What: "a test"} }}
	s := openHistory(t, log, transport.Options{})
	s.write(put("a", `{}`))
	if p := s.do("GET", "/v1/acme/history", "").problem(t); p.Status != 500 || p.Code != "internal" || !strings.Contains(p.Detail, "from=42") {
		t.Errorf("%+v", p)
	}
}

// Readers of the history wait for each other, and are sent away when that takes long.
func TestManyWhoReadTheHistoryDoNotTakeTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		log := &keeping{Memory: feedtest.NewMemory(), before: func() error { <-goOn; return nil }}
		s := openHistory(t, log, transport.Options{})
		answers := make(chan response, 10)
		for range 10 {
			go func() { answers <- s.do("GET", "/v1/acme/history", "") }()
		}
		synctest.Wait()
		time.Sleep(time.Minute) // in the bubble
		if n := len(answers); n != 8 {
			t.Errorf("%d of 10 were sent away", n)
		}
		for range len(answers) {
			r := <-answers
			if p := r.problem(t); p.Status != 503 || r.header.Get("Retry-After") == "" {
				t.Errorf("%+v %v", p, r.header)
			}
		}
		close(goOn)
		synctest.Wait()
		for range len(answers) {
			if r := <-answers; r.status != 200 {
				t.Errorf("%+v", r)
			}
		}
		if err := s.hub.Drain(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
