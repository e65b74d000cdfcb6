// Package load puts a server under load and tells how it fared: followers that read and hold
// what they get against what was written, writers at a rate or one after another, followers
// that all come back at once, and one that reads everything.
//
// It is made to be light: a follower is a connection, a goroutine and two small buffers, and
// reads no JSON but the sequence and the time of sending that its own writes bear.
package load
