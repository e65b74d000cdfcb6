package gate

import "net/netip"

// exempt tells whether a limit of each address does not hold for this one: by default it
// does not for loopback (127.0.0.0/8, ::1). Who comes from there is the operator's own
// machine: a load test, or a proxy that nobody declared, behind which everybody would be
// one address. A limit that was chosen, with more than 0 in the options, holds for all.
func exempt(addr netip.Addr, chosen bool) bool { return !chosen && addr.IsLoopback() }
