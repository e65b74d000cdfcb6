package oracle

import (
	"bytes"
	"encoding/json"
	"reflect"
	"time"
)

// checkAnswers checks each change by itself: one effect, one answer.
func (c *checker) checkAnswers() {
	for _, w := range c.h.Writes {
		if len(w.Attempts) > 0 {
			c.checkShape(w)
		}
		for i := range w.Changes {
			if a := c.asked[writeID{w.Client, w.Changes[i].ID}]; a != nil && a.write == w {
				c.checkEffects(a)
				c.checkRepetitions(a)
			}
		}
	}
}

// checkShape checks that an answer fits its request.
func (c *checker) checkShape(w *Write) {
	for j := range w.Attempts {
		a := &w.Attempts[j]
		if len(a.Results) == 0 {
			continue
		}
		if len(a.Results) != len(w.Changes) {
			c.violate("answer", "%s/%s: %d changes, %d results", w.Client, w.Changes[0].ID, len(w.Changes), len(a.Results))
			continue
		}
		good := 0
		for i, r := range a.Results {
			if r.ID != w.Changes[i].ID {
				c.violate("answer", "%s/%s is answered as %q", w.Client, w.Changes[i].ID, r.ID)
			}
			if r.ok() {
				good++
			}
		}
		if w.Atomic && good != 0 && good != len(w.Changes) {
			c.violate("part", "of the transaction %s/%s, %d of %d changes were taken", w.Client, w.Changes[0].ID, good, len(w.Changes))
		}
		if w.Atomic && !fitting(w, a, good) {
			c.violate("answer", "%s/%s: status %d with %d changes taken", w.Client, w.Changes[0].ID, a.Status, good)
		}
	}
}

// fitting tells whether a status says how many changes were taken.
func fitting(w *Write, a *Attempt, good int) bool {
	switch {
	case good > 0:
		return a.Status == 200
	case w.Row && a.Results[0].Status == "missing":
		return a.Status == 404
	case w.Row && a.Results[0].Status == "conflict":
		return a.Status == 412
	}
	return a.Status == 409
}

// gone tells whether an effect was lost with its epoch.
func (x *entry) gone() bool { return x.seq > x.epoch.cut }

// checkEffects checks that a change took effect once, of all that was not lost.
func (c *checker) checkEffects(a *asked) {
	for i, x := range a.effects {
		for _, y := range a.effects[:i] {
			if x.epoch == y.epoch || !x.gone() && !y.gone() {
				c.violate("effect", "%s took effect twice: %s (%s) and %s (%s)", a.id, y, y.where, x, x.where)
			}
		}
	}
	if len(a.effects) == 0 {
		return
	}
	limbo := false
	for j := range a.write.Attempts {
		t := &a.write.Attempts[j]
		limbo = limbo || t.Twice
		if a.i >= len(t.Results) {
			limbo = true
			continue
		}
		r := t.Results[a.i]
		if r.ok() {
			continue
		}
		for _, x := range a.effects {
			if x.gone() {
				continue
			}
			// A refusal is not remembered: what is sent again after it may be taken.
			again := j+1 < len(a.write.Attempts) && a.write.Attempts[j+1].Sent <= x.seen
			if x.seen < t.Sent {
				c.violate("answer", "%s took effect as %s and was refused (%s) when it was sent again", a.id, x, r.Status)
			} else if !limbo && !again {
				c.violate("effect", "%s was refused (%s), and took effect: %s (%s)", a.id, r.Status, x, x.where)
			}
		}
	}
}

// checkRepetitions checks that each answer after the first is the same.
func (c *checker) checkRepetitions(a *asked) {
	var first *Result
	var effect *entry
	for j := range a.write.Attempts {
		t := &a.write.Attempts[j]
		if a.i >= len(t.Results) {
			continue
		}
		r := &t.Results[a.i]
		at, ok := parseCursor(t.Cursor)
		e := c.byName[at.epoch]
		if !r.ok() {
			if effect != nil && !effect.gone() {
				c.violate("answer", "%s was taken as %s, and refused (%s) when it was sent again", a.id, effect, r.Status)
			}
			continue
		}
		if !ok || e == nil {
			continue // told by gather
		}
		x := c.of(e, r.Seq).at[r.Seq]
		fresh := first == nil || effect != nil && effect.gone() && e.n > effect.epoch.n
		switch {
		case fresh && r.Status == "duplicate" && j == 0 && !t.Twice:
			c.violate("answer", "%s was sent for the first time and answered as a duplicate", a.id)
		case fresh && r.Status == "ok":
			if max := e.acknowledged(a.write.Attempts[0].Sent); r.Seq <= max && first == nil {
				c.violate("back", "%s got the sequence %d of epoch %s, when %d had been acknowledged before it was sent", a.id, r.Seq, e.name, max)
			}
		case !fresh && r.Status == "ok":
			c.violate("effect", "%s took effect again: sequence %d, then %d", a.id, first.Seq, r.Seq)
		case !fresh && (r.Seq != first.Seq || r.Key != first.Key || r.Value != first.Value):
			c.violate("answer", "%s was answered with %s at %d, then with %s at %d", a.id, short(first.Value), first.Seq, short(r.Value), r.Seq)
		}
		if fresh {
			first, effect = r, x
		}
	}
}

// grain is the server's own for deadlines.
const grain = time.Millisecond

// decided checks a change against the row that it found.
func (c *checker) decided(x, was *entry) {
	if x.asked == nil && x.removed {
		switch {
		case was == nil || was.old:
		case was.dies == 0:
			c.violate("stranger", "%s: nobody asked for it, and the row had no time to live: %s", x, was)
		case x.seen < was.dies:
			c.violate("early", "%s: the row went at %v and had to live until %v: %s", x, x.seen, was.dies, was)
		}
	}
	if x.asked != nil {
		// A modify without a time of its own leaves the row the time that it has.
		if ch := x.asked.change(); ch.TTL > 0 {
			x.dies = x.asked.sent() + ch.TTL - grain
		} else if ch.Op == "modify" && was != nil {
			x.dies, x.old = was.dies, was.old
		}
	}
	if x.asked == nil || c.contested[x.row] {
		return
	}
	ch := x.asked.change()
	if was != nil && was.dies > 0 && was.dies <= x.to {
		return // it may have gone by itself before, and nobody was told
	}
	there := was != nil
	switch {
	case ch.Op == "insert" && there:
		c.violate("decision", "%s was inserted, and the row was there: %s", x, was)
	case ch.Op == "modify" && !there:
		c.violate("decision", "%s was modified, and the row was not there", x)
	case ch.If != nil && (there && *ch.If != was.seq || !there && *ch.If != 0):
		c.violate("decision", "%s was taken under the condition that the row is at %d, and it was %v", x, *ch.If, was)
	}
	switch {
	case ch.Op == "remove":
	case ch.Patch != "":
		if there && !sameJSON(x.value, merge(decode(was.value), decode(ch.Patch))) {
			c.violate("decision", "%s is not %s with the patch %s", x, short(was.value), short(ch.Patch))
		}
	case x.value != ch.Value && !sameJSON(x.value, decode(ch.Value)):
		c.violate("decision", "%s asked for the value %s", x, short(ch.Value))
	}
}

func decode(s string) any {
	d := json.NewDecoder(bytes.NewReader([]byte(s)))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	return v
}

func sameJSON(s string, v any) bool { return reflect.DeepEqual(decode(s), v) }

// merge is RFC 7396.
func merge(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	merged := make(map[string]any)
	if t, ok := target.(map[string]any); ok {
		for name, v := range t {
			merged[name] = v
		}
	}
	for name, v := range p {
		if v == nil {
			delete(merged, name)
		} else {
			merged[name] = merge(merged[name], v)
		}
	}
	return merged
}
