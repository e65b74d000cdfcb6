package credential_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport/credential"
)

// app is an app without a network, so that its time can be the test's.
type app struct {
	mu    sync.Mutex
	reply func(*http.Request) (int, string, error)
	delay time.Duration
	seen  []*http.Request
}

func (a *app) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	a.seen = append(a.seen, r)
	reply, delay := a.reply, a.delay
	a.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	status, body, err := reply(r)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (a *app) says(status int, body string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.delay = 0
	a.reply = func(*http.Request) (int, string, error) { return status, body, nil }
}

func (a *app) down() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reply = func(*http.Request) (int, string, error) { return 0, "", errors.New("connection refused") }
}

func (a *app) slow(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.delay = d
}

func (a *app) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.seen)
}

// yes is an answer that lets ada do what the changes say.
func yes(changes map[string]any) string {
	c := map[string]any{"tenant": "acme", "read": []string{"**"}, "write": []string{"todos"}, "sub": "ada"}
	for k, v := range changes {
		c[k] = v
	}
	return string(must(json.Marshal(c)))
}

const appURL = "https://app.example.com/auth?key=hunter2hunter2"

// forward runs a test in a bubble, with an app that says yes.
func forward(t *testing.T, o credential.ForwardOptions, test func(*testing.T, *app, *credential.Forward, *journal)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, j := &app{}, &journal{}
		a.says(200, yes(nil))
		o.URL, o.Transport, o.Filter, o.Logger = appURL, a, compile, j.logger()
		f, err := credential.NewForward(o)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		test(t, a, f, j)
		silent(t, j.String(), "hunter2hunter2", cookie, bearer)
	})
}

const (
	cookie = "session=0f1e2d3c4b5a69788796a5b4c3d2e1f0"
	bearer = "Bearer 77aabbccddeeff00112233445566778899"
)

// request is one of a browser, with headers changed.
func request(ctx context.Context, headers map[string]string) *http.Request {
	r := httptest.NewRequestWithContext(ctx, "GET", "https://sync.example.com/v1/acme/feed?c=todos&ticket=secret", nil)
	r.Header.Set("Cookie", cookie)
	r.Header.Set("Authorization", bearer)
	r.Header.Set("Origin", "https://app.example.com")
	r.Header.Set("X-Api-Key", "not the app's")
	r.Header.Set("X-Forwarded-For", "1.2.3.4")
	r.Header.Set("X-Tidemark-Tenant", "forged")
	for k, v := range headers {
		if r.Header.Set(k, v); v == "" {
			r.Header.Del(k)
		}
	}
	return r
}

func ask(t testing.TB, f *credential.Forward, headers map[string]string, reason credential.Reason) hub.Grant {
	t.Helper()
	g, err := f.Ask(request(t.Context(), headers), "acme")
	if got := refusal(t, err); got != reason {
		t.Errorf("the answer is %q, %v; not %q", got, err, reason)
	}
	if err != nil {
		silent(t, err.Error(), cookie, bearer, "hunter2hunter2")
		if g.Tenant != "" || g.Check != nil {
			t.Errorf("with the error comes %+v", g)
		}
	}
	return g
}

func TestAppIsAskedWithTheCredentialsAndLittleElse(t *testing.T) {
	forward(t, credential.ForwardOptions{}, func(t *testing.T, a *app, f *credential.Forward, _ *journal) {
		a.says(200, yes(map[string]any{"admin": true, "filters": map[string]any{"todos": "mine "}, "jti": "j", "iat": 946684000}))
		g := ask(t, f, nil, "")
		if g.Tenant != "acme" || g.Subject != "ada" || g.ID != "j" || !g.Admin || !g.Expires.IsZero() || g.Issued.Unix() != 946684000 ||
			!sameList(g.Read, []string{"**"}) || !sameList(g.Write, []string{"todos"}) || len(g.Filters) != 1 || g.Filters[0].Identity() != "mine ada" {
			t.Errorf("it grants %+v", g)
		}
		want := http.Header{
			"Authorization": {bearer}, "Cookie": {cookie}, "Origin": {"https://app.example.com"}, "Accept": {"application/json"}, "User-Agent": {"tidemark"},
			"X-Tidemark-Tenant": {"acme"}, "X-Forwarded-Host": {"sync.example.com"}, "X-Forwarded-Method": {"GET"}, "X-Forwarded-Uri": {"/v1/acme/feed"},
		}
		r := a.seen[0]
		if fmt.Sprint(r.Header) != fmt.Sprint(want) || r.Method != "GET" || r.URL.String() != appURL || r.Body != nil && r.Body != http.NoBody {
			t.Errorf("the app is asked %s %s with %v", r.Method, r.URL, r.Header)
		}
	})
}

func TestOnlyTheNamedCookiesAreTheApps(t *testing.T) {
	forward(t, credential.ForwardOptions{Cookies: []string{"session", "csrf"}}, func(t *testing.T, a *app, f *credential.Forward, _ *journal) {
		ask(t, f, map[string]string{"Cookie": `_ga=1; session=a"b=c;session2=x;csrf=; Session=y; evil`}, "")
		if got := a.seen[0].Header.Get("Cookie"); got != `session=a"b=c; csrf=` {
			t.Errorf("the app gets the cookies %q", got)
		}
		// What is not sent makes no other question.
		ask(t, f, map[string]string{"Cookie": `_ga=2; session=a"b=c; csrf=`}, "")
		if a.count() != 1 {
			t.Errorf("the app was asked %d times", a.count())
		}
		r := request(t.Context(), nil)
		r.Header["Cookie"] = []string{"session=1", "csrf=2"} // as HTTP/2 may send them
		if _, err := f.Ask(r, "acme"); err != nil || a.seen[1].Header.Get("Cookie") != "session=1; csrf=2" {
			t.Errorf("%v, %v", err, a.seen[1].Header)
		}
	})
}

func TestAnswerThatIsNoYesOpensNothing(t *testing.T) {
	long := strings.Repeat("x", 64<<10)
	cases := map[string]struct {
		status int
		body   string
		want   credential.Reason
	}{
		"401":                  {401, yes(nil), credential.Denied},
		"403":                  {403, yes(nil), credential.Denied},
		"201":                  {201, yes(nil), credential.Unavailable},
		"204":                  {204, "", credential.Unavailable},
		"301":                  {301, yes(nil), credential.Unavailable},
		"302":                  {302, yes(nil), credential.Unavailable},
		"400":                  {400, yes(nil), credential.Unavailable},
		"404":                  {404, "", credential.Unavailable},
		"429":                  {429, "", credential.Unavailable},
		"500":                  {500, yes(nil), credential.Unavailable},
		"503":                  {503, "", credential.Unavailable},
		"empty":                {200, "", credential.Unavailable},
		"a page":               {200, "<html>Sign in</html>", credential.Unavailable},
		"list":                 {200, "[]", credential.Unavailable},
		"null":                 {200, "null", credential.Unavailable},
		"true":                 {200, "true", credential.Unavailable},
		"cut off":              {200, yes(nil)[:20], credential.Unavailable},
		"two":                  {200, yes(nil) + yes(nil), credential.Unavailable},
		"tenant twice":         {200, `{"tenant":"acme","tenant":"*"}`, credential.Unavailable},
		"no tenant":            {200, `{"read":["**"]}`, credential.Unavailable},
		"bad tenant":           {200, yes(map[string]any{"tenant": "a/b"}), credential.Unavailable},
		"bad pattern":          {200, yes(map[string]any{"read": []string{"a*"}}), credential.Unavailable},
		"bad filter":           {200, yes(map[string]any{"filters": map[string]any{"a": "bad"}}), credential.Unavailable},
		"bad exp":              {200, yes(map[string]any{"exp": "soon"}), credential.Unavailable},
		"exp null":             {200, yes(map[string]any{"exp": nil}), credential.Unavailable},
		"exp over":             {200, yes(map[string]any{"exp": 1}), credential.Expired},
		"too large":            {200, yes(map[string]any{"x": long}), credential.Unavailable},
		"spaces without end":   {200, yes(nil) + strings.Repeat(" ", 1<<20), credential.Unavailable},
		"deep":                 {200, `{"tenant":"acme","x":` + strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000) + `}`, credential.Unavailable},
		"very many elements":   {200, `{"tenant":"acme","x":[0` + strings.Repeat(",0", 20_000) + `]}`, credential.Unavailable},
		"257 patterns":         {200, yes(map[string]any{"read": strings.Split(strings.Repeat("a,", 256)+"a", ",")}), credential.Unavailable},
		"invalid UTF-8":        {200, "{\"tenant\":\"acme\",\"sub\":\"\xff\"}", credential.Unavailable},
		"sub with a line end":  {200, yes(map[string]any{"sub": "a\nb"}), credential.Unavailable},
		"a filter that panics": {200, yes(map[string]any{"filters": map[string]any{"a": "panic"}}), credential.Unavailable},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			forward(t, credential.ForwardOptions{}, func(t *testing.T, a *app, f *credential.Forward, j *journal) {
				a.says(c.status, c.body)
				ask(t, f, nil, c.want)
				if told := strings.Contains(j.String(), "can't be asked"); told != (c.want == credential.Unavailable) {
					t.Errorf("the log says:\n%s", j)
				}
				_, err := f.Ask(request(t.Context(), nil), "acme")
				var h *hub.Refusal
				if !errors.As(err, &h) || (c.status == 403) != (h.Code == hub.Forbidden) || (c.want == credential.Unavailable) != errors.Is(err, credential.ErrAppUnavailable) {
					t.Errorf("the answer is %v", err)
				}
			})
		})
	}
}

func TestRequestThatNoAppShouldSeeIsRefused(t *testing.T) {
	forward(t, credential.ForwardOptions{}, func(t *testing.T, a *app, f *credential.Forward, _ *journal) {
		ask(t, f, map[string]string{"Authorization": "Bearer " + strings.Repeat("x", credential.MaxToken)}, credential.TooLarge)
		ask(t, f, map[string]string{"Cookie": strings.Repeat("x", 17<<10)}, credential.TooLarge)
		ask(t, f, map[string]string{"Origin": strings.Repeat("x", 2<<10)}, credential.TooLarge)
		for _, name := range []string{"Authorization", "Origin"} {
			r := request(t.Context(), nil)
			r.Header.Add(name, "another")
			if _, err := f.Ask(r, "acme"); refusal(t, err) != credential.Malformed {
				t.Errorf("two of %s: %v", name, err)
			}
		}
		if _, err := f.Ask(request(t.Context(), nil), "acme\r\nX-Admin: 1"); refusal(t, err) != credential.Claims {
			t.Errorf("a tenant with a line end: %v", err)
		}
		for _, tok := range []string{"", "a b", "a\r\nb", "a\x00", "é", "\x7f"} {
			if _, err := f.Verify(t.Context(), tok); refusal(t, err) != credential.Malformed {
				t.Errorf("the token %q: %v", tok, err)
			}
		}
		if _, err := f.Verify(t.Context(), strings.Repeat("x", credential.MaxToken+1)); refusal(t, err) != credential.TooLarge {
			t.Errorf("a long token: %v", err)
		}
		if a.count() != 0 {
			t.Errorf("the app was asked %d times", a.count())
		}
		if _, err := f.Verify(t.Context(), "abc"); err != nil || a.seen[0].Header.Get("Authorization") != "Bearer abc" || a.seen[0].Header.Get("Cookie") != "" {
			t.Errorf("%v, %v", err, a.seen)
		}
	})
}

// TestAnswerCountsForItsTimeAndOnlyForItsQuestion: another user would get the first one's rows.
func TestAnswerCountsForItsTimeAndOnlyForItsQuestion(t *testing.T) {
	forward(t, credential.ForwardOptions{}, func(t *testing.T, a *app, f *credential.Forward, _ *journal) {
		count := func(n int) {
			t.Helper()
			if a.count() != n {
				t.Errorf("the app was asked %d times, not %d", a.count(), n)
			}
		}
		first := ask(t, f, nil, "")
		time.Sleep(9 * time.Second)
		if g := ask(t, f, nil, ""); !g.Issued.Equal(first.Issued) {
			t.Error("the remembered answer is not the same")
		}
		count(1)
		for i, h := range []map[string]string{
			{"Authorization": ""}, {"Authorization": bearer + "x"}, {"Cookie": ""}, {"Cookie": cookie + "x"}, {"Origin": ""}, {"Origin": "https://other.example"},
			{"Authorization": bearer + cookie, "Cookie": ""}, {"Authorization": "", "Cookie": bearer + cookie},
		} {
			ask(t, f, h, "")
			count(i + 2)
		}
		r := request(t.Context(), nil)
		r.Host = "other.example.com"
		f.Ask(r, "acme")
		f.Ask(request(t.Context(), nil), "other")
		count(11)
		time.Sleep(time.Second)
		a.says(401, "")
		ask(t, f, nil, credential.Denied)
		count(12)
		time.Sleep(9 * time.Second)
		ask(t, f, nil, credential.Denied) // a no is remembered too
		count(12)
		time.Sleep(time.Second)
		a.says(200, yes(map[string]any{"exp": time.Now().Unix() + 3}))
		ask(t, f, nil, "")
		time.Sleep(3 * time.Second)
		ask(t, f, nil, credential.Expired) // not longer than it says
		count(14)
	})
}

// TestQuestionsAreOneOnlyIfAllTheirPartsAre: joined without their lengths, parts of two
// could be the same text.
func TestQuestionsAreOneOnlyIfAllTheirPartsAre(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.StringMatching(`[ab]{0,3}`), 5, 5)
		p, q := parts.Draw(t, "one"), parts.Draw(t, "other")
		if same := strings.Join(p, "\x00") == strings.Join(q, "\x00"); (credential.Question(p) == credential.Question(q)) != same {
			t.Fatalf("%q and %q", p, q)
		}
	})
}

func TestQuestionsThatAreTheSameAreOneRequest(t *testing.T) {
	forward(t, credential.ForwardOptions{}, func(t *testing.T, a *app, f *credential.Forward, _ *journal) {
		a.slow(time.Second)
		var all sync.WaitGroup
		var ok atomic.Int32
		for range 1000 {
			all.Go(func() {
				if _, err := f.Ask(request(t.Context(), nil), "acme"); err == nil {
					ok.Add(1)
				}
			})
		}
		all.Wait()
		if a.count() != 1 || ok.Load() != 1000 {
			t.Errorf("%d requests, %d answers", a.count(), ok.Load())
		}
	})
}

// TestWhoLeavesDoesNotTakeTheAnswerAlong: the first of many tabs closes, and all are signed out.
func TestWhoLeavesDoesNotTakeTheAnswerAlong(t *testing.T) {
	forward(t, credential.ForwardOptions{}, func(t *testing.T, a *app, f *credential.Forward, _ *journal) {
		a.slow(2 * time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			_, err := f.Ask(request(ctx, nil), "acme")
			if refusal(t, err) != credential.Unavailable || !errors.Is(err, context.Canceled) {
				t.Errorf("who left got %v", err)
			}
		})
		synctest.Wait()
		for range 10 {
			all.Go(func() { ask(t, f, nil, "") })
		}
		time.Sleep(time.Second)
		cancel()
		all.Wait()
		if a.count() != 1 {
			t.Errorf("the app was asked %d times", a.count())
		}
		// When all leave, the request ends, and the next asks anew.
		ctx, cancel = context.WithCancel(t.Context())
		h := map[string]string{"Cookie": "session=2"}
		all.Go(func() { f.Ask(request(ctx, h), "acme") })
		synctest.Wait()
		cancel()
		all.Wait()
		ask(t, f, h, "")
		if a.count() != 3 || a.seen[1].Context().Err() == nil {
			t.Errorf("the app was asked %d times; the second was %v", a.count(), a.seen[1].Context().Err())
		}
	})
}

func TestRunningFeedEndsWhenTheAppSaysNo(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   error // nil: any that is no *hub.Ended
	}{
		"no":      {403, "", nil},
		"who":     {401, "", nil},
		"less":    {200, yes(map[string]any{"read": []string{}}), &hub.Ended{Reason: hub.EndRevoked, Retry: time.Second}},
		"filters": {200, yes(map[string]any{"filters": map[string]any{"**": "x"}}), &hub.Ended{Reason: hub.EndRevoked, Retry: time.Second}},
		"tenant":  {200, yes(map[string]any{"tenant": "other"}), &hub.Ended{Reason: hub.EndRevoked, Retry: time.Second}},
		"expired": {200, yes(map[string]any{"exp": 1}), &hub.Ended{Reason: hub.EndExpired}},
	} {
		t.Run(name, func(t *testing.T) {
			forward(t, credential.ForwardOptions{}, func(t *testing.T, a *app, f *credential.Forward, _ *journal) {
				g := ask(t, f, nil, "")
				for range 40 { // ten minutes
					time.Sleep(15 * time.Second)
					if err := g.Check(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if n := a.count(); n != 41 {
					t.Errorf("the app was asked %d times", n)
				}
				a.says(c.status, c.body)
				time.Sleep(15 * time.Second)
				err := g.Check(t.Context())
				var end *hub.Ended
				switch {
				case c.want == nil && (err == nil || errors.As(err, &end)), c.want != nil && (!errors.As(err, &end) || *end != *c.want.(*hub.Ended)):
					t.Errorf("the feed is told %v", err)
				}
			})
		})
	}
}

// TestFeedOutlivesAnOutageOfTheAppForTheGrace: a deployment of the app would end all feeds; and
// an app that is gone would keep them for ever.
func TestFeedOutlivesAnOutageOfTheAppForTheGrace(t *testing.T) {
	for name, ill := range map[string]func(*app){
		"refused": (*app).down, "slow": func(a *app) { a.slow(time.Hour) },
		"500": func(a *app) { a.says(500, "") }, "a page": func(a *app) { a.says(200, "<html>") },
	} {
		t.Run(name, func(t *testing.T) {
			forward(t, credential.ForwardOptions{}, func(t *testing.T, a *app, f *credential.Forward, j *journal) {
				g := ask(t, f, nil, "")
				ill(a)
				begin := time.Now()
				for ended := false; !ended; {
					time.Sleep(15 * time.Second)
					asked := time.Now()
					err := g.Check(t.Context())
					if took := time.Since(asked); took >= 5*time.Second {
						t.Fatalf("Check took %s", took)
					}
					var end *hub.Ended
					switch past := time.Since(begin); {
					case err == nil && past < 60*time.Second:
					case errors.As(err, &end) && end.Reason == hub.EndExpired && end.Retry > 0 && past >= 60*time.Second && past < 80*time.Second:
						ended = true
					default:
						t.Fatalf("after %s: %v", past, err)
					}
				}
				ask(t, f, nil, credential.Unavailable)
				a.says(200, yes(nil))
				time.Sleep(20 * time.Second)
				if err := g.Check(t.Context()); err != nil {
					t.Errorf("when the app is back: %v", err)
				}
				if lost, back := strings.Count(j.String(), "can't be asked"), strings.Count(j.String(), "can be asked again"); lost != 1 || back != 1 {
					t.Errorf("the log tells %d times that it is gone, and %d times that it is back:\n%s", lost, back, j)
				}
			})
		})
	}
}

func TestSlowAppIsNotWaitedForLongerThanTheTimeout(t *testing.T) {
	forward(t, credential.ForwardOptions{Timeout: 2 * time.Second}, func(t *testing.T, a *app, f *credential.Forward, _ *journal) {
		a.slow(time.Hour)
		began := time.Now()
		ask(t, f, nil, credential.Unavailable)
		if time.Since(began) != 2*time.Second {
			t.Errorf("it took %s", time.Since(began))
		}
		for range 100 { // the same again at once is no other request
			ask(t, f, nil, credential.Unavailable)
		}
		if a.count() != 1 {
			t.Errorf("the app was asked %d times", a.count())
		}
	})
}

// TestManySlowQuestionsAreBounded: a stranger with many tokens would fill the memory.
func TestManySlowQuestionsAreBounded(t *testing.T) {
	forward(t, credential.ForwardOptions{}, func(t *testing.T, a *app, f *credential.Forward, _ *journal) {
		a.slow(time.Minute)
		var all sync.WaitGroup
		for i := range 3000 {
			all.Go(func() { ask(t, f, map[string]string{"Cookie": fmt.Sprint("session=", i)}, credential.Unavailable) })
		}
		all.Wait()
		if n := a.count(); n > 1000 {
			t.Errorf("%d requests at once", n)
		}
	})
}

func TestCloseEndsTheQuestionsUnderWay(t *testing.T) {
	forward(t, credential.ForwardOptions{}, func(t *testing.T, a *app, f *credential.Forward, _ *journal) {
		g := ask(t, f, map[string]string{"Cookie": "session=1"}, "")
		a.slow(time.Hour)
		var all sync.WaitGroup
		all.Go(func() { ask(t, f, nil, credential.Unavailable) })
		synctest.Wait()
		began := time.Now()
		f.Close()
		f.Close()
		all.Wait()
		ask(t, f, map[string]string{"Cookie": "session=2"}, credential.Unavailable)
		if err := g.Check(t.Context()); err != nil || time.Since(began) != 0 {
			t.Errorf("%v, after %s", err, time.Since(began))
		}
	})
}

func TestForwardDoesNotStartWithAURLThatDoesNotProtect(t *testing.T) {
	for _, o := range []credential.ForwardOptions{
		{}, {URL: "app"}, {URL: "http://app:3000/auth"}, {URL: "https://u:p@app/"}, {URL: "unix:///x"}, {URL: "https://app/", Cache: 61 * time.Second},
		{URL: "https://app/", Cache: -1}, {URL: "https://app/", Timeout: time.Minute}, {URL: "https://app/", Grace: time.Hour},
	} {
		if _, err := credential.NewForward(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
	for _, o := range []credential.ForwardOptions{{URL: "http://127.0.0.1:1/"}, {URL: "http://[::1]/"}, {URL: "http://app:3000/", InsecureHTTP: true}} {
		f, err := credential.NewForward(o)
		if err != nil {
			t.Errorf("%+v: %v", o, err)
			continue
		}
		f.Close()
	}
}

// TestRedirectOfTheAppTakesNoCredentialAlong does it with net/http.
func TestRedirectOfTheAppTakesNoCredentialAlong(t *testing.T) {
	var evil atomic.Int32
	attacker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		evil.Add(1)
		io.WriteString(w, yes(nil))
	}))
	defer attacker.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/auth", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cookie") != cookie {
			w.WriteHeader(401)
			return
		}
		io.WriteString(w, yes(nil))
	})
	mux.Handle("/away", http.RedirectHandler(attacker.URL, http.StatusTemporaryRedirect))
	s := httptest.NewServer(mux)
	defer s.Close()
	for path, reason := range map[string]credential.Reason{"/auth": "", "/away": credential.Unavailable} {
		f, err := credential.NewForward(credential.ForwardOptions{URL: s.URL + path})
		if err != nil {
			t.Fatal(err)
		}
		ask(t, f, nil, reason)
		if reason == "" {
			ask(t, f, map[string]string{"Cookie": "session=other"}, credential.Denied)
		}
		f.Close()
	}
	if evil.Load() != 0 {
		t.Error("the redirect was followed")
	}
}

// TestFeedWhoseSessionTheAppProlongsMayComeBack: without a word about when, clients take it for a refusal.
func TestFeedWhoseSessionTheAppProlongsMayComeBack(t *testing.T) {
	forward(t, credential.ForwardOptions{}, func(t *testing.T, a *app, f *credential.Forward, _ *journal) {
		h, err := hub.Open(t.Context(), feedtest.NewMemory(), hub.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Drain(t.Context())
		a.says(200, yes(map[string]any{"exp": time.Now().Add(time.Minute).Unix()}))
		g := ask(t, f, nil, "")
		s, err := h.Open(g, "acme", []feed.Start{{Collection: "todos"}}, hub.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for err == nil {
			a.says(200, yes(map[string]any{"exp": time.Now().Add(time.Minute).Unix()})) // as long as it is used
			_, err = s.Next(t.Context())
		}
		if end, ok := err.(*hub.Ended); !ok || end.Reason != hub.EndExpired || end.Retry == 0 {
			t.Errorf("the feed is told %+v", err)
		}
		ask(t, f, nil, "")
	})
}
