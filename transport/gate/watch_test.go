package gate_test

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/transport/gate"
)

// process is one that a Watch sees.
type process struct {
	used, limit  atomic.Int64
	needed, held atomic.Int64
	reads        atomic.Int64
	takes        atomic.Int64 // how long a reading takes
}

func (p *process) files() (used, limit int) {
	p.reads.Add(1)
	if d := p.takes.Load(); d > 0 {
		time.Sleep(time.Duration(d))
	}
	return int(p.used.Load()), int(p.limit.Load())
}

func (p *process) memory() (needed, held int64) { return p.needed.Load(), p.held.Load() }

func (p *process) watch(t testing.TB, o gate.WatchOptions, told int64) *gate.Watch {
	t.Helper()
	w, err := gate.Readings(o, told, p.files, p.memory)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// shortOf is what a Watch is short of; "" if of nothing.
func shortOf(t testing.TB, w *gate.Watch, k gate.Kind) gate.Short {
	t.Helper()
	err := w.Admit(k)
	if err == nil {
		return ""
	}
	r := refusal(t, err)
	if r.Status != 503 || r.Code != "unavailable" || r.Retry < 5*time.Second || r.Retry > 15*time.Second {
		t.Errorf("%+v", r)
	}
	return r.Short
}

const untoldMemory = math.MaxInt64 // what the runtime says where it was told nothing

func TestDescriptorsAreKeptForTheLog(t *testing.T) {
	for _, c := range []struct{ asked, limit, kept int }{
		{0, 20_000, 2000}, {0, 1000, 100}, {0, 400, 64}, {0, 100, 50}, {0, 1, 0}, {7, 1000, 7}, {999, 1000, 999},
	} {
		synctest.Test(t, func(t *testing.T) {
			var p process
			p.limit.Store(int64(c.limit))
			w := p.watch(t, gate.WatchOptions{Descriptors: c.asked}, untoldMemory)
			if r := w.Reading(); r.DescriptorReserve != c.kept || r.DescriptorLimit != c.limit {
				t.Fatalf("%+v keeps %d of %d", c, r.DescriptorReserve, r.DescriptorLimit)
			}
			p.used.Store(int64(c.limit - c.kept))
			time.Sleep(100 * time.Millisecond)
			if s := shortOf(t, w, gate.Connection); s != "" { // its own is among them
				t.Errorf("%+v: with the last one, short of %s", c, s)
			}
			if s := shortOf(t, w, gate.Connection); s != gate.Descriptors {
				t.Errorf("%+v: with one more, short of %q", c, s)
			}
			if s := shortOf(t, w, gate.Feed); s != "" { // it needs none
				t.Errorf("%+v: a feed is short of %s", c, s)
			}
		})
	}
	for _, c := range []struct{ asked, limit int }{{1000, 1000}, {1001, 1000}, {1, 1}} {
		var p process
		p.limit.Store(int64(c.limit))
		if _, err := gate.Readings(gate.WatchOptions{Descriptors: c.asked}, untoldMemory, p.files, p.memory); err == nil {
			t.Errorf("%d of %d are kept", c.asked, c.limit)
		}
	}
}

// Between two readings those that were let in are counted, and no others.
func TestConnectionsCountBetweenReadings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p process
		p.limit.Store(1000)
		p.used.Store(891)
		p.needed.Store(95)
		w := p.watch(t, gate.WatchOptions{Memory: 100}, untoldMemory)
		for range 50 {
			if s := shortOf(t, w, gate.Connection); s != gate.Memory { // they take no descriptor
				t.Fatalf("short of %q", s)
			}
		}
		p.needed.Store(1)
		time.Sleep(100 * time.Millisecond)
		in := 0
		for range 50 {
			if shortOf(t, w, gate.Connection) == "" {
				in++
			}
		}
		if in != 10 {
			t.Errorf("%d more with 891 of 1000", in)
		}
		time.Sleep(100 * time.Millisecond) // the reading sees that they have all gone
		if s := shortOf(t, w, gate.Connection); s != "" {
			t.Errorf("then short of %s", s)
		}
	})
}

func TestManyAtOnceTakeNoMoreDescriptorsThanThereAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p process
		p.limit.Store(1000)
		p.used.Store(401)
		w := p.watch(t, gate.WatchOptions{}, untoldMemory)
		var in atomic.Int64
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 200 {
					if w.Admit(gate.Connection) == nil {
						in.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if n := in.Load(); n != 500 {
			t.Errorf("%d more with 401 of 1000, and 100 kept", n)
		}
	})
}

func TestNothingIsWatchedWhereNothingIsKnown(t *testing.T) {
	var p process
	p.used.Store(1 << 40)
	w := p.watch(t, gate.WatchOptions{Descriptors: 5}, untoldMemory)
	for range 10 {
		if s := shortOf(t, w, gate.Connection); s != "" {
			t.Fatalf("short of %s", s)
		}
	}
	if r := w.Reading(); r.DescriptorLimit != 0 || r.DescriptorReserve != 0 {
		t.Errorf("%+v", r)
	}
	var none *gate.Watch
	if none.Admit(gate.Connection) != nil || none.Admit(gate.Feed) != nil {
		t.Error("a nil Watch refuses")
	}
}

func TestMemoryRunsOutForFeedsFirst(t *testing.T) {
	const limit = 1000
	for _, c := range []struct {
		name             string
		asked, told      int64
		needed, held     int64
		feed, connection gate.Short
	}{
		{"plenty", limit, untoldMemory, 799, 949, "", ""},
		{"feeds stop", limit, untoldMemory, 800, 800, gate.Memory, ""},
		{"feeds stop, still", limit, untoldMemory, 899, 899, gate.Memory, ""},
		{"connections stop", limit, untoldMemory, 900, 900, gate.Memory, gate.Memory},
		{"garbage", limit, untoldMemory, 100, 950, gate.Memory, gate.Memory},
		{"garbage of a runtime that keeps to the limit", 0, limit, 100, 2000, "", ""},
		{"a runtime that keeps to the limit needs too much", 0, limit, 900, 900, gate.Memory, gate.Memory},
		{"garbage of a runtime that was told less", 2 * limit, limit, 799, 2000, "", ""},
		{"a runtime that was told less needs more of it", 2 * limit, limit, 800, 2000, gate.Memory, ""},
		{"garbage of a runtime that was told more", limit, 2 * limit, 100, 950, gate.Memory, gate.Memory},
		{"garbage of a runtime that was told the same", limit, limit, 100, 950, "", ""},
		{"a runtime that was told nothing", limit, 0, 100, 950, gate.Memory, gate.Memory},
		{"2 GiB by default", 0, untoldMemory, 800 << 20, 1900 << 20, "", ""},
		{"more than 2 GiB by default", 0, untoldMemory, 1640 << 20, 1900 << 20, gate.Memory, ""},
	} {
		var p process
		p.needed.Store(c.needed)
		p.held.Store(c.held)
		w := p.watch(t, gate.WatchOptions{Memory: c.asked}, c.told)
		if feed, connection := shortOf(t, w, gate.Feed), shortOf(t, w, gate.Connection); feed != c.feed || connection != c.connection {
			t.Errorf("%s: a feed is short of %q, a connection of %q", c.name, feed, connection)
		}
		if r := w.Reading(); r.Needed != c.needed || r.Held != c.held {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
}

func TestAReadingLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p process
		w := p.watch(t, gate.WatchOptions{}, untoldMemory)
		for range 1000 { // 10 s
			_ = w.Admit(gate.Connection)
			_ = w.Admit(gate.Feed)
			_ = w.Reading()
			time.Sleep(10 * time.Millisecond)
		}
		if n := p.reads.Load(); n != 100 {
			t.Errorf("read %d times in 10 s", n)
		}
	})
}

// Those who find a reading old at the same time read once.
func TestManyWhoAskAtOnceReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p process
		w := p.watch(t, gate.WatchOptions{}, untoldMemory)
		for round := range 300 {
			time.Sleep(100 * time.Millisecond)
			before := p.reads.Load()
			begin := make(chan struct{})
			var wg sync.WaitGroup
			for range 32 {
				wg.Go(func() {
					<-begin
					_ = w.Admit(gate.Feed)
				})
			}
			close(begin)
			wg.Wait()
			if n := p.reads.Load() - before; n != 1 {
				t.Fatalf("round %d: read %d times", round, n)
			}
		}
	})
}

// While one reads, others go by what was read before.
func TestNobodyWaitsForAReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p process
		w := p.watch(t, gate.WatchOptions{}, untoldMemory)
		time.Sleep(100 * time.Millisecond)
		p.takes.Store(int64(5 * time.Millisecond))
		var wg sync.WaitGroup
		wg.Go(func() { _ = w.Admit(gate.Feed) })
		synctest.Wait()
		start := time.Now()
		if err := w.Admit(gate.Feed); err != nil || time.Since(start) > 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		wg.Wait()
		// It took 5 ms, so it lasts 500.
		before := p.reads.Load()
		for range 49 {
			time.Sleep(10 * time.Millisecond)
			_ = w.Admit(gate.Feed)
		}
		if n := p.reads.Load() - before; n != 0 {
			t.Errorf("read %d times within 490 ms", n)
		}
		time.Sleep(10 * time.Millisecond)
		_ = w.Admit(gate.Feed)
		if n := p.reads.Load() - before; n != 1 {
			t.Errorf("read %d times within 500 ms", n)
		}
	})
}

// A process that was stopped in the middle of a reading must not live by it for long.
func TestOneSlowReadingDoesNotLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p process
		w := p.watch(t, gate.WatchOptions{}, untoldMemory)
		p.takes.Store(int64(10 * time.Second))
		time.Sleep(time.Second)
		_ = w.Admit(gate.Feed)
		p.takes.Store(0)
		p.needed.Store(4 << 30)
		time.Sleep(2 * time.Second)
		if s := shortOf(t, w, gate.Feed); s != gate.Memory {
			t.Errorf("2 s later it is short of %q", s)
		}
	})
}

func TestTheRealProcessIsSeen(t *testing.T) {
	w, err := gate.NewWatch(gate.WatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := w.Reading()
	if r.Needed <= 0 || r.Held < r.Needed || r.MemoryLimit <= 0 {
		t.Errorf("%+v", r)
	}
	if r.DescriptorLimit > 0 && (r.Descriptors < 3 || r.Descriptors > r.DescriptorLimit) {
		t.Errorf("%+v", r)
	}
	if err := w.Admit(gate.Connection); err != nil {
		t.Error(err)
	}
}

var kept []byte

func TestWhatIsNeededIsNotGarbage(t *testing.T) {
	const size = 64 << 20
	before, _ := gate.Measure()
	kept = make([]byte, size)
	for i := range kept {
		kept[i] = 1
	}
	gc()
	with, _ := gate.Measure()
	kept = nil
	gc()
	after, _ := gate.Measure()
	if with-before < size*9/10 || with-after < size*9/10 {
		t.Errorf("with %d bytes more: %d, %d, %d", size, before, with, after)
	}
}

func gc() {
	runtime.GC()
	runtime.GC() // what the first one found it has swept now
}
