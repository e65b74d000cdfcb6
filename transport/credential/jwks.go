package credential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/MicahParks/jwkset"
	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

const (
	maxJWKS    = 256 << 10        // bytes of a set
	refetchGap = 30 * time.Second // between readings that unknown kids ask for
	firstRetry = time.Second      // after a reading that failed; then twice as long each
	lastRetry  = time.Minute
)

// remote keeps the keys of a JWKS. Of the package jwkset it uses the reading of a key only. The
// rest of it, and keyfunc, which is built on it, can't be used on an endpoint that may
// misbehave: a set of any size is read, one bad key refuses a whole set, an empty set
// replaces a good one, shared secrets (oct) and keys for encryption are taken as keys to verify with, of two keys
// with one kid the second is never tried, and each token with an unknown kid queues for a reading of its own.
type remote struct {
	// Static after construction.
	url     string
	client  *http.Client
	refresh time.Duration
	timeout time.Duration
	log     *slog.Logger
	static  []*key
	keys    *atomic.Pointer[keySet] // where they go; written by run alone
	wake    chan struct{}           // has room for one: read now
	cancel  context.CancelFunc
	done    chan struct{} // closed when run is over

	mu     sync.Mutex
	flight chan struct{} // closed when the reading under way is over; nil: none is
	last   time.Time     // when a reading began
	failed bool          // the last that is over

	// Owned by run.
	skipped string // what was said about keys that are not taken
}

func newRemote(o *Options, static []*key, keys *atomic.Pointer[keySet]) *remote {
	return &remote{
		url: o.JWKS, client: newClient(o.Transport, http.ProxyFromEnvironment),
		refresh: o.Refresh, timeout: o.Timeout, log: o.Logger.With("jwks", withoutQuery(o.JWKS)),
		static: static, keys: keys, wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

func (r *remote) start(ctx context.Context) {
	ctx, r.cancel = context.WithCancel(ctx)
	r.begin() // whoever verifies at once waits for it
	go r.run(ctx)
}

func (r *remote) close() {
	r.cancel()
	<-r.done
	r.client.CloseIdleConnections()
}

// run reads the set again and again. All readings happen here, one at a time.
func (r *remote) run(ctx context.Context) {
	defer close(r.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := firstRetry
	for {
		r.begin()
		err := r.read(ctx)
		if ctx.Err() != nil {
			r.end(r.failed)
			return
		}
		wait := r.refresh
		if err != nil {
			wait = min(retry+rand.N(retry/4), r.refresh)
			retry = min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		switch failed := r.end(err != nil); {
		case err != nil && !failed:
			r.log.Warn("the JWKS can't be read; what was read before goes on to count", "error", err, "keys", len(r.keys.Load().keys))
		case err == nil && failed:
			r.log.Info("the JWKS can be read again")
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.wake:
		}
	}
}

// begin notes that a reading is under way, whoever wanted it.
func (r *remote) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flight == nil {
		r.flight = make(chan struct{})
		r.last = time.Now()
	}
	select {
	case <-r.wake:
	default:
	}
}

// end lets those go on who wait for it, and tells how the reading before went.
func (r *remote) end(failed bool) (before bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.flight)
	r.flight = nil
	before, r.failed = r.failed, failed
	return before
}

// await waits for other keys than those of set: for the reading that is under way, or
// for a new one, if the last began long enough ago. However many ask, there is one. Its error says that
// nobody can tell now whether there are others.
func (r *remote) await(ctx context.Context, set *keySet) error {
	r.mu.Lock()
	if r.keys.Load() != set {
		r.mu.Unlock()
		return nil
	}
	if r.flight == nil && !set.partial && time.Since(r.last) >= refetchGap && !r.over() {
		r.flight = make(chan struct{})
		r.last = time.Now()
		r.wake <- struct{}{} // there is room: begin empties it under this lock
	}
	flight := r.flight
	r.mu.Unlock()
	if flight != nil {
		select {
		case <-flight:
		case <-r.done:
		case <-ctx.Done():
			return unavailable(ErrKeysUnavailable, context.Cause(ctx))
		}
	}
	r.mu.Lock()
	failed := r.failed
	r.mu.Unlock()
	if now := r.keys.Load(); now == set && (failed || now.partial) {
		return unavailable(ErrKeysUnavailable, nil)
	}
	return nil
}

func (r *remote) over() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// read reads the set once. Where it fails, what was there stays.
func (r *remote) read(ctx context.Context) (err error) {
	defer func() { // a panic here would end the server
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		return bare(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the answer is %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxJWKS+1))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if len(body) > maxJWKS {
		return fmt.Errorf("the answer has more than %d bytes", maxJWKS)
	}
	keys, skipped, err := parseJWKS(body)
	if note := strings.Join(skipped, "; "); err == nil || len(skipped) > 0 {
		if note != "" && note != r.skipped {
			r.log.Warn("keys of the JWKS are not taken", "keys", note)
		}
		r.skipped = note
	}
	if err != nil {
		return err
	}
	set := &keySet{keys: slices.Concat(r.static, keys)}
	if !set.same(r.keys.Load()) {
		r.keys.Store(set)
		r.log.Info("the keys of the JWKS were read", "keys", len(keys))
	}
	return nil
}

// parseJWKS reads a set (RFC 7517 section 5). Keys that are not taken are left out, with
// the reasons; a set that has none left is an error.
func parseJWKS(body []byte) (keys []*key, skipped []string, err error) {
	if err := hub.CheckBounds(body, hub.MaxDepth, hub.MaxElements); err != nil {
		return nil, nil, fmt.Errorf("the set %w", err)
	}
	var set struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := jsonv2.Unmarshal(body, &set); err != nil {
		return nil, nil, errors.New("the answer is not a JSON Web Key Set")
	}
	if len(set.Keys) > maxKeys {
		return nil, nil, fmt.Errorf("the set has %d keys, and may have %d", len(set.Keys), maxKeys)
	}
	for i, raw := range set.Keys {
		k, err := parseJWK(raw)
		if err != nil {
			skipped = append(skipped, fmt.Sprintf("key %d: %s", i+1, clip(err.Error())))
			continue
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, skipped, fmt.Errorf("none of the %d keys of the set may be used", len(set.Keys))
	}
	return keys, skipped, nil
}

// parseJWK reads one key. Only the members that make a public key get to jwkset: x5u
// and x5c are not looked at.
func parseJWK(raw []byte) (*key, error) {
	var j struct {
		Type       string   `json:"kty"`
		Use        string   `json:"use"`
		Operations []string `json:"key_ops"`
		Algorithm  string   `json:"alg"`
		ID         string   `json:"kid"`
		Curve      string   `json:"crv"`
		X          string   `json:"x"`
		Y          string   `json:"y"`
		N          string   `json:"n"`
		E          string   `json:"e"`
		D          any      `json:"d"`
	}
	if err := jsonv2.Unmarshal(raw, &j); err != nil {
		return nil, errors.New("it is not a JSON Web Key")
	}
	switch {
	case j.Type == "oct":
		return nil, errors.New("it is a shared secret (oct), which a set of public keys must not hold")
	case j.D != nil:
		return nil, errors.New("it is a private key: everybody who reads the set can sign with it")
	case j.Use != "" && j.Use != "sig":
		return nil, errors.New("its use is not sig")
	case len(j.Operations) > 0 && !slices.Contains(j.Operations, "verify"):
		return nil, errors.New("its key_ops lack verify")
	case !printable(j.ID):
		return nil, fmt.Errorf("its kid has more than %d bytes, or control characters", maxText)
	case len(j.N) > 2*maxRSA/8 || len(j.E) > 16:
		return nil, errors.New("its numbers are too large")
	}
	parsed, err := jwkset.NewJWKFromMarshal(jwkset.JWKMarshal{
		KTY: jwkset.KTY(j.Type), CRV: jwkset.CRV(j.Curve), X: j.X, Y: j.Y, N: j.N, E: j.E,
	}, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
	if err != nil {
		return nil, errors.New("it is of no type that is known here, or damaged")
	}
	k, err := newKey(parsed.Key())
	if err != nil {
		return nil, err
	}
	k.id = j.ID
	if j.Algorithm != "" { // RFC 7517 section 4.4: then it is for nothing else
		if !slices.Contains(k.algs, j.Algorithm) {
			return nil, errors.New("its alg does not fit its type")
		}
		k.algs = []string{j.Algorithm}
	}
	return k, nil
}

// checkURL refuses URLs that credentials or keys must not be asked from.
func checkURL(raw string, insecure bool) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return errors.New("is not one: it looks like https://app.example.com/path")
	case u.User != nil:
		return errors.New("must not hold a user or password")
	case u.Scheme == "http" && !insecure && !loopback(u.Hostname()):
		return errors.New("must be https, unless it is on this machine")
	}
	return nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// newClient makes a client that goes where it is told to and nowhere else: a redirect
// is an answer like others, and is not followed.
func newClient(transport http.RoundTripper, proxy func(*http.Request) (*url.URL, error)) *http.Client {
	if transport == nil {
		transport = &http.Transport{
			Proxy:                  proxy,
			DialContext:            (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			ForceAttemptHTTP2:      true,
			MaxConnsPerHost:        64,
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        time.Minute,
			TLSHandshakeTimeout:    5 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true,
		}
	}
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// withoutQuery is a URL that passed checkURL as it may be logged: a query may hold a key.
func withoutQuery(raw string) string {
	raw, _, _ = strings.Cut(raw, "#")
	raw, _, _ = strings.Cut(raw, "?")
	return raw
}

// bare takes the URL out of an error of http.Client: its query may hold a key.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
