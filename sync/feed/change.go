package feed

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unsafe"
)

// Op is what a change does to its row.
type Op uint8

// The operations. Noop is known to the log alone: it remembers the id of a remove
// that found nothing to remove, so that a late retry removes nothing either.
const (
	Insert Op = 1 + iota
	Modify
	Remove
	Noop
)

func (o Op) String() string {
	switch o {
	case Insert:
		return "insert"
	case Modify:
		return "modify"
	case Remove:
		return "remove"
	case Noop:
		return "noop"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Fields is what a change says.
type Fields struct {
	Seq        Seq
	Collection string
	Op         Op
	Key        string
	Value      string // one line of JSON, an object; empty on Remove and Noop
	At         int64  // milliseconds since 1970, UTC
	Client, ID string // who wrote it, where the writer said so
	// Tail is how many changes of the same transaction follow it in the log, below
	// MaxChanges.
	Tail uint16
}

// Change is one change, immutable, with its frame encoded once for all who will
// ever be sent it. Everything else is read out of the frame: a row costs its key,
// its value, the frame's fixed text and 32 bytes.
type Change struct {
	seq    Seq
	frame  string // {"type":"change","seq":…,"collection":…,"op":…,"key":…[,"by":…],"at":…[,"value":…]}
	keyAt  uint16 // the key's text between its quotes
	keyLen uint16
	byLen  uint16 // the length of [,"by":{…}], which follows the key's quote
	bits   uint16 // tail, op and the flags below: with a field each, a row would cost 16 bytes more
}

const (
	tailBits  = 1<<9 - 1 // of bits: the tail, which is below MaxChanges
	opShift   = 9        // two bits: the operation, less one
	escapedAt = 1 << 11  // the key's text in the frame is not the key
	hasIDAt   = 1 << 12
)

const (
	// AtLayout is how times are written, for time.Format; they must be in UTC.
	AtLayout = "2006-01-02T15:04:05.000Z"
	atText   = `,"at":"`
	toValue  = len(atText+AtLayout+`"`) + len(`,"value":`)
)

// NewChange encodes a change. The fields must be valid: names checked, the time
// within the years 0 to 9999, the value one line of compact JSON where the operation
// has one.
func NewChange(f Fields) *Change {
	var e Encoder
	return e.Change(f)
}

// Encoder encodes many changes. It keeps the time of the last one as a text, because all of a group have the same: to
// write it is a quarter of the work. The zero value is ready; it is not for concurrent use.
type Encoder struct {
	at   int64 // the time that text is
	text [len(AtLayout)]byte
	some bool // there was one
}

// timeOf is a time as a text, until the next call.
func (e *Encoder) timeOf(ms int64) []byte {
	if e.at == ms && e.some {
		return e.text[:]
	}
	// RFC 3339 without milliseconds is the layout that time can write quickly.
	at := time.UnixMilli(ms).UTC()
	thousandths := at.Nanosecond() / 1e6
	b := at.AppendFormat(e.text[:0], time.RFC3339)
	_ = append(b[:len(b)-1], '.', byte('0'+thousandths/100), byte('0'+thousandths/10%10), byte('0'+thousandths%10), 'Z')
	e.at, e.some = ms, true
	return e.text[:]
}

// Change is NewChange.
func (e *Encoder) Change(f Fields) *Change {
	c := &Change{seq: f.Seq, bits: f.Tail&tailBits | uint16(f.Op-Insert)<<opShift}
	if f.ID != "" {
		c.bits |= hasIDAt
	}
	// Most frames fit on the stack, so that the only memory asked for is of the right size.
	var small [512]byte
	b := small[:0]
	// The fixed text, quotes and digits are below 180 bytes.
	if most := 180 + len(f.Collection) + len(f.Key) + len(f.Client) + len(f.ID) + len(f.Value); most > len(small) {
		b = make([]byte, 0, most)
	}
	b = append(b, `{"type":"change","seq":`...)
	b = strconv.AppendUint(b, uint64(f.Seq), 10)
	b = append(b, `,"collection":"`...)
	b = append(b, f.Collection...)
	b = append(b, `","op":"`...)
	b = append(b, f.Op.String()...)
	b = append(b, `","key":"`...)
	c.keyAt = uint16(len(b))
	b = appendText(b, f.Key)
	c.keyLen = uint16(len(b) - int(c.keyAt))
	if int(c.keyLen) != len(f.Key) {
		c.bits |= escapedAt
	}
	b = append(b, '"')
	by := len(b)
	if f.Client != "" || f.ID != "" {
		b = append(b, `,"by":{`...)
		if f.Client != "" {
			b = append(b, `"client":"`...)
			b = appendText(b, f.Client)
			b = append(b, '"')
		}
		if f.ID != "" {
			if f.Client != "" {
				b = append(b, ',')
			}
			b = append(b, `"id":"`...)
			b = appendText(b, f.ID)
			b = append(b, '"')
		}
		b = append(b, '}')
	}
	c.byLen = uint16(len(b) - by)
	b = append(b, atText...)
	b = append(append(b, e.timeOf(f.At)...), '"')
	if f.Value != "" {
		b = append(b, `,"value":`...)
		b = append(b, f.Value...)
	}
	b = append(b, '}')
	c.frame = string(b)
	return c
}

// Seq is the change's place in the log.
func (c *Change) Seq() Seq { return c.seq }

// Op is what the change does.
func (c *Change) Op() Op { return Insert + Op(c.bits>>opShift&3) }

// Frame is the change's frame, without "more".
func (c *Change) Frame() string { return c.frame }

// Last is the sequence of the last change of its transaction in the log: two
// changes are of one transaction if it is the same.
func (c *Change) Last() Seq { return c.seq + Seq(c.Tail()) }

// Value is the row's content after the change; empty on Remove and Noop.
func (c *Change) Value() string {
	if c.Op() >= Remove {
		return ""
	}
	return c.frame[c.afterBy()+toValue : len(c.frame)-1]
}

// Collection is the row's collection.
func (c *Change) Collection() string {
	const before = `"collection":"`
	from := strings.Index(c.frame, before) + len(before)
	return c.frame[from : from+strings.IndexByte(c.frame[from:], '"')]
}

// KeyText is the key as JSON, without its quotes.
func (c *Change) KeyText() string { return c.frame[c.keyAt : int(c.keyAt)+int(c.keyLen)] }

// Key is the row's key. It shares the frame's memory where the key needs no
// escapes in JSON.
func (c *Change) Key() string {
	text := c.KeyText()
	if c.bits&escapedAt == 0 {
		return text
	}
	var key string
	if err := json.Unmarshal([]byte(`"`+text+`"`), &key); err != nil {
		panic("feed: a frame of our own can't be read: " + err.Error())
	}
	return key
}

// At is when the change was written, in milliseconds since 1970, UTC.
func (c *Change) At() int64 {
	from := c.afterBy() + len(atText)
	t, err := time.Parse(AtLayout, c.frame[from:from+len(AtLayout)])
	if err != nil {
		panic("feed: a frame of our own can't be read: " + err.Error())
	}
	return t.UnixMilli()
}

// By is who wrote the change: the client's name for itself and the change's id,
// each empty where it was not given.
func (c *Change) By() (client, id string) {
	if c.byLen == 0 {
		return "", ""
	}
	to := c.afterBy()
	var by struct{ Client, ID string }
	if err := json.Unmarshal([]byte(c.frame[to-int(c.byLen)+len(`,"by":`):to]), &by); err != nil {
		panic("feed: a frame of our own can't be read: " + err.Error())
	}
	return by.Client, by.ID
}

// afterBy is where the time's text begins in the frame.
func (c *Change) afterBy() int { return int(c.keyAt) + int(c.keyLen) + 1 + int(c.byLen) }

// HasID tells whether the change bears an id.
func (c *Change) HasID() bool { return c.bits&hasIDAt != 0 }

// Tail is how many changes of the same transaction follow it in the log.
func (c *Change) Tail() uint16 { return c.bits & tailBits }

// Size is the memory that the change holds, in bytes.
func (c *Change) Size() int64 { return int64(len(c.frame)) + int64(unsafe.Sizeof(*c)) }

// appendText appends the JSON text of a valid UTF-8 string, without its quotes.
func appendText(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		if c < 0x20 {
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		} else {
			b = append(b, '\\', c)
		}
	}
	return append(b, s[from:]...)
}
