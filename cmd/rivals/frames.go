//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Opcodes of WebSocket (RFC 6455).
const (
	opText   = 1
	opBinary = 2
	opClose  = 8
	opPing   = 9
	opPong   = 10
)

// frames takes the framing of WebSocket off what a server sends, in pieces that may be cut
// anywhere, several frames in one or one in several.
type frames struct {
	onData    func(b []byte, whole bool) // a piece of a message; whole: it is all of a frame
	onControl func(op byte, b []byte) error

	head    [10]byte
	n       int // bytes of head that came
	inside  bool
	op      byte
	left    uint64
	control []byte
}

func (f *frames) feed(b []byte) error {
	for len(b) > 0 || f.inside && f.left == 0 {
		if !f.inside {
			for ; f.n < f.need(); f.n++ {
				if len(b) == 0 {
					return nil
				}
				f.head[f.n] = b[0]
				b = b[1:]
			}
			if f.head[1]&0x80 != 0 {
				return errors.New("a server's frame is masked")
			}
			if f.head[0]&0x70 != 0 {
				return errors.New("a frame has an extension's bits, and none was agreed on")
			}
			switch f.op, f.left = f.head[0]&0x0F, uint64(f.head[1]); f.left {
			case 126:
				f.left = uint64(binary.BigEndian.Uint16(f.head[2:]))
			case 127:
				f.left = binary.BigEndian.Uint64(f.head[2:])
			}
			if f.left > 1<<30 {
				return fmt.Errorf("a frame of %d bytes", f.left)
			}
			f.n, f.inside, f.control = 0, true, f.control[:0]
			if f.op < opClose && f.left > 0 && f.left <= uint64(len(b)) {
				f.onData(b[:f.left], true)
				b = b[f.left:]
				f.inside = false
				continue
			}
		}
		piece := b[:min(uint64(len(b)), f.left)]
		b = b[len(piece):]
		f.left -= uint64(len(piece))
		if f.op >= opClose {
			f.control = append(f.control, piece...)
		} else if len(piece) > 0 {
			f.onData(piece, false)
		}
		if f.left > 0 {
			return nil
		}
		f.inside = false
		if f.op >= opClose {
			if err := f.onControl(f.op, f.control); err != nil {
				return err
			}
		}
	}
	return nil
}

// need is how many bytes the head has, as far as is known.
func (f *frames) need() int {
	if f.n >= 2 {
		switch f.head[1] & 0x7F {
		case 126:
			return 4
		case 127:
			return 10
		}
	}
	return 2
}

// frame appends a client's frame. Its mask is zeros: it must have one, and nobody between here
// and a server on this machine has to be protected by it.
func frame(dst []byte, op byte, payload []byte) []byte {
	dst = append(dst, 0x80|op)
	switch n := len(payload); {
	case n < 126:
		dst = append(dst, 0x80|byte(n))
	case n < 1<<16:
		dst = binary.BigEndian.AppendUint16(append(dst, 0x80|126), uint16(n))
	default:
		dst = binary.BigEndian.AppendUint64(append(dst, 0x80|127), uint64(n))
	}
	return append(append(dst, 0, 0, 0, 0), payload...)
}
