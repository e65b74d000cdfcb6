package transport

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Authorizer says what the sender of a request may do. It is asked before anything
// else is done for the request, and may be called concurrently. Its error is answered with 401,
// unless it is a *hub.Refusal, which says more.
//
// It is asked, too, for what is no request of its own: the token of a WebSocket's frame
// auth, and the credentials that a ticket stands for. Then it is given a request made up of those, with
// the path, Host, Origin and address of the real one.
type Authorizer interface {
	Authorize(*http.Request) (hub.Grant, error)
}

// Steady may be implemented by an Authorizer. Where Steady returns true, a grant without a Check stays
// good until it ends for every request that bears the same, from the same peer: polls, and
// writes, on one connection are not asked about anew.
type Steady interface{ Steady() bool }

// steady tells whether a grant stays good until it ends, for all who bear the same.
func (s *Server) steady(g hub.Grant) bool {
	a, ok := s.opts.Authorizer.(Steady)
	return ok && a.Steady() && g.Check == nil
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
	for _, origin := range r.Header["Origin"] {
		if origin != "" && !loopbackOrigin(origin) {
			return hub.Grant{}, newProblem(hub.Forbidden, "a server without credentials serves pages of localhost, 127.0.0.1 and [::1] only, not of %q", origin)
		}
	}
	return hub.Everything, nil
}

// Steady is transport.Steady's.
func (Loopback) Steady() bool { return true }

// Everybody is the Authorizer of a server that was told to do without credentials
// wherever it listens: whoever reaches it may do everything, from pages of Origins or from no page.
type Everybody struct{ Origins Origins }

// Authorize grants everything but to pages that are not of the list.
func (e Everybody) Authorize(r *http.Request) (hub.Grant, error) {
	for _, origin := range r.Header["Origin"] {
		if origin != "" && !e.Origins.allows(origin) {
			return hub.Grant{}, newProblem(hub.Forbidden, "pages of %q may not use this server: add the origin to --origins", clip(origin))
		}
	}
	return hub.Everything, nil
}

// Steady is transport.Steady's.
func (Everybody) Steady() bool { return true }

// Verifier turns a token into a grant; see package credential. It may be Steady.
type Verifier interface {
	Verify(ctx context.Context, token string) (hub.Grant, error)
}

// Tokens is the Authorizer of tokens: Authorization: Bearer, or, from pages of Origins, the
// cookie tidemark.
type Tokens struct {
	Verifier Verifier
	Origins  Origins
}

// CookieName is the cookie that holds a token.
const CookieName = "tidemark"

// Authorize finds the request's token and verifies it.
func (t Tokens) Authorize(r *http.Request) (hub.Grant, error) {
	token, err := bearer(r)
	if err == nil && token == "" {
		token, err = t.cookie(r)
	}
	if err != nil {
		return hub.Grant{}, err
	}
	return t.Verifier.Verify(r.Context(), token)
}

// Steady is transport.Steady's.
func (t Tokens) Steady() bool {
	v, ok := t.Verifier.(Steady)
	return ok && v.Steady()
}

// bearer is the token of the request's Authorization, "" if it has none.
func bearer(r *http.Request) (string, error) {
	token := ""
	found := false
	for _, value := range r.Header["Authorization"] {
		scheme, rest, _ := strings.Cut(value, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			continue // a proxy's, which it has checked itself
		}
		if found {
			return "", newProblem(hub.Unauthenticated, "the request has more than one token: of two, somebody on the way may have believed the other")
		}
		if token, found = strings.Trim(rest, " "), true; token == "" {
			return "", newProblem(hub.Unauthenticated, "the token is empty: Authorization: Bearer TOKEN")
		}
	}
	return token, nil
}

// cookie is the token of the request's cookie.
func (t Tokens) cookie(r *http.Request) (string, error) {
	cookies := r.CookiesNamed(CookieName)
	switch {
	case len(cookies) > 1:
		// Another site of the same domain can set one of its own, and nothing tells which is whose.
		return "", newProblem(hub.Unauthenticated, "the request has %d cookies %s: delete all but one", len(cookies), CookieName)
	case len(cookies) == 1 && cookies[0].Value == "":
		return "", newProblem(hub.Unauthenticated, "the cookie %s is empty", CookieName)
	case len(cookies) == 1 && !t.Origins.trusts(r):
		return "", newProblem(hub.Unauthenticated, "a cookie counts only from a page whose origin is allowed, and this request is from %s: add it to --origins, or send Authorization: Bearer", from(r))
	case len(cookies) == 1:
		return cookies[0].Value, nil
	case len(r.Header["Authorization"]) > 0:
		return "", newProblem(hub.Unauthenticated, "Authorization is not Bearer: send Authorization: Bearer TOKEN")
	}
	for _, name := range []string{"token", "access_token", "jwt", "auth", "authorization"} {
		if r.URL != nil && strings.Contains(r.URL.RawQuery, name+"=") {
			return "", newProblem(hub.Unauthenticated, "no token is read from a URL, which proxies and histories keep: send Authorization: Bearer, or swap it for a ticket (POST /v1/{tenant}/tickets) and open the feed with ?ticket=")
		}
	}
	return "", newProblem(hub.Unauthenticated, "send a token: Authorization: Bearer TOKEN, the cookie %s, or a ticket (POST /v1/{tenant}/tickets)", CookieName)
}

func from(r *http.Request) string {
	if origin := r.Header.Get("Origin"); origin != "" {
		return clip(origin)
	}
	return "no page"
}

// Asker asks the app about a request; see credential.Forward.
type Asker interface {
	Ask(r *http.Request, tenant string) (hub.Grant, error)
}

// App is the Authorizer that asks the app. The app's cookies count from pages of Origins
// alone; from others they are not shown to it.
type App struct {
	Asker   Asker
	Origins Origins
}

// Authorize asks.
func (a App) Authorize(r *http.Request) (hub.Grant, error) {
	if _, err := bearer(r); err != nil {
		return hub.Grant{}, err
	}
	if len(r.Header["Cookie"]) > 0 && !a.Origins.trusts(r) {
		if len(r.Header["Authorization"]) == 0 {
			return hub.Grant{}, newProblem(hub.Unauthenticated, "cookies count only from a page whose origin is allowed, and this request is from %s: add it to --origins, or send Authorization", from(r))
		}
		r = r.Clone(r.Context())
		r.Header.Del("Cookie")
	}
	return a.Asker.Ask(r, TenantOf(r))
}

// TenantOf is the tenant in a request's path, "" if there is none; for Authorizers.
func TenantOf(r *http.Request) string {
	rest, ok := strings.CutPrefix(r.URL.Path, "/v1/")
	if !ok {
		return ""
	}
	tenant, _, _ := strings.Cut(rest, "/")
	return tenant
}

// papers is what of a request an Authorizer may want to know, apart from it: it outlives
// the request, and what is kept for as long as a socket lives should be small.
type papers struct {
	authorization []string
	cookie        []string

	origin, site  string
	host, path    string
	remote, proto string
}

func papersOf(r *http.Request) papers {
	return papers{
		authorization: r.Header["Authorization"], cookie: r.Header["Cookie"],
		origin: r.Header.Get("Origin"), site: r.Header.Get("Sec-Fetch-Site"),
		host: r.Host, path: r.URL.Path, remote: r.RemoteAddr, proto: r.Proto,
	}
}

// request makes a request of them.
func (p papers) request(ctx context.Context) *http.Request {
	r := &http.Request{
		Method: http.MethodGet, URL: &url.URL{Path: p.path}, Host: p.host, RemoteAddr: p.remote, RequestURI: p.path,
		Proto: p.proto, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody,
	}
	for name, values := range map[string][]string{"Authorization": p.authorization, "Cookie": p.cookie} {
		if len(values) > 0 {
			r.Header[name] = values
		}
	}
	for name, value := range map[string]string{"Origin": p.origin, "Sec-Fetch-Site": p.site} {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	return r.WithContext(ctx)
}
