package gate

import (
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// RateOptions of a Rate. 0 is the default.
type RateOptions struct {
	PerSecond int // new feeds a second, in all. Default 2,000.
	Burst     int // as many at once. Default 4,000.

	// Of one address. Default 50, and 200 at once. Where both are 0 there is no limit of
	// their own for loopback addresses.
	AddressPerSecond int
	AddressBurst     int

	// Addresses is how many addresses are remembered at most. Default 65,536, about 7 MB.
	Addresses int
}

// Rate bounds how many feeds begin in a second: each costs a credential to check, a
// snapshot to read, and memory.
//
// It is fair: who is over its own limit takes nothing from others, and a quarter of
// the burst in all is kept for quiet addresses, whose own burst is at least half left.
// So an address that asks now and then gets in while many others storm.
//
// An address is forgotten once it has its whole burst again, which changes nothing but
// how far those are spread that it has refused next.
// Where more than Addresses come before that, the ones that have not been seen for
// longest are forgotten first, and have their whole burst again.
type Rate struct {
	// Static after construction.
	rate, burst     float64
	each, eachBurst float64
	chosen          bool    // each, or eachBurst
	keep            float64 // tokens that are for quiet addresses
	most            int
	whole           time.Duration // until a bucket is full again
	start           time.Time

	mu sync.Mutex
	// all is the bucket of everybody; young and old are those of addresses. What has not
	// moved to young when that is full, or whole is over, is forgotten.
	all        bucket
	young, old map[netip.Addr]bucket
	turned     time.Duration
}

// NewRate makes a Rate whose buckets are full.
func NewRate(o RateOptions) (*Rate, error) {
	chosen := o.AddressPerSecond > 0 || o.AddressBurst > 0
	var err error
	for _, s := range []struct {
		name      string
		n         *int
		otherwise int
	}{
		{"new feeds per second", &o.PerSecond, 2000},
		{"burst of new feeds", &o.Burst, 4000},
		{"new feeds per second and address", &o.AddressPerSecond, 50},
		{"burst of new feeds per address", &o.AddressBurst, 200},
		{"remembered addresses", &o.Addresses, 1 << 16},
	} {
		if *s.n, err = setting(s.name, *s.n, s.otherwise); err != nil {
			return nil, err
		}
	}
	r := &Rate{
		rate: float64(o.PerSecond), burst: float64(o.Burst), each: float64(o.AddressPerSecond), eachBurst: float64(o.AddressBurst),
		chosen: chosen, most: o.Addresses, start: time.Now(), young: map[netip.Addr]bucket{},
	}
	r.keep = (r.burst - 1) / 4 // so that what is full is enough for everybody
	r.whole = time.Duration(r.eachBurst / r.each * float64(time.Second))
	r.all.tokens = r.burst
	return r, nil
}

// Take lets a client's address (see [ClientAddr]) begin one feed. The error is a
// [*Refusal]: 429 if its address is over its limit, 503 if all are. Retry is random, in
// a window that grows with the number of those who were refused, to 1 min.
func (r *Rate) Take(client netip.Addr) error {
	free := exempt(client, r.chosen)
	client = bounded(client)
	now := time.Since(r.start)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn(now)
	b, known := r.young[client]
	if !known {
		if b, known = r.old[client]; known {
			delete(r.old, client)
		} else {
			b = bucket{at: now, tokens: r.eachBurst}
		}
	}
	b.fill(now, r.each, r.eachBurst)
	if b.tokens < 1 && !free {
		retry := b.refuse(r.each)
		r.young[client] = b
		return &Refusal{
			Status: http.StatusTooManyRequests, Code: codeTooMany, Short: AddressHandshakes, Retry: retry,
			Detail: fmt.Sprintf("your address opens more than %g feeds a second: come back later, and with backoff", r.each),
		}
	}
	need := 1 + r.keep
	if b.tokens >= r.eachBurst/2 {
		need = 1
	}
	b.tokens = max(0, b.tokens-1)
	r.all.fill(now, r.rate, r.burst)
	if r.all.tokens < need {
		// Who asks all the time does not stay quiet by being refused. A new address is not
		// remembered for it: only as many are as were let in.
		if known {
			r.young[client] = b
		}
		return &Refusal{
			Status: http.StatusServiceUnavailable, Code: codeUnavailable, Short: Handshakes, Retry: r.all.refuse(r.rate),
			Detail: "too many feeds begin at this moment: come back later, and with backoff",
		}
	}
	r.all.tokens--
	r.young[client] = b
	return nil
}

// turn forgets.
func (r *Rate) turn(now time.Duration) {
	if now-r.turned >= r.whole || len(r.young) >= max(1, r.most/2) {
		r.old, r.young = r.young, map[netip.Addr]bucket{}
		r.turned = now
	}
}

// Addresses is how many addresses are remembered.
func (r *Rate) Addresses() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.young) + len(r.old)
}
