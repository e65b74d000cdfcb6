package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Remains are what the files of a store hold, damaged or not, read without a server and
// without changing anything. Inspect makes them, Close ends them. The methods may be
// called one at a time.
type Remains struct {
	// Static after construction.
	Dir     string
	Format  int        // 0: the marker can't be read
	Epoch   feed.Epoch // of the marker, else of what is in the files; "": not known
	Relaxed bool       // it was relaxed, and was not closed
	Mark    feed.Position
	First   feed.Position // the first and the last group that are whole; both 0: none is
	Last    feed.Position
	Groups  int           // that are whole
	Bytes   int64         // of block files
	At      feed.Position // of the newest checkpoint; 0: there is none
	Parts   int           // that it has
	Damages []*feed.Damage

	locked *locks
	from   uint64 // the sequence of the checkpoint's first part
	begins uint64 // the sequence of the first message of the log that is not removed
	marked mark
}

// Inspect reads all files of the store in dir, and finds whatever is harmed or missing.
// An error says that it could not look: ErrInUse, that a process has the store open.
func Inspect(ctx context.Context, dir string) (*Remains, error) {
	r := &Remains{Dir: dir}
	doing := func(err error) error {
		r.Close()
		return fmt.Errorf("inspect the store in %s: %w", dir, err)
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, doing(err)
	}
	if !hasLog(dir) {
		return nil, doing(fmt.Errorf("there is no log in it: %w", fs.ErrNotExist))
	}
	var err error
	if r.locked, err = lock(dir); err != nil && (errors.Is(err, ErrInUse) || !errors.Is(err, fs.ErrPermission)) {
		return nil, doing(err) // what may not be written to can still be read
	}
	m, found, err := readMarker(dir)
	var damage *feed.Damage
	switch {
	case errors.As(err, &damage):
		r.Damages = append(r.Damages, damage)
	case err != nil:
		return nil, doing(err)
	case !found:
		r.damaged(&feed.Damage{What: "the marker " + markerName + " is missing"})
	case m.Moving != "":
		return nil, doing(errors.New("a new log is being put in its place: start the server once, which finishes that"))
	default:
		r.Format, r.Epoch, r.Relaxed = m.Format, m.Epoch, m.Relaxed
	}
	for _, stream := range []string{logStream, checkpointStream} {
		what, err := verifyMeta(dir, stream)
		if err != nil {
			return nil, doing(err)
		}
		if what != "" {
			r.damaged(&feed.Damage{What: what})
		}
	}
	if err := r.log(ctx, func(feed.Position, []byte) error { return nil }, r.damaged); err != nil {
		return nil, doing(err)
	}
	if err := r.mark(); err != nil {
		return nil, doing(err)
	}
	if err := r.checkpoint(ctx); err != nil {
		return nil, doing(err)
	}
	var misfit *feed.Damage
	if errors.As(fits(r.begins, sequence(r.Last), commit{at: r.At}, r.At > 0), &misfit) {
		r.damaged(misfit)
	}
	return r, nil
}

func (r *Remains) damaged(d *feed.Damage) { r.Damages = append(r.Damages, d) }

// Close gives the store free.
func (r *Remains) Close() error {
	if r.locked == nil {
		return nil
	}
	err := r.locked.Close()
	r.locked = nil
	return err
}

// mark reads the high-water mark, and compares the log with it.
func (r *Remains) mark() error {
	h, err := openHighWater(r.Dir, r.Epoch)
	var damage *feed.Damage
	if errors.As(err, &damage) {
		r.damaged(damage)
		return nil
	}
	if err != nil {
		return err
	}
	defer h.f.Close()
	r.marked = h.now()
	r.Mark = r.marked.pos
	if r.Last < r.Mark {
		r.damaged(&feed.Damage{At: r.Last + 1, To: r.Mark, What: fmt.Sprintf("the log ends before it, and groups up to %d were acknowledged", r.Mark)})
	}
	if r.marked.only || r.Mark < max(r.First, 1) || r.Mark > r.Last {
		return nil
	}
	return r.log(context.Background(), func(pos feed.Position, b []byte) error {
		if pos == r.Mark && markOf(pos, b) != r.marked {
			r.damaged(&feed.Damage{At: pos, What: "it is not the group that was acknowledged here"})
		}
		return nil
	}, func(*feed.Damage) {})
}

// log reads the groups, and tells what is harmed. It fills in what r says of the log.
func (r *Remains) log(ctx context.Context, fn func(feed.Position, []byte) error, harmed func(*feed.Damage)) error {
	r.First, r.Last, r.Groups, r.Bytes = 0, 0, 0, 0
	group := func(pos feed.Position, b []byte) error {
		if r.Groups++; r.First == 0 {
			r.First = pos
		}
		r.Last = max(r.Last, pos)
		return fn(pos, b)
	}
	v := &verifier{stream: logStream, subject: logSubject}
	v.each = func(file string, at int, seq uint64, data []byte) error {
		r.Bytes += int64(len(data))
		if seq > 1 {
			return group(position(seq), data)
		}
		epoch, ok := bytes.CutPrefix(data, genesis(""))
		switch {
		case !ok:
			harmed(&feed.Damage{What: fmt.Sprintf("in the file %s, byte %d: the genesis message is of no log", file, at)})
		case r.Epoch == "":
			r.Epoch = feed.Epoch(epoch)
		case r.Epoch != feed.Epoch(epoch):
			harmed(&feed.Damage{What: fmt.Sprintf("the genesis message is of the log %q, the marker of %q", epoch, r.Epoch)})
		}
		return nil
	}
	v.harmed = func(h harm) error {
		d := &feed.Damage{What: fmt.Sprintf("in the file %s/%s, byte %d: %s", logStream, h.file, h.at, h.what), Bytes: bytes.Clone(h.bytes)}
		if h.after > 0 {
			d.At = position(h.after + 1)
		}
		if h.before > 1 {
			d.To = position(h.before - 1)
		}
		// A record whose own bytes are harmed may hold a group that is not: it proves itself.
		if i := bytes.Index(h.bytes, []byte("tmg")); i >= 0 && len(h.bytes) > i+recordHash {
			b := h.bytes[i : len(h.bytes)-recordHash]
			if g, _, err := feed.DecodeGroup(b); err == nil && g.Position > r.Last && (r.Epoch == "" || g.Epoch == r.Epoch) {
				d.At, d.To, d.Bytes = g.Position, g.Position, nil
				d.What += "; the group in it is whole"
				harmed(d)
				return group(g.Position, b)
			}
		}
		harmed(d)
		return nil
	}
	err := v.run(ctx, r.Dir)
	r.begins = v.first()
	return err
}

// checkpoint finds the newest checkpoint.
func (r *Remains) checkpoint(ctx context.Context) error {
	v := &verifier{stream: checkpointStream, subject: checkpointSubject}
	var harms []*feed.Damage
	var newest commit
	var found bool
	type run struct {
		at    feed.Position
		first uint64 // of part 0
		parts int
	}
	var last run // the newest run of parts, committed or not
	v.each = func(_ string, _ int, seq uint64, data []byte) error {
		f, ok := readFrame(data)
		switch {
		case !ok:
			harms = append(harms, &feed.Damage{What: fmt.Sprintf("message %d of the checkpoints is harmed, or another's", seq)})
		case f.commit == nil:
			if first := seq - uint64(f.number); first != last.first || f.at != last.at {
				last = run{at: f.at, first: first}
			}
			last.parts = int(f.number) + 1
		case r.Epoch == "" || f.commit.epoch == r.Epoch:
			r.Epoch = f.commit.epoch
			newest, found = *f.commit, true
			newest.seq = seq
		default:
			harms = append(harms, &feed.Damage{At: f.at, What: fmt.Sprintf("message %d of the checkpoints is of the log %s", seq, f.commit.epoch)})
		}
		return nil
	}
	v.harmed = func(h harm) error {
		harms = append(harms, &feed.Damage{What: fmt.Sprintf("in the file %s/%s, byte %d: %s", checkpointStream, h.file, h.at, h.what)})
		return nil
	}
	if err := v.run(ctx, r.Dir); err != nil {
		return err
	}
	switch {
	case found:
		r.At, r.Parts, r.from = newest.at, int(newest.count), newest.seq-uint64(newest.count)
	case len(harms) > 0 && last.parts > 0:
		// Its commit is what is harmed: the parts are the best that there is.
		r.At, r.Parts, r.from = last.at, last.parts, last.first
	}
	if found && len(harms) > 0 && last.at > newest.at && r.First > newest.at+1 {
		r.At, r.Parts, r.from = last.at, last.parts, last.first
	}
	r.Damages = append(r.Damages, harms...)
	return r.LoadCheckpoint(ctx, func(int, []byte) error { return nil }, r.damaged)
}

// LoadCheckpoint calls fn with the parts, by their number from 0 on, of the newest
// checkpoint, as far as they are there, and missing with the others. The bytes are valid
// until fn returns.
func (r *Remains) LoadCheckpoint(ctx context.Context, fn func(number int, part []byte) error, missing func(*feed.Damage)) error {
	if r.Parts == 0 {
		return nil
	}
	next := 0
	gap := func(to int) {
		if to > next {
			missing(&feed.Damage{At: r.At, What: fmt.Sprintf("parts %d to %d of the checkpoint's %d are missing or harmed", next+1, to, r.Parts)})
		}
	}
	v := &verifier{stream: checkpointStream, subject: checkpointSubject, harmed: func(harm) error { return nil }}
	v.each = func(_ string, _ int, seq uint64, data []byte) error {
		f, ok := readFrame(data)
		if !ok || f.commit != nil || f.at != r.At || seq != r.from+uint64(f.number) || int(f.number) >= r.Parts {
			return nil
		}
		gap(int(f.number))
		next = int(f.number) + 1
		return fn(int(f.number), f.part)
	}
	if err := v.run(ctx, r.Dir); err != nil {
		return err
	}
	gap(r.Parts)
	return nil
}

// Read calls fn with the groups that are whole, in the order of their positions, which
// may have holes. The bytes are valid until fn returns.
func (r *Remains) Read(ctx context.Context, fn func(feed.Position, []byte) error) error {
	return r.log(ctx, fn, func(*feed.Damage) {})
}
