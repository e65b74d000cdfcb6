//go:build linux

package main

import (
	"bytes"
	"fmt"
	"strconv"
)

// answer takes the framing of HTTP/1.1 off a stream of answers that comes in pieces: a head, then
// a body that is chunked, has a length, or never ends. It keeps a copy of nothing but a head that
// was cut in two.
type answer struct {
	onHead func(h head) (upgraded bool, err error)
	onBody func(b []byte)
	onEnd  func() error

	state answerState
	text  []byte // a head or a chunk's size that is not whole yet
	left  int    // of the body, or of the chunk
}

type answerState byte

const (
	inHead answerState = iota
	inBody
	inSize    // the line that says how long a chunk is
	inChunk   // its bytes
	inBreak   // the two bytes after them
	inTrailer // the lines after the last chunk
	inRest    // a body that ends with the connection, or another protocol
)

// head is what is wanted of an answer's head.
type head struct {
	status         int
	etag, modified string
	length         int // -1: not said
	chunked        bool
}

func (a *answer) feed(b []byte) error {
	for len(b) > 0 {
		switch a.state {
		case inHead:
			text, rest, whole := a.until(b, "\r\n\r\n")
			if !whole {
				return nil
			}
			b = rest
			if err := a.begin(text); err != nil {
				return err
			}
		case inBody, inChunk:
			n := min(a.left, len(b))
			a.onBody(b[:n])
			b = b[n:]
			if a.left -= n; a.left > 0 {
				return nil
			}
			if a.state == inChunk {
				a.state, a.left = inBreak, 2
			} else if err := a.over(); err != nil {
				return err
			}
		case inBreak:
			n := min(a.left, len(b))
			b = b[n:]
			if a.left -= n; a.left == 0 {
				a.state = inSize
			}
		case inSize:
			line, rest, whole := a.until(b, "\r\n")
			if !whole {
				return nil
			}
			b = rest
			size, _, _ := bytes.Cut(line, []byte(";"))
			n, err := strconv.ParseUint(string(bytes.TrimSpace(size)), 16, 31)
			if err != nil {
				return fmt.Errorf("a chunk begins with %.20q", line)
			}
			if a.state, a.left = inChunk, int(n); n == 0 {
				a.state = inTrailer
			}
		case inTrailer:
			line, rest, whole := a.until(b, "\r\n")
			if !whole {
				return nil
			}
			if b = rest; len(line) == 0 {
				if err := a.over(); err != nil {
					return err
				}
			}
		case inRest:
			a.onBody(b)
			return nil
		}
	}
	return nil
}

// idle tells whether it is between two answers.
func (a *answer) idle() bool { return a.state == inHead && len(a.text) == 0 }

func (a *answer) over() error {
	a.state = inHead
	return a.onEnd()
}

// maxHead is more than any server of ours has to say.
const maxHead = 16 << 10

// until cuts b after an end that may have begun in an earlier piece. What it returns is valid
// until the next call.
func (a *answer) until(b []byte, end string) (text, rest []byte, whole bool) {
	if len(a.text) == 0 {
		if text, rest, whole = bytes.Cut(b, []byte(end)); whole {
			return text, rest, true
		}
		a.text = append(a.text, b...)
		return nil, nil, false
	}
	had := len(a.text)
	a.text = append(a.text, b[:min(len(b), maxHead)]...)
	if text, _, whole = bytes.Cut(a.text, []byte(end)); !whole {
		return nil, nil, false
	}
	a.text = a.text[:0]
	return text, b[len(text)+len(end)-had:], true
}

func (a *answer) begin(text []byte) error {
	h, err := parseHead(text)
	if err != nil {
		return err
	}
	upgraded, err := a.onHead(h)
	if err != nil {
		return err
	}
	switch {
	case upgraded:
		a.state = inRest
	case h.chunked:
		a.state = inSize
	case h.length > 0:
		a.state, a.left = inBody, h.length
	case h.length == 0, h.status == 204, h.status == 304:
		return a.over()
	default:
		a.state = inRest
	}
	return nil
}

func parseHead(text []byte) (h head, err error) {
	first, rest, _ := bytes.Cut(text, []byte("\r\n"))
	fields := bytes.Fields(first)
	if len(fields) < 2 || !bytes.HasPrefix(first, []byte("HTTP/1.")) {
		return h, fmt.Errorf("an answer begins with %.60q", first)
	}
	h.length = -1
	if h.status, err = strconv.Atoi(string(fields[1])); err != nil {
		return h, fmt.Errorf("an answer's status is %.20q", fields[1])
	}
	for len(rest) > 0 {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		colon := bytes.IndexByte(line, ':')
		if colon < 0 {
			continue
		}
		value := bytes.TrimSpace(line[colon+1:])
		switch name := line[:colon]; {
		case bytes.EqualFold(name, []byte("content-length")):
			if h.length, err = strconv.Atoi(string(value)); err != nil || h.length < 0 {
				return h, fmt.Errorf("an answer's length is %.20q", value)
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			h.chunked = bytes.EqualFold(value, []byte("chunked"))
		case bytes.EqualFold(name, []byte("etag")):
			h.etag = string(value)
		case bytes.EqualFold(name, []byte("last-modified")):
			h.modified = string(value)
		}
	}
	return h, nil
}
