package hub

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Remains is what is left of a log, as Rebuild reads it.
type Remains interface {
	// LoadCheckpoint calls fn with the parts of the newest checkpoint that are there, by their
	// number from 0 on, and missing for what is not.
	LoadCheckpoint(ctx context.Context, fn func(number int, part []byte) error, missing func(*feed.Damage)) error
	// Read calls fn with the groups that are there, in the order of their positions.
	Read(ctx context.Context, fn func(feed.Position, []byte) error) error
}

// Rebuilt is the state that what is left of a log comes to.
type Rebuilt struct {
	Losses []Loss // what is missing; none: all is there
	Groups int    // that were folded, after the checkpoint
	Last   feed.Position
	Seq    feed.Seq
	Rows   int64
	Epoch  feed.Epoch
	// CheckpointWhole tells whether nothing is missing of the checkpoint, if there is one.
	CheckpointWhole bool

	state *state
}

// Loss is something that a log does not hold any more.
type Loss struct {
	What     string
	From, To feed.Position // of the groups that are gone; 0: none, or not known
	// First and Last are the sequences that are gone; Last is 0 where nobody knows where
	// they end, and both are where nobody knows any.
	First, Last feed.Seq
	Changes     []feed.Named // that are known to be among them
}

// String is the loss in one line: what, which groups and sequences, and, as far as that is
// known, whose rows.
func (l Loss) String() string {
	var b strings.Builder
	b.WriteString(l.What)
	if l.From > 0 {
		fmt.Fprintf(&b, "; groups %d to %d", l.From, l.To)
	}
	switch {
	case l.Last > 0:
		fmt.Fprintf(&b, "; sequences %d to %d", l.First, l.Last)
	case l.First > 0:
		fmt.Fprintf(&b, "; sequences from %d on", l.First)
	}
	const most = 20
	for i, c := range l.Changes {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(l.Changes)-most)
			break
		}
		if i == 0 {
			b.WriteString("; among them")
		}
		fmt.Fprintf(&b, " %s %s %q", c.Tenant, c.Collection, c.Key)
		if c.Seq > 0 {
			fmt.Fprintf(&b, " at %d", c.Seq)
		}
		if i+1 < min(len(l.Changes), most) {
			b.WriteByte(',')
		}
	}
	return b.String()
}

// RebuildOptions say how a log is rebuilt.
type RebuildOptions struct {
	Epoch feed.Epoch // of what is left; what is of another log is not taken
	// Prefix ends at the first group that is missing: the state is one that the log had. Else
	// what comes after is taken as well: then as little is lost as can be, but rows may
	// stand together that never did.
	Prefix bool
	// Damages are what was found wrong in the files, to tell what was lost.
	Damages []*feed.Damage
}

// sequenceLeap is by how much a rebuilt log's sequences are ahead of the last that is
// known: also what was lost had one, and a client that holds a row's sequence must not
// find it on another change.
const sequenceLeap = 1 << 32

// sequencesOf is what a millisecond has of the sequences: a rebuilt log begins no earlier than
// with those of now, so that two that are made of the same remains, one after the other, do not
// give the same sequence to two changes. It lasts until 2109.
const sequencesOf = 1 << 11

// Rebuild folds what is left of a log. Everything that is missing is told by Losses; an
// error says that it could not be read.
func Rebuild(ctx context.Context, from Remains, opts RebuildOptions) (*Rebuilt, error) {
	s := newState(opts.Epoch)
	r := &Rebuilt{state: s, Epoch: opts.Epoch}
	parts := partReader{s: s, tolerant: true}
	lost := func(d *feed.Damage) { r.Losses = append(r.Losses, Loss{What: d.What}) }
	err := from.LoadCheckpoint(ctx, func(number int, part []byte) error {
		parts.n = number // where some are missing, the others count as they did
		if err := parts.part(part); err != nil {
			var d *feed.Damage
			if !errors.As(err, &d) {
				return err
			}
			lost(d)
		}
		return nil
	}, lost)
	if err != nil {
		return nil, err
	}
	if parts.n > 0 {
		if err := parts.finish(s.position); err != nil && len(r.Losses) == 0 {
			lost(&feed.Damage{What: "checkpoint: " + err.Error()})
		}
	}
	r.CheckpointWhole = len(r.Losses) == 0
	at := s.position
	if !r.CheckpointWhole && opts.Prefix {
		return r.done(), nil
	}
	enough := errors.New("enough")
	anchored := at == 0
	err = from.Read(ctx, func(p feed.Position, b []byte) error {
		if p < at {
			return nil
		}
		g, sum, err := feed.DecodeGroup(b)
		if err == nil && p == at && !anchored {
			if anchored = true; sum != s.sum {
				r.Losses = append(r.Losses, Loss{What: "the group that the checkpoint was made after is another one", From: p, To: p})
			}
			return nil
		}
		if err == nil {
			err = s.follows(g, p)
		}
		if err != nil {
			r.lose(&opts, p, g, err)
			if opts.Prefix {
				return enough
			}
			if g == nil || g.Epoch != opts.Epoch || g.First < s.next || p <= s.position {
				return nil // it can't be told where it belongs
			}
			s.next = g.First
		}
		r.Groups++
		s.replay(g, p, sum)
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		return nil, err
	}
	// What should come after the last group, or can't be placed.
	for _, d := range opts.Damages {
		if d.At > s.position && d.Bytes == nil {
			loss := Loss{What: d.What, From: d.At, To: max(d.At, d.To), First: s.next}
			if opts.Prefix && r.told(d.At) {
				continue
			}
			loss.Changes = r.named(&opts, d.At, max(d.At, d.To))
			r.Losses = append(r.Losses, loss)
		}
	}
	return r.done(), nil
}

func (r *Rebuilt) done() *Rebuilt {
	r.Last, r.Seq, r.Rows = r.state.position, r.state.next-1, r.state.rows.Load()
	r.state.head.Store(uint64(r.Seq))
	return r
}

// told tells whether a loss includes a position.
func (r *Rebuilt) told(p feed.Position) bool {
	for _, l := range r.Losses {
		if l.From <= p && p <= l.To {
			return true
		}
	}
	return false
}

// lose tells that something is missing before the group at p, or that it is wrong itself.
func (r *Rebuilt) lose(opts *RebuildOptions, p feed.Position, g *feed.Group, why error) {
	s := r.state
	l := Loss{What: why.Error(), From: s.position + 1, To: p, First: s.next}
	if g != nil && p > s.position+1 && g.First > s.next && g.Epoch == opts.Epoch {
		l.What, l.To, l.Last = "groups are missing or harmed", p-1, g.First-1
	}
	if l.From > l.To {
		l.From = l.To
	}
	l.Changes = r.named(opts, l.From, l.To)
	r.Losses = append(r.Losses, l)
}

// named is what is known of the changes of some groups that are harmed.
func (r *Rebuilt) named(opts *RebuildOptions, from, to feed.Position) (named []feed.Named) {
	for _, d := range opts.Damages {
		if d.At <= to && max(d.At, d.To) >= from && d.Bytes != nil {
			named = append(named, feed.ReadHarmed(d.Bytes)...)
		}
	}
	return named
}

// Save makes the state the content of a log that is empty: under the log's epoch, and
// with sequences that leap, so that none is used twice for two changes.
func (r *Rebuilt) Save(ctx context.Context, log feed.Log) error {
	s := r.state
	s.epoch = log.Epoch()
	if s.next > feed.MaxSeq-2*sequenceLeap {
		return errors.New("rebuild the log: its sequences are used up")
	}
	s.next += sequenceLeap
	if now := feed.Seq(max(time.Now().UnixMilli(), 0)) * sequencesOf; now <= feed.MaxSeq-2*sequenceLeap {
		s.next = max(s.next, now)
	}
	g := &feed.Group{Epoch: s.epoch, Position: 1, First: s.next, At: s.at, Times: s.times}
	b, sum := feed.AppendGroup(nil, g)
	if _, err := log.Append(ctx, 0, b); err != nil {
		return fmt.Errorf("rebuild the log: %w", err)
	}
	s.position, s.sum = 1, sum
	if err := log.SaveCheckpoint(ctx, 1, s.freeze().parts()); err != nil {
		return fmt.Errorf("rebuild the log: %w", err)
	}
	return nil
}
