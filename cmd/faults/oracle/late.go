package oracle

import "time"

// overdue is how long after its time a row may be held, and settling for how long a
// server may be up before it has let go of what went while it was down.
const (
	overdue  = 5 * time.Second
	settling = 2 * time.Second
)

// mortal finds the rows of an epoch that stayed long after their time, as far as is known.
func (e *epoch) mortal() {
	for _, of := range e.keys {
		var due time.Duration
		for _, x := range of {
			switch {
			case x.removed || x.asked == nil:
				due = 0
			case x.asked.change().TTL > 0:
				due = x.to + x.asked.change().TTL
			case x.asked.change().Op != "modify": // which leaves the row the time that it has
				due = 0
			}
			if x.due = due; due > 0 && (x.next == nil || x.next.to > due+overdue) {
				e.late = append(e.late, x)
			}
		}
	}
}

// checkLate checks that no row is held that had to go before a moment. held tells the
// sequence of a row, 0 if it is not there.
func (c *checker) checkLate(e *epoch, at uint64, now time.Duration, who string, held func(rowKey) uint64) {
	if len(e.late) == 0 {
		return
	}
	var up time.Duration
	for _, s := range c.h.Starts {
		if s.Began <= now {
			up = s.Ready
		}
	}
	if up == 0 || up+settling > now {
		return
	}
	for _, x := range e.late {
		if x.due+overdue < now && x.seq <= at && !x.told && held(x.row) == x.seq {
			x.told = true
			c.violate("late", "%s holds %s at %v; its time was over at %v", who, x, now, x.due)
		}
	}
}
