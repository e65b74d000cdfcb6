package broker_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/broker"
)

// Whoever takes the lock's file for one that was left behind, and removes it, must not get a
// second process in: each would write over what the other has acknowledged.
func TestAStoreWhoseLockFileWasRemovedIsStillInUse(t *testing.T) {
	dir := memoryDir(t)
	l := open(t, dir)
	c := fill(t, l, 3)
	remove(t, filepath.Join(dir, "LOCK"))
	for range 2 {
		second, err := broker.Open(context.Background(), broker.Options{Dir: dir})
		if err == nil {
			closeLog(t, second)
		}
		if !errors.Is(err, broker.ErrInUse) {
			t.Fatal(err)
		}
		if _, err := broker.Inspect(t.Context(), dir); !errors.Is(err, broker.ErrInUse) {
			t.Fatal(err)
		}
	}
	closeLog(t, l)
	wantAll(t, open(t, dir), c)
}

// That a log was relaxed and that nobody closed it is one word of its marker: a bit of it
// that flips must not make what a crash took back go unnoticed, under the same epoch.
func TestAFlippedBitDoesNotHideThatARelaxedLogWasNotClosed(t *testing.T) {
	dir := memoryDir(t)
	l := openWith(t, broker.Options{Dir: dir, Relaxed: true})
	fill(t, l, 3)
	path := filepath.Join(dir, "tidemark.json")
	marker := read(t, path) // as a crash leaves it
	closeLog(t, l)
	at := bytes.Index(marker, []byte(`"relaxed":true`))
	if at < 0 {
		t.Fatalf("%s", marker)
	}
	for i := range len(`"relaxed":true`) {
		for bit := range 8 {
			b := bytes.Clone(marker)
			b[at+i] ^= 1 << bit
			write(t, path, b)
			if l, err := broker.Open(context.Background(), broker.Options{Dir: dir}); err == nil {
				closeLog(t, l)
				t.Errorf("opened with %s", b)
			}
		}
	}
}

// A restore that was killed has left nothing that counts. To serve an empty store in its
// place would tell every client that all its rows are gone.
func TestARestoreThatWasKilledIsNotServedAsAnEmptyStore(t *testing.T) {
	dir := memoryDir(t)
	leaveUnfinished(t, dir)
	if l, err := broker.Open(context.Background(), broker.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "restore again") {
		if err == nil {
			closeLog(t, l)
		}
		t.Fatal(err)
	}
	var c chain
	if _, err := broker.Replace(t.Context(), broker.Options{Dir: dir}, fillWith(3, &c)); err != nil {
		t.Fatal(err)
	}
	wantAll(t, open(t, dir), &c)
}

// What a rewrite that was killed has left is as large as all that the store holds.
func TestARewriteThatWasKilledLeavesNoCopyOnTheDisk(t *testing.T) {
	dir := memoryDir(t)
	l := open(t, dir)
	c := fill(t, l, 3)
	closeLog(t, l)
	leaveUnfinished(t, dir)
	wantAll(t, open(t, dir), c)
	if _, err := os.Stat(filepath.Join(dir, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// leaveUnfinished leaves in dir what a log that was to be put in its place had come to.
func leaveUnfinished(t *testing.T, dir string) {
	t.Helper()
	fresh := filepath.Join(dir, "new")
	l := open(t, fresh)
	fill(t, l, 2)
	closeLog(t, l)
}
