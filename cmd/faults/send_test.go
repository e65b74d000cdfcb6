package faults_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"github.com/tidemark-sync/tidemark/cmd/faults/oracle"
)

// ways are how a write goes to the server.
var ways = []string{"changes", "websocket", "rows"}

// sent is a request that can be sent again.
type sent struct {
	write *oracle.Write
	body  []byte // of POST to changes, and with a head of its own the frame write
	n     int64  // how many ids the server had been given when it was answered
}

// send makes one attempt and reads the answer into a. An error: there was none.
func (wr *writer) send(a *oracle.Attempt, s *sent) error {
	switch {
	case s.write.Row:
		wr.w.ways[2].Add(1)
		return wr.row(a, &s.write.Changes[0])
	case wr.rng.IntN(2) == 0:
		wr.w.ways[1].Add(1)
		return wr.frame(a, s.body)
	}
	wr.w.ways[0].Add(1)
	return wr.post(a, s.body)
}

// answer is what the server says to a write.
type answer struct {
	Type, ID     string // of a frame
	Status       any    // a number; of one row the text that a result has
	Code, Cursor string
	Results      []struct {
		ID, Status, Key string
		Seq             uint64
		Value           json.RawMessage
	}
	// Of one row.
	Key   string
	Seq   uint64
	Value json.RawMessage
}

var errUnread = errors.New("the answer can't be read")

func (x *answer) read(a *oracle.Attempt) error {
	if len(x.Results) == 0 {
		return errUnread
	}
	a.Cursor = x.Cursor
	for _, r := range x.Results {
		a.Results = append(a.Results, oracle.Result{ID: r.ID, Status: r.Status, Key: r.Key, Seq: r.Seq, Value: string(r.Value)})
	}
	return nil
}

// to is where requests go.
func (wr *writer) to(path string) string {
	if wr.w.load.via != "" {
		return "http://" + wr.w.load.via + path
	}
	return wr.w.s.url() + path
}

// request makes a request, and reads an answer with one of the statuses given.
func (wr *writer) request(a *oracle.Attempt, method, path string, body []byte, header http.Header, statuses ...int) (x answer, err error) {
	req, err := http.NewRequestWithContext(wr.w.ctx, method, wr.to(path), bytes.NewReader(body))
	if err != nil {
		return x, err
	}
	req.Header = header
	req.Header.Set("Content-Type", "application/json")
	res, err := wr.http.Do(req)
	if err != nil {
		return x, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return x, err
	}
	if a.Status = res.StatusCode; !slices.Contains(statuses, a.Status) {
		return x, nil
	}
	if err := json.Unmarshal(b, &x); err != nil {
		return x, errors.Join(errUnread, err)
	}
	return x, nil
}

func (wr *writer) post(a *oracle.Attempt, body []byte) error {
	x, err := wr.request(a, http.MethodPost, "/v1/"+tenant+"/changes", body, make(http.Header), http.StatusOK, http.StatusConflict)
	if err != nil || a.Status != http.StatusOK && a.Status != http.StatusConflict {
		return err
	}
	return x.read(a)
}

// row writes one row by its own address.
func (wr *writer) row(a *oracle.Attempt, c *oracle.Change) error {
	method, body := "", c.Value
	switch c.Op {
	case "put":
		method = http.MethodPut
	case "insert":
		method = http.MethodPost
	case "modify":
		method, body = http.MethodPatch, c.Patch
	case "remove":
		method = http.MethodDelete
	}
	q := make(url.Values)
	if c.Key != "" {
		q.Set("key", c.Key)
	}
	if c.TTL > 0 {
		q.Set("ttl", strconv.Itoa(int(c.TTL/time.Second)))
	}
	header := http.Header{"Idempotency-Key": {c.ID}}
	switch {
	case c.If != nil && *c.If == 0:
		header.Set("If-None-Match", "*")
	case c.If != nil:
		header.Set("If-Match", fmt.Sprintf(`"%d"`, *c.If))
	}
	x, err := wr.request(a, method, "/v1/"+tenant+"/rows/"+c.Collection+"?"+q.Encode(), []byte(body), header,
		http.StatusOK, http.StatusConflict, http.StatusPreconditionFailed, http.StatusNotFound)
	if err != nil {
		return err
	}
	r := oracle.Result{ID: c.ID, Key: x.Key, Seq: x.Seq, Value: string(x.Value)}
	if a.Status == http.StatusOK {
		var ok bool
		if r.Status, ok = x.Status.(string); !ok || x.ID == "" {
			return errUnread
		}
		r.ID, a.Cursor = x.ID, x.Cursor
	} else if r.Status = x.Code; !slices.Contains([]string{"conflict", "exists", "missing", "id-reused"}, x.Code) {
		return nil // no refusal: another problem, or no answer
	}
	a.Results = append(a.Results, r)
	return nil
}

// frame writes over a WebSocket, which it opens where there is none.
func (wr *writer) frame(a *oracle.Attempt, body []byte) error {
	ctx, cancel := context.WithTimeout(wr.w.ctx, wr.http.Timeout)
	defer cancel()
	if wr.socket == nil {
		var err error
		if wr.socket, err = openSocket(ctx, wr.w.s.addr, wr.http.Transport); err != nil {
			return err
		}
	}
	x, err := wr.socket.write(ctx, body)
	if err != nil {
		wr.hangUp()
		return err
	}
	a.Status = http.StatusOK
	if x.Type == "error" {
		status, _ := x.Status.(float64)
		if a.Status = int(status); a.Status != http.StatusConflict {
			return nil
		}
	}
	return x.read(a)
}

// hangUp closes the WebSocket, if there is one.
func (wr *writer) hangUp() {
	if wr.socket != nil {
		wr.socket.close()
		wr.socket = nil
	}
}

// socket is a WebSocket that somebody writes over, one request at a time. A goroutine
// reads it, so that it hears when the server leaves.
type socket struct {
	conn    *websocket.Conn
	n       int
	answers chan answer
	done    chan struct{} // closed when nobody waits for answers any more
	over    chan struct{} // closed when the goroutine has ended
	err     error         // why it has; set before over is closed
}

// openSocket does not go by what doubles and delays: that knows only requests.
func openSocket(ctx context.Context, addr string, transport http.RoundTripper) (*socket, error) {
	c, _, err := websocket.Dial(ctx, "ws://"+addr+"/v1/"+tenant+"/feed?transport=websocket", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		return nil, err
	}
	c.SetReadLimit(16 << 20)
	k := &socket{conn: c, answers: make(chan answer), done: make(chan struct{}), over: make(chan struct{})}
	go k.read()
	return k, nil
}

func (k *socket) close() {
	close(k.done)
	_ = k.conn.CloseNow() // it may be gone already
	<-k.over
}

func (k *socket) read() {
	defer close(k.over)
	for {
		var b []byte
		if _, b, k.err = k.conn.Read(context.Background()); k.err != nil {
			return
		}
		for line := range bytes.Lines(b) {
			var x answer
			if err := json.Unmarshal(line, &x); err != nil {
				k.err = errors.Join(errUnread, err)
				return
			}
			if x.Type != "written" && x.Type != "error" {
				continue
			}
			select {
			case k.answers <- x:
			case <-k.done:
				return
			}
		}
	}
}

// write sends the frame write, and waits for its answer.
func (k *socket) write(ctx context.Context, body []byte) (x answer, err error) {
	k.n++
	id := strconv.Itoa(k.n)
	if err := k.conn.Write(ctx, websocket.MessageText, append(fmt.Appendf(nil, `{"type":"write","id":%q,`, id), body[1:]...)); err != nil {
		return x, err
	}
	select {
	case x = <-k.answers:
		if x.ID != id {
			return x, fmt.Errorf("%w: it answers %q instead of %q", errUnread, x.ID, id)
		}
		return x, nil
	case <-k.over:
		return x, k.err
	case <-ctx.Done():
		return x, context.Cause(ctx)
	}
}
