package transport_test

import (
	"strings"
	"testing"
)

// A server without credentials must not be reached by a web page through a name of its
// own that it has made point here.
func TestPageThatRebindsItsNameGetsNothing(t *testing.T) {
	s := open(t, settings{})
	for host, ok := range map[string]bool{
		"localhost": true, "localhost:7333": true, "LocalHost:1": true, "localhost.": true, "app.localhost:3000": true,
		"127.0.0.1": true, "127.0.0.1:7333": true, "127.8.9.1": true, "[::1]": true, "[::1]:7333": true, "[::ffff:127.0.0.1]:80": true,
		"evil.example": false, "evil.example:7333": false, "localhost.evil.example": false, "notlocalhost": false, "127.0.0.1.nip.io": false,
		"10.0.0.1": false, "0.0.0.0": false, "[::]": false, "192.168.1.7:7333": false, "127.0.0.1.": true, "2130706433": false, "127.1": false,
		"localhost:7333.evil.example": false, "evil.example:localhost": false, "localhost@evil.example": false, "[::1].evil.example": false, "[::1": false,
	} {
		for _, path := range []string{"/v1/acme/rows/todos", "/v1/acme/feed?c=todos&wait=0"} {
			r, err := s.try("GET", path, "", "Host", host)
			if err != nil { // the client, or net/http, would not have it
				if ok {
					t.Errorf("Host %s: %v", host, err)
				}
				continue
			}
			if got := r.status == 200; got != ok || !got && r.status != 403 && r.status != 400 {
				t.Errorf("Host %s: %d %s", host, r.status, r.body)
			}
		}
	}
	for _, headers := range []string{"Host: evil.example\n", "Host:\n"} {
		for _, more := range []string{"", "Accept: text/event-stream\n", upgrade} {
			resp, _, c := s.raw("GET /v1/acme/feed?c=todos HTTP/1.1\n" + headers + more + "\n")
			if resp.StatusCode != 403 {
				t.Errorf("%q: %d", headers+more, resp.StatusCode)
			}
			c.Close()
		}
	}
	s.sessions(0)
}

func TestPageOfAnotherOriginGetsNothing(t *testing.T) {
	s := open(t, settings{})
	for origin, ok := range map[string]bool{
		"http://localhost": true, "http://localhost:3000": true, "https://localhost:3000": true, "http://127.0.0.1:5173": true, "http://[::1]:3000": true, "http://app.localhost:8080": true,
		"null": false, "http://evil.example": false, "https://localhost.evil.example": false, "http://127.0.0.1.evil.example": false, "http://evil.example:3000": false,
		"file://": false, "file://localhost": false, "chrome-extension://localhost": false, "localhost:3000": false, "//localhost": false,
		"http://localhost, http://evil.example": false, "http://evil.example#http://localhost": false, "http://evil.example/localhost": false, "http://10.0.0.7": false,
	} {
		for _, e := range [][3]string{{"GET", "/v1/acme/rows/todos"}, {"GET", "/v1/acme/feed?c=todos&wait=0"}, {"POST", "/v1/acme/changes", changes(put("a", `{}`))}, {"PUT", "/v1/acme/rows/todos?key=a", `{}`}, {"DELETE", "/v1/acme/rows/todos?key=a"}} {
			r := s.do(e[0], e[1], e[2], "Origin", origin)
			want := 403
			if ok {
				want = 200
			}
			if r.status != want {
				t.Errorf("Origin %s, %s %s: %d %s", origin, e[0], e[1], r.status, r.body)
			}
			allowed := r.header.Get("Access-Control-Allow-Origin")
			if ok && allowed != origin || !ok && allowed != "" || r.header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("Origin %s: %v", origin, r.header)
			}
			if !strings.Contains(r.header.Get("Vary"), "Origin") {
				t.Errorf("Origin %s: Vary %q", origin, r.header.Get("Vary"))
			}
		}
		for _, tr := range []string{sse, websocket} {
			st, r := s.tryFeed(tr, "c=todos", "Origin", origin)
			if ok != (st != nil) || !ok && r.status != 403 {
				t.Errorf("Origin %s over %s: %+v", origin, tr, r)
			}
			if st != nil {
				st.until("live")
				st.close()
			}
		}
	}
	s.sessions(0)
}

func TestPageMayReadWhatItNeedsOfAnAnswer(t *testing.T) {
	s := open(t, settings{})
	r := s.do("GET", "/v1/acme/feed?c=todos&wait=0", "", "Origin", "http://localhost:3000")
	for _, name := range []string{"Retry-After", "ETag"} {
		if !strings.Contains(r.header.Get("Access-Control-Expose-Headers"), name) {
			t.Errorf("%s is hidden: %v", name, r.header)
		}
	}
}

func TestPreflightOfAPageOfThisMachinePasses(t *testing.T) {
	s := open(t, settings{})
	for _, path := range []string{"/v1/acme/changes", "/v1/acme/rows/todos?key=a", "/v1/acme/feed?c=todos"} {
		r := s.do("OPTIONS", path, "", "Origin", "http://localhost:3000", "Access-Control-Request-Method", "PATCH", "Access-Control-Request-Headers", "content-type, if-match, idempotency-key")
		if r.status != 204 || r.header.Get("Access-Control-Allow-Origin") != "http://localhost:3000" {
			t.Errorf("%s: %d %v", path, r.status, r.header)
		}
		for _, m := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
			if !strings.Contains(r.header.Get("Access-Control-Allow-Methods"), m) {
				t.Errorf("%s: methods %q", path, r.header.Get("Access-Control-Allow-Methods"))
			}
		}
		for _, h := range []string{"Authorization", "Content-Type", "If-Match", "If-None-Match", "Idempotency-Key", "Last-Event-ID"} {
			if !strings.Contains(r.header.Get("Access-Control-Allow-Headers"), h) {
				t.Errorf("%s: headers %q", path, r.header.Get("Access-Control-Allow-Headers"))
			}
		}
		r = s.do("OPTIONS", path, "", "Origin", "http://evil.example", "Access-Control-Request-Method", "POST")
		if r.status/100 == 2 || r.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s of another origin: %d %v", path, r.status, r.header)
		}
	}
}
