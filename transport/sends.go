package transport

import (
	"syscall"

	"github.com/tidemark-sync/tidemark/transport/uring"
)

// sends gathers what goes out on sockets, for as many of them as there are, so that it goes out in one system call.
// Where that can't be, it goes out at once. All of it is one goroutine's.
type sends struct {
	plain bool // one by one

	all    []send
	held   int              // of all: how many sockets are kept open
	broken bool             // the ring took not all
	fn     func(fd uintptr) // a closure for each would be an allocation for each
	one    attempt

	used, spare   [][]byte // memory of what waits, and of what does not
	joined, large []byte   // memory of join: of all that waits, and of what does not
}

// send is one of them.
type send struct {
	raw  syscall.RawConn
	b    []byte
	to   sender
	fd   int // -1: it is closed
	took int // how many bytes of b the socket took
}

// sender is told what became of what it has sent, and must return at once.
type sender interface {
	// sent has what the socket did not take, which is valid until it returns. Whatever the error
	// was, who writes that meets it again.
	sent(left []byte)
}

const (
	mostSends = 256 // at a time
	fewSends  = 3   // cost less one by one
	// mostShared is how many bytes wait for others, where many get the same, and mostJoined where one alone does. What
	// is longer is sent at once: 2,000 that come back for 25 KB each took a tenth longer when all of that waited, in
	// memory of its own.
	mostShared   = 16 << 10
	mostJoined   = 4 << 10
	joinedRoom   = 128 << 10
	spareBuffers = 32 // of at most bufferKept bytes each
)

// IOUring tells whether the kernel lets many sockets be written to in one system call; see Options.OneByOne.
func IOUring() bool {
	r := takeRing()
	if r != nil {
		putRing(r, false)
	}
	return r != nil
}

// add sends bytes, of which b must stay as it is until to.sent is called: waits. Else they were sent at once, and
// left is what the socket did not take. Nothing may be added for a socket for which something waits.
func (s *sends) add(raw syscall.RawConn, b []byte, to sender) (left []byte, waits bool) {
	if s.plain || len(b) > mostShared {
		return s.one.write(raw, b), false
	}
	if len(s.all) == mostSends {
		s.flush()
	}
	s.all = append(s.all, send{raw: raw, b: b, to: to})
	return nil, true
}

// flush sends all that waits.
func (s *sends) flush() {
	var r *uring.Ring
	if len(s.all) >= fewSends {
		r = takeRing()
	}
	if r == nil {
		for i := range s.all {
			e := &s.all[i]
			e.took = len(e.b) - len(s.one.write(e.raw, e.b))
		}
	} else {
		putRing(r, !s.through(r))
	}
	for i := range s.all {
		e := &s.all[i]
		e.to.sent(e.b[e.took:])
	}
	clear(s.all)
	s.all = s.all[:0]
	for _, b := range s.used {
		if cap(b) <= bufferKept && len(s.spare) < spareBuffers {
			s.spare = append(s.spare, b)
		}
	}
	clear(s.used)
	s.used, s.joined = s.used[:0], s.joined[:0]
}

// through sends all by a ring. Each socket is kept open meanwhile by being in RawConn.Control, one
// within the other: a number that was closed, and used again, would be somebody else's socket. false: it is broken, and what
// it did not take was not sent.
func (s *sends) through(r *uring.Ring) (ok bool) {
	s.held, s.broken = 0, false
	s.fn = func(fd uintptr) {
		s.all[s.held-1].fd = int(fd)
		s.hold(r)
	}
	s.hold(r)
	s.fn = nil
	return !s.broken
}

// hold keeps open what is left of all, and has it sent.
func (s *sends) hold(r *uring.Ring) {
	for s.held < len(s.all) {
		e := &s.all[s.held]
		e.fd = -1
		s.held++
		if e.raw.Control(s.fn) == nil {
			return // all was sent, within
		}
	}
	s.broken = !r.Do(s, len(s.all))
}

// Entry is uring.Work's.
func (s *sends) Entry(i int) uring.Entry {
	e := &s.all[i]
	e.took = 0
	return uring.Send(e.fd, e.b)
}

// Done is uring.Work's.
func (s *sends) Done(i, result int) { s.all[i].took = max(0, result) }

// fresh is the memory of something new to send, in the place of that of something before, which may wait.
func (s *sends) fresh(before []byte) []byte {
	if len(s.all) == 0 {
		return before[:0]
	}
	s.used = append(s.used, before)
	if n := len(s.spare); n > 0 {
		b := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return b[:0]
	}
	return nil
}

// join is add for two that go out together, of which the first, if there is one, does not stay as it is.
func (s *sends) join(raw syscall.RawConn, first, second []byte, to sender) (left []byte, waits bool) {
	if len(first) == 0 {
		return s.add(raw, second, to)
	}
	n := len(first) + len(second)
	if s.plain || n > mostJoined {
		if cap(s.large) > bufferKept {
			s.large = nil
		}
		s.large = append(append(s.large[:0], first...), second...)
		return s.one.write(raw, s.large), false
	}
	if s.joined == nil {
		s.joined = make([]byte, 0, joinedRoom)
	}
	// Now, and not once it is added: its memory would be taken for free.
	if len(s.joined)+n > cap(s.joined) || len(s.all) == mostSends {
		s.flush()
	}
	from := len(s.joined)
	s.joined = append(append(s.joined, first...), second...)
	return s.add(raw, s.joined[from:from+n:from+n], to)
}

// copied is add for what does not stay as it is.
func (s *sends) copied(raw syscall.RawConn, b []byte, to sender) (left []byte, waits bool) {
	if s.plain || len(b) > mostJoined {
		return s.one.write(raw, b), false
	}
	return s.join(raw, b, nil, to)
}
