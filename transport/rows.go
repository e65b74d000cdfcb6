package transport

import (
	"bytes"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// readRows answers GET /v1/{tenant}/rows/{collection}: a page, or with ?key= one row.
func (s *Server) readRows(w http.ResponseWriter, r *http.Request, c call) error {
	collection, err := param(r, "*")
	if err != nil {
		return err
	}
	q, err := query(r)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	if q.Has("key") {
		row, err := c.hub.Row(c.grant, c.tenant, collection, q.Get("key"))
		if err != nil {
			return err
		}
		if row == nil {
			return newProblem(codeNotFound, "the row %q of %s is not there", clip(q.Get("key")), collection)
		}
		h.Set("Cache-Control", "no-cache") // ask again each time; the tag makes that cheap
		tag := tagOf(row.Seq())
		h.Set("ETag", tag)
		if hasToken(r.Header["If-None-Match"], tag) {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
		w.Write(append(appendRow(nil, row), '\n'))
		return nil
	}
	limit, err := number(q, "limit", 1, limitMost, limitDefault)
	if err != nil {
		return err
	}
	page, err := c.hub.Rows(c.grant, c.tenant, collection, q.Get("after"), limit)
	if err != nil {
		return err
	}
	h.Set("Cache-Control", "no-store")
	return withBuffer(func(b []byte) ([]byte, error) {
		b = page.Cursor.Append(append(b, `{"cursor":"`...))
		b = append(b, `","rows":[`...)
		for i, row := range page.Rows {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendRow(b, row)
			if len(b) > bufferKept {
				if _, err := w.Write(b); err != nil {
					return b, nil // the client is gone
				}
				b = b[:0]
			}
		}
		b = append(b, ']')
		if page.Next != "" {
			b = append(append(append(b, `,"next":"`...), page.Next...), '"')
		}
		b = append(b, "}\n"...)
		w.Write(b)
		return b, nil
	})
}

func appendRow(b []byte, c *feed.Change) []byte {
	b = append(b, `{"key":"`...)
	b = append(b, c.KeyText()...)
	b = append(b, `","seq":`...)
	b = strconv.AppendUint(b, uint64(c.Seq()), 10)
	b = append(b, `,"value":`...)
	return append(append(b, c.Value()...), '}')
}

func tagOf(seq feed.Seq) string { return `"` + strconv.FormatUint(uint64(seq), 10) + `"` }

// rowAnswer answers a write to one row: the result, and the cursor that shows it.
type rowAnswer struct {
	outcome
	Cursor string `json:"cursor"`
}

// writeRow answers PUT, PATCH, DELETE and POST on /v1/{tenant}/rows/{collection}.
func (s *Server) writeRow(w http.ResponseWriter, r *http.Request, c call) error {
	write, conditional, err := s.readRowWrite(w, r)
	if err != nil {
		return err
	}
	result, err := c.hub.Write(r.Context(), c.grant, hub.Request{Tenant: c.tenant, Atomic: true, Writes: []hub.Write{write}})
	if err != nil {
		return err
	}
	o := outcomeOf(result.Outcomes[0])
	if result.Refused {
		p := newProblem(hub.Code(o.Status), "%s", details[o.Status])
		switch {
		case conditional && o.Status == hub.Conflict:
			p.Status, p.Detail = http.StatusPreconditionFailed, "the row does not meet If-Match or If-None-Match: look at it as it stands, and try again with its ETag"
		case o.Status == hub.Missing:
			p.Status = http.StatusNotFound
		}
		p.Title = http.StatusText(p.Status)
		p.refusal = refusal{Key: o.Key, Seq: o.Seq, Value: o.Value}
		if *o.Seq > 0 {
			w.Header().Set("ETag", tagOf(feed.Seq(*o.Seq)))
		}
		return p
	}
	w.Header().Set("ETag", tagOf(feed.Seq(*o.Seq)))
	reply(w, http.StatusOK, rowAnswer{o, result.Cursor.String()})
	return nil
}

func (s *Server) readRowWrite(w http.ResponseWriter, r *http.Request) (write hub.Write, conditional bool, err error) {
	if write.Collection, err = param(r, "*"); err != nil {
		return write, false, err
	}
	q, err := query(r)
	if err != nil {
		return write, false, err
	}
	write.Key = q.Get("key")
	if q.Has("key") || r.Method != http.MethodPost {
		if !q.Has("key") {
			return write, false, newProblem(hub.BadRequest, "name the row: ?key=KEY, percent-encoded")
		}
		if err := feed.CheckKey(write.Key); err != nil {
			return write, false, newProblem(hub.BadName, "%s", err)
		}
	}
	raw, err := s.body(w, r)
	if err != nil {
		return write, false, err
	}
	switch r.Method {
	case http.MethodPut:
		write.Op, write.Value = "put", raw
	case http.MethodPost:
		write.Op, write.Value = "insert", raw
	case http.MethodPatch:
		write.Op, write.Patch = "modify", raw
	case http.MethodDelete:
		write.Op = "remove"
		if len(bytes.TrimSpace(raw)) > 0 {
			return write, false, newProblem(hub.BadRequest, "DELETE takes no body")
		}
	}
	if ids := r.Header["Idempotency-Key"]; len(ids) > 0 {
		if len(ids) > 1 {
			return write, false, newProblem(hub.BadRequest, "more than one Idempotency-Key")
		}
		if err := feed.CheckID(ids[0]); err != nil {
			return write, false, newProblem(hub.BadName, "Idempotency-Key: %s", err)
		}
		write.ID = ids[0]
	}
	conditional, err = conditions(r, &write)
	return write, conditional, err
}

// conditions reads If-Match and If-None-Match.
func conditions(r *http.Request, w *hub.Write) (conditional bool, err error) {
	match, none := strings.Join(r.Header["If-Match"], ","), strings.Join(r.Header["If-None-Match"], ",")
	switch {
	case match != "" && none != "":
		return false, newProblem(hub.BadRequest, "either If-Match or If-None-Match, not both")
	case none != "":
		if none != "*" {
			return false, newProblem(hub.BadRequest, "If-None-Match can be * only: the row must not be there")
		}
		w.If = new(feed.Seq)
	case match == "*":
		w.IfExists = true
	case match != "":
		seq, perr := parseTag(match)
		if perr != nil {
			return false, newProblem(hub.BadRequest, `If-Match must be one ETag, like "1040", or *`)
		}
		w.If = &seq
	default:
		return false, nil
	}
	return true, nil
}

func parseTag(tag string) (feed.Seq, error) {
	digits, ok := strings.CutPrefix(tag, `"`)
	digits, ok2 := strings.CutSuffix(digits, `"`)
	n, err := strconv.ParseUint(digits, 10, 53)
	if !ok || !ok2 || err != nil {
		return 0, errors.New("not a tag")
	}
	return feed.Seq(n), nil
}
