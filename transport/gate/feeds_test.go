package gate_test

import (
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/transport/gate"
)

// refusal is the refusal that an error must be.
func refusal(t testing.TB, err error) *gate.Refusal {
	t.Helper()
	var r *gate.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("not a refusal: %v", err)
	}
	if r.Detail == "" || r.Code == "" || (r.Status == 429 || r.Status == 503) != (r.Retry > 0) || r.Retry > time.Minute {
		t.Errorf("%+v", r)
	}
	return r
}

func TestOneAddressCannotHaveAllFeeds(t *testing.T) {
	f, err := gate.NewFeeds(3)
	if err != nil {
		t.Fatal(err)
	}
	home, phone, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("203.0.113.7")
	var leave []func()
	for _, a := range []netip.Addr{home, phone, home} {
		l, err := f.Enter(a)
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	_, err = f.Enter(phone)
	if r := refusal(t, err); r.Status != 429 || r.Short != gate.AddressFeeds {
		t.Errorf("%+v", r)
	}
	l, err := f.Enter(other)
	if err != nil {
		t.Errorf("another address is refused: %v", err)
	}
	l()
	leave[0]()
	leave[0]() // again, it gives nothing back
	if l, err = f.Enter(home); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Enter(home); err == nil {
		t.Error("leaving twice has made room twice")
	}
	l()
	leave[1]()
	leave[2]()
	if n := f.Addresses(); n != 0 {
		t.Errorf("%d addresses are remembered without a feed", n)
	}
}

func TestFeedsOfManyAtOnceAreCountedRight(t *testing.T) {
	f, err := gate.NewFeeds(0)
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("203.0.113.7")
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []func()
	for range 20 {
		wg.Go(func() {
			for range 100 {
				if leave, err := f.Enter(a); err == nil {
					mu.Lock()
					all = append(all, leave)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if len(all) != 1000 {
		t.Errorf("%d feeds by default", len(all))
	}
	for _, leave := range all {
		wg.Go(leave)
		wg.Go(leave)
	}
	wg.Wait()
	if n := f.Addresses(); n != 0 {
		t.Errorf("%d addresses are remembered without a feed", n)
	}
}

func TestNoLimitIsNegativeOrOff(t *testing.T) {
	if _, err := gate.NewFeeds(-1); err == nil {
		t.Error("feeds per address")
	}
	for _, o := range []gate.RateOptions{{PerSecond: -1}, {Burst: -1}, {AddressPerSecond: -1}, {AddressBurst: -1}, {Addresses: -1}} {
		if _, err := gate.NewRate(o); err == nil {
			t.Errorf("%+v", o)
		}
	}
	for _, o := range []gate.WatchOptions{{Memory: -1}, {Descriptors: -1}} {
		if _, err := gate.NewWatch(o); err == nil {
			t.Errorf("%+v", o)
		}
	}
	for _, o := range []gate.ListenOptions{{Most: -1}, {PerAddress: -1}, {Answers: -1}, {Trusted: make([]netip.Prefix, 1)}} {
		if _, err := gate.Listen(nil, o); err == nil {
			t.Errorf("%+v", o)
		}
	}
}
