package transport

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// poll answers once: with what there is, or what comes while it waits.
func poll(w http.ResponseWriter, r *http.Request, session *hub.Session, open feed.Open, limit int, cache string) error {
	sink := &pollSink{w: w, r: r, out: newWriter(w, r), open: appendLine(nil, open.Append(nil)), limit: limit, cache: cache}
	_ = pump(r.Context(), session, sink)
	return nil
}

type pollSink struct {
	w     http.ResponseWriter
	r     *http.Request
	out   *writer
	open  []byte // the frame open, until it was sent
	limit int
	count int
	cache string // Cache-Control of an answer that may be cached
}

// Send sends a batch as part of the answer. The answer is over when the client is
// live, or when it has its limit and its cursor can go on from there.
func (p *pollSink) Send(_ context.Context, b *feed.Batch) error {
	p.count += len(b.Items)
	over := b.Live || p.count >= p.limit && b.Resumes
	return withBuffer(func(buf []byte) ([]byte, error) {
		buf = append(buf, p.open...)
		from := len(buf)
		piece := p.piece
		if p.open != nil {
			piece = nil // what goes with the headers has a tag, over all of it
		}
		buf, err := appendBatch(buf, b, lines{}, piece)
		if err != nil {
			return buf, err
		}
		if over && !b.Live {
			buf = append(feed.AppendNext(buf, b.Cursor), '\n')
		}
		if p.open != nil {
			// The tag stands for the frames after open, whose session is another each
			// time. An answer of several batches can't know its own end yet.
			tag := `W/"` + session(p.open) + `"`
			if over {
				sum := sha256.Sum256(buf[from:])
				tag = `W/"` + hex.EncodeToString(sum[:12]) + `"`
			}
			if p.head(tag, over && !b.Live) {
				return buf, errAnswered
			}
			p.open = nil
		}
		if !over {
			return buf, p.out.send(buf)
		}
		if err := p.out.last(buf); err != nil {
			return buf, err
		}
		return buf, errAnswered
	})
}

func (p *pollSink) piece(buf []byte) ([]byte, error) { return buf[:0], p.out.send(buf) }

// session makes a tag that no other answer has.
func session(open []byte) string {
	sum := sha256.Sum256(open)
	return hex.EncodeToString(sum[:12])
}

// head sends the headers; it tells whether they were all that the client needs,
// because it has the same answer already.
func (p *pollSink) head(tag string, cacheable bool) (same bool) {
	cache := "no-store"
	h := p.w.Header()
	if cacheable {
		cache = p.cache
		h.Set("Vary", "Origin, Accept, Last-Event-ID, Authorization, Cookie") // who signs in next is somebody else
	}
	begin(p.w, "application/x-ndjson", cache)
	h.Set("X-Accel-Buffering", "no")
	h.Set("ETag", tag)
	if unchanged(p.r, tag) {
		p.w.WriteHeader(http.StatusNotModified)
		return true
	}
	return false
}

// End answers with the server's last word.
func (p *pollSink) End(_ context.Context, ended *hub.Ended) error {
	if p.open != nil {
		p.head(`W/"`+session(p.open)+`"`, false)
	}
	buf := feed.AppendEnd(append([]byte(nil), p.open...), ended.Reason, ended.Retry)
	return p.out.last(append(buf, '\n'))
}
