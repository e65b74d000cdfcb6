package transport

import (
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Administration is a handler for administrators: the requests that need the claim
// admin, for whoever gets to it; see NoPages.
func (s *Server) Administration() http.Handler {
	r := chi.NewRouter()
	handle := func(fn func(http.ResponseWriter, *http.Request, call) error) http.HandlerFunc {
		return s.handleAs(func(w http.ResponseWriter, r *http.Request) error {
			if err := s.serving(); err != nil {
				return err
			}
			tenant, err := param(r, "tenant")
			if err != nil {
				return err
			}
			return fn(w, r, call{hub: s.hub.Load(), grant: hub.Grant{Tenant: "*", Admin: true}, tenant: tenant})
		})
	}
	r.Use(s.guard, s.narrow)
	r.NotFound(s.notFound)
	r.Get("/v1/{tenant}", handle(s.usage))
	r.Post("/v1/{tenant}/revocations", handle(s.revoke))
	if s.opts.Forget != nil {
		r.Delete("/v1/{tenant}", handle(s.forget))
	}
	return r
}

// NoPages refuses requests of web pages; and, unless anyHost, those for a name that is
// not the machine's own, by which a page might come back under a name that it rebound.
func NoPages(next http.Handler, anyHost bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := r.Header
		if !anyHost && !loopbackHost(r.Host) || len(h["Origin"]) > 0 || len(h["Sec-Fetch-Site"]) > 0 && h.Get("Sec-Fetch-Site") != "none" {
			newProblem(hub.Forbidden, "administration is not for web pages, and on this machine only under its own names: localhost, 127.0.0.1").write(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// revoke answers POST /v1/{tenant}/revocations.
func (s *Server) revoke(w http.ResponseWriter, r *http.Request, c call) error {
	raw, err := s.body(w, r)
	if err != nil {
		return err
	}
	var b struct {
		Subject *string `json:"sub"`
		ID      *string `json:"jti"`
		All     bool    `json:"all"`
		Until   *string `json:"until"`
	}
	if err := decode(raw, &b); err != nil {
		return err
	}
	v := hub.Revocation{Tenant: c.tenant}
	given := 0
	for _, from := range []struct {
		text *string
		to   *string
	}{{b.Subject, &v.Subject}, {b.ID, &v.ID}} {
		if from.text != nil {
			if given++; *from.text == "" {
				return newProblem(hub.BadRequest, "sub and jti must not be empty")
			}
			*from.to = *from.text
		}
	}
	if b.All {
		given++
	}
	if given != 1 {
		return newProblem(hub.BadRequest, `name one of "sub" (all credentials of somebody so far), "jti" (one credential), and "all": true (all of the tenant so far)`)
	}
	if b.Until != nil {
		if v.Until, err = time.Parse(time.RFC3339, *b.Until); err != nil {
			return newProblem(hub.BadRequest, "until=%s is no time like 2026-01-31T12:00:00Z: it is when the last of the credentials expires by itself", clip(*b.Until))
		}
	}
	if err := c.hub.Revoke(r.Context(), c.grant, v); err != nil {
		return err
	}
	reply(w, http.StatusOK, struct {
		Revoked string `json:"revoked"`
	}{time.Now().UTC().Format(feed.AtLayout)})
	return nil
}

// usage answers GET /v1/{tenant}: what a tenant has, and its limits.
func (s *Server) usage(w http.ResponseWriter, r *http.Request, c call) error {
	if err := c.hub.MayUse(c.grant, c.tenant); err != nil {
		return err
	}
	reply(w, http.StatusOK, c.hub.TenantStats(c.tenant))
	return nil
}

// forget answers DELETE /v1/{tenant}. It may take as long as it takes to write all other
// tenants' rows down anew.
func (s *Server) forget(w http.ResponseWriter, r *http.Request, c call) error {
	result, err := s.opts.Forget(r.Context(), c.grant, c.tenant)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, result)
	return nil
}
