package transport

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport/gate"
)

// code is the kind of a problem; the hub has some, HTTP adds these.
const (
	codeNotFound hub.Code = "not-found"
	codeUpgrade  hub.Code = "upgrade-required"
	codeInternal hub.Code = "internal"
)

// statuses is the one table from codes to HTTP.
var statuses = map[hub.Code]int{
	hub.BadRequest:      http.StatusBadRequest,
	hub.BadName:         http.StatusBadRequest,
	hub.TooLarge:        http.StatusRequestEntityTooLarge,
	hub.TooMany:         http.StatusBadRequest, // more of something in one request than it may have
	hub.Unauthenticated: http.StatusUnauthorized,
	hub.Forbidden:       http.StatusForbidden,
	codeNotFound:        http.StatusNotFound,
	codeUpgrade:         http.StatusUpgradeRequired,
	hub.Unavailable:     http.StatusServiceUnavailable,
	codeInternal:        http.StatusInternalServerError,
	"conflict":          http.StatusConflict,
	"exists":            http.StatusConflict,
	"missing":           http.StatusConflict,
	"id-reused":         http.StatusConflict,
}

// problem is an error as it goes over the wire: RFC 9457, with code, and members of
// its own where a refusal has a row to show.
type problem struct {
	Type   string    `json:"type"`
	Title  string    `json:"title"`
	Status int       `json:"status"`
	Detail string    `json:"detail"`
	Code   hub.Code  `json:"code"`
	Limit  hub.Limit `json:"limit,omitempty"` // of the tenant, which it would go beyond
	refusal

	retry   time.Duration
	allow   string // with 405
	upgrade bool   // with 426, in HTTP/1: HTTP/2 knows no such fields
}

// refusal is what a refused write adds to its problem: the outcomes, or the one row.
type refusal struct {
	Results []outcome       `json:"results,omitempty"`
	Key     string          `json:"key,omitempty"`
	Seq     *uint64         `json:"seq,omitempty"`
	Value   json.RawMessage `json:"value,omitempty"`
}

func (p *problem) Error() string { return p.Detail }

func newProblem(code hub.Code, format string, args ...any) *problem {
	status := statuses[code]
	return &problem{
		Type: "urn:tidemark:problem:" + string(code), Title: http.StatusText(status),
		Status: status, Code: code, Detail: fmt.Sprintf(format, args...),
	}
}

// problemOf makes a problem of any error.
func problemOf(err error) *problem {
	var p *problem
	var r *hub.Refusal
	var g *gate.Refusal
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &r):
		p = newProblem(r.Code, "%s", r.Detail)
		p.Limit = r.Limit
		if p.retry = r.Retry; r.Code == hub.TooMany && r.Retry > 0 { // of something over time: it passes
			p.status(http.StatusTooManyRequests)
		}
		return p
	case errors.As(err, &g):
		p = newProblem(hub.Code(g.Code), "%s", g.Detail)
		p.status(g.Status)
		p.retry = g.Retry
		return p
	}
	return newProblem(codeInternal, "something went wrong in the server; its log says what")
}

func (p *problem) status(status int) {
	p.Status, p.Title = status, http.StatusText(status)
}

// write answers a request with the problem.
func (p *problem) write(w http.ResponseWriter) {
	begin(w, "application/problem+json", "no-store")
	h := w.Header()
	if p.allow != "" {
		h.Set("Allow", p.allow)
	}
	if p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests {
		h.Set("Retry-After", strconv.Itoa(max(1, int((p.retry+time.Second-1)/time.Second))))
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	if p.upgrade {
		h.Set("Upgrade", "websocket")
		h.Set("Connection", "Upgrade")
	}
	w.WriteHeader(p.Status)
	w.Write(appendLine(nil, encode(p)))
}

// frame is the problem as the WebSocket frame error, in answer to the request id.
func (p *problem) frame(id []byte) string {
	return string(encode(struct {
		Type   string          `json:"type"`
		ID     json.RawMessage `json:"id,omitempty"`
		Title  string          `json:"title"`
		Status int             `json:"status"`
		Detail string          `json:"detail"`
		Code   hub.Code        `json:"code"`
		Limit  hub.Limit       `json:"limit,omitempty"`
		Retry  int64           `json:"retry,omitempty"`
		refusal
	}{"error", id, p.Title, p.Status, p.Detail, p.Code, p.Limit, p.retry.Milliseconds(), p.refusal}))
}
