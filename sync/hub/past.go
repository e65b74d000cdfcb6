package hub

import (
	"cmp"
	"slices"
	"sync"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// past is the last changes of a collection, also those that were replaced since. Whoever
// sees some of its rows only must be told when a row moves out of sight, and must not hear
// of one that was not in it: to tell the two apart takes what the row was before.
//
// Such a reader is told of a row that moved out at the place where it did, even if the row
// has changed again since. So whoever has come to a cursor holds no row that was out of
// sight then, and what moves out after any cursor can be told from the past alone.
//
// A collection has one from when somebody with a filter first follows it, for as long as
// it is there; it holds at most twice as many changes as the collection has rows, and at most as
// many bytes: a row that is written again and again must not take the memory of others.
type past struct {
	// Guarded by the tenant's mu; changed by the writer alone.
	from  feed.Seq // all changes after it are there
	steps queue[step]
	bytes int64 // that it holds beside the collection, about

	mu    sync.Mutex
	moved map[move]*feed.Change // guarded by mu: changes as no log holds them
}

// step is a change and what it replaced.
type step struct {
	change, old *feed.Change // old is nil where nothing was
	replaced    bool         // there is a later change of the row
}

// move is a change as an insert, for whoever did not see the row before, or as a remove,
// for whoever does not see it any more.
type move struct {
	seq feed.Seq
	op  feed.Op
}

// pastLeast is how many changes are kept of a small collection. A variable for tests alone.
var pastLeast = 1024

const (
	stepCost  = 40      // bytes
	pastBytes = 2 << 20 // what is kept of a small collection, too
)

// remember makes the view have a past. It needs the tenant's mu.
func (v *view) remember() {
	if v.past == nil {
		v.past = &past{from: v.last(), moved: make(map[move]*feed.Change)}
	}
}

// add adds a change that replaced old, and forgets the oldest beyond most, and beyond mostBytes.
func (p *past) add(c, old *feed.Change, most int, mostBytes int64) {
	p.bytes += stepCost
	if old != nil {
		p.bytes += old.Size()
		if i, ok := p.find(old.Seq()); ok {
			p.steps.items[p.steps.from+i].replaced = true
		}
	}
	p.steps.push(step{change: c, old: old})
	for p.steps.len() > most || p.bytes > mostBytes {
		p.forget()
	}
}

// forget forgets the oldest step.
func (p *past) forget() {
	s, _ := p.steps.front()
	p.steps.pop()
	p.bytes -= stepCost
	if s.old != nil {
		p.bytes -= s.old.Size()
	}
	p.from = s.change.Seq()
	p.mu.Lock()
	delete(p.moved, move{p.from, feed.Insert})
	delete(p.moved, move{p.from, feed.Remove})
	p.mu.Unlock()
}

// find is the index of the step at seq, or of the first after it.
func (p *past) find(seq feed.Seq) (i int, found bool) {
	return slices.BinarySearchFunc(p.steps.items[p.steps.from:], seq, func(s step, seq feed.Seq) int { return cmp.Compare(s.change.Seq(), seq) })
}

// after is the steps after seq, which is not before from.
func (p *past) after(seq feed.Seq) []step {
	i, _ := p.find(seq + 1)
	return p.steps.items[p.steps.from+i:]
}

// as is the change of a step as an insert or as a remove: encoded once, whoever asks.
func (p *past) as(c *feed.Change, op feed.Op) *feed.Change {
	if c.Op() == op {
		return c
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := move{c.Seq(), op}
	m := p.moved[key]
	if m == nil {
		client, id := c.By()
		f := feed.Fields{Seq: c.Seq(), Collection: c.Collection(), Op: op, Key: c.Key(), At: c.At(), Client: client, ID: id, Tail: c.Tail()}
		if op == feed.Insert {
			f.Value = c.Value()
		}
		m = feed.NewChange(f)
		p.moved[key] = m
	}
	return m
}

// through is the change of a step as somebody who sees by x is told of it, nil if it is
// not. Where it is of a snapshot, what moved out is none of its news.
func (p *past) through(x *sieve, s step, snapshot bool) *feed.Change {
	switch {
	case x.sees(s.change):
		if s.replaced {
			return nil // a later one tells
		}
		if s.old == nil || snapshot || x.sees(s.old) {
			return s.change
		}
		return p.as(s.change, feed.Insert)
	case !snapshot && s.old != nil && x.sees(s.old):
		return p.as(s.change, feed.Remove)
	}
	return nil
}
