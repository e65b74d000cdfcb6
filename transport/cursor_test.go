package transport_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
)

// A collection starts at the newest of its own cursor (or the query's) and what the
// transport remembers, among those of this epoch.
func TestFeedStartsAtTheNewestCursorThatItsClientNames(t *testing.T) {
	const other = "zzzz9"
	// Rows a to i are at sequences 1 to 9; E stands for the epoch.
	cases := []struct {
		query, header string // the cursors in the query, and Last-Event-ID
		want          string // the keys that come, after a reset's reason
	}{
		{"c=todos", "", "abcdefghi"},
		{"c=todos&cursor=E-0", "", "abcdefghi"},
		{"c=todos&cursor=E-4", "", "efghi"},
		{"c=todos@E-4", "", "efghi"},
		{"c=todos&cursor=E-9", "", ""},
		{"c=todos@E-4&cursor=E-7", "", "efghi"}, // its own stands instead of the query's
		{"c=todos@E-7&cursor=E-4", "", "hi"},
		{"c=todos@E-4", "E-6", "ghi"},
		{"c=todos@E-6", "E-4", "ghi"},
		{"c=todos&cursor=E-4", "E-6", "ghi"},
		{"c=todos&cursor=E-6", "E-4", "ghi"},
		{"c=todos", "E-6", "ghi"},
		{"c=todos&last_event_id=E-6", "", "ghi"},
		{"c=todos&last_event_id=E-5", "E-6", "ghi"},
		{"c=todos&last_event_id=E-6", "E-5", "ghi"},
		{"c=todos@E-1&last_event_id=E-6&cursor=E-8", "E-5", "ghi"},
		// Empty is none.
		{"c=todos@", "", "abcdefghi"},
		{"c=todos@&cursor=E-8", "", "i"},
		{"c=todos&cursor=", "", "abcdefghi"},
		{"c=todos&last_event_id=&cursor=E-8", "", "i"},
		// Another epoch counts only where none is of this one.
		{"c=todos&cursor=O-99", "", "epoch abcdefghi"},
		{"c=todos@O-99", "O-3", "epoch abcdefghi"},
		{"c=todos", "O-3", "epoch abcdefghi"},
		{"c=todos&cursor=O-99", "E-6", "ghi"},
		{"c=todos&cursor=E-6", "O-99", "ghi"},
		{"c=todos@O-3&last_event_id=nonsense", "E-6", "ghi"},
		// What can't be read, or is ahead.
		{"c=todos&cursor=nonsense", "", "malformed abcdefghi"},
		{"c=todos@E-4@E-5", "", "malformed abcdefghi"},
		{"c=todos&cursor=E-04", "", "malformed abcdefghi"},
		{"c=todos&cursor=E--4", "", "malformed abcdefghi"},
		{"c=todos&cursor=E-9007199254740992", "", "malformed abcdefghi"},
		{"c=todos&cursor=%00%0d%0a", "", "malformed abcdefghi"},
		{"c=todos&cursor=" + strings.Repeat("x", 3000), "", "malformed abcdefghi"},
		{"c=todos&cursor=nonsense", "E-6", "ghi"},
		{"c=todos&cursor=E-10", "", "ahead abcdefghi"},
		{"c=todos&cursor=E-9007199254740991", "", "ahead abcdefghi"},
		// A collection that is named twice is one, from the newest place.
		{"c=todos@E-3&c=todos@E-6", "", "ghi"},
		{"c=todos@E-6&c=todos&cursor=E-3", "", "ghi"},
	}
	for _, tr := range transports {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			for _, key := range "abcdefghi" {
				s.put(string(key), `{}`)
			}
			here := strings.NewReplacer("E-", string(s.hub.Epoch())+"-", "O-", other+"-")
			for _, c := range cases {
				var headers []string
				if c.header != "" {
					headers = []string{"Last-Event-ID", here.Replace(c.header)}
				}
				st := s.feed(tr, here.Replace(c.query)+"&wait=0", headers...)
				var got string
				for _, f := range st.until("live") {
					switch f.Type {
					case "reset":
						got += f.Reason + " "
					case "change":
						got += f.Key
					}
				}
				if got != c.want {
					t.Errorf("%s: %s, Last-Event-ID %q: %q, want %q", tr, c.query, c.header, got, c.want)
				}
				st.close()
			}
		})
	}
}

// A browser's EventSource comes back with the URL that it was made with, and the id of the
// last event.
func TestEventSourceResumesTwoCollectionsThatBeganAtDifferentPlaces(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		for i := range 10 {
			s.put(fmt.Sprint("a", i), `{}`)
			s.put(fmt.Sprint("lists:b", i), `{}`)
		}
		epoch := string(s.hub.Epoch())
		f := newFold(t)
		// The client holds all of lists, and of todos nothing after 4.
		page := s.page("lists", "", "")
		f.rows["lists"] = make(map[string]row)
		for _, r := range page.Rows {
			f.rows["lists"][r.Key] = row{r.Seq, string(r.Value)}
		}
		f.rows["todos"] = map[string]row{"a0": {1, `{}`}, "a1": {3, `{}`}}
		query := "c=todos@" + epoch + "-4&c=lists@" + page.Cursor
		id := ""
		for round := range 12 {
			var headers []string
			if id != "" {
				headers = []string{"Last-Event-ID", id}
			}
			st := s.feed(sse, query, headers...)
			// Each time a few frames get through before the connection breaks.
			frames := st.now()
			if round < 10 {
				frames = frames[:min(3, len(frames))]
			}
			for _, x := range frames {
				f.apply(x)
				if x.id != "" {
					id = x.id
				}
			}
			st.close()
			if round%3 == 0 {
				s.write(changes(put(fmt.Sprint("a", round), `{"n":2}`), put(fmt.Sprint("lists:b", round), `{"n":2}`)))
			}
		}
		if !f.live {
			t.Fatal("it never gets live")
		}
		f.check(s, "todos")
		f.check(s, "lists")
	})
}

func TestResetOfOneCollectionLeavesTheOthersWhereTheyAre(t *testing.T) {
	for _, tr := range transports {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			s.put("a", `{}`)
			at := s.put("lists:x", `{}`).Cursor
			s.put("lists:y", `{}`)
			st := s.feed(tr, "c=todos@zzzz-1&c=lists@"+at+"&c=more@nonsense&c=last@yyyy-1&wait=0")
			got := st.until("live")
			var keys, resets []string
			for _, f := range got {
				switch f.Type {
				case "change":
					keys = append(keys, f.Key)
				case "reset":
					resets = append(resets, f.Reason+" "+strings.Join(f.Collections, ","))
				}
			}
			if fmt.Sprint(keys) != "[a y]" || fmt.Sprint(resets) != "[epoch todos,last malformed more]" {
				t.Errorf("%s: %v after %v", tr, keys, resets)
			}
		})
	}
}

func TestFeedTakesAsManyCollectionsAsItSaysAndNoMore(t *testing.T) {
	s := open(t, settings{})
	s.put("c255:a", `{}`)
	q := url.Values{"wait": {"0"}}
	for i := range 256 {
		q.Add("c", fmt.Sprintf("c%d", i))
	}
	for _, tr := range transports {
		st := s.feed(tr, q.Encode())
		if got := types(st.until("live")); got != "open change live" {
			t.Errorf("%s: 256 collections: %q", tr, got)
		}
		st.close()
	}
	q.Add("c", "one/more")
	for _, tr := range transports {
		_, resp := s.tryFeed(tr, q.Encode())
		if p := resp.problem(t); p.Status != 400 || p.Code != "too-many" {
			t.Errorf("%s: 257 collections: %+v", tr, p)
		}
		_, resp = s.tryFeed(tr, "c=todos"+strings.Repeat("&c=todos", 256))
		if p := resp.problem(t); p.Code != "too-many" {
			t.Errorf("%s: one collection 257 times: %+v", tr, p)
		}
	}
	for _, tr := range []string{sse, poll} {
		if _, resp := s.tryFeed(tr, ""); resp.problem(t).Code != "bad-request" {
			t.Errorf("%s without a collection: %+v", tr, resp)
		}
	}
	s.sessions(0)
}

func TestSocketMayBeginWithoutACollection(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		s.put("a", `{}`)
		st := s.feed(websocket, "")
		time.Sleep(time.Second)
		st.now()
		s.put("b", `{}`)
		if got := st.now(); got != nil {
			t.Errorf("it gets %v", got)
		}
		st.send(`{"type":"subscribe","id":"1","collections":[{"name":"todos"}]}`)
		if got := types(st.now()); got != "done change change live" {
			t.Errorf("after subscribing: %q", got)
		}
	})
}

// What was made for one who comes back must not go to another who stands elsewhere, however many come back at once.
func TestThoseWhoComeBackTogetherGetEachWhatTheyMissed(t *testing.T) {
	s := open(t, settings{})
	const rows = 450
	var list []string
	for i := range rows {
		list = append(list, put(fmt.Sprint(i), `{"text":"`+strings.Repeat("x", 300+i%50)+`"}`))
	}
	s.write(`{"atomic":false,"changes":[` + strings.Join(list, ",") + `]}`)
	for _, tr := range transports {
		t.Run(tr, func(t *testing.T) {
			places := []int{0, 1, 100, 101, 340, 449}
			var back []*stream
			for i := range 10 * len(places) {
				back = append(back, s.feed(tr, fmt.Sprintf("c=todos&cursor=%s-%d", s.hub.Epoch(), places[i%len(places)])))
			}
			for i, st := range back {
				next := places[i%len(places)]
				for _, f := range st.until("live") {
					if f.Type != "change" {
						continue
					}
					if f.Key != fmt.Sprint(next) || f.Seq != uint64(next+1) {
						t.Fatalf("who came back at %d gets %s where row %d should be", places[i%len(places)], f, next)
					}
					next++
				}
				if next != rows {
					t.Errorf("who came back at %d got the rows up to %d of %d", places[i%len(places)], next, rows)
				}
				st.close()
			}
		})
	}
}
