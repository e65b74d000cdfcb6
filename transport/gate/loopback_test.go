package gate_test

import (
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/tidemark-sync/tidemark/transport/gate"
)

// By default no limit per address holds for this machine, and a chosen one does.
func TestThisMachineHasNoLimitOfItsOwn(t *testing.T) {
	for from, own := range map[string]bool{
		"127.0.0.1": true, "127.8.9.10": true, "::1": true, "::ffff:127.0.0.1": true, "::1%lo": true,
		"126.0.0.1": false, "128.0.0.1": false, "::2": false, "10.0.0.1": false, "fe80::1": false, "2001:db8::1": false, "0.0.0.0": false,
	} {
		addr := netip.MustParseAddr(from)
		for limit, has := range map[string]func(t *testing.T, chosen bool) bool{ // whether more than the limit may
			"connections": func(t *testing.T, chosen bool) bool {
				o := gate.ListenOptions{}
				most := 2000
				if chosen {
					o.PerAddress, most = 3, 3
				}
				n, l, _ := listen(t, o)
				for range most + 1 {
					defer n.dial(from).Close()
				}
				synctest.Wait()
				return l.Stats().Open == most+1
			},
			"feeds": func(t *testing.T, chosen bool) bool {
				most, n := 1000, 0
				if chosen {
					most, n = 3, 3
				}
				f, err := gate.NewFeeds(n)
				if err != nil {
					t.Fatal(err)
				}
				for range most {
					if _, err := f.Enter(addr); err != nil {
						t.Fatal(err)
					}
				}
				_, err = f.Enter(addr)
				return err == nil
			},
			"feeds a second": func(t *testing.T, chosen bool) bool {
				o := gate.RateOptions{}
				if chosen {
					o.AddressPerSecond = 50
				}
				return taken(newRate(t, o), addr, 201) == 201
			},
			"a burst of feeds": func(t *testing.T, chosen bool) bool {
				o := gate.RateOptions{}
				if chosen {
					o.AddressBurst = 200
				}
				return taken(newRate(t, o), addr, 201) == 201
			},
		} {
			for _, chosen := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					if got, want := has(t, chosen), own && !chosen; got != want {
						t.Errorf("%s from %s, where the limit was chosen is %t: more than it is %t", limit, from, chosen, got)
					}
				})
			}
		}
	}
}

// What holds for all holds for this machine too; and it leaves to quiet addresses what
// is theirs.
func TestThisMachineCannotHaveAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here := netip.MustParseAddr("127.0.0.1")
		n, l, _ := listen(t, gate.ListenOptions{Most: 2500})
		for range 3000 {
			defer n.dial("127.0.0.1").Close()
		}
		synctest.Wait()
		if s := l.Stats(); s.Open != 2500 || s.Refused[gate.Connections] != 500 || s.Refused[gate.AddressConnections] != 0 {
			t.Errorf("%+v", s)
		}
		r := newRate(t, gate.RateOptions{})
		if n := taken(r, here, 10_000); n != 3000 {
			t.Errorf("it has %d of a burst of 4000", n)
		}
		if got := refusal(t, r.Take(here)); got.Status != 503 || got.Short != gate.Handshakes {
			t.Errorf("%+v", got)
		}
		for i := range 900 {
			if err := r.Take(address(i)); err != nil {
				t.Fatalf("quiet address %d: %v", i, err)
			}
		}
	})
}
