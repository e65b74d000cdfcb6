package credential_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/transport/credential"
)

// endpoint is a JWKS endpoint without a network, so that its time can be the test's.
type endpoint struct {
	mu     sync.Mutex
	status int
	body   string
	header http.Header
	delay  time.Duration
	err    error
	asked  int
	times  []time.Time
	paths  []string
}

func (e *endpoint) set(f func(*endpoint)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f(e)
}

// serves makes the endpoint well, with a set.
func (e *endpoint) serves(body string) {
	e.set(func(e *endpoint) { e.status, e.body, e.err, e.delay, e.header = 200, body, nil, 0, nil })
}

func (e *endpoint) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked
}

func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	e.mu.Lock()
	e.asked++
	e.times = append(e.times, time.Now())
	e.paths = append(e.paths, r.URL.String())
	status, body, header, delay, err := e.status, e.body, e.header.Clone(), e.delay, e.err
	e.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if err != nil {
		return nil, err
	}
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// journal is a log that can be read while it is written.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

const jwksURL = "https://app.example.com/jwks.json?key=hunter2hunter2"

// remote runs a test in a bubble, with a verifier that reads an endpoint.
func remote(t *testing.T, test func(*testing.T, *endpoint, *credential.Verifier, *journal)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e, j := &endpoint{}, &journal{}
		e.serves(jwks(jwk(p256, kid("a"))))
		v, err := credential.New(t.Context(), credential.Options{
			Keys: credential.Keys{JWKS: jwksURL}, Transport: e, Logger: j.logger(), Filter: compile,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		test(t, e, v, j)
		silent(t, j.String(), "hunter2hunter2")
	})
}

// is tells how a token is answered.
func is(t testing.TB, v *credential.Verifier, tok string) credential.Reason {
	t.Helper()
	_, err := v.Verify(context.Background(), tok)
	r := refusal(t, err)
	if (r == credential.Unavailable) != errors.Is(err, credential.ErrKeysUnavailable) {
		t.Fatalf("%v is %s", err, r)
	}
	return r
}

func want(t testing.TB, v *credential.Verifier, tok string, reason credential.Reason) {
	t.Helper()
	if got := is(t, v, tok); got != reason {
		t.Errorf("the answer is %q, not %q", got, reason)
	}
}

// distant makes good tokens for a time far from the real one.
func distant(alg string, key any, id string) string {
	return sign(alg, key, map[string]any{"alg": alg, "kid": id}, claims(map[string]any{"exp": time.Now().Add(1000 * time.Hour).Unix()}))
}

// TestStateOfASetThatServesNoKeyRefusesTokens has each way in which an endpoint may go
// wrong, from the start on.
func TestStateOfASetThatServesNoKeyRefusesTokens(t *testing.T) {
	good := jwks(jwk(p256, kid("a")))
	a := func(more map[string]any) map[string]any {
		more["kid"] = "a"
		return jwk(p256, more)
	}
	states := map[string]func(*endpoint){
		"an empty set":           func(e *endpoint) { e.body = `{"keys":[]}` },
		"no set":                 func(e *endpoint) { e.body = `{}` },
		"an empty body":          func(e *endpoint) { e.body = `` },
		"null":                   func(e *endpoint) { e.body = `null` },
		"a list":                 func(e *endpoint) { e.body = `[` + good + `]` },
		"keys null":              func(e *endpoint) { e.body = `{"keys":null}` },
		"keys object":            func(e *endpoint) { e.body = `{"keys":{"a":1}}` },
		"keys twice":             func(e *endpoint) { e.body = `{"keys":[],` + good[1:] },
		"garbage":                func(e *endpoint) { e.body = "\x00\xff\x1f\x8b" },
		"a login page":           func(e *endpoint) { e.body = "<!doctype html><title>Sign in</title>" },
		"cut off":                func(e *endpoint) { e.body = good[:len(good)-2] },
		"more behind":            func(e *endpoint) { e.body = good + good },
		"very deep":              func(e *endpoint) { e.body = strings.Repeat("[", 100_000) },
		"500":                    func(e *endpoint) { e.status = 500 },
		"404":                    func(e *endpoint) { e.status = 404 },
		"204":                    func(e *endpoint) { e.status, e.body = 204, "" },
		"206":                    func(e *endpoint) { e.status = 206 },
		"redirect":               func(e *endpoint) { e.status, e.header = 302, http.Header{"Location": {"https://evil.example/jwks"}} },
		"redirect to itself":     func(e *endpoint) { e.status, e.header = 307, http.Header{"Location": {jwksURL}} },
		"too large":              func(e *endpoint) { e.body = good[:len(good)-1] + `,"x":"` + strings.Repeat("x", 256<<10) + `"}` },
		"spaces without end":     func(e *endpoint) { e.body = good + strings.Repeat(" ", 1<<20) },
		"too slow":               func(e *endpoint) { e.delay = time.Minute },
		"refused":                func(e *endpoint) { e.err = errors.New("connection refused") },
		"65 keys":                func(e *endpoint) { e.body = `{"keys":[` + strings.Repeat(`{"kty":"EC"},`, 64) + good[9:] },
		"a secret":               func(e *endpoint) { e.body = `{"keys":[{"kty":"oct","kid":"a","k":"` + strings.Repeat("A", 64) + `"}]}` },
		"a private key":          func(e *endpoint) { e.body = jwks(a(map[string]any{"d": "AAAA"})) },
		"a key for encryption":   func(e *endpoint) { e.body = jwks(a(map[string]any{"use": "enc"})) },
		"use null and kty wrong": func(e *endpoint) { e.body = jwks(a(map[string]any{"kty": "RSA"})) },
		"a key to sign with":     func(e *endpoint) { e.body = jwks(a(map[string]any{"key_ops": []string{"sign"}})) },
		"alg of another type":    func(e *endpoint) { e.body = jwks(a(map[string]any{"alg": "HS256"})) },
		"alg none":               func(e *endpoint) { e.body = jwks(a(map[string]any{"alg": "none"})) },
		"alg of another curve":   func(e *endpoint) { e.body = jwks(a(map[string]any{"alg": "ES384"})) },
		"a curve nobody knows":   func(e *endpoint) { e.body = jwks(a(map[string]any{"crv": "secp256k1"})) },
		"a point off the curve":  func(e *endpoint) { e.body = jwks(a(map[string]any{"y": "AAAA"})) },
		"no point":               func(e *endpoint) { e.body = jwks(a(map[string]any{"x": "", "y": ""})) },
		"x number":               func(e *endpoint) { e.body = jwks(a(map[string]any{"x": 1})) },
		"a short RSA key":        func(e *endpoint) { e.body = jwks(jwk(weakRSA(), kid("a"))) },
		"RSA with e 1":           func(e *endpoint) { e.body = jwks(jwk(rsaKey(), map[string]any{"kid": "a", "e": "AQ"})) },
		"RSA with a huge e": func(e *endpoint) {
			e.body = jwks(jwk(rsaKey(), map[string]any{"kid": "a", "e": strings.Repeat("A", 20) + "QAB"}))
		},
		"an RSA key that is huge": func(e *endpoint) {
			e.body = jwks(jwk(rsaKey(), map[string]any{"kid": "a", "n": "_" + strings.Repeat("_", 2000) + "w"}))
		},
		"X25519":             func(e *endpoint) { e.body = jwks(jwk(edKey, map[string]any{"kid": "a", "crv": "X25519"})) },
		"an Ed25519 key cut": func(e *endpoint) { e.body = jwks(jwk(edKey, map[string]any{"kid": "a", "x": "AAAA"})) },
		"kid number": func(e *endpoint) {
			e.body = jwks(a(map[string]any{})) + " "
			e.body = strings.Replace(e.body, `"kid":"a"`, `"kid":1`, 1)
		},
		"kid with a line end":  func(e *endpoint) { e.body = strings.Replace(good, `"kid":"a"`, `"kid":"a\n"`, 1) },
		"a key that is a list": func(e *endpoint) { e.body = `{"keys":[[]]}` },
		"kty twice":            func(e *endpoint) { e.body = strings.Replace(good, `"kty":"EC"`, `"kty":"oct","kty":"EC"`, 1) },
	}
	for name, state := range states {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, j := &endpoint{}, &journal{}
				e.serves(good)
				e.set(state)
				v, err := credential.New(t.Context(), credential.Options{Keys: credential.Keys{JWKS: jwksURL}, Transport: e, Logger: j.logger()})
				if err != nil {
					t.Fatalf("it does not start: %v", err)
				}
				defer v.Close()
				for _, tok := range []string{distant("ES256", p256, "a"), distant("RS256", rsaKey(), "a"), distant("RS256", weakRSA(), "a"),
					distant("EdDSA", edKey, "a"), distant("HS256", make([]byte, 48), "a")} {
					if got := is(t, v, tok); got != credential.Unavailable && got != credential.Algorithm {
						t.Errorf("a token is answered %q", got)
					}
				}
				time.Sleep(3 * time.Minute)
				if n := strings.Count(j.String(), "can't be read;"); n != 1 {
					t.Errorf("the log told of it %d times:\n%s", n, j)
				}
				if n := e.count(); n < 4 || n > 20 {
					t.Errorf("it was asked %d times in 3 minutes", n)
				}
				for _, p := range e.paths {
					if p != jwksURL {
						t.Errorf("%s was asked", p)
					}
				}
				// It gets well, and nobody has to restart anything.
				e.serves(good)
				time.Sleep(2 * time.Minute)
				want(t, v, distant("ES256", p256, "a"), "")
				if !strings.Contains(j.String(), "can be read again") {
					t.Errorf("the log does not say that it is over:\n%s", j)
				}
				silent(t, j.String(), "hunter2hunter2")
				// Ill again: what was read goes on to count.
				e.set(state)
				time.Sleep(11 * time.Minute)
				want(t, v, distant("ES256", p256, "a"), "")
				// Of a kid that is not there nobody can tell.
				want(t, v, distant("ES256", p256, "b"), credential.Unavailable)
			})
		})
	}
}

// TestKeysThatAreNotTakenDoNotSpoilTheOthers: one odd key of an identity provider would
// lock everybody out.
func TestKeysThatAreNotTakenDoNotSpoilTheOthers(t *testing.T) {
	remote(t, func(t *testing.T, e *endpoint, v *credential.Verifier, j *journal) {
		e.serves(jwks(
			jwk(weakRSA(), kid("weak")), map[string]any{"kty": "oct", "kid": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U"},
			jwk(rsaKey(), map[string]any{"kid": "enc", "use": "enc"}), map[string]any{"kty": "EC", "crv": "P-999", "kid": "new"},
			jwk(rsaKey(), map[string]any{"kid": "r", "use": "sig", "alg": "RS256", "x5c": []string{certificate(rsaKey2())}, "x5u": "https://evil.example"}),
			jwk(edKey, map[string]any{"kid": "e", "key_ops": []string{"verify"}}),
		))
		time.Sleep(11 * time.Minute)
		want(t, v, distant("RS256", rsaKey(), "r"), "")
		want(t, v, distant("EdDSA", edKey, "e"), "")
		want(t, v, distant("RS256", weakRSA(), "weak"), credential.UnknownKey)
		want(t, v, distant("RS256", rsaKey(), "enc"), credential.UnknownKey)
		want(t, v, distant("RS512", rsaKey(), "r"), credential.Algorithm) // its alg says RS256
		want(t, v, distant("HS256", []byte("secretsecretsecretsecretsecretse"), "oct"), credential.Algorithm)
		for _, why := range []string{"key 1: an RSA key must have 2048", "key 2: it is a shared secret", "key 3: its use is not sig", "key 4: "} {
			if !strings.Contains(j.String(), why) {
				t.Errorf("the log does not say %q:\n%s", why, j)
			}
		}
		time.Sleep(time.Hour)
		if n := strings.Count(j.String(), "are not taken"); n != 1 {
			t.Errorf("the log told %d times of keys that are not taken", n)
		}
	})
}

func TestTwoKeysOfOneKidBothCount(t *testing.T) {
	remote(t, func(t *testing.T, e *endpoint, v *credential.Verifier, _ *journal) {
		e.serves(jwks(jwk(rsaKey(), kid("k")), jwk(rsaKey2(), kid("k")), jwk(p256, kid("k"))))
		time.Sleep(11 * time.Minute)
		want(t, v, distant("RS256", rsaKey(), "k"), "")
		want(t, v, distant("RS256", rsaKey2(), "k"), "")
		want(t, v, distant("ES256", p256, "k"), "")
		want(t, v, distant("EdDSA", edKey, "k"), credential.Algorithm)
	})
}

func TestTokenWithoutKidIsTriedWithAllKeysThatFit(t *testing.T) {
	remote(t, func(t *testing.T, e *endpoint, v *credential.Verifier, _ *journal) {
		e.serves(jwks(jwk(rsaKey(), nil), jwk(rsaKey2(), kid("2"))))
		time.Sleep(11 * time.Minute)
		exp := map[string]any{"exp": time.Now().Add(time.Hour).Unix()}
		want(t, v, token("RS256", rsaKey(), exp), "")
		want(t, v, token("PS512", rsaKey2(), exp), "")
		want(t, v, distant("RS256", rsaKey(), "whatever"), "") // a key without a name goes by any
		want(t, v, distant("RS256", rsaKey2(), "whatever"), credential.Signature)
		want(t, v, distant("RS256", rsaKey(), "2"), credential.Signature)
	})
}

// TestRemovedKeyDropsAndEndsItsFeeds: a stolen key that was taken out of the set would go
// on to open feeds, and those that are open would stay.
func TestRemovedKeyDropsAndEndsItsFeeds(t *testing.T) {
	remote(t, func(t *testing.T, e *endpoint, v *credential.Verifier, _ *journal) {
		tok := distant("ES256", p256, "a")
		g, err := v.Verify(t.Context(), tok)
		if err != nil || g.Check == nil || g.Check(t.Context()) != nil {
			t.Fatalf("%+v, %v", g, err)
		}
		e.serves(jwks(jwk(edKey, kid("b"))))
		want(t, v, tok, "") // not read yet
		time.Sleep(10*time.Minute + time.Second)
		want(t, v, tok, credential.UnknownKey)
		if err := g.Check(t.Context()); refusal(t, err) != credential.UnknownKey {
			t.Errorf("the feed goes on: %v", err)
		}
		want(t, v, distant("EdDSA", edKey, "b"), "")
	})
}

// TestKeyThatStaysKeepsItsFeeds: a rotation would end all of them.
func TestKeyThatStaysKeepsItsFeeds(t *testing.T) {
	remote(t, func(t *testing.T, e *endpoint, v *credential.Verifier, _ *journal) {
		g, err := v.Verify(t.Context(), distant("ES256", p256, "a"))
		if err != nil {
			t.Fatal(err)
		}
		e.serves(jwks(jwk(edKey, kid("b")), jwk(p256, kid("a, renamed"))))
		time.Sleep(11 * time.Minute)
		if err := g.Check(t.Context()); err != nil {
			t.Errorf("the feed ends: %v", err)
		}
		e.set(func(e *endpoint) { e.status = 500 })
		time.Sleep(24 * time.Hour)
		if err := g.Check(t.Context()); err != nil {
			t.Errorf("the feed ends with the endpoint: %v", err)
		}
	})
}

// TestRememberedTokenIsForgottenWithItsKeys: a token that was good under the old set is looked at
// again under the new, even within the time that it is remembered.
func TestRememberedTokenIsForgottenWithItsKeys(t *testing.T) {
	remote(t, func(t *testing.T, e *endpoint, v *credential.Verifier, _ *journal) {
		time.Sleep(31 * time.Second)
		tok := distant("ES256", p256, "a")
		want(t, v, tok, "")
		e.serves(jwks(jwk(edKey, kid("b"))))
		want(t, v, distant("EdDSA", edKey, "b"), "") // reads the set anew
		want(t, v, tok, credential.UnknownKey)
	})
}

// TestRotatedKeyIsFetchedWhenItIsFirstSeen: users with new tokens would wait 10 minutes.
func TestRotatedKeyIsFetchedWhenItIsFirstSeen(t *testing.T) {
	remote(t, func(t *testing.T, e *endpoint, v *credential.Verifier, _ *journal) {
		want(t, v, distant("ES256", p256, "a"), "")
		time.Sleep(31 * time.Second)
		e.serves(jwks(jwk(p256, kid("a")), jwk(edKey, kid("b"))))
		want(t, v, distant("EdDSA", edKey, "b"), "")
		if n := e.count(); n != 2 {
			t.Errorf("the set was read %d times", n)
		}
	})
}

// TestStormOfUnknownKidsIsOneFetch: anybody could make this server storm the identity provider.
func TestStormOfUnknownKidsIsOneFetch(t *testing.T) {
	remote(t, func(t *testing.T, e *endpoint, v *credential.Verifier, _ *journal) {
		want(t, v, distant("ES256", p256, "a"), "")
		tail := distant("EdDSA", edKey2, "x")
		tail = tail[strings.IndexByte(tail, '.'):]
		unknown := func(i int) string { return segment(fmt.Sprintf(`{"alg":"EdDSA","kid":"k%d"}`, i)) + tail }
		for i := range 10_000 { // within 30 s of the first reading
			want(t, v, unknown(i), credential.UnknownKey)
		}
		if n := e.count(); n != 1 {
			t.Fatalf("the set was read %d times", n)
		}
		time.Sleep(31 * time.Second)
		e.set(func(e *endpoint) { e.delay = 2 * time.Second })
		var all sync.WaitGroup
		var refused atomic.Int32
		for i := range 10_000 {
			all.Go(func() {
				if is(t, v, unknown(i)) == credential.UnknownKey {
					refused.Add(1)
				}
			})
		}
		began := time.Now()
		all.Wait()
		if n := e.count(); n != 2 || refused.Load() != 10_000 || time.Since(began) != 2*time.Second {
			t.Errorf("the set was read %d times, %d were refused after %s", n, refused.Load(), time.Since(began))
		}
		// A storm of ten minutes.
		before := e.count()
		for i := range 6000 {
			is(t, v, unknown(i))
			time.Sleep(100 * time.Millisecond)
		}
		if n := e.count() - before; n > 22 {
			t.Errorf("the set was read %d times in 10 minutes", n)
		}
		for i := 1; i < len(e.times); i++ {
			if gap := e.times[i].Sub(e.times[i-1]); gap < 28*time.Second {
				t.Errorf("readings %d and %d are %s apart", i, i+1, gap)
			}
		}
	})
}

func TestWhoWaitsForKeysLeavesWithItsContext(t *testing.T) {
	remote(t, func(t *testing.T, e *endpoint, v *credential.Verifier, _ *journal) {
		want(t, v, distant("ES256", p256, "a"), "")
		time.Sleep(31 * time.Second)
		e.serves(jwks(jwk(p256, kid("a")), jwk(edKey, kid("b"))))
		e.set(func(e *endpoint) { e.delay = 3 * time.Second })
		tok := distant("EdDSA", edKey, "b")
		var others sync.WaitGroup
		others.Go(func() { want(t, v, tok, "") })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := v.Verify(ctx, tok)
		if refusal(t, err) != credential.Unavailable || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it is answered %v", err)
		}
		others.Wait()
	})
}

// TestFirstTokensWaitForTheFirstReading: after a restart all clients would be refused.
func TestFirstTokensWaitForTheFirstReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{}
		e.serves(jwks(jwk(p256, kid("a"))))
		e.set(func(e *endpoint) { e.delay = time.Second })
		v, err := credential.New(t.Context(), credential.Options{Keys: credential.Keys{JWKS: jwksURL, Secret: secret}, Transport: e})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		began := time.Now()
		want(t, v, distant("HS256", secret, ""), "") // needs no set
		if time.Since(began) != 0 {
			t.Error("a token by the secret waits for the set")
		}
		want(t, v, distant("ES256", p256, "a"), "")
		if time.Since(began) != time.Second || e.count() != 1 {
			t.Errorf("after %s, read %d times", time.Since(began), e.count())
		}
	})
}

func TestCloseEndsAReadingUnderWayAndThoseWhoWaitForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{}
		e.serves(jwks(jwk(p256, kid("a"))))
		e.set(func(e *endpoint) { e.delay = time.Hour })
		v, err := credential.New(t.Context(), credential.Options{Keys: credential.Keys{JWKS: jwksURL}, Transport: e})
		if err != nil {
			t.Fatal(err)
		}
		var waiting sync.WaitGroup
		waiting.Go(func() { want(t, v, distant("ES256", p256, "a"), credential.Unavailable) })
		synctest.Wait()
		began := time.Now()
		v.Close()
		waiting.Wait()
		v.Close()
		want(t, v, distant("ES256", p256, "a"), credential.Unavailable)
		if time.Since(began) != 0 {
			t.Errorf("Close took %s", time.Since(began))
		}
	})
}

// TestSetIsReadOverARealSocketAndRedirectsAreNotFollowed does it with net/http.
func TestSetIsReadOverARealSocketAndRedirectsAreNotFollowed(t *testing.T) {
	var evil atomic.Int32
	attacker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		evil.Add(1)
		io.WriteString(w, jwks(jwk(edKey2, kid("a"))))
	}))
	defer attacker.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, jwks(jwk(edKey, kid("a")))) })
	mux.Handle("/away", http.RedirectHandler(attacker.URL, http.StatusFound))
	mux.Handle("/along", http.RedirectHandler("/keys", http.StatusPermanentRedirect))
	s := httptest.NewServer(mux)
	defer s.Close()
	for path, reason := range map[string]credential.Reason{"/keys": "", "/away": credential.Unavailable, "/along": credential.Unavailable} {
		v := verifier(t, credential.Options{Keys: credential.Keys{JWKS: s.URL + path}})
		want(t, v, named("EdDSA", edKey, "a"), reason)
		if reason == "" {
			want(t, v, named("EdDSA", edKey2, "a"), credential.Signature)
		}
		v.Close()
	}
	if evil.Load() != 0 {
		t.Error("the redirect was followed")
	}
}
