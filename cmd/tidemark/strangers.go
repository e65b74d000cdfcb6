package main

import (
	"fmt"

	"github.com/tidemark-sync/tidemark/transport"
	"github.com/tidemark-sync/tidemark/transport/gate"
)

// Strangers is what those may take whom nobody knows yet. nil is the default of package
// gate; none can be switched off.
type Strangers struct {
	MaxConnections           int      `default:"65536" placeholder:"N" group:"Strangers" help:"Connections at a time; beyond them 503. Default: ${default}."`
	MaxConnectionsPerAddress *int     `placeholder:"N" group:"Strangers" help:"Connections at a time of one IPv4 address or IPv6 /64. Default: 2000, and no limit of their own for clients on this machine."`
	MaxFeedsPerAddress       *int     `placeholder:"N" group:"Strangers" help:"Feeds at a time of one address. Default: 1000, and no limit of their own for clients on this machine."`
	FeedRate                 int      `default:"2000" placeholder:"N" group:"Strangers" help:"New feeds a second, with twice as many at once; beyond them 503. Default: ${default}."`
	FeedRatePerAddress       *int     `placeholder:"N" group:"Strangers" help:"New feeds a second of one address, with four times as many at once. Default: 50, and no limit of their own for clients on this machine."`
	TrustedProxies           []string `placeholder:"CIDR" group:"Strangers" help:"Proxies whose X-Forwarded-For is believed, like 10.0.0.0/8; may be repeated. Default: none."`
}

// Validate is called by kong: a limit of 0 never means that there is none.
func (s *Strangers) Validate() error {
	for name, n := range map[string]*int{"max-connections": &s.MaxConnections, "max-connections-per-address": s.MaxConnectionsPerAddress,
		"max-feeds-per-address": s.MaxFeedsPerAddress, "feed-rate": &s.FeedRate, "feed-rate-per-address": s.FeedRatePerAddress} {
		if n != nil && *n <= 0 {
			return fmt.Errorf("--%s must be above 0", name)
		}
	}
	_, err := gate.ParseTrusted(s.TrustedProxies)
	return err
}

// gate makes what is asked, and the options of the listener.
func (s *Strangers) gate(memory int64) (g transport.Gate, l gate.ListenOptions, err error) {
	if g.Trusted, err = gate.ParseTrusted(s.TrustedProxies); err != nil {
		return g, l, err
	}
	if g.Watch, err = gate.NewWatch(gate.WatchOptions{Memory: memory}); err != nil {
		return g, l, err
	}
	if g.Rate, err = gate.NewRate(gate.RateOptions{
		PerSecond: s.FeedRate, Burst: 2 * s.FeedRate, AddressPerSecond: valueOf(s.FeedRatePerAddress), AddressBurst: 4 * valueOf(s.FeedRatePerAddress),
	}); err != nil {
		return g, l, err
	}
	if g.Feeds, err = gate.NewFeeds(valueOf(s.MaxFeedsPerAddress)); err != nil {
		return g, l, err
	}
	return g, gate.ListenOptions{Most: s.MaxConnections, PerAddress: valueOf(s.MaxConnectionsPerAddress), Trusted: g.Trusted, Watch: g.Watch}, nil
}

// valueOf is the value of a flag that has no default of its own; 0: it was not given.
func valueOf[T any](flag *T) (value T) {
	if flag != nil {
		value = *flag
	}
	return value
}
