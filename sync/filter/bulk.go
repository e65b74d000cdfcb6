package filter

// bulk is how many values may be in one at most: so many times those of the things it was
// made of. These are the row and the claims, together (data); what has no values in it
// (scalars); and the item of a loop around, by how many loops are around that.
type bulk map[int]int

const (
	data    = -1
	scalars = -2
)

const (
	// maxBulk is how many times row and claims may be in a value.
	maxBulk = 64
	// maxScalars is how many scalars may be in one besides.
	maxScalars = 2 << 10
)

// add adds a number of times what is in another.
func (b bulk) add(other bulk, times int) {
	for of, n := range other {
		if n*times > 0 {
			b[of] = min(b[of]+n*times, maxScalars+1)
		}
	}
}

// over tells whether this is too much.
func (b bulk) over() bool {
	for of, n := range b {
		if n > maxScalars || of != scalars && n > maxBulk {
			return true
		}
	}
	return false
}
