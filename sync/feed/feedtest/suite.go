package feedtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"testing"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Harness is a log under test.
type Harness struct {
	// Log is open and empty. The suite uses it from one goroutine, except where it says
	// otherwise, until it calls Reopen.
	Log feed.Log
	// Reopen ends the log and returns it as a restart would find it. What it returns is
	// ended by the test's cleanup, which is the business of whoever made the Harness.
	Reopen func(t *testing.T) feed.Log
}

// Run checks the contract of feed.Log. open is called once for each test and makes a
// new log. The names of the tests say what users lose where they fail.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for _, test := range []struct {
		name string
		fn   func(*testing.T, *suite)
	}{
		{"an empty log is empty, not damaged", emptyLog},
		{"what was written is read back, each byte, in order", appendAndRead},
		{"a reader resumes where it was", resume},
		{"a writer that is behind or ahead writes nothing", fence},
		{"a group that is sent twice is stored once", twice},
		{"a write that was given up before it began is not there", cancelled},
		{"the largest group is taken, a larger one does no harm", groupSizes},
		{"bytes belong to the caller again after Append", appendKeepsNothing},
		{"a reader that ran ahead of the log is told", beyondTheEnd},
		{"a reader can stop", readStops},
		{"reading while others write sees no gap and misses nothing", readWhileAppending},
		{"there is no checkpoint before there is one", noCheckpoint},
		{"a checkpoint is loaded as it was saved", checkpoint},
		{"a new checkpoint replaces the old one", checkpointReplaced},
		{"a checkpoint that fails half-way leaves the old one", checkpointFails},
		{"a load can stop", loadStops},
		{"bytes of a part belong to the caller again", checkpointKeepsNothing},
		{"nothing is trimmed that no checkpoint stands for", trimTooMuch},
		{"after a trim, the checkpoint and the log still meet", trim},
		{"writing, saving, trimming and reading get along", together},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t)
			test.fn(t, &suite{t: t, h: h, log: h.Log})
		})
	}
}

// suite is what the tests share: the log, and the words to talk of it.
type suite struct {
	t   *testing.T
	h   Harness
	log feed.Log
}

// twiceOver runs a check, and once more after a restart.
func (s *suite) twiceOver(check func()) {
	s.t.Helper()
	check()
	s.reopen()
	check()
}

func (s *suite) reopen() {
	s.t.Helper()
	before := s.log.Epoch()
	s.log = s.h.Reopen(s.t)
	if after := s.log.Epoch(); after != before || !after.Valid() {
		s.t.Fatalf("the epoch was %q, and is %q after a restart", before, after)
	}
}

// group is the n-th group of the tests: bytes that no other has.
func group(n int) []byte {
	b := binary.BigEndian.AppendUint32([]byte("group \x00\xff\r\n"), uint32(n))
	return append(b, bytes.Repeat([]byte{byte(n)}, n%300)...)
}

func (s *suite) append(after feed.Position, b []byte) {
	s.t.Helper()
	at, err := s.log.Append(s.t.Context(), after, b)
	if err != nil || at != after+1 {
		s.t.Fatalf("Append after %d: position %d, %v", after, at, err)
	}
}

// fill appends groups 1 to n.
func (s *suite) fill(n int) {
	s.t.Helper()
	for i := range n {
		s.append(feed.Position(i), group(i+1))
	}
}

// wantRead reads after a position and wants the groups up to last, and no more.
func (s *suite) wantRead(after feed.Position, last int) {
	s.t.Helper()
	next := after + 1
	err := s.log.Read(s.t.Context(), after, func(at feed.Position, b []byte) error {
		if at != next {
			return fmt.Errorf("position %d follows %d", at, next-1)
		}
		if !bytes.Equal(b, group(int(at))) {
			return fmt.Errorf("position %d has other bytes than were written: %q", at, b)
		}
		next++
		return nil
	})
	if err != nil {
		s.t.Fatalf("Read after %d: %v", after, err)
	}
	if got := int(next) - 1; got != last {
		s.t.Fatalf("Read after %d ended at %d, want %d", after, got, last)
	}
}

func parts(list ...[]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, b := range list {
			if !yield(b, nil) {
				return
			}
		}
	}
}

func (s *suite) save(at feed.Position, list ...[]byte) {
	s.t.Helper()
	if err := s.log.SaveCheckpoint(s.t.Context(), at, parts(list...)); err != nil {
		s.t.Fatalf("SaveCheckpoint at %d: %v", at, err)
	}
}

func (s *suite) wantCheckpoint(at feed.Position, list ...[]byte) {
	s.t.Helper()
	var got [][]byte
	p, err := s.log.LoadCheckpoint(s.t.Context(), func(b []byte) error {
		got = append(got, bytes.Clone(b))
		return nil
	})
	if err != nil || p != at {
		s.t.Fatalf("LoadCheckpoint: position %d, %v; want %d", p, err, at)
	}
	if !slices.EqualFunc(got, list, bytes.Equal) {
		s.t.Fatalf("LoadCheckpoint: %d parts, not the %d that were saved", len(got), len(list))
	}
}

func emptyLog(t *testing.T, s *suite) {
	if !s.log.Epoch().Valid() {
		t.Fatalf("epoch %q", s.log.Epoch())
	}
	s.twiceOver(func() { s.wantRead(0, 0) })
}

func appendAndRead(t *testing.T, s *suite) {
	const n = 350
	s.fill(n)
	s.twiceOver(func() { s.wantRead(0, n) })
	s.append(n, group(n+1))
	s.twiceOver(func() { s.wantRead(0, n+1) })
}

func resume(t *testing.T, s *suite) {
	s.fill(10)
	s.twiceOver(func() {
		for after := range feed.Position(11) {
			s.wantRead(after, 10)
		}
	})
}

func fence(t *testing.T, s *suite) {
	s.fill(3)
	s.twiceOver(func() {
		for _, after := range []feed.Position{0, 1, 2, 4, 5, 1 << 40, 1<<63 + 1, 1<<64 - 2, 1<<64 - 1} {
			if _, err := s.log.Append(t.Context(), after, group(9)); !errors.Is(err, feed.ErrFenced) {
				t.Fatalf("Append after %d to a log that ends at 3: %v", after, err)
			}
		}
		s.wantRead(0, 3)
	})
	s.append(3, group(4))
	s.wantRead(0, 4)
}

func twice(t *testing.T, s *suite) {
	s.fill(2)
	if _, err := s.log.Append(t.Context(), 1, group(2)); !errors.Is(err, feed.ErrFenced) {
		t.Fatalf("the same group at the same place again: %v", err)
	}
	s.twiceOver(func() { s.wantRead(0, 2) })
}

func cancelled(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.log.Append(ctx, 0, group(1)); !errors.Is(err, context.Canceled) || errors.Is(err, feed.ErrUnknown) {
		t.Fatalf("Append with a context that is over: %v", err)
	}
	s.wantRead(0, 0)
	s.append(0, group(1))
	s.wantRead(0, 1)
}

func groupSizes(t *testing.T, s *suite) {
	large := bytes.Repeat([]byte("0123456789abcde\n"), feed.MaxGroup/16)
	sizes := []int{1, 1<<16 - 1, 1 << 16, feed.GroupSize, feed.MaxGroup, 1}
	for i, size := range sizes {
		s.append(feed.Position(i), large[:size])
	}
	last := feed.Position(len(sizes))
	for range 2 {
		if _, err := s.log.Append(t.Context(), last, append(large, 0)); err == nil || errors.Is(err, feed.ErrUnknown) || errors.Is(err, feed.ErrFenced) {
			t.Fatalf("Append of %d bytes: %v", len(large)+1, err)
		}
	}
	s.append(last, large[:2])
	sizes = append(sizes, 2)
	s.twiceOver(func() {
		i := 0
		err := s.log.Read(t.Context(), 0, func(at feed.Position, b []byte) error {
			if i >= len(sizes) || int(at) != i+1 || !bytes.Equal(b, large[:sizes[i]]) {
				return fmt.Errorf("position %d has %d bytes", at, len(b))
			}
			i++
			return nil
		})
		if err != nil || i != len(sizes) {
			t.Fatalf("%d groups, want %d: %v", i, len(sizes), err)
		}
	})
}

func appendKeepsNothing(t *testing.T, s *suite) {
	var b []byte
	for i := range 50 {
		b = append(b[:0], group(i+1)...)
		s.append(feed.Position(i), b)
		clear(b)
	}
	s.twiceOver(func() { s.wantRead(0, 50) })
}

func beyondTheEnd(t *testing.T, s *suite) {
	for last := range 3 {
		for _, after := range []feed.Position{feed.Position(last) + 1, feed.Position(last) + 2, 1 << 40, 1<<64 - 1} {
			err := s.log.Read(t.Context(), after, func(at feed.Position, _ []byte) error {
				return fmt.Errorf("there is a group at %d", at)
			})
			var damage *feed.Damage
			if !errors.Is(err, feed.ErrDamaged) || !errors.As(err, &damage) {
				t.Fatalf("Read after %d of a log that ends at %d: %v", after, last, err)
			}
		}
		s.append(feed.Position(last), group(last+1))
	}
	s.wantRead(0, 3)
}

func readStops(t *testing.T, s *suite) {
	s.fill(20)
	enough := errors.New("enough")
	for stop := 1; stop <= 20; stop += 6 {
		calls := 0
		err := s.log.Read(t.Context(), 0, func(at feed.Position, _ []byte) error {
			if calls++; int(at) == stop {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) || calls != stop {
			t.Fatalf("stopped at %d after %d calls: %v", stop, calls, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	err := s.log.Read(ctx, 0, func(feed.Position, []byte) error {
		calls++
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) || calls != 1 {
		t.Fatalf("cancelled in the first of %d calls: %v", calls, err)
	}
	s.wantRead(0, 20)
}

func readWhileAppending(t *testing.T, s *suite) {
	const n = 300
	acked := make(chan int, n)
	var writing sync.WaitGroup
	var failed error // read after writing is done
	writing.Go(func() {
		defer close(acked)
		for i := range n {
			if _, err := s.log.Append(t.Context(), feed.Position(i), group(i+1)); err != nil {
				failed = err
				return
			}
			acked <- i + 1
		}
	})
	defer writing.Wait()
	for least := range acked {
		if least%10 != 1 {
			continue // as many reads as writes would only take longer
		}
		last := 0
		err := s.log.Read(t.Context(), 0, func(at feed.Position, b []byte) error {
			if int(at) != last+1 || !bytes.Equal(b, group(int(at))) {
				return fmt.Errorf("position %d follows %d, or is not what was written", at, last)
			}
			last++
			return nil
		})
		if err != nil || last < least {
			t.Fatalf("read up to %d of at least %d: %v", last, least, err)
		}
	}
	writing.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	s.wantRead(0, n)
}

func noCheckpoint(t *testing.T, s *suite) {
	s.twiceOver(func() { s.wantCheckpoint(0) })
	s.fill(3)
	s.twiceOver(func() { s.wantCheckpoint(0) })
}

func checkpoint(t *testing.T, s *suite) {
	s.fill(5)
	part := bytes.Repeat([]byte("\x00\xffpart\r\n"), feed.MaxPart/8)
	list := [][]byte{part, part[:1], {}, part[:100], part}
	for i := range 200 {
		list = append(list, group(i))
	}
	s.save(5, list...)
	s.twiceOver(func() {
		s.wantCheckpoint(5, list...)
		s.wantRead(5, 5)
	})
}

func checkpointReplaced(t *testing.T, s *suite) {
	s.fill(9)
	for i, at := range []feed.Position{1, 4, 4, 9} {
		list := [][]byte{group(i), group(i + 10), group(i + 20)}[:3-i%3]
		s.save(at, list...)
		s.twiceOver(func() { s.wantCheckpoint(at, list...) })
	}
	s.save(9)
	s.twiceOver(func() { s.wantCheckpoint(9) })
	s.twiceOver(func() { s.wantRead(9, 9) })
}

func checkpointFails(t *testing.T, s *suite) {
	s.fill(6)
	broken := errors.New("broken")
	failing := func(after int) iter.Seq2[[]byte, error] {
		return func(yield func([]byte, error) bool) {
			for i := range after {
				if !yield(group(i), nil) {
					return
				}
			}
			yield(nil, broken)
		}
	}
	attempts := func() {
		t.Helper()
		for _, after := range []int{0, 1, 7} {
			if err := s.log.SaveCheckpoint(t.Context(), 6, failing(after)); !errors.Is(err, broken) {
				t.Fatalf("SaveCheckpoint with parts that fail: %v", err)
			}
		}
		if err := s.log.SaveCheckpoint(t.Context(), 6, parts(group(1), make([]byte, feed.MaxPart+1))); err == nil {
			t.Fatal("a part that is too large was taken")
		}
		ctx, cancel := context.WithCancel(t.Context())
		half := func(yield func([]byte, error) bool) {
			if yield(group(1), nil) {
				cancel()
				yield(group(2), nil)
			}
		}
		if err := s.log.SaveCheckpoint(ctx, 6, half); !errors.Is(err, context.Canceled) {
			t.Fatalf("SaveCheckpoint with a context that ends: %v", err)
		}
	}
	attempts()
	s.twiceOver(func() { s.wantCheckpoint(0) })
	s.save(5, group(7), group(8))
	attempts()
	s.twiceOver(func() { s.wantCheckpoint(5, group(7), group(8)) })
	attempts()
	s.save(6, group(9))
	s.twiceOver(func() { s.wantCheckpoint(6, group(9)) })
}

func loadStops(t *testing.T, s *suite) {
	s.fill(1)
	s.save(1, group(1), group(2), group(3))
	enough := errors.New("enough")
	calls := 0
	_, err := s.log.LoadCheckpoint(t.Context(), func([]byte) error {
		if calls++; calls == 2 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || calls != 2 {
		t.Fatalf("stopped in the second of %d calls: %v", calls, err)
	}
	s.wantCheckpoint(1, group(1), group(2), group(3))
}

func checkpointKeepsNothing(t *testing.T, s *suite) {
	s.fill(1)
	var list [][]byte
	err := s.log.SaveCheckpoint(t.Context(), 1, func(yield func([]byte, error) bool) {
		var b []byte
		for i := range 20 {
			b = append(b[:0], group(i)...)
			list = append(list, bytes.Clone(b))
			if !yield(b, nil) {
				return
			}
			clear(b)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	s.twiceOver(func() { s.wantCheckpoint(1, list...) })
}

func trimTooMuch(t *testing.T, s *suite) {
	s.fill(8)
	refused := func(before feed.Position) {
		t.Helper()
		if err := s.log.Trim(t.Context(), before); err == nil {
			t.Fatalf("trimmed before %d", before)
		}
	}
	refused(1)
	refused(8)
	s.save(5, group(1))
	refused(6)
	refused(8)
	refused(1<<64 - 1)
	s.twiceOver(func() { s.wantRead(0, 8) })
}

func trim(t *testing.T, s *suite) {
	doTrim := func(before feed.Position) {
		t.Helper()
		if err := s.log.Trim(t.Context(), before); err != nil {
			t.Fatalf("Trim before %d: %v", before, err)
		}
	}
	s.fill(8)
	s.save(5, group(50))
	doTrim(0)
	doTrim(1)
	s.twiceOver(func() { s.wantRead(0, 8) })
	for _, before := range []feed.Position{3, 2, 5, 5} {
		doTrim(before)
		s.twiceOver(func() {
			s.wantCheckpoint(5, group(50))
			s.wantRead(4, 8) // the group at the checkpoint's own position is kept
			s.wantRead(5, 8)
			s.wantRead(8, 8)
			// Trim may forget; what it did not, is whole.
			next := feed.Position(1)
			err := s.log.Read(t.Context(), 0, func(at feed.Position, b []byte) error {
				if at != next || !bytes.Equal(b, group(int(at))) {
					return fmt.Errorf("position %d, want %d", at, next)
				}
				next++
				return nil
			})
			if trimmed := next == 1 && errors.Is(err, feed.ErrDamaged); !trimmed && (next != 9 || err != nil) {
				t.Fatalf("read of what may be trimmed came to %d: %v", next-1, err)
			}
		})
	}
	s.append(8, group(9))
	if _, err := s.log.Append(t.Context(), 1, group(2)); !errors.Is(err, feed.ErrFenced) {
		t.Fatalf("Append where the log was trimmed: %v", err)
	}
	s.save(9, group(90))
	doTrim(9)
	s.twiceOver(func() {
		s.wantCheckpoint(9, group(90))
		s.wantRead(8, 9)
		s.wantRead(9, 9)
	})
	s.append(9, group(10))
	s.twiceOver(func() { s.wantRead(8, 10) })
}

func together(t *testing.T, s *suite) {
	const n = 200
	s.fill(1)
	ctx := t.Context()
	appended := make(chan feed.Position, n)
	var work sync.WaitGroup
	work.Go(func() {
		defer close(appended)
		for i := 1; i < n; i++ {
			at, err := s.log.Append(ctx, feed.Position(i), group(i+1))
			if err != nil {
				t.Errorf("Append: %v", err)
				return
			}
			appended <- at
		}
	})
	saved := make(chan feed.Position, n)
	work.Go(func() {
		defer close(saved)
		for at := range appended {
			if at%20 != 0 {
				continue
			}
			if err := s.log.SaveCheckpoint(ctx, at, parts(group(int(at)), group(int(at)+1))); err != nil {
				t.Errorf("SaveCheckpoint: %v", err)
				return
			}
			saved <- at
		}
	})
	done := make(chan struct{})
	work.Go(func() {
		defer close(done)
		for at := range saved {
			if err := s.log.Trim(ctx, at); err != nil {
				t.Errorf("Trim: %v", err)
				return
			}
		}
	})
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		// As a second node would start: the checkpoint, then what follows it. The log may
		// be trimmed in between, if a newer checkpoint was saved; then it starts over.
		var first []byte
		at, err := s.log.LoadCheckpoint(ctx, func(b []byte) error {
			if first == nil {
				first = bytes.Clone(b)
			}
			return nil
		})
		if err != nil || at > 0 && !bytes.Equal(first, group(int(at))) {
			t.Errorf("LoadCheckpoint: position %d, %v", at, err)
			break
		}
		next := at + 1
		err = s.log.Read(ctx, at, func(p feed.Position, b []byte) error {
			if p != next || !bytes.Equal(b, group(int(p))) {
				return fmt.Errorf("position %d, want %d", p, next)
			}
			next++
			return nil
		})
		if err != nil && !(errors.Is(err, feed.ErrDamaged) && next == at+1) {
			t.Errorf("Read after %d came to %d: %v", at, next-1, err)
			break
		}
	}
	work.Wait()
	if t.Failed() {
		return
	}
	s.twiceOver(func() {
		s.wantCheckpoint(n, group(n), group(n+1))
		s.wantRead(n-1, n)
	})
}
