package feed

import (
	"crypto/rand"
	"errors"
	"strconv"
	"strings"

	"github.com/tidemark-sync/tidemark/sync/fault"
)

// Seq is a change's place in the log: a positive integer that grows and may skip.
// 0 is the place before the first change.
type Seq uint64

// MaxSeq is the last sequence: above it a JavaScript number would not be exact.
const MaxSeq Seq = 1<<53 - 1

// Epoch names a log. It is made with the log, and made anew whenever the log may
// have lost something that was seen: sequences of two epochs can't be compared.
type Epoch string

// NewEpoch makes an epoch that no other log has: ten characters, 50 random bits.
func NewEpoch() Epoch {
	const digits = "0123456789abcdefghijklmnopqrstuv" // 32 of the 36, so that 5 bits are one
	var b [10]byte
	rand.Read(b[:])
	for i := range b {
		b[i] = digits[b[i]&31]
	}
	return Epoch(b[:])
}

// Valid tells whether e has the form of an epoch: [0-9a-z]{4,16}.
func (e Epoch) Valid() bool {
	if len(e) < 4 || len(e) > 16 {
		return false
	}
	for i := range len(e) {
		if c := e[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// Cursor is how far a client has come. Its text, "<epoch>-<seq>", is opaque to
// clients. A cursor of sequence 0 belongs to a client that holds nothing.
type Cursor struct {
	Epoch Epoch
	Seq   Seq
}

// ErrCursor is returned for a text that no cursor has.
var ErrCursor = errors.New(`not a cursor: a cursor is "<epoch>-<seq>" as a feed gave it`)

// ParseCursor reads the text of a cursor. There is one text for each cursor:
// signs, spaces and leading zeros are ErrCursor.
func ParseCursor(s string) (Cursor, error) {
	epoch, digits, ok := strings.Cut(s, "-")
	if !ok || !Epoch(epoch).Valid() || digits == "" || len(digits) > 16 || (digits[0] == '0' && len(digits) > 1) {
		return Cursor{}, ErrCursor
	}
	seq, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || Seq(seq) > MaxSeq {
		return Cursor{}, ErrCursor
	}
	return Cursor{Epoch(epoch), Seq(seq)}, nil
}

// Append appends the text of c to dst.
func (c Cursor) Append(dst []byte) []byte {
	dst = append(dst, c.Epoch...)
	dst = append(dst, '-')
	return strconv.AppendUint(dst, uint64(c.Seq), 10)
}

func (c Cursor) String() string { return string(c.Append(nil)) }

// Reason says why a feed sends every row of a collection anew.
type Reason string

// The reasons of a reset.
const (
	ResetEpoch     Reason = "epoch"     // the cursor is of another log
	ResetExpired   Reason = "expired"   // older than the tombstones that are remembered
	ResetAhead     Reason = "ahead"     // ahead of the log
	ResetMalformed Reason = "malformed" // unreadable
)

// Start says where one collection of a feed begins.
type Start struct {
	Collection string
	// Cursors are the texts of all cursors that the client named for it: its own,
	// and the one that its transport remembers. None: from the beginning.
	Cursors []string
}

// Choose returns the place that the cursors of s mean in the log called epoch: the
// newest of this epoch. Where there is none, it is 0, with a reason if the client
// named any cursor at all and so may hold rows that it must let go.
func (s Start) Choose(epoch Epoch) (Seq, Reason) {
	var best Seq
	var found bool
	var reason Reason
	for _, text := range s.Cursors {
		c, err := ParseCursor(text)
		switch {
		case err != nil:
			if reason == "" {
				reason = ResetMalformed
			}
		case c.Epoch != epoch && !fault.Bug("resume-ignores-epoch"):
			reason = ResetEpoch
		default:
			best, found = max(best, c.Seq), true
		}
	}
	if found {
		return best, ""
	}
	return 0, reason
}
