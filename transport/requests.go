package transport

import (
	"context"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Requests of a socket: each takes a place, which its one reply gives back. Those that
// follow from reading a frame are answered at once; writes are answered by wait, in
// the order in which they came.

// place takes a place for a request. It is called by who reads.
func (k *socket) place() bool {
	if k.slots == nil {
		k.slots = make(chan struct{}, requestsInFlight) // most sockets never ask for anything
	}
	select {
	case k.slots <- struct{}{}:
		return true
	case <-k.ctx.Done():
		return false
	}
}

// badFrame ends a session whose client sends what is no frame.
const badFrame = "bad-frame"

func (k *socket) bad(detail string) {
	k.refuse(nil, newProblem(hub.BadRequest, "%s", detail))
	k.session.End(&hub.Ended{Reason: badFrame})
}

// request does what a frame of the client's asks for.
func (k *socket) request(line []byte) (goOn bool) {
	// Writes are most of what there is: those that can be scanned are not read twice.
	b, scanned := scan(line)
	kind, id := b.Type, b.ID
	if !scanned || kind == "" {
		var head struct {
			Type *string        `json:"type"`
			ID   jsontext.Value `json:"id"`
		}
		if jsonv2.Unmarshal(line, &head) != nil || head.Type == nil {
			k.bad(`a frame must be one line of valid JSON, an object with a "type"`)
			return false
		}
		kind, id = *head.Type, head.ID
	}
	if len(id) > feed.MaxID+2 || len(id) > 0 && id[0] != '"' && (id[0] < '0' || id[0] > '9') {
		k.refuse(nil, newProblem(hub.BadRequest, "id must be a string of at most %d bytes", feed.MaxID))
		return true
	}
	var err error
	switch kind {
	case "subscribe":
		err = k.subscribe(line, id)
	case "unsubscribe":
		err = k.unsubscribe(line, id)
	case "write":
		if !scanned {
			b = body{}
			err = decode(line, &b)
		}
		var pending *hub.Pending
		if err == nil {
			pending, err = k.write(&b)
		}
		k.answer(written{id, pending, err})
		return true
	case "auth":
		err = k.auth(line, id)
	default:
		err = newProblem(hub.BadRequest, "type %q is not known: subscribe, unsubscribe, write or auth", clip(kind))
	}
	if err != nil {
		k.refuse(id, err)
	}
	return true
}

func (k *socket) refuse(id []byte, err error) {
	k.session.Reply(k.server.failed(err, "WebSocket", "/v1/{tenant}/feed", k.ctx.Err()).frame(id))
}

func done(id []byte) string {
	if len(id) == 0 {
		return `{"type":"done"}`
	}
	return `{"type":"done","id":` + string(id) + `}`
}

func (k *socket) subscribe(line, id []byte) error {
	var f struct {
		Type        string         `json:"type"`
		ID          jsontext.Value `json:"id"`
		Collections []struct {
			Name   string `json:"name"`
			Cursor string `json:"cursor"`
		} `json:"collections"`
	}
	if err := decode(line, &f); err != nil {
		return err
	}
	if len(f.Collections) == 0 {
		return newProblem(hub.BadRequest, `name at least one collection: "collections":[{"name":"todos"}]`)
	}
	if err := fewEnough(len(f.Collections)); err != nil {
		return err
	}
	var starts starts
	for _, c := range f.Collections {
		starts.add(c.Name, c.Cursor)
	}
	return k.session.Subscribe(starts, done(id))
}

func (k *socket) unsubscribe(line, id []byte) error {
	var f struct {
		Type        string         `json:"type"`
		ID          jsontext.Value `json:"id"`
		Collections []string       `json:"collections"`
	}
	if err := decode(line, &f); err != nil {
		return err
	}
	if err := fewEnough(len(f.Collections)); err != nil {
		return err
	}
	for _, name := range f.Collections {
		if err := feed.CheckCollection(name); err != nil {
			return newProblem(hub.BadName, "%s", err)
		}
	}
	k.session.Unsubscribe(f.Collections, done(id))
	return nil
}

// authWithin is how long it may take to look at a token; meanwhile nothing else is read.
const authWithin = 10 * time.Second

// auth puts a new token in the place of the one that the socket was opened with.
func (k *socket) auth(line, id []byte) error {
	var f struct {
		Type  string         `json:"type"`
		ID    jsontext.Value `json:"id"`
		Token string         `json:"token"`
	}
	if err := decode(line, &f); err != nil {
		return err
	}
	if f.Token == "" || strings.ContainsFunc(f.Token, func(r rune) bool { return r <= ' ' || r >= 0x7F }) {
		return newProblem(hub.Unauthenticated, "the token is empty, or holds characters that none may")
	}
	p := k.papers
	p.authorization = []string{"Bearer " + f.Token}
	ctx, cancel := context.WithTimeout(k.ctx, authWithin)
	defer cancel()
	grant, err := k.server.opts.Authorizer.Authorize(p.request(ctx))
	if err != nil {
		return unauthenticated(err)
	}
	return k.session.Renew(grant, done(id))
}

func (k *socket) write(b *body) (*hub.Pending, error) {
	req, err := b.request(k.tenant)
	if err != nil {
		return nil, err
	}
	return k.hub.Begin(k.session.Grant(), req)
}

// written is a write that was begun, or refused before.
type written struct {
	id      []byte
	pending *hub.Pending
	err     error
}

// answer has wait answer a write. It is called by read alone.
func (k *socket) answer(w written) {
	if k.writes == nil {
		k.writes = make(chan written, requestsInFlight)
		k.workers.Go(func() { k.wait(k.writes) })
	}
	k.unsaid.add()
	k.writes <- w // there is room: it holds as many as there are places
}

// wait answers writes.
func (k *socket) wait(writes <-chan written) {
	defer k.recover()
	for w := range writes {
		k.outcome(w)
		k.unsaid.done()
	}
}

func (k *socket) outcome(w written) {
	err := w.err
	var result hub.Result
	if err == nil {
		result, err = w.pending.Wait(k.ctx)
	}
	switch {
	case k.ctx.Err() != nil: // nobody is there to be told
	case err != nil:
		k.refuse(w.id, err)
	case result.Refused:
		k.refuse(w.id, refused(result))
	default:
		reply := []byte(`{"type":"written",`)
		if len(w.id) > 0 {
			reply = append(append(append(reply, `"id":`...), w.id...), ',')
		}
		k.session.Reply(string(appendAnswer(reply, result)))
	}
}
