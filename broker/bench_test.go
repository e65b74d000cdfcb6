package broker_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

var changes = flag.Int("changes", 100_000, "changes in the log that BenchmarkRead reads")

var sizes = []struct {
	name string
	n    int
}{{"256B", 256}, {"64KiB", 64 << 10}, {"512KiB", 512 << 10}}

// BenchmarkFsync is the floor of BenchmarkAppend: what the disk takes for the same
// bytes. Read the two from one run, with -run '^$' -bench 'Fsync|Append' -count 5.
func BenchmarkFsync(b *testing.B) {
	for _, size := range sizes {
		b.Run(size.name, func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "bare"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			data := bytes.Repeat([]byte("x"), size.n)
			b.SetBytes(int64(size.n))
			for b.Loop() {
				if _, err := f.Write(data); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, size := range sizes {
		b.Run(size.name, func(b *testing.B) {
			l := open(b, b.TempDir())
			data := bytes.Repeat([]byte("x"), size.n)
			b.SetBytes(int64(size.n))
			b.ReportAllocs()
			var at feed.Position
			var err error
			for b.Loop() {
				if at, err = l.Append(b.Context(), at, data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// writeChanges makes a store of groups of so many changes of 200 bytes each.
func writeChanges(b *testing.B, groups, records int) (dir string) {
	b.Helper()
	dir = b.TempDir()
	l := open(b, dir)
	c := &chain{epoch: l.Epoch()}
	for range groups {
		after := c.pos
		if _, err := l.Append(b.Context(), after, c.next(records, 190)); err != nil {
			b.Fatal(err)
		}
	}
	closeLog(b, l)
	return dir
}

// BenchmarkOpen opens a log, which reads all of it once, and closes it.
func BenchmarkOpen(b *testing.B) {
	dir := writeChanges(b, *changes/64, 64)
	for b.Loop() {
		closeLog(b, open(b, dir))
	}
	b.ReportMetric(float64(*changes)*float64(b.N)/b.Elapsed().Seconds(), "changes/s")
}

// BenchmarkRead reads groups of 64 changes of 200 bytes, decoded and not, and small
// messages, from a log that was just opened.
func BenchmarkRead(b *testing.B) {
	for _, records := range []int{64, 1} {
		groups := *changes / 64
		l := open(b, writeChanges(b, groups, records))
		for _, decode := range []bool{true, false} {
			b.Run(fmt.Sprintf("%d,decode=%t", records, decode), func(b *testing.B) {
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					n = 0
					err := l.Read(b.Context(), 0, func(_ feed.Position, group []byte) error {
						n++
						if !decode {
							return nil
						}
						_, _, err := feed.DecodeGroup(group)
						return err
					})
					if err != nil || n != groups {
						b.Fatalf("%d groups, %v", n, err)
					}
				}
				per := b.Elapsed().Seconds() / float64(b.N)
				b.ReportMetric(float64(n)/per, "groups/s")
				b.ReportMetric(float64(n*records)/per, "changes/s")
			})
		}
		closeLog(b, l)
	}
}

// BenchmarkCheckpoint saves and loads a state of 64 MiB.
func BenchmarkCheckpoint(b *testing.B) {
	const total = 64 << 20
	for _, size := range []int{256 << 10, feed.MaxPart} {
		l := open(b, b.TempDir())
		fill(b, l, 1)
		part := bytes.Repeat([]byte("0123456789abcdef"), size/16)
		parts := func(yield func([]byte, error) bool) {
			for range total / size {
				if !yield(part, nil) {
					return
				}
			}
		}
		b.Run(fmt.Sprintf("save,parts=%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(total)
			for b.Loop() {
				if err := l.SaveCheckpoint(b.Context(), 1, parts); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("load,parts=%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(total)
			for b.Loop() {
				if _, err := l.LoadCheckpoint(b.Context(), func([]byte) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
		closeLog(b, l)
	}
}
