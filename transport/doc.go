// Package transport is the last hop: it speaks HTTP with clients. One feed goes out
// over Server-Sent Events, WebSocket and long poll by one loop, pump; writes and rows
// are plain requests. HTTP stops here: hub has never heard of it.
//
// The wire is docs/protocol.md.
//
// # What a client can cost
//
// A request has a body of at most [Options.Body] bytes, which must come within 30 s.
// A feed costs its connection, a place in the hub and, while it is written to, a buffer
// of some 64 KiB (more for one large transaction); how far behind it is costs nothing.
// On a listener of [Listen], a connection that takes no byte for 30 s is closed; one
// that takes something now and then is not. A WebSocket has at most 32 requests
// unanswered; then it is not read until its client has read.
//
// # System calls
//
// What goes out at the same moment on many connections goes out in one system call, by io_uring(7), which is used for
// nothing but that. Where the kernel forbids it (the sysctl kernel.io_uring_disabled, or a seccomp profile such as Docker's
// since version 25), is older than 5.6 or is not Linux, and with [Options.OneByOne], each has one of its own.
//
// # Goroutines
//
// The package takes the connections of feeds over from net/http, and those on which somebody polls or
// writes over and over. On a listener of [Server.Door] it waits for the first request itself, by no goroutine, and answers
// it if it is a feed's; what it starts for them ends when their client leaves or their hub is
// drained, and [Server.Wait] waits for it. All others are net/http's, and http.Server.Shutdown waits for
// those. A program stops by NotReady, the hub's Drain, Shutdown and Wait, in this order.
package transport
