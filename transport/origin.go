package transport

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Origins are the pages that may use the API: origins as browsers send them, compared
// byte for byte. The zero value has none. It is not changed, and may be used concurrently.
type Origins struct {
	exact    map[string]bool
	hosts    map[string]bool // of the exact ones
	any      bool
	loopback bool
}

// LoopbackOrigins are all pages of this machine, on whatever port; for a server
// without credentials.
var LoopbackOrigins = Origins{loopback: true}

// MaxOrigins is how many a list may have.
const MaxOrigins = 1000

// ParseOrigins reads a list like "https://app.example.com". "*" lets any page use the
// API with credentials that it has itself, a token or a ticket; cookies count for those alone
// that are named.
func ParseOrigins(list []string) (Origins, error) {
	if len(list) > MaxOrigins {
		return Origins{}, fmt.Errorf("there are %d origins, and may be %d", len(list), MaxOrigins)
	}
	o := Origins{exact: map[string]bool{}, hosts: map[string]bool{}}
	for _, s := range list {
		if s == "*" {
			o.any = true
			continue
		}
		u, err := url.Parse(s)
		switch {
		case s == "null":
			return Origins{}, fmt.Errorf("origin null is every page that hides where it comes from, and can't be trusted")
		case err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != s || strings.ContainsAny(s, "*, \t") || s != strings.ToLower(s):
			return Origins{}, fmt.Errorf("%q is no origin: one is a scheme, a host and maybe a port in lower case, like https://app.example.com, without a slash at the end", clip(s))
		case u.Scheme == "http" && u.Port() == "80", u.Scheme == "https" && u.Port() == "443":
			return Origins{}, fmt.Errorf("%q: browsers leave the usual port out; so must the list", clip(s))
		}
		o.exact[s], o.hosts[u.Host] = true, true
	}
	return o, nil
}

// allows tells whether a page of an origin may use the API with credentials of its own.
func (o Origins) allows(origin string) bool {
	return o.exact[origin] || o.any || o.loopback && loopbackOrigin(origin)
}

// trusts tells whether a request comes from a page whose cookies count: one with an
// origin of the list; or one of a page on the same host, for which browsers leave
// Origin out of a GET and which they mark as such. No page can forge that mark
// (Fetch Metadata), and the host must be one of the list, so a name that was rebound does not pass.
func (o Origins) trusts(r *http.Request) bool {
	if origins := r.Header["Origin"]; len(origins) > 0 {
		return len(origins) == 1 && o.exact[origins[0]]
	}
	return sameOrigin(r) && o.hosts[r.Host]
}

// sameOrigin tells whether a browser says that the request comes from a page of the
// host that it goes to.
func sameOrigin(r *http.Request) bool {
	sites := r.Header["Sec-Fetch-Site"]
	return len(sites) == 1 && sites[0] == "same-origin"
}

// cors lets the pages of the list read answers. Only those that are named may send
// cookies: with "*" a browser would hide the answer, and so would we.
func (s *Server) cors(next http.Handler) http.Handler {
	o := s.opts.Origins
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Vary", "Origin")
		origins := r.Header["Origin"]
		if len(origins) == 1 && o.allows(origins[0]) {
			if o.exact[origins[0]] {
				h.Set("Access-Control-Allow-Credentials", "true")
			}
			h.Set("Access-Control-Allow-Origin", origins[0])
			if o.any && !o.exact[origins[0]] {
				h.Set("Access-Control-Allow-Origin", "*")
			}
			h.Set("Access-Control-Expose-Headers", "ETag, Retry-After")
			// Which version of HTTP it was tells a client which transport suits it best.
			h.Set("Timing-Allow-Origin", origins[0])
			if preflight(r) {
				h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE")
				h.Set("Access-Control-Allow-Headers", "Accept, Authorization, Cache-Control, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID")
				h.Set("Access-Control-Max-Age", "600")
				w.WriteHeader(http.StatusNoContent)
				return
			}
		} else if preflight(r) {
			// Said in the answer too: the console of a browser tells nothing but that it failed.
			s.refuse(w, newProblem(hub.Forbidden, "pages of %q may not use this server: add the origin to --origins", clip(r.Header.Get("Origin"))))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func preflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != ""
}

// sameSite refuses to let a page that is not of the list change anything, whatever it
// is that lets it: a cookie, a client certificate, the network that it is in. Browsers say where
// a request comes from (Sec-Fetch-Site, else Origin); what is no browser passes.
func (s *Server) sameSite(r *http.Request) error {
	if s.csrf.Check(r) == nil {
		return nil
	}
	if origins := r.Header["Origin"]; len(origins) == 1 && s.opts.Origins.allows(origins[0]) {
		return nil
	}
	return newProblem(hub.Forbidden, "a page of another origin can't do this: add its origin to --origins")
}

// loopbackHost tells whether host, with or without a port, names this machine to
// itself. It is strict: what is no host and port is no such name.
func loopbackHost(host string) bool {
	name := host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		if strings.Trim(host[i+1:], "0123456789") != "" {
			return false
		}
		name = host[:i]
	}
	if inner, ok := strings.CutPrefix(name, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		ip, err := netip.ParseAddr(inner)
		return ok && err == nil && ip.Is6() && ip.Zone() == "" && ip.Unmap().IsLoopback()
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.Is4() && ip.IsLoopback()
}

func loopbackOrigin(origin string) bool {
	u, err := url.Parse(origin)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && origin == u.Scheme+"://"+u.Host && loopbackHost(u.Host)
}
