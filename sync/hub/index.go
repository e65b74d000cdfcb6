package hub

import (
	"hash/maphash"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// index finds the last change of a key. The zero value is empty. The keys are in the
// changes already, so an entry costs 12 bytes, and a row about 20; with a map of
// strings it would cost 40 to 50.
//
// It is a table with linear probing: an entry stands at the place that its hash names
// or, where that is taken, at one of the next, without a free place in between.
type index struct {
	hashes  []uint32 // 0: free
	changes []*feed.Change
	n       int
}

const leastIndex = 8

var hashSeed = maphash.MakeSeed()

func hashOf(key string) uint32 {
	return max(1, uint32(maphash.String(hashSeed, key)))
}

// find returns the place of a key, or the free place where it belongs.
func (x *index) find(key string, hash uint32) (at int, found bool) {
	mask := len(x.hashes) - 1
	for at = int(hash) & mask; x.hashes[at] != 0; at = (at + 1) & mask {
		if x.hashes[at] == hash && x.changes[at].Key() == key {
			return at, true
		}
	}
	return at, false
}

// get returns the change of a key, nil if there is none.
func (x *index) get(key string) *feed.Change {
	if x.n == 0 {
		return nil
	}
	at, _ := x.find(key, hashOf(key))
	return x.changes[at]
}

// put makes c the change of its key, and returns the one before it, nil if there was none.
func (x *index) put(c *feed.Change) (old *feed.Change) {
	if x.n >= len(x.hashes)*4/5 {
		x.resize(max(leastIndex, 2*len(x.hashes)))
	}
	key := c.Key()
	hash := hashOf(key)
	at, found := x.find(key, hash)
	old, x.hashes[at], x.changes[at] = x.changes[at], hash, c
	if !found {
		x.n++
	}
	return old
}

// remove drops a key if c is its change.
func (x *index) remove(c *feed.Change) bool {
	if x.n == 0 {
		return false
	}
	key := c.Key()
	at, _ := x.find(key, hashOf(key))
	if x.changes[at] != c {
		return false
	}
	x.n--
	// What follows without a gap moves up, unless it would come before its own place.
	mask := len(x.hashes) - 1
	for i := (at + 1) & mask; x.hashes[i] != 0; i = (i + 1) & mask {
		if home := int(x.hashes[i]); (i-home)&mask >= (i-at)&mask {
			x.hashes[at], x.changes[at] = x.hashes[i], x.changes[i]
			at = i
		}
	}
	x.hashes[at], x.changes[at] = 0, nil
	if len(x.hashes) > leastIndex && x.n < len(x.hashes)/8 {
		x.resize(len(x.hashes) / 4)
	}
	return true
}

func (x *index) resize(size int) {
	hashes, changes := x.hashes, x.changes
	x.hashes, x.changes = make([]uint32, size), make([]*feed.Change, size)
	for i, hash := range hashes {
		if hash == 0 {
			continue
		}
		at := int(hash) & (size - 1)
		for x.hashes[at] != 0 {
			at = (at + 1) & (size - 1)
		}
		x.hashes[at], x.changes[at] = hash, changes[i]
	}
}
