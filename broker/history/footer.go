package history

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"slices"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// The footer of a closed segment, after its end:
//
//	keys     a Bloom filter of the rows
//	index    points collections
//	trailer  "tmf" 1 crc32c  last:place groups changes records[end] keys[len] index[len] crc32c(keys) crc32c(index)
//
// points are  count { offset position seq at }, each 8 bytes; collections are the sorted
// hashes, 8 bytes each, of the tenants and collections. The trailer is read first: it is
// the end of the file.
const (
	footerMagic = "tmf\x01"
	trailerSize = 8 + placeSize + 5*8 + 2*4
	pointSize   = 32
	pointEvery  = 128 << 10
)

// point is a place at which a reader may begin.
type point struct {
	offset   int64
	position feed.Position // of the group there, as are those that follow
	seq      feed.Seq
	at       int64
}

// index is what a segment's footer is made of, gathered while it grows.
type index struct {
	names           map[uint64]struct{} // hashes of tenants and collections
	keys            []uint64            // hashes of rows, each as often as it changed
	points          []point
	groups, changes uint64
}

// add takes note of a group whose record is at offset.
func (x *index) add(g *feed.Group, offset int64) {
	if n := len(x.points); n == 0 || offset-x.points[n-1].offset >= pointEvery {
		x.points = append(x.points, point{offset, g.Position, g.First, g.At})
	}
	if x.names == nil {
		x.names = make(map[uint64]struct{})
	}
	x.groups++
	for _, tenant := range g.Drop { // which its records do not name
		x.names[hash(tenant)] = struct{}{}
	}
	for i := range g.Transactions {
		t := &g.Transactions[i]
		if t.Wiped() {
			x.changes += uint64(len(t.Records))
			continue
		}
		for j := range t.Records {
			r := &t.Records[j]
			x.changes++
			x.names[hash(t.Tenant)] = struct{}{}
			x.names[hash(t.Tenant, r.Collection)] = struct{}{}
			x.keys = append(x.keys, hash(t.Tenant, r.Collection, r.Key))
		}
	}
}

// hash is the 64-bit FNV-1a of words, each with its length before it so that no two
// lists of words are the same text, with its bits mixed. It is part of the format.
func hash(words ...string) uint64 {
	h := uint64(14695981039346656037)
	add := func(c byte) { h = (h ^ uint64(c)) * 1099511628211 }
	for _, w := range words {
		for n := len(w); ; n >>= 7 {
			if n < 0x80 {
				add(byte(n))
				break
			}
			add(byte(n) | 0x80)
		}
		for i := range len(w) {
			add(w[i])
		}
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// A Bloom filter with 10 bits a row and 7 probes says yes to one absent row in 120.
const (
	bloomBits   = 10
	bloomProbes = 7
)

func probes(h uint64, size int, fn func(at int, bit byte) bool) bool {
	step := bits.RotateLeft64(h, 32) | 1
	for range bloomProbes {
		n := h % uint64(size*8)
		if !fn(int(n/8), 1<<(n%8)) {
			return false
		}
		h += step
	}
	return true
}

func bloom(keys []uint64) []byte {
	keys = slices.Clone(keys)
	slices.Sort(keys)
	keys = slices.Compact(keys)
	b := make([]byte, (len(keys)*bloomBits+7)/8)
	for _, k := range keys {
		probes(k, len(b), func(at int, bit byte) bool { b[at] |= bit; return true })
	}
	return b
}

// trailer is the fixed end of a footer.
type trailer struct {
	last            place
	groups, changes uint64
	records         int64 // where they end
	keysLen, idxLen int64
	keysSum, idxSum uint32

	size            int64 // of the file
	keysAt, indexAt int64 // where these begin; follows from the rest

	// Read by readIndex.
	points      []point
	collections []byte // sorted hashes, 8 bytes each
}

// footer makes the end and the footer of a segment whose records end at offset.
func (x *index) footer(offset int64, last place) []byte {
	b := []byte(segmentEnd)
	keys := bloom(x.keys)
	b = append(b, keys...)
	from := len(b)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(x.points)))
	for _, p := range x.points {
		for _, n := range []uint64{uint64(p.offset), uint64(p.position), uint64(p.seq), uint64(p.at)} {
			b = binary.LittleEndian.AppendUint64(b, n)
		}
	}
	names := make([]uint64, 0, len(x.names))
	for h := range x.names {
		names = append(names, h)
	}
	slices.Sort(names)
	for _, h := range names {
		b = binary.LittleEndian.AppendUint64(b, h)
	}
	idx := b[from:]
	keysSum, idxSum, idxLen := crc32.Checksum(keys, castagnoli), crc32.Checksum(idx, castagnoli), len(idx)
	from = len(b)
	b = append(b, footerMagic+"\x00\x00\x00\x00"...)
	b = last.append(b)
	for _, n := range []uint64{x.groups, x.changes, uint64(offset), uint64(len(keys)), uint64(idxLen)} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	b = binary.LittleEndian.AppendUint32(b, keysSum)
	b = binary.LittleEndian.AppendUint32(b, idxSum)
	binary.LittleEndian.PutUint32(b[from+4:], crc32.Checksum(b[from+8:], castagnoli))
	return b
}

// readTrailer reads the trailer of a closed segment. errBad: it has none, or it is
// harmed.
func readTrailer(f *os.File) (*trailer, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	t := &trailer{size: info.Size()}
	if t.size < headerSize+trailerSize {
		return nil, bad("it has no footer")
	}
	var b [trailerSize]byte
	if _, err := f.ReadAt(b[:], t.size-trailerSize); err != nil {
		return nil, shortOr(err, "it has no footer")
	}
	if string(b[:4]) != footerMagic || crc32.Checksum(b[8:], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, bad("it has no footer, or one that is harmed")
	}
	t.last = readPlace(b[8:])
	n := b[8+placeSize:]
	t.groups, t.changes = binary.LittleEndian.Uint64(n), binary.LittleEndian.Uint64(n[8:])
	t.records = int64(binary.LittleEndian.Uint64(n[16:]))
	t.keysLen, t.idxLen = int64(binary.LittleEndian.Uint64(n[24:])), int64(binary.LittleEndian.Uint64(n[32:]))
	t.keysSum, t.idxSum = binary.LittleEndian.Uint32(n[40:]), binary.LittleEndian.Uint32(n[44:])
	t.keysAt = t.records + int64(len(segmentEnd))
	t.indexAt = t.keysAt + t.keysLen
	if t.records < headerSize || t.keysLen < 0 || t.idxLen < 8 || t.indexAt+t.idxLen+trailerSize != t.size {
		return nil, bad("its footer is not where it should be")
	}
	return t, nil
}

// readIndex reads points and collections.
func (t *trailer) readIndex(f io.ReaderAt) error {
	b := make([]byte, t.idxLen)
	if _, err := f.ReadAt(b, t.indexAt); err != nil {
		return shortOr(err, "its footer is cut short")
	}
	if crc32.Checksum(b, castagnoli) != t.idxSum {
		return bad("its footer is harmed")
	}
	count := binary.LittleEndian.Uint64(b)
	b = b[8:]
	if count > uint64(len(b)/pointSize) {
		return bad("its footer is harmed")
	}
	for range count {
		t.points = append(t.points, point{int64(binary.LittleEndian.Uint64(b)), feed.Position(binary.LittleEndian.Uint64(b[8:])),
			feed.Seq(binary.LittleEndian.Uint64(b[16:])), int64(binary.LittleEndian.Uint64(b[24:]))})
		b = b[pointSize:]
	}
	t.collections = b
	return nil
}

func (t *trailer) names(h uint64) bool {
	b := t.collections
	for lo, hi := 0, len(b)/8; lo < hi; {
		mid := (lo + hi) / 2
		switch n := binary.LittleEndian.Uint64(b[8*mid:]); {
		case n == h:
			return true
		case n < h:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return false
}

// holds tells whether the segment may hold what is wanted, and how many bytes it took
// to know.
func (t *trailer) holds(f io.ReaderAt, r feed.HistoryRange) (yes bool, read int64, err error) {
	if t.changes == 0 {
		return false, 0, nil
	}
	if err := t.readIndex(f); err != nil {
		return false, 0, err
	}
	read = t.idxLen
	if len(r.Collections) == 0 {
		return t.names(hash(r.Tenant)), read, nil
	}
	if !slices.ContainsFunc(r.Collections, func(c string) bool { return t.names(hash(r.Tenant, c)) }) {
		return false, read, nil
	}
	if r.Key == "" {
		return true, read, nil
	}
	b := make([]byte, t.keysLen)
	if _, err := f.ReadAt(b, t.keysAt); err != nil {
		return false, read, shortOr(err, "its footer is cut short")
	}
	if crc32.Checksum(b, castagnoli) != t.keysSum {
		return false, read, bad("its footer is harmed")
	}
	read += t.keysLen
	return slices.ContainsFunc(r.Collections, func(c string) bool {
		return probes(hash(r.Tenant, c, r.Key), len(b), func(at int, bit byte) bool { return b[at]&bit != 0 })
	}), read, nil
}
