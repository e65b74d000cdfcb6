package credential

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Bounds of claims.
const (
	maxPatterns = 256 // read and write together
	maxFilters  = 32
	maxFilter   = 2 << 10 // bytes of an expression

	defaultLeeway = 5 * time.Second
	maxLeeway     = 30 * time.Second
	maxTime       = 253402300800 // seconds: the year 10000
)

// Compile makes a filter of an expression and the claims that it was found in, whose
// numbers are json.Number and which it must not change. It may be called concurrently.
// Its error is shown to the client, cut to 200 bytes.
type Compile func(expression string, claims map[string]any) (hub.Filter, error)

// rules are how claims become a grant. They are not changed.
type rules struct {
	issuer, audience string // "": any
	leeway           time.Duration
	compile          Compile // nil: no filters
	endless          bool    // exp may be missing
}

// grant reads claims. What can't be read is refused, never left out: a filter or an exp that
// were skipped would widen the grant.
func (r *rules) grant(claims map[string]any, now time.Time) (hub.Grant, error) {
	var g hub.Grant
	if err := r.times(&g, claims, now); err != nil {
		return hub.Grant{}, err
	}
	if err := r.meant(claims); err != nil {
		return hub.Grant{}, err
	}
	for _, read := range []func(*hub.Grant, map[string]any) error{readWho, readPatterns, r.readFilters} {
		if err := read(&g, claims); err != nil {
			return hub.Grant{}, err
		}
	}
	return g, nil
}

// times checks exp, nbf and iat (RFC 7519 sections 4.1.4 to 4.1.6). A clock that differs is
// forgiven by the leeway for the beginning, not for the end: a feed must not live on, and
// the hub refuses whatever comes after exp.
func (r *rules) times(g *hub.Grant, claims map[string]any, now time.Time) error {
	exp, ok, err := date(claims, "exp")
	switch {
	case err != nil:
		return err
	case ok && !now.Before(exp):
		return refuse(Expired, "the token expired at %s: get another", exp.Format(time.RFC3339))
	case !ok && !r.endless:
		return refuse(Claims, "the token has no exp: it must say when it ends, in seconds since 1970")
	}
	nbf, ok, err := date(claims, "nbf")
	switch {
	case err != nil:
		return err
	case ok && now.Add(r.leeway).Before(nbf):
		return refuse(Early, "the token counts only from %s on (nbf), and here it is %s", nbf.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	iat, ok, err := date(claims, "iat")
	switch {
	case err != nil:
		return err
	case ok && now.Add(r.leeway).Before(iat):
		return refuse(Early, "the token was made in the future, at %s (iat), and here it is %s: check the clocks", iat.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	g.Expires, g.Issued = exp, iat
	return nil
}

// date reads a NumericDate (RFC 7519 section 2), which may have a fraction.
func date(claims map[string]any, name string) (time.Time, bool, error) {
	v, ok := claims[name]
	if !ok {
		return time.Time{}, false, nil
	}
	number, ok := v.(json.Number)
	n, nerr := number.Float64()
	if !ok || nerr != nil || !(n >= 0 && n < maxTime) {
		return time.Time{}, false, refuse(Claims, "the token's %s is not a time: a number of seconds since 1970", name)
	}
	whole, rest := math.Modf(n)
	return time.Unix(int64(whole), int64(rest*1e9)).UTC(), true, nil
}

// meant checks iss and aud, byte for byte (RFC 8725 sections 3.8 and 3.9).
func (r *rules) meant(claims map[string]any) error {
	if r.issuer != "" && claims["iss"] != r.issuer {
		return refuse(Issuer, "the token's iss is not the one that this server trusts")
	}
	if r.audience == "" || claims["aud"] == r.audience {
		return nil
	}
	if list, ok := claims["aud"].([]any); ok && slices.Contains(list, any(r.audience)) && !slices.ContainsFunc(list, func(v any) bool { _, ok := v.(string); return !ok }) {
		return nil
	}
	return refuse(Audience, "the token's aud does not name this server: it was made for another")
}

// readWho reads tenant, sub, jti and admin.
func readWho(g *hub.Grant, claims map[string]any) error {
	tenant, ok := claims["tenant"].(string)
	if !ok || tenant != "*" && feed.CheckTenant(tenant) != nil {
		return refuse(Claims, `the token's tenant must be a string: 1 to 64 of A-Z a-z 0-9 _ -, or "*" for all`)
	}
	g.Tenant = tenant
	for name, to := range map[string]*string{"sub": &g.Subject, "jti": &g.ID} {
		v, ok := claims[name]
		if !ok {
			continue
		}
		if *to, ok = v.(string); !ok || !printable(*to) {
			return refuse(Claims, "the token's %s must be a string of at most %d bytes without control characters", name, hub.MaxSubject)
		}
	}
	if v, ok := claims["admin"]; ok {
		if g.Admin, ok = v.(bool); !ok {
			return refuse(Claims, "the token's admin must be true or false")
		}
	}
	return nil
}

// readPatterns reads read and write.
func readPatterns(g *hub.Grant, claims map[string]any) error {
	for name, to := range map[string]*[]string{"read": &g.Read, "write": &g.Write} {
		v, ok := claims[name]
		if !ok {
			continue
		}
		list, ok := v.([]any)
		if !ok {
			return refuse(Claims, `the token's %s must be a list of patterns, like ["todos","lists/*"]`, name)
		}
		if len(list) > maxPatterns-len(g.Read)-len(g.Write) {
			return refuse(Claims, "the token has more than %d patterns in read and write: use * and **", maxPatterns)
		}
		for _, v := range list {
			pattern, ok := v.(string)
			if !ok || !validPattern(pattern) {
				return refuse(Claims, `the token's %s holds what is no pattern: 1 to 8 segments joined by "/", each a name or "*", and the last may be "**"`, name)
			}
			*to = append(*to, pattern)
		}
	}
	return nil
}

// validPattern tells whether a pattern could cover any collection.
func validPattern(pattern string) bool {
	for n, rest, more := 1, pattern, true; more; n++ {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		// A segment is written as a tenant is.
		if n > feed.MaxSegments || segment != "*" && (segment != "**" || more) && feed.CheckTenant(segment) != nil {
			return false
		}
	}
	return true
}

// readFilters compiles filters, in the order of their patterns.
func (r *rules) readFilters(g *hub.Grant, claims map[string]any) error {
	v, ok := claims["filters"]
	if !ok {
		return nil
	}
	filters, ok := v.(map[string]any)
	if !ok {
		return refuse(Claims, `the token's filters must be an object: a pattern and an expression each`)
	}
	if len(filters) > maxFilters {
		return refuse(Claims, "the token has %d filters, and may have %d", len(filters), maxFilters)
	}
	if len(filters) > 0 && r.compile == nil {
		return refuse(FilterFault, "the token has filters, which this server does not do")
	}
	patterns := make([]string, 0, len(filters))
	for pattern := range filters {
		if !validPattern(pattern) {
			return refuse(Claims, `the token's filters name what is no pattern: 1 to 8 segments joined by "/", each a name or "*", and the last may be "**"`)
		}
		patterns = append(patterns, pattern)
	}
	slices.Sort(patterns)
	for _, pattern := range patterns {
		expression, ok := filters[pattern].(string)
		if !ok || expression == "" || len(expression) > maxFilter {
			return refuse(Claims, "the token's filter for %s must be an expression of 1 to %d bytes", pattern, maxFilter)
		}
		filter, err := r.filter(expression, claims)
		if err != nil {
			return refuse(FilterFault, "the token's filter for %s does not compile: %s", pattern, clip(err.Error()))
		}
		g.Filters = append(g.Filters, hub.RowFilter{Pattern: pattern, Filter: filter})
	}
	return nil
}

// filter compiles an expression. A stranger wrote it: should the compiler panic over it,
// then only this token is refused.
func (r *rules) filter(expression string, claims map[string]any) (f hub.Filter, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errors.New("the compiler gave up")
		}
	}()
	return r.compile(expression, claims)
}
