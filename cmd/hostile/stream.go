package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// gate is what passes of a stream.
type gate struct {
	up, down atomic.Bool // nothing passes any more
}

// begin lets a fate take its course on a stream that goes over c, until stop.
func (f fate) begin(c *conn) (g *gate, stop func()) {
	g = &gate{}
	befall := func() {
		switch f.ending {
		case muteDown:
			g.down.Store(true)
		case muteUp:
			g.up.Store(true)
		case muteBoth:
			g.up.Store(true)
			g.down.Store(true)
		case cut:
			c.Close()
		case reset:
			c.reset()
		}
	}
	if f.after == 0 {
		befall() // before the first byte
		return g, func() {}
	}
	timer := time.AfterFunc(f.after, befall)
	return g, func() { timer.Stop() }
}

// copyThrough copies until src ends, with nil, or dst takes no more. What comes while
// it is muted is thrown away.
func copyThrough(dst io.Writer, src io.Reader, muted *atomic.Bool) error {
	b := make([]byte, 32<<10)
	for {
		n, err := src.Read(b)
		if n > 0 && !muted.Load() {
			if _, err := dst.Write(b[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// pass passes an answer on, each piece as it comes; late headers go with the first
// piece. An error is why its end was not passed.
func pass(w http.ResponseWriter, r *http.Request, res *http.Response, body io.Reader, late bool, f fate, answered func(int)) error {
	if late {
		ahead := bufio.NewReader(body)
		if _, err := ahead.Peek(1); err != nil && err != io.EOF {
			return err
		}
		body = ahead
	}
	answered(res.StatusCode)
	copyHeader(w.Header(), res.Header)
	w.WriteHeader(res.StatusCode)
	out := &flusher{w, http.NewResponseController(w)}
	if err := out.rc.Flush(); err != nil {
		return err
	}
	gate, stop := f.begin(connOf(r))
	defer stop()
	err := copyThrough(out, body, &gate.down)
	if gate.down.Load() {
		<-r.Context().Done() // nobody tells the client that it is over
		return context.Cause(r.Context())
	}
	return err
}

// flusher sends each piece at once.
type flusher struct {
	w  io.Writer
	rc *http.ResponseController
}

func (f *flusher) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err != nil {
		return n, err
	}
	return n, f.rc.Flush()
}

// relay passes what is said after a 101, until one side ends it. A client to which
// nothing passes does not learn that the server has ended it.
func (h *hop) relay(w http.ResponseWriter, r *http.Request, res *http.Response) {
	server, ok := res.Body.(io.ReadWriteCloser)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	hijacked, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	client := hijacked.(*conn)
	both := func() {
		server.Close()
		client.Close()
	}
	defer both()
	defer context.AfterFunc(r.Context(), both)()
	fmt.Fprintf(buffered, "HTTP/1.1 %s\r\n", res.Status) // an error of these comes with Flush
	_ = res.Header.Write(buffered)
	_, _ = buffered.WriteString("\r\n")
	if buffered.Flush() != nil {
		return
	}
	gate, stop := h.p.upgraded.begin(client)
	defer stop()
	var down sync.WaitGroup
	down.Go(func() {
		_ = copyThrough(client, server, &gate.down) // how it ended is the same to the other side
		if !gate.down.Load() {
			both()
		}
	})
	_ = copyThrough(server, buffered, &gate.up)
	if gate.down.Load() {
		_, _ = io.Copy(io.Discard, buffered) // it may have been the server's end: wait for the client's
	}
	both()
	down.Wait()
}
