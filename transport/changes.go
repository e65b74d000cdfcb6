package transport

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// body is what POST /v1/{tenant}/changes takes, and the frame write. Type and ID are
// the frame's; a POST that bears them too means nothing by it.
type body struct {
	Type    string         `json:"type"`
	ID      jsontext.Value `json:"id"`
	Client  *string        `json:"client"`
	Atomic  *bool          `json:"atomic"`
	Changes []change       `json:"changes"`
}

// change is one of its changes.
type change struct {
	ID         *string        `json:"id"`
	Collection string         `json:"collection"`
	Op         string         `json:"op"`
	Key        *string        `json:"key"`
	Value      jsontext.Value `json:"value"`
	Patch      jsontext.Value `json:"patch"`
	If         *uint64        `json:"if"`
	TTL        jsontext.Value `json:"ttl"`
}

// outcome is how one change fared, as an answer shows it.
type outcome struct {
	ID     string          `json:"id,omitempty"`
	Status hub.Status      `json:"status"`
	Key    string          `json:"key,omitempty"`
	Seq    *uint64         `json:"seq,omitempty"`
	Value  json.RawMessage `json:"value,omitempty"`
}

// append appends the outcome as encoding/json would, but its row as it is, without going over it
// once more: that was a fifth of what a request of a hundred changes cost.
func (o *outcome) append(dst []byte) []byte {
	text := func(name, s string) {
		if s != "" {
			dst = append(append(append(dst, ',', '"'), name...), '"', ':')
			dst, _ = jsontext.AppendQuote(dst, s) // what is no UTF-8 was refused
		}
	}
	begin := len(dst)
	text("id", o.ID)
	text("status", string(o.Status))
	text("key", o.Key)
	if o.Seq != nil {
		dst = strconv.AppendUint(append(dst, `,"seq":`...), *o.Seq, 10)
	}
	if len(o.Value) > 0 {
		dst = append(append(dst, `,"value":`...), o.Value...)
	}
	dst[begin] = '{' // there is a status at least
	return append(dst, '}')
}

// appendAnswer appends what answers a request, after what stands before it in an object.
func appendAnswer(dst []byte, r hub.Result) []byte {
	dst = append(r.Cursor.Append(append(dst, `"cursor":"`...)), `","results":[`...)
	for i, o := range r.Outcomes {
		if i > 0 {
			dst = append(dst, ',')
		}
		out := outcomeOf(o)
		dst = out.append(dst)
	}
	return append(dst, "]}"...)
}

// changes answers POST /v1/{tenant}/changes.
func (s *Server) changes(w http.ResponseWriter, r *http.Request, c call) error {
	raw, err := s.body(w, r)
	if err != nil {
		return err
	}
	b, err := readBody(raw)
	if err != nil {
		return err
	}
	req, err := b.request(c.tenant)
	if err != nil {
		return err
	}
	// Who ends their half of the connection may yet read, which net/http takes for the end of all: what is in line is answered.
	result, err := c.hub.Write(context.WithoutCancel(r.Context()), c.grant, req)
	if err != nil {
		return err
	}
	if result.Refused {
		return refused(result)
	}
	if s.post(w, r, c, result) {
		return nil
	}
	replyLine(w, http.StatusOK, appendAnswer([]byte("{"), result))
	return nil
}

// body reads a request's body, up to the server's limit, within the time that guard
// has set for it.
func (s *Server) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.opts.Body))
	var large *http.MaxBytesError
	switch {
	case err == nil:
		// What follows may take its time: the log's.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	case errors.As(err, &large):
		return nil, newProblem(hub.TooLarge, "the body has more than %d bytes: send it in several requests", s.opts.Body)
	case errors.Is(err, os.ErrDeadlineExceeded):
		p := newProblem(hub.BadRequest, "the body did not come within %v", stalled)
		p.status(http.StatusRequestTimeout)
		return nil, p
	default:
		return nil, newProblem(hub.BadRequest, "the body can't be read: %s", err)
	}
	return raw, nil
}

// decode reads JSON strictly: names that are not known, names that come twice and
// invalid UTF-8 are errors that say where.
func decode(raw []byte, into any) error {
	if err := jsonv2.Unmarshal(raw, into, jsonv2.RejectUnknownMembers(true)); err != nil {
		which, said := cleanError(err)
		return newProblem(hub.BadRequest, "%sthe JSON can't be read: %s", which, said)
	}
	return nil
}

// cleanError drops the library's name from its error and bounds what it quotes. which is the change
// that is wrong, where it is one of several.
func cleanError(err error) (which, said string) {
	var syntactic *jsontext.SyntacticError
	var semantic *jsonv2.SemanticError
	switch {
	case errors.As(err, &syntactic):
		at := ""
		if p := syntactic.JSONPointer; p != "" {
			at = fmt.Sprintf(" in %q", clip(string(p)))
		}
		return "", fmt.Sprintf("%v%s, after byte %d", syntactic.Err, at, syntactic.ByteOffset)
	case errors.As(err, &semantic):
		at := string(semantic.JSONPointer)
		if rest, one := strings.CutPrefix(at, "/changes/"); one {
			index, member, _ := strings.Cut(rest, "/")
			which, at = "changes["+index+"]: ", "/"+member
		}
		if at == "" {
			at = "/"
		}
		if errors.Is(err, jsonv2.ErrUnknownName) {
			return which, fmt.Sprintf("%q is not a name that is known here", clip(at))
		}
		return which, fmt.Sprintf("%q has the wrong type or is out of range", clip(at))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "", "it ends too early"
	}
	return "", "it is not valid"
}

// request makes a hub request of a body, and frees it.
func (b *body) request(tenant string) (hub.Request, error) {
	defer b.free()
	req := hub.Request{Tenant: tenant, Atomic: b.Atomic == nil || *b.Atomic}
	if b.Client != nil {
		if err := feed.CheckClient(*b.Client); err != nil {
			return req, newProblem(hub.BadName, "%s", err)
		}
		req.Client = *b.Client
	}
	if len(b.Changes) > feed.MaxChanges {
		return req, newProblem(hub.TooMany, "%d changes in one request; at most %d: split it", len(b.Changes), feed.MaxChanges)
	}
	req.Writes = make([]hub.Write, len(b.Changes))
	for i := range b.Changes {
		var err error
		if req.Writes[i], err = b.Changes[i].write(); err != nil {
			p := problemOf(err)
			p.Detail = fmt.Sprintf("changes[%d]: %s", i, p.Detail)
			return req, p
		}
	}
	return req, nil
}

func (c *change) write() (hub.Write, error) {
	w := hub.Write{Collection: c.Collection, Op: c.Op, Value: given(c.Value), Patch: given(c.Patch)}
	if c.If != nil {
		seq := feed.Seq(*c.If)
		w.If = &seq
	}
	if c.ID != nil {
		if err := feed.CheckID(*c.ID); err != nil {
			return w, newProblem(hub.BadName, "%s", err)
		}
		w.ID = *c.ID
	}
	if c.Key != nil {
		if err := feed.CheckKey(*c.Key); err != nil {
			return w, newProblem(hub.BadName, "%s", err)
		}
		w.Key = *c.Key
	}
	if ttl := given(c.TTL); ttl != nil {
		var err error
		if w.TTL, err = parseTTL(string(ttl)); err != nil {
			return w, err
		}
	}
	return w, nil
}

// parseTTL reads for how long a row is to live.
func parseTTL(text string) (time.Duration, error) {
	seconds, err := strconv.ParseUint(text, 10, 32)
	if ttl := time.Duration(seconds) * time.Second; err == nil && ttl > 0 && ttl <= hub.MaxTTL {
		return ttl, nil
	}
	return 0, newProblem(hub.BadRequest, "ttl must be a whole number of seconds, 1 to %d (10 years); leave it out for a row that lives for ever", int(hub.MaxTTL.Seconds()))
}

// given is a member's value, nil for null: as for all other members, that is as if it
// were not there.
func given(v jsontext.Value) []byte {
	if v.Kind() == 'n' {
		return nil
	}
	return v
}

func outcomesOf(r hub.Result) []outcome {
	all := make([]outcome, len(r.Outcomes))
	for i, o := range r.Outcomes {
		all[i] = outcomeOf(o)
	}
	return all
}

func outcomeOf(o hub.Outcome) outcome {
	out := outcome{ID: o.ID, Status: o.Status, Key: o.Key}
	if o.Status != hub.Aborted {
		seq := uint64(o.Seq)
		out.Seq = &seq
	}
	if o.Value != "" {
		out.Value = json.RawMessage(o.Value)
	}
	return out
}

// details say what to do about a change that was refused.
var details = map[hub.Status]string{
	hub.Conflict: `the row is not at the sequence that "if" names: look at the row as it stands, and try again with its sequence`,
	hub.Exists:   "the row is there already: use put to replace it, or modify to change it",
	hub.Missing:  "the row is not there: use insert or put to make it",
	hub.IDReused: "another change came under this id before: an id names one change for ever",
}

// refused is the problem of an atomic request of which nothing happened.
func refused(r hub.Result) *problem {
	for i, o := range r.Outcomes {
		if o.Status != hub.Aborted {
			p := newProblem(hub.Code(o.Status), "nothing was written, because of changes[%d]: %s", i, details[o.Status])
			p.Results = outcomesOf(r)
			return p
		}
	}
	panic("transport: a refusal without a reason")
}

// reply answers with one line of JSON.
func reply(w http.ResponseWriter, status int, v any) { replyLine(w, status, encode(v)) }

func replyLine(w http.ResponseWriter, status int, line []byte) {
	begin(w, "application/json", "no-store")
	w.WriteHeader(status)
	w.Write(append(line, '\n'))
}

// encode encodes an answer. Rows go as they are: encoding/json would escape <, > and &.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("transport: an answer can't be encoded: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
