//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
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
	// channel 5, seq 10, at 19: eight digits at a time, as the reader's one thread is what limits the fastest.
	a, seq, high, low := eight(b[2:]), eight(b[7:]), eight(b[17:]), eight(b[25:])
	if !(a.digits() && seq.digits() && high.digits() && low.digits()) {
		return r, false
	}
	rest := [...]byte{b[15], b[16], b[33], b[34], b[35]}
	for i := range rest {
		if rest[i] -= '0'; rest[i] > 9 {
			return r, false
		}
	}
	r.channel = int(a.number() / 1000)
	r.seq = seq.number()*100 + uint64(rest[0])*10 + uint64(rest[1])
	r.at = time.Duration((high.number()*1e8+low.number())*1000 + uint64(rest[2])*100 + uint64(rest[3])*10 + uint64(rest[4]))
	return r, true
}

// digits8 is eight bytes of a text, the first the lowest.
type digits8 uint64

func eight(b []byte) digits8 { return digits8(binary.LittleEndian.Uint64(b)) }

// digits tells whether all of them are: the high half of each byte is 3, and stays so where 6 is added.
func (d digits8) digits() bool {
	const threes, high = 0x3030303030303030, 0xF0F0F0F0F0F0F0F0
	return d&high == threes && (d+0x0606060606060606)&high == threes
}

// number is what they say, by pairs, then pairs of pairs.
func (d digits8) number() uint64 {
	n := uint64(d) - 0x3030303030303030
	n = n*10 + n>>8
	const pairs = 0x000000FF000000FF
	return ((n&pairs)*(100+1000000<<32) + (n>>16&pairs)*(1+10000<<32)) >> 32
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
