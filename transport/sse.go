package transport

import (
	"context"
	"net/http"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// events sets frames apart as Server-Sent Events. A frame is one line of JSON, so no
// line break gets into data; a cursor has none either.
type events struct{}

func (events) before(dst []byte, event string) []byte {
	dst = append(dst, "event: "...)
	dst = append(dst, event...)
	return append(dst, "\ndata: "...)
}

func (events) after(dst []byte, cursor *feed.Cursor) []byte {
	if cursor != nil {
		dst = cursor.Append(append(dst, "\nid: "...))
	}
	return append(dst, "\n\n"...)
}

// sse answers with Server-Sent Events, until one side has enough.
func sse(w http.ResponseWriter, r *http.Request, session *hub.Session, open feed.Open) error {
	begin(w, "text/event-stream", "no-store, no-transform")
	w.Header().Set("X-Accel-Buffering", "no")
	out := newWriter(w, r)
	first := events{}.before([]byte("retry: 1000\n\n"), "open")
	if err := out.send(events{}.after(open.Append(first), nil)); err != nil {
		return nil // the client is gone
	}
	// Whatever ends it from here on has no client to be told of it.
	_ = pump(r.Context(), session, &sseSink{out})
	return nil
}

type sseSink struct{ out *writer }

func (s *sseSink) Send(_ context.Context, b *feed.Batch) error {
	return withBuffer(func(buf []byte) ([]byte, error) {
		buf, err := appendBatch(buf, b, events{}, s.piece)
		if err == nil && len(buf) > 0 {
			err = s.out.send(buf)
		}
		return buf, err
	})
}

func (s *sseSink) piece(buf []byte) ([]byte, error) { return buf[:0], s.out.send(buf) }

func (s *sseSink) End(_ context.Context, ended *hub.Ended) error {
	buf := feed.AppendEnd(events{}.before(nil, "end"), ended.Reason, ended.Retry)
	return s.out.send(events{}.after(buf, nil))
}
