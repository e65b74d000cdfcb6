// Rivals measures Tidemark and servers that do a part of what it does side by side, in one run
// on one machine, with one load generator for all of them.
//
// A contender is a server and how it is set up; a way is a transport that it offers; a work is
// what is asked of it. Every round does every work with every way of every contender, each time
// with a server that was just started, so that what else the machine does falls on all alike.
// What counts is a rival's figure divided by Tidemark's of the same round.
//
// A message is the same 200 bytes everywhere. It bears a record: its channel, its place in it,
// and when it was about to be published. The reader looks for records and for nothing else, with
// the same code for all: one thread that reads thousands of sockets (crowd), takes the framing of
// HTTP and WebSocket off (answer, frames), and holds each follower's records against what was
// published (tally).
package main
