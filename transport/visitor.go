package transport

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport/gate"
)

// visitor is a client that polls over and over on one connection, which was taken over from
// net/http: that keeps 28 KB and a goroutine for a poll that is held, and takes most of the
// CPU of one that is answered.
//
// No request is parsed here. One that is, but for its query, byte for byte the poll that
// net/http read before on this connection is that poll with another cursor. Anything else goes
// back to net/http with its bytes, and so does what must be refused: who asks for something
// wrong is answered as everywhere.
type visitor struct {
	guest

	// Static after construction.
	first         *http.Request // as net/http read it, without its context
	before, after string        // what stands around the query of a request that is known; "": none is
	call          call
	heartbeat     time.Duration
	ctx           context.Context
	cancel        context.CancelFunc

	// Owned by whoever serves the request under way.
	known    known
	session  *hub.Session
	leave    func()
	sink     pollSink
	open     []byte // the line open of whichever session
	id       int    // where the session's ID stands in it
	head     *head  // of the answer, nil once it was sent
	chunked  bool
	answered bool // the answer is complete
	attempt  attempt
	sends    *sends // not nil: it is parked, and writes do not wait for the client
	waits    bool   // what was written last is not sent yet
	left     []byte // what they leave then
}

// visit takes a poll's connection over and has it answered. false: nothing was done.
func (s *Server) visit(w http.ResponseWriter, r *http.Request, c call, session *hub.Session, f *feedRequest, open feed.Open, leave func()) bool {
	if r.ContentLength != 0 {
		return false
	}
	v := &visitor{call: c, heartbeat: f.heartbeat, session: session, leave: leave}
	asked, ok := v.takeOver(s, w, r, v)
	if !ok {
		return false
	}
	v.before, v.after = around(string(asked), r)
	v.ctx, v.cancel = context.WithCancel(context.Background())
	v.first = (&http.Request{ // without what routing has left in it
		Method: r.Method, URL: r.URL, Proto: r.Proto, ProtoMajor: r.ProtoMajor, ProtoMinor: r.ProtoMinor,
		Header: r.Header, Body: http.NoBody, Host: r.Host, RemoteAddr: r.RemoteAddr, RequestURI: r.RequestURI,
	}).WithContext(v.ctx)
	v.call.papers = papers{} // nothing asks for them
	v.know(f)
	v.open = appendLine(nil, open.Append(nil))
	v.id = bytes.Index(v.open, []byte(session.ID))
	v.sink = pollSink{to: v, open: v.open, limit: f.limit, cache: s.opts.PollCache}
	v.state = held
	if v.watch(); v.watched != 0 {
		session.Park(v)
	}
	if !session.Await() {
		go v.serve()
	}
	return true
}

// around is what stands around the query of a request, nothing where some of it stands in the path.
func around(request string, r *http.Request) (before, after string) {
	path, query, ok := strings.Cut(r.RequestURI, "?")
	before = "GET " + path + "?"
	after, found := strings.CutPrefix(request, before+query)
	if !ok || !found || query != r.URL.RawQuery || !strings.HasPrefix(after, " HTTP/1.1\r\n") || strings.Index(after, "\r\n\r\n") != len(after)-4 {
		return "", ""
	}
	return before, strings.Clone(after)
}

// queryOf is the query of a request that is known.
func (v *visitor) queryOf(request []byte) (query []byte, ok bool) {
	if v.before == "" || len(request) < len(v.before)+len(v.after) {
		return nil, false
	}
	end := len(request) - len(v.after)
	if string(request[:len(v.before)]) != v.before || string(request[end:]) != v.after {
		return nil, false
	}
	query = request[len(v.before):end]
	for _, c := range query {
		if c <= ' ' || c >= 0x7f {
			return nil, false
		}
	}
	return query, true
}

// known is a query whose answer needs nothing to be asked: it differs from one that was let in
// by its cursor alone, and what the sender may do stays the same until the grant ends.
type known struct {
	before, after string // what stands around the cursor; "": nothing is known
	feed          feedRequest
}

// know remembers the query that was let in.
func (v *visitor) know(f *feedRequest) {
	v.known = known{}
	if !v.server.steady(v.call.grant) || len(f.starts) != 1 || len(f.starts[0].Cursors) != 1 {
		return
	}
	cursor := f.starts[0].Cursors[0]
	before, after, found := strings.Cut(v.first.URL.RawQuery, cursor)
	if !found || !bare(cursor) || strings.Contains(after, cursor) {
		return
	}
	// That it is the cursor, and nothing else that reads the same, shows with another one.
	other := cursor + "0"
	r := *v.first
	r.URL = &url.URL{RawQuery: before + other + after}
	q, err := query(&r)
	if err != nil {
		return
	}
	g, err := readFeedRequest(&r, q)
	if err != nil || len(g.starts) != 1 || g.starts[0].Collection != f.starts[0].Collection || !slices.Equal(g.starts[0].Cursors, []string{other}) {
		return
	}
	v.known = known{before: before, after: after, feed: g} // g's, as its cursor is written over
}

// bare tells whether a query has a text as it is.
func bare[T string | []byte](text T) bool {
	for i := range len(text) {
		switch c := text[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_':
		default:
			return false
		}
	}
	return len(text) > 0
}

// called is a host's: it ends what is held if the client is gone.
func (v *visitor) called() {
	var b [1]byte
	if _, over := arrived(v.raw, b[:], true); over {
		v.cancel()
		v.session.Unpark()
	}
}

// next reads a request, and has it answered. It does not wait: one that is known is parked at once,
// for which a goroutine, its stack and what hands it over would cost a fifth of a poll.
func (v *visitor) next() {
	defer v.recover()
	_ = withBuffer(func(b []byte) ([]byte, error) {
		b = slices.Grow(b, mostAsked)[:mostAsked]
		n, over := arrived(v.raw, b, false)
		if n == len(b) { // there may be more, which nobody is told of
			v.mu.Lock()
			v.again()
			v.mu.Unlock()
		}
		switch {
		case over:
			v.close()
		case n == 0: // there was nothing
			v.await(v.patience)
		case v.repeat(b[:n]):
			if !v.session.Await() {
				go v.serve()
			}
		default:
			go v.ask(slices.Clone(b[:n]))
		}
		return b, nil
	})
}

// repeat lets a request in that is known. false: ask has to look at it.
func (v *visitor) repeat(request []byte) bool {
	k := &v.known
	query, ok := v.queryOf(request)
	if !ok || k.before == "" || v.server.changed(v.call.hub) || len(query) < len(k.before)+len(k.after) {
		return false
	}
	end := len(query) - len(k.after)
	if string(query[:len(k.before)]) != k.before || string(query[end:]) != k.after {
		return false
	}
	cursor := query[len(k.before):end]
	// One of another epoch is no resumption, and counts against a limit.
	epoch := string(v.call.hub.EpochOf(v.call.grant))
	if !bare(cursor) || !bytes.HasPrefix(cursor, []byte(epoch)) || len(cursor) == len(epoch) || cursor[len(epoch)] != '-' || v.server.opts.Gate.Watch.Admit(gate.Feed) != nil {
		return false
	}
	k.feed.starts[0].Cursors[0] = string(cursor)
	return v.enter(&k.feed) == nil
}

// ask answers a request that was read, or gives it back.
func (v *visitor) ask(request []byte) {
	defer v.recover()
	deepen()
	if v.admit(request) {
		v.answer()
	} else {
		v.giveBack(request)
	}
}

// deepen makes the stack as large as it will be needed, while there is next to nothing on it: it was
// copied twice for each request otherwise, which was a tenth of what a poll cost.
//
//go:noinline
func deepen() {
	var room [6 << 10]byte
	runtime.KeepAlive(&room)
}

// admit lets a request in as admitFeed does. false: net/http has to look at it.
func (v *visitor) admit(request []byte) bool {
	raw, ok := v.queryOf(request)
	if !ok || v.server.changed(v.call.hub) {
		return false
	}
	q, err := url.ParseQuery(string(raw))
	if err != nil || q.Has("ticket") {
		return false
	}
	at := *v.first.URL
	at.RawQuery = string(raw)
	v.first.URL, v.first.RequestURI = &at, v.before[len("GET "):]+at.RawQuery
	f, err := readFeedRequest(v.first, q)
	if err != nil || f.transport != pollName || f.heartbeat != v.heartbeat {
		return false
	}
	epoch := v.call.hub.EpochOf(v.call.grant)
	if v.server.letIn(v.first, q, &v.call) != nil || v.call.hub.EpochOf(v.call.grant) != epoch {
		return false
	}
	v.call.papers = papers{}
	v.know(&f)
	return v.enter(&f) == nil
}

// enter opens the session of a request that was let in.
func (v *visitor) enter(f *feedRequest) error {
	session, leave, err := v.server.openFeed(v.call, f)
	if err != nil {
		return err
	}
	copy(v.open[v.id:], session.ID)
	v.strikes, v.session, v.leave = 0, session, leave
	v.sink = pollSink{to: v, open: v.open, limit: f.limit, cache: v.server.opts.PollCache}
	session.Park(v)
	v.mu.Lock()
	if v.state = held; v.more > 0 { // something more came, or the end
		v.called()
	}
	v.mu.Unlock()
	return nil
}

// serve answers the request under way, unless it panics.
func (v *visitor) serve() {
	defer v.recover()
	deepen()
	v.answer()
}

// recover makes a panic cost the connection, not the process.
func (v *visitor) recover() {
	if e := recover(); e != nil {
		v.server.opts.Logger.Error("panic in a long poll", "panic", e)
		v.release()
		v.close()
	}
}

// tired is a host's.
func (v *visitor) tired() { v.close() }

// ended is a host's.
func (v *visitor) ended() { v.cancel() }

// answer answers the request under way, or parks it.
func (v *visitor) answer() {
	var err error
	if left := v.left; left != nil {
		v.left = nil
		_, err = v.conn.Write(left)
	}
	if err == nil && !v.answered {
		err = pump(v.ctx, v.session, v)
	}
	switch {
	case errors.Is(err, hub.ErrParked):
	case err != nil:
		v.release()
		v.close()
	default:
		v.done()
	}
}

// release lets go of what the request under way holds.
func (v *visitor) release() {
	v.mu.Lock()
	v.state = busy // so that nobody else looks at the session any more
	v.mu.Unlock()
	if v.session != nil {
		v.session.Close()
		v.leave()
	}
	v.session, v.leave, v.head, v.left = nil, nil, nil, nil
	v.chunked, v.answered = false, false
}

// done waits for the next request, once one is answered.
func (v *visitor) done() {
	v.release()
	v.goOn()
}

// Send is a Sink's.
func (v *visitor) Send(ctx context.Context, b *feed.Batch) error { return v.sink.Send(ctx, b) }

// End is a Sink's.
func (v *visitor) End(ctx context.Context, ended *hub.Ended) error {
	v.parting = true
	return v.sink.End(ctx, ended)
}

// Deliver is hub.Parked's.
func (v *visitor) Deliver(b *feed.Batch, desk *hub.Desk) bool {
	m := v.server.memoOf(desk)
	v.sends = &m.sends
	err := v.sink.Deliver(v.ctx, b, m)
	v.sends = nil
	if v.answered = errors.Is(err, errAnswered); v.answered {
		v.mu.Lock()
		v.state = busy // what comes now is the next request
		v.mu.Unlock()
	}
	return !v.answered && len(v.left) == 0
}

// sent is a sender's.
func (v *visitor) sent(left []byte) {
	v.waits, v.left = false, append(v.left, left...)
	if len(left) > 0 {
		v.session.Unpark()
	}
}

// Leave is hub.Parked's.
func (v *visitor) Leave() {
	if v.answered && len(v.left) == 0 {
		v.done()
		return
	}
	go v.serve()
}

// head is what stands before an answer.
type head struct {
	tag, cache, vary string
	same             bool
}

// begin is a pollAnswer's.
func (v *visitor) begin(tag, cache, vary string) (same bool) {
	v.head = &head{tag, cache, vary, unchanged(v.first, tag)}
	if !v.head.same {
		return false
	}
	_ = withBuffer(func(b []byte) ([]byte, error) {
		b = append(v.appendHead(b), "\r\n"...)
		return b, v.write(b)
	})
	return true
}

// appendHead appends the head of an answer, but for its end, if it was not sent.
func (v *visitor) appendHead(dst []byte) []byte {
	h := v.head
	if h == nil {
		return dst
	}
	v.head = nil
	if h.same {
		dst = append(dst, "HTTP/1.1 304 Not Modified"...)
	} else {
		dst = append(dst, "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson"...)
	}
	dst = append(append(dst, "\r\nCache-Control: "...), h.cache...)
	dst = append(append(dst, "\r\nETag: "...), h.tag...)
	dst = append(dst, "\r\nX-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n"...)
	vary := v.vary
	if h.vary != "" {
		vary = field("Vary", h.vary)
	}
	return v.appendCommon(dst, vary)
}

// send is a pollAnswer's.
func (v *visitor) send(b []byte) error {
	return withBuffer(func(out []byte) ([]byte, error) {
		out = v.appendChunk(out, b)
		return out, v.write(out)
	})
}

// appendChunk appends a chunk, after the head. Of nothing it makes none: it would end the answer.
func (v *visitor) appendChunk(dst, b []byte) []byte {
	if len(b) == 0 {
		return dst
	}
	if !v.chunked {
		dst = append(v.appendHead(dst), "Transfer-Encoding: chunked\r\n\r\n"...)
		v.chunked = true
	}
	dst = append(strconv.AppendInt(dst, int64(len(b)), 16), "\r\n"...)
	return append(append(dst, b...), "\r\n"...)
}

// last is a pollAnswer's.
func (v *visitor) last(b []byte) error {
	return withBuffer(func(out []byte) ([]byte, error) {
		if v.chunked {
			out = append(v.appendChunk(out, b), "0\r\n\r\n"...)
		} else {
			out = append(v.appendHead(out), "Content-Length: "...)
			out = append(strconv.AppendInt(out, int64(len(b)), 10), "\r\n\r\n"...)
			out = append(out, b...)
		}
		return out, v.write(out)
	})
}

// write writes what the socket takes at once, which mostly is all: without the deadlines that
// a write which may wait needs.
func (v *visitor) write(b []byte) error {
	if v.waits {
		v.sends.flush()
	}
	if len(v.left) > 0 {
		v.left = append(v.left, b...)
		return nil
	}
	if v.sends != nil {
		b, v.waits = v.sends.copied(v.raw, b, v)
		v.left = append([]byte(nil), b...)
		return nil
	}
	if v.raw != nil {
		if b = v.attempt.write(v.raw, b); len(b) == 0 {
			return nil
		}
	}
	_, err := v.conn.Write(b)
	return err
}
