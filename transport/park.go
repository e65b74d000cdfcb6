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
	events   shared
	messages shared
	framing  messages
	lines    shared
	tag      string // of lines
}

func (s *Server) memoOf(desk *hub.Desk) *memo {
	m, ok := desk.Memo.(*memo)
	if !ok {
		m = &memo{sends: sends{plain: s.opts.OneByOne}}
		desk.Memo, desk.Flush = m, m.sends.flush
	}
	return m
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
}

// is tells whether the batch is the one that the frames were made of.
func (m *shared) is(b *feed.Batch) bool {
	return m.common && common(b) && b.Announce == m.announce && b.Tick == m.tick && b.Cursor == m.cursor && slices.Equal(b.Items, m.items)
}

// common tells whether a batch holds nothing that only one session gets.
func common(b *feed.Batch) bool { return len(b.Replies)+len(b.Resets) == 0 }

// keep remembers what was made of a batch, in buf. The items' frames are held until another
// batch comes: at most one batch for each attendant.
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
