package broker_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// smallDisk is a file system of so many bytes, or the test is skipped, loudly.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if runtime.GOOS != "linux" {
		t.Skip("***** SKIPPED: NO SMALL DISK CAN BE MOUNTED HERE *****")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("***** SKIPPED: NO SMALL DISK CAN BE MOUNTED HERE: %v *****", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillDisk takes all but n bytes of the file system of dir.
func fillDisk(t *testing.T, dir string, n int64) (empty func()) {
	t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	write(t, ballast, make([]byte, max(0, int64(s.Bavail)*int64(s.Bsize)-n)))
	return func() { remove(t, ballast) }
}

// appendUntil appends until it is refused, and returns that error.
func appendUntil(t *testing.T, l *broker.Log, c *chain, size int) error {
	t.Helper()
	for range 10_000 {
		was := *c
		if _, err := l.Append(t.Context(), was.pos, c.next(1, size)); err != nil {
			*c = was
			return err
		}
	}
	t.Fatal("the disk never got full")
	return nil
}

// comesBack appends one more group within ten seconds.
func comesBack(t *testing.T, l *broker.Log, c *chain) {
	t.Helper()
	next := *c
	b := next.next(1, 10)
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) { // the store's own time: its disk is real
		_, err := l.Append(t.Context(), c.pos, b)
		if err == nil {
			*c = next
			t.Logf("it came back after %s", time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("it does not come back: %v", err)
		}
		if !errors.Is(err, feed.ErrNotReady) && !errors.Is(err, feed.ErrNotWritten) {
			t.Fatal(err)
		}
	}
}

// A store on a disk that somebody else fills refuses before it is hurt: nothing fails,
// reads go on, and it takes writes when there is room.
func TestDiskBelowTheReserveIsNotWrittenTo(t *testing.T) {
	dir := smallDisk(t, "size=32m")
	l := openWith(t, broker.Options{Dir: filepath.Join(dir, "store"), Reserve: 8 << 20})
	c := fill(t, l, 5)
	empty := fillDisk(t, dir, 4<<20)
	if err := appendUntil(t, l, c, 10); !errors.Is(err, feed.ErrNotReady) || errors.Is(err, feed.ErrUnknown) {
		t.Fatal(err)
	}
	if err := l.SaveCheckpoint(t.Context(), 5, onePart(make([]byte, 1<<20))); !errors.Is(err, feed.ErrNotReady) {
		t.Fatal("a checkpoint took the rest: ", err)
	}
	if l.Ready() == nil {
		t.Error("it says that it is ready")
	}
	wantAll(t, l, c)
	empty()
	comesBack(t, l, c)
	if err := l.Ready(); err != nil {
		t.Error(err)
	}
	closeLog(t, l)
	wantAll(t, openWith(t, broker.Options{Dir: filepath.Join(dir, "store"), Reserve: 8 << 20}), c)
}

// Where there is plenty, nobody looks for each group; but somebody else may fill a disk in a moment.
func TestDiskWithPlentyOfRoomThatIsSuddenlyFullIsNotWrittenTo(t *testing.T) {
	dir := smallDisk(t, "size=4g")
	resize := func(size string) {
		t.Helper()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
	l := openWith(t, broker.Options{Dir: filepath.Join(dir, "store"), Reserve: 8 << 20})
	c := fill(t, l, 5)
	for range 2 {
		resize("8m") // of which the store has some

		for began := time.Now(); l.Ready() == nil; time.Sleep(5 * time.Millisecond) { // the store's own time: its disk is real
			if time.Since(began) > 5*time.Second {
				t.Fatal("it never noticed")
			}
		}
		if err := appendUntil(t, l, c, 10); !errors.Is(err, feed.ErrNotReady) || errors.Is(err, feed.ErrUnknown) {
			t.Fatal(err)
		}
		resize("4g")
		comesBack(t, l, c)
	}
	wantAll(t, l, c)
}

// The disk is full to the last byte: JetStream then stays shut until it is started anew.
func TestFullDiskLosesNothingAndComesBackByItself(t *testing.T) {
	dir := smallDisk(t, "size=48m")
	store := filepath.Join(dir, "store")
	opts := broker.Options{Dir: store, Reserve: 64 << 10, Timeout: 3 * time.Second}
	l := openWith(t, opts)
	c := fill(t, l, 5)
	save(t, l, 5, c.state())
	for round := range 3 {
		// Somebody else takes the reserve between the look at it and the write.
		for i := 0; ; i++ {
			if i == 100 {
				t.Fatal("the disk never failed")
			}
			empty := fillDisk(t, dir, 128<<10)
			stop := make(chan struct{})
			done := make(chan struct{})
			go func() {
				defer close(done)
				f, err := os.Create(filepath.Join(dir, "more"))
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				for b := make([]byte, 32<<10); ; {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := f.Write(b); err != nil {
						f.Truncate(0)
						f.Seek(0, 0)
					}
				}
			}()
			err := appendUntil(t, l, c, 40<<10)
			close(stop)
			<-done
			remove(t, filepath.Join(dir, "more"))
			empty()
			if errors.Is(err, feed.ErrNotWritten) {
				t.Logf("round %d: %v", round, err)
				break
			}
			if !errors.Is(err, feed.ErrNotReady) {
				t.Fatal(err)
			}
			comesBack(t, l, c)
		}
		comesBack(t, l, c)
		wantAll(t, l, c)
	}
	closeLog(t, l)
	wantAll(t, openWith(t, opts), c)
}

// TestAPurgeForWhichThereIsNoRoomHarmsNobody: the log would else serve no more, because somebody
// asked for something to be deleted on a disk that is half full.
func TestAPurgeForWhichThereIsNoRoomHarmsNobody(t *testing.T) {
	dir := smallDisk(t, "size=96m")
	opts := broker.Options{Dir: filepath.Join(dir, "store"), Reserve: 4 << 20, Scrub: -1}
	l := openWith(t, opts)
	c := &chain{epoch: l.Epoch()}
	for range 20 {
		after := c.pos
		if _, err := l.Append(t.Context(), after, c.next(1, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	purge := func() error {
		return l.Purge(t.Context(), func(ctx context.Context) error {
			grow(t, l, c, 1)
			return l.SaveCheckpoint(ctx, c.pos, onePart(c.state()))
		})
	}
	empty := fillDisk(t, dir, 16<<20)
	if err := purge(); err == nil || !strings.Contains(err.Error(), "MiB left") {
		t.Fatal(err)
	}
	grow(t, l, c, 2)
	empty()
	if err := purge(); err != nil {
		t.Fatal(err)
	}
	grow(t, l, c, 2)
	closeLog(t, l)
	if got, err := restore(openWith(t, opts)); err != nil || *got != *c {
		t.Fatal(got, err)
	}
}

// A file that is freed a piece at a time must be nobody's any more: a removal that failed, or another name, keeps it whole.
func TestAFileThatSomebodyMayStillReadIsNotCut(t *testing.T) {
	whole := bytes.Repeat([]byte("tide"), 1<<20)
	for name, between := range map[string]func(path string) (left string){
		"not removed": func(path string) string { return path },
		"another name": func(path string) string {
			other := path + ".other"
			if err := errors.Join(os.Link(path, other), os.Remove(path)); err != nil {
				t.Fatal(err)
			}
			return other
		},
	} {
		path := filepath.Join(t.TempDir(), "1.blk")
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		free := broker.Linger(path)
		left := between(path)
		free(func() { t.Error(name + ": a piece of it is freed") })
		if b, err := os.ReadFile(left); err != nil || !bytes.Equal(b, whole) {
			t.Errorf("%s: %d of %d bytes are left, %v", name, len(b), len(whole), err)
		}
	}
	broker.Linger(filepath.Join(t.TempDir(), "gone"))(func() { t.Error("there is nothing to free") })
}
