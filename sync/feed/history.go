package feed

import (
	"errors"
	"fmt"
)

// HistoryRange says which changes of a history are wanted. All its conditions must
// hold; what is zero is none.
type HistoryRange struct {
	Tenant       string
	Collections  []string // none: all of the tenant
	Key          string   // with one collection
	From, To     Seq      // both inclusive
	Since, Until int64    // milliseconds since 1970, UTC; both inclusive
}

// HistoryStep is how far the reading of a history has come. Steps come in the order of
// sequences, and often enough to stop between them: no more than one group, or what
// tells that many groups have nothing to give, is read in one.
type HistoryStep struct {
	// Group may hold what is wanted, beside what is not. nil: there was nothing.
	Group *Group
	// Hole, where it is not nil, are sequences before Group that are not in the history.
	Hole *HistoryHole
	// Place: all changes up to it were gone over. Reading again from the next one, with
	// HistoryRange.From, misses nothing.
	Place Seq
	Read  int64 // bytes that were read for this step
}

// HistoryHole is a run of sequences, both inclusive, that a history does not hold and
// never did: nobody kept it at the time, or the log was made anew and skipped them.
type HistoryHole struct{ First, Last Seq }

// HistoryDamage tells what a history held once and can't give any more. It matches
// ErrDamaged.
type HistoryDamage struct {
	First, Last Seq // the sequences that are missing, both inclusive; none where Last < First
	What        string
}

func (d *HistoryDamage) Error() string {
	if d.Last < d.First {
		return "the history is damaged: " + d.What
	}
	return fmt.Sprintf("the history is damaged, sequences %d to %d are missing: %s", d.First, d.Last, d.What)
}

// Is makes errors.Is(err, ErrDamaged) true.
func (d *HistoryDamage) Is(target error) bool { return target == ErrDamaged }

// ErrNoHistory is returned by a log that keeps no history.
var ErrNoHistory = errors.New("the log keeps no history")

// Last is the sequence of the group's last record; First-1 where it has none.
func (g *Group) Last() Seq {
	last := g.First - 1
	for i := range g.Transactions {
		last += Seq(len(g.Transactions[i].Records))
	}
	return last
}
