package oracle

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// History is what happened. Times count from one moment on one monotonic clock.
type History struct {
	// Tombstones is for how long the server remembers removes. 0: for longer than the
	// history lasts.
	Tombstones time.Duration
	Writes     []*Write
	Streams    []*Stream // of one follower in the order of time
	Starts     []*Start  // in the order of time
	Final      *Snapshot // after the last write was answered; nil: there is none
	Settle     []string  // the followers that had time to come to the final rows
	Problems   []Violation
}

// Write is one request, with all its attempts. The ids of its changes are its own.
type Write struct {
	Client   string
	Atomic   bool
	Row      bool // by the address of its one row, where each refusal has a status of its own
	Changes  []Change
	Attempts []Attempt
}

// Change is one change of a request, as it was asked for.
type Change struct {
	ID         string
	Collection string
	Op         string // insert, modify, put or remove
	Key        string // "": an insert whose key the server makes
	Value      string // JSON
	Patch      string // JSON
	If         *uint64
	TTL        time.Duration // 0: none
}

// Attempt is one time that a request was sent.
type Attempt struct {
	Sent     time.Duration
	Answered time.Duration // when the answer, or the failure, was there
	// Twice: whoever stands between may have delivered it several times, or later.
	Twice bool
	// Status is of HTTP; 0: no answer came. Without results the outcome is unknown.
	Status  int
	Cursor  string
	Results []Result
}

// Result is what became of one change.
type Result struct {
	ID, Status, Key string
	Seq             uint64
	Value           string
}

func (r Result) ok() bool { return r.Status == "ok" || r.Status == "duplicate" }

// Stream is one answer of a feed: a connection, or one poll.
type Stream struct {
	Follower  string
	Life      int // of the follower: it grows when it begins with nothing
	Transport string
	Asked     time.Duration // when at the latest it had not been asked for yet
	From      []Place       // what it was asked for
	Frames    []Frame
}

// Place is a collection and the cursor that it was asked with, "" for none.
type Place struct{ Collection, Cursor string }

// Frame is one frame as it came. Type decides which fields count.
type Frame struct {
	At          time.Duration
	Type        string
	Epoch       string
	Seq         uint64
	Collection  string
	Op          string
	Key         string
	Value       string
	Client, ID  string
	More        bool
	Collections []string
	Reason      string
	Cursor      string
}

// Start is one start of the server.
type Start struct {
	Began time.Duration
	Ready time.Duration // 0: it did not get ready
	Fault string        // what was done before it
	// NewEpoch: the fault allows a new epoch. MustEpoch: it asks for one. Loss: it
	// allows that the newest changes are gone. Holes: any changes may be gone.
	NewEpoch, MustEpoch, Loss, Holes bool
	// Since: what was acknowledged before it must be there all the same. 0: nothing must.
	Since time.Duration
	Epoch string
	// Base is what the server had when it was ready, and before anybody wrote; needed
	// where the epoch is new.
	Base *Snapshot
}

// Snapshot is all rows of all collections at one moment.
type Snapshot struct {
	Taken  time.Duration
	Cursor string
	Rows   []Row
}

// Row is one row.
type Row struct {
	Collection, Key string
	Seq             uint64
	Value           string
}

// Violation is something that no honest server does.
type Violation struct {
	Rule string
	What string
}

func (v Violation) String() string { return v.Rule + ": " + v.What }

// cursor is a place in a log; epoch "" is none.
type cursor struct {
	epoch string
	seq   uint64
}

func parseCursor(s string) (cursor, bool) {
	epoch, digits, found := strings.Cut(s, "-")
	seq, err := strconv.ParseUint(digits, 10, 64)
	if !found || epoch == "" || err != nil {
		return cursor{}, false
	}
	return cursor{epoch, seq}, true
}

func (c cursor) String() string { return fmt.Sprintf("%s-%d", c.epoch, c.seq) }
