package feed

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// A Group is what one append to the log holds: the transactions that were decided
// while the append before it was under way, in order, and what was forgotten.
type Group struct {
	Epoch    Epoch
	Position Position // where it stands in the log
	First    Seq      // the sequence of its first record; the others follow without a jump
	At       int64    // when it was decided: milliseconds since 1970, UTC; never before the group before
	Prev     Sum      // of the group before it; zero for the first

	Transactions []Transaction
	// Forget drops what is older than these times (milliseconds; 0: nothing), after
	// the transactions. It is part of the log so that every fold forgets alike.
	ForgetTombstones, ForgetIDs int64
}

// Transaction is a list of records that become visible together.
type Transaction struct {
	Tenant  string
	Client  string // who wrote it, "" where the writer did not say
	Records []Record
}

// Record is one change of a transaction. Its sequence follows from its place.
type Record struct {
	Op         Op
	Collection string
	Key        string
	ID         string
	Digest     Digest // of the request that bore ID; zero without an ID
	Value      string // empty on Remove and Noop
}

// Sum is the first half of a group's SHA-256: its checksum, and what the group
// after it carries, so that a log is a chain in which nothing can be exchanged.
type Sum [16]byte

// Digest tells two requests under one id apart.
type Digest [16]byte

// ErrGroup is returned for bytes that are no whole, unharmed group.
var ErrGroup = errors.New("not a group")

// The form of a group, version 1. Numbers are unsigned varints, strings have their
// length before them:
//
//	"tmg" 1  epoch position first at prev[16] forgetTombstones forgetIDs
//	count { tenant client count { op collection key value id [digest[16] if id != ""] } }
//	sum[16]
const groupMagic = "tmg\x01"

// AppendGroup appends the bytes of g to dst, and returns them with their Sum.
func AppendGroup(dst []byte, g *Group) ([]byte, Sum) {
	from := len(dst)
	dst = append(dst, groupMagic...)
	dst = appendString(dst, string(g.Epoch))
	dst = binary.AppendUvarint(dst, uint64(g.Position))
	dst = binary.AppendUvarint(dst, uint64(g.First))
	dst = binary.AppendUvarint(dst, uint64(g.At))
	dst = append(dst, g.Prev[:]...)
	dst = binary.AppendUvarint(dst, uint64(g.ForgetTombstones))
	dst = binary.AppendUvarint(dst, uint64(g.ForgetIDs))
	dst = binary.AppendUvarint(dst, uint64(len(g.Transactions)))
	for i := range g.Transactions {
		t := &g.Transactions[i]
		dst = appendString(dst, t.Tenant)
		dst = appendString(dst, t.Client)
		dst = binary.AppendUvarint(dst, uint64(len(t.Records)))
		for j := range t.Records {
			r := &t.Records[j]
			dst = append(dst, byte(r.Op))
			dst = appendString(dst, r.Collection)
			dst = appendString(dst, r.Key)
			dst = appendString(dst, r.Value)
			dst = appendString(dst, r.ID)
			if r.ID != "" {
				dst = append(dst, r.Digest[:]...)
			}
		}
	}
	full := sha256.Sum256(dst[from:])
	sum := Sum(full[:16])
	return append(dst, sum[:]...), sum
}

// DecodeGroup reads a group. Any bytes that AppendGroup did not make are ErrGroup,
// with what is wrong; the group's strings share one copy of b.
func DecodeGroup(b []byte) (*Group, Sum, error) {
	var sum Sum
	if len(b) < len(groupMagic)+len(sum) {
		return nil, sum, fmt.Errorf("%w: %d bytes are too few", ErrGroup, len(b))
	}
	body := b[:len(b)-len(sum)]
	copy(sum[:], b[len(body):])
	if full := sha256.Sum256(body); Sum(full[:16]) != sum {
		return nil, sum, fmt.Errorf("%w: its checksum does not match", ErrGroup)
	}
	d := NewDecoder(string(body))
	if magic := d.Take(len(groupMagic)); magic != groupMagic {
		if magic[:3] == groupMagic[:3] {
			return nil, sum, fmt.Errorf("%w: of format %d, this version reads 1: use a newer one", ErrGroup, magic[3])
		}
		return nil, sum, fmt.Errorf("%w: it begins with %q", ErrGroup, magic)
	}
	g := &Group{Epoch: Epoch(d.Text()), Position: Position(d.Uint()), First: Seq(d.Uint()), At: d.Time()}
	copy(g.Prev[:], d.Take(len(g.Prev)))
	g.ForgetTombstones, g.ForgetIDs = d.Time(), d.Time()
	g.Transactions = make([]Transaction, d.Count(3))
	records := uint64(0)
	for i := range g.Transactions {
		t := &g.Transactions[i]
		t.Tenant, t.Client = d.Text(), d.Text()
		n := d.Count(5)
		if n > MaxChanges {
			d.Fail("a transaction has too many changes")
			n = 0
		}
		t.Records = make([]Record, n)
		records += uint64(n)
		for j := range t.Records {
			r := &t.Records[j]
			r.Op = Op(d.Byte())
			r.Collection, r.Key, r.Value, r.ID = d.Text(), d.Text(), d.Text(), d.Text()
			if r.ID != "" {
				copy(r.Digest[:], d.Take(len(r.Digest)))
			}
			if r.Op < Insert || r.Op > Noop || (r.Value == "") != (r.Op >= Remove) {
				d.Fail("an operation is unknown, or has the wrong value")
			}
			if d.Err() != nil {
				return nil, sum, fmt.Errorf("%w: %w", ErrGroup, d.Err())
			}
		}
	}
	if !g.Epoch.Valid() {
		d.Fail("its epoch has the wrong form")
	}
	if g.First > MaxSeq || uint64(MaxSeq-g.First) < records {
		d.Fail("its sequences end beyond 2^53")
	}
	if err := d.Done(); err != nil {
		return nil, sum, fmt.Errorf("%w: %w", ErrGroup, err)
	}
	return g, sum, nil
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// Decoder reads the numbers and strings that groups and checkpoints are made of.
// The first error sticks; after it everything reads as zero.
type Decoder struct {
	rest string
	err  error
}

// NewDecoder returns a Decoder of s. What it returns shares the memory of s.
func NewDecoder(s string) Decoder { return Decoder{rest: s} }

// Fail makes what the first error, unless there is one.
func (d *Decoder) Fail(what string) {
	if d.err == nil {
		d.err = errors.New(what)
	}
	d.rest = ""
}

// Err is the first error.
func (d *Decoder) Err() error { return d.err }

// Rest is how many bytes are left.
func (d *Decoder) Rest() int { return len(d.rest) }

// Done is the first error; bytes that are left over are one.
func (d *Decoder) Done() error {
	if d.rest != "" {
		d.Fail("bytes are left over")
	}
	return d.err
}

// Take returns the next n bytes.
func (d *Decoder) Take(n int) string {
	if n < 0 || n > len(d.rest) {
		d.Fail("it ends too early")
		return ""
	}
	s := d.rest[:n]
	d.rest = d.rest[n:]
	return s
}

// Byte returns the next byte.
func (d *Decoder) Byte() byte {
	if s := d.Take(1); s != "" {
		return s[0]
	}
	return 0
}

// Uint returns the next number. One that is longer than it need be is an error: equal
// content has equal bytes.
func (d *Decoder) Uint() uint64 {
	var n uint64
	for i := range min(len(d.rest), binary.MaxVarintLen64) {
		c := d.rest[i]
		if i == binary.MaxVarintLen64-1 && c > 1 {
			break
		}
		n |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c == 0 && i > 0 {
				break
			}
			d.rest = d.rest[i+1:]
			return n
		}
	}
	d.Fail("a number can't be read")
	return 0
}

// Time returns the next number as milliseconds since 1970, below the year 10000.
func (d *Decoder) Time() int64 {
	n := d.Uint()
	if n > 253402300799999 {
		d.Fail("a time is beyond the year 9999")
		return 0
	}
	return int64(n)
}

// Text returns the next string.
func (d *Decoder) Text() string {
	n := d.Uint()
	if n > uint64(len(d.rest)) {
		d.Fail("it ends too early")
		return ""
	}
	return d.Take(int(n))
}

// Count returns the next number as a count of things that have at least size bytes
// each, so that no count makes its reader allocate more than the input's own length.
func (d *Decoder) Count(size int) int {
	n := d.Uint()
	if n > uint64(len(d.rest)/size) {
		d.Fail("a count is larger than what follows")
		return 0
	}
	return int(n)
}
