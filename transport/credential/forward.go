package credential

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Bounds of what is sent to the app and of what it answers.
const (
	maxAnswer  = 64 << 10 // bytes
	maxCookie  = 16 << 10
	maxHeader  = 1 << 10 // bytes of Origin and Host
	maxPath    = 4 << 10
	maxFlights = 1000

	// checkTime is what a Check takes at most: the hub allows it 5 s.
	checkTime = 4 * time.Second
	// failureTime is how long the same question isn't asked again after it got no answer.
	failureTime = time.Second
)

// ForwardOptions say how an app is asked. URL must be given; the zero value of the rest
// works.
type ForwardOptions struct {
	// URL is the app's endpoint: https, or http on loopback.
	URL string
	// InsecureHTTP lets URL be http on other hosts too: credentials and answers then go
	// over that network readable and changeable.
	InsecureHTTP bool
	// Cookies names those that are sent to the app; none: all.
	Cookies []string
	// Cache is for how long an answer counts; default 10 s, at most 60 s.
	Cache time.Duration
	// Timeout is what one question may take; default 5 s, at most 30 s.
	Timeout time.Duration
	// Grace is how long a feed goes on after the app's last yes when the app can't be asked any
	// more; default 60 s, at most 10 min.
	Grace     time.Duration
	Filter    Compile           // nil: answers with filters are refused
	Transport http.RoundTripper // default: one without a proxy
	Logger    *slog.Logger      // default: none
}

func (o *ForwardOptions) validate() error {
	if err := checkURL(o.URL, o.InsecureHTTP); err != nil {
		return fmt.Errorf("the URL to ask for who may %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(
		within("cache", &o.Cache, 10*time.Second, 0, cacheTime),
		within("timeout", &o.Timeout, 5*time.Second, 0, 30*time.Second),
		within("grace", &o.Grace, 60*time.Second, 0, 10*time.Minute),
	)
}

// Forward asks the app who may what. It sends a GET with the request's Authorization, Cookie and
// Origin, and with X-Tidemark-Tenant, X-Forwarded-Method, X-Forwarded-Host and X-Forwarded-Uri,
// which is the path without the query; nothing else of the request. The app answers with
//
//	200  a JSON object with the claims of a token; exp may be missing, iss and aud are not looked at
//	401  who are you
//	403  you may not
//
// Anything else, redirects too, is an app that can't be asked: the caller gets 503. An
// answer must depend on the tenant, the host, the origin and the credentials only: for the Cache's
// time it is the answer to all that are the same in these, whatever their method and path.
//
// It may be used concurrently. Questions that are the same are one request.
type Forward struct {
	// Static after construction.
	url     string
	cookies []string
	fresh   time.Duration
	timeout time.Duration
	grace   time.Duration
	rules   rules
	client  *http.Client
	log     *slog.Logger
	cache   *cache[*answer]
	ctx     context.Context // ended by Close
	cancel  context.CancelFunc
	flown   sync.WaitGroup // the requests under way

	mu       sync.Mutex
	closed   bool
	flights  map[[32]byte]*flight
	logged   time.Time // when the log was last told of a failure or its end
	lastSaid bool      // that was a failure
}

// question is what the app is asked.
type question struct {
	tenant, authorization, cookie, origin, host string // what the answer depends on
	method, path                                string // what it does not
}

// sum names a question. Each part goes in with its length: joined without, the end of
// one could be the beginning of the next (CVE-2026-39972).
func (q *question) sum() (sum [32]byte) {
	h := sha256.New()
	for _, part := range []string{q.tenant, q.authorization, q.cookie, q.origin, q.host} {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		io.WriteString(h, part)
	}
	h.Sum(sum[:0])
	return sum
}

// answer is what the app said, or that it did not. It is not changed.
type answer struct {
	grant hub.Grant
	err   *Refused
	at    time.Time
}

// flight is a question that is being asked.
type flight struct {
	done   chan struct{}
	answer *answer // set before done is closed
	cancel context.CancelFunc

	waiting int // guarded by Forward.mu
}

// NewForward makes a Forward. It asks nothing yet.
func NewForward(o ForwardOptions) (*Forward, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	f := &Forward{
		url: o.URL, cookies: slices.Clone(o.Cookies), fresh: o.Cache, timeout: o.Timeout, grace: o.Grace,
		rules: rules{leeway: maxLeeway, compile: o.Filter, endless: true},
		// Credentials go to the app and through nobody's hands, so no proxy of the environment.
		client:  newClient(o.Transport, nil),
		log:     o.Logger.With("url", withoutQuery(o.URL)),
		cache:   newCache[*answer](),
		flights: map[[32]byte]*flight{},
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f, nil
}

// Close ends the questions under way and waits for them. Later ones are refused.
func (f *Forward) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.flown.Wait()
	f.client.CloseIdleConnections()
}

// Ask asks the app about a request for a tenant. The error is a *Refused. It does not
// look at whether the Origin may use cookies: the caller must have done so.
//
// The grant's Check asks again, through the cache. A feed ends when the app says no or another than
// before (then its client may come back at once, for the new), and, if the app can't be asked, the
// Grace after its last yes. At an exp it ends too, and its client may come back for the next.
func (f *Forward) Ask(r *http.Request, tenant string) (hub.Grant, error) {
	if tenant != "" && feed.CheckTenant(tenant) != nil {
		return hub.Grant{}, refuse(Claims, "that is no tenant")
	}
	q := question{tenant: tenant, host: r.Host, method: r.Method, path: r.URL.EscapedPath()}
	var err error
	if q.authorization, err = single(r.Header, "Authorization", MaxToken); err != nil {
		return hub.Grant{}, err
	}
	if q.origin, err = single(r.Header, "Origin", maxHeader); err != nil {
		return hub.Grant{}, err
	}
	q.cookie = f.pick(r.Header["Cookie"])
	if len(q.cookie) > maxCookie {
		return hub.Grant{}, refuse(TooLarge, "the cookies have more than %d bytes", maxCookie)
	}
	if len(q.host) > maxHeader || len(q.path) > maxPath || len(q.method) > maxText {
		return hub.Grant{}, refuse(TooLarge, "the request's host, method or path is too long")
	}
	a := f.ask(r.Context(), q)
	return a.grant, a.failure()
}

// Verify asks the app about a token alone, sent as Authorization: Bearer, for no
// tenant and no origin.
func (f *Forward) Verify(ctx context.Context, token string) (hub.Grant, error) {
	if len(token) > MaxToken {
		return hub.Grant{}, refuse(TooLarge, "the token has %d bytes, and may have %d", len(token), MaxToken)
	}
	// It becomes a header: no line ends, no spaces.
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7F }) {
		return hub.Grant{}, refuse(Malformed, "the token is empty, or holds characters that none may")
	}
	a := f.ask(ctx, question{authorization: "Bearer " + token, method: http.MethodGet, path: "/"})
	return a.grant, a.failure()
}

// failure is err, as an error that is nil if there is none.
func (a *answer) failure() error {
	if a.err == nil {
		return nil
	}
	return a.err
}

// single gives a header that may be there once: of two, the app might believe the other.
func single(h http.Header, name string, most int) (string, error) {
	values := h[name]
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", refuse(Malformed, "the request has %s twice", name)
	case len(values[0]) > most:
		return "", refuse(TooLarge, "the request's %s has more than %d bytes", name, most)
	}
	return values[0], nil
}

// pick gives the cookies that are the app's, as they were sent (RFC 6265 section 5.4).
func (f *Forward) pick(headers []string) string {
	all := strings.Join(headers, "; ")
	if len(f.cookies) == 0 || len(all) > 4*maxCookie {
		return all
	}
	var picked []string
	for pair := range strings.SplitSeq(all, ";") {
		pair = strings.TrimSpace(pair)
		if name, _, ok := strings.Cut(pair, "="); ok && slices.Contains(f.cookies, name) {
			picked = append(picked, pair)
		}
	}
	return strings.Join(picked, "; ")
}

// ask gives the answer to a question: a remembered one, or that of the request which is
// under way, or of a new one.
func (f *Forward) ask(ctx context.Context, q question) *answer {
	sum := q.sum()
	f.mu.Lock()
	if a, ok := f.cache.get(sum, time.Now()); ok {
		f.mu.Unlock()
		return a
	}
	way := f.flights[sum]
	if way == nil {
		if f.closed || len(f.flights) >= maxFlights {
			f.mu.Unlock()
			return f.failed(nil)
		}
		way = f.launch(sum, q)
	}
	way.waiting++
	f.mu.Unlock()
	select {
	case <-way.done:
		return way.answer
	case <-ctx.Done():
	}
	f.mu.Lock()
	if way.waiting--; way.waiting == 0 {
		// Nobody wants to know any more. Who asks next must not get this one's end.
		if f.flights[sum] == way {
			delete(f.flights, sum)
		}
		way.cancel()
	}
	f.mu.Unlock()
	return f.failed(context.Cause(ctx))
}

func (f *Forward) failed(cause error) *answer {
	return &answer{err: unavailable(ErrAppUnavailable, cause), at: time.Now()}
}

// launch begins to ask. It is called with the lock held. The request has a context of
// its own, so that who asked first may leave.
func (f *Forward) launch(sum [32]byte, q question) *flight {
	ctx, cancel := context.WithTimeout(f.ctx, f.timeout)
	way := &flight{done: make(chan struct{}), cancel: cancel}
	f.flights[sum] = way
	f.flown.Go(func() {
		defer cancel()
		a := f.fetch(ctx, q)
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.flights[sum] == way {
			delete(f.flights, sum)
			now, life := time.Now(), f.fresh
			if a.err != nil && a.err.Reason == Unavailable {
				life = failureTime
			}
			until := now.Add(life)
			if end := a.grant.Expires; !end.IsZero() && end.Before(until) {
				until = end
			}
			f.cache.put(sum, a, 1024+len(q.tenant)+len(q.authorization)+len(q.cookie)+len(q.origin)+len(q.host)+len(q.path)+a.size(), now, until)
		}
		way.answer = a
		close(way.done)
	})
	return way
}

// size is about what an answer holds.
func (a *answer) size() int {
	n := 0
	for _, patterns := range [][]string{a.grant.Read, a.grant.Write} {
		for _, p := range patterns {
			n += 16 + len(p)
		}
	}
	return n + 4*maxFilter*len(a.grant.Filters)
}

// fetch asks the app once.
func (f *Forward) fetch(ctx context.Context, q question) *answer {
	grant, err := f.request(ctx, q)
	a := &answer{grant: grant, at: time.Now()}
	switch refused := (*Refused)(nil); {
	case err == nil:
		a.grant.Check, a.grant.Again = f.check(q, a), time.Second // the app may go on saying yes
	case errors.As(err, &refused):
		a.grant, a.err = hub.Grant{}, refused
	default:
		a.grant, a.err = hub.Grant{}, unavailable(ErrAppUnavailable, nil)
	}
	if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		f.note(a, err)
	}
	return a
}

// request sends a question. An error that is not *Refused is for the log.
func (f *Forward) request(ctx context.Context, q question) (g hub.Grant, err error) {
	defer func() { // a panic here would end the server
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url, nil)
	if err != nil {
		return g, err
	}
	for name, value := range map[string]string{
		"Authorization": q.authorization, "Cookie": q.cookie, "Origin": q.origin,
		"X-Forwarded-Method": q.method, "X-Forwarded-Uri": q.path, "X-Forwarded-Host": q.host,
		"X-Tidemark-Tenant": q.tenant, "Accept": "application/json", "User-Agent": "tidemark",
	} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return g, bare(err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized:
		return g, refuse(Denied, "the app does not know who this is: sign in")
	case http.StatusForbidden:
		no := refuse(Denied, "the app says that this is not allowed")
		no.refusal.Code = hub.Forbidden
		return g, no
	default:
		return g, fmt.Errorf("the answer is %d, and should be 200, 401 or 403", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return g, fmt.Errorf("read the answer: %w", err)
	case len(body) > maxAnswer:
		return g, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	return f.read(body)
}

// read makes a grant of the app's answer. Its mistakes are told to the log, and not to who
// asked, who could do nothing about them; but that it is over already is not a mistake.
func (f *Forward) read(body []byte) (hub.Grant, error) {
	claims, err := object("answer", body)
	if err != nil {
		return hub.Grant{}, fmt.Errorf("the answer can't be read: %s", strings.ReplaceAll(err.Error(), "the token's answer", "it"))
	}
	now := time.Now()
	g, err := f.rules.grant(claims, now)
	var refused *Refused
	switch {
	case errors.As(err, &refused) && refused.Reason == Expired:
		return hub.Grant{}, refuse(Expired, "the app says that this has expired: sign in again")
	case err != nil:
		return hub.Grant{}, fmt.Errorf("the answer can't be read: %s", strings.ReplaceAll(err.Error(), "the token", "it"))
	}
	if g.Issued.IsZero() {
		g.Issued = now // so that a revocation counts for what the app said before it
	}
	return g, nil
}

// check asks again for a running feed.
func (f *Forward) check(q question, first *answer) func(context.Context) error {
	var yes atomic.Int64 // when the app said so last
	yes.Store(first.at.UnixNano())
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, checkTime)
		defer cancel()
		a := f.ask(ctx, q)
		switch {
		case a.err == nil && sameRights(&a.grant, &first.grant):
			for {
				was := yes.Load()
				if was >= a.at.UnixNano() || yes.CompareAndSwap(was, a.at.UnixNano()) {
					return nil
				}
			}
		case a.err == nil:
			return &hub.Ended{Reason: hub.EndRevoked, Retry: time.Second}
		case a.err.Reason == Expired:
			return &hub.Ended{Reason: hub.EndExpired}
		case a.err.Reason != Unavailable:
			return a.err
		case time.Since(time.Unix(0, yes.Load())) < f.grace:
			return nil
		}
		return &hub.Ended{Reason: hub.EndExpired, Retry: comeBack}
	}
}

// sameRights tells whether two grants let the same be done.
func sameRights(a, b *hub.Grant) bool {
	return a.Tenant == b.Tenant && a.Admin == b.Admin && a.Subject == b.Subject && a.ID == b.ID &&
		slices.Equal(a.Read, b.Read) && slices.Equal(a.Write, b.Write) &&
		slices.EqualFunc(a.Filters, b.Filters, func(x, y hub.RowFilter) bool {
			return x.Pattern == y.Pattern && x.Identity() == y.Identity()
		})
}

// note tells the log when the app can't be asked, and when it can again; at most every 10 s,
// because one caller may get no answer while all others do.
func (f *Forward) note(a *answer, err error) {
	failed := a.err != nil && a.err.Reason == Unavailable
	f.mu.Lock()
	say := failed != f.lastSaid && time.Since(f.logged) >= 10*time.Second
	if say {
		f.logged, f.lastSaid = time.Now(), failed
	}
	f.mu.Unlock()
	switch {
	case !say:
	case failed:
		f.log.Warn("the app can't be asked who may; feeds go on for a while, new ones are refused", "error", clip(err.Error()), "grace", f.grace)
	default:
		f.log.Info("the app can be asked again who may")
	}
}
