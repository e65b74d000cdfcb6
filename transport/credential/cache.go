package credential

import (
	"container/list"
	"sync"
	"time"
)

// Bounds of a cache.
const (
	cacheEntries = 10_000
	cacheBytes   = 16 << 20 // as estimated from what was sent
	cacheTime    = 60 * time.Second
)

// cache remembers answers for a short time, each under the SHA-256 of its question. It
// may be used concurrently. When it is full the oldest go first: an entry lives for so short
// a time that a better order would gain nothing.
type cache[V any] struct {
	most, mostBytes int

	mu      sync.Mutex
	entries map[[32]byte]*list.Element
	queue   list.List // of *entry[V], by when they were put
	bytes   int
}

type entry[V any] struct {
	key   [32]byte
	value V
	size  int
	until time.Time
}

func newCache[V any]() *cache[V] {
	return &cache[V]{most: cacheEntries, mostBytes: cacheBytes, entries: map[[32]byte]*list.Element{}}
}

// get gives what was put under a key, until its time is over.
func (c *cache[V]) get(key [32]byte, now time.Time) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := c.entries[key]; at != nil {
		if e := at.Value.(*entry[V]); now.Before(e.until) {
			return e.value, true
		}
	}
	var none V
	return none, false
}

// put remembers a value, and forgets as many of the oldest as it takes.
func (c *cache[V]) put(key [32]byte, value V, size int, now, until time.Time) {
	if size > c.mostBytes || !now.Before(until) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.entries[key]; old != nil {
		c.remove(old)
	}
	c.entries[key] = c.queue.PushBack(&entry[V]{key, value, size, until})
	c.bytes += size
	for first := c.queue.Front(); len(c.entries) > c.most || c.bytes > c.mostBytes || !now.Before(first.Value.(*entry[V]).until); first = c.queue.Front() {
		c.remove(first)
	}
}

func (c *cache[V]) remove(at *list.Element) {
	e := c.queue.Remove(at).(*entry[V])
	delete(c.entries, e.key)
	c.bytes -= e.size
}
