package follow

import (
	"bytes"
	"encoding/json"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Row is one row of a collection.
type Row struct {
	Collection string
	Key        string
	Seq        feed.Seq // of the row's last change
	Value      json.RawMessage
}

// Delta is what became of one row in the eyes of whoever looks at Rows: it was put
// there, or its value replaced, or it was removed.
type Delta struct {
	Row     // as it is now; without Value, and with the remove's Seq where known, if it was removed
	Removed bool
}

// Rows folds the frames of one feed into its rows: insert and modify put, remove
// deletes what is there. The changes of a transaction become visible together. The
// rows of a reset are gathered aside, and take the place of the old ones at the next
// live, however many connections that takes. What has come before is skipped.
//
// It is for one goroutine, and for one connection at a time. The zero Rows is empty
// and ready.
type Rows struct {
	collections map[string]*rowSet
	pending     []Frame // the transaction that has begun
	live        bool
}

// rowSet is one collection.
type rowSet struct {
	held  map[string]Row
	stage map[string]Row // what a reset has brought so far; nil: no reset
	// seen is the sequence up to which changes were taken, since the reset if there is
	// one. A feed's changes come in order, so what is not above it was seen: also a put
	// that would bring back a row whose remove is no longer known.
	seen feed.Seq
}

// Apply takes the next frame, and returns what it made visible, in an order of no
// meaning after a reset and in the feed's order otherwise. Frames of types without
// rows are taken too, so that all can be passed on: open throws away a transaction
// that the end of the connection before cut off.
func (r *Rows) Apply(f Frame) []Delta {
	switch f.Type {
	case "open":
		r.pending, r.live = nil, false
	case "reset":
		r.live = false
		for _, name := range f.Collections {
			s := r.set(name)
			s.stage, s.seen = make(map[string]Row), 0
		}
	case "change":
		r.pending = append(r.pending, f)
		if f.More {
			return nil
		}
		var deltas []Delta
		for _, f := range r.pending {
			deltas = r.set(f.Collection).take(f, deltas)
		}
		r.pending = nil
		return deltas
	case "live":
		r.live = true
		var deltas []Delta
		for name, s := range r.collections {
			if s.stage != nil {
				deltas = s.swap(name, deltas)
			}
		}
		return deltas
	}
	return nil
}

func (r *Rows) set(name string) *rowSet {
	s := r.collections[name]
	if s == nil {
		if r.collections == nil {
			r.collections = make(map[string]*rowSet)
		}
		s = &rowSet{held: make(map[string]Row)}
		r.collections[name] = s
	}
	return s
}

// take applies one change, and appends it to deltas if it can be seen.
func (s *rowSet) take(f Frame, deltas []Delta) []Delta {
	if f.Seq <= s.seen {
		return deltas
	}
	s.seen = f.Seq
	rows := s.held
	if s.stage != nil {
		rows = s.stage
	}
	row := Row{f.Collection, f.Key, f.Seq, f.Value}
	if f.Op == "remove" {
		if _, there := rows[f.Key]; !there {
			return deltas
		}
		delete(rows, f.Key)
	} else {
		rows[f.Key] = row
	}
	if s.stage != nil {
		return deltas
	}
	return append(deltas, Delta{row, f.Op == "remove"})
}

// swap puts what a reset has brought in the place of what was held. A row that kept
// its value is no news, though its sequence may be another.
func (s *rowSet) swap(name string, deltas []Delta) []Delta {
	old := s.held
	s.held, s.stage = s.stage, nil
	for key := range old {
		if _, there := s.held[key]; !there {
			deltas = append(deltas, Delta{Row{Collection: name, Key: key}, true})
		}
	}
	for key, row := range s.held {
		if was, there := old[key]; !there || !bytes.Equal(was.Value, row.Value) {
			deltas = append(deltas, Delta{row, false})
		}
	}
	return deltas
}

// Live tells whether the feed was live when its last frame came: the rows are those
// that the server had.
func (r *Rows) Live() bool { return r.live }

// Get returns one row; false if it is not there.
func (r *Rows) Get(collection, key string) (Row, bool) {
	if s := r.collections[collection]; s != nil {
		row, there := s.held[key]
		return row, there
	}
	return Row{}, false
}

// Len is how many rows a collection has.
func (r *Rows) Len(collection string) int {
	if s := r.collections[collection]; s != nil {
		return len(s.held)
	}
	return 0
}

// All returns the rows of one collection, sorted by key.
func (r *Rows) All(collection string) iter.Seq[Row] {
	return func(yield func(Row) bool) {
		s := r.collections[collection]
		if s == nil {
			return
		}
		rows := slices.SortedFunc(maps.Values(s.held), func(a, b Row) int { return strings.Compare(a.Key, b.Key) })
		for _, row := range rows {
			if !yield(row) {
				return
			}
		}
	}
}
