package transport

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Sink is one transport's way to send a batch: framed, in few writes, flushed. It is
// called from one goroutine, in order.
type Sink interface {
	// Send sends a batch. errAnswered: it was the last.
	Send(ctx context.Context, b *feed.Batch) error
	// End sends the server's last word.
	End(ctx context.Context, ended *hub.Ended) error
}

// errAnswered ends a pump whose answer is complete.
var errAnswered = errors.New("answered")

// pump is the loop of every session on every transport: all that there is, in one
// go, then look again. Where the sink can send without waiting, a session that has
// nothing to send is parked, and the loop ends with hub.ErrParked until it has to go on.
func pump(ctx context.Context, s *hub.Session, sink Sink) error {
	for {
		b, err := s.Next(ctx)
		if err == nil {
			err = sink.Send(ctx, b)
		}
		var ended *hub.Ended
		switch {
		case err == nil:
		case errors.Is(err, errAnswered):
			return nil
		case errors.As(err, &ended):
			return sink.End(ctx, ended)
		default:
			return err
		}
	}
}

// feed answers GET /v1/{tenant}/feed.
func (s *Server) feed(w http.ResponseWriter, r *http.Request, q url.Values, c call) error {
	f, err := readFeedRequest(r, q)
	if err != nil {
		return err
	}
	session, leave, err := s.openFeed(c, &f)
	if err != nil {
		return err
	}
	open := feed.Open{
		Epoch: c.hub.EpochOf(c.grant), Session: session.ID, Heartbeat: int(f.heartbeat.Seconds()), Server: s.opts.Version,
		Transports: []string{websocketName, sseName, pollName}, Network: s.network(c.client),
	}
	if !upgradable(r) {
		open.Transports = open.Transports[1:]
	}
	if f.transport == websocketName {
		return s.websocket(w, r, c, session, open, f.heartbeat, leave)
	}
	if f.transport == sseName {
		return s.sse(w, r, session, open, leave)
	}
	if s.visit(w, r, c, session, &f, open, leave) {
		return nil
	}
	defer leave()
	defer session.Close()
	_ = pump(r.Context(), session, &pollSink{to: &plainPoll{newWriter(w, r), r}, open: appendLine(nil, open.Append(nil)), limit: f.limit, cache: s.opts.PollCache})
	return nil
}

// openFeed opens a feed's session. leave is to be called once it is closed.
func (s *Server) openFeed(c call, f *feedRequest) (session *hub.Session, leave func(), err error) {
	opts := hub.SessionOptions{Heartbeat: f.heartbeat, Tick: true}
	if f.transport == pollName {
		opts = hub.SessionOptions{Hold: f.wait, Limit: f.limit}
	}
	leave = func() {}
	if s.opts.Gate.Feeds != nil {
		if leave, err = s.opts.Gate.Feeds.Enter(c.client); err != nil {
			return nil, nil, err
		}
	}
	if session, err = c.hub.Open(c.grant, c.tenant, f.starts, opts); err != nil {
		leave()
		return nil, nil, err
	}
	return session, leave, nil
}

// framing is how a transport sets frames apart.
type framing interface {
	// before and after append what stands around a frame of a type; cursor is the
	// feed's up to and including the frame, nil where the frame does not move it.
	before(dst []byte, event string) []byte
	after(dst []byte, cursor *feed.Cursor) []byte
}

// pieceSize is about how much is assembled before it is written: what a slow client
// costs beside its socket. A transaction on a WebSocket, or an answer that needs a tag,
// may need more. It is a little less than the 64 KiB that go through the kernel's TCP as one:
// each such trip took 9 us over loopback, whatever it bore, and a replay of 100,000 changes 21.8 ms with 32 KiB,
// 18.1 with 48, 17.0 with 60 or 62, 17.8 with 90 or 120 (medians of two runs of a hundred each).
const pieceSize = 62 << 10

// appendBatch appends the frames of a batch, in their order. Whenever a change has
// brought dst to pieceSize, full may write what is there, and returns what is left.
func appendBatch(dst []byte, b *feed.Batch, f framing, full func(dst []byte) ([]byte, error)) ([]byte, error) {
	for _, reply := range b.Replies {
		dst = f.after(append(f.before(dst, "reply"), reply...), nil)
	}
	for _, reset := range b.Resets {
		dst = f.after(reset.Append(f.before(dst, "reset")), nil)
	}
	cursor := b.Cursor
	for _, item := range b.Items {
		dst = item.Append(f.before(dst, "change"))
		if item.More {
			dst = f.after(dst, nil)
		} else {
			cursor.Seq = item.Seq
			dst = f.after(dst, &cursor)
		}
		if len(dst) >= pieceSize && full != nil {
			var err error
			if dst, err = full(dst); err != nil {
				return dst, err
			}
		}
	}
	if b.Announce {
		dst = f.after(feed.AppendLive(f.before(dst, "live"), b.Cursor), &b.Cursor)
	}
	if b.Tick {
		dst = f.after(append(f.before(dst, "tick"), feed.TickFrame...), nil)
	}
	return dst, nil
}

// lines sets frames apart by line ends: long poll.
type lines struct{}

func (lines) before(dst []byte, _ string) []byte      { return dst }
func (lines) after(dst []byte, _ *feed.Cursor) []byte { return append(dst, '\n') }
func appendLine(dst []byte, frame []byte) []byte      { return append(append(dst, frame...), '\n') }

// buffers are for assembling what is written. One that a large batch has grown beyond a piece
// is not kept.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

const bufferKept = 96 << 10 // a piece, as append grows it

func withBuffer(fn func(b []byte) ([]byte, error)) error {
	p := buffers.Get().(*[]byte)
	b, err := fn((*p)[:0])
	*p = b
	keep(p)
	return err
}

// keep gives a buffer back. One that has no memory would be what the next gets, who had to make some.
func keep(b *[]byte) {
	if n := cap(*b); 0 < n && n <= bufferKept {
		buffers.Put(b)
	}
}
