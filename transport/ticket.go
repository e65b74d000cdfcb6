package transport

import (
	"container/list"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// A ticket stands for credentials, once and for a short time, where a client can send
// neither a header nor a cookie: a browser's WebSocket and EventSource. Its text may get into
// logs on the way; by then it is worth nothing.

// TicketLife is how long a ticket counts.
const TicketLife = 30 * time.Second

// Ticket is what a ticket stands for: what was sent to get it, to be looked at
// again when it is redeemed, so that it never lets more than that did by then. All of it is
// text, so that nodes can hand it to one another.
type Ticket struct {
	Tenant  string
	Subject string // whom the credentials were for
	Origin  string // the page that asked, "" for none
	// Authorization and Cookie are the request's headers.
	Authorization, Cookie []string
	Expires               time.Time
}

// Tickets keeps tickets. It may be called concurrently. Behind it may be one node's
// memory, or what many nodes share.
type Tickets interface {
	// Issue keeps a ticket and returns its text: at least 128 random bits in base64url. A *hub.Refusal
	// with TooMany and Retry: there are too many.
	Issue(ctx context.Context, t Ticket) (string, error)
	// Redeem takes a ticket away and returns it: whoever calls at the same time, one gets
	// it. false: there is none, or it has expired.
	Redeem(ctx context.Context, text string) (Ticket, bool, error)
}

// Bounds of the tickets in memory.
const (
	ticketsMost      = 100_000
	ticketsOfTenant  = 20_000
	ticketBytesMost  = 64 << 20
	ticketBytesOfOne = 16 << 20 // tenant
	ticketTextLength = 22       // 128 bits in base64url
)

// ticketBook is Tickets in memory. Tickets are kept under their hashes: to find one by
// its text takes as long whatever it has in common with others.
type ticketBook struct {
	mu      sync.Mutex
	tickets map[[32]byte]*list.Element
	queue   list.List // of *kept, by when they expire
	tenants map[string]holding
	bytes   int
}

type kept struct {
	Ticket
	sum  [32]byte
	size int
}

// holding is what a tenant has of the book.
type holding struct{ tickets, bytes int }

// NewTickets makes Tickets that are kept in memory: at most 100,000 and 64 MiB, 20,000 and 16 MiB
// of one tenant.
func NewTickets() Tickets {
	return &ticketBook{tickets: map[[32]byte]*list.Element{}, tenants: map[string]holding{}}
}

func (b *ticketBook) Issue(_ context.Context, t Ticket) (string, error) {
	var raw [16]byte
	rand.Read(raw[:])
	text := base64.RawURLEncoding.EncodeToString(raw[:])
	k := &kept{Ticket: t, sum: sha256.Sum256([]byte(text)), size: 512 + len(t.Tenant) + len(t.Subject) + len(t.Origin)}
	for _, s := range append(t.Authorization[:len(t.Authorization):len(t.Authorization)], t.Cookie...) {
		k.size += len(s)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget(time.Now())
	own := b.tenants[t.Tenant]
	if len(b.tickets) >= ticketsMost || b.bytes+k.size > ticketBytesMost || own.tickets >= ticketsOfTenant || own.bytes+k.size > ticketBytesOfOne {
		return "", &hub.Refusal{Code: hub.TooMany, Retry: TicketLife / 2, Detail: "too many tickets were taken that nobody redeemed: come back later, and take one when you need it"}
	}
	b.tickets[k.sum] = b.queue.PushBack(k)
	b.tenants[t.Tenant] = holding{own.tickets + 1, own.bytes + k.size}
	b.bytes += k.size
	return text, nil
}

func (b *ticketBook) Redeem(_ context.Context, text string) (Ticket, bool, error) {
	if len(text) != ticketTextLength {
		return Ticket{}, false, nil
	}
	sum := sha256.Sum256([]byte(text))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget(time.Now())
	at := b.tickets[sum]
	if at == nil {
		return Ticket{}, false, nil
	}
	return b.remove(at).Ticket, true, nil
}

func (b *ticketBook) forget(now time.Time) {
	for at := b.queue.Front(); at != nil && !now.Before(at.Value.(*kept).Expires); at = b.queue.Front() {
		b.remove(at)
	}
}

func (b *ticketBook) remove(at *list.Element) *kept {
	k := b.queue.Remove(at).(*kept)
	delete(b.tickets, k.sum)
	b.bytes -= k.size
	own := b.tenants[k.Tenant]
	if b.tenants[k.Tenant] = (holding{own.tickets - 1, own.bytes - k.size}); own.tickets == 1 {
		delete(b.tenants, k.Tenant)
	}
	return k
}

// issueTicket answers POST /v1/{tenant}/tickets.
func (s *Server) issueTicket(w http.ResponseWriter, r *http.Request, c call) error {
	if err := c.hub.MayUse(c.grant, c.tenant); err != nil {
		return err
	}
	expires := time.Now().Add(TicketLife)
	if end := c.grant.Expires; !end.IsZero() && end.Before(expires) {
		expires = end
	}
	text, err := s.opts.Tickets.Issue(r.Context(), Ticket{
		Tenant: c.tenant, Subject: c.grant.Subject, Origin: r.Header.Get("Origin"),
		Authorization: r.Header["Authorization"], Cookie: r.Header["Cookie"], Expires: expires,
	})
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, struct {
		Ticket  string `json:"ticket"`
		Expires string `json:"expires"`
	}{text, expires.UTC().Format(feed.AtLayout)})
	return nil
}

// redeem settles who may by a request's ticket. A ticket is used up by whoever shows it, also
// where it does not help them.
func (s *Server) redeem(r *http.Request, q url.Values) (grant hub.Grant, p papers, err error) {
	if len(q["ticket"]) > 1 {
		return grant, p, newProblem(hub.Unauthenticated, "the request has more than one ticket")
	}
	t, found, err := s.opts.Tickets.Redeem(r.Context(), q.Get("ticket"))
	if err != nil {
		return grant, p, err
	}
	p = papersOf(r)
	switch {
	case !found:
		return grant, p, newProblem(hub.Unauthenticated, "the ticket was used, has expired (%d s) or never was: get another", int(TicketLife.Seconds()))
	case t.Tenant != TenantOf(r):
		return grant, p, newProblem(hub.Unauthenticated, "the ticket is for another tenant")
	case t.Origin != p.origin && (p.origin != "" || !sameOrigin(r) || hostOf(t.Origin) != r.Host):
		return grant, p, newProblem(hub.Unauthenticated, "the ticket was given to another page: it counts for the origin that asked for it")
	}
	p.authorization, p.cookie, p.origin = t.Authorization, t.Cookie, t.Origin
	grant, err = s.opts.Authorizer.Authorize(p.request(r.Context()))
	if err == nil && grant.Subject != t.Subject {
		err = newProblem(hub.Unauthenticated, "the ticket was given to somebody else: get another")
	}
	return grant, p, err
}

func hostOf(origin string) string {
	u, err := url.Parse(origin)
	if err != nil {
		return ""
	}
	return u.Host
}
