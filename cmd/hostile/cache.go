package main

import (
	"net/http"
	"sync"
	"time"
)

// Bounds of a cache: of one body, of all bodies, and of how many answers there are.
const bodyMost, cacheMost, answersMost = 1 << 20, 16 << 20, 1000

// cache keeps whole answers by their URL. It may be used concurrently.
type cache struct {
	fresh time.Duration

	mu      sync.Mutex
	answers map[string]answer // guarded by mu
	size    int               // guarded by mu; of all bodies
}

type answer struct {
	status int
	header http.Header // never changed
	body   []byte      // never changed
	until  time.Time
}

func newCache(fresh time.Duration) *cache {
	return &cache{fresh: fresh, answers: make(map[string]answer)}
}

func (c *cache) get(url string) (answer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.answers[url]
	return a, ok && time.Now().Before(a.until)
}

// put keeps an answer. What is stale goes first; an answer for which there is no room
// is not kept.
func (c *cache) put(url string, a answer) {
	now := time.Now()
	a.until = now.Add(c.fresh)
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, old := range c.answers {
		if key == url || !now.Before(old.until) {
			delete(c.answers, key)
			c.size -= len(old.body)
		}
	}
	if len(c.answers) < answersMost && c.size+len(a.body) <= cacheMost {
		c.answers[url] = a
		c.size += len(a.body)
	}
}

// keeper is a writer that keeps a body, unless it is too large to be kept.
type keeper struct {
	body []byte
	over bool
}

func (k *keeper) Write(b []byte) (int, error) {
	k.over = k.over || len(k.body)+len(b) > bodyMost
	if !k.over {
		k.body = append(k.body, b...)
	}
	return len(b), nil
}
