package transport

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// historyReaders is how many requests read the history at a time, so that they leave
// disk and processors to the feed; historyWait is how long others wait in line.
const (
	historyReaders = 2
	historyWait    = 5 * time.Second
)

// history makes what answers GET /v1/{tenant}/history: a page of changes.
func (s *Server) history() func(w http.ResponseWriter, r *http.Request, c call) error {
	in := make(chan struct{}, historyReaders)
	return func(w http.ResponseWriter, r *http.Request, c call) error {
		q, err := readHistoryQuery(r)
		if err != nil {
			return err
		}
		page, err := readHistory(r, c, q, in)
		if err != nil {
			return err
		}
		return writeHistory(w, r, page)
	}
}

// readHistory waits for its turn, which ends before anything is sent to a client that may
// be slow.
func readHistory(r *http.Request, c call, q hub.HistoryQuery, in chan struct{}) (hub.HistoryPage, error) {
	timeout := time.NewTimer(historyWait)
	defer timeout.Stop()
	select {
	case in <- struct{}{}:
	case <-r.Context().Done():
		return hub.HistoryPage{}, r.Context().Err()
	case <-timeout.C:
		p := newProblem(hub.Unavailable, "too many are reading the history; try again in a few seconds")
		p.retry = historyWait
		return hub.HistoryPage{}, p
	}
	defer func() { <-in }()
	return c.hub.History(r.Context(), c.grant, c.tenant, q)
}

func readHistoryQuery(r *http.Request) (h hub.HistoryQuery, err error) {
	q, err := query(r)
	if err != nil {
		return h, err
	}
	h.Collections = q["c"]
	if h.Key, err = single(q, "key"); err != nil {
		return h, err
	}
	if q.Has("key") && h.Key == "" {
		return h, newProblem(hub.BadName, "%s", feed.CheckKey(""))
	}
	if h.After, err = single(q, "after"); err != nil {
		return h, err
	}
	if h.From, h.Since, err = bound(q, "from", func(t time.Time) int64 { return t.Add(time.Millisecond - 1).UnixMilli() }); err != nil {
		return h, err
	}
	if h.To, h.Until, err = bound(q, "to", time.Time.UnixMilli); err != nil {
		return h, err
	}
	h.Limit, err = number(q, "limit", 1, limitMost, limitDefault)
	return h, err
}

// bound reads an end of a range: a sequence, or a time, which milli makes milliseconds.
func bound(q url.Values, name string, milli func(time.Time) int64) (feed.Seq, int64, error) {
	text, err := single(q, name)
	if err != nil || !q.Has(name) {
		return 0, 0, err
	}
	if n, err := strconv.ParseUint(text, 10, 53); err == nil && n > 0 && !strings.HasPrefix(text, "0") {
		return feed.Seq(n), 0, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return 0, 0, newProblem(hub.BadRequest, "%s=%s is neither a sequence from 1 nor a time like 2026-01-31T12:00:00Z (a + in it must be written %%2B)", name, clip(text))
	}
	// 0 is no bound, and no change was written before 1970.
	return 0, max(milli(t), 1), nil
}

// writeHistory sends a page. Its changes are the feed's frames without their type.
func writeHistory(w http.ResponseWriter, r *http.Request, page hub.HistoryPage) error {
	begin(w, "application/json", "no-store")
	out := newWriter(w, r)
	return withBuffer(func(b []byte) ([]byte, error) {
		b = append(b, `{"changes":[`...)
		for i, c := range page.Changes {
			if i > 0 {
				b = append(b, ',')
			}
			frame := strings.TrimPrefix(c.Frame(), `{"type":"change",`)
			b = append(append(b, '{'), frame[:len(frame)-1]...)
			b = append(append(append(b, `,"epoch":"`...), c.Epoch...), `"}`...)
			if len(b) > bufferKept {
				if out.send(b) != nil {
					return b, nil // the client is gone
				}
				b = b[:0]
			}
		}
		b = append(b, ']')
		if page.Begins > 0 {
			b = strconv.AppendUint(append(b, `,"begins":`...), uint64(page.Begins), 10)
		}
		if len(page.Holes) > 0 {
			b = append(b, `,"holes":[`...)
			for i, hole := range page.Holes {
				if i > 0 {
					b = append(b, ',')
				}
				b = strconv.AppendUint(append(b, `{"first":`...), uint64(hole.First), 10)
				b = strconv.AppendUint(append(b, `,"last":`...), uint64(hole.Last), 10)
				b = append(b, '}')
			}
			b = append(b, ']')
		}
		if page.Next != "" {
			b = append(append(append(b, `,"next":"`...), page.Next...), '"')
		}
		b = append(b, "}\n"...)
		_ = out.last(b) // or the client is gone
		return b, nil
	})
}
