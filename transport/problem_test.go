package transport_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
)

func TestMalformedRequestIsToldWhatToDoAndChangesNothing(t *testing.T) {
	s := open(t, settings{options: transport.Options{Body: 200_000}})
	s.put("a", `{"n":1}`)
	const feedPath, changesPath, rowsPath = "/v1/acme/feed?wait=0&", "/v1/acme/changes", "/v1/acme/rows/"
	long := strings.Repeat("x", 65)
	type entry struct {
		method, path, body string
		status             int
		code               string
		headers            []string
	}
	table := []entry{
		// Tenants and collections.
		{"GET", "/v1/ac%20me/feed?c=todos", "", 400, "bad-name", nil},
		{"GET", "/v1/" + long + "/feed?c=todos", "", 400, "bad-name", nil},
		{"GET", "/v1/acm%C3%A9/rows/todos", "", 400, "bad-name", nil},
		{"GET", "/v1/a%2Fb/rows/todos", "", 400, "bad-name", nil},
		{"GET", "/v1/../rows/todos", "", 400, "bad-name", nil},
		{"POST", "/v1/ac.me/changes", changes(put("x", `{}`)), 400, "bad-name", nil},
		{"PUT", "/v1/*/rows/todos?key=x", `{}`, 400, "bad-name", nil},
		{"GET", feedPath + "c=", "", 400, "bad-name", nil},
		{"GET", feedPath + "c=to+dos", "", 400, "bad-name", nil},
		{"GET", feedPath + "c=/todos", "", 400, "bad-name", nil},
		{"GET", feedPath + "c=todos/", "", 400, "bad-name", nil},
		{"GET", feedPath + "c=a//b", "", 400, "bad-name", nil},
		{"GET", feedPath + "c=..", "", 400, "bad-name", nil},
		{"GET", feedPath + "c=*", "", 400, "bad-name", nil},
		{"GET", feedPath + "c=a/b/c/d/e/f/g/h/i", "", 400, "bad-name", nil},
		{"GET", feedPath + "c=" + long, "", 400, "bad-name", nil},
		{"GET", feedPath + "c=todos&c=%00", "", 400, "bad-name", nil},
		{"GET", feedPath + "c=@k3f9a1-1", "", 400, "bad-name", nil},
		{"GET", rowsPath, "", 400, "bad-name", nil},
		{"GET", rowsPath + "todos/", "", 400, "bad-name", nil},
		{"GET", rowsPath + "todos/../lists", "", 400, "bad-name", nil},
		{"GET", rowsPath + "%2e%2e/changes", "", 400, "bad-name", nil},
		{"GET", rowsPath + "to%2520dos", "", 400, "bad-name", nil},
		// Keys.
		{"GET", rowsPath + "todos?key=", "", 400, "bad-name", nil},
		{"GET", rowsPath + "todos?key=%0a", "", 400, "bad-name", nil},
		{"GET", rowsPath + "todos?key=%C2%85", "", 400, "bad-name", nil},
		{"GET", rowsPath + "todos?key=%ff", "", 400, "bad-name", nil},
		{"GET", rowsPath + "todos?key=" + strings.Repeat("k", 257), "", 400, "bad-name", nil},
		{"GET", rowsPath + "todos?key=a&key=b", "", 400, "bad-request", nil},
		{"PUT", rowsPath + "todos?key=", `{}`, 400, "bad-name", nil},
		{"POST", rowsPath + "todos?key=", `{}`, 400, "bad-name", nil},
		{"PUT", rowsPath + "todos", `{}`, 400, "bad-request", nil},
		{"PATCH", rowsPath + "todos", `{}`, 400, "bad-request", nil},
		{"DELETE", rowsPath + "todos", "", 400, "bad-request", nil},
		{"DELETE", rowsPath + "todos?key=a&key=b", "", 400, "bad-request", nil},
		// Queries.
		{"GET", feedPath, "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&heartbeat=2", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&heartbeat=31", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&heartbeat=", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&heartbeat=+5", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&heartbeat=%2B5", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&heartbeat=5.0", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&heartbeat=5s", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&heartbeat=99999999999999999999", "", 400, "bad-request", nil},
		{"GET", "/v1/acme/feed?c=todos&wait=-1", "", 400, "bad-request", nil},
		{"GET", "/v1/acme/feed?c=todos&wait=56", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&limit=0", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&limit=10001", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&limit=ten", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&transport=telex", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos&transport=websocket", "", 426, "upgrade-required", nil},
		{"GET", feedPath + "c=todos&x=%zz", "", 400, "bad-request", nil},
		{"GET", feedPath + "c=todos;limit=1", "", 400, "bad-request", nil},
		{"GET", rowsPath + "todos?limit=0", "", 400, "bad-request", nil},
		{"GET", rowsPath + "todos?limit=10001", "", 400, "bad-request", nil},
		{"GET", rowsPath + "todos?limit=x", "", 400, "bad-request", nil},
		{"GET", rowsPath + "todos?after=x", "", 400, "bad-request", nil},
		{"GET", rowsPath + "todos?after=k3f9a1-1.1", "", 400, "bad-request", nil},
		{"GET", rowsPath + "todos?after=" + string(s.hub.Epoch()) + "-1", "", 400, "bad-request", nil},
		{"GET", rowsPath + "todos?after=" + string(s.hub.Epoch()) + "-1.-1", "", 400, "bad-request", nil},
		// Bodies.
		{"POST", changesPath, "", 400, "bad-request", nil},
		{"POST", changesPath, "nonsense", 400, "bad-request", nil},
		{"POST", changesPath, `{`, 400, "bad-request", nil},
		{"POST", changesPath, `{}`, 400, "bad-request", nil},
		{"POST", changesPath, `[]`, 400, "bad-request", nil},
		{"POST", changesPath, `null`, 400, "bad-request", nil},
		{"POST", changesPath, `{"changes":null}`, 400, "bad-request", nil},
		{"POST", changesPath, `{"changes":[]}`, 400, "bad-request", nil},
		{"POST", changesPath, `{"changes":{}}`, 400, "bad-request", nil},
		{"POST", changesPath, `{"changes":[7]}`, 400, "bad-request", nil},
		{"POST", changesPath, `{"changes":[null]}`, 400, "bad-name", nil},
		{"POST", changesPath, `{"changes":[{}]}`, 400, "bad-name", nil},
		{"POST", changesPath, `{"Changes":[` + put("x", `{}`) + `]}`, 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `{}`)) + "x", 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `{}`)) + changes(put("x", `{}`)), 400, "bad-request", nil},
		{"POST", changesPath, `{"atomic":"yes",` + changes(put("x", `{}`))[1:], 400, "bad-request", nil},
		{"POST", changesPath, `{"client":7,` + changes(put("x", `{}`))[1:], 400, "bad-request", nil},
		{"POST", changesPath, `{"client":"",` + changes(put("x", `{}`))[1:], 400, "bad-name", nil},
		{"POST", changesPath, `{"client":"a\nb",` + changes(put("x", `{}`))[1:], 400, "bad-name", nil},
		{"POST", changesPath, `{"client":"` + strings.Repeat("c", 257) + `",` + changes(put("x", `{}`))[1:], 400, "bad-name", nil},
		{"POST", changesPath, changes(strings.Split(strings.Repeat(put("x", `{}`)+"|", 501), "|")[:501]...), 400, "too-many", nil},
		{"POST", changesPath, changes(put("x", `{}`), put("y", `7`)), 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `[]`)), 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `null`)), 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `{"a":1,"a":2}`)), 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `{"a":"`+"\xff"+`"}`)), 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `{"a":"\ud800"}`)), 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `{"a":01}`)), 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `{"a":`+strings.Repeat(`[`, 100)+strings.Repeat(`]`, 100)+`}`)), 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `{"a":`+strings.Repeat(`[`, 20_000)+strings.Repeat(`]`, 20_000)+`}`)), 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `{"a":[0`+strings.Repeat(`,0`, 150_000)+`]}`)), 413, "too-large", nil}, // beyond the body's limit
		// Changes.
		{"POST", changesPath, changes(`{"op":"put","collection":"todos","key":"x"}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"PUT","collection":"todos","key":"x","value":{}}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"collection":"todos","key":"x","value":{}}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"` + strings.Repeat("é", 500) + `","collection":"todos","key":"x","value":{}}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"put","key":"x","value":{}}`), 400, "bad-name", nil},
		{"POST", changesPath, changes(`{"op":"put","collection":"to dos","key":"x","value":{}}`), 400, "bad-name", nil},
		{"POST", changesPath, changes(`{"op":"put","collection":"todos","value":{}}`), 400, "bad-name", nil},
		{"POST", changesPath, changes(`{"op":"put","collection":"todos","key":7,"value":{}}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"insert","collection":"todos","key":"","value":{}}`), 400, "bad-name", nil},
		{"POST", changesPath, changes(`{"op":"put","collection":"todos","key":"x","id":"","value":{}}`), 400, "bad-name", nil},
		{"POST", changesPath, changes(`{"op":"put","collection":"todos","key":"x","id":7,"value":{}}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"put","collection":"todos","key":"x","value":{},"patch":{}}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"put","collection":"todos","key":"x","vlaue":{}}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"put","collection":"todos","key":"x","value":{},"if":-1}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"put","collection":"todos","key":"x","value":{},"if":"1"}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"put","collection":"todos","key":"x","value":{},"if":1.5}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"modify","collection":"todos","key":"a"}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"modify","collection":"todos","key":"a","patch":{},"value":{}}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"modify","collection":"todos","key":"a","patch":[]}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"modify","collection":"todos","key":"a","patch":null}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(`{"op":"remove","collection":"todos","key":"a","value":{}}`), 400, "bad-request", nil},
		{"POST", changesPath, changes(put("x", `{}`), put("y", `{}`), `{"op":"remove","collection":"todos","key":"a","patch":{}}`), 400, "bad-request", nil},
		// Refused by the state.
		{"POST", changesPath, changes(put("x", `{}`), `{"op":"insert","collection":"todos","key":"a","value":{}}`), 409, "exists", nil},
		{"POST", changesPath, changes(put("x", `{}`), `{"op":"modify","collection":"todos","key":"none","patch":{}}`), 409, "missing", nil},
		{"POST", changesPath, changes(put("x", `{}`), `{"op":"remove","collection":"todos","key":"a","if":99}`), 409, "conflict", nil},
		{"POST", changesPath, changes(put("x", `{}`), `{"op":"put","collection":"todos","key":"a","value":{},"if":0}`), 409, "conflict", nil},
		// Rows.
		{"PUT", rowsPath + "todos?key=x", "", 400, "bad-request", nil},
		{"PUT", rowsPath + "todos?key=x", "7", 400, "bad-request", nil},
		{"PUT", rowsPath + "todos?key=x", "{} {}", 400, "bad-request", nil},
		{"PATCH", rowsPath + "todos?key=a", "", 400, "bad-request", nil},
		{"PATCH", rowsPath + "todos?key=a", "[]", 400, "bad-request", nil},
		{"POST", rowsPath + "todos", "", 400, "bad-request", nil},
		{"DELETE", rowsPath + "todos?key=a", "{}", 400, "bad-request", nil},
		{"PATCH", rowsPath + "todos?key=none", "{}", 404, "missing", nil},
		{"GET", rowsPath + "todos?key=none", "", 404, "not-found", nil},
		{"GET", rowsPath + "none?key=a", "", 404, "not-found", nil},
		{"POST", rowsPath + "todos?key=a", "{}", 409, "exists", nil},
		{"PUT", rowsPath + "todos?key=a", "{}", 412, "conflict", []string{"If-Match", `"99"`}},
		{"PUT", rowsPath + "todos?key=a", "{}", 412, "conflict", []string{"If-None-Match", "*"}},
		{"PUT", rowsPath + "todos?key=x", "{}", 412, "conflict", []string{"If-Match", "*"}},
		{"DELETE", rowsPath + "todos?key=a", "", 412, "conflict", []string{"If-Match", `"99"`}},
		{"DELETE", rowsPath + "todos?key=x", "", 412, "conflict", []string{"If-Match", `"1"`}},
		{"PATCH", rowsPath + "todos?key=x", "{}", 412, "conflict", []string{"If-Match", `"1"`}},
		{"PUT", rowsPath + "todos?key=x", "{}", 412, "conflict", []string{"If-Match", `"0"`}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-request", []string{"If-Match", `1`}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-request", []string{"If-Match", `"1`}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-request", []string{"If-Match", `"x"`}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-request", []string{"If-Match", `"+1"`}},
		{"PUT", rowsPath + "todos?key=a", "{}", 412, "conflict", []string{"If-Match", `W/"1"`}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-request", []string{"If-Match", ""}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-request", []string{"If-None-Match", ""}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-request", []string{"If-Match", `"1", "2"`}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-request", []string{"If-None-Match", `"1"`}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-request", []string{"If-Match", `"1"`, "If-None-Match", "*"}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-name", []string{"Idempotency-Key", ""}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-name", []string{"Idempotency-Key", strings.Repeat("x", 257)}},
		{"PUT", rowsPath + "todos?key=a", "{}", 400, "bad-request", []string{"Idempotency-Key", "1", "Idempotency-Key", "2"}},
		// Paths.
		{"GET", "/", "", 404, "not-found", nil},
		{"GET", "/v1", "", 404, "not-found", nil},
		{"GET", "/v1/acme", "", 404, "not-found", nil},
		{"GET", "/v1/acme/feed/", "", 404, "not-found", nil},
		{"GET", "/v1/acme/feeds", "", 404, "not-found", nil},
		{"GET", "/v1/acme/../acme/feed?c=todos", "", 404, "not-found", nil},
		{"GET", "/v1//feed?c=todos", "", 400, "bad-name", nil},
		{"GET", "/v2/acme/feed?c=todos", "", 404, "not-found", nil},
		{"GET", "/healthz/", "", 404, "not-found", nil},
		// Methods.
		{"POST", "/v1/acme/feed?c=todos", "", 405, "bad-request", nil},
		{"GET", changesPath, "", 405, "bad-request", nil},
		{"PUT", changesPath, changes(put("x", `{}`)), 405, "bad-request", nil},
		{"OPTIONS", rowsPath + "todos", "", 405, "bad-request", nil},
		{"TRACE", rowsPath + "todos", "", 405, "bad-request", nil},
		{"BREW", rowsPath + "todos", "", 405, "bad-request", nil},
		{"POST", "/healthz", "", 405, "bad-request", nil},
	}
	head := s.hub.Stats().Head
	for _, e := range table {
		r := s.do(e.method, e.path, e.body, e.headers...)
		what := fmt.Sprintf("%s %.100s %.100s %q", e.method, e.path, e.body, e.headers)
		if r.status != e.status {
			t.Errorf("%s: %d %.300s", what, r.status, r.body)
			continue
		}
		p := r.problem(t)
		if p.Code != e.code {
			t.Errorf("%s: %+v", what, p)
		}
		if len(p.Detail) > 600 || strings.ContainsAny(p.Detail, "\r\n\uFFFD") && !strings.Contains(e.path, "%ff") {
			t.Errorf("%s: the detail is %q", what, p.Detail)
		}
		if r.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: Cache-Control %q", what, r.header.Get("Cache-Control"))
		}
		if (r.status == 405) != (r.header.Get("Allow") != "") {
			t.Errorf("%s: Allow: %q", what, r.header.Get("Allow"))
		}
		if (r.status == 503 || r.status == 429) != (r.header.Get("Retry-After") != "") {
			t.Errorf("%s: Retry-After: %q", what, r.header.Get("Retry-After"))
		}
		if now := s.hub.Stats(); now.Head != head || now.Rows != 1 {
			t.Fatalf("%s: something was written", what)
		}
	}
	s.eventually("sessions", func() bool { return s.hub.Stats().Sessions == 0 })
}

func TestWrongMethodIsToldTheRightOnes(t *testing.T) {
	s := open(t, settings{})
	for path, want := range map[string]string{
		"/v1/acme/feed?c=todos": "GET", "/v1/acme/changes": "POST", "/v1/acme/rows/a/b": "GET, HEAD, POST, PUT, PATCH, DELETE", "/healthz": "GET, HEAD",
		"/v1/acme/rows/a%2Fb": "GET, HEAD, POST, PUT, PATCH, DELETE",
	} {
		if r := s.do("TRACE", path, ""); r.header.Get("Allow") != want {
			t.Errorf("%s: %d, Allow: %q, want %q", path, r.status, r.header.Get("Allow"), want)
		}
	}
}

// A mistake costs one request, not the connection that others of the client go over.
func TestMistakeLeavesTheConnectionUsable(t *testing.T) {
	s := open(t, settings{})
	c, err := s.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(c)
	ask := func(request string) *http.Response {
		t.Helper()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%q: %v", request, err)
		}
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp
	}
	post := func(path, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	}
	for i, request := range []string{
		"GET /v1/acme/feed?c=%20 HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
		post("/v1/acme/changes", "nonsense"),
		post("/v1/acme/feed", "a body that nobody reads"),
		post("/v1/acme/changes", strings.Repeat("x", 10_000)),
		"GET /v1/acme/feed?c=todos HTTP/1.1\r\nHost: evil.example\r\n\r\n",
		"GET /v1/acme/feed?c=todos&transport=websocket HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /v1/acme/feed?c=todos HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
	} {
		if resp := ask(request); resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("%q: %d", request, resp.StatusCode)
		}
		if resp := ask(post("/v1/acme/changes", changes(put(fmt.Sprint(i), `{}`)))); resp.StatusCode != 200 {
			t.Errorf("after %q: %d", request, resp.StatusCode)
		}
	}
}

// Its client is still sending when it is refused; it must get to read why.
func TestBodyThatIsTooLargeIsSaidToBe(t *testing.T) {
	s := open(t, settings{options: transport.Options{Body: 100_000}})
	for _, size := range []int{100_001, 5_000_000} {
		c, err := s.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "POST /v1/acme/changes HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", size)
		// A client that sends all before it reads, as most do.
		chunk := strings.Repeat("x", 10_000)
		for sent := 0; sent < size; sent += len(chunk) {
			if _, err := io.WriteString(c, chunk[:min(len(chunk), size-sent)]); err != nil {
				break
			}
			time.Sleep(time.Millisecond) // as over a network: the refusal overtakes the body
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%d bytes: the answer is lost: %v", size, err)
			continue
		}
		b, _ := io.ReadAll(resp.Body)
		if p := (response{resp.StatusCode, resp.Header, string(b)}).problem(t); p.Status != 413 || p.Code != "too-large" {
			t.Errorf("%d bytes: %+v", size, p)
		}
		c.Close()
	}
	// The most that is taken.
	body := changes(put("a", `{"pad":"`+strings.Repeat("x", 99_000)+`"}`))
	body += strings.Repeat(" ", 100_000-len(body))
	if r := s.do("POST", "/v1/acme/changes", body); r.status != 200 {
		t.Errorf("the most bytes: %d %s", r.status, r.body)
	}
}

func TestBodyThatNeverEndsIsGivenUp(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		c, err := s.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		io.WriteString(c, "POST /v1/acme/changes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		p := response{resp.StatusCode, resp.Header, string(b)}.problem(t)
		if took := time.Since(start); p.Status != 408 || p.Code != "bad-request" || took != transport.Stalled {
			t.Errorf("%+v after %v", p, took)
		}
		c.Close()
	})
}

func TestServerThatIsNotReadySaysSoAndWhenToComeBack(t *testing.T) {
	s := open(t, settings{unready: true})
	for _, e := range [][2]string{{"GET", "/v1/acme/feed?c=todos"}, {"POST", "/v1/acme/changes"}, {"GET", "/v1/acme/rows/todos"}, {"PUT", "/v1/acme/rows/todos?key=a"}} {
		r := s.do(e[0], e[1], "", "Origin", "http://localhost:3000")
		if p := r.problem(t); p.Status != 503 || p.Code != "unavailable" || r.header.Get("Retry-After") == "" {
			t.Errorf("%s: %+v %v", e, p, r.header)
		}
		if !strings.Contains(r.header.Get("Access-Control-Expose-Headers"), "Retry-After") {
			t.Errorf("%s: a page can't read Retry-After: %v", e, r.header)
		}
	}
	if _, r := s.tryFeed(websocket, "c=todos"); r.status != 503 || r.header.Get("Retry-After") == "" {
		t.Errorf("WebSocket: %d %v", r.status, r.header)
	}
	health := func(path string, status int, body string) {
		t.Helper()
		// Whoever asks needs no name for the server that it is known by.
		if r := s.do("GET", path, "", "Host", "10.0.0.7:8080"); r.status != status || r.body != body || (status == 503) != (r.header.Get("Retry-After") != "") || r.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %q %v", path, r.status, r.body, r.header)
		}
	}
	health("/healthz", 200, "ok\n")
	health("/readyz", 503, "not ready: starting\n")
	s.server.Serve(s.hub)
	health("/readyz", 200, "ready\n")
	s.put("a", `{}`)
	s.server.NotReady("the disk is full")
	health("/readyz", 503, "not ready: the disk is full\n")
	health("/healthz", 200, "ok\n")
	if p := s.do("GET", "/v1/acme/rows/todos", "").problem(t); p.Status != 503 || !strings.Contains(p.Detail, "the disk is full") {
		t.Errorf("%+v", p)
	}
}

func TestServerWhoseLogIsLostIsNotReady(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		s.put("a", `{}`)
		st := s.feed(sse, "c=todos")
		time.Sleep(time.Second)
		st.now()
		s.log.OnAppend = func(feed.Position, []byte) error { return feed.ErrFenced }
		if p := s.do("PUT", "/v1/acme/rows/todos?key=b", `{}`).problem(t); p.Status != 503 {
			t.Errorf("%+v", p)
		}
		if got := st.rest(); types(got) != "end" || got[0].Reason != "failed" {
			t.Errorf("%v", got)
		}
		if r := s.do("GET", "/readyz", ""); r.status != 503 || !strings.HasPrefix(r.body, "not ready: ") || r.header.Get("Retry-After") == "" {
			t.Errorf("%+v", r)
		}
		if p := s.do("GET", "/v1/acme/feed?c=todos", "").problem(t); p.Status != 503 {
			t.Errorf("%+v", p)
		}
		if r := s.do("GET", "/v1/acme/rows/todos?key=a", ""); r.status != 200 {
			t.Errorf("%+v", r)
		}
	})
}

func TestDrainingHubRefusesWithATimeToComeBack(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		if err := s.hub.Drain(t.Context()); err != nil { // before anybody said NotReady
			t.Fatal(err)
		}
		for _, e := range [][3]string{{"GET", "/v1/acme/feed?c=todos"}, {"POST", "/v1/acme/changes", changes(put("a", `{}`))}, {"PUT", "/v1/acme/rows/todos?key=a", `{}`}} {
			r := s.do(e[0], e[1], e[2])
			if p := r.problem(t); p.Status != 503 || p.Code != "unavailable" || r.header.Get("Retry-After") == "" {
				t.Errorf("%s: %+v %v", e, p, r.header)
			}
		}
		// Reading what is there still works.
		if r := s.do("GET", "/v1/acme/rows/todos", ""); r.status != 200 {
			t.Errorf("rows: %d %s", r.status, r.body)
		}
	})
}

func TestTooManyFeedsAreRefusedUntilOneIsGone(t *testing.T) {
	bubble(t, settings{hub: hub.Options{Sessions: 2}}, func(t *testing.T, s *site) {
		first := s.feed(sse, "c=todos")
		s.feed(websocket, "c=todos")
		for _, tr := range transports {
			_, r := s.tryFeed(tr, "c=todos")
			p := r.problem(t)
			if seconds, err := strconv.Atoi(r.header.Get("Retry-After")); p.Status != 503 || p.Code != "unavailable" || err != nil || seconds < 1 {
				t.Errorf("%s: %+v %v", tr, p, r.header)
			}
		}
		first.close()
		synctest.Wait()
		s.feed(poll, "c=todos&wait=0").until("live")
	})
}

func TestATenantThatIsFullHearsWhichLimitItWas(t *testing.T) {
	bubble(t, settings{hub: hub.Options{Limits: hub.Limits{Rows: 1}}}, func(t *testing.T, s *site) {
		s.do("POST", "/v1/acme/changes", changes(put("a", `{}`)))
		r := s.do("POST", "/v1/acme/changes", changes(put("b", `{}`)))
		if p := r.problem(t); p.Status != 429 || p.Limit != "rows" {
			t.Errorf("%d %s", r.status, r.body)
		}
		st := s.feed(websocket, "c=todos&heartbeat=30")
		time.Sleep(time.Second)
		st.now()
		st.send(`{"type":"write","id":"1",` + changes(put("b", `{}`))[1:])
		if got := st.now(); types(got) != "error" || got[0].Status != 429 || got[0].Limit != "rows" {
			t.Errorf("%v", got)
		}
	})
}

func TestLogThatRefusesAWriteIsSaidSo(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		s.log.OnAppend = func(feed.Position, []byte) error { return errors.New("no space left") }
		r := s.do("POST", "/v1/acme/changes", changes(put("a", `{}`)))
		if p := r.problem(t); p.Status != 503 || p.Code != "unavailable" || r.header.Get("Retry-After") == "" {
			t.Errorf("%+v %v", p, r.header)
		}
		st := s.feed(websocket, "c=todos&heartbeat=30")
		time.Sleep(time.Second)
		st.now()
		st.send(`{"type":"write","id":"1",` + changes(put("a", `{}`))[1:])
		if got := st.now(); types(got) != "error" || got[0].Code != "unavailable" || got[0].Status != 503 || got[0].Retry == nil {
			t.Errorf("%v", got)
		}
	})
}

// Names reach the state as their sender meant them, however the way there encodes them.
func TestNamesSurviveTheirEncodings(t *testing.T) {
	s := open(t, settings{})
	for _, path := range []string{"projects/7/todos", "projects%2F7%2Ftodos", "projects/7%2ftodos", "%70rojects/7/todos"} {
		for _, tenant := range []string{"acme", "%61cme"} {
			if r := s.do("PUT", "/v1/"+tenant+"/rows/"+path+"?key=a", `{"path":"`+path+`"}`); r.status != 200 {
				t.Fatalf("%s: %d %s", path, r.status, r.body)
			}
			if got := s.serverRows("projects/7/todos", ""); got["a"] != `{"path":"`+path+`"}` || len(got) != 1 {
				t.Errorf("%s %s: %v", tenant, path, got)
			}
		}
	}
	if st := s.feed(poll, "c=projects%2F7%2Ftodos&wait=0"); st.until("live")[1].Collection != "projects/7/todos" {
		t.Error("a feed by an encoded name")
	}
	for _, key := range []string{" ", "a b", "a+b", "%", "%41", "a/b", "..", "ключ", "🦀", "&=?#", "a;b", `"\`, "\u2028", "a&key=b", strings.Repeat("é", 128)} {
		for _, encoded := range []string{url.QueryEscape(key), strings.ReplaceAll(url.QueryEscape(key), "+", "%20")} {
			value := `{"key":"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"}`
			if r := s.do("PUT", "/v1/acme/rows/keys?key="+encoded, value); r.status != 200 {
				t.Fatalf("%q: %d %s", key, r.status, r.body)
			}
			if r := s.do("GET", "/v1/acme/rows/keys?key="+encoded, ""); r.status != 200 || !strings.Contains(r.body, `"value":`+value) {
				t.Errorf("%q: %d %s", key, r.status, r.body)
			}
			if rows := s.serverRows("keys", ""); rows[key] != value || len(rows) != 1 {
				t.Errorf("%q: the rows are %v", key, rows)
			}
			if r := s.do("DELETE", "/v1/acme/rows/keys?key="+encoded, ""); r.status != 200 {
				t.Errorf("%q: %d %s", key, r.status, r.body)
			}
		}
	}
}

// What a member that is null means is what a member that is not there means: many
// clients send the one for the other.
func TestNullIsAsIfItWereNotThere(t *testing.T) {
	s := open(t, settings{})
	s.write(`{"client":null,"atomic":null,"changes":[
		{"id":null,"collection":"todos","op":"put","key":"a","value":{"n":1},"patch":null,"if":null},
		{"collection":"todos","op":"modify","key":"a","value":null,"patch":{"m":2}},
		{"collection":"todos","op":"insert","key":null,"value":{}},
		{"collection":"todos","op":"remove","key":"b","value":null,"patch":null}]}`)
	if rows := s.serverRows("todos", ""); rows["a"] != `{"n":1,"m":2}` || len(rows) != 2 {
		t.Errorf("%v", rows)
	}
}

func TestTenantsSeeNothingOfEachOther(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		feeds := make(map[string]*stream)
		for _, tr := range []string{sse, websocket} {
			feeds[tr] = s.feed(tr, "c=todos&heartbeat=30")
		}
		time.Sleep(time.Second)
		if r := s.do("PUT", "/v1/other/rows/todos?key=a", `{}`); r.status != 200 {
			t.Fatal(r)
		}
		for tr, st := range feeds {
			if got := types(st.now()); strings.Contains(got, "change") {
				t.Errorf("%s: %s", tr, got)
			}
		}
		if rows := s.serverRows("todos", ""); len(rows) != 0 {
			t.Errorf("%v", rows)
		}
	})
}

func TestPanicCostsOneRequest(t *testing.T) {
	s := open(t, settings{options: transport.Options{Authorizer: panics{}}})
	if p := s.do("GET", "/v1/acme/rows/todos", "").problem(t); p.Status != 500 || p.Code != "internal" {
		t.Errorf("%+v", p)
	}
	if r := s.do("GET", "/healthz", ""); r.status != 200 {
		t.Errorf("afterwards: %+v", r)
	}
}

// Who watches the counts for an alarm sees what is answered outside of a route's own handler, too.
func TestEveryProblemIsCounted(t *testing.T) {
	s := transport.New(transport.Options{Authorizer: transport.Loopback{}})
	s.Mount("/boom", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") }))
	for _, x := range []struct {
		method, path string
		status       int
		code         hub.Code
	}{
		{"GET", "/nowhere", 404, "not-found"},
		{"POST", "/v1/demo/feed", 405, "bad-request"},
		{"OPTIONS", "/v1/demo/feed", 403, "forbidden"},
		{"GET", "/v1/demo/feed?c=" + strings.Repeat("x", 9000), 414, "too-large"},
		{"GET", "/boom", 500, "internal"},
	} {
		before, known := s.Problems()[x.code]
		if !known {
			t.Errorf("%s is not counted from 0", x.code)
		}
		r := httptest.NewRequest(x.method, x.path, nil)
		if x.method == "OPTIONS" {
			r.Header.Set("Origin", "https://evil.example")
			r.Header.Set("Access-Control-Request-Method", "GET")
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if n := s.Problems()[x.code] - before; w.Code != x.status || n != 1 {
			t.Errorf("%s %.20s: %d, counted %d times as %s", x.method, x.path, w.Code, n, x.code)
		}
	}
}

type panics struct{}

func (panics) Authorize(*http.Request) (hub.Grant, error) { panic("an authorizer that fails") }

// An answer that has begun must not look complete.
func TestPanicInAnAnswerCutsItOff(t *testing.T) {
	s := open(t, settings{})
	s.put("a", `{}`)
	for _, path := range []string{"/v1/acme/feed?c=todos&transport=sse", "/v1/acme/feed?c=todos", "/v1/acme/rows/todos"} {
		w := &failing{ResponseRecorder: httptest.NewRecorder()}
		r := httptest.NewRequest("GET", "http://localhost"+path, nil)
		func() {
			defer func() {
				if v := recover(); v != http.ErrAbortHandler {
					t.Errorf("%s: the panic is %v, the answer %q", path, v, w.Body)
				}
			}()
			s.server.ServeHTTP(w, r)
		}()
	}
	s.sessions(0)
}

type failing struct{ *httptest.ResponseRecorder }

func (f *failing) Write(b []byte) (int, error) {
	f.ResponseRecorder.Write(b)
	panic("in the middle")
}

// Authorizers say more than yes or no.
func TestRefusalOfAnAuthorizerKeepsItsWords(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{errors.New("no token"), 401, "unauthenticated"},
		{&hub.Refusal{Code: hub.Forbidden, Detail: "not yours"}, 403, "forbidden"},
		{fmt.Errorf("checking: %w", &hub.Refusal{Code: hub.Unavailable, Detail: "no keys yet", Retry: 7 * time.Second}), 503, "unavailable"},
	} {
		s := open(t, settings{options: transport.Options{Authorizer: refuses{c.err}}})
		r := s.do("GET", "/v1/acme/rows/todos", "")
		if p := r.problem(t); p.Status != c.status || p.Code != c.code {
			t.Errorf("%v: %+v", c.err, p)
		}
		if c.status == 401 && r.header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("it does not say what it wants: %v", r.header)
		}
		if c.status == 503 && r.header.Get("Retry-After") != "7" {
			t.Errorf("%v", r.header)
		}
		if _, r := s.tryFeed(websocket, "c=todos"); r.status != c.status {
			t.Errorf("WebSocket: %+v", r)
		}
	}
}

type refuses struct{ err error }

func (r refuses) Authorize(*http.Request) (hub.Grant, error) { return hub.Grant{}, r.err }

func TestGrantIsHeldToOnEveryPath(t *testing.T) {
	s := open(t, settings{options: transport.Options{Authorizer: grants{hub.Grant{Tenant: "acme", Read: []string{"todos", "lists/*"}, Write: []string{"todos"}}}}})
	s.put("a", `{}`)
	for _, e := range [][3]string{
		{"GET", "/v1/other/feed?c=todos&wait=0"}, {"GET", "/v1/acme/feed?c=todos&c=secret&wait=0"}, {"GET", "/v1/acme/feed?c=lists&wait=0"},
		{"GET", "/v1/acme/rows/secret"}, {"GET", "/v1/acme/rows/secret?key=a"}, {"GET", "/v1/other/rows/todos"},
		{"PUT", "/v1/acme/rows/lists/1?key=a", `{}`}, {"DELETE", "/v1/acme/rows/secret?key=a"},
		{"POST", "/v1/acme/changes", changes(put("x", `{}`), put("secret:x", `{}`))}, {"POST", "/v1/other/changes", changes(put("x", `{}`))},
	} {
		if p := s.do(e[0], e[1], e[2]).problem(t); p.Status != 403 || p.Code != "forbidden" {
			t.Errorf("%s: %+v", e, p)
		}
	}
	for _, tr := range []string{sse, websocket} {
		if _, r := s.tryFeed(tr, "c=secret"); r.problem(t).Status != 403 {
			t.Errorf("%s: %+v", tr, r)
		}
	}
	st := s.feed(websocket, "c=todos&c=lists/1")
	st.until("tick")
	st.send(`{"type":"subscribe","id":"1","collections":[{"name":"lists/2"},{"name":"secret"}]}`)
	st.send(`{"type":"write","id":"2",` + changes(put("lists/1:x", `{}`))[1:])
	for range 2 {
		if f := st.next(); f.Type != "error" || f.Code != "forbidden" || f.Status != 403 {
			t.Errorf("%s", f)
		}
	}
	if s.hub.Stats().Head != 1 {
		t.Error("something was written")
	}
}

type grants struct{ hub.Grant }

func (g grants) Authorize(*http.Request) (hub.Grant, error) { return g.Grant, nil }

func TestAnAnswerSaysTheSameOfAChangeAsAProblem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := hub.Outcome{
			ID:     rapid.String().Draw(t, "id"),
			Status: rapid.SampledFrom([]hub.Status{hub.OK, hub.Duplicate, hub.Conflict, hub.Aborted}).Draw(t, "status"),
			Key:    rapid.String().Draw(t, "key"),
			Seq:    feed.Seq(rapid.Uint64Range(0, 1<<53).Draw(t, "seq")),
			Value:  rapid.SampledFrom([]string{"", "{}", `{"a":"<&>\u2028","b":[1e3,null]}`}).Draw(t, "value"),
		}
		answer, problem := transport.OutcomeJSON(o)
		var a, p any
		if err := errors.Join(json.Unmarshal(answer, &a), json.Unmarshal(problem, &p)); err != nil {
			t.Fatalf("%s and %s: %v", answer, problem, err)
		}
		if !reflect.DeepEqual(a, p) {
			t.Fatalf("an answer says %s, a problem %s", answer, problem)
		}
	})
}
