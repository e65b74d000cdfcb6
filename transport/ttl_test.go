package transport_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestARowWithATTLGoesByItselfHoweverItWasWritten(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "c=todos&heartbeat=30")
		s.write(`{"changes":[{"collection":"todos","op":"put","key":"posted","value":{},"ttl":60},{"collection":"todos","op":"put","key":"null","value":{},"ttl":null}]}`)
		st.send(`{"type":"write","id":"w","changes":[{"collection":"todos","op":"insert","key":"sent","value":{},"ttl":60}]}`)
		time.Sleep(time.Second)
		s.row("PUT", "?key=put&ttl=59", `{}`)
		s.row("POST", "?ttl=59&key=inserted", `{}`)
		s.row("PUT", "?key=patched", `{}`)
		s.row("PATCH", "?key=patched&ttl=59", `{"n":1}`)
		s.row("PUT", "?key=kept&ttl=59", `{}`)
		s.row("PUT", "?key=kept", `{}`)
		for _, f := range st.now() {
			if strings.Contains(f.String(), "ttl") || strings.Contains(f.String(), "expires") {
				t.Errorf("a frame speaks of it: %s", f)
			}
		}
		time.Sleep(58 * time.Second)
		if n := len(s.page("todos", "", "").Rows); n != 7 {
			t.Errorf("%d rows a second before the end", n)
		}
		time.Sleep(time.Second)
		var gone []string
		for _, f := range st.now() {
			if f.Type == "change" {
				gone = append(gone, fmt.Sprintf("%s %s %v", f.Op, f.Key, f.More))
			}
		}
		if want := "remove posted false,remove sent false,remove put false,remove inserted false,remove patched false"; strings.Join(gone, ",") != want {
			t.Errorf("%q", gone)
		}
		if p := s.page("todos", "", ""); len(p.Rows) != 2 || p.Rows[0].Key != "null" || p.Rows[1].Key != "kept" {
			t.Errorf("%+v", p)
		}
	})
}

func TestATTLThatMakesNoSenseIsRefusedAndSaysWhatDoes(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "c=todos&heartbeat=30")
		st.now()
		s.put("a", `{}`)
		st.now()
		for _, ttl := range []string{"0", "-1", "1.5", "1e2", `"60"`, "315360001", "99999999999999999999", "true", "[]", "{}"} {
			change := changes(`{"collection":"todos","op":"put","key":"a","value":{},"ttl":` + ttl + `}`)
			if p := s.do("POST", "/v1/acme/changes", change).problem(t); p.Status != 400 || p.Code != "bad-request" || !strings.Contains(p.Detail, "changes[0]: ttl must be a whole number of seconds, 1 to 315360000") {
				t.Errorf("%s: %+v", ttl, p)
			}
			st.send(`{"type":"write","id":"w",` + change[1:])
			if got := st.now(); types(got) != "error" || got[0].Code != "bad-request" || !strings.Contains(got[0].Detail, "ttl must be") {
				t.Errorf("%s over a socket: %v", ttl, got)
			}
		}
		for _, ttl := range []string{"", "0", "-1", "%2B1", "1.5", "1s", "315360001", "1&ttl=2"} {
			for method, body := range map[string]string{"PUT": `{}`, "PATCH": `{}`, "POST": `{}`} {
				if p := s.do(method, "/v1/acme/rows/todos?key=a&ttl="+ttl, body).problem(t); p.Status != 400 || p.Code != "bad-request" || !strings.Contains(p.Detail, "ttl") {
					t.Errorf("%s with %q: %+v", method, ttl, p)
				}
			}
		}
		if p := s.do("DELETE", "/v1/acme/rows/todos?key=a&ttl=60", "").problem(t); p.Status != 400 || !strings.Contains(p.Detail, "leave it out") {
			t.Errorf("remove: %+v", p)
		}
		if p := s.do("POST", "/v1/acme/changes", changes(`{"collection":"todos","op":"remove","key":"a","ttl":60}`)).problem(t); p.Status != 400 || !strings.Contains(p.Detail, "leave it out") {
			t.Errorf("remove: %+v", p)
		}
		s.write(changes(`{"collection":"todos","op":"put","key":"a","value":{},"ttl":315360000}`, `{"collection":"todos","op":"remove","key":"a","ttl":null}`))
	})
}

// An id that was used before ttl was known means the same as then.
func TestTheTTLBelongsToWhatAnIDStandsFor(t *testing.T) {
	s := open(t, settings{})
	change := func(ttl string) string {
		return `{"id":"1","collection":"todos","op":"put","key":"a","value":{}` + ttl + `}`
	}
	for _, c := range [][2]string{{`,"ttl":60`, "ok"}, {`,"ttl":60`, "duplicate"}, {`,"ttl":61`, "id-reused"}, {"", "id-reused"}, {`,"ttl":null`, "id-reused"}} {
		a := s.write(`{"atomic":false,` + changes(change(c[0]))[1:])
		if a.Results[0].Status != c[1] {
			t.Errorf("with %s: %+v", c[0], a.Results)
		}
	}
}
