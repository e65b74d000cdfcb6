// Package faults breaks a server on purpose, and lets an oracle of its own decide
// whether anything that was acknowledged was lost.
//
// It has nothing but tests. Each runs the real program, built with the tag
// tidemark_faults, under writers and followers whose every request, answer and frame is
// recorded; does its kind of harm, round after round; and hands the history to package
// oracle. `make faults` runs them for long, `go test ./cmd/faults/...` shortly.
//
//	kill      kill -9 at any moment, and at places where a moment is hard to hit
//	power     power cuts: what was flushed is there, and any part of what was not
//	damage    a bit, a range, an end or a whole file is gone
//	scrub     a bit flips in a file while the server runs
//	disk      the disk is full, fails, lies or dawdles, and recovers
//	clock     the wall clock jumps
//	retries   a network that loses, doubles and delays what it carries
//
// Every test prints its seed; with -seed it does the same again, as far as the
// machine's own timing allows. A history that was found wrong is not kept: its evidence
// is in the test's output.
package faults
