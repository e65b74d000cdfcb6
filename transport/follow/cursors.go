package follow

import (
	"net/url"
	"slices"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Collection is a collection of a feed, and where to begin in it.
type Collection struct {
	Name   string
	Cursor string // as a feed gave it; "": from the beginning
}

// Cursors is how far each collection of a feed has come. It is a value: a copy is
// cheap and never changes.
type Cursors struct {
	names []string
	epoch feed.Epoch // of the answer under way
	// all is the cursor of the feed as a whole, and own holds the collections that
	// may be further than that. What counts is the newest of the two, by the same
	// rule that the server has for Last-Event-ID and @CURSOR: so all may begin anew
	// after a reset while the other collections stay where they are.
	all feed.Cursor
	own map[string]string // never modified
}

// NewCursors returns the cursors of a feed that begins at the places given.
func NewCursors(collections ...Collection) Cursors {
	var c Cursors
	c.own = make(map[string]string)
	for _, x := range collections {
		c.names = append(c.names, x.Name)
		if x.Cursor != "" {
			c.own[x.Name] = x.Cursor
		}
	}
	return c
}

// After returns where the feed is after a frame. A change with more moves nothing:
// no cursor stands inside a transaction.
func (c Cursors) After(f Frame) Cursors {
	switch f.Type {
	case "open":
		c.epoch = f.Epoch
	case "reset":
		own := make(map[string]string)
		for _, name := range c.names {
			if at := c.Of(name); at != "" && !slices.Contains(f.Collections, name) {
				own[name] = at
			}
		}
		c.own, c.all = own, feed.Cursor{}
	case "change":
		if !f.More {
			c.all = newest(c.all, feed.Cursor{Epoch: c.epoch, Seq: f.Seq})
		}
	case "live", "next":
		if at, err := feed.ParseCursor(f.Cursor); err == nil {
			c.all = newest(c.all, at)
		}
	}
	return c
}

// newest returns the further of two cursors; of two epochs, the second.
func newest(a, b feed.Cursor) feed.Cursor {
	if a.Epoch == b.Epoch && a.Seq > b.Seq {
		return a
	}
	return b
}

// Of returns the cursor of one collection, "" if it is to be sent from the beginning.
func (c Cursors) Of(name string) string {
	own := c.own[name]
	if c.all.Epoch == "" {
		return own
	}
	if at, err := feed.ParseCursor(own); err == nil && at.Epoch == c.all.Epoch && at.Seq > c.all.Seq {
		return own
	}
	return c.all.String()
}

// Collections returns the collections with their cursors, in the order in which
// they were given.
func (c Cursors) Collections() []Collection {
	list := make([]Collection, len(c.names))
	for i, name := range c.names {
		list[i] = Collection{name, c.Of(name)}
	}
	return list
}

// One returns the cursor that all collections share; false if they have several.
func (c Cursors) One() (string, bool) {
	if len(c.names) == 0 {
		return "", false
	}
	one := c.Of(c.names[0])
	for _, name := range c.names[1:] {
		if c.Of(name) != one {
			return "", false
		}
	}
	return one, true
}

// query adds the collections and their cursors to a feed's query.
func (c Cursors) query(q url.Values) {
	one, same := c.One()
	for _, x := range c.Collections() {
		if !same && x.Cursor != "" {
			x.Name += "@" + x.Cursor
		}
		q.Add("c", x.Name)
	}
	if same && one != "" {
		q.Set("cursor", one)
	}
}
