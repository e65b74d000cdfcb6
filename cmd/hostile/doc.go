// Hostile is a bed of bad networks: reverse proxies before one Tidemark server, each on
// a port of its own, and each with one of the habits that boxes between a server and
// its clients have. A test opens a page, or a feed, through one of them and sees what a
// user behind such a box would see.
//
//	go run ./cmd/hostile -target http://127.0.0.1:7333
//
// prints one line, a JSON object of the personalities' names and their URLs, and serves
// until SIGTERM, or with -watch-stdin until its standard input ends, so that a parent
// that is killed leaves nothing behind. -list prints the personalities.
//
// All paths pass, so that a page, the client's modules, writes and feeds have one
// origin. The server sees its own host and origin; in exchange the hop itself refuses
// whoever is not of this machine. GET /_hop on each port tells what came through, and
// POST /_hop forgets it; neither is counted, nor harmed by what the hop does to requests.
//
// # What it can't do
//
// It is not the kernel. A connection that is delayed or swallowed is nevertheless
// accepted at once: the way there and back that a TCP handshake takes is added before
// the first request instead. What a black hole swallows is acknowledged to its sender,
// so that nobody's buffers fill; a client that closes its end is noticed, and then the
// server's end is closed too.
package main
