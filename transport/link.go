package transport

import (
	"bufio"
	"encoding/binary"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// link is the connection below a WebSocket. Messages, pings and pongs are written
// here instead of by the library, which gives each control frame 5 s and closes the
// connection when they are over: behind a message that a slow peer takes its time
// for, that would end a peer which is alive.
//
// send, pong and Write may be called concurrently.
type link struct {
	net.Conn
	early []byte        // owned by who reads: what came with the handshake, or was read since, and the library has not seen
	read  *bufio.Reader // the library's

	rest  []byte // owned by who calls attempt: what it has left; at first, the answer to the handshake
	torn  bool   // and in the middle of a frame, or of that answer, with the turn
	waits bool   // what was attempted is not sent yet; it has the turn

	turn turn                   // held by who writes a frame, and kept for the rest of one that is torn
	over bool                   // owned by who has the turn: nothing may follow a close frame (RFC 6455, 5.5.1)
	ping atomic.Pointer[string] // the payload of a ping that waits for its pong; of several, the last (RFC 6455, 5.5.3)
}

// Opcodes of the frames that link writes (RFC 6455, 5.2), each with FIN.
const (
	opText = 0x80 | 1
	opPing = 0x80 | 9
	opPong = 0x80 | 10
)

func (l *link) Read(b []byte) (int, error) {
	if len(l.early) > 0 {
		n := copy(b, l.early)
		if l.early = l.early[n:]; len(l.early) == 0 {
			l.early = nil
		}
		return n, nil
	}
	return l.Conn.Read(b)
}

const masked = 0x80 // in the second byte of a frame: it is a client's (RFC 6455, 5.2)

// textOf is the text message that a client's bytes begin with, unmasked where it stands, and the size of its frame; 0
// if it is not whole, not in one frame, longer than most, or none that the library would take.
func textOf(b []byte, most int64) (text []byte, size int) {
	if len(b) < 6 || b[0] != opText || b[1]&masked == 0 {
		return nil, 0
	}
	n, at := int(b[1]&^masked), 2
	switch n {
	case 126:
		n, at = int(binary.BigEndian.Uint16(b[at:])), at+2
	case 127:
		return nil, 0
	}
	if size = at + 4 + n; len(b) < size || int64(n) > most {
		return nil, 0
	}
	key, text := b[at:at+4], b[at+4:size]
	for i := range text {
		text[i] ^= key[i&3]
	}
	return text, size
}

// pongOf is the size of the pong that a client's bytes begin with, 0 if that is not a whole one.
func pongOf(b []byte) int {
	if len(b) < 6 || b[0] != opPong || b[1]&masked == 0 || b[1] > masked|125 || len(b) < 6+int(b[1]&^masked) {
		return 0
	}
	return 6 + int(b[1]&^masked)
}

// Write is for the library, which writes nothing but the frame that closes.
func (l *link) Write(b []byte) (int, error) {
	l.turn.take()
	l.over = true
	n, err := l.Conn.Write(b)
	l.turn.give()
	return n, err
}

// send writes whole frames; net.ErrClosed once the close frame was sent.
func (l *link) send(frames []byte) error {
	l.turn.take()
	if l.over {
		l.turn.give()
		return net.ErrClosed
	}
	_, err := l.Conn.Write(frames)
	l.turn.give()
	l.answerPing()
	return err
}

// attempt sends what the socket takes at once, or has it sent with others, and then to.sent has to call sent; false:
// there is a rest, which writeRest writes. It keeps the turn where a frame is torn, so that nothing gets in between.
func (l *link) attempt(m *memo, raw syscall.RawConn, frames []byte, to sender) bool {
	if l.waits {
		if m.sends.flush(); l.torn {
			l.rest = append(l.rest, frames...)
			return false
		}
	}
	var before, left []byte
	if l.torn { // nothing was written yet
		before, l.rest, l.torn = l.rest, nil, false
	} else if !l.turn.try() {
		l.rest = slices.Clone(frames)
		return false
	}
	if l.over {
		l.turn.give()
		l.rest = slices.Clone(frames) // which writeRest refuses
		return false
	}
	if left, l.waits = m.sends.join(raw, before, frames, to); l.waits {
		return true
	}
	return l.sent(raw, left)
}

// sent tells whether that was all. It waits for nobody: others are served by the same goroutine, so that a client which
// pings, and reads nothing, would hold them up.
func (l *link) sent(raw syscall.RawConn, left []byte) bool {
	l.waits = false
	for {
		if len(left) > 0 {
			l.rest, l.torn = slices.Clone(left), true
			return false
		}
		if payload := l.ping.Swap(nil); payload != nil && !l.over {
			left = new(attempt).write(raw, pongTo(*payload))
			continue
		}
		l.turn.give()
		if l.ping.Load() == nil || !l.turn.try() {
			return true
		}
	}
}

func pongTo(payload string) []byte {
	return append(appendHeader(nil, opPong, len(payload)), payload...)
}

// writeRest writes what an attempt has left.
func (l *link) writeRest() error {
	rest := l.rest
	l.rest = nil
	if !l.torn {
		return l.send(rest)
	}
	l.torn = false
	_, err := l.Conn.Write(rest)
	l.turn.give()
	l.answerPing()
	return err
}

// pong answers a ping: now, or after the frame that is being written.
func (l *link) pong(payload []byte) {
	text := string(payload)
	l.ping.Store(&text)
	l.answerPing()
}

func (l *link) answerPing() {
	for l.ping.Load() != nil {
		if !l.turn.try() {
			return // whoever writes now does it after that
		}
		if payload := l.ping.Swap(nil); payload != nil && !l.over {
			_, _ = l.Conn.Write(pongTo(*payload)) // whoever reads or writes next notices
		}
		l.turn.give()
	}
}

// hijacker hands the library a link in place of the connection, with buffers of the
// size that it still needs: it reads requests, and writes close frames.
// The answer to the handshake is left to the link, which writes it with the first messages.
type hijacker struct {
	http.ResponseWriter
	link    *link // once it was asked for
	watched uint64
}

// WriteHeader is http.ResponseWriter's.
func (h *hijacker) WriteHeader(status int) {
	if status != http.StatusSwitchingProtocols {
		h.ResponseWriter.WriteHeader(status)
	}
}

// Hijack is http.Hijacker's.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	t, err := take(h.ResponseWriter)
	if err != nil {
		return nil, nil, err
	}
	h.watched = t.watched
	h.link = &link{Conn: t.conn, early: t.early, torn: true}
	h.link.turn.take() // no pong, and no close frame, before the answer
	h.link.read = bufio.NewReaderSize(h.link, 128)
	return h.link, bufio.NewReadWriter(h.link.read, bufio.NewWriterSize(h.link, 136)), nil
}

// greet has the link answer the handshake, which the library has accepted, and send a first frame.
func (h *hijacker) greet(open feed.Open) {
	_ = withBuffer(func(b []byte) ([]byte, error) {
		b = append(appendFields(append(b, "HTTP/1.1 101 Switching Protocols\r\n"...), h.Header()), "\r\n"...)
		n := len(b)
		b = open.Append(b)
		h.link.rest = append(make([]byte, 0, len(b)+headerRoom), b[:n]...)
		h.link.rest = append(appendHeader(h.link.rest, opText, len(b)-n), b[n:]...)
		return b, nil
	})
}

const headerRoom = 10 // the longest header of a frame

// messageSize is where a message ends, if no transaction is under way: so that it has less than the 32 KiB that
// libraries read at most where nobody says otherwise, as github.com/coder/websocket does, unless rows are large; and two
// of them are a piece.
const messageSize = pieceSize / 2

// messages frames a batch as WebSocket messages, a line for each frame of the feed. In front of each is room for its header.
type messages struct {
	all  []span // what is to be written, in the buffer
	from int    // where the payload of the message under way begins; 0: there is none
}

type span struct{ from, to int }

func (m *messages) reset() { m.all, m.from = m.all[:0], 0 }

func (m *messages) before(dst []byte, _ string) []byte {
	if m.from > 0 {
		return append(dst, '\n')
	}
	var room [headerRoom]byte
	dst = append(dst, room[:]...)
	m.from = len(dst)
	return dst
}

func (m *messages) after(dst []byte, cursor *feed.Cursor) []byte {
	if cursor != nil && len(dst)-m.from >= messageSize {
		return m.end(dst)
	}
	return dst
}

// end ends the message under way.
func (m *messages) end(dst []byte) []byte {
	if m.from == 0 {
		return dst
	}
	var room [headerRoom]byte
	header := appendHeader(room[:0], opText, len(dst)-m.from)
	start := m.from - len(header)
	copy(dst[start:], header)
	m.all = append(m.all, span{start, len(dst)})
	m.from = 0
	return dst
}

// join moves the messages together.
func (m *messages) join(buf []byte) []byte {
	joined := buf[:0]
	for i, s := range m.all {
		if i == 0 {
			joined = buf[s.from:s.to]
			continue
		}
		joined = append(joined, buf[s.from:s.to]...)
	}
	return joined
}

// ping adds a ping, to be written with the message before it.
func (m *messages) ping(dst []byte) []byte {
	from := len(dst)
	dst = appendHeader(dst, opPing, 0)
	if n := len(m.all); n > 0 {
		m.all[n-1].to = len(dst)
	} else {
		m.all = append(m.all, span{from, len(dst)})
	}
	return dst
}

// messageOf is one frame of the feed as a message.
func messageOf(frame []byte) []byte {
	return append(appendHeader(nil, opText, len(frame)), frame...)
}

// appendHeader appends the header of a server's frame (RFC 6455, 5.2).
func appendHeader(dst []byte, op byte, n int) []byte {
	switch {
	case n < 126:
		return append(dst, op, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(dst, op, 126), uint16(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, op, 127), uint64(n))
}
