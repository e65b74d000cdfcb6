package follow

import (
	"bytes"
	"errors"
	"strings"
	"time"
)

// ErrTooLarge is matched by the error of a line, an event or a transaction beyond
// what Options.MaxLine allows.
var ErrTooLarge = errors.New("too large")

// splitter makes lines of chunks.
type splitter struct {
	max  int
	part []byte // the line that has begun
}

// feed calls emit with each line that the chunk ends, without its end; empty lines
// are left out. What emit gets is its own.
func (s *splitter) feed(chunk []byte, emit func([]byte)) error {
	for len(chunk) > 0 {
		end := bytes.IndexByte(chunk, '\n')
		piece := chunk
		if end >= 0 {
			piece = chunk[:end]
		}
		if len(s.part)+len(piece) > s.max {
			return ErrTooLarge
		}
		s.part = append(s.part, piece...)
		if end < 0 {
			return nil
		}
		s.flush(emit)
		chunk = chunk[end+1:]
	}
	return nil
}

// flush ends the line that has begun.
func (s *splitter) flush(emit func([]byte)) {
	if line := bytes.TrimSuffix(s.part, []byte("\r")); len(line) > 0 {
		emit(line)
	}
	s.part = nil
}

// event is one Server-Sent Event.
type event struct {
	name string // "" where none was given, which means "message"
	id   string // the last id that the stream has given
	data []byte
}

// eventParser makes events of the chunks of an event stream, as the HTML standard
// has it: lines end with LF, CR or CRLF, wherever the chunks are cut. An event that
// the stream's end cuts off does not count.
type eventParser struct {
	max   int
	retry time.Duration // the last one given; 0: none

	line  []byte // the line that has begun
	data  []byte // of the event that has begun
	some  bool   // it has data, if only an empty line
	name  string
	id    string
	cr    bool // the last byte was CR: an LF that follows belongs to the same line end
	begun bool // the first line is over, and with it the place for a byte order mark
}

// feed calls emit with each event that the chunk ends. What emit gets is its own.
func (p *eventParser) feed(chunk []byte, emit func(event)) error {
	for len(chunk) > 0 {
		if p.cr {
			p.cr = false
			if chunk[0] == '\n' {
				chunk = chunk[1:]
				continue
			}
		}
		end := bytes.IndexByte(chunk, '\n')
		rest := chunk
		if end >= 0 {
			rest = chunk[:end]
		}
		if i := bytes.IndexByte(rest, '\r'); i >= 0 {
			end, p.cr = i, true
			rest = chunk[:i]
		}
		if len(p.line)+len(rest)+len(p.data) > p.max {
			return ErrTooLarge
		}
		if end < 0 {
			p.line = append(p.line, rest...)
			return nil
		}
		line := rest // a line that lies whole in its chunk is not copied
		if len(p.line) > 0 {
			p.line = append(p.line, rest...)
			line = p.line
		}
		p.take(line, emit)
		p.line = p.line[:0]
		chunk = chunk[end+1:]
	}
	return nil
}

// partial is how many bytes of an unfinished event are held: it grows while one is
// under way, and stays where it is while a box in between sends comments.
func (p *eventParser) partial() int {
	if len(p.line) > 0 && p.line[0] == ':' {
		return len(p.data)
	}
	return len(p.data) + len(p.line)
}

func (p *eventParser) take(line []byte, emit func(event)) {
	if !p.begun {
		p.begun = true
		line = bytes.TrimPrefix(line, []byte("\uFEFF"))
	}
	if len(line) == 0 {
		if p.some {
			emit(event{p.name, p.id, p.data})
		}
		p.data, p.some, p.name = nil, false, ""
		return
	}
	field, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(field) {
	case "data":
		if p.some {
			p.data = append(p.data, '\n')
		}
		p.data, p.some = append(p.data, value...), true
	case "event":
		p.name = string(value)
	case "id":
		if bytes.IndexByte(value, 0) < 0 {
			p.id = string(value)
		}
	case "retry":
		const longest = 8 // digits: about a day
		if n := len(value); n > 0 && n <= longest && strings.Trim(string(value), "0123456789") == "" {
			ms := 0
			for _, d := range value {
				ms = ms*10 + int(d-'0')
			}
			p.retry = time.Duration(ms) * time.Millisecond
		}
	}
}
