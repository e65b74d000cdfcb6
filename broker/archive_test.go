package broker_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/broker/history"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// A bit that flips under a server that keeps a history is mended from memory as under one
// that keeps none: to archive the log, or to read it, must not be what ends the service.
func TestABitThatFlipsDoesNotStopAServerWithAHistory(t *testing.T) {
	for at := range 12 {
		dir := memoryDir(t)
		opts := broker.Options{Dir: dir, History: &history.Options{}}
		l := openWith(t, opts)
		w := writing{}
		add := func() {
			t.Helper()
			w.add(t, l, one("acme", `{"a":1}`))
		}
		for range 12 {
			add()
		}
		closeLog(t, l) // so that the server has to read what it archives
		l = openWith(t, opts)
		blk := filepath.Join(dir, logDir, "msgs/1.blk")
		b := read(t, blk)
		place := bytes.LastIndex(b[:len(b)/2+300], []byte("NATS/1.0")) - 4 - 3 - 22 + 4 + at
		b[place] ^= 1 << (at % 8)
		write(t, blk, b)
		runtime.GC() // the server holds what it has read by weak pointers
		if _, err := l.History(t.Context(), feed.HistoryRange{Tenant: "acme", From: 1}, func(feed.HistoryStep) error { return nil }); err == nil {
			t.Errorf("byte %d of %d: it was read", place, len(b))
		}
		save(t, l, 11, []byte("of then"))
		if err := l.Trim(t.Context(), 11); err == nil || errors.Is(err, feed.ErrDamaged) {
			t.Fatalf("byte %d of %d: %v", place, len(b), err)
		}
		if err := l.Rewrite(t.Context(), func(ctx context.Context) error {
			add()
			return l.SaveCheckpoint(ctx, w.last, onePart([]byte("state")))
		}); err != nil {
			t.Fatalf("byte %d of %d: %v", place, len(b), err)
		}
		closeLog(t, l)
	}
}

// A disk that the history has filled takes no groups, and so nothing is added to the history:
// who starts the server with less of it must get the room.
func TestAShorterHistoryMakesRoomAtOnce(t *testing.T) {
	dir := memoryDir(t)
	opts := broker.Options{Dir: dir, History: &history.Options{SegmentBytes: 64 << 10}}
	l := openWith(t, opts)
	w := writing{}
	for range 40 {
		w.add(t, l, one("acme", `{"a":"`+strings.Repeat("x", 30_000)+`"}`))
	}
	save(t, l, 40, []byte("state"))
	if err := l.Trim(t.Context(), 40); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	before := sizeOf(t, filepath.Join(dir, "history"))
	opts.History = &history.Options{Bytes: 256 << 10}
	closeLog(t, openWith(t, opts))
	if after := sizeOf(t, filepath.Join(dir, "history")); before < 1<<20 || after > 400<<10 {
		t.Errorf("the history had %d bytes, and has %d", before, after)
	}
}

func sizeOf(t *testing.T, dir string) (n int64) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}

// writing is where a log stands that has only groups with something in them.
type writing struct {
	last feed.Position
	next feed.Seq
	prev feed.Sum
}

// add appends a group.
func (w *writing) add(t *testing.T, l *broker.Log, all ...feed.Transaction) {
	t.Helper()
	g := feed.Group{Epoch: l.Epoch(), Position: w.last + 1, First: w.next + 1, At: 1, Times: feed.Times{Age: 1, Steady: 1}, Prev: w.prev, Transactions: all}
	var b []byte
	b, w.prev = feed.AppendGroup(nil, &g)
	if _, err := l.Append(t.Context(), w.last, b); err != nil {
		t.Fatal(err)
	}
	w.last, w.next = w.last+1, w.next+feed.Seq(len(all))
}

// one is a tenant's transaction of one row.
func one(tenant, value string) feed.Transaction {
	return feed.Transaction{Tenant: tenant, Records: []feed.Record{{Op: feed.Insert, Collection: tenant, Key: tenant, Value: value}}}
}
