package transport

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Close codes of our own (docs/protocol.md).
const (
	closeBadFrame        = 4400
	closeUnauthenticated = 4401
	closeEvicted         = 4409
)

// requestsInFlight is how many requests of one socket may be unanswered: beyond
// them it is not read, so a client that does not read its answers waits for itself.
const requestsInFlight = 32

// leaving is how long a socket may take to part: to be told what became of its
// writes, and for the peer to answer the close frame.
const leaving = 5 * time.Second

// socket is one WebSocket: a goroutine in pump that writes, unless it is parked, one that
// reads requests, while there are any, and, from the first write on, one that waits for the
// outcome of writes.
//
// The library shakes hands, closes, and reads what is not a text message that has come whole: see readable. Frames go out
// through link.
type socket struct {
	// Static after construction.
	server  *Server
	hub     *hub.Hub
	tenant  string
	papers  papers // without the credentials
	leave   func()
	conn    *websocket.Conn
	link    *link
	raw     syscall.RawConn // nil: it can't be parked
	session *hub.Session
	ctx     context.Context
	cancel  context.CancelCauseFunc
	beat    time.Duration
	slots   chan struct{} // a place for each request that is not answered; made by place, before the first
	workers sync.WaitGroup
	watched uint64 // 0: it is always read
	unsaid  tally  // writes whose outcome is not among the replies yet

	writes chan written // owned by read: as many places as slots; nil before the first

	reading sync.Mutex // held by read
	over    bool       // guarded by reading: it is not read any more

	direct  sync.Mutex // held while it is read past the library, within reading
	parting bool       // guarded by direct: the library reads, for the answer to its close frame, and nobody else may

	// Owned by lane, or by whoever serves it parked.
	messages messages
	pinged   time.Time // when the last ping was sent

	unanswered atomic.Bool // a ping waits for its pong
	silent     *time.Timer // ends the socket when it has waited too long
}

// websocket answers with a WebSocket, and closes the session. It returns once hands
// are shaken, so that what net/http holds for a request can go.
func (s *Server) websocket(w http.ResponseWriter, r *http.Request, c call, session *hub.Session, open feed.Open, beat time.Duration, leave func()) error {
	shaken := false
	defer func() {
		if !shaken {
			session.Close()
			leave()
		}
	}()
	if err := handshake(w, r); err != nil {
		return err
	}
	k := &socket{
		server: s, hub: c.hub, tenant: c.tenant, papers: c.papers, leave: leave, session: session, beat: beat, pinged: time.Now(),
	}
	h := &hijacker{ResponseWriter: w}
	conn, err := websocket.Accept(h, r, &websocket.AcceptOptions{
		Subprotocols:       []string{"tidemark.v1"},
		InsecureSkipVerify: true, // origins were looked at: see Origins, and Authorizer
		OnPingReceived:     k.pong,
		OnPongReceived:     k.ponged,
	})
	if err != nil {
		return nil // Accept has answered
	}
	shaken = true
	k.papers.authorization, k.papers.cookie = nil, nil // those of frames take their place
	conn.SetReadLimit(s.opts.Body)
	k.conn, k.link, k.raw, k.watched = conn, h.link, rawSocket(h.link.Conn), h.watched
	if k.raw != nil {
		session.Park(k)
	}
	// The request's context ends with the handler.
	k.ctx, k.cancel = context.WithCancelCause(context.Background())
	k.silent = time.AfterFunc(time.Hour, func() {
		if !k.unanswered.Load() && k.ctx.Err() == nil {
			return // the pong came before the timer was set
		}
		k.stop(errors.New("the peer does not answer pings"))
		_ = k.link.Close()
	})
	k.silent.Stop()
	s.streams.add()
	h.greet(open)
	k.watch()
	if !session.Await() {
		go k.lane()
	}
	return nil
}

// handshake refuses what the library would, in the words of the protocol.
func handshake(w http.ResponseWriter, r *http.Request) error {
	if v := r.Header.Get("Sec-WebSocket-Version"); v != "13" {
		w.Header().Set("Sec-WebSocket-Version", "13")
		p := newProblem(codeUpgrade, "Sec-WebSocket-Version is %q; this server speaks 13", clip(v))
		p.upgrade = true
		return p
	}
	keys := r.Header["Sec-Websocket-Key"]
	if len(keys) == 1 {
		if key, err := base64.StdEncoding.DecodeString(keys[0]); err == nil && len(key) == 16 {
			return nil
		}
	}
	return newProblem(hub.BadRequest, "Sec-WebSocket-Key must be one key, 16 bytes in base64")
}

// lane runs a socket that is not parked, to its end or until it is.
func (k *socket) lane() {
	parked := false
	defer func() {
		if !parked {
			k.finish()
		}
	}()
	defer k.recover()
	err := k.link.writeRest()
	if err == nil {
		err = pump(k.ctx, k.session, k)
	}
	if parked = errors.Is(err, hub.ErrParked); parked {
		return
	}
	k.session.Close()
	if code, reason := closing(k.ctx, err); code != 0 {
		k.direct.Lock()
		k.parting = true
		k.direct.Unlock()
		_ = k.link.SetReadDeadline(time.Now().Add(leaving))
		_ = k.conn.Close(code, reason) // the peer may be gone; then it is closed all the same
	}
}

// finish lets go of all that the socket holds.
func (k *socket) finish() {
	k.session.Close()
	k.leave()
	k.cancel(nil)
	_ = k.conn.CloseNow()
	_ = k.link.Close() // CloseNow does nothing once Close has begun
	k.server.idle.forget(k.watched)
	k.reading.Lock()
	k.over = true
	if k.writes != nil {
		close(k.writes)
	}
	k.reading.Unlock()
	k.workers.Wait()
	k.silent.Stop()
	k.server.streams.done()
}

// stop has pump end because of cause.
func (k *socket) stop(cause error) {
	k.cancel(cause)
	k.session.Unpark()
}

// recover makes a panic cost the socket, not the process.
func (k *socket) recover() {
	if v := recover(); v != nil {
		k.server.opts.Logger.Error("panic in a WebSocket", "panic", v)
		k.stop(closeError{websocket.StatusInternalError, "failed"})
	}
}

// closeError is why a socket is closed, as the close frame says it.
type closeError struct {
	code   websocket.StatusCode
	reason string
}

func (e closeError) Error() string { return e.reason }

var errLeft = errors.New("the client has left")

// closing is the close frame that ends a socket, 0 where there is nobody to read it.
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

// Send sends a batch, in messages that end where transactions do.
func (k *socket) Send(_ context.Context, b *feed.Batch) error {
	err := withBuffer(func(buf []byte) ([]byte, error) {
		k.messages.reset()
		buf, err := appendBatch(buf, b, &k.messages, k.piece)
		if err != nil {
			return buf, err
		}
		buf = k.messages.end(buf)
		ping := k.mustPing(b)
		if ping {
			buf = k.messages.ping(buf)
		}
		err = k.flush(buf)
		if ping {
			k.silent.Reset(stalled) // not before: to write it may have taken its time
		}
		return buf, err
	})
	for range b.Replies {
		<-k.slots
	}
	return err
}

// mustPing tells whether a ping goes with a batch, and counts it. Behind a proxy a socket
// can be written to long after the client has gone; and what is behind would be late to answer.
func (k *socket) mustPing(b *feed.Batch) bool {
	now := time.Now()
	if !b.Live || now.Sub(k.pinged) < k.beat/2 || !k.unanswered.CompareAndSwap(false, true) {
		return false
	}
	k.pinged = now
	return true
}

// Deliver is hub.Parked's.
func (k *socket) Deliver(b *feed.Batch, desk *hub.Desk) bool {
	m := k.server.memoOf(desk)
	made := m.messages.find(b)
	if made == nil {
		made = m.messages.oldest()
		m.framing.reset()
		buf, _ := appendBatch(m.sends.fresh(made.buf), b, &m.framing, nil)
		buf = m.framing.end(buf)
		made.keep(b, buf, m.framing.join(buf))
	}
	frames := made.frames
	ping := k.mustPing(b)
	if ping {
		frames = appendHeader(frames, opPing, 0)
	}
	took := k.link.attempt(m, k.raw, frames, k)
	if ping {
		k.silent.Reset(stalled)
	}
	for range b.Replies {
		<-k.slots
	}
	return took
}

// sent is a sender's.
func (k *socket) sent(left []byte) {
	if !k.link.sent(k.raw, left) {
		k.session.Unpark()
	}
}

// Leave is hub.Parked's.
func (k *socket) Leave() {
	if errors.Is(context.Cause(k.ctx), errLeft) {
		go k.finish()
	} else {
		go k.lane()
	}
}

// piece writes the messages that are whole, unless one is under way.
func (k *socket) piece(buf []byte) ([]byte, error) {
	if k.messages.from > 0 {
		return buf, nil
	}
	err := k.flush(buf)
	k.messages.reset()
	return buf[:0], err
}

func (k *socket) flush(buf []byte) error {
	if len(k.messages.all) == 0 {
		return nil
	}
	return k.link.send(k.messages.join(buf))
}

// End sends the server's last word, after the answers to what was written before.
func (k *socket) End(ctx context.Context, ended *hub.Ended) error {
	patience, cancel := context.WithTimeout(ctx, leaving)
	_ = k.unsaid.wait(patience) // an outcome that takes longer stays unknown to the client
	cancel()
	for {
		b, err := k.session.Next(ctx)
		if err != nil {
			break
		}
		if err := k.Send(ctx, b); err != nil {
			return err
		}
	}
	if ended.Reason == badFrame { // it was told in an error
		return closeError{closeBadFrame, badFrame}
	}
	if err := k.link.send(messageOf(feed.AppendEnd(nil, ended.Reason, ended.Detail, ended.Retry))); err != nil {
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
	case hub.EndExpired, hub.EndRevoked:
		code = closeUnauthenticated
	}
	return closeError{code, ended.Reason}
}

// pong answers a ping of the client's; false: the library must not.
func (k *socket) pong(_ context.Context, payload []byte) bool {
	k.link.pong(payload)
	return false
}

// ponged is called for each pong: whatever it answers, the peer is there.
func (k *socket) ponged(context.Context, []byte) { k.answered() }

func (k *socket) answered() {
	k.silent.Stop()
	k.unanswered.Store(false)
}

// watch has the socket read when there is something to read.
func (k *socket) watch() {
	if early := len(k.link.early) > 0; k.raw != nil {
		var ok bool
		if k.watched, ok = k.server.idle.watch(k.raw, k.watched, k.readable); ok {
			if early {
				go k.read(k.watched)
			}
			return
		}
	}
	go k.read(0)
}

// readable is called when there is something to read. It is read here, in one call for all that has come; what is
// no pong is left to a goroutine. By the library it took three calls for each message, and for each pong a
// goroutine that waits until a message follows: 2,000 changes a second of one socket, with five followers
// each, cost 43 µs of CPU a delivery like this, and 54 by the library (medians of 6 runs in turn).
func (k *socket) readable(id uint64) {
	if !k.reading.TryLock() {
		return // what came early is being read, and so will be what is there now
	}
	defer k.reading.Unlock()
	k.direct.Lock()
	defer k.direct.Unlock()
	if k.parting {
		return
	}
	if len(k.link.early) > 0 {
		return // who reads that is on the way
	}
	_ = withBuffer(func(b []byte) ([]byte, error) {
		b = slices.Grow(b, mostRead)[:mostRead]
		n, over := arrived(k.raw, b, false)
		if over { // without a close frame, so there is nobody to answer
			k.gone(errLeft)
		} else if came := k.pongs(b[:n]); len(came) > 0 {
			k.link.early = slices.Clone(came)
			go k.read(id)
		} else {
			k.server.idle.again(k.raw, id) // also where there is more, for others' turn
		}
		return b, nil
	})
}

// pongs takes the pongs that a client's bytes begin with.
func (k *socket) pongs(b []byte) (rest []byte) {
	for n := pongOf(b); n > 0; n = pongOf(b) {
		b = b[n:]
		k.answered()
	}
	return b
}

// read reads requests, until there is nothing to read, the client leaves, or it sends what can't
// be read.
func (k *socket) read(id uint64) {
	deepen()
	if k.readAll(id != 0) {
		k.server.idle.again(k.raw, id) // not while it is being read: readable would do nothing
	}
}

// readAll tells whether it has stopped because there is nothing more to read now.
func (k *socket) readAll(mayStop bool) (stopped bool) {
	k.reading.Lock()
	defer k.reading.Unlock()
	defer k.recover()
	for first := true; !k.over; first = false {
		message, more := k.whole()
		if message == nil {
			if mayStop && !first && !more {
				return true
			}
			kind, m, err := k.conn.Read(k.ctx)
			if err != nil {
				k.gone(err)
				return false
			}
			if kind != websocket.MessageText {
				if k.place() {
					k.bad("a message must be text")
				}
				return false
			}
			message = m
		}
		for line := range bytes.SplitSeq(message, []byte("\n")) {
			if len(bytes.TrimSpace(line)) == 0 {
				continue
			}
			if !k.place() || !k.request(line) {
				return false
			}
		}
	}
	return false
}

// whole takes a message out of what has come, nil if there is none that is whole; more: there is something else. The
// library knows nothing of it: when it has returned a message it is not in the middle of any, and holds what it
// has read of the next.
func (k *socket) whole() (message []byte, more bool) {
	k.direct.Lock()
	defer k.direct.Unlock()
	l := k.link
	if k.parting || l.read.Buffered() > 0 {
		return nil, true
	}
	came := k.pongs(l.early)
	message, n := textOf(came, k.server.opts.Body)
	if l.early = came[n:]; len(l.early) == 0 {
		l.early = nil
	}
	return message, l.early != nil
}

// gone ends the socket because it can't be read any more.
func (k *socket) gone(err error) {
	switch {
	case websocket.CloseStatus(err) != -1: // the client closes; it was answered
	case errors.Is(err, errLeft):
	case errors.Is(err, websocket.ErrMessageTooBig):
		// It was told, but closing at once, with bytes of it still unread, would reset the
		// connection, and the client would not see why.
		err = closeError{websocket.StatusMessageTooBig, "too large"}
	default:
		err = closeError{websocket.StatusProtocolError, "protocol error"}
	}
	k.stop(err)
	k.silent.Reset(2 * leaving) // a peer that takes nothing any more is not waited for
}
