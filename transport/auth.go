package transport

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Authorizer says what the sender of a request may do. It is asked before anything
// else is done for the request, and may be called concurrently. Its error is answered with 401,
// unless it is a *hub.Refusal, which says more.
type Authorizer interface {
	Authorize(*http.Request) (hub.Grant, error)
}

// Loopback is the Authorizer of a server without credentials, which must listen on
// loopback only: whoever reaches it may do everything. It answers to loopback names
// alone, so that no web page gets through to it by rebinding a name of its own.
type Loopback struct{}

// Authorize grants everything to requests for a loopback name, from no web page or
// from one that has a loopback origin.
func (Loopback) Authorize(r *http.Request) (hub.Grant, error) {
	// Who names no host speaks HTTP/1.0, and is no browser.
	if !loopbackHost(r.Host) && (r.Host != "" || r.ProtoAtLeast(1, 1)) {
		return hub.Grant{}, newProblem(hub.Forbidden, "a server without credentials answers to localhost, 127.0.0.1 and [::1] only, not to %q", r.Host)
	}
	if origin := r.Header.Get("Origin"); origin != "" && !loopbackOrigin(origin) {
		return hub.Grant{}, newProblem(hub.Forbidden, "a server without credentials serves pages of localhost, 127.0.0.1 and [::1] only, not of %q", origin)
	}
	return hub.Everything, nil
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

// cors lets pages of other loopback origins (a dev server beside ours) use the API.
// No credentials are ever allowed: there are none to send.
func cors(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Vary", "Origin")
		if origin := r.Header.Get("Origin"); origin != "" && loopbackOrigin(origin) {
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Expose-Headers", "ETag, Retry-After")
			// Which version of HTTP it was tells a client which transport suits it best.
			h.Set("Timing-Allow-Origin", origin)
			if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
				h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE")
				h.Set("Access-Control-Allow-Headers", "Accept, Authorization, Cache-Control, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID")
				h.Set("Access-Control-Max-Age", "600")
				w.WriteHeader(http.StatusNoContent)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}
