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
	Times             // the same, by clocks that nobody sets
	Prev     Sum      // of the group before it; zero for the first

	Transactions []Transaction
	// Forget drops what is below these ages (0: nothing), after the transactions. It is
	// part of the log so that every fold forgets alike.
	ForgetTombstones, ForgetIDs int64
	// ForgetIDsOf drops ids of tenants that have too many, after the transactions.
	ForgetIDsOf []IDFloor
	// Drop names tenants that are forgotten wholly, after all else.
	Drop []string
}

// Times are the clocks that a log counts by, in milliseconds. The wall clock, which may
// be set, is asked only where there is no better one. Age and Steady begin with a log, at
// milliseconds since 1970, and never go back.
type Times struct {
	Age    int64  // goes on while a server runs: what was seen before an outage is as new after it
	Steady int64  // goes on always: deadlines
	Boot   uint64 // which boot of the machine Up counts from; 0: not known
	Up     int64  // since that boot, suspended or not
}

// MaxTime is the last time that a log can hold, in milliseconds: the end of the year 9999.
const MaxTime = 253402300799999

// IDFloor says that the ids of a tenant's changes up to Seq are forgotten.
type IDFloor struct {
	Tenant string
	Seq    Seq
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
	Expires    int64  // when the row goes by itself, in Steady's time; 0: never, as on Remove and Noop
}

// Sum is the first half of a group's SHA-256: its checksum, and what the group
// after it carries, so that a log is a chain in which nothing can be exchanged.
type Sum [16]byte

// Digest tells two requests under one id apart.
type Digest [16]byte

// ErrGroup is returned for bytes that are no whole, unharmed group.
var ErrGroup = errors.New("not a group")

// The form of a group, version 2. Numbers are unsigned varints, strings have their
// length before them:
//
//	"tmg" 2  epoch position first at age steady boot up prev[16] forgetTombstones forgetIDs
//	count { tenant seq }
//	count { tenant client count { op collection key value id [digest[16] if id != ""] expires } }
//	sum[16]
//
// A group with Drop is of version 3, which has one list more before the transactions:
//
//	count { tenant }
//
// Version 1, which is still read, has neither age, steady, boot and up, nor the first
// list, nor expires: its age and its steady are at.
const (
	groupMagic = "tmg\x02"
	groupFirst = "tmg\x01"
	groupDrops = "tmg\x03"
)

// AppendGroup appends the bytes of g to dst, and returns them with their Sum.
func AppendGroup(dst []byte, g *Group) ([]byte, Sum) {
	from := len(dst)
	if len(g.Drop) > 0 {
		dst = append(dst, groupDrops...)
	} else {
		dst = append(dst, groupMagic...)
	}
	dst = appendString(dst, string(g.Epoch))
	dst = binary.AppendUvarint(dst, uint64(g.Position))
	dst = binary.AppendUvarint(dst, uint64(g.First))
	dst = binary.AppendUvarint(dst, uint64(g.At))
	dst = g.Times.Append(dst)
	dst = append(dst, g.Prev[:]...)
	dst = binary.AppendUvarint(dst, uint64(g.ForgetTombstones))
	dst = binary.AppendUvarint(dst, uint64(g.ForgetIDs))
	dst = binary.AppendUvarint(dst, uint64(len(g.ForgetIDsOf)))
	for _, f := range g.ForgetIDsOf {
		dst = appendString(dst, f.Tenant)
		dst = binary.AppendUvarint(dst, uint64(f.Seq))
	}
	if len(g.Drop) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(g.Drop)))
		for _, tenant := range g.Drop {
			dst = appendString(dst, tenant)
		}
	}
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
			dst = binary.AppendUvarint(dst, uint64(r.Expires))
		}
	}
	full := sha256.Sum256(dst[from:])
	sum := Sum(full[:16])
	return append(dst, sum[:]...), sum
}

// Append appends the bytes of t to dst.
func (t Times) Append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(t.Age))
	dst = binary.AppendUvarint(dst, uint64(t.Steady))
	dst = binary.AppendUvarint(dst, t.Boot)
	return binary.AppendUvarint(dst, uint64(t.Up))
}

// DecodeGroup reads a group. Any bytes that AppendGroup, of this version or the one
// before, did not make are ErrGroup, with what is wrong; the group's strings share one
// copy of b.
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
	magic := d.Take(len(groupMagic))
	if magic != groupMagic && magic != groupFirst && magic != groupDrops {
		if magic[:3] == groupMagic[:3] {
			return nil, sum, fmt.Errorf("%w: of format %d, this version reads 1 to 3: use a newer one", ErrGroup, magic[3])
		}
		return nil, sum, fmt.Errorf("%w: it begins with %q", ErrGroup, magic)
	}
	first := magic == groupFirst
	g := &Group{Epoch: Epoch(d.Text()), Position: Position(d.Uint()), First: Seq(d.Uint()), At: d.Time()}
	if first {
		g.Times = Times{Age: g.At, Steady: g.At}
	} else {
		g.Times = d.Times()
	}
	copy(g.Prev[:], d.Take(len(g.Prev)))
	g.ForgetTombstones, g.ForgetIDs = d.Time(), d.Time()
	if !first {
		if n := d.Count(2); n > 0 {
			g.ForgetIDsOf = make([]IDFloor, n)
		}
		for i := range g.ForgetIDsOf {
			g.ForgetIDsOf[i] = IDFloor{d.Text(), Seq(d.Uint())}
		}
	}
	if magic == groupDrops {
		if g.Drop = make([]string, d.Count(1)); len(g.Drop) == 0 {
			d.Fail("its list of tenants is empty")
		}
		for i := range g.Drop {
			if g.Drop[i] = d.Text(); CheckTenant(g.Drop[i]) != nil {
				d.Fail("it drops what is no tenant")
			}
		}
	}
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
			if !first {
				r.Expires = d.Time()
			}
			if r.Op < Insert || r.Op > Noop || (r.Value == "") != (r.Op >= Remove) || r.Expires != 0 && r.Op >= Remove {
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
	if n > MaxTime {
		d.Fail("a time is beyond the year 9999")
		return 0
	}
	return int64(n)
}

// Times returns what Times.Append appends.
func (d *Decoder) Times() Times {
	return Times{Age: d.Time(), Steady: d.Time(), Boot: d.Uint(), Up: d.Time()}
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
