package transport_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
	"github.com/tidemark-sync/tidemark/transport/credential"
)

const app = "https://app.example.com"

var jwtSecret = []byte("a secret of the tests, as long as it takes")

// guarded are the settings of a site that takes tokens, and cookies from pages of app.
func guarded(t testing.TB, origins ...string) settings {
	t.Helper()
	v, err := credential.New(t.Context(), credential.Options{Keys: credential.Keys{Secret: jwtSecret}})
	if err != nil {
		t.Fatal(err)
	}
	if len(origins) == 0 {
		origins = []string{app}
	}
	o, err := transport.ParseOrigins(origins)
	if err != nil {
		t.Fatal(err)
	}
	return settings{options: transport.Options{Authorizer: transport.Tokens{Verifier: v, Origins: o}, Origins: o}}
}

// token makes one for acme, that counts for a while, changed as pairs of name and value say.
func token(t testing.TB, life time.Duration, claims ...any) string {
	t.Helper()
	signer, err := credential.NewSigner(jwtSecret)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	all := map[string]any{"tenant": "acme", "sub": "ada", "read": []string{"**"}, "write": []string{"**"},
		"iat": float64(now.UnixMilli()) / 1000, "exp": float64(now.Add(life).UnixMilli()) / 1000}
	for i := 0; i < len(claims); i += 2 {
		all[claims[i].(string)] = claims[i+1]
	}
	text, err := signer.Sign(all)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func bearer(token string) []string { return []string{"Authorization", "Bearer " + token} }

// everywhere tries a request's headers, and query, on all that there is to read and to write; it
// returns the answers' statuses by what was tried.
func (s *site) everywhere(query string, headers ...string) map[string]response {
	s.t.Helper()
	all := make(map[string]response)
	for _, tr := range transports {
		st, r := s.tryFeed(tr, "c=todos&wait=0"+query, headers...)
		if st != nil {
			st.close()
			r.status, r.header = 200, st.header
		}
		all[tr] = r
	}
	for _, e := range [][3]string{
		{"GET", "/v1/acme/rows/todos?x=1"}, {"GET", "/v1/acme/rows/todos?key=nothing"}, {"GET", "/v1/acme/history?c=todos"},
		{"POST", "/v1/acme/changes?x=1", changes(put("a", `{}`))}, {"PUT", "/v1/acme/rows/todos?key=a", `{}`}, {"PATCH", "/v1/acme/rows/todos?key=a", `{}`},
		{"DELETE", "/v1/acme/rows/todos?key=gone"}, {"POST", "/v1/acme/rows/todos?x=1", `{}`}, {"POST", "/v1/acme/tickets?x=1"}, {"POST", "/v1/acme/revocations?x=1", `{"all":true}`},
	} {
		all[e[0]+" "+e[1]] = s.do(e[0], e[1]+query, e[2], headers...)
	}
	return all
}

// TestWhoShowsNothingThatCountsGetsNothing tries what is no credential on every path.
func TestWhoShowsNothingThatCountsGetsNothing(t *testing.T) {
	s := open(t, guarded(t))
	good := token(t, time.Hour)
	for name, c := range map[string]struct {
		query   string
		headers []string
	}{
		"nothing":                    {},
		"an empty Authorization":     {headers: []string{"Authorization", ""}},
		"Bearer and nothing":         {headers: []string{"Authorization", "Bearer "}},
		"Basic":                      {headers: []string{"Authorization", "Basic YWRhOmFkYQ=="}},
		"the token without a scheme": {headers: []string{"Authorization", good}},
		"another scheme":             {headers: []string{"Authorization", "Token " + good}},
		"two tokens":                 {headers: append(bearer(good), bearer(good)...)},
		"a token and another's":      {headers: append(bearer(good), bearer(token(t, time.Hour, "sub", "eve"))...)},
		"a token with a comma":       {headers: []string{"Authorization", "Bearer " + good + ", Bearer " + good}},
		"in the query as token":      {query: "&token=" + good},
		"as access_token":            {query: "&access_token=" + good},
		"as jwt":                     {query: "&jwt=" + good},
		"as ticket":                  {query: "&ticket=" + good},
		"a ticket that never was":    {query: "&ticket=AAAAAAAAAAAAAAAAAAAAAA"},
		"an empty ticket":            {query: "&ticket="},
		"expired":                    {headers: bearer(token(t, -time.Second))},
		"of the future":              {headers: bearer(token(t, time.Hour, "nbf", time.Now().Add(time.Hour).Unix()))},
		"no exp":                     {headers: bearer(token(t, time.Hour, "exp", nil))},
		"changed":                    {headers: bearer(good[:len(good)-2])},
		"none":                       {headers: bearer("eyJhbGciOiJub25lIn0." + strings.Split(good, ".")[1] + ".")},
		"longer than 8 KiB":          {headers: bearer(good + strings.Repeat("A", 8<<10))},
		"an empty cookie":            {headers: []string{"Origin", app, "Cookie", "tidemark="}},
		"two cookies":                {headers: []string{"Origin", app, "Cookie", "tidemark=" + good + "; tidemark=" + good}},
		"two headers of cookies":     {headers: []string{"Origin", app, "Cookie", "tidemark=" + good, "Cookie", "tidemark=" + good}},
		"another cookie":             {headers: []string{"Origin", app, "Cookie", "Tidemark=" + good}},
		"a cookie of __Host-":        {headers: []string{"Origin", app, "Cookie", "__Host-tidemark=" + good}},
	} {
		for what, r := range s.everywhere(c.query, c.headers...) {
			if r.status != 401 || r.problem(t).Code != "unauthenticated" || r.header.Get("WWW-Authenticate") != "Bearer" {
				t.Errorf("%s: %s: %d %s", name, what, r.status, r.body)
			}
			if strings.Contains(r.body, good[10:40]) {
				t.Errorf("%s: %s: the answer shows the token: %s", name, what, r.body)
			}
		}
	}
	s.sessions(0)
	if head := s.hub.Stats().Head; head != 0 {
		t.Errorf("%d changes were written", head)
	}
}

// origins that no list names: a page of any of them has somebody's cookie, and must get nothing.
var strangers = []string{
	"null", "https://evil.example", "http://app.example.com", "https://app.example.com:8443", "https://app.example.com.evil.example", "https://evilapp.example.com",
	"https://sub.app.example.com", "https://example.com", "https://APP.example.com", "https://app.example.com/", "https://app.example.com:443", "https://app.example.com.",
	"app.example.com", "//app.example.com", "https://app.example.com@evil.example", "https://evil.example#https://app.example.com", "https://evil.example/https://app.example.com",
	"https://app.example.com, https://evil.example", "https://app.example.com https://evil.example", "file://", "https://", "*", "https://*.example.com", "chrome-extension://app.example.com",
	"https://app.example.com%00.evil.example", "https://аpp.example.com", "wss://app.example.com", "https://127.0.0.1", "http://localhost", "http://localhost:3000", "",
}

// TestPageOfAnotherOriginCannotUseSomebodysCookie: a browser sends the cookie along whatever page asks.
func TestPageOfAnotherOriginCannotUseSomebodysCookie(t *testing.T) {
	s := open(t, guarded(t))
	cookie := "other=1; tidemark=" + token(t, time.Hour)
	tried := 0
	try := func(name string, headers ...string) {
		t.Helper()
		for what, r := range s.everywhere("", append(headers, "Cookie", cookie)...) {
			tried++
			if r.status != 401 && r.status != 403 {
				t.Errorf("%s: %s: %d %s", name, what, r.status, r.body)
			}
			for _, h := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"} {
				if r.header.Get(h) != "" {
					t.Errorf("%s: %s: %s: %s", name, what, h, r.header.Get(h))
				}
			}
		}
	}
	for _, origin := range strangers {
		try("Origin "+origin, "Origin", origin)
		try("with Sec-Fetch-Site, Origin "+origin, "Origin", origin, "Sec-Fetch-Site", "cross-site")
		try("a Host that fits, Origin "+origin, "Origin", origin, "Host", "app.example.com")
		r := s.do("OPTIONS", "/v1/acme/changes", "", "Origin", origin, "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization", "Cookie", cookie)
		if r.status/100 == 2 || r.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("preflight of %s: %d %v", origin, r.status, r.header)
		}
	}
	try("no Origin")
	try("two origins", "Origin", app, "Origin", "https://evil.example")
	try("a link of another site", "Sec-Fetch-Site", "cross-site")
	try("a page of another host of the site", "Sec-Fetch-Site", "same-site", "Host", "app.example.com")
	try("typed in", "Sec-Fetch-Site", "none", "Host", "app.example.com")
	try("the same origin, by a name that was rebound", "Sec-Fetch-Site", "same-origin", "Host", "evil.example")
	try("two words for the site", "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Site", "same-origin", "Host", "app.example.com")
	s.sessions(0)
	if head := s.hub.Stats().Head; head != 0 {
		t.Errorf("%d changes were written", head)
	}
	t.Logf("%d requests, none of them accepted", tried)
}

// TestPageOfTheListUsesItsCookie: else sign-in by cookie works nowhere.
func TestPageOfTheListUsesItsCookie(t *testing.T) {
	s := open(t, guarded(t, app, "http://localhost:3000"))
	cookie := []string{"Cookie", "tidemark=" + token(t, time.Hour)}
	for name, headers := range map[string][]string{
		"Origin":                        {"Origin", app},
		"the other one":                 {"Origin", "http://localhost:3000"},
		"Origin, and a browser says so": {"Origin", app, "Sec-Fetch-Site", "cross-site"},
		"a token beside the cookie":     append([]string{"Origin", app}, bearer(token(t, time.Hour))...),
		"what a proxy asked for":        {"Origin", app, "Authorization", "Basic YWRhOmFkYQ=="},
	} {
		for what, r := range s.everywhere("", append(headers, cookie...)...) {
			if strings.Contains(what, "nothing") || strings.Contains(what, "history") || strings.Contains(what, "revocations") {
				continue // it is not there, or for administrators
			}
			if r.status != 200 {
				t.Errorf("%s: %s: %d %s", name, what, r.status, r.body)
			}
			if r.header.Get("Access-Control-Allow-Origin") != headers[1] || r.header.Get("Access-Control-Allow-Credentials") != "true" || !strings.Contains(strings.Join(r.header["Vary"], ","), "Origin") {
				t.Errorf("%s: %s: %v", name, what, r.header)
			}
		}
	}
	// A page of the server's own host sends no Origin with a GET.
	for _, tr := range []string{sse, poll} {
		if _, r := s.tryFeed(tr, "c=todos&wait=0", append(cookie, "Sec-Fetch-Site", "same-origin", "Host", "app.example.com")...); r.status != 0 {
			t.Errorf("%s, of the same origin: %d %s", tr, r.status, r.body)
		}
	}
}

// TestAnyPageWithATokenButNoCookie: with * a page that has a token may use the server, and
// still nobody's cookie counts.
func TestAnyPageWithATokenButNoCookie(t *testing.T) {
	s := open(t, guarded(t, "*"))
	const page = "https://anywhere.example"
	for what, r := range s.everywhere("", append(bearer(token(t, time.Hour)), "Origin", page, "Sec-Fetch-Site", "cross-site")...) {
		if strings.Contains(what, "nothing") || strings.Contains(what, "history") || strings.Contains(what, "revocations") {
			continue
		}
		if r.status != 200 || r.header.Get("Access-Control-Allow-Origin") != "*" || r.header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s: %d %s %v", what, r.status, r.body, r.header)
		}
	}
	for what, r := range s.everywhere("", "Cookie", "tidemark="+token(t, time.Hour), "Origin", page) {
		if r.status != 401 || r.header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("by cookie: %s: %d %s", what, r.status, r.body)
		}
	}
}

func TestListOfOriginsThatCouldBeAnybodyIsRefused(t *testing.T) {
	for _, o := range []string{"null", "", "https://app.example.com/", "app.example.com", "https://*.example.com", "https://App.example.com", "https://app.example.com:443", "http://a:80",
		"https://a b", "https://user@app.example.com", "https://app.example.com?x", "https://app.example.com#x", "//app.example.com", "https:", "https://app.example.com/x"} {
		if _, err := transport.ParseOrigins([]string{o}); err == nil {
			t.Errorf("%q passes", o)
		}
	}
}

// ticket gets one.
func (s *site) ticket(headers ...string) string {
	s.t.Helper()
	r := s.do("POST", "/v1/acme/tickets", "", headers...)
	var a struct{ Ticket, Expires string }
	if err := json.Unmarshal([]byte(r.body), &a); err != nil || r.status != 200 || len(a.Ticket) < 22 {
		s.t.Fatalf("ticket: %d %s", r.status, r.body)
	}
	if expires, err := time.Parse(time.RFC3339, a.Expires); err != nil || time.Until(expires) > 30*time.Second {
		s.t.Errorf("expires %s: %v", a.Expires, err)
	}
	return a.Ticket
}

func TestTicketCountsOnceAndForWhoGotItAlone(t *testing.T) {
	bubble(t, guarded(t), func(t *testing.T, s *site) {
		who := bearer(token(t, time.Hour, "read", []string{"todos"}))
		page := append(who, "Origin", app)
		for _, tr := range transports {
			ticket := s.ticket(page...)
			st, r := s.tryFeed(tr, "c=todos&wait=0&ticket="+ticket, "Origin", app)
			if st == nil {
				t.Fatalf("%s: %d %s", tr, r.status, r.body)
			}
			st.until("live")
			st.close()
			if st, r := s.tryFeed(tr, "c=todos&wait=0&ticket="+ticket, "Origin", app); st != nil || r.status != 401 {
				t.Errorf("%s: a ticket counts twice: %d", tr, r.status)
			}
			for name, c := range map[string]struct {
				query   string
				headers []string
				status  int
			}{
				"another origin":     {"c=todos", []string{"Origin", "https://evil.example"}, 401},
				"no origin":          {"c=todos", nil, 401},
				"null":               {"c=todos", []string{"Origin", "null"}, 401},
				"more than it has":   {"c=todos&c=secret", []string{"Origin", app}, 403},
				"beside another one": {"c=todos&ticket=AAAAAAAAAAAAAAAAAAAAAA", []string{"Origin", app}, 401},
			} {
				if st, r := s.tryFeed(tr, "wait=0&"+c.query+"&ticket="+s.ticket(page...), c.headers...); st != nil || r.status != c.status {
					t.Errorf("%s: %s: %d %s", tr, name, r.status, r.body)
				}
			}
			late := s.ticket(page...)
			time.Sleep(30 * time.Second)
			if st, r := s.tryFeed(tr, "c=todos&wait=0&ticket="+late, "Origin", app); st != nil || r.status != 401 {
				t.Errorf("%s: a ticket counts after 30 s: %d", tr, r.status)
			}
		}
		// Of another tenant.
		both := bearer(token(t, time.Hour, "tenant", "*"))
		ticket := s.ticket(both...)
		if r := s.do("GET", "/v1/other/feed?c=todos&wait=0&ticket="+ticket, ""); r.status != 401 {
			t.Errorf("another tenant: %d %s", r.status, r.body)
		}
		if r := s.do("GET", "/v1/acme/rows/todos?ticket="+s.ticket(both...), ""); r.status != 401 {
			t.Errorf("a ticket reads rows: %d", r.status)
		}
		if r := s.do("POST", "/v1/acme/changes?ticket="+s.ticket(both...), changes(put("a", `{}`))); r.status != 401 {
			t.Errorf("a ticket writes: %d", r.status)
		}
		if r := s.do("POST", "/v1/other/tickets", "", who...); r.status != 403 {
			t.Errorf("a ticket for a tenant that the token does not cover: %d", r.status)
		}
	})
}

// TestTicketEndsWithItsToken: a feed by a ticket lives as long as the token that asked for it.
func TestTicketEndsWithItsToken(t *testing.T) {
	for _, tr := range []string{sse, websocket} {
		bubble(t, guarded(t), func(t *testing.T, s *site) {
			st := s.feed(tr, "c=todos&ticket="+s.ticket(bearer(token(t, 10*time.Second))...))
			began := time.Now()
			all := st.rest()
			if end := all[len(all)-1]; end.Type != "end" || end.Reason != "expired" || time.Since(began) > 10*time.Second+time.Millisecond {
				t.Errorf("%s: after %v: %v", tr, time.Since(began), end)
			}
		})
	}
}

// TestUnusedTicketsAreBounded: else who has a token fills the server's memory with them.
func TestUnusedTicketsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tickets := transport.NewTickets()
		big := transport.Ticket{Tenant: "acme", Authorization: []string{strings.Repeat("x", 8<<10)}}
		issue := func() error {
			big.Expires = time.Now().Add(transport.TicketLife)
			_, err := tickets.Issue(t.Context(), big)
			return err
		}
		n := 0
		for issue() == nil {
			if n++; n > 20_000 {
				t.Fatal("there is no end of them")
			}
		}
		big.Tenant = "other"
		big.Authorization = nil
		for range 100 { // by bytes acme has what there is; a small one more fits for others
			if issue() != nil {
				break
			}
		}
		time.Sleep(transport.TicketLife)
		if err := issue(); err != nil {
			t.Errorf("after all have expired: %v", err)
		}
	})
}

// TestATenantThatHoardsTicketsLeavesRoomForOthers: else one user of one tenant keeps all the others out.
func TestATenantThatHoardsTicketsLeavesRoomForOthers(t *testing.T) {
	tickets := transport.NewTickets()
	issue := func(tenant string, size int) error {
		_, err := tickets.Issue(t.Context(), transport.Ticket{Tenant: tenant, Cookie: []string{strings.Repeat("x", size)}, Expires: time.Now().Add(transport.TicketLife)})
		return err
	}
	for size := 15 << 10; size > 0; size /= 2 { // until nothing more fits
		for issue("acme", size) == nil {
		}
	}
	for range 1000 {
		if err := issue("other", 1<<10); err != nil {
			t.Fatalf("another tenant: %v", err)
		}
	}
}

// TestWebSocketGoesOnWithANewToken: else every client has a gap whenever its token ends.
func TestWebSocketGoesOnWithANewToken(t *testing.T) {
	bubble(t, guarded(t), func(t *testing.T, s *site) {
		st := s.feed(websocket, "c=todos", bearer(token(t, 20*time.Second))...)
		for i := range 5 {
			time.Sleep(15 * time.Second)
			st.now()
			st.send(fmt.Sprintf(`{"type":"auth","id":"%d","token":%q}`, i, token(t, 20*time.Second)))
			if got := st.now(); len(got) != 1 || got[0].Type != "done" {
				t.Fatalf("%v", got)
			}
			st.send(`{"type":"write","id":"w","changes":[` + put("a", fmt.Sprintf(`{"n":%d}`, i)) + `]}`)
			if got := types(st.now()); got != "written change" && got != "change written" {
				t.Errorf("%s", got)
			}
		}
		for name, c := range map[string]struct{ token, code string }{
			"expired":               {token(t, -time.Second), "unauthenticated"},
			"somebody else's":       {token(t, time.Hour, "sub", "eve"), "forbidden"},
			"of another tenant":     {token(t, time.Hour, "tenant", "other"), "forbidden"},
			"less than is followed": {token(t, time.Hour, "read", []string{"lists"}), "forbidden"},
			"none at all":           {"", "unauthenticated"},
			"two lines":             {"a\\r\\nb", "unauthenticated"},
		} {
			st.send(`{"type":"auth","id":"x","token":"` + c.token + `"}`)
			if got := st.now(); len(got) != 1 || got[0].Code != c.code {
				t.Errorf("%s: %v", name, got)
			}
		}
		// It has gone on with the last good one, and ends with that.
		st.send(fmt.Sprintf(`{"type":"auth","token":%q}`, token(t, 10*time.Second, "write", []string{})))
		st.now()
		st.send(`{"type":"write","id":"w","changes":[` + put("a", `{}`) + `]}`)
		if got := st.now(); len(got) != 1 || got[0].Code != "forbidden" {
			t.Errorf("a token that may not write: %v", got)
		}
		all := st.rest()
		if end := all[len(all)-1]; end.Type != "end" || end.Reason != "expired" || !strings.Contains(st.err.Error(), "4401") {
			t.Errorf("%v, %v", end, st.err)
		}
	})
}

// TestNothingComesAfterTheDeadline ends credentials at random moments, by their time or by being
// revoked: in mid-stream, in mid-replay, while a poll waits, between pages and polls.
func TestNothingComesAfterTheDeadline(t *testing.T) {
	random := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	const rounds = 42 // times three transports, expired and revoked, reading pages too: 504
	for range rounds {
		for _, tr := range transports {
			for _, how := range []string{"expired", "revoked"} {
				deadline(t, tr, how, time.Duration(1+random.IntN(9000))*time.Millisecond, random)
			}
		}
		deadline(t, "pages", "expired", time.Duration(1+random.IntN(4000))*time.Millisecond, random)
		deadline(t, "pages", "revoked", time.Duration(1+random.IntN(4000))*time.Millisecond, random)
		deadline(t, "rows", "expired", time.Duration(1+random.IntN(4000))*time.Millisecond, random)
		deadline(t, "rows", "revoked", time.Duration(1+random.IntN(4000))*time.Millisecond, random)
		deadline(t, "history", "expired", time.Duration(1+random.IntN(4000))*time.Millisecond, random)
		deadline(t, "history", "revoked", time.Duration(1+random.IntN(4000))*time.Millisecond, random)
	}
}

// deadline follows as somebody whose credential ends after a while, while somebody else writes
// the time into rows. What was written from the end on must not come.
func deadline(t *testing.T, tr, how string, life time.Duration, random *rand.Rand) {
	start := random.IntN(3000)
	// Now and then, one after another, or so seldom that a poll waits.
	pause := []time.Duration{500 * time.Millisecond, 50 * time.Millisecond, 20 * time.Second}[random.IntN(3)] + time.Duration(random.IntN(100))*time.Millisecond
	bubble(t, guarded(t), func(t *testing.T, s *site) {
		admin := bearer(token(t, time.Hour, "sub", "root", "admin", true))
		write := func(i int) {
			s.do("PUT", fmt.Sprintf("/v1/acme/rows/todos?key=%d", i%500), fmt.Sprintf(`{"at":%d}`, time.Now().UnixMilli()), admin...)
		}
		for i := range min(start, 20) { // rows to replay
			write(i)
		}
		text := token(t, life, "jti", "this-one")
		if how == "revoked" {
			text = token(t, time.Hour, "jti", "this-one")
		}
		end := time.Now().Add(life)
		if how == "revoked" {
			time.AfterFunc(life, func() {
				body := []string{`{"jti":"this-one"}`, `{"sub":"ada"}`, `{"jti":"this-one","until":"` + end.Add(time.Hour).UTC().Format(time.RFC3339) + `"}`}[int(life)%3]
				if r := s.do("POST", "/v1/acme/revocations", body, admin...); r.status != 200 {
					t.Errorf("revoke: %d %s", r.status, r.body)
				}
			})
		}
		var st *stream
		var seen []string
		switch tr {
		case "pages", "rows", "history":
		default:
			st = s.follow(tr, "c=todos&heartbeat=3&limit=7", bearer(text)...)
		}
		for i := start; time.Now().Before(end.Add(3 * time.Second)); i++ {
			write(i)
			if st == nil {
				path := "/v1/acme/rows/todos?limit=3"
				switch tr {
				case "rows":
					path = fmt.Sprintf("/v1/acme/rows/todos?key=%d", i%500)
				case "pages":
					path = "/v1/acme/feed?c=todos&wait=0&limit=3"
				}
				if tr == "history" {
					path = "/v1/acme/history?c=todos"
				}
				r := s.do("GET", path, "", bearer(text)...)
				// exp is a fraction of seconds, as a float.
				if late := time.Since(end); late.Abs() > time.Microsecond && (late > 0) != (r.status == 401) {
					t.Errorf("%s, %s, %v from the end: %d %s", tr, how, time.Since(end), r.status, r.body)
				}
				seen = append(seen, r.body)
			}
			time.Sleep(pause)
		}
		if st != nil {
			for _, f := range st.rest() {
				seen = append(seen, f.raw)
				if f.Type == "end" && f.Reason != how {
					t.Errorf("%s: it ended with %s", tr, f)
				}
			}
			st.close()
		}
		for _, text := range seen {
			for rest := text; ; {
				_, after, found := strings.Cut(rest, `{"at":`)
				if !found {
					break
				}
				var at int64
				fmt.Sscan(after[:strings.IndexByte(after, '}')], &at)
				if at > end.UnixMilli() {
					t.Errorf("%s, %s: what was written %d ms after the end came: %s", tr, how, at-end.UnixMilli(), text[:min(200, len(text))])
				}
				rest = after
			}
		}
	})
}

func TestOnlyAdministratorsRevoke(t *testing.T) {
	s := open(t, guarded(t))
	admin := bearer(token(t, time.Hour, "admin", true, "sub", "root"))
	for body, status := range map[string]int{
		`{}`: 400, ``: 400, `{"sub":"ada","jti":"x"}`: 400, `{"sub":""}`: 400, `{"all":false}`: 400, `{"all":true,"sub":"ada"}`: 400, `{"sub":7}`: 400, `{"who":"ada"}`: 400,
		`{"sub":"ada","until":"yesterday"}`: 400, `{"sub":"ada","until":"2001-01-01T00:00:00Z"}`: 400, `{"sub":"` + strings.Repeat("x", 201) + `"}`: 413,
		`{"sub":"grace"}`: 200,
	} {
		if r := s.do("POST", "/v1/acme/revocations", body, admin...); r.status != status {
			t.Errorf("%s: %d %s", body, r.status, r.body)
		}
	}
	if r := s.do("POST", "/v1/acme/revocations", `{"sub":"root"}`, bearer(token(t, time.Hour))...); r.status != 403 {
		t.Errorf("who is no administrator: %d %s", r.status, r.body)
	}
	if r := s.do("POST", "/v1/other/revocations", `{"all":true}`, admin...); r.status != 403 {
		t.Errorf("of another tenant: %d %s", r.status, r.body)
	}
	if r := s.do("GET", "/v1/acme/rows/todos", "", admin...); r.status != 200 {
		t.Errorf("the administrator's own: %d %s", r.status, r.body)
	}
}

// TestAdministrationIsNotForPages: else a page that somebody opens on the server's machine revokes.
func TestAdministrationIsNotForPages(t *testing.T) {
	s := open(t, guarded(t))
	handler := transport.NoPages(s.server.Administration(), false)
	try := func(host string, headers ...string) int {
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+host+"/v1/acme/revocations", strings.NewReader(`{"sub":"ada"}`))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			r.Header.Add(headers[i], headers[i+1])
		}
		w := &recorder{header: http.Header{}}
		handler.ServeHTTP(w, r)
		return w.status
	}
	for _, c := range []struct {
		host    string
		headers []string
	}{
		{"evil.example", nil}, {"127.0.0.1.nip.io:7334", nil}, {"10.0.0.1", nil}, {"localhost:7334", []string{"Origin", "http://localhost:3000"}}, {"localhost", []string{"Origin", "null"}},
		{"localhost", []string{"Sec-Fetch-Site", "cross-site"}}, {"localhost", []string{"Sec-Fetch-Site", "same-origin"}}, {"localhost", []string{"Sec-Fetch-Site", "same-site"}},
	} {
		if status := try(c.host, c.headers...); status != 403 {
			t.Errorf("%v: %d", c, status)
		}
	}
	for _, host := range []string{"localhost:7334", "127.0.0.1:7334", "[::1]:7334"} {
		if status := try(host); status != 200 {
			t.Errorf("%s: %d", host, status)
		}
	}
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(b []byte) (int, error) { return len(b), nil }
func (r *recorder) WriteHeader(status int)      { r.status = status }

// TestAppIsAskedWithoutCookiesOfOtherPages: the app's session cookie is as good as a token, so the
// same pages may use it.
func TestAppIsAskedWithoutCookiesOfOtherPages(t *testing.T) {
	o := guarded(t)
	asked := &asker{}
	origins, err := transport.ParseOrigins([]string{app})
	if err != nil {
		t.Fatal(err)
	}
	o.options.Authorizer = transport.App{Asker: asked, Origins: origins}
	s := open(t, o)
	for _, origin := range strangers {
		for what, r := range s.everywhere("", "Origin", origin, "Cookie", "session=ada") {
			if r.status != 401 && r.status != 403 {
				t.Errorf("%s: %s: %d", origin, what, r.status)
			}
		}
	}
	if len(asked.cookies) > 0 {
		t.Errorf("the app was asked about cookies of other pages: %q", asked.cookies)
	}
	if r := s.do("GET", "/v1/acme/rows/todos", "", "Origin", app, "Cookie", "session=ada"); r.status != 200 || len(asked.cookies) != 1 {
		t.Errorf("%d %s, %q", r.status, r.body, asked.cookies)
	}
	if r := s.do("GET", "/v1/acme/rows/todos", "", "Authorization", "Bearer x", "Cookie", "session=ada"); r.status != 200 || len(asked.cookies) != 1 {
		t.Errorf("%d %s, %q", r.status, r.body, asked.cookies)
	}
}

// asker says yes, and notes the cookies it was shown.
type asker struct{ cookies []string }

func (a *asker) Ask(r *http.Request, tenant string) (hub.Grant, error) {
	if c := r.Header.Get("Cookie"); c != "" {
		a.cookies = append(a.cookies, c)
	}
	g := hub.Everything
	g.Tenant = tenant
	return g, nil
}

// TestCachedPollIsNobodyElses: a browser keeps answers that end in next for whoever signs in after.
func TestCachedPollIsNobodyElses(t *testing.T) {
	s := open(t, guarded(t))
	who := bearer(token(t, time.Hour))
	for i := range 20 {
		s.do("PUT", "/v1/acme/rows/todos?key="+url.QueryEscape(fmt.Sprint(i)), `{}`, who...)
	}
	r := s.do("GET", "/v1/acme/feed?c=todos&limit=3", "", who...)
	vary := strings.Join(r.header["Vary"], ",")
	if !strings.Contains(r.header.Get("Cache-Control"), "private") || !strings.Contains(vary, "Authorization") || !strings.Contains(vary, "Cookie") {
		t.Errorf("%v", r.header)
	}
}

// TestEveryRouteIsKnown: a path that somebody added and nobody guards.
func TestEveryRouteIsKnown(t *testing.T) {
	o := guarded(t)
	o.options.Forget = func(context.Context, hub.Grant, string) (any, error) { return nil, nil }
	s := open(t, o)
	want := []string{
		"DELETE /v1/{tenant}", "DELETE /v1/{tenant}/rows/*",
		"GET /healthz", "GET /readyz",
		"GET /v1/{tenant}/feed", "GET /v1/{tenant}/feed/*", "GET /v1/{tenant}/history", "GET /v1/{tenant}/rows/*",
		"HEAD /healthz", "HEAD /readyz", "HEAD /v1/{tenant}/history", "HEAD /v1/{tenant}/rows/*",
		"PATCH /v1/{tenant}/rows/*", "POST /v1/{tenant}/changes", "POST /v1/{tenant}/revocations", "POST /v1/{tenant}/rows/*", "POST /v1/{tenant}/tickets", "PUT /v1/{tenant}/rows/*",
		"administration: DELETE /v1/{tenant}", "administration: GET /v1/{tenant}", "administration: POST /v1/{tenant}/revocations",
	}
	got := transport.Routes(s.server)
	if !slices.Equal(got, want) {
		t.Errorf("the routes are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, route := range got {
		method, path, _ := strings.Cut(route, " ")
		if path = strings.NewReplacer("{tenant}", "acme", "*", "todos").Replace(path); strings.HasPrefix(route, "administration") || !strings.HasPrefix(path, "/v1/") {
			continue
		}
		if path == "/v1/acme/feed/todos" {
			path = "/v1/acme/feed/c=todos"
		}
		if r := s.do(method, path, ""); r.status != 401 {
			t.Errorf("%s: without a credential it answers %d", route, r.status)
		}
	}
}
