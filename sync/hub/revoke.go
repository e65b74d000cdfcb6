package hub

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Revocations are rows like others, in a collection that no name reaches: so they are
// durable, the same on every node, and forgotten at their time.
const (
	revocations = "$revoked"
	// allTenants is the tenant of the revocations of credentials for all tenants.
	allTenants = "*"

	revokedAll     = "all"
	revokedSubject = "sub/"
	revokedID      = "jti/"

	// revokedAt is a revocation's value: the wall clock then, in milliseconds.
	revokedAt = `{"at":%d}`
	// clockSlip is by how much the log's time, which never goes back, may be ahead of the wall
	// clock and still count for when a credential was revoked: then the clock was set back. Where
	// it is more, the clock was once wrong.
	clockSlip = 24 * time.Hour
)

// MaxSubject is the most bytes that a Subject or ID of a Grant may have.
const MaxSubject = 200

// maxRevocations is how many a tenant may have at one time.
const maxRevocations = 100_000

// Revocation takes credentials back: one by its ID, or those of a Subject, or where both
// are empty all of a tenant; of the last two those that were issued up to now.
type Revocation struct {
	Tenant  string // "*": of credentials for all tenants
	Subject string
	ID      string
	// Until is when the last of them would have expired by itself: then the revocation is
	// forgotten. Zero: never. At most MaxTTL away.
	Until time.Time
}

// Revoke revokes: when it returns it is durable, nothing is read or written by the
// credentials any more, and their sessions are told that they have ended. The caller needs
// a Grant with Admin for the tenant. A *Refusal says why nothing was revoked.
func (h *Hub) Revoke(ctx context.Context, g Grant, r Revocation) error {
	if err := h.administers(g, r.Tenant); err != nil {
		return err
	}
	w := Write{Collection: revocations, Op: "put", Key: revokedAll, Value: fmt.Appendf(nil, revokedAt, wallOf(h.opts.Clock))}
	switch {
	case r.Subject != "" && r.ID != "":
		return refuse(BadRequest, "name either a subject or a credential's id")
	case len(r.Subject) > MaxSubject || len(r.ID) > MaxSubject:
		return refuse(TooLarge, "a subject or id has at most %d bytes", MaxSubject)
	case r.Subject != "":
		w.Key = revokedSubject + r.Subject
	case r.ID != "":
		w.Key = revokedID + r.ID
	}
	if err := feed.CheckKey(w.Key); err != nil {
		return refuse(BadRequest, "the subject or id holds what none may: %s", err)
	}
	if !r.Until.IsZero() {
		w.TTL = time.Until(r.Until)
		if w.TTL <= 0 || w.TTL > MaxTTL {
			return refuse(BadRequest, "until must be in the future, at most 10 years away: it is when the credential expires by itself")
		}
		w.TTL = (w.TTL + time.Second - 1).Truncate(time.Second)
	}
	p := &Pending{req: Request{Tenant: r.Tenant, Atomic: true, Writes: []Write{w}}, grant: g, own: true, done: make(chan struct{}, 1)}
	if err := p.prepare(); err != nil {
		return err
	}
	if n := h.state.countRows(r.Tenant, revocations); n >= maxRevocations {
		return &Refusal{Code: TooMany, Retry: time.Minute, Detail: "the tenant has too many revocations: give each an until, so that it is forgotten; or revoke all"}
	}
	if err := h.enqueue(p); err != nil {
		return err
	}
	if _, err := p.Wait(ctx); err != nil {
		return err
	}
	h.endIf(r.Tenant, func(s *Session) *Ended {
		if g := s.Grant(); h.revoked(&g, s.tenant.name) {
			return &Ended{Reason: EndRevoked}
		}
		return nil
	})
	return nil
}

// administers refuses who may not administer a tenant.
func (h *Hub) administers(g Grant, tenant string) error {
	use := h.mayUse
	if tenant == allTenants {
		use = h.counts
	}
	if err := use(&g, tenant); err != nil {
		return err
	}
	if !g.Admin {
		return refuse(Forbidden, "the credential may not administer tenant %s: it needs the claim admin", tenant)
	}
	return nil
}

// MayUse refuses, by a *Refusal, who may do nothing at a tenant.
func (h *Hub) MayUse(g Grant, tenant string) error { return h.mayUse(&g, tenant) }

func (h *Hub) mayUse(g *Grant, tenant string) error {
	if err := feed.CheckTenant(tenant); err != nil {
		return refuse(BadName, "%s", err)
	}
	return h.counts(g, tenant)
}

// counts refuses a credential that does not count for a tenant, or no more, and a tenant that
// is not to be. Whether it covers the tenant comes first: who stands outside learns nothing of
// what is inside.
func (h *Hub) counts(g *Grant, tenant string) error {
	if !g.covers(tenant) {
		return refuse(Forbidden, "the credential does not cover tenant %s", tenant)
	}
	if err := h.fences.admits(tenant); err != nil {
		return err
	}
	if err := g.live(); err != nil {
		return err
	}
	if h.revoked(g, tenant) {
		return revoked()
	}
	return nil
}

// endIf ends the sessions of a tenant, or of all, for which fn has a reason.
func (h *Hub) endIf(tenant string, fn func(*Session) *Ended) {
	h.mu.Lock()
	var all []*Session
	for s := range h.sessions {
		if tenant == allTenants || s.tenant.name == tenant {
			all = append(all, s)
		}
	}
	h.mu.Unlock()
	for _, s := range all {
		if e := fn(s); e != nil {
			s.End(e)
		}
	}
}

// revoked tells whether a grant was taken back for a tenant.
func (h *Hub) revoked(g *Grant, tenant string) bool {
	if g.Subject == "" && g.ID == "" && g.Issued.IsZero() && g.Expires.IsZero() {
		return false // it comes of no credential
	}
	return h.state.revoked(g, tenant) || g.Tenant == allTenants && h.state.revoked(g, allTenants)
}

func (s *state) revoked(g *Grant, tenant string) bool {
	t := s.lookup(tenant)
	if t == nil {
		return false
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	v := t.views[revocations]
	if v == nil {
		return false
	}
	if g.ID != "" && v.row(revokedID+g.ID) != nil {
		return true
	}
	for _, key := range []string{revokedAll, revokedSubject + g.Subject} {
		if c := v.row(key); c != nil && key != revokedSubject && g.Issued.UnixMilli() <= revokedSince(c) {
			return true
		}
	}
	return false
}

// revokedSince is when credentials must have been issued to be revoked: up to then.
func revokedSince(c *feed.Change) int64 {
	var wall int64
	if _, err := fmt.Sscanf(c.Value(), revokedAt, &wall); err != nil {
		return c.At() // of a version that wrote none
	}
	if c.At()-wall > clockSlip.Milliseconds() && c.At() > time.Now().UnixMilli() { // else it is the wall clock that was behind
		return wall
	}
	return c.At()
}

// countRows is how many rows a collection has.
func (s *state) countRows(tenant, collection string) int {
	t := s.lookup(tenant)
	if t == nil {
		return 0
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if v := t.views[collection]; v != nil {
		return v.live
	}
	return 0
}
