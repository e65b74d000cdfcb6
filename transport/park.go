package transport

import (
	"slices"
	"syscall"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// What an attendant of parked sessions keeps for those of this package: frames that were made
// once go to all who stand at the same place.
type memo struct {
	sends    sends
	events   shelf
	messages shelf
	framing  messages
	lines    shelf
}

func (s *Server) memoOf(desk *hub.Desk) *memo {
	m, ok := desk.Memo.(*memo)
	if !ok {
		m = &memo{sends: sends{plain: s.opts.OneByOne}}
		desk.Memo, desk.Flush = m, m.sends.flush
	}
	return m
}

// shelf has what was made of the last batches: of all that many need who come back to the same place at once, and have
// missed more than goes into one. With only the last of them at hand, 2,000 that had missed 120 changes of 320 bytes each
// had them after 380 ms instead of 270, and 200 changes after 490 instead of 340.
type shelf struct {
	all    [9]shared // what a session gets in a row while it is parked, see hub.Parked
	newest int
	found  int
}

// find returns what was made of a batch, nil where that must be made.
func (s *shelf) find(b *feed.Batch) *shared {
	for i := range s.all {
		at := (s.found + i) % len(s.all)
		if s.all[at].is(b) {
			s.found = at
			return &s.all[at]
		}
	}
	return nil
}

// oldest is the place of something new. Only the last may be large: nine transactions of 4 MiB on each shelf would be
// what one who writes can have the server hold.
func (s *shelf) oldest() *shared {
	if last := &s.all[s.newest]; cap(last.buf) > bufferKept {
		*last = shared{}
	}
	s.newest = (s.newest + 1) % len(s.all)
	s.found = s.newest
	return &s.all[s.newest]
}

// shared is a batch with what was made of it.
type shared struct {
	common   bool // others may get the same
	items    []feed.Item
	cursor   feed.Cursor
	announce bool
	tick     bool
	buf      []byte // the memory of frames
	frames   []byte
	tag      string // of lines
}

// is tells whether the batch is the one that the frames were made of.
func (m *shared) is(b *feed.Batch) bool {
	return m.common && common(b) && b.Announce == m.announce && b.Tick == m.tick && b.Cursor == m.cursor && slices.Equal(b.Items, m.items)
}

// common tells whether a batch holds nothing that only one session gets.
func common(b *feed.Batch) bool { return len(b.Replies)+len(b.Resets) == 0 }

// keep remembers what was made of a batch, in buf. The items' frames are held until others have taken its place.
func (m *shared) keep(b *feed.Batch, buf, frames []byte) {
	clear(m.items)
	m.items = append(m.items[:0], b.Items...)
	m.common, m.cursor, m.announce, m.tick, m.buf, m.frames = common(b), b.Cursor, b.Announce, b.Tick, buf, frames
}

// attempt writes what a socket takes at once.
type attempt struct {
	fn   func(fd uintptr)
	left []byte
}

// write returns what is left. Whatever the error was, who writes the rest meets it again. Nobody else
// writes meanwhile. It goes past RawConn.Write, which readies the runtime's poller for a wait that
// never comes.
func (a *attempt) write(raw syscall.RawConn, b []byte) (left []byte) {
	if a.fn == nil {
		a.fn = a.once // a closure for each write would be an allocation for each
	}
	a.left = b
	_ = raw.Control(a.fn)
	left, a.left = a.left, nil
	return left
}

func (a *attempt) once(fd uintptr) {
	for len(a.left) > 0 {
		n, err := sendNow(fd, a.left)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		a.left = a.left[n:]
	}
}
