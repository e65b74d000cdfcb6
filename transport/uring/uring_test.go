//go:build linux

package uring_test

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/transport/uring"
)

const most = 16

// list is Work whose results are kept, and counted.
type list struct {
	entries []uring.Entry
	results []int
	told    []int
}

func (l *list) Entry(i int) uring.Entry { return l.entries[i] }
func (l *list) Done(i, result int) {
	l.results[i] = result
	l.told[i]++
}

func do(t rapid.TB, r *uring.Ring, entries []uring.Entry) []int {
	t.Helper()
	l := &list{entries, make([]int, len(entries)), make([]int, len(entries))}
	if !r.Do(l, len(entries)) {
		t.Fatal("the ring is broken")
	}
	for i, n := range l.told {
		if n != 1 {
			t.Fatalf("entry %d was told of %d times", i, n)
		}
	}
	return l.results
}

func ring(t testing.TB) *uring.Ring {
	r, err := uring.New(most)
	if errors.Is(err, uring.ErrUnsupported) {
		t.Skip("SKIPPED: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// pair is two ends of one connection.
func pair(t interface {
	rapid.TB
	Cleanup(func())
}) (a, b int) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(ends[0]); unix.Close(ends[1]) })
	return ends[0], ends[1]
}

func TestEachSocketGetsItsOwnBytesAndGivesItsOwn(t *testing.T) {
	r := ring(t)
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 5000), 1, most).Draw(t, "texts")
		sends, receives := make([]uring.Entry, len(texts)), make([]uring.Entry, len(texts))
		got := make([][]byte, len(texts))
		for i, text := range texts {
			a, b := pair(t)
			got[i] = make([]byte, 6000)
			sends[i], receives[i] = uring.Send(a, text), uring.Receive(b, got[i])
		}
		for i, n := range do(t, r, sends) {
			if n != len(texts[i]) {
				t.Fatalf("of %d bytes %d were sent", len(texts[i]), n)
			}
		}
		for i, n := range do(t, r, receives) {
			if n < 0 || !bytes.Equal(got[i][:n], texts[i]) {
				t.Fatalf("%d: %d bytes came of %d, or others", i, n, len(texts[i]))
			}
		}
	})
}

func TestWhoCannotIsToldWhyAndTheOthersDoNotWait(t *testing.T) {
	r := ring(t)
	full, _ := pair(t)
	for err := error(nil); err == nil; {
		_, err = unix.Write(full, make([]byte, 64<<10))
	}
	silent, _ := pair(t)
	left, other := pair(t)
	unix.Close(other)
	fine, reader := pair(t)
	b := make([]byte, 10)
	results := do(t, r, []uring.Entry{
		uring.Send(full, b), uring.Receive(silent, b), uring.Send(left, b), uring.Receive(left, b), uring.Send(-1, b), uring.Send(fine, b),
	})
	want := []int{-int(syscall.EAGAIN), -int(syscall.EAGAIN), -int(syscall.EPIPE), 0, -int(syscall.EBADF), len(b)}
	for i := range want {
		if results[i] != want[i] {
			t.Errorf("entry %d came to %d, want %d", i, results[i], want[i])
		}
	}
	if n, err := unix.Read(reader, b); n != len(b) || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}
