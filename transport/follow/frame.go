package follow

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Frame is one decoded frame. Which fields are set depends on Type; frames of an
// unknown type have Type and Raw only. Nothing in a frame is shared with another
// frame or changed later.
type Frame struct {
	Type string

	// open
	Epoch      feed.Epoch
	Session    string
	Server     string // version
	Network    string
	Heartbeat  time.Duration
	Transports []string

	// change
	Seq        feed.Seq
	Collection string
	Op         string // "insert", "modify" or "remove"
	Key        string
	Value      json.RawMessage // an object; nil on remove
	At         time.Time
	By         By
	More       bool // the next change belongs to the same transaction

	// reset (both), end (Reason)
	Collections []string
	Reason      string
	// end: when to come back. Again is false if the server gave no time at all:
	// coming back unchanged is useless.
	Retry time.Duration
	Again bool

	// live, next, written
	Cursor string

	// done, written, error: the request that is answered.
	ID      string
	Results []Result
	Problem *Problem // error

	// Raw is the frame as it came: one line of JSON, without a line end.
	Raw []byte
}

// By is who wrote a change, where the writer said so.
type By struct {
	Client, ID string
}

// Result is what became of one change of a write.
type Result struct {
	ID     string
	Status string // "ok", "duplicate", "conflict", "exists", "missing", "id-reused", "aborted"
	Key    string
	Seq    feed.Seq
	Value  json.RawMessage // the row as it stands; nil if it is not there
}

// OK tells whether the change is in the log, now or since an earlier try.
func (r Result) OK() bool { return r.Status == "ok" || r.Status == "duplicate" }

// ErrFrame is matched by the error of a frame that can't be read. Skipping it could
// lose a change, so it ends its connection.
var ErrFrame = errors.New("not a frame")

// decode reads a frame and keeps raw. Names are compared as they are, where
// encoding/json would take "Type" for "type".
func decode(raw []byte) (Frame, error) {
	f := Frame{Raw: raw}
	bad := func(err error) (Frame, error) {
		const most = 120
		text := raw
		if len(text) > most {
			text = text[:most]
		}
		return Frame{}, fmt.Errorf("%w: %w: %q", ErrFrame, err, text)
	}
	var p Problem
	err := members(raw, func(name string, v []byte) (err error) {
		if string(v) == "null" {
			return nil // as if it were not there
		}
		switch name {
		case "type":
			f.Type, err = text(v)
		case "seq":
			f.Seq, err = sequence(v)
		case "collection":
			f.Collection, err = text(v)
		case "op":
			f.Op, err = text(v)
		case "key":
			f.Key, err = text(v)
		case "value":
			f.Value = v
		case "at":
			var s string
			if s, err = text(v); err == nil {
				f.At, err = time.Parse(time.RFC3339, s)
			}
		case "by":
			err = members(v, func(name string, v []byte) (err error) {
				switch name {
				case "client":
					f.By.Client, err = text(v)
				case "id":
					f.By.ID, err = text(v)
				}
				return err
			})
		case "more":
			err = json.Unmarshal(v, &f.More)
		case "cursor":
			f.Cursor, err = text(v)
		case "epoch":
			var s string
			s, err = text(v)
			f.Epoch = feed.Epoch(s)
		case "session":
			f.Session, err = text(v)
		case "server":
			f.Server, err = text(v)
		case "network":
			f.Network, err = text(v)
		case "heartbeat":
			f.Heartbeat, err = number(v, time.Second)
		case "transports":
			err = json.Unmarshal(v, &f.Transports)
		case "collections":
			err = json.Unmarshal(v, &f.Collections)
		case "reason":
			f.Reason, err = text(v)
		case "retry":
			f.Retry, err = number(v, time.Millisecond)
			f.Again = true
		case "id":
			f.ID, err = text(v)
		case "results":
			f.Results, err = results(v)
		case "status":
			err = json.Unmarshal(v, &p.Status)
		case "code":
			p.Code, err = text(v)
		case "title":
			p.Title, err = text(v)
		case "detail":
			p.Detail, err = text(v)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return bad(err)
	}
	switch f.Type {
	case "":
		err = errors.New("it has no type")
	case "open":
		if !f.Epoch.Valid() {
			err = fmt.Errorf("%q is not an epoch", f.Epoch)
		}
	case "change":
		err = f.checkChange()
	case "reset":
		if len(f.Collections) == 0 {
			err = errors.New("it names no collections")
		}
	case "live", "next":
		_, err = feed.ParseCursor(f.Cursor)
	case "error":
		p.RetryAfter = min(f.Retry, longestRetryAfter)
		f.Problem = &p
	}
	if err != nil {
		return bad(err)
	}
	return f, nil
}

func (f *Frame) checkChange() error {
	if f.Seq == 0 {
		return errors.New("it has no sequence")
	}
	if err := feed.CheckCollection(f.Collection); err != nil {
		return err
	}
	if err := feed.CheckKey(f.Key); err != nil {
		return err
	}
	switch f.Op {
	case "insert", "modify":
		if len(f.Value) == 0 || f.Value[0] != '{' {
			return errors.New("its value is not an object")
		}
	case "remove":
		f.Value = nil
	default:
		return fmt.Errorf("unknown operation %q", f.Op)
	}
	return nil
}

func results(v []byte) ([]Result, error) {
	var parts []json.RawMessage
	if err := json.Unmarshal(v, &parts); err != nil {
		return nil, err
	}
	list := make([]Result, len(parts))
	for i, part := range parts {
		r := &list[i]
		err := members(part, func(name string, v []byte) (err error) {
			if string(v) == "null" {
				return nil
			}
			switch name {
			case "id":
				r.ID, err = text(v)
			case "status":
				r.Status, err = text(v)
			case "key":
				r.Key, err = text(v)
			case "seq":
				r.Seq, err = sequence(v)
			case "value":
				r.Value = v
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

func text(v []byte) (string, error) {
	if len(v) >= 2 && v[0] == '"' && bytes.IndexByte(v, '\\') < 0 && utf8.Valid(v) {
		return string(v[1 : len(v)-1]), nil
	}
	var s string
	err := json.Unmarshal(v, &s)
	return s, err
}

func sequence(v []byte) (feed.Seq, error) {
	n, err := strconv.ParseUint(string(v), 10, 64)
	if err != nil || feed.Seq(n) > feed.MaxSeq {
		return 0, fmt.Errorf("%.40s is not a sequence", v)
	}
	return feed.Seq(n), nil
}

// number reads how many units a duration has; what is negative or beyond a day is
// brought back to the bound.
func number(v []byte, unit time.Duration) (time.Duration, error) {
	var n float64
	if err := json.Unmarshal(v, &n); err != nil {
		return 0, err
	}
	const day = float64(24 * time.Hour)
	return time.Duration(min(max(n*float64(unit), 0), day)), nil
}

// members calls fn with each member of a JSON object, in order, the value as it is
// written. The values share b's memory.
func members(b []byte, fn func(name string, value []byte) error) error {
	if !json.Valid(b) {
		return errors.New("it is not JSON")
	}
	// From here on b is known to be well formed: the scanning below only has to find
	// where things end.
	i := skipSpace(b, 0)
	if b[i] != '{' {
		return errors.New("it is not an object")
	}
	i = skipSpace(b, i+1)
	for b[i] != '}' {
		end := skipValue(b, i)
		name, err := text(b[i:end])
		if err != nil {
			return err
		}
		i = skipSpace(b, skipSpace(b, end)+1) // the colon
		end = skipValue(b, i)
		if err := fn(name, b[i:end:end]); err != nil {
			return err
		}
		if i = skipSpace(b, end); b[i] == ',' {
			i = skipSpace(b, i+1)
		}
	}
	return nil
}

func skipSpace(b []byte, i int) int {
	for b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r' {
		i++
	}
	return i
}

// skipValue returns where the value that begins at i ends.
func skipValue(b []byte, i int) int {
	depth := 0
	for ; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
			if depth < 0 {
				return i // a number or a word ended at its parent's end
			}
		case ',', ':', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
		}
	}
	return i
}
