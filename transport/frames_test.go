package transport_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/transport"
)

var cursorForm = regexp.MustCompile(`^[0-9a-z]{4,16}-(0|[1-9][0-9]*)$`)

func TestOpenComesFirstAndSaysAllThatAClientDecidesBy(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr, func(t *testing.T) {
			s := open(t, settings{options: transport.Options{Version: "1.2.3", NetworkKey: []byte("secret")}})
			s.put("a", `{}`)
			st := s.feed(tr, "c=todos&heartbeat=7")
			f := st.next()
			if f.Type != "open" || f.Epoch != string(s.hub.Epoch()) || f.Session == "" || f.Heartbeat != 7 || f.Server != "1.2.3" {
				t.Errorf("open is %s", f)
			}
			if !slices.Equal(f.Transports, []string{"websocket", "sse", "poll"}) {
				t.Errorf("the transports are %v", f.Transports)
			}
			if len(f.Network) < 8 || strings.Contains(f.Network, "127") {
				t.Errorf("the network is %q", f.Network)
			}
			again := s.feed(tr, "c=todos").next()
			if again.Network != f.Network || again.Session == f.Session || again.Heartbeat != 15 {
				t.Errorf("a second open from the same address is %s after %s", again, f)
			}
		})
	}
}

func TestOpenIsOnItsWayBeforeAnythingElseIsThere(t *testing.T) {
	for _, tr := range []string{sse, websocket} {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			start := time.Now()
			st := s.feed(tr, "c=todos")
			kinds := types(st.now())
			if kinds != "open live" || time.Since(start) != 0 {
				t.Errorf("%s: at once comes %q, after %v", tr, kinds, time.Since(start))
			}
			if tr == sse && st.retry != "1000" {
				t.Errorf("retry: %q", st.retry)
			}
		})
	}
}

func types(frames []frame) string {
	var all []string
	for _, f := range frames {
		all = append(all, f.Type)
	}
	return strings.Join(all, " ")
}

func TestTickProvesOnceThatThePathPassesFramesAsTheyAreSent(t *testing.T) {
	for _, tr := range []string{sse, websocket} {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			st := s.feed(tr, "c=todos&heartbeat=30")
			st.now()
			time.Sleep(299 * time.Millisecond)
			if f := st.now(); f != nil {
				t.Errorf("%s: before 300 ms comes %s", tr, f)
			}
			time.Sleep(time.Millisecond)
			if got := types(st.now()); got != "tick" {
				t.Errorf("%s: after 300 ms comes %q", tr, got)
			}
			time.Sleep(30*time.Second - time.Millisecond)
			if f := st.now(); f != nil {
				t.Errorf("%s: later comes %s", tr, f)
			}
		})
	}
	bubble(t, settings{}, func(t *testing.T, s *site) {
		if got := types(s.ask("c=todos&wait=3")); got != "open live" {
			t.Errorf("a poll brings %q", got)
		}
	})
}

func TestQuietFeedMovesItsCursorWithEachHeartbeat(t *testing.T) {
	for _, tr := range []string{sse, websocket} {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			st := s.feed(tr, "c=todos&heartbeat=3")
			time.Sleep(time.Second)
			st.now()
			for range 3 {
				s.put("lists:x", `{}`)
				want := s.put("lists:y", `{}`).Cursor
				time.Sleep(3 * time.Second)
				got := st.now()
				if types(got) != "live" || got[0].Cursor != want {
					t.Errorf("%s: a heartbeat is %s, want live at %s", tr, got, want)
				}
				if tr == sse && got[0].id != want {
					t.Errorf("the heartbeat's id is %q", got[0].id)
				}
			}
		})
	}
}

func TestHeartbeatComesOnlyWhenNothingElseDoes(t *testing.T) {
	for _, tr := range []string{sse, websocket} {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			st := s.feed(tr, "c=todos&heartbeat=3")
			time.Sleep(time.Second)
			st.now()
			for range 5 {
				time.Sleep(2 * time.Second)
				s.put("a", `{}`)
			}
			if got := types(st.now()); got != "change change change change change" {
				t.Errorf("%s: %q", tr, got)
			}
			// Default: 15 s.
			other := s.feed(tr, "c=todos")
			time.Sleep(time.Second)
			other.now()
			time.Sleep(14 * time.Second)
			if got := other.now(); got != nil {
				t.Errorf("%s: before 15 s after the tick: %s", tr, got)
			}
			time.Sleep(300 * time.Millisecond)
			if got := types(other.now()); got != "live" {
				t.Errorf("%s: 15 s after the tick: %q", tr, got)
			}
		})
	}
}

func TestEventStreamBearsAnIDWhereAnEventSourceMayResumeAndNowhereElse(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		s.write(changes(put("a", `{}`), put("lists:x", `{}`), put("b", `{}`)))
		s.put("c", `{}`)
		st := s.feed(sse, "c=todos&c=lists&cursor=zzzz-1&heartbeat=3")
		time.Sleep(4 * time.Second)
		s.write(changes(put("d", `{}`), put("lists:y", `{}`)))
		frames := st.now()
		if got := types(frames); got != "open reset change change change change live tick live change change" {
			t.Fatalf("it brings %q", got)
		}
		for _, f := range frames {
			want := ""
			switch {
			case f.Type == "live":
				want = f.Cursor
			case f.Type == "change" && !f.More:
				want = fmt.Sprintf("%s-%d", s.hub.Epoch(), f.Seq)
			}
			if f.id != want {
				t.Errorf("the id of %s is %q, want %q", f, f.id, want)
			}
			if want != "" && !cursorForm.MatchString(want) {
				t.Errorf("%q is not a cursor", want)
			}
		}
	})
}

func TestIDsOfAReplayAreThoseOfItsChangesOverEveryCarryAndGap(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		for i := range 230 {
			s.put(fmt.Sprint(i), `{}`)
			if i%37 == 0 { // the next sequence is somebody else's
				s.put("lists:"+fmt.Sprint(i), `{}`)
			}
			if i%50 == 49 {
				s.write(changes(put(fmt.Sprint(i, "-a"), `{}`), put(fmt.Sprint(i, "-b"), `{}`)))
			}
		}
		seen := 0
		for _, f := range s.feed(sse, "c=todos").until("live") {
			if f.Type != "change" {
				continue
			}
			seen++
			want := ""
			if !f.More {
				want = fmt.Sprintf("%s-%d", s.hub.Epoch(), f.Seq)
			}
			if f.id != want {
				t.Fatalf("the id of %s is %q, want %q", f, f.id, want)
			}
		}
		if seen != 230+2*4 {
			t.Errorf("it brings %d changes", seen)
		}
	})
}

func TestChangeSaysWhoWroteWhatWhen(t *testing.T) {
	for _, tr := range transports {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			s.write(`{"client":"c-81","changes":[{"id":"m-7","collection":"todos","op":"insert","key":"1","value":{"title":"milk","n":1.50,"o":{"b":[null,true]}}}]}`)
			s.write(`{"changes":[{"collection":"todos","op":"insert","key":"2","value":{}}]}`)
			time.Sleep(1500 * time.Millisecond)
			s.write(`{"client":"c-81","changes":[{"collection":"todos","op":"modify","key":"2","patch":{"a":1}},{"id":"x","collection":"todos","op":"remove","key":"1"}]}`)
			got := s.feed(tr, "c=todos&wait=0").until("live")
			var all []string
			for _, f := range got[1 : len(got)-1] {
				all = append(all, f.raw)
			}
			// Key 1 was removed in the newest transaction; its insert is left out.
			want := []string{
				`{"type":"change","seq":3,"collection":"todos","op":"modify","key":"2","by":{"client":"c-81"},"at":"2000-01-01T00:00:01.500Z","value":{"a":1},"more":true}`,
				`{"type":"change","seq":4,"collection":"todos","op":"remove","key":"1","by":{"client":"c-81","id":"x"},"at":"2000-01-01T00:00:01.500Z"}`,
			}
			if !equalJSON(t, all, want) {
				t.Errorf("%s: the changes are\n%s", tr, strings.Join(all, "\n"))
			}
		})
	}
}

func equalJSON(t testing.TB, a, b []string) bool {
	t.Helper()
	return slices.EqualFunc(a, b, func(a, b string) bool {
		var x, y any
		if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
			t.Fatalf("not JSON: %q or %q", a, b)
		}
		return fmt.Sprint(x) == fmt.Sprint(y)
	})
}

func TestLineEndsInsideValuesBreakNoFrame(t *testing.T) {
	const nasty = "a\r\nb\rc\nd\u2028e\u2029f\u0085g\u0000h\"i\\j event: x id: 1 </script>\u007f\U0001F600"
	const key = "k\u2028l\u2029 \"\\é\U0001F600"
	for _, tr := range transports {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			value := `{"` + "\u2028" + `":` + quote(nasty) + `}`
			s.write(`{"client":` + quote(key) + `,"changes":[{"id":` + quote(key) + `,"collection":"todos","op":"put","key":` + quote(key) + `,"value":` + value + "\n\t}]}")
			st := s.feed(tr, "c=todos&wait=0")
			f := st.until("live")[1]
			var v map[string]string
			if err := json.Unmarshal(f.Value, &v); err != nil || v["\u2028"] != nasty || f.Key != key || f.By.Client != key || f.By.ID != key {
				t.Errorf("%s: it comes as %s (%v)", tr, f, err)
			}
			for _, c := range f.raw {
				if c < ' ' {
					t.Errorf("%s: a control character in %q", tr, f.raw)
				}
			}
		})
	}
}

func TestStreamsForbidWhateverWouldHoldThemBack(t *testing.T) {
	s := open(t, settings{})
	st := s.feed(sse, "c=todos", "Accept-Encoding", "gzip, br", "Accept", "text/event-stream")
	for name, want := range map[string]string{
		"Content-Type": "text/event-stream", "Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no", "Content-Encoding": "", "Content-Length": "",
	} {
		if got := st.header.Get(name); got != want {
			t.Errorf("SSE: %s is %q, want %q", name, got, want)
		}
	}
	p := s.feed(poll, "c=todos&wait=0", "Accept-Encoding", "gzip, br")
	for name, want := range map[string]string{"Content-Type": "application/x-ndjson", "Cache-Control": "no-store", "Content-Encoding": ""} {
		if got := p.header.Get(name); got != want {
			t.Errorf("poll: %s is %q, want %q", name, got, want)
		}
	}
	r := s.do("GET", "/v1/acme/rows/todos", "", "Accept-Encoding", "gzip")
	if r.header.Get("Content-Encoding") != "" || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("rows: %v", r.header)
	}
}

func TestEventStreamIsFlushedByteForByte(t *testing.T) {
	s := open(t, settings{})
	s.put("a", `{"n":1}`)
	c, err := s.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET /v1/acme/feed?c=todos HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body := bufio.NewReader(resp.Body)
	var all strings.Builder
	for !strings.Contains(all.String(), "event: tick\n") {
		line, err := body.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(line)
	}
	form := regexp.MustCompile(`^retry: 1000\n\n` +
		`event: open\ndata: \{"type":"open",[^\n]*\}\n\n` +
		`event: change\ndata: \{"type":"change",[^\n]*\}\nid: [0-9a-z]+-1\n\n` +
		`event: live\ndata: \{"type":"live",[^\n]*\}\nid: [0-9a-z]+-1\n\n` +
		`event: tick\n$`)
	if !form.MatchString(all.String()) {
		t.Errorf("the stream is\n%s", all.String())
	}
}

func TestTransactionIsNeverSplitOverTwoMessages(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		write := func(n int) {
			var list []string
			for i := range 500 {
				c := ""
				if i%2 == 1 {
					c = "lists:"
				}
				list = append(list, put(fmt.Sprintf("%s%d-%d", c, n, i), fmt.Sprintf(`{"pad":%q}`, strings.Repeat("x", 300))))
			}
			s.write(changes(list...))
		}
		for n := range 5 {
			write(n)
			for i := range 7 {
				s.put(fmt.Sprintf("single%d-%d", n, i), `{}`)
			}
		}
		check := func(frames []frame) {
			t.Helper()
			seen, inside, last := 0, false, 0
			for _, f := range frames {
				if inside && f.message != last {
					t.Fatalf("a transaction is split: %s is in message %d", f, f.message)
				}
				inside, last = f.More, f.message
				if f.Type == "change" {
					seen++
				}
			}
			if inside {
				t.Error("a transaction has no end")
			}
			t.Logf("%d changes in %d messages", seen, last+1)
		}
		st := s.feed(websocket, "c=todos&c=lists")
		check(st.until("live"))
		st.now()
		write(9)
		check(st.now())
		// A feed of one of the collections sees its own part of each, whole.
		one := s.feed(websocket, "c=lists")
		frames := one.until("live")
		check(frames)
		more := 0
		for _, f := range frames {
			if f.More {
				more++
			}
		}
		if more != 6*249 {
			t.Errorf("%d changes bear more, of six transactions with 250 each", more)
		}
	})
}

func TestSubprotocolIsSpokenWhenItIsOffered(t *testing.T) {
	s := open(t, settings{})
	for offered, want := range map[string]string{"": "", "tidemark.v1": "tidemark.v1", "other, tidemark.v1": "tidemark.v1", "other": ""} {
		h := []string{}
		if offered != "" {
			h = []string{"Sec-WebSocket-Protocol", offered}
		}
		st := s.feed(websocket, "c=todos", h...)
		if got := st.header.Get("Sec-WebSocket-Protocol"); got != want {
			t.Errorf("offered %q, the server speaks %q", offered, got)
		}
		if got := st.header.Get("Sec-WebSocket-Extensions"); got != "" {
			t.Errorf("extensions %q: messages would be compressed", got)
		}
		st.until("live")
		st.close()
	}
}
