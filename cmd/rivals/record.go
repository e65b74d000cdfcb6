//go:build linux

package main

import (
	"bytes"
	"fmt"
	"time"
)

// A record is what a message bears, wherever in it: which channel it was published to, its place
// there (from 1 on, without holes), and when it was about to be published.
type record struct {
	channel int
	seq     uint64
	at      time.Duration // since the program started
}

// recordSize is the mark and three numbers of fixed width, with nothing between them: what is
// split over two reads is then known by its length alone.
const recordSize = 2 + 5 + 10 + 19

var mark = []byte("@@")

// message appends the bytes that are published: JSON, because Tidemark's rows are, and without
// anything that has to be escaped in it.
func (r record) message(dst []byte, size int) []byte {
	from := len(dst)
	dst = fmt.Appendf(dst, `{"m":"@@%05d%010d%019d`, r.channel, r.seq, r.at)
	for len(dst)-from < size-2 {
		dst = append(dst, 'x')
	}
	return append(dst, `"}`...)
}

// parse reads a record of exactly recordSize bytes.
func parse(b []byte) (r record, ok bool) {
	if len(b) != recordSize || b[0] != mark[0] || b[1] != mark[1] {
		return r, false
	}
	var n [3]uint64
	at := 2
	for i, width := range [3]int{5, 10, 19} {
		for _, c := range b[at : at+width] {
			if c < '0' || c > '9' {
				return r, false
			}
			n[i] = n[i]*10 + uint64(c-'0')
		}
		at += width
	}
	return record{int(n[0]), n[1], time.Duration(n[2])}, true
}

// scanner finds the records in a stream that comes in pieces, which may be cut anywhere.
type scanner struct {
	held [recordSize]byte // the beginning of what may be a record
	n    int
}

func (s *scanner) scan(b []byte, found func(record)) {
	for s.n > 0 && len(b) > 0 {
		took := copy(s.held[s.n:], b)
		s.n += took
		b = b[took:]
		if s.n < recordSize && bytes.HasPrefix(s.held[:s.n], mark) {
			return // b is used up
		}
		if r, ok := parse(s.held[:s.n]); ok {
			found(r)
			s.n = 0
			continue
		}
		s.keep(s.held[1:s.n]) // not one, but another may begin in it
	}
	for len(b) > 0 {
		i := bytes.Index(b, mark)
		if i < 0 {
			s.keep(b[len(b)-1:])
			return
		}
		if b = b[i:]; len(b) < recordSize {
			s.keep(b)
			return
		}
		if r, ok := parse(b[:recordSize]); ok {
			found(r)
			b = b[recordSize:]
		} else {
			b = b[1:]
		}
	}
}

// keep holds what a record may begin in.
func (s *scanner) keep(b []byte) {
	s.n = 0
	if i := bytes.IndexByte(b, mark[0]); i >= 0 {
		s.n = copy(s.held[:], b[i:])
	}
}
