package faults_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidemark-sync/tidemark/cmd/faults/oracle"
	"github.com/tidemark-sync/tidemark/transport/follow"
)

// recorder gathers a history. It is safe for concurrent use.
type recorder struct {
	epoch time.Time // when the history began; its times are monotonic

	mu sync.Mutex
	h  oracle.History // guarded by mu
}

func newRecorder() *recorder { return &recorder{epoch: time.Now()} }

func (r *recorder) now() time.Duration { return time.Since(r.epoch) }

func (r *recorder) start(x *oracle.Start) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Starts = append(r.h.Starts, x)
}

func (r *recorder) starts() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.h.Starts)
}

// problem is a violation that the harness sees by itself.
func (r *recorder) problem(rule, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Problems = append(r.h.Problems, oracle.Violation{Rule: rule, What: fmt.Sprintf(format, args...)})
}

func (r *recorder) write(w *oracle.Write) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Writes = append(r.h.Writes, w)
}

func (r *recorder) stream(s *oracle.Stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Streams = append(r.h.Streams, s)
}

// check decides about all that was recorded; nothing may be recorded meanwhile.
func (r *recorder) check() (*oracle.History, oracle.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &r.h, oracle.Check(&r.h)
}

// tape records what one follower gets.
type tape struct {
	r        *recorder
	follower string
	life     int
	stream   *oracle.Stream // the one under way
	last     time.Duration  // when the last frame came, or the connection was asked for
}

// asked begins a connection; its first frame will be open.
func (t *tape) asked() {
	t.stream, t.last = nil, t.r.now()
}

// frame records a frame. at is where the feed was before it.
func (t *tape) frame(transport string, at follow.Cursors, f follow.Frame) {
	now := t.r.now()
	if f.Type == "open" || t.stream == nil {
		t.stream = &oracle.Stream{Follower: t.follower, Life: t.life, Transport: transport, Asked: t.last}
		for _, c := range at.Collections() {
			t.stream.From = append(t.stream.From, oracle.Place{Collection: c.Name, Cursor: c.Cursor})
		}
		t.r.stream(t.stream)
	}
	t.last = now
	t.stream.Frames = append(t.stream.Frames, oracle.Frame{
		At: now, Type: f.Type, Epoch: string(f.Epoch), Seq: uint64(f.Seq), Collection: f.Collection, Op: f.Op, Key: f.Key,
		Value: string(f.Value), Client: f.By.Client, ID: f.By.ID, More: f.More,
		Collections: slices.Clone(f.Collections), Reason: f.Reason, Cursor: f.Cursor,
	})
}

func epochOf(cursor string) string {
	epoch, _, _ := strings.Cut(cursor, "-")
	return epoch
}

func fresh(names []string) (list []follow.Collection) {
	for _, name := range names {
		list = append(list, follow.Collection{Name: name})
	}
	return list
}
