package gate_test

import (
	"math"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/tidemark-sync/tidemark/transport/gate"
)

// BenchmarkTake is what each new feed pays, let in and refused.
func BenchmarkTake(b *testing.B) {
	addresses := make([]netip.Addr, 1<<14)
	for i := range addresses {
		addresses[i] = address(i)
	}
	for _, c := range []struct {
		name string
		o    gate.RateOptions
		n    int // addresses
	}{
		{"let-in/1-address", gate.RateOptions{PerSecond: 1e9, Burst: 1e9, AddressPerSecond: 1e9, AddressBurst: 1e9}, 1},
		{"let-in/16384-addresses", gate.RateOptions{PerSecond: 1e9, Burst: 1e9, AddressPerSecond: 1e9, AddressBurst: 1e9}, len(addresses)},
		{"refused/1-address", gate.RateOptions{AddressPerSecond: 1, AddressBurst: 1}, 1},
		{"refused/all", gate.RateOptions{PerSecond: 1, Burst: 1}, len(addresses)},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRate(b, c.o)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				_ = r.Take(addresses[i%c.n])
				i++
			}
		})
		b.Run(c.name+"/parallel", func(b *testing.B) {
			r := newRate(b, c.o)
			var next atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for i := int(next.Add(1)) * 1000; pb.Next(); i++ {
					_ = r.Take(addresses[i%c.n])
				}
			})
		})
	}
}

// BenchmarkAdmit is what each connection and each request for a feed pays, with the
// reading that is due every 100 ms.
func BenchmarkAdmit(b *testing.B) {
	plenty := func() (used, limit int) { // else most are refused: they come faster than a reading
		used, _ = gate.Files()
		return used, math.MaxInt
	}
	for name, k := range map[string]gate.Kind{"connection": gate.Connection, "feed": gate.Feed} {
		b.Run(name, func(b *testing.B) {
			w, err := gate.Readings(gate.WatchOptions{}, math.MaxInt64, plenty, gate.Measure)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				_ = w.Admit(k)
			}
		})
		b.Run(name+"/parallel", func(b *testing.B) {
			w, err := gate.Readings(gate.WatchOptions{}, math.MaxInt64, plenty, gate.Measure)
			if err != nil {
				b.Fatal(err)
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_ = w.Admit(k)
				}
			})
		})
	}
}

// BenchmarkReading is one reading of the real process.
func BenchmarkReading(b *testing.B) {
	b.Run("descriptors", func(b *testing.B) {
		for b.Loop() {
			gate.Files()
		}
	})
	b.Run("memory", func(b *testing.B) {
		for b.Loop() {
			gate.Measure()
		}
	})
}
