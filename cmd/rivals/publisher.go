//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// dialect is how one publishes to a contender, over one connection.
type dialect struct {
	// hello is what is said first; greet once a WebSocket is open. One may publish once a
	// message came that holds welcome, or at once.
	hello, greet, welcome []byte
	// encode appends what publishes messages to a channel, as one request if that can be.
	encode func(dst []byte, channel int, messages []record, size int) []byte
	// requests is how many of them encode makes of n messages.
	requests func(n int) int
	// http: each request is answered by an answer of HTTP, and 2xx is yes unless it holds no.
	http bool
	// upgrade: it is a WebSocket; a message of the server's that holds no is a refusal, and
	// one that holds yes an answer. One that is ping is answered with the frame pong.
	upgrade bool
	yes, no []byte
	ping    string
	pong    []byte
}

// publisher publishes records, in order, and reads what it is answered.
type publisher struct {
	d    *dialect
	conn net.Conn
	buf  []byte
	size int // of a message
	seq  []uint64

	asked    int64
	answered atomic.Int64
	grew     chan struct{} // room for one: answered grew
	ready    chan struct{} // closed once it may publish
	ended    chan struct{}

	mu      sync.Mutex
	refused error // guarded by mu: the first refusal
}

func newPublisher(ctx context.Context, d *dialect, to netip.AddrPort, channels, size int) (*publisher, error) {
	conn, err := net.Dial("tcp", to.String())
	if err != nil {
		return nil, err
	}
	p := &publisher{d: d, conn: conn, size: size, seq: make([]uint64, channels), grew: make(chan struct{}, 1), ready: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		if err := p.listen(); !errors.Is(err, net.ErrClosed) {
			p.refuse(fmt.Errorf("the publisher's connection ended: %w", err))
		}
	}()
	if len(d.hello) > 0 {
		if _, err := conn.Write(d.hello); err != nil {
			p.close()
			return nil, err
		}
	}
	if d.upgrade || len(d.welcome) > 0 {
		select {
		case <-p.ready:
		case <-p.ended:
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
			p.refuse(errors.New("the publisher was not let in within 5 s"))
		}
	}
	if err := p.err(); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// close ends the connection.
func (p *publisher) close() {
	_ = p.conn.Close()
	<-p.ended
}

func (p *publisher) refuse(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused == nil {
		p.refused = err
	}
}

// err is why something was not published.
func (p *publisher) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// publish publishes n messages to a channel.
func (p *publisher) publish(channel, n int) error {
	messages := make([]record, n)
	for i := range messages {
		p.seq[channel]++
		messages[i] = record{channel, p.seq[channel], now()}
	}
	p.buf = p.d.encode(p.buf[:0], channel, messages, p.size)
	p.asked += int64(p.d.requests(n))
	_, err := p.conn.Write(p.buf)
	return errors.Join(err, p.err())
}

// wait waits until no more than so many requests have no answer yet.
func (p *publisher) wait(ctx context.Context, most int64) error {
	for p.asked-p.answered.Load() > most {
		select {
		case <-p.grew:
		case <-p.ended:
			return errors.Join(p.err(), errors.New("the publisher's connection ended"))
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Second):
			return errors.New("what was published was not answered within 10 s")
		}
	}
	return p.err()
}

// listen reads the answers until the connection ends, and says why.
func (p *publisher) listen() error {
	waits := len(p.d.welcome) > 0
	yes := phrase{text: p.d.yes}
	f := frames{
		onData: func(b []byte, whole bool) {
			switch {
			case waits && bytes.Contains(b, p.d.welcome):
				waits = false
				close(p.ready)
			case whole && p.d.ping != "" && string(b) == p.d.ping:
				_, _ = p.conn.Write(p.d.pong)
			case len(p.d.no) > 0 && bytes.Contains(b, p.d.no):
				p.refuse(fmt.Errorf("what was published was refused: %.200q", b))
			case len(p.d.yes) > 0:
				p.answer(yes.in(b))
			}
		},
		onControl: func(op byte, b []byte) error {
			switch op {
			case opPing:
				_, err := p.conn.Write(frame(nil, opPong, b))
				return err
			case opClose:
				return fmt.Errorf("it was closed: %.80q", b)
			}
			return nil
		},
	}
	var inner error
	a := answer{
		onHead: func(h head) (bool, error) {
			if p.d.upgrade {
				if h.status != 101 {
					return false, fmt.Errorf("it was answered %d", h.status)
				}
				if !waits {
					close(p.ready)
				}
				_, err := p.conn.Write(p.d.greet)
				return true, err
			}
			if h.status/100 != 2 {
				p.refuse(fmt.Errorf("what was published was answered %d", h.status))
			}
			return false, nil
		},
		onBody: func(b []byte) {
			if p.d.upgrade {
				if err := f.feed(b); err != nil {
					inner = err
				}
			} else if len(p.d.no) > 0 && bytes.Contains(b, p.d.no) {
				p.refuse(fmt.Errorf("what was published was refused: %.200q", b))
			}
		},
		onEnd: func() error {
			p.answer(1)
			return nil
		},
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := p.conn.Read(buf)
		if err != nil {
			return err
		}
		if !p.d.http && !p.d.upgrade {
			f.onData(buf[:n], true)
			continue
		}
		if err := errors.Join(a.feed(buf[:n]), inner); err != nil {
			return err
		}
	}
}

// phrase is a text, which does not overlap itself, that is looked for in what comes in pieces.
type phrase struct {
	text, end []byte // end: of what came, in which the next may begin
}

// in tells how often it came, as of the next piece.
func (p *phrase) in(piece []byte) int64 {
	b := append(p.end, piece...)
	n := bytes.Count(b, p.text)
	p.end = append(p.end[:0], b[max(0, len(b)-len(p.text)+1):]...)
	return int64(n)
}

func (p *publisher) answer(n int64) {
	if n > 0 {
		p.answered.Add(n)
		nudge(p.grew)
	}
}

// posts is a dialect of one POST for each message. before and after are what its body has around it.
func posts(path, before, after func(channel int) string) *dialect {
	return &dialect{
		http:     true,
		requests: func(n int) int { return n },
		encode: func(dst []byte, channel int, messages []record, size int) []byte {
			path, before, after := path(channel), before(channel), after(channel)
			for _, m := range messages {
				dst = fmt.Appendf(dst, "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(before)+size+len(after), before)
				dst = append(m.message(dst, size), after...)
			}
			return dst
		},
	}
}

// bare is for bodies that are nothing but the message.
func bare(int) string { return "" }

// sockets is a dialect of a WebSocket's messages, one for each.
func sockets(path string, encode func(dst []byte, channel int, message []byte) []byte) *dialect {
	return &dialect{
		upgrade:  true,
		hello:    upgrade(path, ""),
		requests: func(n int) int { return n },
		encode: func(dst []byte, channel int, messages []record, size int) []byte {
			var text, message []byte
			for _, m := range messages {
				message = m.message(message[:0], size)
				text = encode(text[:0], channel, message)
				dst = frame(dst, opText, text)
			}
			return dst
		},
	}
}

// upgrade is the request that opens a WebSocket.
func upgrade(path, headers string) []byte {
	return []byte("GET " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: cml2YWxzcml2YWxzcml2YQ==\r\n" + headers + "\r\n")
}
