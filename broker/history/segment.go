package history

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// The form of a segment, version 1. Numbers have a fixed size and are little-endian:
//
//	header  "tmh" 1 crc32c  number first:place before:place      144 bytes
//	record  length32 crc32c(length, group) group                 as often as need be; a group may be wiped, see forget.go
//
// and once it is closed
//
//	end     "tmh" 1 "end\n"      no length of a record looks like it
//	footer  see footer.go
//
// A place is  epoch[16] position next at steady sum[16], 64 bytes: a group, and the
// sequence that follows it. In a header's first, next is the first group's own sequence
// and there is no sum; before is empty in the very first segment.
const (
	segmentMagic = "tmh\x01"
	segmentEnd   = "tmh\x01end\n"
	headerSize   = 16 + 2*placeSize
	recordHead   = 8
	placeSize    = 64
	suffix       = ".seg"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// place is a point between two groups.
type place struct {
	epoch    feed.Epoch
	position feed.Position // of the group before it
	next     feed.Seq      // the sequence that follows
	at       int64         // of the group before it
	steady   int64         // of the group before it
	sum      feed.Sum      // of the group before it; zero where it is not known
}

func (p place) append(b []byte) []byte {
	var epoch [16]byte
	copy(epoch[:], p.epoch)
	b = append(b, epoch[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(p.position))
	b = binary.LittleEndian.AppendUint64(b, uint64(p.next))
	b = binary.LittleEndian.AppendUint64(b, uint64(p.at))
	b = binary.LittleEndian.AppendUint64(b, uint64(p.steady))
	return append(b, p.sum[:]...)
}

func readPlace(b []byte) place {
	return place{
		epoch:    feed.Epoch(bytes.TrimRight(b[:16], "\x00")),
		position: feed.Position(binary.LittleEndian.Uint64(b[16:])),
		next:     feed.Seq(binary.LittleEndian.Uint64(b[24:])),
		at:       int64(binary.LittleEndian.Uint64(b[32:])),
		steady:   int64(binary.LittleEndian.Uint64(b[40:])),
		sum:      feed.Sum(b[48:64]),
	}
}

// follows is why g, whose sum is right, is not the group after p; nil if it is.
func (p place) follows(g *feed.Group) error {
	switch {
	case g.Epoch != p.epoch:
		return fmt.Errorf("a group of epoch %s follows one of epoch %s", g.Epoch, p.epoch)
	case g.Position != p.position+1:
		return fmt.Errorf("position %d follows position %d", g.Position, p.position)
	case g.First != p.next:
		return fmt.Errorf("position %d begins with sequence %d instead of %d", g.Position, g.First, p.next)
	case p.sum != feed.Sum{} && g.Prev != p.sum:
		return fmt.Errorf("position %d does not follow from the group before it", g.Position)
	case g.At < p.at:
		return fmt.Errorf("the time of position %d is before that of the group before it", g.Position)
	}
	return nil
}

// after is the place after a group.
func after(g *feed.Group, sum feed.Sum) place {
	return place{epoch: g.Epoch, position: g.Position, next: g.Last() + 1, at: g.At, steady: g.Steady, sum: sum}
}

// segment is what a segment's name says.
type segment struct {
	number   uint64
	seq      feed.Seq      // of its first group, as are those that follow
	position feed.Position //
	at       int64         // as the wall clock had it
	steady   int64         // as the log counts it
	epoch    feed.Epoch
}

func (s segment) name() string {
	return fmt.Sprintf("%08d-%d-%d-%d-%d-%s%s", s.number, s.seq, s.position, s.at, s.steady, s.epoch, suffix)
}

// parseName reads a segment's name; ok is false for any other.
func parseName(name string) (s segment, ok bool) {
	rest, ok := strings.CutSuffix(name, suffix)
	parts := strings.Split(rest, "-")
	if !ok || len(parts) != 6 {
		return segment{}, false
	}
	var n [5]uint64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseUint(parts[i], 10, 63); err != nil {
			return segment{}, false
		}
	}
	s = segment{n[0], feed.Seq(n[1]), feed.Position(n[2]), int64(n[3]), int64(n[4]), feed.Epoch(parts[5])}
	return s, s.epoch.Valid() && s.number > 0 && s.position > 0 && s.name() == name
}

// start is the place before the segment's first group.
func (s segment) start() place {
	return place{epoch: s.epoch, position: s.position - 1, next: s.seq}
}

func (s segment) header(before place) []byte {
	b := append(make([]byte, 0, headerSize), segmentMagic+"\x00\x00\x00\x00"...)
	b = binary.LittleEndian.AppendUint64(b, s.number)
	b = place{epoch: s.epoch, position: s.position, next: s.seq, at: s.at, steady: s.steady}.append(b)
	b = before.append(b)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b
}

// readHeader reads the header, which must be this segment's, and returns the place
// after which it was begun.
func (s segment) readHeader(f io.ReaderAt) (before place, err error) {
	var b [headerSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return place{}, shortOr(err, "its header is cut short")
	}
	before = readPlace(b[8+8+placeSize:])
	if !bytes.Equal(b[:], s.header(before)) {
		return place{}, bad("its header is harmed, or another segment's")
	}
	return before, nil
}

// errBad is matched by what is wrong with a file's content, as opposed to reading it.
var errBad = errors.New("harmed")

type badError string

func (e badError) Error() string        { return string(e) }
func (e badError) Is(target error) bool { return target == errBad }

func bad(format string, args ...any) error { return badError(fmt.Sprintf(format, args...)) }

// shortOr tells a file that ends too early from one that can't be read.
func shortOr(err error, what string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return bad("%s", what)
	}
	return err
}

func appendRecord(dst, group []byte) []byte {
	from := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(group)))
	sum := crc32.Update(crc32.Checksum(dst[from:], castagnoli), castagnoli, group)
	return append(binary.LittleEndian.AppendUint32(dst, sum), group...)
}

// records reads the records of a segment, one after the other.
type records struct {
	f      io.ReaderAt
	offset int64 // of the next record
	end    int64 // where the records end; where that is not known, where the file does
	at     place // before the next record
	r      *bufio.Reader
	buf    []byte
}

// readAhead is little where a query wants one group, and enough where it wants all.
const readAhead = 128 << 10

func newRecords(f io.ReaderAt, offset, end int64, at place) *records {
	r := &records{f: f, end: end, r: bufio.NewReaderSize(nil, readAhead)}
	r.seek(offset, at)
	return r
}

func (r *records) seek(offset int64, at place) {
	r.offset, r.at = offset, at
	r.r.Reset(io.NewSectionReader(r.f, offset, max(0, r.end-offset)))
}

// next returns the next group and how many bytes it took; io.EOF after the last. Where
// the record is harmed, or does not follow from the one before, the error is errBad and
// the place stays.
func (r *records) next() (*feed.Group, int64, error) {
	if r.offset >= r.end {
		return nil, 0, io.EOF
	}
	head, err := r.r.Peek(recordHead)
	if err != nil {
		return nil, 0, shortOr(err, "a record is cut short")
	}
	if string(head) == segmentEnd {
		return nil, 0, io.EOF
	}
	length := int64(binary.LittleEndian.Uint32(head))
	if length > feed.MaxGroup || r.offset+recordHead+length > r.end {
		return nil, 0, bad("a record's length is wrong, or it is cut short")
	}
	n := recordHead + length
	if int64(cap(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	b := r.buf[:n]
	if _, err := io.ReadFull(r.r, b); err != nil {
		return nil, 0, shortOr(err, "a record is cut short")
	}
	g, sum, err := decode(b)
	if err == nil {
		if follows := r.at.follows(g); follows != nil {
			err = bad("%s", follows)
		}
	}
	if err != nil {
		return nil, 0, err
	}
	r.offset += n
	r.at = after(g, sum)
	return g, n, nil
}

// decode reads a whole record.
func decode(b []byte) (*feed.Group, feed.Sum, error) {
	if crc32.Update(crc32.Checksum(b[:4], castagnoli), castagnoli, b[recordHead:]) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, feed.Sum{}, bad("a record's checksum does not match")
	}
	whole, had := unwiped(b[recordHead:])
	g, sum, err := feed.DecodeGroup(whole)
	if err != nil {
		return nil, sum, bad("%s", err)
	}
	if had != nil {
		sum = *had
	}
	return g, sum, nil
}

// skip goes to the next record, after the harmed one that next would read, that is a
// group of the same epoch; found is false where there is none. It reads the segment's
// rest: it is rare.
func (r *records) skip() (found bool, err error) {
	rest := make([]byte, max(0, r.end-r.offset))
	n, err := r.f.ReadAt(rest, r.offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	rest = rest[:n]
	for from := 1 + recordHead; from < len(rest); from++ {
		i := bytes.Index(rest[from:], []byte(groupMagic[:2]))
		if i < 0 {
			break
		}
		from += i
		if kind := rest[from:]; !bytes.HasPrefix(kind, []byte(groupMagic)) && !bytes.HasPrefix(kind, []byte(wipedMagic)) {
			continue
		}
		record := rest[from-recordHead:]
		length := int(binary.LittleEndian.Uint32(record))
		if length > feed.MaxGroup || recordHead+length > len(record) {
			continue
		}
		g, _, err := decode(record[:recordHead+length])
		if err != nil || g.Epoch != r.at.epoch || g.Position <= r.at.position || g.First < r.at.next {
			continue
		}
		r.seek(r.offset+int64(from-recordHead), place{epoch: g.Epoch, position: g.Position - 1, next: g.First})
		return true, nil
	}
	return false, nil
}

// syncPath makes a file's content, or a directory's names, durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// mark is what is durable: it is written after each sync, whole or not at all.
//
//	"tmm" 1 crc32c  oldest newest offset closed last:place
type mark struct {
	oldest, newest uint64 // segments; 0: none
	offset         int64  // how much of the newest counts
	closed         bool   // the newest has its footer
	last           place
}

const (
	markName  = "mark"
	markMagic = "tmm\x01"
	markSize  = 8 + 4*8 + placeSize
)

func (m mark) encode() []byte {
	b := append(make([]byte, 0, markSize), markMagic+"\x00\x00\x00\x00"...)
	closed := uint64(0)
	if m.closed {
		closed = 1
	}
	for _, n := range []uint64{m.oldest, m.newest, uint64(m.offset), closed} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	b = m.last.append(b)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b
}

func readMark(dir string) (m mark, err error) {
	b, err := os.ReadFile(filepath.Join(dir, markName))
	if err != nil {
		return mark{}, err
	}
	if len(b) != markSize || string(b[:4]) != markMagic || crc32.Checksum(b[8:], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return mark{}, bad("the mark is harmed")
	}
	m.oldest, m.newest = binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	m.offset, m.closed = int64(binary.LittleEndian.Uint64(b[24:])), b[32] != 0
	m.last = readPlace(b[40:])
	return m, nil
}

func (m mark) write(dir string) error {
	path := filepath.Join(dir, markName)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(m.encode())
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncPath(dir)
}
