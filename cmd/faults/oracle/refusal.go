package oracle

import (
	"slices"
	"sort"
	"time"
)

// bound says between when and when each change of an epoch came to be: not before it, and
// all before it, were sent; not after it, or anything after it, was seen.
func (e *epoch) bound() {
	var from time.Duration
	for _, x := range e.order {
		if x.asked != nil {
			from = max(from, x.asked.sent())
		}
		x.from = from
	}
	to := time.Duration(1<<63 - 1)
	for _, x := range slices.Backward(e.order) {
		to = min(to, x.seen)
		x.to = to
	}
}

// checkRefusals checks that what was refused had to be, by the row as it stood at some
// moment while it was asked for, and that this row was shown.
func (c *checker) checkRefusals() {
	for _, w := range c.h.Writes {
		rows := make(map[rowKey]int)
		for i := range w.Changes {
			rows[rowKey{w.Changes[i].Collection, w.Changes[i].Key}]++
		}
		for j := range w.Attempts {
			a := &w.Attempts[j]
			if a.Twice || len(a.Results) == 0 {
				break // from here on it may have met itself
			}
			refused, aborted := false, false
			for i, r := range a.Results {
				if r.ok() || i >= len(w.Changes) {
					continue
				}
				ch := &w.Changes[i]
				switch r.Status {
				case "missing", "exists", "conflict":
				case "aborted":
					aborted = true
					continue
				default:
					c.violate("answer", "%s/%s is answered %q", w.Client, ch.ID, r.Status)
					refused = true
					continue
				}
				refused = true
				row := rowKey{ch.Collection, r.Key}
				switch {
				case ch.Key != "" && ch.Key != r.Key:
					c.violate("answer", "%s/%s asked for the row %s and is answered about %s", w.Client, ch.ID, ch.Key, r.Key)
				case rows[row] < 2: // else the change before it counts, too
					c.checkRefusal(w, a, ch, &r, row)
				}
			}
			if aborted && !refused {
				c.violate("refusal", "%s/%s was aborted, and nothing of it was refused", w.Client, w.Changes[0].ID)
			}
		}
	}
}

func (c *checker) checkRefusal(w *Write, a *Attempt, ch *Change, r *Result, row rowKey) {
	if c.contested[row] {
		return
	}
	var last *epoch
	for _, e := range c.epochs {
		if e.start.Began > a.Answered {
			break
		}
		over := e.n+1 < len(c.epochs)
		if over && c.epochs[e.n+1].start.Began < a.Sent {
			continue
		}
		if last = e; e.refuses(a, ch, r, row) {
			return
		}
		if over && c.epochs[e.n+1].start.Loss {
			return // of the end that was lost, nobody may have been told all
		}
	}
	if last != nil {
		c.violate("refusal", "%s/%s (%s of %s) was refused (%s) between %v and %v, with the row at %d: %q; in the epoch %s no such row refused it then",
			w.Client, ch.ID, ch.Op, row, r.Status, a.Sent, a.Answered, r.Seq, short(r.Value), last.name)
	}
}

// refuses tells whether an epoch has had a row while a change was asked for that refuses
// it, and is the one that was shown.
func (e *epoch) refuses(a *Attempt, ch *Change, r *Result, row rowKey) bool {
	fits := func(seq uint64, value string) bool { // 0: the row is not there
		if r.Seq != seq || r.Value != value {
			return false
		}
		switch r.Status {
		case "missing":
			return seq == 0 && ch.Op == "modify"
		case "exists":
			return seq != 0 && ch.Op == "insert"
		}
		return ch.If != nil && *ch.If != seq
	}
	of := e.keys[row]
	// The first change that may not have been there when it was asked.
	i := sort.Search(len(of), func(i int) bool { return of[i].to >= a.Sent })
	was := e.claimed[row]
	if i > 0 {
		was = of[i-1]
	}
	for {
		there := was != nil && !was.removed
		if there && fits(was.seq, was.value) {
			return true
		}
		// It may also have gone by itself, and nobody was told.
		if (!there || was.old || was.dies > 0 && was.dies <= a.Answered) && fits(0, "") {
			return true
		}
		if i == len(of) || of[i].from > a.Answered {
			return false
		}
		was = of[i]
		i++
	}
}
