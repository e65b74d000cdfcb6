package gate

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Short names what there is too little of: a closed set, for counting.
type Short string

// What can be short.
const (
	Connections        Short = "connections"             // Listener: in all
	AddressConnections Short = "connections-per-address" // Listener
	Descriptors        Short = "descriptors"             // Watch
	Memory             Short = "memory"                  // Watch
	Handshakes         Short = "handshakes"              // Rate: in all
	AddressHandshakes  Short = "handshakes-per-address"  // Rate
	AddressFeeds       Short = "feeds-per-address"       // Feeds
	URL                Short = "url"                     // CheckRequest
	HeaderFields       Short = "header-fields"           // CheckRequest
)

// Codes of the protocol (docs/protocol.md, "Errors").
const (
	codeUnavailable = "unavailable"
	codeTooMany     = "too-many"
	codeTooLarge    = "too-large"
)

// Refusal is the error of everything in this package that says no.
type Refusal struct {
	Status int    // of HTTP
	Code   string // of the protocol
	Short  Short
	Detail string        // what to do about it, for who is refused
	Retry  time.Duration // when to try again, at least 1 s; 0 where that won't help
}

func (r *Refusal) Error() string { return r.Detail }

// between is a random time from least to most.
func between(least, most time.Duration) time.Duration {
	return least + rand.N(most-least+1)
}

// setting is a limit: n, or the default.
func setting(name string, n, otherwise int) (int, error) {
	switch {
	case n < 0:
		return 0, fmt.Errorf("%s is %d: it must not be negative, and 0 is the default, %d", name, n, otherwise)
	case n == 0:
		return otherwise, nil
	}
	return n, nil
}
