package hub

import (
	"context"
	"strings"
	"time"
)

// Grant is what a caller may do, and for how long. The zero value may nothing. It is
// not changed once it was handed over: many goroutines read it.
type Grant struct {
	Tenant string // one tenant, or "*" for all
	// Read and Write are patterns over collection names: "*" stands for one segment,
	// "**", as the last, for any rest.
	Read, Write []string
	// Filters narrow both to some rows. Where several patterns match a collection, a row
	// must pass all of their filters.
	Filters []RowFilter
	// Admin may end others' credentials and forget tenants.
	Admin bool

	Subject string    // who it was given to, "" where nobody said
	ID      string    // the credential's own name, "" where it has none
	Issued  time.Time // when it was made; zero: not known, and so before any revocation
	Expires time.Time // no session lives longer, and nothing is written after it; zero: for ever
	// Again is when its bearer may come back unchanged after Expires, because by then whoever gave it may have given it
	// for longer; zero: not at all.
	Again time.Duration
	// Check, where there is one, is asked at every heartbeat of a session, and ends it by
	// its error: an *Ended, or any other for EndRevoked. The session goes on while it is asked. It
	// must return within 5 s, and at once where its context ends, and may be called concurrently.
	Check func(context.Context) error
}

// RowFilter is a filter for the collections that a pattern covers.
type RowFilter struct {
	Pattern string
	Filter
}

// Filter tells which rows of a collection somebody may see and write. It depends on
// nothing but the row: the same value is seen always or never. It may be called
// concurrently.
type Filter interface {
	// Sees tells of a row by its value, a JSON object. What can't be told is not seen.
	Sees(value string) bool
	// Identity names the filter: two that see the same rows may have the same, and then
	// share their work; two that do not must not.
	Identity() string
}

// Everything is the grant of a server without credentials.
var Everything = Grant{Tenant: "*", Read: []string{"**"}, Write: []string{"**"}}

// MayRead tells whether the grant covers reading a collection of a tenant.
func (g Grant) MayRead(tenant, collection string) bool { return g.may(g.Read, tenant, collection) }

// MayWrite tells whether the grant covers writing to a collection of a tenant.
func (g Grant) MayWrite(tenant, collection string) bool { return g.may(g.Write, tenant, collection) }

func (g *Grant) may(patterns []string, tenant, collection string) bool {
	if !g.covers(tenant) {
		return false
	}
	for _, p := range patterns {
		if match(p, collection) {
			return true
		}
	}
	return false
}

func match(pattern, name string) bool {
	for {
		if pattern == "**" {
			return true
		}
		p, morePattern, goOn := strings.Cut(pattern, "/")
		n, moreName, named := strings.Cut(name, "/")
		if p != "*" && p != n {
			return false
		}
		if !goOn || !named {
			return goOn == named
		}
		pattern, name = morePattern, moreName
	}
}

// covers tells whether the grant is for a tenant, whatever it may there.
func (g *Grant) covers(tenant string) bool { return g.Tenant == "*" || g.Tenant == tenant }

// over tells whether the grant's time is.
func (g *Grant) over(now time.Time) bool { return !g.Expires.IsZero() && !now.Before(g.Expires) }

// live refuses a grant whose time is over.
func (g *Grant) live() error {
	if !g.Expires.IsZero() && g.over(time.Now()) { // most never are: then nobody asks for the time
		return refuse(Unauthenticated, "the credential has expired: get another")
	}
	return nil
}

func revoked() error {
	return refuse(Unauthenticated, "the credential was revoked: get another")
}
