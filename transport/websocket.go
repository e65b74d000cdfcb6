package transport

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/coder/websocket"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Close codes of our own (docs/protocol.md).
const (
	closeBadFrame = 4400
	closeEvicted  = 4409
)

// requestsInFlight is how many requests of one socket may be unanswered: beyond
// them it is not read, so a client that does not read its answers waits for itself.
const requestsInFlight = 32

// socket is one WebSocket: a goroutine in pump that writes, one that reads requests,
// and one that waits for the outcome of writes.
type socket struct {
	server  *Server
	call    call
	conn    *websocket.Conn
	session *hub.Session
	ctx     context.Context
	cancel  context.CancelCauseFunc
	slots   chan struct{} // a place for each request that is not answered
	writes  chan written
	pinging chan struct{} // room for one: a ping is under way
	pinged  time.Time     // owned by pump: when the last ping was sent
	beat    time.Duration
}

// written is a write that was begun.
type written struct {
	id      []byte
	pending *hub.Pending
}

// websocket answers with a WebSocket, until one side has enough.
func (s *Server) websocket(w http.ResponseWriter, r *http.Request, c call, session *hub.Session, open feed.Open, beat time.Duration) error {
	if v := r.Header.Get("Sec-WebSocket-Version"); v != "13" {
		w.Header().Set("Sec-WebSocket-Version", "13")
		return newProblem(hub.BadRequest, "Sec-WebSocket-Version is %q; this server speaks 13", clip(v))
	}
	if key, err := base64.StdEncoding.DecodeString(r.Header.Get("Sec-WebSocket-Key")); err != nil || len(key) != 16 {
		return newProblem(hub.BadRequest, "Sec-WebSocket-Key must be 16 bytes in base64")
	}
	s.sockets.Add(1)
	defer s.sockets.Done()
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:       []string{"tidemark.v1"},
		InsecureSkipVerify: true, // origins are the Authorizer's matter, by exact match
	})
	if err != nil {
		return nil // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(s.opts.Body)
	// The request's context ends with the handler only: the connection is ours now.
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	k := &socket{
		server: s, call: c, conn: conn, session: session, ctx: ctx, cancel: cancel, beat: beat,
		slots: make(chan struct{}, requestsInFlight), writes: make(chan written, requestsInFlight),
		pinging: make(chan struct{}, 1), pinged: time.Now(),
	}
	if err := k.send(open.Append(nil)); err != nil {
		return nil
	}
	reader, waiter := make(chan struct{}), make(chan struct{})
	go k.guard(reader, k.read)
	go k.guard(waiter, k.wait)
	err = pump(ctx, session, k)
	if code, reason := closing(ctx, err); code != 0 {
		_ = conn.Close(code, reason) // the peer may be gone; then it is closed all the same
	}
	cancel(nil)
	_ = conn.CloseNow()
	<-reader
	<-waiter
	k.pinging <- struct{}{} // the ping under way has ended
	return nil
}

// guard runs a goroutine of the socket; a panic in it costs the socket, not the process.
func (k *socket) guard(done chan<- struct{}, run func()) {
	defer close(done)
	defer func() {
		if v := recover(); v != nil {
			k.server.opts.Logger.Error("panic in a WebSocket", "panic", v)
			k.cancel(closeError{websocket.StatusInternalError, "failed"})
		}
	}()
	run()
}

// closeError is why a socket is closed, as the close frame says it.
type closeError struct {
	code   websocket.StatusCode
	reason string
}

func (e closeError) Error() string { return e.reason }

// closing is the close frame that ends a socket, 0 where it is closed already.
func closing(ctx context.Context, err error) (websocket.StatusCode, string) {
	var c closeError
	switch {
	case errors.As(err, &c) || errors.As(context.Cause(ctx), &c):
		return c.code, c.reason
	case err == nil:
		return websocket.StatusNormalClosure, ""
	}
	return 0, ""
}

func (k *socket) send(b []byte) error { return k.conn.Write(k.ctx, websocket.MessageText, b) }

// Send sends a batch as one message.
func (k *socket) Send(_ context.Context, b *feed.Batch) error {
	err := withBuffer(func(buf []byte) ([]byte, error) {
		buf = appendBatch(buf, b, lines{})
		return buf, k.send(bytes.TrimSuffix(buf, []byte("\n")))
	})
	for range b.Replies {
		<-k.slots
	}
	if err == nil && b.Announce && time.Since(k.pinged) >= k.beat/2 {
		k.ping()
	}
	return err
}

// ping finds out whether the peer is still there, once a heartbeat: behind a proxy
// a socket can be written to long after the client has gone.
func (k *socket) ping() {
	select {
	case k.pinging <- struct{}{}:
	default:
		return
	}
	k.pinged = time.Now()
	go func() {
		defer func() { <-k.pinging }()
		ctx, cancel := context.WithTimeout(k.ctx, stalled)
		defer cancel()
		if err := k.conn.Ping(ctx); err != nil {
			k.cancel(err)
			_ = k.conn.CloseNow()
		}
	}()
}

// End sends the server's last word.
func (k *socket) End(_ context.Context, ended *hub.Ended) error {
	if ended.Reason == badFrame { // it was told in an error
		return closeError{closeBadFrame, badFrame}
	}
	if err := k.send(feed.AppendEnd(nil, ended.Reason, ended.Retry)); err != nil {
		return err
	}
	code := websocket.StatusTryAgainLater
	switch ended.Reason {
	case hub.EndDraining:
		code = websocket.StatusServiceRestart
	case hub.EndFailed:
		code = websocket.StatusInternalError
	case hub.EndEvicted:
		code = closeEvicted
	}
	return closeError{code, ended.Reason}
}

// read reads requests, until the client leaves or sends what can't be read.
func (k *socket) read() {
	defer close(k.writes)
	for {
		kind, message, err := k.conn.Read(k.ctx)
		if err != nil {
			k.cancel(err)
			return
		}
		if kind != websocket.MessageText {
			if k.place() {
				k.bad("a message must be text")
			}
			return
		}
		for line := range bytes.SplitSeq(message, []byte("\n")) {
			if len(bytes.TrimSpace(line)) == 0 {
				continue
			}
			if !k.place() || !k.request(line) {
				return
			}
		}
	}
}

// place takes a place for a request, which its one reply gives back.
func (k *socket) place() bool {
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
	var head struct {
		Type *string         `json:"type"`
		ID   json.RawMessage `json:"id"`
	}
	if !jsontext.Value(line).IsValid() || json.Unmarshal(line, &head) != nil || head.Type == nil {
		k.bad(`a frame must be one line of valid JSON, an object with a "type"`)
		return false
	}
	id := head.ID
	if len(id) > 256+2 || len(id) > 0 && id[0] != '"' && (id[0] < '0' || id[0] > '9') {
		k.refuse(nil, newProblem(hub.BadRequest, "id must be a string of at most 256 bytes"))
		return true
	}
	var err error
	switch *head.Type {
	case "subscribe":
		err = k.subscribe(line, id)
	case "unsubscribe":
		err = k.unsubscribe(line, id)
	case "write":
		err = k.write(line, id)
	case "auth":
		// Nothing ends here with a credential as long as the server has none.
		k.session.Reply(done(id))
	default:
		err = newProblem(hub.BadRequest, "type %q is not known: subscribe, unsubscribe, write or auth", clip(*head.Type))
	}
	if err != nil {
		k.refuse(id, err)
	}
	return true
}

func (k *socket) refuse(id []byte, err error) { k.session.Reply(problemOf(err).frame(id)) }

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
	starts := make([]feed.Start, len(f.Collections))
	for i, c := range f.Collections {
		starts[i] = feed.Start{Collection: c.Name}
		if c.Cursor != "" {
			starts[i].Cursors = []string{c.Cursor}
		}
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
	for _, name := range f.Collections {
		if err := feed.CheckCollection(name); err != nil {
			return newProblem(hub.BadName, "%s", err)
		}
	}
	k.session.Unsubscribe(f.Collections, done(id))
	return nil
}

func (k *socket) write(line, id []byte) error {
	var b body
	if err := decode(line, &b); err != nil {
		return err
	}
	req, err := b.request(k.call.tenant)
	if err != nil {
		return err
	}
	pending, err := k.call.hub.Begin(k.call.grant, req)
	if err != nil {
		return err
	}
	k.writes <- written{id, pending} // there is room: it holds as many as there are places
	return nil
}

// wait answers writes, in the order in which they were begun.
func (k *socket) wait() {
	for w := range k.writes {
		result, err := w.pending.Wait(k.ctx)
		switch {
		case k.ctx.Err() != nil:
			continue // nobody is there to be told
		case err != nil:
			k.refuse(w.id, err)
		case result.Refused:
			k.refuse(w.id, refused(result))
		default:
			k.session.Reply(string(encode(struct {
				Type string          `json:"type"`
				ID   json.RawMessage `json:"id,omitempty"`
				answer
			}{"written", w.id, answerOf(result)})))
		}
	}
}
