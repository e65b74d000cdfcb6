package credential

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Options of a Verifier. Keys must be given; the zero value of the rest works.
type Options struct {
	Keys
	Issuer   string        // what iss must be; "": anything
	Audience string        // what aud must be or hold; "": anything
	Leeway   time.Duration // how far clocks may differ for nbf and iat; default 5 s, at most 30 s
	Filter   Compile       // nil: tokens with filters are refused

	// Refresh is how often the JWKS is read; default 10 min, at least 30 s.
	Refresh time.Duration
	// Timeout is what one reading may take; default 5 s, at most 30 s.
	Timeout time.Duration
	// Transport reads the JWKS; default: one with the proxy of the environment.
	Transport http.RoundTripper
	Logger    *slog.Logger // default: none
}

func (o *Options) validate() error {
	if len(o.Secret) == 0 && len(o.Public) == 0 && o.JWKS == "" {
		return errors.New("there are no keys to verify tokens with: a secret, public keys, or the URL of a JWKS")
	}
	if o.JWKS != "" {
		if err := checkURL(o.JWKS, o.InsecureHTTP); err != nil {
			return fmt.Errorf("the JWKS URL %w", err)
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(
		within("leeway", &o.Leeway, defaultLeeway, 0, maxLeeway),
		within("refresh", &o.Refresh, 10*time.Minute, refetchGap, 7*24*time.Hour),
		within("timeout", &o.Timeout, 5*time.Second, 0, 30*time.Second),
	)
}

// within fills in a default, and checks what was given.
func within(name string, d *time.Duration, usual, least, most time.Duration) error {
	if *d == 0 {
		*d = usual
	}
	if *d < least || *d > most || *d < 0 {
		return fmt.Errorf("%s must be %s to %s", name, least, most)
	}
	return nil
}

// Verifier reads tokens. It may be used concurrently.
type Verifier struct {
	// Static after construction.
	rules  rules
	remote *remote // nil without a JWKS
	cache  *cache[verified]

	keys atomic.Pointer[keySet]
}

// verified is a token that counts, as long as the keys are the same.
type verified struct {
	grant hub.Grant
	keys  *keySet
}

// New makes a Verifier. It refuses keys that are none or too weak. A JWKS is read in
// the background, until Close or the end of ctx; if it can't be had that is no error here, but
// until it is, Verify answers ErrKeysUnavailable.
func New(ctx context.Context, o Options) (*Verifier, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	static, err := o.static()
	if err != nil {
		return nil, err
	}
	v := &Verifier{
		rules: rules{issuer: o.Issuer, audience: o.Audience, leeway: o.Leeway, compile: o.Filter},
		cache: newCache[verified](),
	}
	v.keys.Store(&keySet{keys: static, partial: o.JWKS != ""})
	if o.JWKS != "" {
		v.remote = newRemote(&o, static, &v.keys)
		v.remote.start(ctx)
	}
	return v, nil
}

// Close ends the reading of a JWKS and waits for it. Verify goes on with the keys that there
// are. It may be called again.
func (v *Verifier) Close() {
	if v.remote != nil {
		v.remote.close()
	}
}

// Steady is transport.Steady's: keys that are not read from a URL stay.
func (v *Verifier) Steady() bool { return v.remote == nil }

// Verify turns a token into a grant, or says why not by a *Refused. It waits at most
// for one reading of the JWKS, if that is needed, and not beyond ctx. The grant ends at the token's exp.
// Its Check, which there is for tokens by a key of the JWKS, fails once the key is in the set no more.
//
// A token that was verified is remembered by its SHA-256, for 60 s at most and until
// the keys change, so that polls cost no signature each.
func (v *Verifier) Verify(ctx context.Context, text string) (hub.Grant, error) {
	if len(text) > MaxToken { // before it is hashed
		return hub.Grant{}, refuse(TooLarge, "the token has %d bytes, and may have %d", len(text), MaxToken)
	}
	sum := sha256.Sum256([]byte(text))
	now := time.Now()
	if known, ok := v.cache.get(sum, now); ok && known.keys == v.keys.Load() {
		return known.grant, nil
	}
	t, err := parse(text)
	if err != nil {
		return hub.Grant{}, err
	}
	k, set, err := v.signer(ctx, t)
	if err != nil {
		return hub.Grant{}, err
	}
	now = time.Now() // it may have waited
	grant, err := v.rules.grant(t.claims, now)
	if err != nil {
		return hub.Grant{}, err
	}
	if v.remote != nil && k.print != "" {
		grant.Check = v.check(k.print, t.alg)
	}
	until := now.Add(cacheTime)
	if grant.Expires.Before(until) {
		until = grant.Expires
	}
	// Claims and filters take several times what they are written in.
	v.cache.put(sum, verified{grant, set}, 512+8*len(text), now, until)
	return grant, nil
}

// signer finds the key that signed a token, and the set that it is in.
func (v *Verifier) signer(ctx context.Context, t *token) (*key, *keySet, error) {
	set := v.keys.Load()
	k, missing, err := set.verify(t)
	if err == nil || !missing || v.remote == nil || shared(t.alg) {
		return k, set, err
	}
	// Who signs with a key that is not there may have it since the set was read.
	if unavailable := v.remote.await(ctx, set); unavailable != nil {
		return nil, nil, unavailable
	}
	set = v.keys.Load()
	k, _, err = set.verify(t)
	return k, set, err
}

// shared tells whether an algorithm needs a secret, which no set of public keys holds.
func shared(alg string) bool { return strings.HasPrefix(alg, "HS") }

// verify finds the key that signed a token. missing tells that with other keys it may be
// verified yet.
func (s *keySet) verify(t *token) (k *key, missing bool, err error) {
	fit, named := s.find(t.alg, t.kid)
	for _, k := range fit {
		if methods[t.alg].Verify(t.signed, t.signature, k.material) == nil {
			return k, false, nil
		}
	}
	switch {
	case named && len(fit) == 0:
		return nil, false, refuse(Algorithm, "alg %s does not fit the key that the token names", t.alg)
	case named || len(fit) > 0 && t.kid == "":
		return nil, !named, refuse(Signature, "the token is not signed with a key of this server, or was changed since")
	case !s.takes(t.alg) && (t.kid == "" || shared(t.alg) || !s.named()):
		return nil, true, refuse(Algorithm, "alg %s does not fit the keys of this server", t.alg)
	case len(fit) > 0:
		return nil, true, refuse(Signature, "the token is not signed with a key of this server, or was changed since")
	}
	return nil, true, refuse(UnknownKey, "the token's kid names no key of this server")
}

// check fails once a key is gone.
func (v *Verifier) check(print, alg string) func(context.Context) error {
	return func(context.Context) error {
		if v.keys.Load().holds(print, alg) {
			return nil
		}
		return refuse(UnknownKey, "the key that the token was signed with was withdrawn: get another token")
	}
}
