package transport_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

func TestRowsComeInPagesInTheOrderOfTheirSequence(t *testing.T) {
	s := open(t, settings{})
	for i := range 25 {
		s.put(fmt.Sprint("k", i), fmt.Sprintf(`{"n":%d}`, i))
	}
	s.put("k3", `{"n":"new"}`)
	at := s.remove("k4").Cursor
	seen, last, pages := 0, uint64(0), 0
	for after := ""; ; pages++ {
		p := s.page("todos", after, "10")
		if p.Cursor != at || len(p.Rows) > 10 {
			t.Errorf("a page of %d rows at %s", len(p.Rows), p.Cursor)
		}
		for _, r := range p.Rows {
			if r.Seq <= last || r.Key == "k4" {
				t.Errorf("row %s at %d after %d", r.Key, r.Seq, last)
			}
			last = r.Seq
			seen++
		}
		if after = p.Next; after == "" {
			break
		}
	}
	if seen != 24 || pages != 2 {
		t.Errorf("%d rows in %d pages", seen, pages+1)
	}
	if r := s.do("GET", "/v1/acme/rows/none", ""); r.status != 200 || r.body != `{"cursor":"`+at+`","rows":[]}`+"\n" || r.header.Get("Cache-Control") != "no-store" {
		t.Errorf("a collection without rows: %d %s %v", r.status, r.body, r.header)
	}
	// By default a thousand.
	var list []string
	for i := range 500 {
		list = append(list, put(fmt.Sprint("many:a", i), `{}`))
	}
	s.write(changes(list...))
	s.write(strings.ReplaceAll(changes(list...), `"a`, `"b`))
	s.put("many:last", `{}`)
	if p := s.page("many", "", ""); len(p.Rows) != 1000 || p.Next == "" {
		t.Errorf("a page has %d rows", len(p.Rows))
	}
	if p := s.page("many", "", "10000"); len(p.Rows) != 1001 || p.Next != "" {
		t.Errorf("a page has %d rows", len(p.Rows))
	}
}

// Pages, and a feed from the last page's cursor, are exactly the server's rows, whatever
// happens meanwhile.
func TestPagesThenFeedLoseNothing(t *testing.T) {
	for seed := range uint64(30) {
		tr := transports[seed%3]
		bubble(t, settings{hub: hub.Options{Tombstones: time.Hour}}, func(t *testing.T, s *site) {
			r := rand.New(rand.NewPCG(seed, 1))
			act := func() {
				for range r.IntN(6) {
					var list []string
					for range 1 + r.IntN(4) {
						key := fmt.Sprint("k", r.IntN(30))
						if r.IntN(3) == 0 {
							list = append(list, remove(key))
						} else {
							list = append(list, put(key, fmt.Sprintf(`{"n":%d}`, r.IntN(1000))))
						}
					}
					s.write(changes(list...))
				}
			}
			for range 8 {
				act()
			}
			if seed%5 == 0 { // tombstones from before are forgotten
				time.Sleep(3 * time.Hour)
			}
			f := newFold(t)
			f.rows["todos"] = make(map[string]row)
			var p page
			for after := ""; ; {
				p = s.page("todos", after, fmt.Sprint(1+r.IntN(7)))
				for _, x := range p.Rows {
					if have := f.rows["todos"][x.Key]; have.seq < x.Seq {
						f.rows["todos"][x.Key] = row{x.Seq, string(x.Value)}
					}
				}
				act()
				if after = p.Next; after == "" {
					break
				}
			}
			if seed%5 == 1 { // and others while it reads
				time.Sleep(3 * time.Hour)
			}
			st := s.follow(tr, "c=todos&cursor="+p.Cursor)
			f.apply(st.now()...)
			act()
			time.Sleep(30 * time.Second)
			f.apply(st.now()...)
			if !f.live {
				t.Errorf("seed %d: not live", seed)
			}
			f.check(s, "todos")
			if t.Failed() {
				t.Fatalf("seed %d over %s", seed, tr)
			}
		})
	}
}

func TestRowIsReadByItsKey(t *testing.T) {
	s := open(t, settings{})
	s.put("a", `{"n":1,"html":"<&>\u2028"}`)
	r := s.do("GET", "/v1/acme/rows/todos?key=a", "")
	if r.status != 200 || r.header.Get("ETag") != `"1"` || r.header.Get("Content-Type") != "application/json" || r.header.Get("Content-Length") == "" {
		t.Errorf("%d %s %v", r.status, r.body, r.header)
	}
	if want := `{"key":"a","seq":1,"value":{"n":1,"html":"<&>` + "\u2028" + `"}}` + "\n"; r.body != want {
		t.Errorf("%q", r.body)
	}
	if cc := r.header.Get("Cache-Control"); !strings.Contains(cc, "private") || !strings.Contains(cc, "no-cache") {
		t.Errorf("Cache-Control %q", cc)
	}
	for _, match := range []string{`"1"`, `W/"1"`, `"0", "1"`, `*`} {
		if r := s.do("GET", "/v1/acme/rows/todos?key=a", "", "If-None-Match", match); r.status != 304 || r.body != "" || r.header.Get("ETag") != `"1"` {
			t.Errorf("If-None-Match %s: %d %s %v", match, r.status, r.body, r.header)
		}
	}
	for _, match := range []string{`"2"`, `1`, `""`, `"11"`} {
		if r := s.do("GET", "/v1/acme/rows/todos?key=a", "", "If-None-Match", match); r.status != 200 {
			t.Errorf("If-None-Match %s: %d %s", match, r.status, r.body)
		}
	}
	for _, path := range []string{"/v1/acme/rows/todos?key=a", "/v1/acme/rows/todos"} {
		get, head := s.do("GET", path, ""), s.do("HEAD", path, "")
		if head.status != 200 || head.body != "" {
			t.Errorf("HEAD %s: %+v", path, head)
		}
		for _, name := range []string{"ETag", "Content-Type", "Content-Length", "Cache-Control"} {
			if head.header.Get(name) != get.header.Get(name) {
				t.Errorf("HEAD %s: %s is %q, not %q", path, name, head.header.Get(name), get.header.Get(name))
			}
		}
	}
	if r := s.do("HEAD", "/v1/acme/rows/todos?key=none", ""); r.status != 404 || r.body != "" {
		t.Errorf("HEAD of a row that is not there: %d", r.status)
	}
	s.remove("a")
	r = s.do("GET", "/v1/acme/rows/todos?key=a", "", "If-None-Match", `"1"`)
	if p := r.problem(t); p.Status != 404 || p.Code != "not-found" || r.header.Get("ETag") != "" {
		t.Errorf("%+v", p)
	}
}

type rowAnswer struct {
	Cursor, Status, Key string
	Seq                 uint64
	Value               json.RawMessage
}

func (s *site) row(method, query, body string, headers ...string) rowAnswer {
	s.t.Helper()
	r := s.do(method, "/v1/acme/rows/todos"+query, body, headers...)
	if r.status != 200 {
		s.t.Fatalf("%s %s: %d %s", method, query, r.status, r.body)
	}
	var a rowAnswer
	if err := json.Unmarshal([]byte(r.body), &a); err != nil {
		s.t.Fatal(err)
	}
	if want := fmt.Sprintf("\"%d\"", a.Seq); r.header.Get("ETag") != want || !strings.HasSuffix(a.Cursor, fmt.Sprintf("-%d", a.Seq)) {
		s.t.Errorf("%s %s: ETag %q of %s", method, query, r.header.Get("ETag"), r.body)
	}
	return a
}

func TestOneRowIsWrittenAsWithCurl(t *testing.T) {
	s := open(t, settings{})
	check := func(a rowAnswer, status, key string, seq uint64, value string) {
		t.Helper()
		if a.Status != status || a.Key != key || a.Seq != seq || string(a.Value) != value {
			t.Errorf("%+v, want %s %s %d %s", a, status, key, seq, value)
		}
	}
	check(s.row("PUT", "?key=a", `{"n":1}`), "ok", "a", 1, `{"n":1}`)
	check(s.row("PUT", "?key=a", ` { "n" : 2 } `), "ok", "a", 2, `{"n":2}`)
	check(s.row("PATCH", "?key=a", `{"m":{"x":null,"y":1},"n":null}`), "ok", "a", 3, `{"m":{"y":1}}`)
	check(s.row("POST", "?key=b", `{}`), "ok", "b", 4, `{}`)
	made := s.row("POST", "", `{"made":true}`)
	if made.Seq != 5 || len(made.Key) != 36 || made.Key[14] != '7' {
		t.Errorf("%+v is not a UUIDv7", made)
	}
	check(s.row("DELETE", "?key=a", ""), "ok", "a", 6, "")
	if a := s.row("DELETE", "?key=a", ""); a.Status != "ok" {
		t.Errorf("a row that is gone already: %+v", a)
	}
	// Conditions that hold.
	check(s.row("PUT", "?key=c", `{}`, "If-None-Match", "*"), "ok", "c", 7, `{}`)
	check(s.row("PUT", "?key=c", `{"n":1}`, "If-Match", `"7"`), "ok", "c", 8, `{"n":1}`)
	check(s.row("PATCH", "?key=c", `{"m":1}`, "If-Match", "*"), "ok", "c", 9, `{"n":1,"m":1}`)
	check(s.row("DELETE", "?key=c", "", "If-Match", `"9"`), "ok", "c", 10, "")
	check(s.row("POST", "?key=c", `{}`, "If-None-Match", "*"), "ok", "c", 11, `{}`)
}

func TestPreconditionThatFailsShowsTheRowAsItStands(t *testing.T) {
	s := open(t, settings{})
	s.put("a", `{"n":1}`)
	for _, e := range [][4]string{
		{"PUT", `{}`, "If-Match", `"7"`}, {"PATCH", `{}`, "If-Match", `"7"`}, {"DELETE", "", "If-Match", `"7"`}, {"PUT", `{}`, "If-None-Match", "*"}, {"POST", `{}`, "If-None-Match", "*"},
		{"PUT", `{}`, "If-Match", `W/"1"`}, // which compares strongly (RFC 9110, 13.1.1)
	} {
		r := s.do(e[0], "/v1/acme/rows/todos?key=a", e[1], e[2:]...)
		p := r.problem(t)
		if p.Status != 412 || p.Code != "conflict" || p.Key != "a" || p.Seq == nil || *p.Seq != 1 || string(p.Value) != `{"n":1}` || r.header.Get("ETag") != `"1"` {
			t.Errorf("%q: %+v %v", e, p, r.header)
		}
	}
	r := s.do("PUT", "/v1/acme/rows/todos?key=none", `{}`, "If-Match", `"7"`)
	if p := r.problem(t); p.Status != 412 || p.Seq == nil || *p.Seq != 0 || p.Value != nil || r.header.Get("ETag") != "" {
		t.Errorf("a row that is not there: %+v", p)
	}
	r = s.do("POST", "/v1/acme/rows/todos?key=a", `{}`)
	if p := r.problem(t); p.Status != 409 || p.Code != "exists" || string(p.Value) != `{"n":1}` || r.header.Get("ETag") != `"1"` {
		t.Errorf("an insert of a row that is there: %+v", p)
	}
	for _, name := range []string{"If-Match", "If-None-Match"} { // of who has lost their ETag
		r := s.do("PUT", "/v1/acme/rows/todos?key=a", `{}`, name, "")
		if p := r.problem(t); p.Status != 400 {
			t.Errorf("an empty %s: %+v", name, p)
		}
	}
	if s.hub.Stats().Head != 1 {
		t.Error("something was written")
	}
}

func TestRetryWithTheSameIdempotencyKeyChangesNothing(t *testing.T) {
	s := open(t, settings{})
	first := s.row("POST", "", `{"n":1}`, "Idempotency-Key", "one")
	again := s.row("POST", "", `{"n":1}`, "Idempotency-Key", "one")
	if again.Status != "duplicate" || again.Key != first.Key || again.Seq != first.Seq || string(again.Value) != `{"n":1}` {
		t.Errorf("%+v after %+v", again, first)
	}
	s.row("DELETE", "?key="+first.Key, "", "Idempotency-Key", "two")
	if again = s.row("POST", "", `{"n":1}`, "Idempotency-Key", "one"); again.Status != "duplicate" || again.Seq != first.Seq {
		t.Errorf("after a remove: %+v", again)
	}
	r := s.do("POST", "/v1/acme/rows/todos", `{"n":2}`, "Idempotency-Key", "one")
	if p := r.problem(t); p.Status != 409 || p.Code != "id-reused" {
		t.Errorf("another body: %+v", p)
	}
	// What was refused may be tried again under its id.
	s.put("a", `{}`)
	if r := s.do("PUT", "/v1/acme/rows/todos?key=a", `{}`, "Idempotency-Key", "three", "If-None-Match", "*"); r.status != 412 {
		t.Errorf("%+v", r)
	}
	s.remove("a")
	s.row("PUT", "?key=a", `{}`, "Idempotency-Key", "three", "If-None-Match", "*")
}

// A feed that has come to an answer's cursor shows what was written.
func TestAnswerNamesTheCursorThatShowsIt(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		s.put("zero", `{}`)
		a := s.write(changes(put("a", `{}`), put("b", `{}`)))
		got := s.ask("c=todos&limit=1&cursor=" + string(s.hub.Epoch()) + "-1")
		if end := got[len(got)-1]; end.Cursor != a.Cursor || types(got) != "open change change live" {
			t.Errorf("%s: %v", a.Cursor, got)
		}
		if *a.Results[0].Seq != 2 || *a.Results[1].Seq != 3 {
			t.Errorf("%+v", a)
		}
		if got := s.ask("c=todos&wait=0&cursor=" + a.Cursor); types(got) != "open live" {
			t.Errorf("from the answer's cursor: %v", got)
		}
	})
}

func TestPagesOfAnotherLogAreNotContinued(t *testing.T) {
	s := open(t, settings{})
	for i := range 3 {
		s.put(fmt.Sprint(i), `{}`)
	}
	next := s.page("todos", "", "1").Next
	other := open(t, settings{})
	r := other.do("GET", "/v1/acme/rows/todos?after="+url.QueryEscape(next), "")
	if p := r.problem(t); p.Status != 400 || !strings.Contains(p.Detail, "first page") {
		t.Errorf("%+v", p)
	}
}

// A refused transaction shows rows as they stand, not as its own changes would have
// left them.
func TestRefusedTransactionShowsRowsAsTheyStand(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		s.put("a", `{"n":1}`)
		r := s.do("POST", "/v1/acme/changes", changes(put("a", `{"n":2}`), `{"op":"insert","collection":"todos","key":"a","value":{"n":3}}`, put("b", `{}`)))
		p := r.problem(t)
		if p.Status != 409 || len(p.Results) != 3 || p.Results[0].Status != "aborted" || p.Results[2].Status != "aborted" || p.Results[1].Status != "exists" {
			t.Fatalf("%+v", p)
		}
		if got := p.Results[1]; *got.Seq != 1 || string(got.Value) != `{"n":1}` {
			t.Errorf("the row is shown as %d %s", *got.Seq, got.Value)
		}
		synctest.Wait()
	})
}

// Changes that are not one transaction fare each for itself.
func TestChangesThatAreNotAtomicFareEachForItself(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		s.put("a", `{"n":1}`)
		st := s.feed(sse, "c=todos&cursor="+string(s.hub.Epoch())+"-1")
		st.now()
		a := s.write(`{"atomic":false,"client":"c","changes":[
			{"id":"1","op":"insert","collection":"todos","key":"a","value":{}},
			{"id":"2","op":"insert","collection":"todos","key":"b","value":{"n":2}},
			{"id":"3","op":"modify","collection":"todos","key":"c","patch":{}},
			{"id":"4","op":"modify","collection":"todos","key":"a","patch":{"m":1},"if":7},
			{"id":"2","op":"insert","collection":"todos","key":"b","value":{"n":2}},
			{"id":"2","op":"insert","collection":"todos","key":"b","value":{"n":3}},
			{"op":"modify","collection":"todos","key":"a","patch":{"m":1},"if":1},
			{"op":"remove","collection":"todos","key":"gone"}]}`)
		var got []string
		for _, r := range a.Results {
			got = append(got, fmt.Sprintf("%s %s %d %s", r.ID, r.Status, *r.Seq, r.Value))
		}
		want := []string{`1 exists 1 {"n":1}`, `2 ok 2 {"n":2}`, `3 missing 0 `, `4 conflict 1 {"n":1}`, `2 duplicate 2 {"n":2}`, `2 id-reused 2 {"n":2}`, ` ok 3 {"n":1,"m":1}`}
		for i, w := range want {
			if got[i] != w {
				t.Errorf("result %d is %q, want %q", i, got[i], w)
			}
		}
		if a.Results[7].Status != "ok" {
			t.Errorf("removing what is gone: %s", got[7])
		}
		frames := st.now()
		if types(frames) != "change change" || frames[0].More {
			t.Errorf("the feed brings %v", frames)
		}
		if end := fmt.Sprintf("%s-%d", s.hub.Epoch(), frames[1].Seq); a.Cursor != end {
			t.Errorf("the answer's cursor is %s, the feed is at %s", a.Cursor, end)
		}
	})
}
