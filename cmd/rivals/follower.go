//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net/http"
)

// way is a transport that a contender offers, and how one follows over it.
type way struct {
	transport string
	// request asks for a channel: from the beginning, or what came after a place that an
	// event's id named.
	request func(channel int, after string) []byte
	// greet is what a follower says once its WebSocket is open.
	greet func(channel int, after string) []byte
	// ping is a message that has to be answered with the frame pong.
	ping string
	pong []byte
	// next is what a follower that polls sends once an answer is whole.
	next func(f *follower) []byte
	// place finds in the end of what a follower was given where it stands: after in request and
	// greet of every way. Nil: the id of the last event.
	place func(tail []byte) string
}

// follower follows one channel. It is owned by the thread of its crowd.
type follower struct {
	way     *way
	channel int
	after   string // where it began
	crowd   *crowd
	index   int // in the crowd
	fd      int
	err     error // why it is no longer there

	tally  tally
	scan   scanner
	answer answer
	frames frames
	found  func(record)

	// Of those that poll, and of the one whose place is asked for: the end of the body, and
	// what the last head said.
	keepsTail bool
	tail      []byte
	head      head
	answers   int    // that are whole
	session   string // that next may keep
}

// tailSize is enough for a message with its framing.
const tailSize = 1024

func newFollower(c *crowd, w *way, channel int, after string) *follower {
	f := &follower{way: w, channel: channel, after: after, crowd: c, fd: -1, keepsTail: w.next != nil}
	f.found = func(r record) { c.saw(f, r) }
	f.reset()
	return f
}

// reset readies it for a new connection.
func (f *follower) reset() {
	f.scan = scanner{}
	f.answer = answer{onHead: f.onHead, onBody: f.onBody, onEnd: f.onEnd}
	f.frames = frames{onData: f.onData, onControl: f.onControl}
}

func (f *follower) feed(b []byte) error { return f.answer.feed(b) }

func (f *follower) onHead(h head) (upgraded bool, err error) {
	f.head = h
	switch {
	case h.status == http.StatusSwitchingProtocols && f.way.transport == websocket:
		f.crowd.opened.Add(1)
		if f.way.greet != nil {
			err = send(f.fd, f.way.greet(f.channel, f.after))
		}
		return true, err
	case h.status != http.StatusOK:
		return false, fmt.Errorf("a follower was answered %d", h.status)
	case f.way.transport == sse:
		f.crowd.opened.Add(1)
	}
	f.tail = f.tail[:0]
	return false, nil
}

func (f *follower) onBody(b []byte) {
	if f.way.transport == websocket {
		if err := f.frames.feed(b); err != nil && f.err == nil {
			f.err = err
		}
		return
	}
	f.data(b)
}

func (f *follower) data(b []byte) {
	if f.keepsTail {
		if n := len(f.tail) + min(len(b), tailSize) - tailSize; n > 0 {
			f.tail = append(f.tail[:0], f.tail[n:]...)
		}
		f.tail = append(f.tail, b[max(0, len(b)-tailSize):]...)
	}
	f.scan.scan(b, f.found)
}

func (f *follower) onEnd() error {
	if f.way.next == nil {
		return fmt.Errorf("a stream of events ended")
	}
	f.answers++
	return send(f.fd, f.way.next(f))
}

func (f *follower) onData(b []byte, whole bool) {
	if whole && len(b) == len(f.way.ping) && string(b) == f.way.ping && len(b) > 0 {
		if err := send(f.fd, f.way.pong); err != nil {
			f.err = err
		}
		return
	}
	f.data(b)
}

func (f *follower) onControl(op byte, b []byte) error {
	switch op {
	case opPing:
		return send(f.fd, frame(nil, opPong, b))
	case opClose:
		return fmt.Errorf("the server closed a WebSocket: %.80q", b)
	}
	return nil
}

// place is where it stands. It is known of followers that keep their tail.
func (f *follower) place() string {
	if f.way.place != nil {
		return f.way.place(f.tail)
	}
	return lastOf(f.tail, "id:", "\n")
}

// lastOf is what is between the last begin in b and the end after it, or nothing.
func lastOf(b []byte, begin, end string) string {
	i := bytes.LastIndex(b, []byte(begin))
	if i < 0 {
		return ""
	}
	text, _, whole := bytes.Cut(b[i+len(begin):], []byte(end))
	if !whole {
		return ""
	}
	return string(bytes.TrimSpace(text))
}
