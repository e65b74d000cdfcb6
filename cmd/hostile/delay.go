package main

import (
	"net"
	"time"
)

// delayedMost bounds what is on its way in one direction: so many pieces of so many bytes.
const delayedMost, pieceMost = 256, 4 << 10

// delayed puts a long line before a client's connection, and returns the near end of it.
// The handshake of TCP can't be delayed from here; the round trip that it takes is added
// before the client's first byte.
func (h *hop) delayed(client net.Conn) net.Conn {
	near, far := net.Pipe()
	connected := time.Now().Add(2 * h.p.delay)
	if !h.start(func() { late(far, client, h.p.delay, connected) }) || !h.start(func() { late(client, far, h.p.delay, time.Time{}) }) {
		client.Close()
		far.Close()
	}
	return near
}

// late copies until src ends or dst takes no more, then closes dst. Each piece arrives
// delay after it was sent, where nothing counts as sent before earliest.
func late(dst, src net.Conn, delay time.Duration, earliest time.Time) {
	type piece struct {
		due   time.Time
		bytes []byte
	}
	line := make(chan piece, delayedMost)
	go func() {
		defer close(line)
		for {
			b := make([]byte, pieceMost)
			n, err := src.Read(b)
			sent := time.Now()
			if sent.Before(earliest) {
				sent = earliest
			}
			line <- piece{sent.Add(delay), b[:n]} // of no bytes at the end: that takes its time too
			if err != nil {
				return
			}
		}
	}()
	var err error
	for p := range line {
		if err != nil {
			continue // to its end, so that the reader's goroutine ends
		}
		time.Sleep(time.Until(p.due))
		if len(p.bytes) == 0 {
			continue // a pipe would hand even nothing to its reader
		}
		if _, err = dst.Write(p.bytes); err != nil {
			src.Close()
		}
	}
	dst.Close()
}
