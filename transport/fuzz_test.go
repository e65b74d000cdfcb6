package transport_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
)

// piped is a site whose network are pipes, in real time.
func piped(t testing.TB, o settings) *site {
	p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	return start(t, o, p, p.dial, "http://127.0.0.1")
}

func roomy() settings { return settings{hub: hub.Options{Memory: 1 << 40}} }

// Any body is answered with 200 or with what is wrong about it, and nothing changes
// unless it is 200.
func FuzzChangesBody(f *testing.F) {
	for _, body := range []string{
		"", "{}", "null", `{"changes":[]}`, changes(put("a", `{"n":1}`)), changes(remove("a")), changes(put("a", `{}`), put("b", `{}`)),
		`{"client":"c-81","atomic":true,"changes":[{"id":"m-7","collection":"todos","op":"insert","key":"1","value":{"title":"milk"}},{"id":"m-8","collection":"todos","op":"modify","key":"2","patch":{"done":true},"if":1040}]}`,
		`{"atomic":false,"changes":[{"collection":"a/b","op":"modify","key":"a","value":{"x":[1,2.5e3,null,true,"\u2028"]}},{"collection":"a/b","op":"insert","value":{}}]}`,
		`{"changes":[{"collection":"todos","op":"put","key":"\ud83d\ude00","value":{"":{"":{}}}}]}`, `{"type":"write","id":7,"changes":[{}]}`, `{"changes":[{"op":"remove","value":null}]}`,
	} {
		f.Add([]byte(body))
	}
	s := piped(f, roomy())
	f.Fuzz(func(t *testing.T, body []byte) {
		before := s.hub.Stats()
		w := httptest.NewRecorder()
		s.server.ServeHTTP(w, httptest.NewRequest("POST", "http://localhost/v1/acme/changes", bytes.NewReader(body)))
		after := s.hub.Stats()
		r := response{w.Code, w.Result().Header, w.Body.String()}
		switch {
		case r.status == 200:
			var a answer
			if err := json.Unmarshal([]byte(r.body), &a); err != nil || !cursorForm.MatchString(a.Cursor) || len(a.Results) == 0 {
				t.Errorf("%v: %s", err, r.body)
			}
		case r.status >= 400 && r.status < 500:
			r.problem(t)
			if after.Head != before.Head || after.Rows != before.Rows {
				t.Errorf("%d %s, and something was written", r.status, r.body)
			}
		default:
			t.Errorf("%d %s", r.status, r.body)
		}
	})
}

// FuzzScan holds what is read of a body without the library against what the library reads: else a write could mean
// one thing here and another to everybody else.
func FuzzScan(f *testing.F) {
	for _, text := range []string{
		`{"changes":[{"collection":"todos","op":"put","key":"a","value":{"n":1}}]}`,
		` { "type" : "write" , "id" : "7", "client":"c", "atomic" : false, "changes" : [ {"id":"x","op":"modify","collection":"todos","key":"a","patch":{"a":[{"}":"\\\"}"}]},"if":12} , {"op":"remove","collection":"c","key":"b"} ] } `,
		`{"changes":[{"value":{},"value":{}}]}`, `{"changes":[{"value":{"a":1,"a":2}}]}`, `{"changes":[{"value":{"a":"` + "\xff" + `"}}]}`, `{"changes":[{"if":012}]}`, `{"changes":[{"if":1.5}]}`,
		`{"changes":[{"key":"\u0061"}]}`, `{"changes":[{"value":{"a":}}]}`, `{"changes":[{"value":{]}]}`, `{"changes":[{"key":"a"}],"changes":[{"key":"b"}]}`, `{"atomic":true,"atomic":false}`, `{"id":"a","id":"b"}`,
		`{"changes":[{"op":"put"},]}`, `{"changes":[{"op":"put"}]}}`, `{"changes":[{"Op":"put"}]}`, `{"client":"` + "\x7f" + `"}`, `{"id": 7}`, `{"atomic":truefalse}`, `{"changes":[{"value":{"a":"\`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		scanned, ok := transport.ScanBody(raw)
		if !bytes.Equal(raw, before) {
			t.Fatalf("%q was changed to %q", before, raw)
		}
		if !ok {
			return
		}
		decoded, err := transport.DecodeBody(raw)
		if err != nil {
			t.Fatalf("%q was taken; to the library: %v", raw, err)
		}
		if !reflect.DeepEqual(scanned, decoded) {
			t.Fatalf("%q was read as %+v; by the library as %+v", raw, scanned, decoded)
		}
	})
}

// Any message on a socket is answered line by line, or ends the socket; nothing
// changes without a written.
func FuzzSocketFrame(f *testing.F) {
	for _, m := range []string{
		"", "{}", "x", `{"type":"auth"}`, `{"type":"subscribe","id":"1","collections":[{"name":"todos"}]}`, `{"type":"subscribe","id":"1","collections":[{"name":"todos","cursor":"k3f9-1"}]}`,
		`{"type":"unsubscribe","id":1,"collections":["todos"]}`, `{"type":"write","id":"1",` + changes(put("a", `{}`))[1:], `{"type":"write","id":"1",` + changes(remove("none"))[1:],
		`{"type":"auth","id":"a"}` + "\n" + `{"type":"dance","id":"b"}` + "\n\n", `{"type":"write","id":"\"\\","changes":[{"op":"insert","collection":"a","value":{}}]}`,
	} {
		f.Add([]byte(m))
	}
	s := piped(f, roomy())
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) > 1<<20 {
			return
		}
		s.t = t
		// What the last message wrote is decided before this, which writes nothing.
		if _, err := s.hub.Write(t.Context(), hub.Everything, hub.Request{Tenant: "acme", Writes: []hub.Write{{Collection: "none", Op: "remove", Key: "none"}}}); err != nil {
			t.Fatal(err)
		}
		before := s.hub.Stats().Head
		c, _ := s.socket("c=none&heartbeat=30")
		c.conn.SetDeadline(time.Now().Add(10 * time.Second))
		defer c.conn.Close()
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			c.write(1, string(message))
			c.write(8, "\x03\xe8")
		}()
		answers, written, code := 0, false, ""
		for code == "" {
			op, b, err := c.read()
			if err != nil {
				t.Fatalf("%q: it ends without a close frame: %v", message, err)
			}
			switch op {
			case 1:
				for line := range strings.SplitSeq(b, "\n") {
					x := parse(t, line)
					switch x.Type {
					case "done", "written", "error":
						answers++
						written = written || x.Type == "written"
						if x.Status >= 500 {
							t.Errorf("%q: %s", message, line)
						}
					case "open", "live", "tick", "reset", "change":
					default:
						t.Errorf("%q: %s", message, line)
					}
				}
			case 8:
				code = b[:2]
				c.conn.Close()
			}
		}
		<-wrote
		if code != "\x03\xe8" && code != "\x11\x30" {
			t.Errorf("%q: closed with %q", message, code)
		}
		lines := 0
		for line := range bytes.SplitSeq(message, []byte("\n")) {
			if len(bytes.TrimSpace(line)) > 0 {
				lines++
			}
		}
		// Those that were not answered yet when the client closed are not counted.
		if answers > lines {
			t.Errorf("%q: %d answers", message, answers)
		}
		if code == "\x11\x30" && !written && lines == 1 && s.hub.Stats().Head != before {
			t.Errorf("%q: something was written", message)
		}
	})
}

// Any query is a feed, or a mistake of the client's.
func FuzzFeedQuery(f *testing.F) {
	s := piped(f, roomy())
	at := s.write(changes(put("a", `{}`), put("lists:x", `{}`))).Cursor
	for _, q := range []string{
		"", "c=todos", "c=todos@" + at + "&c=lists", "c=todos&cursor=" + at, "c=todos&cursor=nonsense&last_event_id=zzzz-1", "c=todos&limit=1&wait=0&heartbeat=3",
		"c=a/b/c&transport=sse", "c=todos&transport=websocket", "c=%2F&c=@", "c=todos;x", "%", "c=todos&limit=-1&wait=1e3", "&&=&c", "c=todos&c=todos@" + at,
	} {
		f.Add(q, "", false)
		f.Add(q, at, true)
	}
	f.Add("c=todos", "nonsense", false)
	f.Fuzz(func(t *testing.T, query, id string, events bool) {
		r := httptest.NewRequest("GET", "http://localhost/v1/acme/feed", nil)
		r.URL.RawQuery = query
		r.Header["Last-Event-Id"] = []string{id}
		if events {
			r.Header.Set("Accept", "text/event-stream")
		}
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Millisecond)
		defer cancel()
		w := httptest.NewRecorder()
		s.server.ServeHTTP(w, r.WithContext(ctx))
		if w.Code >= 400 && w.Code < 500 {
			response{w.Code, w.Result().Header, w.Body.String()}.problem(t)
			return
		}
		if w.Code != 200 {
			t.Fatalf("%q: %d %s", query, w.Code, w.Body)
		}
		body := w.Body.String()
		switch w.Result().Header.Get("Content-Type") {
		case "text/event-stream":
			if !strings.HasPrefix(body, "retry: 1000\n\nevent: open\ndata: {") || !strings.HasSuffix(body, "\n\n") {
				t.Errorf("%q: %q", query, body)
			}
		case "application/x-ndjson":
			all := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
			first, last := parse(t, all[0]), parse(t, all[len(all)-1])
			if first.Type != "open" || last.Type != "live" && last.Type != "next" {
				t.Errorf("%q: %s", query, body)
			}
		default: // held until it went away
			if body != "" || ctx.Err() == nil {
				t.Errorf("%q: %q", query, body)
			}
		}
		if n := s.hub.Stats().Sessions; n != 0 {
			t.Errorf("%q: %d sessions", query, n)
		}
	})
}
