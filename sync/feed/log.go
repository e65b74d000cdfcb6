package feed

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// Position is a group's place in a log. The first group has position 1, and there
// are no holes: a missing group can be seen. 0 is the place before the first.
type Position uint64

// Log is what the core asks of a broker: an ordered, durable list of groups, of
// which it knows bytes and positions only, and beside it the newest checkpoint.
// feedtest.Run is the contract as a test.
//
// One caller at a time may call Append, Trim and SaveCheckpoint, each; Read,
// LoadCheckpoint and Epoch may be called at any time.
type Log interface {
	// Epoch names the log. It never changes while the log is open.
	Epoch() Epoch

	// Append writes the group after the position given, which must be the log's last.
	// When it returns without error the group is durable, at after+1. The bytes are not
	// kept.
	//
	// ErrFenced: somebody else has appended since; nothing was written.
	// ErrUnknown: it may or may not be there, now or a little later; appending the
	// same bytes at the same place again settles it.
	// ErrNotWritten: it is certainly not there and never will be, also where the answer
	// before was ErrUnknown.
	// ErrDamaged: the log can't be written any more, and will not be by itself.
	// Any other error: this call wrote nothing, and a later Append may succeed. After
	// ErrUnknown it says nothing of the calls before.
	Append(ctx context.Context, after Position, group []byte) (Position, error)

	// Read calls fn with each group after the position given, in order, up to the
	// log's last at some moment after the call. fn must not keep the bytes. What fn
	// returns ends the reading and is returned. ErrDamaged, with what is missing, where a group
	// that should be there is not, or where the log ends before the position given.
	Read(ctx context.Context, after Position, fn func(Position, []byte) error) error

	// SaveCheckpoint stores a state that stands for all groups up to and including
	// the position given: whole or not at all, durable when it returns. The one
	// before it is forgotten. An error of parts abandons it and is returned.
	SaveCheckpoint(ctx context.Context, at Position, parts iter.Seq2[[]byte, error]) error

	// LoadCheckpoint calls fn with the parts of the newest checkpoint, in order, and
	// returns its position; 0, without calling fn, if there never was one. fn must
	// not keep the bytes.
	LoadCheckpoint(ctx context.Context, fn func(part []byte) error) (Position, error)

	// Trim may forget the groups before the position given, never that one itself.
	// A position beyond the newest checkpoint's is an error.
	Trim(ctx context.Context, before Position) error

	// Ready is why an Append would be refused now, whatever it holds: the disk is full, or
	// fails, and the log waits until that is over. It matches ErrNotReady, and says what
	// is to be done. nil while groups are taken. It may be called at any time, and is cheap.
	Ready() error
}

// MaxPart is the most bytes that a part of a checkpoint may have, and MaxGroup the
// most that a group may: a log must take them. A writer closes a group at
// GroupSize unless one transaction alone is larger (a fsync of 1 MiB takes about
// seven times that of 64 KiB, so larger groups gain nothing).
const (
	GroupSize = 512 << 10
	MaxGroup  = 6 << 20
	MaxPart   = 2 << 20
)

var (
	// ErrFenced is returned by Append when the log's last position is not the one given.
	ErrFenced = errors.New("somebody else has written to the log")
	// ErrUnknown is returned by Append when the outcome is not known.
	ErrUnknown = errors.New("the log did not answer in time")
	// ErrNotReady is matched by what Ready returns, and by the error of an Append that
	// was refused for the same reason: nothing was written.
	ErrNotReady = errors.New("the log takes no writes now")
	// ErrNotWritten is matched by the error of an Append whose group is certainly not in
	// the log, whatever was answered before. It settles ErrUnknown.
	ErrNotWritten = errors.New("the group was not written")
	// ErrDamaged is matched by every *Damage.
	ErrDamaged = errors.New("the log is damaged")
)

// Damage tells what is missing or wrong in a log. It matches ErrDamaged.
type Damage struct {
	At   Position // the group or checkpoint concerned; 0: the store as a whole
	To   Position // the last of several groups; 0: At alone, or nobody knows
	What string
	// Bytes are what stands where a group should be, as far as anything does, for whoever
	// can read something from them.
	Bytes []byte
}

func (d *Damage) Error() string {
	if d.At == 0 {
		return "the log is damaged: " + d.What
	}
	return fmt.Sprintf("the log is damaged at position %d: %s", d.At, d.What)
}

// Is makes errors.Is(err, ErrDamaged) true.
func (d *Damage) Is(target error) bool { return target == ErrDamaged }
