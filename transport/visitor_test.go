//go:build linux

package transport_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
)

// caller polls on one connection, byte by byte as the test wants it.
type caller struct {
	s    *site
	conn net.Conn
	in   *bufio.Reader
	at   string // the cursor that it has come to
	got  []frame
}

func (s *site) caller() *caller {
	s.t.Helper()
	conn, err := s.dial(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return &caller{s: s, conn: conn, in: bufio.NewReader(conn)}
}

// usual are the header fields of a caller's polls.
const usual = "Host: localhost\r\nAccept: */*\r\nUser-Agent: caller\r\n"

func (c *caller) send(text string) {
	c.s.t.Helper()
	if _, err := io.WriteString(c.conn, text); err != nil {
		c.s.t.Fatal(err)
	}
}

// poll is the text of a poll from where the caller is.
func (c *caller) poll(wait int) string {
	return fmt.Sprintf("GET /v1/acme/feed?c=todos&wait=%d&cursor=%s HTTP/1.1\r\n%s\r\n", wait, c.at, usual)
}

// answer reads an answer and its frames.
func (c *caller) answer() (*http.Response, []frame) {
	c.s.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.s.t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		c.s.t.Fatal(err)
	}
	var frames []frame
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-ndjson") {
		for line := range strings.Lines(string(body)) {
			f := parse(c.s.t, strings.TrimSuffix(line, "\n"))
			frames = append(frames, f)
			if f.Cursor != "" {
				c.at = f.Cursor
			}
		}
		c.got = append(c.got, frames...)
	}
	return r, frames
}

// settle polls until it is a visitor whose request is known.
func (c *caller) settle() {
	c.s.t.Helper()
	for range 3 {
		c.send(c.poll(0))
		c.answer()
		go c.s.put("settle", `{}`)
		c.send(c.poll(55))
		if _, frames := c.answer(); len(frames) < 3 {
			c.s.t.Fatalf("settling: %v", frames)
		}
	}
	if n := transport.Visitors(c.s.server); n == 0 {
		c.s.t.Fatal("nobody visits")
	}
	c.got = nil
}

func TestAnAnswerOfLargeRowsIsNotCutShortWhereARowEndsAPiece(t *testing.T) {
	s := open(t, settings{})
	c := s.caller()
	c.settle()
	const rows = 20 // more than an attendant hands out in a row
	for i := range rows {
		s.put(fmt.Sprint("large", i), fmt.Sprintf(`{"pad":%q}`, strings.Repeat("x", 40_000)))
	}
	c.send(c.poll(0))
	if _, frames := c.answer(); types(frames) != "open"+strings.Repeat(" change", rows)+" live" {
		t.Error(types(frames))
	}
	// And what comes next on the connection is the answer to the next poll.
	c.send(c.poll(0))
	if _, frames := c.answer(); types(frames) != "open live" {
		t.Error(types(frames))
	}
}

func TestWhoNamesCollectionsInThePathAndInTheQueryLosesNoneOnTheNextPoll(t *testing.T) {
	s := open(t, settings{})
	c := s.caller()
	for i := range 4 {
		s.write(fmt.Sprintf(`{"changes":[{"collection":"lists","op":"put","key":"k%d","value":{}},{"collection":"todos","op":"put","key":"k%d","value":{}}]}`, i, i))
		c.send(fmt.Sprintf("GET /v1/acme/feed/c=lists?c=todos&wait=0&cursor=%s HTTP/1.1\r\n%s\r\n", c.at, usual))
		if _, frames := c.answer(); types(frames) != "open change change live" {
			t.Errorf("poll %d: %s", i+1, types(frames))
		}
	}
}

func TestAClientThatPollsOnLosesNothingWhateverElseItAsksInBetween(t *testing.T) {
	s := open(t, settings{})
	c := s.caller()
	c.settle()
	want := 0
	written := func() {
		s.put(fmt.Sprintf("k%03d", want), `{}`)
		want++
	}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"held", func() {
			c.send(c.poll(55))
			time.Sleep(20 * time.Millisecond)
			written()
			c.answer()
		}},
		{"already there", func() { written(); c.send(c.poll(55)); c.answer() }},
		{"nothing comes", func() {
			c.send(c.poll(1))
			if _, frames := c.answer(); types(frames) != "open live" {
				t.Error(frames)
			}
		}},
		{"in two parts", func() {
			written()
			text := c.poll(55)
			c.send(text[:30])
			time.Sleep(20 * time.Millisecond)
			c.send(text[30:])
			c.answer()
		}},
		{"two at once", func() { // the second is from before what the first tells
			written()
			text := c.poll(55)
			c.send(text + text)
			c.answer()
			_, frames := c.answer()
			c.got = c.got[:len(c.got)-len(frames)]
		}},
		{"one while another is held", func() {
			text := c.poll(55)
			c.send(text)
			time.Sleep(20 * time.Millisecond)
			c.send(text)
			time.Sleep(20 * time.Millisecond)
			written()
			c.answer()
			_, frames := c.answer()
			c.got = c.got[:len(c.got)-len(frames)]
		}},
		{"a write", func() {
			body := fmt.Sprintf(`{"changes":[{"collection":"todos","op":"put","key":"k%03d","value":{}}]}`, want)
			want++
			c.send(fmt.Sprintf("POST /v1/acme/changes HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
			if r, _ := c.answer(); r.StatusCode != 200 {
				t.Error(r.Status)
			}
		}},
		{"another header", func() {
			written()
			c.send(strings.Replace(c.poll(55), "caller", "another", 1))
			c.answer()
		}},
		{"another collection", func() {
			at := c.at
			c.send(strings.Replace(c.poll(0), "c=todos", "c=lists", 1))
			c.answer()
			c.at = at
		}},
		{"what can't be read", func() {
			for _, bad := range []string{"wait=x", "limit=0", "c=%zz", "c=.", "transport=pigeon", "ticket=none"} {
				c.send(strings.Replace(c.poll(55), "c=todos", "c=todos&"+bad, 1))
				if r, _ := c.answer(); r.StatusCode/100 != 4 {
					t.Errorf("%s: %s", bad, r.Status)
				}
			}
		}},
		{"what is known", func() { written(); c.send(c.poll(55)); c.answer() }},
		{"more than one answer holds", func() {
			for range 5 {
				written()
			}
			for n := 5; n > 0; {
				c.send(strings.Replace(c.poll(55), "c=todos", "c=todos&limit=2", 1))
				_, frames := c.answer()
				n -= len(frames) - 2
			}
		}},
		{"a large one", func() {
			s.fill("large", 40, 20_000)
			for live := false; !live; {
				c.send(c.poll(55))
				_, frames := c.answer()
				live = frames[len(frames)-1].Type == "live"
			}
		}},
	} {
		step.do()
		if t.Failed() {
			t.Fatal(step.name)
		}
	}
	written()
	c.send(c.poll(55))
	c.answer()
	seen := map[string]int{}
	for _, f := range c.got {
		if f.Type == "change" {
			seen[f.Key]++
		}
	}
	for i := range want {
		if n := seen[fmt.Sprintf("k%03d", i)]; n != 1 {
			t.Errorf("change %d was told %d times", i, n)
		}
	}
	if len(seen) < 40 {
		t.Errorf("%d rows were told", len(seen))
	}
}

// The head of an answer is what net/http makes of it, whoever answers.
func TestWhoPollsOnIsAnsweredAsTheFirstTime(t *testing.T) {
	s := open(t, settings{})
	s.put("a", `{}`)
	s.put("b", `{}`)
	for _, header := range []string{"", "Origin: http://localhost:3000\r\n", "If-None-Match: *\r\n"} {
		c := s.caller()
		for _, query := range []string{"c=todos", "c=todos&limit=1"} {
			var want []string
			for _, other := range []string{"Te: trailers\r\n", "", "", "", ""} { // the first stays with net/http
				c.send("GET /v1/acme/feed?" + query + " HTTP/1.1\r\nHost: localhost\r\n" + other + header + "\r\n")
				r, _ := c.answer()
				if _, err := http.ParseTime(r.Header.Get("Date")); err != nil {
					t.Errorf("Date: %v", err)
				}
				r.Header.Del("Date")
				got := []string{r.Proto, r.Status, fmt.Sprint(r.ContentLength > 0, r.TransferEncoding)}
				for _, name := range slices.Sorted(maps.Keys(r.Header)) {
					got = append(got, name+": "+strings.Join(r.Header[name], ", "))
				}
				if want == nil {
					want = got
				} else if !slices.Equal(got, want) {
					t.Errorf("%q %q: %q, and by net/http %q", header, query, got, want)
				}
			}
		}
	}
	if n := transport.Visitors(s.server); n != 3 {
		t.Errorf("%d visitors", n)
	}
}

func TestAPollersSessionEndsWithItsConnection(t *testing.T) {
	s := open(t, settings{})
	var all []*caller
	for range 20 {
		c := s.caller()
		c.settle()
		all = append(all, c)
	}
	for _, c := range all {
		c.at = s.hubCursor()
		c.send(c.poll(55))
	}
	s.sessions(20)
	for _, c := range all {
		c.conn.Close()
	}
	s.sessions(0)
	s.eventually("no visitors", func() bool { return transport.Visitors(s.server) == 0 })
}

func TestAPollerThatAsksNothingIsClosedAfterAWhile(t *testing.T) {
	s := open(t, settings{idle: 300 * time.Millisecond})
	c := s.caller()
	c.settle()
	c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.in.ReadByte(); err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	s.eventually("no visitors", func() bool { return transport.Visitors(s.server) == 0 })
}

func TestAStoppingServerTellsWhoPollsAndKeepsNobody(t *testing.T) {
	s := open(t, settings{})
	idle, waiting := s.caller(), s.caller()
	idle.settle()
	waiting.settle()
	s.sessions(0) // else that of the poll before might be the one that is looked for
	waiting.at = s.hubCursor()
	waiting.send(waiting.poll(55))
	s.sessions(1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.stop(ctx); err != nil {
		t.Error(err)
	}
	r, frames := waiting.answer()
	if last := frames[len(frames)-1]; last.Type != "end" || last.Reason != "draining" || !r.Close {
		t.Errorf("%v, close %t", frames, r.Close)
	}
	for _, c := range []*caller{idle, waiting} {
		if _, err := c.in.ReadByte(); err != io.EOF {
			t.Errorf("the connection: %v", err)
		}
	}
}

// fickle grants what lives for a short while, and nothing to thieves.
type fickle struct{ refuse atomic.Bool }

func (f *fickle) Authorize(r *http.Request) (hub.Grant, error) {
	if f.refuse.Load() || r.UserAgent() == "thief" {
		return hub.Grant{}, errors.New("no more")
	}
	g := hub.Everything
	g.Expires = time.Now().Add(time.Second)
	return g, nil
}

func TestAPollersCredentialIsLookedAtEachTimeAndEndsWhatIsHeld(t *testing.T) {
	f := new(fickle)
	s := open(t, settings{options: transport.Options{Authorizer: f}})
	c := s.caller()
	c.settle()
	c.at = s.hubCursor()
	c.send(c.poll(55))
	if _, frames := c.answer(); types(frames) != "open end" || frames[1].Reason != "expired" {
		t.Errorf("held: %v", frames)
	}
	c = s.caller()
	c.settle()
	c.send(strings.Replace(c.poll(55), "caller", "thief", 1))
	if r, _ := c.answer(); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("a thief on the same connection: %s", r.Status)
	}
	f.refuse.Store(true)
	c.send(c.poll(55))
	if r, _ := c.answer(); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("refused: %s", r.Status)
	}
}

// A connection that a proxy uses for many gains nothing from being taken over.
func TestAConnectionThatManyShareIsLeftToTheServer(t *testing.T) {
	s := open(t, settings{})
	c := s.caller()
	for i := range 8 {
		s.put("a", `{}`)
		c.send(strings.Replace(c.poll(55), "caller", fmt.Sprint("caller ", i), 1))
		if r, frames := c.answer(); r.StatusCode != 200 || len(frames) == 0 {
			t.Fatalf("%d: %s %v", i, r.Status, frames)
		}
	}
	if n := transport.Visitors(s.server); n != 0 {
		t.Errorf("%d visitors", n)
	}
}

// A poll that reads like the one before it but for one place is answered by what it says, wherever
// that place is.
func TestAPollGetsWhatItsOwnQueryAsksForHoweverLikeTheLastItIs(t *testing.T) {
	s := open(t, settings{})
	var at []string
	for _, key := range []string{"a", "b", "c", "d"} {
		s.put(key, `{}`)
		at = append(at, s.hubCursor())
	}
	escaped := func(cursor string) string { return fmt.Sprintf("%%%02X%s", cursor[0], cursor[1:]) }
	for _, query := range []func(cursor string) string{
		func(c string) string { return "c=todos&wait=0&cursor=" + c },
		func(c string) string { return "cursor=" + c + "&c=todos&wait=0" },
		func(c string) string { return "wait=0&c=todos%40" + c },
		func(c string) string { return "wait=0&c=todos@" + c + "&limit=2" },
		func(c string) string { return "wait=0&c=todos&last_event_id=" + c },
		func(c string) string { return "wait=0&c=todos@" + c + "&c=done@" + c },
		func(c string) string { return "wait=0&c=todos&x=" + c + "&cursor=" + c },
		func(c string) string { return "wait=0&c=todos&x=" + c + "&cursor=" + escaped(at[1]) },
		func(c string) string { return "wait=0&c=todos&x=" + at[1] + "&cursor=" + escaped(c) },
		func(c string) string { return "wait=0&c=todos&x=" + c },
	} {
		c := s.caller()
		for _, cursor := range []string{at[0], at[0], at[2], at[1], at[3], "0-0", at[2] + "0", at[1] + "%26limit=1"} {
			ask := func(more string) string {
				c.send("GET /v1/acme/feed?" + query(cursor) + " HTTP/1.1\r\nHost: localhost\r\n" + more + "\r\n")
				r, frames := c.answer()
				said := []string{r.Status, types(frames)}
				for _, f := range frames {
					said = append(said, fmt.Sprint(f.Seq, f.Key, f.Cursor, f.Reason))
				}
				return strings.Join(said, " ")
			}
			got := ask("")
			if got == "" || strings.HasPrefix(got, "4") {
				c = s.caller() // net/http may close after a refusal
			}
			same := c
			c = s.caller()
			want := ask("Te: trailers\r\n") // which stays with net/http
			if c = same; got != want {
				t.Errorf("%s: %s, and by itself %s", query(cursor), got, want)
			}
		}
	}
}

// steady grants what stays the same, and counts how often it is asked.
type steady struct {
	asked   atomic.Int32
	expires time.Time
}

func (a *steady) Authorize(*http.Request) (hub.Grant, error) {
	a.asked.Add(1)
	g := hub.Everything
	g.Subject, g.Issued, g.Expires = "ann", time.Now().Add(-time.Minute), a.expires
	if !a.expires.IsZero() && time.Now().After(a.expires) {
		return g, errors.New("expired")
	}
	return g, nil
}

func (*steady) Steady() bool { return true }

func TestAPollerWhoIsNotAskedAboutAnewIsStillRefusedOnceRevokedOrExpired(t *testing.T) {
	poller := func(a *steady) *caller {
		s := open(t, settings{options: transport.Options{Authorizer: a}})
		c := s.caller()
		c.settle()
		c.at = s.hubCursor()
		before := int32(0)
		for i := range 5 {
			c.send(c.poll(0))
			if r, _ := c.answer(); r.StatusCode != http.StatusOK {
				t.Fatal(r.Status)
			}
			if i == 0 { // another wait than when it settled
				before = a.asked.Load()
			}
		}
		if n := a.asked.Load() - before; n != 0 {
			t.Errorf("asked %d times about the same", n)
		}
		return c
	}
	c := poller(&steady{expires: time.Now().Add(1500 * time.Millisecond)})
	c.send(c.poll(55))
	if _, frames := c.answer(); types(frames) != "open end" || frames[1].Reason != "expired" {
		t.Errorf("held: %v", frames)
	}
	c = poller(&steady{})
	g := hub.Everything
	g.Admin = true
	if err := c.s.hub.Revoke(t.Context(), g, hub.Revocation{Tenant: "acme", Subject: "ann"}); err != nil {
		t.Fatal(err)
	}
	c.send(c.poll(0))
	if r, _ := c.answer(); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("revoked: %s", r.Status)
	}
}

func TestAPollerWhoLeavesRightAfterAskingIsLetGo(t *testing.T) {
	s := open(t, settings{idle: time.Minute})
	s.put("a", `{}`)
	for range 40 {
		c := s.caller()
		for range 3 {
			c.send(c.poll(0))
			if _, f := c.answer(); len(f) > 0 {
				c.at = f[len(f)-1].Cursor
			}
		}
		c.send(c.poll(50))
		_ = c.conn.Close()
	}
	s.eventually("sessions of those who are there", func() bool { return s.hub.Stats().Sessions == 0 })
}

// TestAPollAfterOneThatFillsTheBufferIsAnswered: what is read at a time is 4,096 bytes.
func TestAPollAfterOneThatFillsTheBufferIsAnswered(t *testing.T) {
	s := open(t, settings{idle: time.Minute})
	c := s.caller()
	line := "GET /v1/acme/feed?c=todos&wait=0&cursor=" + s.put("a", `{}`).Cursor + " HTTP/1.1\r\n" + usual
	poll := line + "X: " + strings.Repeat("x", 4096-len(line)-len("X: \r\n\r\n")) + "\r\n\r\n"
	for range 3 {
		c.send(poll)
		c.answer()
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	c.send(poll + poll)
	for range 2 {
		if r, _ := c.answer(); r.StatusCode != 200 {
			t.Error(r.Status)
		}
	}
}
