package filter

import (
	"container/list"
	"sync"
)

const (
	maxPrograms     = 1024
	maxProgramBytes = 512 << 10 // of their texts; a program takes some 50 times as much
)

// programs are those that were asked for last. Tokens come and go, and their expressions
// stay: compiling takes a hundred times as long as finding one here.
var programs = cache{most: maxPrograms, mostBytes: maxProgramBytes}

// cache holds programs by their texts, also those that could not be made, as the next token
// has the same fault.
type cache struct {
	most, mostBytes int

	mu    sync.Mutex
	bytes int                      // guarded by mu
	all   map[string]*list.Element // guarded by mu
	order list.List                // guarded by mu; of *entry, the last asked for first
}

// entry is one program, made by the first who asks while the others wait.
type entry struct {
	text    string
	once    sync.Once
	program *program
	err     error
}

func (c *cache) get(text string) (*program, error) {
	if len(text) > maxExpr {
		return newProgram(text) // refused, and not worth a place
	}
	e := c.entry(text)
	e.once.Do(func() { e.program, e.err = newProgram(text) })
	return e.program, e.err
}

// entry returns the place for a text, after it has made room for it.
func (c *cache) entry(text string) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.all[text]; ok {
		c.order.MoveToFront(at)
		return at.Value.(*entry)
	}
	if c.all == nil {
		c.all = make(map[string]*list.Element)
	}
	e := &entry{text: text}
	c.all[text] = c.order.PushFront(e)
	c.bytes += len(text)
	for len(c.all) > c.most || c.bytes > c.mostBytes {
		last := c.order.Remove(c.order.Back()).(*entry)
		delete(c.all, last.text)
		c.bytes -= len(last.text)
	}
	return e
}
