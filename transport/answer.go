package transport

import (
	"net/http"
	"strconv"
	"time"
)

// begin sets the headers that every answer has. Once they are set, an answer can't
// become another one any more: see guard.
func begin(w http.ResponseWriter, contentType, cache string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", cache)
	h.Set("X-Content-Type-Options", "nosniff")
}

// begun tells whether begin was called.
func begun(w http.ResponseWriter) bool { return w.Header().Get("Content-Type") != "" }

// writer writes answers that stream.
type writer struct {
	w       http.ResponseWriter
	control *http.ResponseController
	shared  bool // the connection is other streams' too: HTTP/2
	begun   bool // something was written
	piece   int  // what is written in one go, where it is shared
}

// Bounds of a piece.
const (
	leastPiece = 256
	mostPiece  = 8 << 10
)

func newWriter(w http.ResponseWriter, r *http.Request) *writer {
	return &writer{w: w, control: http.NewResponseController(w), shared: r.ProtoMajor >= 2}
}

// send writes and flushes.
func (w *writer) send(b []byte) error { return w.write(b, true) }

// last writes the end of an answer; the handler must return then, which flushes. An
// answer that comes from last alone says its length.
func (w *writer) last(b []byte) error {
	if !w.begun {
		w.w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	}
	return w.write(b, false)
}

func (w *writer) write(b []byte, flush bool) error {
	w.begun = true
	if !w.shared {
		if _, err := w.w.Write(b); err != nil || !flush {
			return err
		}
		return w.control.Flush()
	}
	// On HTTP/2 a stream stalls by itself, not with its connection, so it is given its
	// time here, a piece at a time. The deadline must not outlive the write: it would end
	// a stream that is merely quiet. For who reads slowly pieces are small, so that none of them takes that long.
	for len(b) > 0 {
		w.piece = min(max(w.piece, leastPiece), mostPiece)
		began := time.Now()
		if err := w.control.SetWriteDeadline(began.Add(stalled)); err != nil {
			return err
		}
		n := min(w.piece, len(b))
		if _, err := w.w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
		if err := w.control.Flush(); err != nil {
			return err
		}
		if time.Since(began) < time.Second {
			w.piece *= 4
		} else {
			w.piece /= 4
		}
	}
	return w.control.SetWriteDeadline(time.Time{})
}
