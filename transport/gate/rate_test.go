package gate_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/transport/gate"
)

func newRate(t testing.TB, o gate.RateOptions) *gate.Rate {
	t.Helper()
	r, err := gate.NewRate(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// address is one of many.
func address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0xb0000000+uint32(n))))
}

// taken is how many of n feeds may begin.
func taken(r *gate.Rate, a netip.Addr, n int) (granted int) {
	for range n {
		if r.Take(a) == nil {
			granted++
		}
	}
	return granted
}

func TestDefaultRateIsAsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRate(t, gate.RateOptions{})
		if n := taken(r, address(0), 1000); n != 200 {
			t.Errorf("one address has a burst of %d", n)
		}
		time.Sleep(time.Second)
		if n := taken(r, address(0), 1000); n != 50 {
			t.Errorf("then %d a second", n)
		}
		all := taken(r, address(0), 100)
		for i := range 5000 {
			all += taken(r, address(1+i), 1)
		}
		if all != 4000-50 {
			t.Errorf("everybody has a burst of %d", all+50)
		}
		time.Sleep(time.Second)
		all = 0
		for i := range 5000 {
			all += taken(r, address(10_000+i), 1)
		}
		if all != 2000 {
			t.Errorf("then %d a second", all)
		}
		err := r.Take(address(20_000))
		if got := refusal(t, err); got.Status != 503 || got.Code != "unavailable" || got.Short != gate.Handshakes {
			t.Errorf("%+v", got)
		}
	})
}

// A quiet address is never refused because of a noisy one.
func TestStormOfOneAddressRefusesNoOther(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		o := gate.RateOptions{
			PerSecond: rapid.IntRange(20, 200).Draw(rt, "rate"), Burst: rapid.IntRange(20, 400).Draw(rt, "burst"),
			AddressPerSecond: rapid.IntRange(1, 10).Draw(rt, "each"), AddressBurst: rapid.IntRange(4, 20).Draw(rt, "each burst"),
		}
		steps := rapid.SliceOfN(rapid.IntRange(0, 300), 5, 40).Draw(rt, "noise")
		synctest.Test(t, func(t *testing.T) {
			r := newRate(t, o)
			for i, noise := range steps {
				granted := taken(r, address(0), noise)
				if i == 0 && granted > o.AddressBurst {
					rt.Fatalf("the noisy one had %d of %d", granted, o.AddressBurst)
				}
				// Every one that asks once in this step, as many as everybody may together with
				// the noisy one's own share.
				for q := range min(o.PerSecond-o.AddressPerSecond, o.Burst-o.AddressBurst) {
					if err := r.Take(address(1 + q)); err != nil {
						rt.Fatalf("step %d: quiet address %d is refused: %v", i, q, err)
					}
				}
				time.Sleep(time.Second)
			}
		})
	})
}

// Where so many storm that together they are over what everybody may, quiet ones still
// get in.
func TestStormOfManyAddressesRefusesNoQuietOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRate(t, gate.RateOptions{})
		noisy, quiet, refused := 0, 0, 0
		for step := range 250 { // 25 s
			for i := range 300 {
				noisy += taken(r, address(i), 20)
			}
			if step > 100 { // after their bursts
				for i := range 20 {
					quiet++
					if r.Take(address(1000+(step*20+i)%2000)) != nil {
						refused++
					}
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		if refused > 0 {
			t.Errorf("%d of %d are refused", refused, quiet)
		}
		if all := noisy + quiet; all < 25*1990 || all > 4000+25*2000 {
			t.Errorf("%d begin in 25 s", all)
		}
	})
}

// A NAT whose clients were all refused must not see them all again at once.
func TestRefusedComeBackSpread(t *testing.T) {
	for name, c := range map[string]struct {
		o    gate.RateOptions
		take func(r *gate.Rate, i int) error
	}{
		"one address":   {gate.RateOptions{AddressPerSecond: 100, AddressBurst: 100}, func(r *gate.Rate, i int) error { return r.Take(address(0)) }},
		"all addresses": {gate.RateOptions{PerSecond: 100, Burst: 100}, func(r *gate.Rate, i int) error { return r.Take(address(i)) }},
	} {
		take := c.take
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRate(t, c.o)
				var back []time.Duration
				for i := range 1100 {
					if err := take(r, i); err != nil {
						back = append(back, refusal(t, err).Retry)
					}
				}
				if len(back) != 1000 {
					t.Fatalf("%d are refused", len(back))
				}
				early := slices.Max(back[:20])
				slices.Sort(back)
				if back[0] < time.Second || early > 2*time.Second || back[999] < 15*time.Second || back[999] > 21*time.Second+time.Second {
					t.Errorf("from %v to %v; the first 20 within %v", back[0], back[999], early)
				}
				// They come when they were told, and as often as they are told.
				waves, start := 0, time.Now()
				for len(back) > 0 && waves < 10_000 {
					waves++
					next := back[0]
					back = back[1:]
					if d := next - time.Since(start); d > 0 {
						time.Sleep(d)
					}
					if err := take(r, 5000+waves); err != nil {
						back = append(back, time.Since(start)+refusal(t, err).Retry)
						slices.Sort(back)
					}
				}
				if took := time.Since(start); took > 60*time.Second || waves > 4000 {
					t.Errorf("1000 at 100 a second are in after %v and %d attempts", took, waves)
				} else {
					t.Logf("1000 at 100 a second are in after %v and %d attempts", took, waves)
				}
			})
		})
	}
}

func TestRateRemembersBoundedlyMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRate(t, gate.RateOptions{PerSecond: 1e9, Burst: 1e9})
		for i := range 200_000 {
			if err := r.Take(address(i)); err != nil {
				t.Fatal(err)
			}
			if n := r.Addresses(); n > 1<<16 {
				t.Fatalf("%d addresses", n)
			}
		}
		// By default only those are remembered who were let in.
		r = newRate(t, gate.RateOptions{})
		for i := range 200_000 {
			_ = r.Take(address(i))
		}
		if n := r.Addresses(); n > 4000 {
			t.Errorf("%d addresses, and 4000 were let in", n)
		}
		for range 3 {
			time.Sleep(5 * time.Second)
			_ = r.Take(address(0))
		}
		if n := r.Addresses(); n != 1 {
			t.Errorf("%d addresses after a quiet while", n)
		}
	})
}

// A flood of addresses must not make the server forget who storms.
func TestNoisyAddressIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRate(t, gate.RateOptions{PerSecond: 1e6, Burst: 1e6, Addresses: 1000})
		noisy, next, granted := address(0), 1, 0
		for range 100 { // 10 s
			granted += taken(r, noisy, 100)
			for range 400 {
				_ = r.Take(address(next))
				next++
			}
			time.Sleep(100 * time.Millisecond)
		}
		if granted > 200+10*50 {
			t.Errorf("%d begin in 10 s", granted)
		}
	})
}

// Who has read the clock first may come second.
func TestTimeThatTurnsBackFillsNothing(t *testing.T) {
	if n := gate.Filled(10, 1000, 10*time.Second, 2*time.Second, 11*time.Second); n != 110 {
		t.Errorf("%g after 11 s, at 10 a second", n)
	}
}

func TestForgettingGivesNobodyMore(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		pauses := rapid.SliceOfN(rapid.IntRange(0, 9000), 1, 30).Draw(rt, "ms")
		asks := rapid.IntRange(1, 300).Draw(rt, "asks")
		synctest.Test(t, func(t *testing.T) {
			r := newRate(t, gate.RateOptions{})
			start, granted := time.Now(), 0
			for _, ms := range pauses {
				granted += taken(r, address(0), asks)
				for i := range 10 {
					_ = r.Take(address(1 + i))
				}
				time.Sleep(time.Duration(ms) * time.Millisecond)
			}
			if most := 200 + 50*time.Since(start).Seconds(); float64(granted) > most {
				rt.Fatalf("%d in %v", granted, time.Since(start))
			}
		})
	})
}
