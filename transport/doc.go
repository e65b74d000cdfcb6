// Package transport is the last hop: it speaks HTTP with clients. One feed goes out
// over Server-Sent Events, WebSocket and long poll by one loop, pump; writes and rows
// are plain requests. HTTP stops here: hub has never heard of it.
//
// The wire is docs/protocol.md.
package transport
