//go:build linux

package main

// tally holds what one follower is given against what was published to its channel. Whatever
// comes first is where it begins: a follower that joins while messages are published is not owed
// those before.
type tally struct {
	Doubles, Disorder int

	first, next uint64
	missing     map[uint64]bool // below next, and not seen
}

// startAfter says where it begins, where that is known: for a follower that resumes.
func (t *tally) startAfter(seq uint64) { t.first, t.next = seq+1, seq+1 }

// begun tells whether it is owed anything.
func (t *tally) begun() bool { return t.next > 0 }

// saw takes in what came, and tells whether it is new.
func (t *tally) saw(seq uint64) bool {
	switch {
	case seq == t.next: // nearly always
		t.next++
		return true
	case t.next == 0:
		t.startAfter(seq - 1)
		t.next++
		return true
	case seq > t.next:
		if t.missing == nil {
			t.missing = make(map[uint64]bool)
		}
		for ; t.next < seq; t.next++ {
			t.missing[t.next] = true
		}
		t.next++
		return true
	case t.missing[seq]:
		t.Disorder++
		delete(t.missing, seq)
		return true
	case seq >= t.first:
		t.Doubles++
	}
	return false
}

// lost is how many of those up to last did not come.
func (t *tally) lost(last uint64) (n int) {
	if last >= t.next {
		n = int(last - t.next + 1)
	}
	for seq := range t.missing {
		if seq <= last {
			n++
		}
	}
	return n
}
