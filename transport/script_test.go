package transport_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// player plays a script on one transport.
type player struct {
	*site
	t         *testing.T
	transport string
	stream    *stream
	fold      *fold
	resets    []string
}

// connect starts a feed of both collections where the client is, or somewhere else.
func (p *player) connect(transport, cursor string) {
	query := "c=todos&c=lists"
	if cursor != "" {
		query += "&cursor=" + cursor
	}
	if transport == poll {
		query += "&limit=3"
	}
	p.stream = p.follow(transport, query)
	p.take()
	time.Sleep(26 * time.Second) // a poll that has nothing to say says so then
	p.take()
	if !p.fold.live {
		p.t.Errorf("%s: not live from cursor %q", p.transport, cursor)
	}
}

// take applies what has come.
func (p *player) take() {
	for _, f := range p.stream.now() {
		p.fold.apply(f)
		if f.Type == "reset" {
			p.resets = append(p.resets, f.Reason+" "+strings.Join(f.Collections, ","))
		}
	}
}

func (p *player) say(body string) {
	p.write(body)
	p.take()
}

func (p *player) drop() { p.stream.close(); synctest.Wait() }

func (p *player) check(what string) {
	p.t.Helper()
	p.fold.t = p.t
	for _, c := range []string{"todos", "lists"} {
		before := p.t.Failed()
		p.fold.check(p.site, c)
		if p.t.Failed() && !before {
			p.t.Fatalf("%s: %s differs from here on", p.transport, what)
		}
	}
}

// played is how a script went, comparable between transports.
type played struct {
	rows, cursor    string
	changes, resets []string
}

func script(t *testing.T, transport string, next string) (r played) {
	bubble(t, settings{hub: hub.Options{Tombstones: time.Hour}}, func(t *testing.T, s *site) {
		p := &player{site: s, t: t, transport: transport, fold: newFold(t)}
		p.connect(transport, "")

		// Writes, a transaction over two collections, a remove.
		p.say(changes(put("a", `{"n":1}`)))
		p.say(changes(put("b", `{"n":1}`)))
		p.say(changes(put("a", `{"n":2}`), put("lists:x", `{"n":1}`), put("lists:y", `{"n":1}`)))
		p.say(changes(remove("b")))
		p.check("writes")

		// The connection drops, things happen, it resumes.
		p.drop()
		p.write(changes(put("a", `{"n":3}`)))
		p.write(changes(put("a", `{"n":4}`), remove("lists:x"), put("c", `{"n":1}`)))
		p.write(changes(put("c", `{"n":2}`), put("lists:z", `{"n":1}`), put("lists:y", `{"n":2}`)))
		p.connect(transport, p.fold.cursor)
		p.check("a resume")

		// The same cursor on another transport, and back.
		p.drop()
		p.write(changes(put("d", `{"n":1}`), put("lists:z", `{"n":2}`)))
		p.connect(next, p.fold.cursor)
		p.say(changes(put("d", `{"n":2}`)))
		p.drop()
		p.write(changes(put("e", `{"n":1}`)))
		p.connect(transport, p.fold.cursor)
		p.check("another transport")

		// Cursors that are no good.
		for _, cursor := range []string{"zzzz9-3", fmt.Sprintf("%s-%d", s.hub.Epoch(), s.hub.Stats().Head+1000), "nonsense"} {
			p.drop()
			p.write(changes(remove("e")))
			p.write(changes(put("e", `{"n":2}`)))
			p.connect(transport, cursor)
			p.check("cursor " + cursor)
		}

		// A cursor from before removes that are forgotten.
		p.drop()
		p.write(changes(remove("e"), remove("lists:z")))
		time.Sleep(3 * time.Hour)
		p.write(changes(put("f", `{"n":1}`)))
		p.connect(transport, p.fold.cursor)
		p.check("an expired cursor")

		// The client is too busy to read for a while. What it gets then may leave out
		// what is old.
		same := len(p.fold.applied)
		p.stream.pause()
		synctest.Wait()
		for i := range 200 {
			p.write(changes(put(fmt.Sprintf("lag%d", i%3), fmt.Sprintf(`{"n":%d,"pad":%q}`, i, strings.Repeat("x", 200)))))
		}
		p.stream.resume()
		p.take()
		p.check("a lag")
		if n := len(p.fold.applied) - same; n < 3 || n > 100 {
			t.Errorf("%s: a client that lagged got %d changes of 200 on 3 rows", transport, n)
		}
		if transport == poll && len(p.fold.applied)-same > 4 {
			t.Errorf("a poll that lagged got %d changes for 3 rows", len(p.fold.applied)-same)
		}
		lagged := len(p.fold.applied)

		// It begins anew, beside what it holds.
		p.drop()
		p.connect(transport, "")
		p.say(changes(put("last", `{"n":1}`)))
		p.check("a new beginning")

		r.cursor = strings.TrimPrefix(p.fold.cursor, string(s.hub.Epoch()))
		r.rows = fmt.Sprint(p.fold.rows)
		r.resets = p.resets
		r.changes = append(slices.Clone(p.fold.applied[:same]), p.fold.applied[lagged:]...)
	})
	return r
}

func TestClientEndsWithTheSameRowsWhicheverTransportCarriesIt(t *testing.T) {
	var first played
	for i, transport := range transports {
		r := script(t, transport, transports[(i+1)%len(transports)])
		if i == 0 {
			first = r
			t.Logf("%d changes, resets %q, cursor …%s", len(r.changes), r.resets, r.cursor)
			if want := []string{"epoch todos,lists", "ahead todos,lists", "malformed todos,lists", "expired todos,lists"}; !slices.Equal(r.resets, want) {
				t.Errorf("the resets are %q", r.resets)
			}
			continue
		}
		if r.rows != first.rows || r.cursor != first.cursor {
			t.Errorf("%s ends with\n%s\n%s at %s, %s at %s", transport, r.rows, first.rows, r.cursor, transports[0], first.cursor)
		}
		if !slices.Equal(r.resets, first.resets) {
			t.Errorf("%s: the resets are %q, not %q", transport, r.resets, first.resets)
		}
		if !slices.Equal(r.changes, first.changes) {
			t.Errorf("%s: the changes are\n%s\nnot\n%s", transport, strings.Join(r.changes, "\n"), strings.Join(first.changes, "\n"))
		}
	}
}
