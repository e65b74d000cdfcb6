package transport

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"strconv"

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
	if q.Has("key") {
		return readRow(w, r, c, collection, q)
	}
	limit, err := number(q, "limit", 1, limitMost, limitDefault)
	if err != nil {
		return err
	}
	page, err := c.hub.Rows(c.grant, c.tenant, collection, q.Get("after"), limit)
	if err != nil {
		return err
	}
	begin(w, "application/json", "no-store")
	out := newWriter(w, r)
	return withBuffer(func(b []byte) ([]byte, error) {
		b = page.Cursor.Append(append(b, `{"cursor":"`...))
		b = append(b, `","rows":[`...)
		for i, row := range page.Rows {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendRow(b, row)
			if len(b) > bufferKept {
				if out.send(b) != nil {
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
		_ = out.last(b) // or the client is gone
		return b, nil
	})
}

func readRow(w http.ResponseWriter, r *http.Request, c call, collection string, q url.Values) error {
	key, err := single(q, "key")
	if err != nil {
		return err
	}
	row, err := c.hub.Row(c.grant, c.tenant, collection, key)
	if err != nil {
		return err
	}
	if row == nil {
		return newProblem(codeNotFound, "the row %q of %s is not there", clip(key), collection)
	}
	tag := tagOf(row.Seq())
	begin(w, "application/json", "private, no-cache") // ask again each time; the tag makes that cheap
	w.Header().Set("ETag", tag)
	if unchanged(r, tag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	_ = newWriter(w, r).last(append(appendRow(nil, row), '\n')) // or the client is gone
	return nil
}

func appendRow(b []byte, c *feed.Change) []byte {
	b = append(b, `{"key":"`...)
	b = append(b, c.KeyText()...)
	b = append(b, `","seq":`...)
	b = strconv.AppendUint(b, uint64(c.Seq()), 10)
	b = append(b, `,"value":`...)
	return append(append(b, c.Value()...), '}')
}

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
	result, err := c.hub.Write(context.WithoutCancel(r.Context()), c.grant, hub.Request{Tenant: c.tenant, Atomic: true, Writes: []hub.Write{write}})
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
	if write.Key, err = single(q, "key"); err != nil {
		return write, false, err
	}
	if q.Has("key") || r.Method != http.MethodPost {
		if !q.Has("key") {
			return write, false, newProblem(hub.BadRequest, "name the row: ?key=KEY, percent-encoded")
		}
		if err := feed.CheckKey(write.Key); err != nil {
			return write, false, newProblem(hub.BadName, "%s", err)
		}
	}
	if q.Has("ttl") {
		text, err := single(q, "ttl")
		if err == nil {
			write.TTL, err = parseTTL(text)
		}
		if err != nil {
			return write, false, err
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
