package gate

import (
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Feeds counts the open feeds of each address.
type Feeds struct {
	// Static after construction.
	most   int
	chosen bool

	mu   sync.Mutex
	open map[netip.Addr]int // no zeros: as many as there are open feeds, at most
}

// NewFeeds lets each address have perAddress open feeds. Default, with 0: 1,000, since a
// whole office may be behind one, and no limit of their own for loopback addresses.
func NewFeeds(perAddress int) (*Feeds, error) {
	most, err := setting("feeds per address", perAddress, 1000)
	if err != nil {
		return nil, err
	}
	return &Feeds{most: most, chosen: perAddress > 0, open: map[netip.Addr]int{}}, nil
}

// Enter counts a feed of a client's address (see [ClientAddr]). leave must be called
// when the feed ends; again, it does nothing. The error is a [*Refusal]: 429.
func (f *Feeds) Enter(client netip.Addr) (leave func(), err error) {
	free := exempt(client, f.chosen)
	client = bounded(client)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !free && f.open[client] >= f.most {
		return nil, &Refusal{
			Status: http.StatusTooManyRequests, Code: codeTooMany, Short: AddressFeeds, Retry: between(10*time.Second, 30*time.Second),
			Detail: fmt.Sprintf("your address has %d open feeds; it may have no more: close one, or share one among many pages", f.most),
		}
	}
	f.open[client]++
	left := false // guarded by f.mu
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if left {
			return
		}
		left = true
		if f.open[client]--; f.open[client] == 0 {
			delete(f.open, client)
		}
	}, nil
}

// Addresses is how many addresses have an open feed.
func (f *Feeds) Addresses() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.open)
}
