package gate

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Bounds of how much of X-Forwarded-For is looked at, from its end.
const (
	hopsMost  = 32   // addresses
	hopBytes  = 64   // of one address: the longest that is one has 47, with brackets and port
	hopsBytes = 2048 // in all
)

// ParseTrusted reads the addresses and prefixes (CIDR) of trusted proxies. A prefix of
// all addresses is refused: whom everybody may speak for can be anybody.
func ParseTrusted(list []string) ([]netip.Prefix, error) {
	trusted := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil || a.Zone() != "" {
				return nil, fmt.Errorf("trusted proxy %q is neither an address nor a prefix, like 10.0.0.0/8", s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if p.Bits() == 0 {
			return nil, fmt.Errorf("trusted proxy %q is everybody: then anybody could choose an address", s)
		}
		trusted = append(trusted, p.Masked())
	}
	return trusted, nil
}

// ClientAddr is the address of who sent a request: the peer, or, where that is a
// trusted proxy, the last address of X-Forwarded-For that is none. Each proxy appends
// the peer it saw, so what a client made up itself stands before its own address and
// is never reached.
//
// All lines of X-Forwarded-For are one list. An address may have a port, and brackets.
// What is no address ends the search, and so does the 32nd address or the 2,048th byte;
// the answer is then the last trusted proxy that was found, which is what the client is
// bounded by. Where all addresses are trusted it is the first of them. A loopback address
// is somebody else's where a proxy on another machine reports it: it is passed over if it
// is trusted, and else ends the search. So the answer is a loopback address only if the
// peer is on this machine.
//
// The answer has no zone, and is IPv4 where it is IPv4 mapped into IPv6. It is the zero
// Addr where the peer has no IP address (a Unix socket); [Rate] and [Feeds] take all
// these for one address.
//
// Forwarded (RFC 7239) is not read, and neither are X-Real-IP and its like: most proxies
// write X-Forwarded-For and pass the others on as they came, so whoever read them too
// would let clients choose the one that their proxy does not write.
func ClientAddr(r *http.Request, trusted []netip.Prefix) netip.Addr {
	addr := peer(r.RemoteAddr)
	if !contains(trusted, addr) {
		return addr
	}
	here := addr.IsLoopback()
	lines := r.Header["X-Forwarded-For"]
	hops, bytes := 0, 0
	for i := len(lines) - 1; i >= 0; i-- {
		rest, more := lines[i], true
		for more {
			var hop string
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				rest, hop = rest[:comma], rest[comma+1:]
			} else {
				hop, more = rest, false
			}
			bytes += len(hop) + 1
			if hops++; hops > hopsMost || bytes > hopsBytes {
				return addr
			}
			hop = strings.Trim(hop, " \t")
			if hop == "" {
				continue // a list may have empty elements (RFC 9110, 5.6.1.2)
			}
			next, ok := parseHop(hop)
			if !ok {
				return addr
			}
			if here || !next.IsLoopback() {
				addr = next
			}
			if !contains(trusted, next) {
				return addr
			}
		}
	}
	return addr
}

// parseHop reads one address of X-Forwarded-For.
func parseHop(s string) (netip.Addr, bool) {
	if len(s) > hopBytes {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inner, "]") {
			a, err = netip.ParseAddr(inner[:len(inner)-1])
			if err == nil && !a.Is6() {
				return netip.Addr{}, false
			}
		} else {
			var ap netip.AddrPort
			ap, err = netip.ParseAddrPort(s)
			a = ap.Addr()
		}
	}
	// A zone means something to who wrote it alone.
	if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// peer is the address in host:port; the zero Addr if there is none.
func peer(remote string) netip.Addr {
	if ap, err := netip.ParseAddrPort(remote); err == nil {
		return ap.Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// peerOf is the address at the other end of a connection.
func peerOf(c net.Conn) netip.Addr {
	switch a := c.RemoteAddr().(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case nil:
		return netip.Addr{}
	default:
		return peer(a.String())
	}
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// bounded is what counts as one address: an IPv4 address, or an IPv6 /64.
func bounded(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64) // of an address without a zone there is one
		return p.Addr()
	}
	return a
}
