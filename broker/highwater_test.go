package broker_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// behind is a store whose mark stands before its last group, as a power cut in the
// milliseconds after it leaves it.
func behind(t *testing.T) (dir string, c *chain) {
	t.Helper()
	dir = filepath.Join(memoryDir(t), "store")
	l := openWith(t, broker.Options{Dir: dir, Reserve: 1})
	c = fill(t, l, 5)
	closeLog(t, l)
	mark := read(t, filepath.Join(dir, "high-water"))
	l = openWith(t, broker.Options{Dir: dir, Reserve: 1})
	grow(t, l, c, 1)
	closeLog(t, l)
	write(t, filepath.Join(dir, "high-water"), mark)
	return dir, c
}

func TestWhatWasServedAfterAStartSurvivesADiskThatFails(t *testing.T) {
	dir, c := behind(t)
	l := openWith(t, broker.Options{Dir: dir, Reserve: 1})
	wantAll(t, l, c) // every reader has seen it
	l.FailServer()
	comesBack(t, l, c)
	wantAll(t, l, c)
}

func TestFilesAreWrittenAnewAfterAStart(t *testing.T) {
	dir, c := behind(t)
	l := openWith(t, broker.Options{Dir: dir, Reserve: 1, Scrub: -1})
	err := l.Rewrite(t.Context(), func(ctx context.Context) error {
		last := c.pos
		if _, err := l.Append(ctx, last, c.next(1, 10)); err != nil {
			return err
		}
		return l.SaveCheckpoint(ctx, c.pos, onePart(c.state()))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAWriteThatWasSettledByReadingSurvivesADiskThatFails(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "store")
	l := openWith(t, broker.Options{Dir: dir, Reserve: 1})
	c := fill(t, l, 5)
	var after feed.Position
	var b []byte
	var err error
	slow := l.SetTimeout(time.Nanosecond)
	for range 1000 { // some answers come within a nanosecond
		after = c.pos
		b = c.next(1, 10)
		if _, err = l.Append(t.Context(), after, b); err != nil {
			break
		}
	}
	slow()
	if !errors.Is(err, feed.ErrUnknown) {
		t.Fatalf("all answers came in time: %v", err)
	}
	if _, err := l.Append(t.Context(), after, b); !errors.Is(err, feed.ErrFenced) {
		t.Fatal(err)
	}
	wantAll(t, l, c) // it is there: so its writer was told
	l.FailServer()
	comesBack(t, l, c)
	closeLog(t, l)
	wantAll(t, openWith(t, broker.Options{Dir: dir, Reserve: 1}), c)
}
