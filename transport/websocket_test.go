package transport_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ws "github.com/coder/websocket"
	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
)

func TestSubscribingAnswersBeforeItsChangesComeAndThenIsLive(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		s.put("a", `{}`)
		at := s.put("lists:x", `{}`).Cursor
		s.put("lists:y", `{}`)
		st := s.feed(websocket, "c=todos&heartbeat=30")
		time.Sleep(time.Second)
		st.now()
		st.send(`{"type":"subscribe","id":"s1","collections":[{"name":"lists","cursor":"` + at + `"},{"name":"none"}]}`)
		got := st.now()
		if types(got) != "done change live" || string(got[0].ID) != `"s1"` || got[1].Key != "y" {
			t.Errorf("subscribe: %v", got)
		}
		s.write(changes(put("b", `{}`), put("lists:z", `{}`), put("none:n", `{}`)))
		if got := st.now(); types(got) != "change change change" || !got[0].More || !got[1].More || got[2].More {
			t.Errorf("after subscribing: %v", got)
		}
		// With a cursor of another epoch it is reset, and the others are not.
		st.send(`{"type":"subscribe","id":"s2","collections":[{"name":"lists","cursor":"zzzz-1"}]}`)
		got = st.now()
		if types(got) != "done reset change change change live" || fmt.Sprint(got[1].Collections) != "[lists]" || got[1].Reason != "epoch" {
			t.Errorf("subscribe anew: %v", got)
		}
		// Without a cursor it begins anew, with an empty one too.
		for _, cursor := range []string{"", `,"cursor":""`, `,"cursor":null`} {
			st.send(`{"type":"subscribe","id":"s3","collections":[{"name":"lists"` + cursor + `}]}`)
			if got = st.now(); types(got) != "done change change change live" {
				t.Errorf("subscribe anew %s: %v", cursor, got)
			}
		}
		// Named twice, the newest place counts, as in the query of a feed.
		head := fmt.Sprintf("%s-%d", s.hub.Epoch(), s.hub.Stats().Head)
		for _, list := range []string{`{"name":"lists"},{"name":"lists","cursor":"` + head + `"}`, `{"name":"lists","cursor":"` + head + `"},{"name":"lists"}`} {
			st.send(`{"type":"subscribe","id":"s4","collections":[` + list + `]}`)
			if got = st.now(); types(got) != "done live" {
				t.Errorf("subscribe to one collection twice: %v", got)
			}
		}
	})
}

func TestNothingComesAfterUnsubscribing(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "c=todos&c=lists&heartbeat=30")
		time.Sleep(time.Second)
		st.now()
		st.send(`{"type":"unsubscribe","id":"u1","collections":["lists","never/followed","lists"]}`)
		if got := st.now(); types(got) != "done" || string(got[0].ID) != `"u1"` {
			t.Errorf("unsubscribe: %v", got)
		}
		s.write(changes(put("a", `{}`), put("lists:x", `{}`)))
		if got := st.now(); types(got) != "change" || got[0].Key != "a" || got[0].More {
			t.Errorf("after unsubscribing: %v", got)
		}
		st.send(`{"type":"subscribe","id":"s1","collections":[{"name":"lists"}]}`)
		if got := st.now(); types(got) != "done change live" {
			t.Errorf("subscribe again: %v", got)
		}
		// While the client is behind, what was not sent yet does not come either.
		st.pause()
		for i := range 50 {
			s.put(fmt.Sprint("lists:", i), fmt.Sprintf(`{"pad":%q}`, strings.Repeat("x", 1000)))
		}
		sent := make(chan struct{})
		go func() {
			st.send(`{"type":"unsubscribe","id":"u2","collections":["lists"]}`)
			close(sent)
		}()
		synctest.Wait()
		st.resume()
		<-sent
		done := false
		for _, f := range st.now() {
			if done && f.Type == "change" {
				t.Errorf("after done comes %s", f)
			}
			done = done || f.Type == "done"
		}
		if !done {
			t.Error("unsubscribe is not answered")
		}
	})
}

func TestWritesOverASocketAreAnsweredLikeThosePosted(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "c=todos&heartbeat=30")
		time.Sleep(time.Second)
		st.now()
		st.send(`{"type":"write","id":"w1","client":"me","changes":[{"id":"1","collection":"todos","op":"insert","key":"a","value":{"n":1}},{"id":"2","collection":"todos","op":"insert","value":{}}]}`)
		got := st.now()
		var written frame
		for _, f := range got {
			if f.Type == "written" {
				written = f
			}
		}
		if len(got) != 3 || string(written.ID) != `"w1"` || written.Cursor != fmt.Sprintf("%s-2", s.hub.Epoch()) || len(written.Results) != 2 || written.Results[0].Status != "ok" || string(written.Results[0].Value) != `{"n":1}` || len(written.Results[1].Key) != 36 {
			t.Fatalf("write: %v", got)
		}
		// Refused: an error, with the rows as they stand.
		st.send(`{"type":"write","id":"w2","changes":[{"collection":"todos","op":"put","key":"b","value":{}},{"id":"z","collection":"todos","op":"insert","key":"a","value":{"n":2}}]}`)
		got = st.now()
		if types(got) != "error" || string(got[0].ID) != `"w2"` || got[0].Code != "exists" || got[0].Status != 409 || got[0].Title == "" || got[0].Detail == "" ||
			len(got[0].Results) != 2 || got[0].Results[0].Status != "aborted" || got[0].Results[1].Status != "exists" || string(got[0].Results[1].Value) != `{"n":1}` || *got[0].Results[1].Seq != 1 {
			t.Errorf("a write that is refused: %v", got)
		}
		// Each for itself.
		st.send(`{"type":"write","id":7,"atomic":false,"changes":[{"collection":"todos","op":"put","key":"b","value":{}},{"collection":"todos","op":"insert","key":"a","value":{"n":2}}]}`)
		for _, f := range st.now() {
			if f.Type == "written" && (string(f.ID) != "7" || f.Results[0].Status != "ok" || f.Results[1].Status != "exists") {
				t.Errorf("a write that is not atomic: %s", f)
			}
		}
		// The same again.
		st.send(`{"type":"write","id":"w4","client":"me","changes":[{"id":"1","collection":"todos","op":"insert","key":"a","value":{"n":1}}]}`)
		if got = st.now(); types(got) != "written" || got[0].Results[0].Status != "duplicate" || *got[0].Results[0].Seq != 1 {
			t.Errorf("a write again: %v", got)
		}
	})
}

func TestRequestThatIsWrongCostsItsSenderAnErrorAndNoMore(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "c=todos&heartbeat=30")
		time.Sleep(time.Second)
		st.now()
		var many, names []string
		for i := range 257 {
			many = append(many, fmt.Sprintf(`{"name":"c%d"}`, i))
			names = append(names, put(fmt.Sprint(i), `{}`), put(fmt.Sprint("x", i), `{}`))
		}
		cases := []struct{ frame, code string }{
			{`{"type":"dance","id":"1"}`, "bad-request"},
			{`{"type":"","id":"1"}`, "bad-request"},
			{`{"type":"subscribe","id":"1"}`, "bad-request"},
			{`{"type":"subscribe","id":"1","collections":[]}`, "bad-request"},
			{`{"type":"subscribe","id":"1","collections":["todos"]}`, "bad-request"},
			{`{"type":"subscribe","id":"1","collections":{"name":"todos"}}`, "bad-request"},
			{`{"type":"subscribe","id":"1","collections":[{"name":"no good"}]}`, "bad-name"},
			{`{"type":"subscribe","id":"1","collections":[{"name":""}]}`, "bad-name"},
			{`{"type":"subscribe","id":"1","collections":[{"name":"good"},{"name":"a//b"}]}`, "bad-name"},
			{`{"type":"subscribe","id":"1","collections":[` + strings.Join(many, ",") + `]}`, "too-many"},
			{`{"type":"unsubscribe","id":"1","collections":[7]}`, "bad-request"},
			{`{"type":"unsubscribe","id":"1","collections":["no good"]}`, "bad-name"},
			{`{"type":"write","id":"1"}`, "bad-request"},
			{`{"type":"write","id":"1","changes":[]}`, "bad-request"},
			{`{"type":"write","id":"1","changes":[{"op":"put","collection":"todos","key":"a"}]}`, "bad-request"},
			{`{"type":"write","id":"1","changes":[{"op":"put","collection":"to dos","key":"a","value":{}}]}`, "bad-name"},
			{`{"type":"write","id":"1","changes":[` + strings.Join(names, ",") + `]}`, "too-many"},
			{`{"type":"write","id":"1","chnages":[]}`, "bad-request"},
			{`{"type":"write","id":"1","changes":[],"changes":[]}`, "4400"},
			{`{"type":"write","id":{}}`, "bad-request no id"},
			{`{"type":"write","id":true}`, "bad-request no id"},
			{`{"type":"write","id":"` + strings.Repeat("x", 1000) + `"}`, "bad-request no id"},
		}
		for _, c := range cases {
			if c.code == "4400" {
				continue
			}
			code, noID := strings.CutSuffix(c.code, " no id")
			st.send(c.frame)
			got := st.now()
			if types(got) != "error" || got[0].Code != code || (string(got[0].ID) == `"1"`) == noID || got[0].Detail == "" || got[0].Status < 400 {
				t.Errorf("%.100s: %v", c.frame, got)
			}
		}
		// It still works, without an id too; several requests may come in one message.
		st.send(`{"type":"unsubscribe","collections":["todos"]}` + "\n\n" + `{"type":"subscribe","id":"ok","collections":[{"name":"todos"}]}` + "\r\n")
		if got := st.now(); types(got) != "done done live" || got[0].ID != nil || string(got[1].ID) != `"ok"` {
			t.Errorf("after the errors: %v", got)
		}
		if n := s.hub.Stats().Head; n != 0 {
			t.Errorf("something was written: %d", n)
		}
	})
}

// 257 collections by one request after another.
func TestSocketFollowsNoMoreCollectionsThanAFeedMay(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "heartbeat=30")
		time.Sleep(time.Second)
		for i := range 256 {
			st.send(fmt.Sprintf(`{"type":"subscribe","id":"1","collections":[{"name":"c%d"}]}`, i))
		}
		for _, f := range st.now() {
			if f.Type == "error" {
				t.Fatalf("%s", f)
			}
		}
		st.send(`{"type":"subscribe","id":"1","collections":[{"name":"more"}]}`)
		if got := st.now(); types(got) != "error" || got[0].Code != "too-many" {
			t.Errorf("one more: %v", got)
		}
		// One that is followed already is none more; one less makes room.
		st.send(`{"type":"subscribe","id":"1","collections":[{"name":"c7"}]}`)
		st.send(`{"type":"unsubscribe","id":"1","collections":["c7"]}`)
		st.send(`{"type":"subscribe","id":"1","collections":[{"name":"more"}]}`)
		for _, f := range st.now() {
			if f.Type == "error" {
				t.Errorf("%s", f)
			}
		}
	})
}

func TestFrameThatCannotBeReadEndsItsSocketOnly(t *testing.T) {
	for _, message := range []string{
		`nonsense`, `{"type":"subscribe"`, `[]`, `7`, `null`, `"text"`, `{}`, `{"type":7}`, `{"type":null}`, `{"id":"1"}`,
		`{"Type":"auth"}`, `{"type":"auth","type":"auth"}`, `{"type":"auth","a":1,"a":2}`, `{"type":"auth"} {"type":"auth"}`,
		"{\"type\":\"au\xffth\"}", strings.Repeat(`[`, 100_000), "\ufeff" + `{"type":"auth"}`, `{"type":"write","id":"1","changes":[],"changes":[]}`,
	} {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			other := s.feed(websocket, "c=todos&heartbeat=30")
			st := s.feed(websocket, "c=todos&heartbeat=30")
			time.Sleep(time.Second)
			other.now()
			st.now()
			st.send(message)
			got := st.rest()
			if types(got) != "error" || got[0].Code != "bad-request" || got[0].Detail == "" {
				t.Errorf("%.40q: %v", message, got)
			}
			if code := ws.CloseStatus(st.err); code != 4400 {
				t.Errorf("%.40q: closed by %v", message, st.err)
			}
			s.put("a", `{}`)
			if got := types(other.now()); got != "change" {
				t.Errorf("another socket gets %q", got)
			}
			st.close()
			synctest.Wait()
			if n := s.hub.Stats().Sessions; n != 1 {
				t.Errorf("%d sessions", n)
			}
		})
	}
}

func TestBinaryMessageIsABadFrame(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "c=todos")
		st.now()
		if err := st.socket.Write(t.Context(), ws.MessageBinary, []byte(`{"type":"auth"}`)); err != nil {
			t.Fatal(err)
		}
		if got := st.rest(); types(got) != "error" || ws.CloseStatus(st.err) != 4400 {
			t.Errorf("%v, closed by %v", got, st.err)
		}
	})
}

func TestMessageThatIsTooLargeIsSaidToBe(t *testing.T) {
	s := open(t, settings{options: transport.Options{Body: 100_000}})
	// The most that may be.
	st := s.feed(websocket, "c=todos")
	st.until("tick")
	frame := `{"type":"auth","id":"1","token":"` + strings.Repeat("x", 100_000-35) + `"}`
	if len(frame) != 100_000 {
		t.Fatal(len(frame))
	}
	st.send(frame)
	if f := st.next(); f.Type != "done" {
		t.Errorf("a message of the most bytes: %s", f)
	}
	st.close()
	// One more, and many more: what the client still has to send must not keep it from
	// reading why it was closed.
	for _, size := range []int{100_001, 3_000_000} {
		st := s.feed(websocket, "c=todos")
		st.until("tick")
		err := st.socket.Write(t.Context(), ws.MessageText, []byte(strings.Repeat(" ", size)))
		st.rest()
		if code := ws.CloseStatus(st.err); code != 1009 {
			t.Errorf("a message of %d bytes: closed by %v; its write says %v", size, st.err, err)
		}
	}
	s.sessions(0)
}

func TestWritesAreAnsweredInTheirOrderHoweverManyAreUnderWay(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "heartbeat=30")
		time.Sleep(time.Second)
		st.now()
		for i := range 1000 {
			switch i % 10 {
			case 3: // refused by the state
				st.send(fmt.Sprintf(`{"type":"write","id":"%d","changes":[{"op":"modify","collection":"todos","key":"none","patch":{}}]}`, i))
			case 7: // refused before it is looked at
				st.send(fmt.Sprintf(`{"type":"write","id":"%d","changes":[{"op":"leave","collection":"todos","key":"none"}]}`, i))
			default:
				st.send(fmt.Sprintf(`{"type":"write","id":"%d","changes":[%s]}`, i, put(fmt.Sprint(i), `{}`)))
			}
		}
		time.Sleep(time.Second)
		n := 0
		for _, f := range st.now() {
			if f.Type == "live" {
				continue
			}
			if string(f.ID) != fmt.Sprintf("\"%d\"", n) {
				t.Fatalf("answer %d is %s", n, f)
			}
			if want := n%10 != 3 && n%10 != 7; (f.Type == "written") != want {
				t.Errorf("answer %d is %s", n, f)
			}
			n++
		}
		if n != 1000 || s.hub.Stats().Rows != 800 {
			t.Errorf("%d answers, %d rows", n, s.hub.Stats().Rows)
		}
	})
}

// A client that asks without reading its answers waits for itself: the server takes no
// more requests from it, and after the patience for those who take no byte it is closed.
func TestClientThatNeverReadsItsAnswersIsBoundedAndHarmless(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		other := s.feed(sse, "c=todos&heartbeat=30")
		time.Sleep(time.Second)
		other.now()
		c, _ := s.socket("c=none&heartbeat=30")
		for range 3 { // open, live and tick
			if _, _, err := c.read(); err != nil {
				t.Fatal(err)
			}
		}
		sent := 0
		go func() {
			for ; sent < 100_000; sent++ {
				if err := c.write(1, fmt.Sprintf(`{"type":"write","id":"%d","changes":[%s]}`, sent, put("lists:x", `{}`))); err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		if head := s.hub.Stats().Head; head < 10 || head > 200 {
			t.Errorf("%d writes were taken", head)
		}
		s.put("a", `{}`)
		if got := types(other.now()); got != "change" {
			t.Errorf("another client gets %q", got)
		}
		time.Sleep(transport.Stalled + time.Second)
		synctest.Wait()
		if n := s.hub.Stats().Sessions; n != 1 {
			t.Errorf("%d sessions", n)
		}
		c.conn.Close()
	})
}

func TestPeerThatAnswersNoPingIsClosed(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		c, _ := s.socket("c=todos&heartbeat=5")
		start := time.Now()
		pings := 0
		for {
			op, _, err := c.read()
			if err != nil {
				break
			}
			if op == 9 {
				pings++
			}
		}
		took := time.Since(start)
		if pings == 0 || took < transport.Stalled || took > transport.Stalled+2*5*time.Second {
			t.Errorf("%d pings, closed after %v", pings, took)
		}
		synctest.Wait()
		if n := s.hub.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions", n)
		}
	})
	// One that answers stays.
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "c=todos&heartbeat=5")
		time.Sleep(10 * time.Minute)
		s.put("a", `{}`)
		if got := st.now(); got[len(got)-1].Type != "change" {
			t.Errorf("after ten quiet minutes: %v %v", got[len(got)-1], st.err)
		}
	})
}

func TestPingOfAClientIsAnsweredWithItsOwnBytes(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		c, _ := s.socket("c=todos&heartbeat=30")
		c.open(t)
		for _, payload := range []string{"", "hello", strings.Repeat("x", 125)} {
			if err := c.write(9, payload); err != nil {
				t.Fatal(err)
			}
			for {
				op, b, err := c.read()
				if err != nil {
					t.Fatal(err)
				}
				if op == 10 {
					if b != payload {
						t.Errorf("a ping of %q is answered with %q", payload, b)
					}
					break
				}
			}
		}
		c.conn.Close()
	})
}

func TestDrainTellsASocketToComeBack(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "c=todos")
		st.now()
		s.server.NotReady("draining")
		if err := s.hub.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := st.rest()
		if types(got) != "end" || got[0].Reason != "draining" || got[0].Retry == nil || *got[0].Retry < 1 || ws.CloseStatus(st.err) != 1012 {
			t.Errorf("%v, closed by %v", got, st.err)
		}
	})
}

// What was written is answered, even if the server stops meanwhile: a client without
// ids would write it twice.
func TestWriteUnderWayIsAnsweredBeforeTheServerStops(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		release := make(chan struct{})
		s.log.OnAppend = func(feed.Position, []byte) error {
			<-release
			return nil
		}
		st := s.feed(websocket, "c=todos")
		st.now()
		for i := range 3 {
			st.send(fmt.Sprintf(`{"type":"write","id":"%d","changes":[%s]}`, i, put(fmt.Sprint(i), `{}`)))
		}
		synctest.Wait()
		s.server.NotReady("draining")
		drained := make(chan error)
		go func() { drained <- s.hub.Drain(t.Context()) }()
		time.Sleep(100 * time.Millisecond)
		close(release)
		if err := <-drained; err != nil {
			t.Fatal(err)
		}
		got := st.rest()
		answers := 0
		for i, f := range got {
			if f.Type == "written" && string(f.ID) == fmt.Sprintf("\"%d\"", answers) {
				answers++
			}
			if f.Type == "end" && i != len(got)-1 {
				t.Errorf("after end comes %v", got[i+1:])
			}
		}
		if answers != 3 || types(got[len(got)-1:]) != "end" || ws.CloseStatus(st.err) != 1012 {
			t.Errorf("%v, closed by %v", got, st.err)
		}
	})
}

func TestClientThatLeavesIsAnsweredAsItLeaves(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		for _, payload := range []string{"\x03\xe8bye", "\x03\xe9", ""} {
			c, _ := s.socket("c=todos")
			c.open(t)
			if err := c.write(8, payload); err != nil {
				t.Fatal(err)
			}
			for {
				op, b, err := c.read()
				if err != nil {
					t.Fatalf("closing with %q: %v", payload, err)
				}
				if op == 8 {
					if len(payload) >= 2 && !strings.HasPrefix(b, payload[:2]) {
						t.Errorf("closing with %q is answered with %q", payload, b)
					}
					break
				}
			}
			if _, _, err := c.read(); !errors.Is(err, io.EOF) {
				t.Errorf("after the close frame: %v", err)
			}
			synctest.Wait()
			if n := s.hub.Stats().Sessions; n != 0 {
				t.Errorf("%d sessions", n)
			}
		}
	})
}

func TestRevealsNoHalfOfATransactionWrittenOverASocket(t *testing.T) {
	bubble(t, settings{hub: hub.Options{Memory: 1 << 20}}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "c=todos&heartbeat=30")
		time.Sleep(time.Second)
		st.now()
		big := fmt.Sprintf(`{"pad":%q}`, strings.Repeat("x", 400_000))
		st.send(`{"type":"write","id":"1",` + changes(put("a", big), put("b", big))[1:])
		st.now()
		st.send(`{"type":"write","id":"2",` + changes(put("c", big), put("d", big))[1:])
		got := st.now()
		if types(got) != "error" || got[0].Code != "unavailable" || got[0].Status != 503 {
			t.Errorf("a write beyond the memory: %.300v", got)
		}
		if n := len(s.serverRows("todos", "")); n != 2 {
			t.Errorf("%d rows", n)
		}
	})
}

// Whatever is on the way cuts a stream of frames as it likes, and a client's library sends messages in as many
// frames as it likes, with control frames in between.
func TestWhatASocketWritesTakesEffectOnceAndIsAnsweredInOrderHoweverItsBytesCome(t *testing.T) {
	s := open(t, settings{})
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		c, _ := s.socket("heartbeat=30")
		defer c.conn.Close()
		c.open(t)
		var stream []byte
		var want []string
		frame := func(first byte, payload string) {
			key := rapid.Uint32().Draw(rt, "key")
			stream = append(stream, clientFrame(first, [4]byte(binary.BigEndian.AppendUint32(nil, key)), payload)...)
		}
		control := func() {
			switch rapid.IntRange(0, 5).Draw(rt, "control") {
			case 0:
				frame(0x80|9, fmt.Sprint("ping", len(stream)))
			case 1:
				frame(0x80|10, rapid.SampledFrom([]string{"", "a pong that nobody asked for"}).Draw(rt, "pong"))
			}
		}
		written := feed.Seq(0)
		text := func() string {
			id := fmt.Sprint(len(want))
			key := fmt.Sprint("run", run, "-", id)
			switch rapid.IntRange(0, 5).Draw(rt, "kind") {
			case 0:
				want = append(want, `"type":"error","id":"`+id)
				return fmt.Sprintf(`{"type":"write","id":"%s","changes":[{"op":"fly","collection":"todos","key":"a"}]}`, id)
			case 1:
				want = append(want, `"type":"error","id":"`+id)
				return fmt.Sprintf(`{"id":"%s","type":"write","what":1}`, id)
			case 2:
				written++
				want = append(want, `"type":"written","id":"`+id)
				return fmt.Sprintf(` { "id":"%s","changes":[%s],"type":"write"}`, id, put(key, `{}`))
			}
			written++
			want = append(want, `"type":"written","id":"`+id)
			pad := strings.Repeat("x", rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(0, 70_000)).Draw(rt, "pad"))
			return fmt.Sprintf(`{"type":"write","id":"%s","changes":[%s]}`, id, put(key, fmt.Sprintf(`{"pad":%q}`, pad)))
		}
		for range rapid.IntRange(1, 8).Draw(rt, "messages") {
			control()
			m := text()
			for range rapid.IntRange(0, 2).Draw(rt, "more") { // lines of the same message
				m += "\n" + text()
			}
			first := byte(1)
			for range rapid.IntRange(0, 2).Draw(rt, "fragments") {
				n := rapid.IntRange(0, len(m)).Draw(rt, "fragment")
				frame(first, m[:n])
				m, first = m[n:], 0
				control()
			}
			frame(0x80|first, m)
		}
		head := s.hub.Stats().Head
		sendCut(rt, c.conn, stream)
		_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		for answers := 0; answers < len(want); {
			op, said, err := c.read()
			if err != nil {
				rt.Fatalf("instead of answer %d of %d: %v", answers, len(want), err)
			}
			if op != 1 {
				continue // a pong; of several pings only the last has to be answered
			}
			for line := range strings.SplitSeq(said, "\n") {
				if strings.Contains(line, `"type":"live"`) {
					continue
				}
				if answers == len(want) || !strings.Contains(line, want[answers]) {
					rt.Fatalf("answer %d is %.300s, and not one to %s", answers, line, want[min(answers, len(want)-1)])
				}
				answers++
			}
		}
		if n := s.hub.Stats().Head - head; n != written {
			rt.Fatalf("%d writes took effect %d times", written, n)
		}
		if err := c.write(8, "\x03\xe8"); err != nil {
			rt.Fatal(err)
		}
		for {
			if op, said, err := c.read(); err != nil {
				rt.Fatalf("instead of a close frame: %v", err)
			} else if op == 8 {
				if said != "\x03\xe8" {
					rt.Errorf("closed by %q", said)
				}
				break
			}
		}
	})
	s.sessions(0)
}

// rawSocket is a WebSocket by hand: it answers nothing by itself.
type rawSocket struct {
	conn net.Conn
	r    *bufio.Reader
}

// socket shakes hands by hand; it returns what the server said.
func (s *site) socket(query string) (*rawSocket, string) {
	s.t.Helper()
	c, err := s.dial(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /v1/acme/feed?"+query+" HTTP/1.1\r\nHost: localhost\r\n"+strings.ReplaceAll(upgrade, "\n", "\r\n")+"\r\n"); err != nil {
		s.t.Fatal(err)
	}
	r := bufio.NewReader(c)
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			s.t.Fatal(err)
		}
		head.WriteString(line)
		if line == "\r\n" {
			break
		}
	}
	if !strings.HasPrefix(head.String(), "HTTP/1.1 101") {
		s.t.Fatal(head.String())
	}
	return &rawSocket{c, r}, head.String()
}

// open reads the first frame: until then a pipe, which has no buffer, takes nothing the
// other way.
func (c *rawSocket) open(t *testing.T) {
	t.Helper()
	if _, b, err := c.read(); err != nil || !strings.Contains(b, `"open"`) {
		t.Fatalf("open is %q, %v", b, err)
	}
}

// write sends one frame, masked with zeros.
func (c *rawSocket) write(op byte, payload string) error {
	_, err := c.conn.Write(clientFrame(0x80|op, [4]byte{}, payload))
	return err
}

// clientFrame is one frame of a client's.
func clientFrame(first byte, key [4]byte, payload string) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	b = append(b, key[:]...)
	for i := range len(payload) {
		b = append(b, payload[i]^key[i%4])
	}
	return b
}

// read returns the next frame; fragments come one by one.
func (c *rawSocket) read() (op byte, payload string, err error) {
	var head [2]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, "", err
	}
	n := uint64(head[1] & 0x7f)
	if head[1]&0x80 != 0 {
		return 0, "", errors.New("a server must not mask")
	}
	var ext [8]byte
	switch n {
	case 126:
		if _, err := io.ReadFull(c.r, ext[:2]); err != nil {
			return 0, "", err
		}
		n = uint64(binary.BigEndian.Uint16(ext[:2]))
	case 127:
		if _, err := io.ReadFull(c.r, ext[:]); err != nil {
			return 0, "", err
		}
		n = binary.BigEndian.Uint64(ext[:])
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return 0, "", err
	}
	return head[0] & 0xf, string(b), nil
}

// Libraries close a socket over a message of more than 32 KiB unless they are told otherwise: a replay must not end there.
func TestMessagesOfAReplayAreNoLargerThanLibrariesTake(t *testing.T) {
	s := open(t, settings{})
	const rows = 500
	var list []string
	for i := range rows {
		list = append(list, put(fmt.Sprint("k", i), `{"title":"`+strings.Repeat("x", 150+i%100)+`"}`))
	}
	s.write(`{"atomic":false,"changes":[` + strings.Join(list, ",") + `]}`)
	c, _ := s.socket("c=todos")
	defer c.conn.Close()
	came, live := 0, false
	var sizes []int
	for !live {
		_, payload, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(payload))
		came += strings.Count(payload, `"type":"change"`)
		live = strings.Contains(payload, `"type":"live"`)
	}
	if came != rows || slices.Max(sizes) > 32<<10 || len(sizes) > 20 {
		t.Errorf("%d rows came in messages of %d bytes", came, sizes)
	}
}

func TestWhatComesWithAHandshakeIsNotLostToWhatComesNext(t *testing.T) {
	s := open(t, settings{})
	frame := func(id string) string {
		return string(clientFrame(0x80|1, [4]byte{}, `{"type":"unsubscribe","id":"`+id+`","collections":["x"]}`))
	}
	for i := range 300 {
		c := s.caller()
		c.send("GET /v1/acme/feed?c=todos&heartbeat=30&transport=websocket HTTP/1.1\r\nHost: localhost\r\n" + strings.ReplaceAll(upgrade, "\n", "\r\n") + "\r\n" + frame("first"))
		for end := time.Now().Add(time.Duration(50+i%200) * time.Microsecond); time.Now().Before(end); {
			runtime.Gosched()
		}
		c.send(frame("second"))
		_ = c.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		got := ""
		for b := make([]byte, 4096); !strings.Contains(got, `"second"`); {
			n, err := c.in.Read(b)
			if got += string(b[:n]); err != nil {
				t.Fatalf("socket %d: %v after %q", i, err, got)
			}
		}
		if !strings.Contains(got, `"first"`) {
			t.Fatalf("socket %d: the first request was not answered: %q", i, got)
		}
		_ = c.conn.Close()
	}
}

// TestAClientThatPingsAndReadsNothingHoldsNobodyUp: what delivers to it delivers to others too.
func TestAClientThatPingsAndReadsNothingHoldsNobodyUp(t *testing.T) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		for round := range 20 { // in which the last message but for the pong, or not even that, just fits
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Error(err)
				return
			}
			peer, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			_ = peer.(*net.TCPConn).SetReadBuffer(4096)
			c, err := transport.Listen(l).Accept()
			if err != nil {
				t.Error(err)
				return
			}
			for link := transport.NewPinged(c); link.Deliver(100 + round); {
			}
			_, _, _ = c.Close(), peer.Close(), l.Close()
		}
	}()
	select {
	case <-over:
	case <-time.After(20 * time.Second):
		t.Fatal("who delivers waits for one client")
	}
}
