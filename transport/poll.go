package transport

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// pollSink answers once: with what there is, or what comes while it waits.
type pollSink struct {
	to    pollAnswer
	open  []byte // the line open, until it was sent
	limit int
	count int
	cache string // Cache-Control of an answer that may be cached
}

// pollAnswer is the way of an answer to its client.
type pollAnswer interface {
	// begin takes what the header says; vary "" is that of all answers. It tells whether that was
	// all that the client needs, because it has the same answer already.
	begin(tag, cache, vary string) (same bool)
	// send sends a part, and last the end, or all where it is the only one.
	send(b []byte) error
	last(b []byte) error
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
			piece = nil // what goes with the header has a tag, over all of it
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
			stands := p.open
			if over {
				stands = buf[from:]
			}
			if p.begin(weakTag(stands), over && !b.Live) {
				return buf, errAnswered
			}
			p.open = nil
		}
		if !over {
			return buf, p.to.send(buf)
		}
		if err := p.to.last(buf); err != nil {
			return buf, err
		}
		return buf, errAnswered
	})
}

// Deliver is Send, for one of many who get the same: its lines and their tag are made once.
func (p *pollSink) Deliver(ctx context.Context, b *feed.Batch, m *memo) error {
	if p.open == nil || !b.Live || !common(b) {
		return p.Send(ctx, b)
	}
	made := m.lines.find(b)
	if made == nil {
		made = m.lines.oldest()
		buf, _ := appendBatch(made.buf[:0], b, lines{}, nil)
		made.keep(b, buf, buf)
		made.tag = weakTag(buf)
	}
	if p.begin(made.tag, false) {
		return errAnswered
	}
	return withBuffer(func(buf []byte) ([]byte, error) {
		buf = append(append(buf, p.open...), made.frames...)
		if err := p.to.last(buf); err != nil {
			return buf, err
		}
		return buf, errAnswered
	})
}

func (p *pollSink) piece(buf []byte) ([]byte, error) { return buf[:0], p.to.send(buf) }

// weakTag makes a tag that stands for b: for nothing else, where that is the line open.
func weakTag(b []byte) string {
	sum := sha256.Sum256(b)
	return `W/"` + hex.EncodeToString(sum[:12]) + `"`
}

func (p *pollSink) begin(tag string, cacheable bool) (same bool) {
	if cacheable {
		return p.to.begin(tag, p.cache, "Origin, Accept, Last-Event-ID, Authorization, Cookie") // who signs in next is somebody else
	}
	return p.to.begin(tag, "no-store", "")
}

// End answers with the server's last word.
func (p *pollSink) End(_ context.Context, ended *hub.Ended) error {
	if p.open != nil {
		p.begin(weakTag(p.open), false)
	}
	buf := feed.AppendEnd(append([]byte(nil), p.open...), ended.Reason, ended.Detail, ended.Retry)
	return p.to.last(append(buf, '\n'))
}

// plainPoll answers through net/http.
type plainPoll struct {
	*writer
	r *http.Request
}

func (p *plainPoll) begin(tag, cache, vary string) (same bool) {
	w := p.writer.w
	h := w.Header()
	if vary != "" {
		h.Set("Vary", vary)
	}
	begin(w, "application/x-ndjson", cache)
	h.Set("X-Accel-Buffering", "no")
	h.Set("ETag", tag)
	same = unchanged(p.r, tag)
	if same {
		w.WriteHeader(http.StatusNotModified)
	}
	return same
}
