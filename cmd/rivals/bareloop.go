//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
)

// The bare loop is no rival but a measure of the machine: one thread takes messages in and copies the
// bytes that were made once to whoever follows, by one system call for each. It knows neither rows, limits,
// credentials nor a disk, takes every request to be well-formed, and keeps all that was ever published.

func bareLoop() *contender {
	follow := func(transport string, request func(path, headers string) []byte, headers string) *way {
		return &way{transport: transport, request: func(channel int, after string) []byte {
			return request("/sub/"+channelName(channel), headers+lastEvent(after))
		}}
	}
	polls := follow(poll, get, "Poll: 1\r\n")
	polls.next = func(f *follower) []byte {
		if id := lastOf(f.tail, "id:", "\n"); id != "" {
			f.session = id
		}
		return polls.request(f.channel, f.session)
	}
	return &contender{
		name:    "bare loop",
		about:   "one thread that copies what is published to whoever follows, by one system call for each, and does nothing else (`cmd/rivals/bareloop.go`): no rival but a measure of the machine; published to by POST requests of one connection",
		resumes: true,
		version: func(context.Context, *paths) (string, error) { return runtime.Version(), nil },
		launch: func(_ *paths, _ string, to netip.AddrPort) (launch, error) {
			self, err := os.Executable()
			return launch{cmd: exec.Command(self, "bareloop", to.String())}, err
		},
		ways:    []*way{follow(sse, get, acceptEvents), follow(websocket, upgrade, ""), polls},
		dialect: posts(func(channel int) string { return "/pub/" + channelName(channel) }, bare, bare),
	}
}

// framing is how a message is written to those who follow over a transport.
type framing int

const (
	asEvents framing = iota // of SSE; polls get the same
	asFrames                // of WebSocket
	framings
)

// line is all messages of a channel, one after the other in either framing, and who follows.
type line struct {
	bytes  [framings][]byte
	ends   [framings][]int // of each message
	of     []*socket
	behind bool // there is something that was not written to them
}

// socket is a connection to the bare loop.
type socket struct {
	fd      int
	in      []byte // of a request that is not whole
	follows *line  // nil: it publishes, or was not asked for anything yet
	as      framing
	at      int  // up to here it was written
	streams bool // it gets whatever comes
	polls   bool // it gets one answer, once there is something
	stuck   bool // it takes no more for now
}

type loop struct {
	poller  *poller
	sockets map[int]*socket
	lines   map[string]*line
	behind  []*line
}

// serveBareLoop serves an address until its process ends.
func serveBareLoop(at string) error {
	to, err := netip.ParseAddrPort(at)
	if err != nil {
		return err
	}
	l, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err == nil {
		err = syscall.SetsockoptInt(l, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = syscall.Bind(l, &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	}
	if err == nil {
		err = syscall.Listen(l, 4096)
	}
	if err != nil {
		return err
	}
	o := &loop{sockets: make(map[int]*socket), lines: make(map[string]*line)}
	if o.poller, err = newPoller(); err == nil {
		err = o.poller.add(l, l)
	}
	runtime.LockOSThread()
	for buf := make([]byte, 256<<10); err == nil; {
		var events []syscall.EpollEvent
		if events, err = o.poller.wait(patience); err != nil {
			break
		}
		for _, e := range events {
			switch s := o.sockets[int(e.Fd)]; {
			case s == nil:
				err = errors.Join(err, o.accept(l))
			case s.stuck && e.Events&syscall.EPOLLOUT != 0:
				o.stick(s, false)
				o.write(s)
			default:
				o.read(s, buf)
			}
		}
		for _, l := range o.behind {
			l.behind = false
			for _, s := range l.of {
				o.write(s)
			}
		}
		o.behind = o.behind[:0]
	}
	return err
}

func (o *loop) accept(l int) error {
	for {
		fd, _, err := syscall.Accept4(l, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return nil
		case err != nil:
			return os.NewSyscallError("accept", err)
		}
		_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
		o.sockets[fd] = &socket{fd: fd}
		if err := o.poller.add(fd, fd); err != nil {
			return err
		}
	}
}

func (o *loop) hangUp(s *socket) {
	delete(o.sockets, s.fd)
	if l := s.follows; l != nil {
		for i := range l.of {
			if l.of[i] == s {
				l.of[i] = l.of[len(l.of)-1]
				l.of = l.of[:len(l.of)-1]
				break
			}
		}
	}
	_ = syscall.Close(s.fd)
}

var headEnd = []byte("\r\n\r\n")

// read reads requests, and does what they ask for.
func (o *loop) read(s *socket, buf []byte) {
	n, err := syscall.Read(s.fd, buf)
	switch {
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
		return
	case err != nil, n == 0:
		o.hangUp(s)
		return
	case s.streams:
		return // what is said over a WebSocket
	}
	b := buf[:n]
	if len(s.in) > 0 {
		s.in = append(s.in, b...)
		b = s.in
	}
	published := 0
	for {
		head, rest, whole := bytes.Cut(b, headEnd)
		if !whole {
			break
		}
		if !bytes.HasPrefix(head, []byte("POST ")) {
			o.follow(s, head)
			b = rest
			continue
		}
		_, length, _ := bytes.Cut(head, []byte("Content-Length: "))
		length, _, _ = bytes.Cut(length, []byte("\r\n"))
		size, _ := strconv.Atoi(string(length))
		if len(rest) < size {
			break
		}
		o.line(head).add(rest[:size], o)
		published++
		b = rest[size:]
	}
	s.in = append(s.in[:0], b...)
	if published > 0 {
		_ = send(s.fd, bytes.Repeat([]byte("HTTP/1.1 204 No Content\r\n\r\n"), published))
	}
}

// line is what a request's path names.
func (o *loop) line(head []byte) *line {
	_, path, _ := bytes.Cut(head, []byte(" /"))
	path, _, _ = bytes.Cut(path[len("sub/"):], []byte(" "))
	l := o.lines[string(path)]
	if l == nil {
		l = new(line)
		o.lines[string(path)] = l
	}
	return l
}

// add appends a message; it is written to who follows once all that was read is done.
func (l *line) add(message []byte, o *loop) {
	b := strconv.AppendInt(append(l.bytes[asEvents], "id:"...), int64(len(l.ends[asEvents])+1), 10)
	b = append(append(append(b, "\ndata:"...), message...), "\n\n"...)
	l.bytes[asEvents], l.ends[asEvents] = b, append(l.ends[asEvents], len(b))
	b = append(l.bytes[asFrames], 0x80|opText, 126, byte(len(message)>>8), byte(len(message))) // which has more than 125 bytes
	b = append(b, message...)
	l.bytes[asFrames], l.ends[asFrames] = b, append(l.ends[asFrames], len(b))
	if !l.behind {
		l.behind = true
		o.behind = append(o.behind, l)
	}
}

const webSocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11" // RFC 6455, section 1.3

// follow answers who wants to follow.
func (o *loop) follow(s *socket, head []byte) {
	if s.follows == nil {
		s.follows = o.line(head)
		s.follows.of = append(s.follows.of, s)
	}
	s.polls = bytes.Contains(head, []byte("\r\nPoll: 1"))
	s.streams = !s.polls
	_, key, upgrades := bytes.Cut(head, []byte("\r\nSec-WebSocket-Key: "))
	if s.as = asEvents; upgrades {
		s.as = asFrames
	}
	_, id, resumes := bytes.Cut(head, []byte("\r\nLast-Event-ID: "))
	id, _, _ = bytes.Cut(id, []byte("\r\n"))
	n, _ := strconv.Atoi(string(id))
	if !resumes {
		n = len(s.follows.ends[s.as])
	}
	if s.at = 0; n > 0 {
		s.at = s.follows.ends[s.as][n-1]
	}
	switch {
	case s.polls:
		o.write(s)
		return
	case upgrades:
		key, _, _ = bytes.Cut(key, []byte("\r\n"))
		sum := sha1.Sum(append(bytes.Clone(key), webSocketGUID...))
		o.writeAfter(s, []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n"))
	default:
		o.writeAfter(s, []byte("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"))
	}
}

// write writes to a follower what it was not given yet.
func (o *loop) write(s *socket) {
	b := s.follows.bytes[s.as][s.at:]
	switch {
	case len(b) == 0 || s.stuck:
	case !s.streams && !s.polls: // it has not asked again yet
	case s.polls:
		s.polls = false
		o.writeAfter(s, strconv.AppendInt([]byte("HTTP/1.1 200 OK\r\nContent-Length: "), int64(len(b)), 10), headEnd)
		s.at = len(s.follows.bytes[s.as])
	default:
		o.writeAfter(s)
	}
}

// stick waits until a socket takes more, or does not any more.
func (o *loop) stick(s *socket, is bool) {
	s.stuck = is
	e := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(s.fd)}
	if is {
		e.Events |= syscall.EPOLLOUT
	}
	_ = syscall.EpollCtl(o.poller.fd, syscall.EPOLL_CTL_MOD, s.fd, &e)
}

// writeAfter writes a head, which there is room for, and then what a follower was not given yet.
func (o *loop) writeAfter(s *socket, head ...[]byte) {
	b := s.follows.bytes[s.as][s.at:]
	n := 0
	if len(head) > 0 {
		head := bytes.Join(head, nil)
		n = len(head)
		b = append(head, b...)
	}
	for len(b) > 0 {
		wrote, err := syscall.Write(s.fd, b[:min(len(b), 128<<10)])
		switch {
		case errors.Is(err, syscall.EAGAIN):
			o.stick(s, true)
			return
		case err != nil:
			return // that it is gone shows when it is read
		}
		s.at += wrote - min(wrote, n)
		n -= min(wrote, n)
		b = b[wrote:]
	}
}
