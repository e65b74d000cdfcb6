package load

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// follower follows one collection, and reads no more of a frame than it must: hundreds of them
// are one load.
type follower struct {
	o          *Options
	base       *url.URL
	collection string
	seen       *Check
	latency    *Histogram
	bytes      *atomic.Int64
	slow       bool

	epoch, cursor string
	held          []arrived             // of a transaction, until its last
	last          atomic.Uint64         // the last sequence that came
	frames        atomic.Int64          // changes that came
	lives         chan struct{}         // closed when live for the first time since it was set
	fresh         bool                  // the connection was not live yet
	lived         atomic.Int64          // how many connections were
	why           atomic.Pointer[error] // the last one ended
	denied        chan error            // hears of an answer that won't get better
	reconnects    int
}

// errEnd ends a connection that the server has ended: the next follows at once.
var errEnd = errors.New("the server ended the feed")

// answered is an answer that is no feed.
type answered struct {
	status int
	text   []byte
}

func (a *answered) Error() string { return fmt.Sprintf("answered %d: %s", a.status, a.text) }

// final tells whether it would be the same again.
func (a *answered) final() bool {
	return a.status/100 == 4 && a.status != http.StatusRequestTimeout && a.status != http.StatusTooEarly && a.status != http.StatusTooManyRequests
}

// run follows until ctx ends; a connection that breaks is made anew.
func (f *follower) run(ctx context.Context) {
	for wait := 10 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, time.Second) {
		err := f.connection(ctx)
		if ctx.Err() != nil {
			return
		}
		f.why.Store(&err)
		if a := new(answered); errors.As(err, &a) && a.final() {
			select {
			case f.denied <- err:
			default:
			}
		}
		f.reconnects++
		f.o.Logf("a follower of %s connects again: %v", f.collection, err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func (f *follower) connection(ctx context.Context) error {
	c, leave, err := dial(ctx, f.base)
	if err != nil {
		return err
	}
	defer leave()
	f.fresh, f.held = true, nil // of a transaction that was cut off nothing counts: it comes again
	if f.slow {
		c = slow(c)
	}
	r := bufio.NewReaderSize(counted{c, f.bytes}, 2048)
	if f.o.Transport == "poll" {
		for {
			if err := f.poll(c, r); err != nil {
				return err
			}
		}
	}
	headers := "Accept: text/event-stream\r\n"
	if f.o.Transport == "websocket" {
		var key [16]byte
		rand.Read(key[:])
		headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: tidemark.v1\r\nSec-WebSocket-Key: " + base64.StdEncoding.EncodeToString(key[:]) + "\r\n"
	}
	if err := f.request(c, "", headers); err != nil {
		return err
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	switch {
	case res.StatusCode == http.StatusSwitchingProtocols && f.o.Transport == "websocket":
		return f.messages(c, r)
	case res.StatusCode != http.StatusOK:
		text, _ := io.ReadAll(io.LimitReader(res.Body, 500))
		return &answered{res.StatusCode, bytes.TrimSpace(text)}
	}
	body := r
	if len(res.TransferEncoding) > 0 {
		// The response's own body would go through a lock and a limit for each read.
		body = bufio.NewReaderSize(httputil.NewChunkedReader(r), 2048)
	}
	return f.lines(body, []byte("data: "))
}

func (f *follower) request(c net.Conn, query, headers string) error {
	cursor := ""
	if f.cursor != "" {
		cursor = "&cursor=" + url.QueryEscape(f.cursor)
	}
	_, err := fmt.Fprintf(c, "GET %s/v1/%s/feed?c=%s%s%s HTTP/1.1\r\nHost: %s\r\n%s%s\r\n",
		f.base.Path, url.PathEscape(f.o.Tenant), url.QueryEscape(f.collection), cursor, query, f.base.Host, f.o.header, headers)
	return err
}

func (f *follower) poll(c net.Conn, r *bufio.Reader) error {
	wait := "&wait=25"
	if f.fresh {
		wait = "&wait=0" // so that it is live at once
	}
	if err := f.request(c, wait, ""); err != nil {
		return err
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 500))
		return &answered{res.StatusCode, bytes.TrimSpace(text)}
	}
	if err := f.lines(bufio.NewReaderSize(res.Body, 2048), nil); err != io.EOF {
		return err
	}
	return nil
}

// lines reads frames, each on a line that begins with prefix.
func (f *follower) lines(r *bufio.Reader, prefix []byte) error {
	for {
		line, err := r.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			long := bytes.Clone(line)
			for err == bufio.ErrBufferFull {
				line, err = r.ReadSlice('\n')
				long = append(long, line...)
			}
			line = long
		}
		if err != nil {
			return err
		}
		if frame, ok := bytes.CutPrefix(line, prefix); ok {
			if err := f.frame(frame); err != nil {
				return err
			}
		}
	}
}

// messages reads WebSocket frames.
func (f *follower) messages(c net.Conn, r *bufio.Reader) error {
	var payload []byte
	for {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		n := uint64(head[1] & 0x7F)
		if n >= 126 {
			size := make([]byte, map[uint64]int{126: 2, 127: 8}[n])
			if _, err := io.ReadFull(r, size); err != nil {
				return err
			}
			n = binary.BigEndian.Uint64(append(make([]byte, 8-len(size), 8), size...))
		}
		if n > 64<<20 {
			return fmt.Errorf("a message of %d bytes", n)
		}
		payload = append(payload[:0], make([]byte, n)...)
		if _, err := io.ReadFull(r, payload); err != nil {
			return err
		}
		switch head[0] & 0x0F {
		case 1:
			for line := range bytes.SplitSeq(payload, []byte("\n")) {
				if err := f.frame(line); err != nil {
					return err
				}
			}
		case 8:
			return errEnd
		case 9: // a pong, masked with zeros
			pong := append([]byte{0x8A, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
			if _, err := c.Write(pong); err != nil {
				return err
			}
		}
	}
}

var (
	changePrefix = []byte(`{"type":"change","seq":`)
	timeMark     = []byte(`"t":`)
	keyMark      = []byte(`"key":"`)
	opMark       = []byte(`:"`)
	removeMark   = []byte(`remove"`)
	cursorMark   = []byte(`"cursor":"`)
	epochMark    = []byte(`"epoch":"`)
)

// frame takes a frame in.
func (f *follower) frame(b []byte) error {
	if rest, ok := bytes.CutPrefix(b, changePrefix); ok {
		c := arrived{Written: Written{Seq: digits(rest)}}
		if f.latency != nil {
			c.at = time.Now()
		}
		row := rest
		if key, after, ok := keyIn(rest); ok {
			c.Key, row = int(digits(key)), after
		}
		if at := bytes.Index(row, timeMark); at >= 0 {
			c.Sent = int64(digits(row[at+len(timeMark):]))
		}
		if bytes.Contains(rest[max(0, len(rest)-16):], []byte(`"more":true`)) {
			f.held = append(f.held, c)
			return nil
		}
		for _, c := range f.held {
			f.came(c)
		}
		f.held = f.held[:0]
		f.came(c)
		f.cursor = f.epoch + "-" + strconv.FormatUint(c.Seq, 10)
		return nil
	}
	switch {
	case bytes.HasPrefix(b, []byte(`{"type":"open"`)):
		f.epoch = quoted(b, epochMark)
	case bytes.HasPrefix(b, []byte(`{"type":"live"`)), bytes.HasPrefix(b, []byte(`{"type":"next"`)):
		f.cursor = quoted(b, cursorMark)
		if !bytes.HasPrefix(b, []byte(`{"type":"live"`)) {
			break
		}
		if _, seq, _ := strings.Cut(f.cursor, "-"); !f.seen.Begun() {
			f.seen.Begin(digits([]byte(seq))) // what is written from here on must come
		}
		if f.fresh {
			f.fresh = false
			f.lived.Add(1)
		}
		if f.lives != nil {
			close(f.lives)
			f.lives = nil
		}
	case bytes.HasPrefix(b, []byte(`{"type":"reset"`)):
		f.seen.Reset()
	case bytes.HasPrefix(b, []byte(`{"type":"end"`)):
		return errEnd
	}
	return nil
}

// keyIn is where the key of a row begins that was put, in a change from its sequence on, and what follows it. One step
// from quote to quote: to search for it took more than all the rest.
func keyIn(change []byte) (key, after []byte, ok bool) {
	for range 3 { // past "collection", its name and "op"
		for range 2 {
			at := bytes.IndexByte(change, '"')
			if at < 0 {
				return nil, nil, false
			}
			change = change[at+1:]
		}
	}
	change, ok = bytes.CutPrefix(change, opMark)
	if !ok || bytes.HasPrefix(change, removeMark) {
		return nil, nil, false
	}
	at := bytes.Index(change, keyMark)
	if at < 0 {
		return nil, nil, false
	}
	key = change[at+len(keyMark):]
	end := bytes.IndexByte(key, '"')
	return key, key[max(0, end):], end > 0
}

// arrived is a change that came.
type arrived struct {
	Written
	at time.Time
}

// came takes a change in, once all of its transaction is there.
func (f *follower) came(c arrived) {
	f.seen.Saw(c.Seq, c.Key, c.Sent)
	if c.Sent > 0 && f.seen.Begun() && !f.slow && f.latency != nil {
		f.latency.Add(c.at.Sub(time.Unix(0, c.Sent)))
	}
	f.last.Store(c.Seq)
	f.frames.Add(1)
}

func digits(b []byte) (n uint64) {
	for _, c := range b {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}

func quoted(b, mark []byte) string {
	_, rest, _ := bytes.Cut(b, mark)
	text, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(text)
}

// counted counts what is read.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// slowly reads 1 KB a second.
type slowly struct{ net.Conn }

func slow(c net.Conn) net.Conn {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetReadBuffer(4 << 10) // the system would hold megabytes for it
	}
	return slowly{c}
}

func (c slowly) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b[:min(len(b), 256)])
	time.Sleep(time.Duration(n) * time.Second / 1024)
	return n, err
}
