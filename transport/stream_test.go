package transport_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	ws "github.com/coder/websocket"
)

// frame is one frame of a feed, with what carried it.
type frame struct {
	Type string

	Epoch, Session, Server, Network string
	Heartbeat                       int
	Transports                      []string

	Collections []string
	Reason      string

	Seq                 uint64
	Collection, Op, Key string
	Value               json.RawMessage
	At                  string
	By                  *struct{ Client, ID string }
	More                bool

	Cursor string
	Retry  *int64
	Limit  string

	ID                  json.RawMessage
	Results             []result
	Title, Detail, Code string
	Status              int

	raw     string
	event   string // SSE
	id      string // SSE; "" without one
	message int    // WebSocket: in which message it came
}

func (f frame) String() string { return f.raw }

func parse(t testing.TB, line string) frame {
	t.Helper()
	var f frame
	if err := json.Unmarshal([]byte(line), &f); err != nil {
		t.Errorf("not a frame: %v: %q", err, line)
	}
	if f.Type == "" {
		t.Errorf("a frame without a type: %q", line)
	}
	f.raw = line
	return f
}

// stream is one answer of a feed, read as it comes by a goroutine of its own. A
// stream over long poll is one answer too, unless it was made by follow.
type stream struct {
	t         testing.TB
	site      *site
	transport string
	header    http.Header
	frames    *queue
	err       error  // why it ended; set before frames is closed
	retry     string // SSE: what was said of it
	gate      chan struct{}
	socket    *ws.Conn
	cancel    context.CancelFunc
	done      chan struct{}
}

// feed asks for a feed over a transport by its headers, as clients do, and must get
// it. Headers are pairs.
func (s *site) feed(transport, query string, headers ...string) *stream {
	s.t.Helper()
	st, resp := s.tryFeed(transport, query, headers...)
	if st == nil {
		s.t.Fatalf("feed %s over %s: %d %s", query, transport, resp.status, resp.body)
	}
	return st
}

// tryFeed returns either the stream or the answer that refuses it.
func (s *site) tryFeed(transport, query string, headers ...string) (*stream, response) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	st := &stream{
		t: s.t, site: s, transport: transport, frames: newQueue(), gate: make(chan struct{}, 1),
		cancel: cancel, done: make(chan struct{}),
	}
	st.gate <- struct{}{}
	h := make(http.Header)
	for i := 0; i < len(headers); i += 2 {
		h.Add(headers[i], headers[i+1])
	}
	address := s.url + "/v1/acme/feed?" + query
	if transport == websocket {
		var protocols []string
		if offered := h.Get("Sec-WebSocket-Protocol"); offered != "" {
			protocols = strings.Split(offered, ", ")
		}
		h.Del("Sec-WebSocket-Protocol")
		c, resp, err := ws.Dial(ctx, address, &ws.DialOptions{HTTPClient: s.client, HTTPHeader: h, Host: h.Get("Host"), Subprotocols: protocols})
		if err != nil {
			cancel()
			if resp == nil {
				s.t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			return nil, response{resp.StatusCode, resp.Header, string(b)}
		}
		c.SetReadLimit(-1)
		st.socket, st.header = c, resp.Header
		st.run(st.readSocket, func() { c.CloseNow() })
		return st, response{}
	}
	req, err := http.NewRequestWithContext(ctx, "GET", address, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header, req.Host = h, h.Get("Host")
	if transport == sse && h.Get("Accept") == "" {
		h.Set("Accept", "text/event-stream")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		defer cancel()
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return nil, response{resp.StatusCode, resp.Header, string(b)}
	}
	st.header = resp.Header
	r := bufio.NewReader(st.gated(resp.Body))
	if transport == sse {
		st.run(func() error { return st.readEvents(r) }, func() { resp.Body.Close() })
	} else {
		st.run(func() error { return st.readLines(r) }, func() { resp.Body.Close() })
	}
	return st, response{}
}

// run reads until the end, in a goroutine.
func (st *stream) run(read func() error, closed func()) {
	go func() {
		defer close(st.done)
		defer closed()
		st.err = read()
		st.frames.close()
	}()
	st.t.Cleanup(st.close)
}

// close lets go of the connection, as a client does that vanishes.
func (st *stream) close() {
	st.cancel()
	if st.socket != nil {
		st.socket.CloseNow()
	}
	st.resume()
	<-st.done
}

// pause stops reading, as a client does that is busy; resume goes on.
func (st *stream) pause() { <-st.gate }

func (st *stream) resume() {
	select {
	case st.gate <- struct{}{}:
	default:
	}
}

func (st *stream) pass() {
	<-st.gate
	st.resume()
}

type gated struct {
	io.Reader
	pass func()
}

func (g gated) Read(p []byte) (int, error) {
	g.pass()
	return g.Reader.Read(p)
}

func (st *stream) gated(r io.Reader) io.Reader { return gated{r, st.pass} }

// readEvents reads an event stream as the HTML standard says: lines end with CR, LF
// or both.
func (st *stream) readEvents(r *bufio.Reader) error {
	var f frame
	var data []string
	for {
		line, err := eventLine(r)
		if err != nil {
			return err
		}
		if line == "" {
			if data != nil {
				got := parse(st.t, strings.Join(data, "\n"))
				got.event, got.id = f.event, f.id
				if len(data) != 1 {
					st.t.Errorf("the data of an event has %d lines: %q", len(data), data)
				}
				if got.Type != got.event {
					st.t.Errorf("an event %q carries %s", got.event, got)
				}
				st.frames.push(got)
			}
			f, data = frame{}, nil
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "event":
			f.event = value
		case "data":
			data = append(data, value)
		case "id":
			f.id = value
		case "retry":
			st.retry = value
		default:
			st.t.Errorf("a field that no event has: %q", line)
		}
	}
}

func eventLine(r *bufio.Reader) (string, error) {
	var b []byte
	for {
		c, err := r.ReadByte()
		if err != nil {
			return "", err
		}
		switch c {
		case '\r':
			if next, err := r.Peek(1); err == nil && next[0] == '\n' {
				r.ReadByte()
			}
			return string(b), nil
		case '\n':
			return string(b), nil
		}
		b = append(b, c)
	}
}

// readLines reads the body of a long poll.
func (st *stream) readLines(r *bufio.Reader) error {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			if line != "" {
				return fmt.Errorf("a line without an end: %q", line)
			}
			return err
		}
		st.frames.push(parse(st.t, strings.TrimSuffix(line, "\n")))
	}
}

func (st *stream) readSocket() error {
	for n := 0; ; n++ {
		st.pass()
		kind, b, err := st.socket.Read(context.Background())
		if err != nil {
			return err
		}
		if kind != ws.MessageText {
			st.t.Errorf("a message of kind %v", kind)
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			f := parse(st.t, line)
			f.message = n
			st.frames.push(f)
		}
	}
}

// send sends a message over a WebSocket.
func (st *stream) send(text string) {
	st.t.Helper()
	if err := st.socket.Write(context.Background(), ws.MessageText, []byte(text)); err != nil {
		st.t.Fatalf("send %.80s: %v", text, err)
	}
}

// queue is what has come and was not looked at yet.
type queue struct {
	mu     sync.Mutex
	all    []frame       // guarded by mu
	closed bool          // guarded by mu
	more   chan struct{} // room for one: look again
}

func newQueue() *queue { return &queue{more: make(chan struct{}, 1)} }

func (q *queue) push(f frame) {
	q.mu.Lock()
	q.all = append(q.all, f)
	q.mu.Unlock()
	q.look()
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.look()
}

func (q *queue) look() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// take takes at most n, and tells whether no more will come.
func (q *queue) take(n int) (all []frame, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n = min(n, len(q.all)); n > 0 {
		all, q.all = q.all[:n:n], q.all[n:]
	}
	return all, q.closed && len(q.all) == 0
}

// next is the next frame, and must come.
func (st *stream) next() frame {
	st.t.Helper()
	for patience := time.After(time.Minute); ; {
		all, closed := st.frames.take(1)
		if len(all) > 0 {
			return all[0]
		}
		if closed {
			st.t.Fatalf("the %s stream is over: %v", st.transport, st.err)
		}
		select {
		case <-st.frames.more:
		case <-patience:
			st.t.Fatalf("nothing comes over %s", st.transport)
		}
	}
}

// until returns the frames up to and including one of a type.
func (st *stream) until(kind string) []frame {
	st.t.Helper()
	var all []frame
	for {
		f := st.next()
		all = append(all, f)
		if f.Type == kind {
			return all
		}
	}
}

// rest is all that comes until the stream is over.
func (st *stream) rest() []frame {
	st.t.Helper()
	var all []frame
	for patience := time.After(5 * time.Minute); ; {
		got, closed := st.frames.take(1 << 30)
		all = append(all, got...)
		if closed {
			return all
		}
		select {
		case <-st.frames.more:
		case <-patience:
			st.t.Fatalf("the %s stream does not end; it has brought %v", st.transport, all)
		}
	}
}

// now returns, in a bubble, what has come until everybody waits.
func (st *stream) now() []frame {
	st.t.Helper()
	synctest.Wait()
	all, _ := st.frames.take(1 << 30)
	return all
}

// ask makes one long poll and returns its frames.
func (s *site) ask(query string, headers ...string) []frame {
	s.t.Helper()
	st := s.feed(poll, query, headers...)
	all := st.rest()
	if !errors.Is(st.err, io.EOF) {
		s.t.Fatalf("a poll ended with %v", st.err)
	}
	return all
}

// follow is feed, where long poll asks again and again from where it is, until an
// end or close.
func (s *site) follow(transport, query string, headers ...string) *stream {
	s.t.Helper()
	if transport != poll {
		return s.feed(transport, query, headers...)
	}
	ctx, cancel := context.WithCancel(context.Background())
	st := &stream{
		t: s.t, site: s, transport: poll, frames: newQueue(), gate: make(chan struct{}, 1),
		cancel: cancel, done: make(chan struct{}),
	}
	st.gate <- struct{}{}
	st.run(func() error {
		q, err := url.ParseQuery(query)
		if err != nil {
			return err
		}
		for {
			st.pass()
			req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/v1/acme/feed?"+q.Encode(), nil)
			if err != nil {
				return err
			}
			for i := 0; i < len(headers); i += 2 {
				req.Header.Add(headers[i], headers[i+1])
			}
			resp, err := s.client.Do(req)
			if err != nil {
				return err
			}
			if resp.StatusCode != 200 {
				resp.Body.Close()
				return fmt.Errorf("status %d", resp.StatusCode)
			}
			st.header = resp.Header
			answer := &stream{t: s.t, frames: newQueue()}
			err = answer.readLines(bufio.NewReader(resp.Body))
			resp.Body.Close()
			var last frame
			all, _ := answer.frames.take(1 << 30)
			for _, f := range all {
				last = f
				st.frames.push(f)
			}
			if err != io.EOF {
				return err
			}
			if last.Type != "live" && last.Type != "next" {
				return fmt.Errorf("the last frame of a poll is %s", last)
			}
			for i, c := range q["c"] {
				q["c"][i], _, _ = strings.Cut(c, "@")
			}
			q.Set("cursor", last.Cursor)
			q.Del("last_event_id")
		}
	}, func() {})
	return st
}

// fold is what a client makes of the frames of a feed, by the promises of the
// protocol and nothing else. It checks them as it goes.
type fold struct {
	t       testing.TB
	rows    map[string]map[string]row
	cursor  string
	epoch   string
	live    bool
	resets  map[string]map[string]bool // collections that are being reset: what came since
	held    []frame                    // the transaction that has begun
	last    uint64                     // sequence on this connection
	applied []string                   // change frames, as they came, without their epoch
}

type row struct {
	seq   uint64
	value string
}

func newFold(t testing.TB) *fold {
	return &fold{t: t, rows: make(map[string]map[string]row), resets: make(map[string]map[string]bool)}
}

func (f *fold) apply(frames ...frame) {
	f.t.Helper()
	for _, x := range frames {
		switch x.Type {
		case "open":
			f.epoch, f.held, f.last, f.live = x.Epoch, nil, 0, false
		case "reset":
			f.live, f.last = false, 0
			for _, c := range x.Collections {
				f.resets[c] = make(map[string]bool)
			}
		case "change":
			if x.Seq <= f.last {
				f.t.Errorf("sequence %d comes after %d", x.Seq, f.last)
			}
			f.last = x.Seq
			f.applied = append(f.applied, x.raw)
			f.held = append(f.held, x)
			if x.More {
				continue
			}
			for _, c := range f.held {
				f.change(c)
			}
			f.held = nil
			f.cursor = fmt.Sprintf("%s-%d", f.epoch, x.Seq)
		case "live":
			f.inside(x)
			f.cursor, f.live = x.Cursor, true
			for c, seen := range f.resets {
				for key := range f.rows[c] {
					if !seen[key] {
						delete(f.rows[c], key)
					}
				}
			}
			clear(f.resets)
		case "next":
			f.inside(x)
			f.cursor = x.Cursor
		}
	}
}

func (f *fold) inside(x frame) {
	f.t.Helper()
	if len(f.held) > 0 {
		f.t.Errorf("%s comes inside a transaction: %s", x, f.held)
	}
}

func (f *fold) change(c frame) {
	rows := f.rows[c.Collection]
	if rows == nil {
		rows = make(map[string]row)
		f.rows[c.Collection] = rows
	}
	if seen := f.resets[c.Collection]; seen != nil {
		seen[c.Key] = true
	}
	if rows[c.Key].seq >= c.Seq {
		return
	}
	if c.Op == "remove" {
		delete(rows, c.Key)
		return
	}
	rows[c.Key] = row{c.Seq, string(c.Value)}
}

// check compares a collection with the server's.
func (f *fold) check(s *site, collection string) {
	f.t.Helper()
	want := s.serverRows(collection, "")
	have := f.rows[collection]
	for key, value := range want {
		if have[key].value != value {
			f.t.Errorf("%s: the row %q is %q, the server has %q", collection, key, have[key].value, value)
		}
	}
	for key := range have {
		if _, ok := want[key]; !ok {
			f.t.Errorf("%s: the row %q is gone from the server", collection, key)
		}
	}
}

// TestAnOldProxyGetsAnEventStreamItCanRead: without chunks, and in its own version (nginx asks so unless it is told).
func TestAnOldProxyGetsAnEventStreamItCanRead(t *testing.T) {
	s := open(t, settings{})
	s.put("todos 1", `{}`)
	c, err := s.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /v1/acme/feed?c=todos HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	buf := make([]byte, 4096)
	until := func(what string) {
		t.Helper()
		for !strings.Contains(got.String(), what) {
			n, err := c.Read(buf)
			got.Write(buf[:n])
			if err != nil {
				t.Fatal(err, got.String())
			}
		}
	}
	until("event: tick")
	for i := range 5 { // it is parked by then
		s.put("todos 1", fmt.Sprintf(`{"n":%d}`, i))
		until(fmt.Sprintf(`{"n":%d}}`, i) + "\nid: ")
	}
	until("-6\n\n")
	head, body, _ := strings.Cut(got.String(), "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.0 200 OK\r\n") || strings.Contains(head, "chunked") || !strings.HasPrefix(body, "retry: 1000\n\nevent: open\ndata: {") || strings.Contains(body, "\r") {
		t.Error(got.String())
	}
}
