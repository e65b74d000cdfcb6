package follow

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/coder/websocket"
)

var (
	// ErrClosed is returned by Next after Close.
	ErrClosed = errors.New("the connection was closed here")
	// ErrSilent is returned for a connection over which nothing has come for 2.5
	// heartbeats, or for ten seconds before its first frame. Comments and pings are
	// nothing: a box in between can make them while the server is long gone.
	ErrSilent = errors.New("nothing has come for too long")
	// ErrCut is returned for an answer that ended without the server's last word.
	ErrCut = errors.New("the answer ended without a last word")

	errNoCollection = errors.New("a feed has at least one collection")
)

const (
	defaultHeartbeat = 15 * time.Second // what the protocol says
	defaultWait      = 25 * time.Second
	openTimeout      = 10 * time.Second
	pollGrace        = 20 * time.Second // an answer's way, beyond the time it was held
	pollGap          = time.Second
	// A message is read to its end before its frames are handed out, so that Idle knows
	// where it ends; but not more of it than this.
	readAhead = 256 << 10
)

// Conn is one connection, or one sequence of polls. Next is for one goroutine;
// Close and Send may be called by any, at any time.
type Conn struct {
	o      Options
	http   *http.Client
	done   func() // closes what belongs to the connection
	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  *time.Timer // ends the connection when it is silent

	// ws is set by Dial, and never changed.
	ws *websocket.Conn

	// Owned by whoever calls Next.
	err       error // why there is nothing more; it stays
	queue     [][]byte
	queued    int // bytes that the last fill has put there
	buf       []byte
	cursors   Cursors
	heartbeat time.Duration
	last      error // *Ended, once the frame end was handed out
	opened    bool  // a frame has come
	events    eventParser
	lines     splitter
	message   io.Reader // the WebSocket message under way
	body      io.ReadCloser
	poll      pollState
}

// pollState is what a sequence of polls knows of the answer under way.
type pollState struct {
	asked   time.Time
	n       int   // how many questions were asked
	over    error // how the body ended; nil while it has not
	whole   bool  // live, next or end has come
	moved   bool  // it has brought the feed on
	reading bool
}

// Dial connects and returns when the server has taken the request; ctx bounds that
// and nothing after it. With Poll it asks the first question, which is answered at
// once whatever Options.Wait says, so that refusals show here.
//
// A refusal is a *Problem. The caller must Close the connection. A WebSocket may do
// without collections: it is a connection to write over, or to subscribe on later.
func Dial(ctx context.Context, o Options) (*Conn, error) {
	o, err := o.check()
	if err != nil {
		return nil, err
	}
	if len(o.Collections) == 0 && o.Transport != WebSocket {
		return nil, errNoCollection
	}
	return dial(ctx, o, NewCursors(o.Collections...))
}

// dial is Dial for options that are checked.
func dial(ctx context.Context, o Options, at Cursors) (*Conn, error) {
	c := &Conn{o: o, cursors: at, heartbeat: defaultHeartbeat}
	c.events.max, c.lines.max = o.MaxLine, o.MaxLine
	c.http, c.done = o.client()
	if o.Transport != WebSocket && c.http.Timeout > 0 {
		// It would end the answer; what it is meant for is done by the watch.
		own := *c.http
		own.Timeout = 0
		c.http = &own
	}
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	c.watch = time.AfterFunc(time.Hour, func() { c.cancel(ErrSilent) })
	c.watch.Stop()
	stop := context.AfterFunc(ctx, func() { c.cancel(context.Cause(ctx)) })
	err := c.open()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		err = c.failed("connect", err)
		c.end()
		return nil, err
	}
	return c, nil
}

func (c *Conn) open() error {
	switch c.o.Transport {
	case WebSocket:
		c.buf = make([]byte, 4<<10) // reads fill it before they return: small, so that a slow line is seen to move
		header := c.o.Header.Clone()
		if header == nil {
			header = make(http.Header)
		}
		ws, resp, err := websocket.Dial(c.ctx, c.o.feedURL(c.cursors, 0), &websocket.DialOptions{
			HTTPClient:   c.http,
			HTTPHeader:   header,
			Subprotocols: []string{"tidemark.v1"},
		})
		if err != nil {
			if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
				return problemOf(resp)
			}
			return err
		}
		ws.SetReadLimit(-1) // lines are bounded, and messages are never held
		c.ws = ws
		return nil
	case SSE:
		c.buf = make([]byte, 32<<10)
		return c.get("text/event-stream", 0)
	default:
		c.buf = make([]byte, 32<<10)
		return c.ask()
	}
}

// get begins an answer of the kind given.
func (c *Conn) get(kind string, wait time.Duration) error {
	req, err := http.NewRequestWithContext(c.ctx, http.MethodGet, c.o.feedURL(c.cursors, wait), nil)
	if err != nil {
		return err
	}
	if c.o.Header != nil {
		req.Header = c.o.Header.Clone()
	}
	req.Header.Set("Accept", kind)
	if kind == "text/event-stream" {
		// net/http would ask for gzip, and a box that grants it gathers events first.
		req.Header.Set("Accept-Encoding", "identity")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		p := problemOf(resp)
		resp.Body.Close()
		return p
	}
	if got, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); got != kind {
		resp.Body.Close()
		return fmt.Errorf("the answer is not a feed: its content type is %q, not %s", resp.Header.Get("Content-Type"), kind)
	}
	c.body = resp.Body
	return nil
}

// ask asks the next question of a sequence of polls.
func (c *Conn) ask() error {
	wait := c.o.Wait
	if c.poll.n == 0 {
		wait = -1
	}
	c.poll = pollState{n: c.poll.n + 1, asked: time.Now(), reading: true}
	c.lines.part = nil
	return c.get("application/x-ndjson", wait)
}

// Transport is the connection's transport.
func (c *Conn) Transport() string { return c.o.Transport }

// Cursors is where the feed is after the frames that Next has returned.
func (c *Conn) Cursors() Cursors { return c.cursors }

// Idle tells whether Next would wait: a good moment to flush.
func (c *Conn) Idle() bool { return len(c.queue) == 0 && c.message == nil }

// Next returns the next frame. An error is the connection's end, and comes again;
// a ctx that ends while Next waits ends the connection too. Frames that had come
// whole before the end are returned first.
//
// The errors: *Ended after the frame end or a WebSocket's close code; *Problem, for
// a poll and for close codes that mean one; ErrSilent, ErrCut, ErrFrame,
// ErrTooLarge, ErrClosed; ctx's; and the network's own.
func (c *Conn) Next(ctx context.Context) (Frame, error) {
	for {
		if len(c.queue) > 0 {
			raw := c.queue[0]
			c.queue[0] = nil
			c.queue = c.queue[1:]
			f, err := decode(raw)
			if err != nil {
				c.err, c.queue = err, nil
				return Frame{}, err
			}
			c.note(f)
			return f, nil
		}
		c.queue = nil
		if c.last != nil {
			c.err = c.last // it says more than the end of the stream, which may have come with it
		}
		if c.err == nil {
			c.err = c.fill(ctx)
		}
		if c.err != nil && len(c.queue) == 0 {
			return Frame{}, c.err
		}
	}
}

// note keeps what the connection itself needs of a frame.
func (c *Conn) note(f Frame) {
	before := c.cursors.all
	c.cursors = c.cursors.After(f)
	c.opened = true
	switch f.Type {
	case "open":
		if f.Heartbeat > 0 {
			c.heartbeat = f.Heartbeat
		}
	case "end":
		c.last = &Ended{Reason: f.Reason, Retry: f.Retry, Again: f.Again}
		c.poll.whole = true
	case "live", "next":
		c.poll.whole = true
	}
	if c.cursors.all != before || f.Type == "reset" {
		c.poll.moved = true
	}
}

// fill waits until there is something in the queue. What it returns ends the
// connection, after what is in the queue.
func (c *Conn) fill(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.cancel(context.Cause(ctx)) })
	defer stop()
	defer c.watch.Stop()
	deadline := time.Now().Add(c.silence())
	c.queued = 0
	for len(c.queue) == 0 || (c.message != nil && c.queued < readAhead) {
		c.watch.Reset(max(time.Until(deadline), 0))
		partial := c.partial()
		if err := c.read(); err != nil {
			return c.failed("read", err)
		}
		if c.partial() > partial || c.o.Transport != SSE {
			deadline = time.Now().Add(c.silence())
		}
	}
	return nil
}

// silence is how long nothing may come.
func (c *Conn) silence() time.Duration {
	switch {
	case c.o.Transport == Poll:
		wait := c.o.Wait
		if wait == 0 {
			wait = defaultWait
		}
		return max(wait, 0) + pollGrace
	case !c.opened:
		return openTimeout
	default:
		return c.heartbeat * 5 / 2
	}
}

func (c *Conn) partial() int { return c.events.partial() + len(c.lines.part) }

// read reads once and puts what it completes into the queue.
func (c *Conn) read() error {
	switch c.o.Transport {
	case WebSocket:
		if c.message == nil {
			_, r, err := c.ws.Reader(c.ctx)
			if err != nil {
				return err
			}
			c.message = r
		}
		n, err := c.message.Read(c.buf)
		if err := c.lines.feed(c.buf[:n], c.push); err != nil {
			return err
		}
		if err == io.EOF {
			c.lines.flush(c.push)
			c.message, err = nil, nil
		}
		return err
	case SSE:
		n, err := c.body.Read(c.buf)
		if err := c.events.feed(c.buf[:n], c.pushEvent); err != nil {
			return err
		}
		if err == io.EOF {
			err = ErrCut
		}
		return err
	default:
		return c.readPoll()
	}
}

// readPoll reads the answer under way, or asks for the next one.
func (c *Conn) readPoll() error {
	if !c.poll.reading {
		if err := c.ask(); err != nil {
			return err
		}
	}
	if c.poll.over == nil {
		n, err := c.body.Read(c.buf)
		if err := c.lines.feed(c.buf[:n], c.push); err != nil {
			return err
		}
		if err == nil {
			return nil
		}
		if err == io.EOF && json.Valid(c.lines.part) {
			c.lines.flush(c.push) // the last line end is all that is missing
		}
		c.poll.over = err
		c.body.Close()
		c.body = nil
		return nil
	}
	// All that was whole in the body has been handed out. A body that was cut off
	// counts as far as it came; one that brought nothing is a failure.
	switch {
	case c.ctx.Err() != nil:
		return c.ctx.Err()
	case c.poll.whole:
	case !c.poll.moved:
		if c.poll.over != io.EOF {
			return c.poll.over
		}
		return ErrCut
	}
	// An answer that came early and brought nothing is an old one out of somebody's
	// cache, or was not to be held: either way, not again at once.
	early := pollGap - time.Since(c.poll.asked)
	if c.poll.moved || (c.poll.n == 1 && c.o.Wait >= 0) {
		early = 0
	}
	c.poll.reading = false
	if !pause(c.ctx, early) {
		return c.ctx.Err()
	}
	return nil
}

func (c *Conn) push(line []byte) {
	c.queue = append(c.queue, line)
	c.queued += len(line)
}

func (c *Conn) pushEvent(e event) {
	if bytes.IndexByte(e.data, '\n') >= 0 {
		var line bytes.Buffer
		if json.Compact(&line, e.data) == nil { // else it fails as a frame, with its text
			e.data = line.Bytes()
		}
	}
	c.push(e.data)
}

// Send sends one frame over a WebSocket: subscribe, unsubscribe, write or auth. The
// answer comes from Next, among the other frames. A ctx that ends while Send waits
// ends the connection. Cursors knows nothing of what is subscribed to later.
func (c *Conn) Send(ctx context.Context, frame []byte) error {
	if c.ws == nil {
		return fmt.Errorf("send over %s: %w", c.o.Transport, errors.ErrUnsupported)
	}
	if err := c.ws.Write(ctx, websocket.MessageText, frame); err != nil {
		return c.failed("write", err)
	}
	return nil
}

// Close ends the connection, and a Next that waits for it. Over a healthy
// WebSocket it says goodbye first, which takes up to five seconds if nobody answers.
func (c *Conn) Close() error {
	if c.ws != nil && c.ctx.Err() == nil {
		c.ws.Close(websocket.StatusNormalClosure, "left") // it is closed, whatever comes back
	}
	c.end()
	return nil
}

// end lets go of everything. A body that is still open ends with its request's
// context: Next may be reading it.
func (c *Conn) end() {
	c.cancel(ErrClosed)
	c.watch.Stop()
	if c.ws != nil {
		c.ws.CloseNow()
	}
	c.done()
}

// failed says what err was: cancelled connections have a cause, and close codes a
// meaning.
func (c *Conn) failed(what string, err error) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	var p *Problem
	if errors.As(err, &p) {
		return err
	}
	var closed websocket.CloseError
	if errors.As(err, &closed) {
		return closedBy(closed)
	}
	return fmt.Errorf("%s over %s: %w", what, c.o.Transport, plain(err))
}

// plain leaves out of a network's error what people can't use: the URL, and the names
// of functions.
func plain(err error) error {
	var u *url.Error
	var op *net.OpError
	switch {
	case errors.As(err, &op):
		return op
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrCut
	case errors.As(err, &u):
		return u.Err
	}
	return err
}

// closedBy is the meaning of a close code.
func closedBy(e websocket.CloseError) error {
	problem := func(status int, code string) error {
		return &Problem{Status: status, Code: code, Title: http.StatusText(status), Detail: e.Reason}
	}
	switch e.Code {
	case 4400:
		return problem(http.StatusBadRequest, "bad-request")
	case 4401:
		return problem(http.StatusUnauthorized, "unauthenticated")
	case 4403:
		return problem(http.StatusForbidden, "forbidden")
	case websocket.StatusMessageTooBig:
		return problem(http.StatusRequestEntityTooLarge, "too-large")
	case websocket.StatusTryAgainLater:
		return problem(http.StatusServiceUnavailable, "unavailable")
	case 1012:
		return &Ended{Reason: "draining", Again: true}
	case 1011:
		return &Ended{Reason: "failed", Again: true}
	case 4408:
		return &Ended{Reason: "slow", Again: true}
	case 4409:
		return &Ended{Reason: "evicted", Again: true}
	}
	return fmt.Errorf("%w: closed with %d %s", ErrCut, e.Code, e.Reason)
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
