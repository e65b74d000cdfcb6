package hub_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// aValue is about what a row has: 80 bytes.
func aValue(n int) string {
	return fmt.Sprintf(`{"title":"buy milk, number %07d","done":false,"owner":"someone@example.com"}`, n)
}

// noLimits are beyond what a benchmark does: what is measured is not when a tenant is refused.
var noLimits = hub.Limits{Writes: 1 << 30, Bytes: 1 << 50, Rows: 1 << 40, Size: 1 << 50}

// fill writes changes to keys of todos, 500 at a time, and returns the bytes of their
// keys and values.
func fill(t testing.TB, h *hub.Hub, changes, keys int) (size int64) {
	for i := 0; i < changes; i += feed.MaxChanges {
		r := hub.Request{Tenant: "acme", Writes: make([]hub.Write, min(feed.MaxChanges, changes-i))}
		for j := range r.Writes {
			r.Writes[j] = put("todos", fmt.Sprintf("key-%09d", (i+j)%keys), aValue(i+j))
			size += int64(len(r.Writes[j].Key) + len(r.Writes[j].Value))
		}
		if _, err := h.Write(context.Background(), hub.Everything, r); err != nil {
			t.Fatal(err)
		}
	}
	return size
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkMemory tells what a row costs beside its key and its value, and what the hub
// says that it does. The budget is 200 bytes.
func BenchmarkMemory(b *testing.B) {
	for _, rows := range []int{100_000, 600_000, 1_000_000} {
		b.Run(fmt.Sprint("rows=", rows), func(b *testing.B) {
			for b.Loop() {
				log := feedtest.NewMemory()
				before := heap()
				h := open(b, log, hub.Options{Limits: noLimits, Memory: 4 << 30, Log: 4 << 30})
				size := fill(b, h, rows, rows)
				log.Harm(func([][]byte) [][]byte { return nil })
				b.ReportMetric(float64(heap()-before-size)/float64(rows), "B/row")
				b.ReportMetric(float64(h.Stats().Bytes-size)/float64(rows), "counted-B/row")
				h.Drain(context.Background())
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkMemoryOfIDs tells what a remembered id costs beside itself.
func BenchmarkMemoryOfIDs(b *testing.B) {
	const ids = 500_000
	for b.Loop() {
		log := feedtest.NewMemory()
		before := heap()
		h := open(b, log, hub.Options{Limits: noLimits, Memory: 4 << 30, Log: 4 << 30})
		for i := 0; i < ids; i += feed.MaxChanges {
			r := hub.Request{Tenant: "acme", Client: "client-81", Writes: make([]hub.Write, feed.MaxChanges)}
			for j := range r.Writes {
				r.Writes[j] = as(fmt.Sprintf("id-%09d", i+j), put("todos", "a", `{}`))
			}
			if _, err := h.Write(context.Background(), hub.Everything, r); err != nil {
				b.Fatal(err)
			}
		}
		log.Harm(func([][]byte) [][]byte { return nil })
		b.ReportMetric(float64(heap()-before)/ids, "B/id")
		b.ReportMetric(float64(h.Stats().Bytes)/ids, "counted-B/id")
		h.Drain(context.Background())
	}
	b.ReportMetric(0, "ns/op")
}

func BenchmarkAfter(b *testing.B) {
	const rows = 100_000
	h := open(b, feedtest.NewMemory(), hub.Options{Limits: noLimits})
	fill(b, h, rows, rows)
	b.Run("all", func(b *testing.B) {
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			all, _ := h.After("todos", 0)
			n += all
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds()/1e6, "Mentries/s")
	})
	b.Run("tail", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			h.After("todos", rows)
		}
	})
	b.Run("last", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			h.After("todos", rows-1)
		}
	})
}

// BenchmarkNext is what a session costs that looks, as its transport makes it.
func BenchmarkNext(b *testing.B) {
	const rows = 100_000
	h := open(b, feedtest.NewMemory(), hub.Options{Limits: noLimits})
	fill(b, h, rows, rows)
	over, cancel := context.WithCancel(context.Background())
	cancel()
	b.Run("snapshot", func(b *testing.B) {
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			s := session(b, h, "todos")
			for live := false; !live; {
				batch, err := s.Next(over)
				if err != nil {
					b.Fatal(err)
				}
				n += len(batch.Items)
				live = batch.Live
			}
			s.Close()
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds()/1e6, "Mentries/s")
	})
	for _, collections := range []int{1, 16, 256} {
		b.Run(fmt.Sprint("nothing, collections=", collections), func(b *testing.B) {
			names := []string{"todos"}
			for len(names) < collections {
				names = append(names, fmt.Sprint("c", len(names)))
			}
			s, err := h.Open(hub.Everything, "acme", nil, hub.SessionOptions{})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			for _, n := range names {
				s.Subscribe([]feed.Start{{Collection: n, Cursors: []string{feed.Cursor{Epoch: h.Epoch(), Seq: rows}.String()}}}, "done")
			}
			s.Next(over)
			b.ReportAllocs()
			for b.Loop() {
				s.Next(over)
			}
		})
	}
}

// BenchmarkFanOut is one change to a thousand sessions, each with a goroutine of its own.
func BenchmarkFanOut(b *testing.B) {
	const sessions = 1000
	h := open(b, feedtest.NewMemory(), hub.Options{Limits: noLimits})
	var all, waiting sync.WaitGroup
	var got atomic.Int64
	done := make(chan struct{}, 1)
	for range sessions {
		s := session(b, h, "todos")
		if _, err := s.Next(context.Background()); err != nil {
			b.Fatal(err)
		}
		waiting.Add(1)
		all.Go(func() {
			waiting.Done()
			for {
				batch, err := s.Next(context.Background())
				if err != nil {
					return
				}
				if len(batch.Items) > 0 && got.Add(1)%sessions == 0 {
					done <- struct{}{}
				}
			}
		})
	}
	waiting.Wait()
	b.ReportAllocs()
	for b.Loop() {
		write(b, h, put("todos", "a", aValue(1)))
		<-done
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/sessions, "ns/delivery")
	h.Drain(context.Background())
	all.Wait()
}

// BenchmarkOpen reads a million changes of 100,000 rows back.
func BenchmarkOpen(b *testing.B) {
	for name, kept := range map[string]int64{"log": 1 << 40, "checkpoint": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			const changes, rows = 1_000_000, 100_000
			log := feedtest.NewMemory()
			h := open(b, log, hub.Options{Limits: noLimits, Memory: 4 << 30, Log: kept})
			fill(b, h, changes, rows)
			h.Drain(context.Background())
			b.ReportAllocs()
			for b.Loop() {
				h := open(b, log, hub.Options{Limits: noLimits, Memory: 4 << 30, Log: kept})
				if h.Stats().Rows != rows {
					b.Fatal(h.Stats())
				}
				h.Drain(context.Background())
			}
			b.ReportMetric(changes*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mchanges/s")
		})
	}
}

// BenchmarkWrite is what a write costs beside the disk.
func BenchmarkWrite(b *testing.B) {
	for _, writers := range []int{1, 64, 256} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			log := feedtest.NewMemory()
			h := open(b, log, hub.Options{Limits: noLimits, Memory: 4 << 30})
			var n atomic.Int64
			b.SetParallelism((writers + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(p *testing.PB) {
				id := n.Add(1)
				for i := 0; p.Next(); i++ {
					w := as(fmt.Sprint(id, "-", i), put("todos", fmt.Sprint("key-", i%1000), aValue(i)))
					if _, err := try(h, w); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/float64(max(1, log.Appends())), "writes/group")
		})
	}
}
