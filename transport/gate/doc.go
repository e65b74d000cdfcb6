// Package gate bounds what strangers may take of a server before anybody knows who
// they are: connections, descriptors, memory, new feeds a second, feeds, header bytes.
//
// # What is bounded
//
//	Listener      connections: in all, and of one address        503 over plain HTTP, or closed
//	Watch         descriptors and memory: new connections, feeds  503
//	Rate          new feeds a second: in all, and of one address  503, 429
//	Feeds         open feeds of one address                       429
//	CheckRequest  URL, count of header fields                     414, 431
//	http.Server   header bytes: set it to MaxHeaderBytes          431 (net/http's own)
//
// One address is one IPv4 address, or one IPv6 /64: who has one address of a /64
// usually has all of it. Somebody who has more (a /48 is 65,536 of them) is bounded
// by what holds for all.
//
// The operator's own machine is no stranger: by default what bounds one address
// ([ListenOptions].PerAddress, the address limits of [Rate], [Feeds]) does not bound
// loopback addresses, 127.0.0.0/8 and ::1. They are a load test, or a proxy on this machine
// that was not declared as trusted, behind which all clients are one address. What bounds
// all bounds them too, and a limit that was set explicitly, to more than 0, holds for them
// as for anybody. A proxy on this machine should be declared all the same: only then is
// each of its clients bounded.
//
// Nothing else switches a limit off. 0 is the default, and a negative one is an error
// when the thing is made.
//
// What is remembered of strangers is bounded too: an address is kept for as long as
// it has a connection or a feed, or, by Rate, among at most 65,536.
//
// # Refusals
//
// Who is refused gets a [*Refusal]: status and code of the protocol, what is short, and
// when to come back. Times are random, so that those who were refused together don't
// return together.
//
// # What is not promised
//
// A stranger who fills the network, or has a great many addresses, is not stopped here:
// what holds for all then refuses others too, but the server stays up, and who is in
// stays in. Nothing here closes a connection or ends a feed that was let in; slow
// headers are for http.Server.ReadHeaderTimeout, and peers that take nothing for
// transport.Listen.
//
// All types may be used concurrently. Only Listener starts goroutines, for those it
// refuses; its Close waits for them.
package gate
