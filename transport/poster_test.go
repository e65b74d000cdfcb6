//go:build linux

package transport_test

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
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
)

// post is the text of a write, with more header fields.
func post(body string, more ...string) string {
	return fmt.Sprintf("POST /v1/acme/changes HTTP/1.1\r\n%sContent-Length: %d\r\n%s\r\n%s", usual, len(body), strings.Join(more, ""), body)
}

// writes has a caller write until it is a poster whose head is known.
func (c *caller) writes(more ...string) {
	c.s.t.Helper()
	for range 3 {
		c.send(post(changes(put("settle", `{}`)), more...))
		if r, _ := c.answer(); r.StatusCode != http.StatusOK {
			c.s.t.Fatalf("settling: %s", r.Status)
		}
	}
	if n := transport.Posters(c.s.server); n == 0 {
		c.s.t.Fatal("nobody writes past net/http")
	}
}

// said is what an answer says, but for when.
func (c *caller) said() string {
	c.s.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err.Error()
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err.Error()
	}
	if _, err := http.ParseTime(r.Header.Get("Date")); err != nil {
		c.s.t.Errorf("Date: %v", err)
	}
	r.Header.Del("Date")
	got := []string{r.Proto, r.Status, fmt.Sprint(r.ContentLength, r.TransferEncoding)}
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		got = append(got, name+": "+strings.Join(r.Header[name], ", "))
	}
	return strings.Join(append(got, string(body)), "\n")
}

func TestWhoWritesOnIsAnsweredAsTheFirstTime(t *testing.T) {
	s := open(t, settings{})
	s.put("there", `{"n":1}`)
	for _, origin := range []string{"", "Origin: http://localhost:3000\r\n"} {
		for _, body := range []string{
			changes(`{"op":"remove","collection":"todos","key":"never"}`), // nothing to log: the same each time
			changes(`{"op":"insert","collection":"todos","key":"there","value":{}}`),
			changes(`{"op":"put","collection":"todos","key":"there","value":{},"if":7777}`),
			`{"changes":[{"op":"put"`, `{"changes":[]}`, `{"what":1}`, `[]`,
			changes(put("there", `{}`), `{"op":"fly","collection":"todos","key":"a"}`),
			changes(put("/:a", `{}`)),
			changes(put("a", `"`+strings.Repeat("x", 20_000)+"\xff\"")),
		} {
			c := s.caller()
			c.send(post(body, origin, "Te: trailers\r\n")) // which stays with net/http
			want := c.said()
			c.conn.Close()
			before := transport.Posters(s.server)
			c = s.caller()
			c.writes(origin)
			for range 3 {
				c.send(post(body, origin))
				if got := c.said(); ours(got) != ours(want) {
					t.Errorf("%.60q: got\n%s\nand by net/http\n%s", body, got, want)
				}
			}
			if n := transport.Posters(s.server); n != before+1 {
				t.Errorf("%.60q ended it", body)
			}
			c.conn.Close()
			s.eventually("it has gone", func() bool { return transport.Posters(s.server) == before })
		}
	}
}

// ours is what an answer says, but for where the log stood.
func ours(said string) string { return stood.ReplaceAllString(said, "N") }

var stood = regexp.MustCompile(`("cursor":"[^"]*|"seq":)[0-9]+`)

// sendCut sends what it is given in pieces of any size, beside whoever reads the answers.
func sendCut(rt *rapid.T, conn net.Conn, stream []byte) {
	cuts := []int{0, len(stream)}
	for range rapid.IntRange(0, 6).Draw(rt, "cuts") {
		cuts = append(cuts, rapid.IntRange(0, len(stream)).Draw(rt, "cut"))
	}
	slices.Sort(cuts)
	go func() {
		for i := 1; i < len(cuts); i++ {
			_, _ = conn.Write(stream[cuts[i-1]:cuts[i]])
			time.Sleep(time.Duration(i%2) * time.Millisecond) // so that they come as they are; whatever comes is right
		}
	}()
}

// Whatever is on the way cuts a stream of requests as it likes.
func TestEachWriteTakesEffectOnceAndIsAnsweredInOrderHoweverItsBytesCome(t *testing.T) {
	s := open(t, settings{})
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		c := s.caller()
		if rapid.Bool().Draw(rt, "known") {
			c.writes()
		}
		var stream []byte
		var want []string
		for i := range rapid.IntRange(1, 8).Draw(rt, "requests") {
			key := fmt.Sprint("run", run, "-", i)
			switch rapid.IntRange(0, 7).Draw(rt, "kind") {
			case 0:
				stream = append(stream, "GET /healthz HTTP/1.1\r\n"+usual+"\r\n"...)
				want = append(want, "ok\n")
			case 1:
				stream = append(stream, post(changes(put(key, `{}`)), "X-Other: 1\r\n")...)
				want = append(want, key)
			case 2:
				stream = append(stream, post(`{"changes":`)...)
				want = append(want, "unexpected EOF")
			case 3:
				stream = append(stream, post(changes(put(key, `"`+strings.Repeat("x", rapid.IntRange(10, 60_000).Draw(rt, "size"))+`"`)))...)
				want = append(want, "bad-request")
			case 4:
				body := changes(put(key, `{}`))
				stream = append(stream, fmt.Sprintf("POST /v1/acme/changes HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", usual, len(body), body)...)
				want = append(want, key)
			default:
				pad := strings.Repeat("x", rapid.IntRange(0, 40_000).Draw(rt, "pad"))
				stream = append(stream, post(changes(put(key, fmt.Sprintf(`{"pad":%q}`, pad))))...)
				want = append(want, key)
			}
		}
		head := s.hub.Stats().Head
		sendCut(rt, c.conn, stream)
		written := feed.Seq(0)
		for i, w := range want {
			if said := c.said(); !strings.Contains(said, w) {
				rt.Fatalf("answer %d is not that of %s:\n%.400s", i, w, said)
			}
			if strings.HasPrefix(w, "run") {
				written++
			}
		}
		if n := s.hub.Stats().Head - head; n != written {
			rt.Fatalf("%d writes took effect %d times", written, n)
		}
		c.conn.Close()
	})
	s.eventually("nobody writes", func() bool { return transport.Posters(s.server) == 0 })
}

func TestAWriterIsHeldToTheLimitOfABodyAndKeepsNothingThatWasRefused(t *testing.T) {
	s := open(t, settings{options: transport.Options{Authorizer: transport.Loopback{}, Body: 100_000}})
	c := s.caller()
	c.writes()
	fits := changes(put("fits", fmt.Sprintf(`{"pad":%q}`, strings.Repeat("x", 99_000))))
	c.send(post(fits))
	if r, _ := c.answer(); r.StatusCode != http.StatusOK {
		t.Error(r.Status)
	}
	c.send(post(changes(put("large", fmt.Sprintf(`{"pad":%q}`, strings.Repeat("x", 101_000))))))
	if r, _ := c.answer(); r.StatusCode != http.StatusRequestEntityTooLarge {
		t.Error(r.Status)
	}
	if rows := s.serverRows("todos", "10"); len(rows) != 2 {
		t.Errorf("%d rows", len(rows))
	}
}

func TestWhoeverElseWritesOnAKnownConnectionIsAskedForTheirOwnCredential(t *testing.T) {
	a := &named{}
	s := open(t, settings{options: transport.Options{Authorizer: a}})
	c := s.caller()
	c.writes("Authorization: Bearer ann\r\n")
	asked := a.asked.Load()
	for range 5 {
		c.send(post(changes(put("ann", `{}`)), "Authorization: Bearer ann\r\n"))
		if r, _ := c.answer(); r.StatusCode != http.StatusOK {
			t.Fatal(r.Status)
		}
	}
	if n := a.asked.Load() - asked; n != 0 {
		t.Errorf("asked %d times about the same", n)
	}
	for _, other := range []string{"", "Authorization: Bearer bob\r\n", "Authorization: Bearer anna\r\n", "Authorization:  Bearer ann \r\nAuthorization: Bearer bob\r\n"} {
		c := s.caller()
		c.writes("Authorization: Bearer ann\r\n")
		c.send(post(changes(put("other", `{}`)), other))
		if r, _ := c.answer(); r.StatusCode != http.StatusUnauthorized {
			t.Errorf("%q: %s", other, r.Status)
		}
	}
	// Somebody else comes first on a connection, is refused, and what they sent is not taken for ann's.
	c = s.caller()
	for range 4 {
		c.send(post(changes(put("other", `{}`)), "Authorization: Bearer bob\r\n"))
		if r, _ := c.answer(); r.StatusCode != http.StatusUnauthorized {
			t.Errorf("bob: %s", r.Status)
		}
		c.send(post(changes(put("ann", `{}`)), "Authorization: Bearer ann\r\n"))
		if r, _ := c.answer(); r.StatusCode != http.StatusOK {
			t.Errorf("ann: %s", r.Status)
		}
	}
	if rows := s.serverRows("todos", "10"); rows["other"] != "" {
		t.Error("somebody without a credential has written")
	}
}

// named grants everything to ann, and counts how often it is asked.
type named struct {
	asked   atomic.Int32
	expires atomic.Pointer[time.Time]
	fickle  bool
}

func (a *named) Authorize(r *http.Request) (hub.Grant, error) {
	a.asked.Add(1)
	if r.Method == http.MethodPost && !slices.Equal(r.Header["Authorization"], []string{"Bearer ann"}) {
		return hub.Grant{}, errors.New("who are you?")
	}
	g := hub.Everything
	g.Subject, g.Issued = "ann", time.Now().Add(-time.Minute)
	if e := a.expires.Load(); e != nil {
		g.Expires = *e
	}
	return g, nil
}

func (a *named) Steady() bool { return !a.fickle }

func TestAWriterWhoIsNotAskedAboutAnewIsStillRefusedOnceRevokedOrExpired(t *testing.T) {
	const ann = "Authorization: Bearer ann\r\n"
	a := &named{}
	s := open(t, settings{options: transport.Options{Authorizer: a}})
	soon := time.Now().Add(2 * time.Second)
	a.expires.Store(&soon)
	c := s.caller()
	c.writes(ann)
	a.expires.Store(nil)
	<-time.After(time.Until(soon)) // a credential ends by the clock of the machine
	c.send(post(changes(put("late", `{}`)), ann))
	if r, _ := c.answer(); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("expired: %s", r.Status)
	}
	c = s.caller()
	c.writes(ann)
	g := hub.Everything
	g.Admin = true
	if err := s.hub.Revoke(t.Context(), g, hub.Revocation{Tenant: "acme", Subject: "ann"}); err != nil {
		t.Fatal(err)
	}
	c.send(post(changes(put("late", `{}`)), ann))
	if r, _ := c.answer(); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("revoked: %s", r.Status)
	}
	if n := s.hub.Stats().Rows; n != 2 { // settle, and the revocation
		t.Errorf("%d rows", n)
	}
}

func TestACredentialThatMustBeAskedForEachTimeIs(t *testing.T) {
	a := &named{fickle: true}
	s := open(t, settings{options: transport.Options{Authorizer: a}})
	c := s.caller()
	for range 5 {
		c.send(post(changes(put("a", `{}`)), "Authorization: Bearer ann\r\n"))
		if r, _ := c.answer(); r.StatusCode != http.StatusOK {
			t.Fatal(r.Status)
		}
	}
	if n, m := a.asked.Load(), transport.Posters(s.server); n != 5 || m != 0 {
		t.Errorf("asked %d times, %d connections taken over", n, m)
	}
}

func TestWhoSendsHalfAWriteIsLeftToTheServerWhichTakesTheRest(t *testing.T) {
	defer transport.SetPatience(50 * time.Millisecond)()
	s := open(t, settings{})
	c := s.caller()
	c.writes()
	text := post(changes(put("slow", `{}`)))
	halves := []int{1, 30, len(text) - 60, len(text) - 1}
	for _, at := range halves {
		before := transport.Posters(s.server)
		c.send(text[:at])
		s.eventually("it is given back", func() bool { return transport.Posters(s.server) == before-1 })
		c.send(text[at:])
		if r, _ := c.answer(); r.StatusCode != http.StatusOK {
			t.Errorf("after %d bytes: %s", at, r.Status)
		}
		c.conn.Close()
		s.eventually("it has gone", func() bool { return transport.Posters(s.server) == 0 })
		c = s.caller()
		c.writes()
	}
	// And who sends half of one and leaves is not kept.
	for _, at := range halves {
		c := s.caller()
		c.writes()
		c.send(text[:at])
		c.conn.Close()
	}
	c.conn.Close()
	s.eventually("nobody writes", func() bool { return transport.Posters(s.server) == 0 })
}

func TestAStoppingServerAnswersTheWritesThatItHasTakenAndKeepsNobody(t *testing.T) {
	log := feedtest.NewMemory()
	asked, gate := make(chan struct{}), make(chan struct{})
	log.OnAppend = func(_ feed.Position, group []byte) error {
		if bytes.Contains(group, []byte("last")) {
			close(asked)
			<-gate
		}
		return nil
	}
	s := open(t, settings{log: log})
	idle, busy := s.caller(), s.caller()
	idle.writes()
	busy.writes()
	busy.send(post(changes(put("last", `{}`))))
	<-asked
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stopped := make(chan error)
	go func() { stopped <- s.stop(ctx) }()
	s.eventually("it drains", func() bool { return s.hub.Err() != nil })
	close(gate)
	if r, _ := busy.answer(); r.StatusCode != http.StatusOK {
		t.Error(r.Status)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	for _, c := range []*caller{idle, busy} {
		c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.in.ReadByte(); err != io.EOF {
			t.Errorf("the connection: %v", err)
		}
	}
}

func TestAWriterThatAsksNothingIsClosedAfterAWhile(t *testing.T) {
	s := open(t, settings{idle: 300 * time.Millisecond})
	c := s.caller()
	c.writes()
	c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.in.ReadByte(); err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	s.eventually("nobody writes", func() bool { return transport.Posters(s.server) == 0 })
}

// A connection that a proxy uses for many gains nothing from being taken over.
func TestAConnectionOnWhichManyWriteIsLeftToTheServer(t *testing.T) {
	s := open(t, settings{})
	c := s.caller()
	for i := range 8 {
		c.send(post(changes(put("a", `{}`)), fmt.Sprintf("X-Request-Id: %d\r\n", i)))
		if r, _ := c.answer(); r.StatusCode != http.StatusOK {
			t.Fatalf("%d: %s", i, r.Status)
		}
	}
	if n := transport.Posters(s.server); n != 0 {
		t.Errorf("%d write past net/http", n)
	}
}

// Neither does one on which every few writes something else is asked: to go there and back costs more than a write.
func TestAConnectionThatIsUsedForOtherThingsInBetweenIsLeftToTheServer(t *testing.T) {
	s := open(t, settings{})
	c := s.caller()
	for i := range 8 {
		for range 3 {
			c.send(post(changes(put("a", `{}`))))
			if r, _ := c.answer(); r.StatusCode != http.StatusOK {
				t.Fatalf("%d: %s", i, r.Status)
			}
		}
		c.send("GET /healthz HTTP/1.1\r\n" + usual + "\r\n")
		if r, _ := c.answer(); r.StatusCode != http.StatusOK {
			t.Fatalf("%d: %s", i, r.Status)
		}
	}
	if n := transport.Posters(s.server); n != 0 {
		t.Errorf("%d write past net/http", n)
	}
}

func TestManyWritersAtOnceAreEachAnsweredWithTheirOwn(t *testing.T) {
	s := open(t, settings{})
	const writers, each = 40, 50
	fail := make(chan error, writers)
	for w := range writers {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() {
			in := bufio.NewReader(conn)
			for i := range each {
				key := fmt.Sprint(w, "-", i)
				if _, err := io.WriteString(conn, post(changes(put(key, `{}`)))); err != nil {
					fail <- err
					return
				}
				r, err := http.ReadResponse(in, nil)
				if err != nil {
					fail <- err
					return
				}
				var a struct {
					Results []struct{ Status, Key string }
				}
				if err := json.NewDecoder(r.Body).Decode(&a); err != nil || len(a.Results) != 1 || a.Results[0].Key != key || a.Results[0].Status != "ok" {
					fail <- fmt.Errorf("%s is answered %+v, %v", key, a, err)
					return
				}
				io.Copy(io.Discard, r.Body)
			}
			fail <- nil
		}()
	}
	for range writers {
		if err := <-fail; err != nil {
			t.Error(err)
		}
	}
	if n := s.hub.Stats().Rows; n != writers*each {
		t.Errorf("%d rows", n)
	}
}

// FuzzLength holds what is read of a head here against what net/http reads: a body that two take for one of
// different length is a way past whoever looks at requests.
func FuzzLength(f *testing.F) {
	for _, text := range []string{
		post("{}"), post("{}", "Content-Length: 2\r\n"), post("{}", "Transfer-Encoding: chunked\r\n"), post("{}", " folded: 1\r\n"), post("{}", "content-length : 2\r\n"),
		"POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH:\t 7 \r\n\r\n1234567", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +7\r\n\r\n1234567", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 007\r\n\r\n1234567",
		"POST / HTTP/1.1\nHost: a\nContent-Length: 7\r\n\r\n1234567", "POST / HTTP/1.1\r\nHost: a\r\nX: 1\nContent-Length: 7\r\n\r\n1234567", "\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n1234567",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		head, body, ok := transport.LengthIn(b)
		if !ok || len(b) < head+body {
			return
		}
		in := bytes.NewReader(b)
		buffered := bufio.NewReader(in)
		r, err := http.ReadRequest(buffered)
		if err != nil {
			return // and so it answers 400, with all that came
		}
		if r.ContentLength != int64(body) {
			t.Fatalf("a body of %d bytes, and for net/http of %d: %q", body, r.ContentLength, b)
		}
		if read := len(b) - in.Len() - buffered.Buffered(); read != head {
			t.Fatalf("a head of %d bytes, and for net/http of %d: %q", head, read, b)
		}
	})
}

func TestAWriterWhoLeavesRightAfterAskingIsLetGo(t *testing.T) {
	s := open(t, settings{idle: time.Minute})
	for i := range 60 {
		c := s.caller()
		c.writes()
		c.send(post(changes(put("settle", `{}`))))
		_ = c.conn.(*net.TCPConn).CloseWrite()
		if r, _ := c.answer(); r.StatusCode != 200 {
			t.Fatal(r.Status)
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.in.ReadByte(); err != io.EOF {
			t.Fatalf("connection %d is not closed: %v", i, err)
		}
		_ = c.conn.Close()
	}
}

// net/http takes the end of what somebody says for the end of the connection.
func TestWhoHasNothingMoreToSayIsToldWhatBecameOfTheirWrite(t *testing.T) {
	s := open(t, settings{})
	for i := range 100 {
		key := fmt.Sprint(i)
		row := fmt.Sprintf("PUT /v1/acme/rows/todos?key=%s HTTP/1.1\r\n%sContent-Length: 2\r\n\r\n{}", key, usual)
		for _, text := range []string{post(changes(put(key, `{}`))), row} {
			c := s.caller()
			c.send(text)
			_ = c.conn.(*net.TCPConn).CloseWrite()
			if r, _ := c.answer(); r.StatusCode != http.StatusOK {
				t.Fatalf("%.20s %d: %s", text, i, r.Status)
			}
			_ = c.conn.Close()
		}
	}
}

func TestALengthThatIsOnlyAnnouncedTakesNoMemory(t *testing.T) {
	s := open(t, settings{})
	const connections = 100
	all := make([]*caller, connections)
	for i := range all {
		all[i] = s.caller()
		all[i].writes()
	}
	before := live()
	length := regexp.MustCompile(`Content-Length: [0-9]+`)
	head, _, _ := strings.Cut(post(changes(put("settle", `{}`))), "\r\n\r\n")
	for _, c := range all {
		c.send(length.ReplaceAllString(head, "Content-Length: 1000000") + "\r\n\r\n{")
	}
	time.Sleep(300 * time.Millisecond) // until all of them were read
	if grown := live() - before; grown > connections*100<<10 {
		t.Errorf("%d connections that announce 1 MB take %d bytes", connections, grown)
	}
	runtime.KeepAlive(all)
}

func TestAConnectionThatIsAnsweredKeepsNothingOfWhatItAsked(t *testing.T) {
	s := open(t, settings{idle: time.Minute})
	const connections = 50
	before := live()
	all := make([]*caller, connections)
	for i := range all {
		c := s.caller()
		c.writes()
		for range 2 {
			c.send(post(changes(put("settle", `{}`))+strings.Repeat(" ", 1_000_000)) + post(changes(put("settle", `{}`))))
			for range 2 {
				if r, _ := c.answer(); r.StatusCode != 200 {
					t.Fatal(r.Status)
				}
			}
		}
		all[i] = c
	}
	s.eventually("connections that keep nothing", func() bool { return live()-before < connections*200<<10 })
	runtime.KeepAlive(all)
}
