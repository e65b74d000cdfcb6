package transport

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// events sets frames apart as Server-Sent Events. A frame is one line of JSON, so no
// line break gets into data; a cursor has none either.
type events struct {
	cursor feed.Cursor // the last one
	text   []byte      // it as a text
}

func (*events) before(dst []byte, event string) []byte {
	if event == "change" { // as nearly always
		return append(dst, "event: change\ndata: "...)
	}
	dst = append(dst, "event: "...)
	dst = append(dst, event...)
	return append(dst, "\ndata: "...)
}

func (e *events) after(dst []byte, cursor *feed.Cursor) []byte {
	if cursor != nil {
		dst = append(append(dst, "\nid: "...), e.textOf(cursor)...)
	}
	return append(dst, "\n\n"...)
}

// textOf is a cursor as a text. In a replay most are one more than the one before, so it counts in the text: to write each
// anew was a tenth of the server's CPU.
func (e *events) textOf(cursor *feed.Cursor) []byte {
	last := len(e.text) - 1
	if e.cursor.Seq++; last >= 0 && *cursor == e.cursor && e.text[last] < '9' {
		e.text[last]++
	} else {
		e.cursor, e.text = *cursor, cursor.Append(e.text[:0])
	}
	return e.text
}

// sse answers with Server-Sent Events, until one side has enough, and closes the session. It
// returns at once where the connection can be taken over: the head of the answer then goes out
// with the first batch, from an attendant. 2,000 that come back at once have what they missed in
// about half the time that they took with a goroutine and a write more each.
func (s *Server) sse(w http.ResponseWriter, r *http.Request, session *hub.Session, open feed.Open, leave func()) error {
	begin(w, "text/event-stream", "no-store, no-transform")
	w.Header().Set("X-Accel-Buffering", "no")
	first := func(b []byte) []byte {
		e := new(events)
		return e.after(open.Append(e.before(append(b, "retry: 1000\n\n"...), "open")), nil)
	}
	if k := s.takeOver(w, r, session, leave); k != nil {
		_ = withBuffer(func(b []byte) ([]byte, error) {
			b = appendHeadOf(b, w.Header(), k.chunked)
			n := len(b)
			b = first(k.room(b))
			piece := k.piece(b[n:])
			k.left = append(append(make([]byte, 0, n+len(piece)), b[:n]...), piece...)
			return b, nil
		})
		s.streams.add()
		k.watch()
		if !session.Await() {
			go k.lane()
		}
		return nil
	}
	defer leave()
	defer session.Close()
	out := newWriter(w, r)
	if err := out.send(first(nil)); err != nil {
		return nil // the client is gone
	}
	// Whatever ends it from here on has no client to be told of it.
	_ = pump(r.Context(), session, &sseSink{out})
	return nil
}

// sseSink sends a stream through net/http: one that shares its connection with others.
type sseSink struct{ out *writer }

func (s *sseSink) Send(_ context.Context, b *feed.Batch) error {
	return withBuffer(func(buf []byte) ([]byte, error) {
		buf, err := appendBatch(buf, b, new(events), s.piece)
		if err == nil && len(buf) > 0 {
			err = s.out.send(buf)
		}
		return buf, err
	})
}

func (s *sseSink) piece(buf []byte) ([]byte, error) { return buf[:0], s.out.send(buf) }

func (s *sseSink) End(_ context.Context, ended *hub.Ended) error {
	return s.out.send(endEvent(nil, ended))
}

func endEvent(dst []byte, ended *hub.Ended) []byte {
	e := new(events)
	return e.after(feed.AppendEnd(e.before(dst, "end"), ended.Reason, ended.Detail, ended.Retry), nil)
}

// stream is an event stream on a connection of its own, which was taken over from net/http:
// that keeps two buffers, a request and a goroutine for as long as it answers, 27 KB in all.
type stream struct {
	// Static after construction.
	server  *Server
	conn    net.Conn
	raw     syscall.RawConn // nil: it can't be parked
	chunked bool            // HTTP/1.1; 1.0 ends with the connection
	session *hub.Session
	leave   func()
	watched uint64 // 0: a goroutine does it

	// Owned by lane, or by whoever serves it parked.
	left  []byte // what must be written first
	waits bool   // what was delivered is not sent yet

	// A context costs 200 bytes, and while it is parked nobody waits for one.
	mu     sync.Mutex
	over   bool               // guarded by mu: its client is gone
	ctx    context.Context    // guarded by mu: lane's, nil while it is parked
	cancel context.CancelFunc // guarded by mu
}

// takeOver takes the connection over, nil where that can't be.
func (s *Server) takeOver(w http.ResponseWriter, r *http.Request, session *hub.Session, leave func()) *stream {
	if r.ProtoMajor != 1 {
		return nil
	}
	t, err := take(w)
	if err != nil {
		return nil
	}
	k := &stream{server: s, conn: t.conn, raw: rawSocket(t.conn), chunked: r.ProtoMinor > 0, session: session, leave: leave, watched: t.watched}
	if k.raw != nil {
		session.Park(k)
	}
	return k
}

// appendHeadOf appends the head of an answer that was taken over.
func appendHeadOf(dst []byte, h http.Header, chunked bool) []byte {
	version := "HTTP/1.1" // the client's, as net/http answers: an old proxy must not look for chunks
	if !chunked {
		version = "HTTP/1.0"
	}
	dst = append(append(dst, version...), " 200 OK\r\nDate: "...)
	dst = time.Now().UTC().AppendFormat(dst, http.TimeFormat)
	dst = append(dst, "\r\nConnection: close\r\n"...)
	if chunked {
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	}
	return append(appendFields(dst, h), "\r\n"...)
}

// appendFields appends the fields of a head, each with a line of its own. http.Header.Write sorts them as well: of 2,000
// that came back at once it took 2 % of the server's CPU.
func appendFields(dst []byte, h http.Header) []byte {
	for name, values := range h {
		for _, v := range values {
			if strings.ContainsAny(v, "\r\n") {
				continue // it would end the line: nothing of ours does
			}
			dst = append(append(append(append(dst, name...), ": "...), v...), "\r\n"...)
		}
	}
	return dst
}

// lane runs a stream that is not parked, to its end or until it is.
func (k *stream) lane() {
	defer func() {
		if v := recover(); v != nil {
			k.server.opts.Logger.Error("panic in an event stream", "panic", v)
			k.finish()
		}
	}()
	ctx, exit := k.enter()
	defer exit()
	left := k.left
	k.left = nil
	_, err := k.conn.Write(left)
	if err == nil {
		err = pump(ctx, k.session, k)
	}
	if !errors.Is(err, hub.ErrParked) {
		k.finish()
	}
}

// enter makes the context of a lane, which ends with the client. The request's ends with the handler.
func (k *stream) enter() (ctx context.Context, exit func()) {
	ctx, cancel := context.WithCancel(context.Background())
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.over {
		cancel()
	}
	k.ctx, k.cancel = ctx, cancel
	return ctx, func() {
		cancel()
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.ctx == ctx { // else the next lane has begun
			k.ctx, k.cancel = nil, nil
		}
	}
}

// finish lets go of all that the stream holds. Its client need not be told why.
func (k *stream) finish() {
	k.session.Close()
	k.leave()
	k.server.idle.forget(k.watched)
	_ = k.conn.Close()
	k.server.streams.done()
}

// watch ends the stream when its client is gone. Whatever else a client sends is not for us.
func (k *stream) watch() {
	if k.raw != nil {
		var ok bool
		if k.watched, ok = k.server.idle.watch(k.raw, k.watched, k.readable); ok {
			return
		}
	}
	go func() {
		var b [1]byte
		for {
			if _, err := k.conn.Read(b[:]); err != nil {
				k.gone()
				return
			}
		}
	}()
}

// readable is called when there is something to read.
func (k *stream) readable(id uint64) {
	over := false
	_ = withBuffer(func(b []byte) ([]byte, error) {
		b = slices.Grow(b, leastRead)
		_, over = arrived(k.raw, b[:cap(b)], false)
		return b, nil
	})
	if over {
		k.gone()
		return
	}
	k.server.idle.again(k.raw, id)
}

func (k *stream) gone() {
	k.mu.Lock()
	k.over = true
	if k.cancel != nil {
		k.cancel()
	}
	k.mu.Unlock()
	k.session.Unpark()
}

// chunkRoom is room for a chunk's size: 7 digits and a line end.
const chunkRoom = 9

// room makes room for what goes before a piece.
func (k *stream) room(dst []byte) []byte { return append(dst, make([]byte, chunkRoom)...) }

// piece is what is to be written for a piece, which begins with room.
func (k *stream) piece(buf []byte) []byte { return unchunk(chunk(buf), k.chunked) }

// chunk makes a chunk of a buffer that begins with room.
func chunk(buf []byte) []byte {
	var size [chunkRoom]byte
	head := append(strconv.AppendInt(size[:0], int64(len(buf)-chunkRoom), 16), "\r\n"...)
	start := chunkRoom - len(head)
	copy(buf[start:], head)
	return append(buf, "\r\n"...)[start:]
}

// unchunk takes the size off again for a client that knows no chunks.
func unchunk(b []byte, chunked bool) []byte {
	if chunked {
		return b
	}
	return b[slices.Index(b, '\n')+1 : len(b)-2]
}

// Send sends a batch, waiting for the client where it must.
func (k *stream) Send(_ context.Context, b *feed.Batch) error {
	var now attempt // first: the deadline of a write that waits, and the runtime's poller, are 4 % of a replay
	write := func(b []byte) (err error) {
		if k.raw != nil {
			b = now.write(k.raw, b)
		}
		if len(b) > 0 {
			_, err = k.conn.Write(b)
		}
		return err
	}
	return withBuffer(func(buf []byte) ([]byte, error) {
		buf, err := appendBatch(k.room(buf), b, new(events), func(buf []byte) ([]byte, error) {
			return buf[:chunkRoom], write(k.piece(buf))
		})
		if err == nil && len(buf) > chunkRoom {
			err = write(k.piece(buf))
		}
		return buf, err
	})
}

// End sends the server's last word.
func (k *stream) End(_ context.Context, ended *hub.Ended) error {
	last := k.piece(endEvent(k.room(nil), ended))
	if k.chunked {
		last = append(last, "0\r\n\r\n"...)
	}
	_, err := k.conn.Write(last)
	return err
}

// Deliver is hub.Parked's.
func (k *stream) Deliver(b *feed.Batch, desk *hub.Desk) bool {
	m := k.server.memoOf(desk)
	made := m.events.find(b)
	if made == nil {
		made = m.events.oldest()
		buf, _ := appendBatch(k.room(m.sends.fresh(made.buf)), b, new(events), nil)
		made.keep(b, buf, chunk(buf))
	}
	frames := unchunk(made.frames, k.chunked)
	if k.waits {
		if m.sends.flush(); len(k.left) > 0 {
			k.left = append(k.left, frames...)
			return false
		}
	}
	var left []byte
	left, k.waits = m.sends.join(k.raw, k.left, frames, k)
	k.left = slices.Clone(left)
	return len(left) == 0
}

// sent is a sender's.
func (k *stream) sent(left []byte) {
	k.waits, k.left = false, slices.Clone(left)
	if len(left) > 0 {
		k.session.Unpark()
	}
}

// Leave is hub.Parked's.
func (k *stream) Leave() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.over {
		go k.finish()
	} else {
		go k.lane()
	}
}
