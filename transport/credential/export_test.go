package credential

import "time"

// Thumbprints are those of the keys of a set.
func Thumbprints(set []byte) ([]string, error) {
	keys, _, err := parseJWKS(set)
	var prints []string
	for _, k := range keys {
		prints = append(prints, k.print)
	}
	return prints, err
}

// Question names the question with these five parts.
func Question(p []string) [32]byte {
	q := question{tenant: p[0], authorization: p[1], cookie: p[2], origin: p[3], host: p[4]}
	return q.sum()
}

// Cache is a cache of strings with bounds of the test's.
type Cache struct{ *cache[string] }

func NewCache(most, bytes int) Cache {
	c := newCache[string]()
	c.most, c.mostBytes = most, bytes
	return Cache{c}
}

func (c Cache) Get(key byte, now time.Time) string {
	v, _ := c.get([32]byte{key}, now)
	return v
}

func (c Cache) Put(key byte, value string, now, until time.Time) {
	c.put([32]byte{key}, value, len(value), now, until)
}

// Held is how many entries there are, how many wait in the queue, and their bytes.
func (c Cache) Held() (entries, queued, bytes int) {
	return len(c.entries), c.queue.Len(), c.bytes
}
