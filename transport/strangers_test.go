package transport_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/transport"
	"github.com/tidemark-sync/tidemark/transport/gate"
)

// strangersMeet are the settings of a site with a gate, whose limits hold for this machine too.
func strangersMeet(t testing.TB, rate gate.RateOptions, feeds int) settings {
	t.Helper()
	r, err := gate.NewRate(rate)
	if err != nil {
		t.Fatal(err)
	}
	f, err := gate.NewFeeds(feeds)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := gate.ParseTrusted([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	return settings{options: transport.Options{Gate: transport.Gate{Rate: r, Feeds: f, Trusted: trusted}}}
}

// refusedForNow is a refusal that says when to come back, to a page as well.
func refusedForNow(t testing.TB, what string, r response, status int, code string) {
	t.Helper()
	p := r.problem(t)
	retry, err := strconv.Atoi(r.header.Get("Retry-After"))
	if r.status != status || p.Code != code || err != nil || retry < 1 || retry > 120 {
		t.Errorf("%s: %d %s, Retry-After %q", what, r.status, r.body, r.header.Get("Retry-After"))
	}
	if !strings.Contains(r.header.Get("Access-Control-Expose-Headers"), "Retry-After") {
		t.Errorf("%s: a page can't read when to come back: %v", what, r.header)
	}
}

var ofPage = []string{"Origin", "http://localhost:3000"}

func from(client string) []string { return append(ofPage[:2:2], "X-Forwarded-For", client) }

func TestAnAddressHasSoManyFeedsAndTheirEndMakesRoom(t *testing.T) {
	s := open(t, strangersMeet(t, gate.RateOptions{}, 2))
	for _, tr := range transports {
		var all []*stream
		for range 2 {
			all = append(all, s.follow(tr, "c=todos&cursor="+s.hubCursor(), from("203.0.113.1")...))
		}
		s.sessions(2)
		for _, other := range transports {
			_, r := s.tryFeed(other, "c=todos", from("203.0.113.1")...)
			refusedForNow(t, other+" beside two over "+tr, r, 429, "too-many")
		}
		if st, r := s.tryFeed(tr, "c=todos&wait=0", from("203.0.113.2")...); st == nil {
			t.Errorf("another address: %d %s", r.status, r.body)
		} else {
			st.close()
		}
		for _, st := range all {
			st.close()
		}
		s.sessions(0)
		s.eventually("room", func() bool {
			st, _ := s.tryFeed(tr, "c=todos&wait=0", from("203.0.113.1")...)
			if st != nil {
				st.close()
			}
			return st != nil
		})
		s.sessions(0)
	}
	// What fails after it was let in gives its place back.
	for range 10 {
		if r := s.do("GET", "/v1/acme/feed?c=a//b", "", from("203.0.113.3")...); r.status != 400 {
			t.Errorf("%d", r.status)
		}
		if r := s.do("GET", "/v1/a%20b/feed?c=todos&wait=0", "", from("203.0.113.3")...); r.status != 400 {
			t.Errorf("%d", r.status)
		}
	}
}

// hubCursor is where the log is: a poll from there waits.
func (s *site) hubCursor() string {
	return fmt.Sprintf("%s-%d", s.hub.Epoch(), s.hub.Stats().Head)
}

func TestWhoOpensFeedsTooFastIsToldAndWhoGoesOnIsNot(t *testing.T) {
	s := open(t, strangersMeet(t, gate.RateOptions{AddressPerSecond: 1, AddressBurst: 4, PerSecond: 1, Burst: 12}, 1000))
	s.put("a", `{}`)
	for i := range 4 {
		if st, r := s.tryFeed(transports[i%3], "c=todos&wait=0", from("203.0.113.1")...); st == nil {
			t.Fatalf("%d: %d %s", i, r.status, r.body)
		} else {
			st.close()
		}
	}
	for _, tr := range transports {
		_, r := s.tryFeed(tr, "c=todos&wait=0", from("203.0.113.1")...)
		refusedForNow(t, tr, r, 429, "too-many")
	}
	for range 20 { // a poll that goes on is no new feed
		if r := s.do("GET", "/v1/acme/feed?c=todos&wait=0&cursor="+s.hubCursor(), "", from("203.0.113.1")...); r.status != 200 {
			t.Errorf("a poll that goes on: %d %s", r.status, r.body)
		}
		if r := s.do("GET", "/v1/acme/feed/c=todos@"+s.hubCursor()+"&wait=0", "", from("203.0.113.1")...); r.status != 200 {
			t.Errorf("a poll that goes on by its path: %d %s", r.status, r.body)
		}
	}
	for _, trick := range []string{"cursor=x", "cursor=zzzz-1", "transport=sse&cursor=" + s.hubCursor(), "x=@", "x=%40"} { // and no way around it
		r := s.do("GET", "/v1/acme/feed?c=todos&wait=0&"+trick, "", from("203.0.113.1")...)
		refusedForNow(t, trick, r, 429, "too-many")
	}
	if r := s.do("PUT", "/v1/acme/rows/todos?key=b", `{}`, from("203.0.113.1")...); r.status != 200 {
		t.Errorf("a write: %d", r.status)
	}
	refused := 0
	for i := range 30 { // many addresses: what holds for all
		_, r := s.tryFeed(poll, "c=todos&wait=0", from(fmt.Sprintf("203.0.114.%d", i))...)
		if r.status == 503 {
			refusedForNow(t, "all", r, 503, "unavailable")
			refused++
		}
	}
	if refused < 15 {
		t.Errorf("%d of 30 were refused", refused)
	}
}

func TestARequestThatIsTooLargeCostsNothingElse(t *testing.T) {
	s := open(t, settings{})
	if p := s.do("GET", "/v1/acme/feed?c="+strings.Repeat("a", 9<<10), "").problem(t); p.Status != 414 || p.Code != "too-large" {
		t.Errorf("%+v", p)
	}
	var headers []string
	for i := range 101 {
		headers = append(headers, fmt.Sprint("X-", i), "x")
	}
	if p := s.do("GET", "/v1/acme/rows/todos", "", headers...).problem(t); p.Status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%+v", p)
	}
	if r := s.do("GET", "/v1/acme/rows/todos", ""); r.status != 200 {
		t.Errorf("%d", r.status)
	}
}

// TestTheNetworkOfAClientBehindAProxyIsItsOwn: else all of them share what is remembered of one.
func TestTheNetworkOfAClientBehindAProxyIsItsOwn(t *testing.T) {
	o := strangersMeet(t, gate.RateOptions{}, 0)
	o.options.NetworkKey = []byte("key")
	s := open(t, o)
	network := func(headers ...string) string { return s.ask("c=todos&wait=0", headers...)[0].Network }
	a, b, none := network(from("203.0.113.1")...), network(from("198.51.100.1")...), network()
	if a == b || a == none || a == "" || a != network(from("203.0.113.77")...) {
		t.Errorf("%q, %q, %q", a, b, none)
	}
}
