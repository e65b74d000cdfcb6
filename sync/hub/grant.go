package hub

import "strings"

// Grant is what a caller may do. The zero value may nothing.
type Grant struct {
	Tenant string // one tenant, or "*" for all
	// Read and Write are patterns over collection names: "*" stands for one segment,
	// "**", as the last, for any rest.
	Read, Write []string
}

// Everything is the grant of a server without credentials.
var Everything = Grant{Tenant: "*", Read: []string{"**"}, Write: []string{"**"}}

// MayRead tells whether the grant covers reading a collection of a tenant.
func (g Grant) MayRead(tenant, collection string) bool { return g.may(g.Read, tenant, collection) }

// MayWrite tells whether the grant covers writing to a collection of a tenant.
func (g Grant) MayWrite(tenant, collection string) bool { return g.may(g.Write, tenant, collection) }

func (g Grant) may(patterns []string, tenant, collection string) bool {
	if g.Tenant != "*" && g.Tenant != tenant {
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
