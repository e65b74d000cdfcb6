package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidemark-sync/tidemark/broker/history"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// scrub reads all files of the store over and over, slowly, from the disk.
func (l *Log) scrub() {
	ctx, cancel := l.context()
	defer cancel()
	wait := time.NewTimer(l.opts.Scrub)
	defer wait.Stop()
	for {
		select {
		case <-l.done:
			return
		case <-l.look:
		case <-wait.C:
		}
		began := time.Now()
		switch err := l.Scrub(ctx); {
		case err == nil:
			l.logger.Info("all files are as they were written", "took", time.Since(began).Round(time.Millisecond))
		case errors.Is(err, feed.ErrDamaged):
			l.logger.Error("the files of the log are damaged", "err", err)
			if l.opts.Damaged(ctx, err); errors.Is(l.Scrub(ctx), feed.ErrDamaged) {
				return // it was told, once
			}
		case ctx.Err() == nil:
			l.logger.Warn("the files of the log could not be checked", "err", err)
		}
		l.scrubHistory(ctx)
		wait.Reset(l.opts.Scrub)
	}
}

// scrubRate is how many bytes a second a scrub reads: a hundredth of what a disk gives.
const scrubRate = 16 << 20

// Scrub reads the files of log, checkpoints and mark from the disk and checks all that Open
// checks of them, and the groups' own chain. What it finds is *feed.Damage. Anything else
// says that it could not look. It may be called while everything else goes on.
func (l *Log) Scrub(ctx context.Context) error {
	if err := l.enter(); err != nil {
		return err
	}
	defer l.calls.Done()
	var before *unsettled
	for range 5 {
		l.mu.Lock()
		trims := l.trims
		l.mu.Unlock()
		err := l.scrubbed(ctx)
		if err == nil || !errors.Is(err, feed.ErrDamaged) {
			return err
		}
		// A trim, a checkpoint or a disk that is mended may change files under their reader.
		l.mu.Lock()
		same := l.trims == trims
		l.mu.Unlock()
		if !same || l.broken.Load() != nil {
			before = nil
			continue
		}
		// What is behind all that was acknowledged may be under way. What is there still, a
		// while later, is not.
		var now *unsettled
		if !errors.As(err, &now) {
			return err
		}
		if before != nil && before.place == now.place {
			return now.Damage
		}
		before = now
		select {
		case <-time.After(settleTime):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.New("the files changed while they were read: later")
}

// settleTime is longer than one write to a file takes; its sync may take longer.
const settleTime = 500 * time.Millisecond

// unsettled is damage behind what was acknowledged.
type unsettled struct {
	*feed.Damage
	place string // the file, and where in it
}

func (l *Log) scrubbed(ctx context.Context) error {
	want := l.high.now()
	stored, err := l.high.stored()
	if err != nil {
		return err
	}
	if stored.pos < want.pos {
		return &feed.Damage{At: want.pos, What: fmt.Sprintf("the high-water mark is at %d", stored.pos)}
	}
	for _, name := range []string{logStream, checkpointStream} {
		v := &verifier{stream: name, subject: logSubject, cold: true}
		upTo := sequence(want.pos) // all up to it was acknowledged
		var prev feed.Sum
		chained := false
		if name == checkpointStream {
			info, err := l.nats.Load().info(ctx, name)
			if err != nil {
				return err
			}
			v.subject, upTo = checkpointSubject, info.State.LastSeq
		}
		began, read := time.Now(), 0
		v.each = func(_ string, _ int, seq uint64, data []byte) error {
			if read += len(data); name == logStream && seq > 1 {
				g, sum, err := feed.DecodeGroup(data)
				if err == nil && (g.Epoch != l.epoch || g.Position != position(seq) || chained && g.Prev != prev) {
					err = errors.New("it does not follow from the group before it")
				}
				if err != nil {
					return &feed.Damage{At: position(seq), What: err.Error()}
				}
				prev, chained = sum, true
			}
			return curb(ctx, began, int64(read))
		}
		v.harmed = func(h harm) error {
			d := v.damage(h)
			if h.after >= upTo {
				return &unsettled{d, fmt.Sprintf("%s %s %d", name, h.file, h.at)}
			}
			return d
		}
		if err := v.run(ctx, l.opts.Dir); err != nil {
			return err
		}
		if v.last < upTo {
			return &feed.Damage{At: position(v.last + 1), What: fmt.Sprintf("the files of the stream %s end before it", name)}
		}
	}
	return nil
}

// start is a file of a stream, and the first message in it.
type start struct {
	file string
	seq  uint64
}

// untouched tells whether a stream's files may be given to the server to take something out
// of them: where a record is harmed, it would drop others. It is an error where they may
// not: the scrub is woken, and sees to it. starts are its files, in order.
func (l *Log) untouched(ctx context.Context, n *embedded, stream, subject string, upTo uint64) (starts []start, err error) {
	v := &verifier{stream: stream, subject: subject}
	v.each = func(file string, _ int, seq uint64, _ []byte) error {
		if len(starts) == 0 || starts[len(starts)-1].file != file {
			starts = append(starts, start{file, seq})
		}
		return nil
	}
	v.harmed = func(h harm) error {
		if h.after >= upTo {
			return errEnough // perhaps under way
		}
		return v.damage(h)
	}
	err = v.run(ctx, n.dir)
	if errors.Is(err, feed.ErrDamaged) && l.opts.Scrub > 0 {
		select {
		case l.look <- struct{}{}:
		default:
		}
		err = fmt.Errorf("left alone until it is mended: %v", err) // which it is not by failing
	}
	return starts, err
}

// curb waits as long as reading n bytes since a moment takes at the scrub's rate.
func curb(ctx context.Context, began time.Time, n int64) error {
	pause := time.Duration(n)*time.Second/scrubRate - time.Since(began)
	if pause < 10*time.Millisecond {
		return nil
	}
	select {
	case <-time.After(pause):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// scrubHistory reads the history as Scrub reads the log, and tells what is wrong with it.
// Rows and feeds do not need it: it is no reason to stop.
func (l *Log) scrubHistory(ctx context.Context) {
	if l.history == nil {
		return
	}
	began, read := time.Now(), int64(0)
	found, err := l.history.Verify(ctx, func(n int64) error {
		read += n
		return curb(ctx, began, read)
	})
	for _, f := range found {
		l.logger.Error("the history is damaged; rows and feeds are not", "what", f.String())
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, history.ErrClosed) {
		l.logger.Warn("the history could not be checked", "err", err)
	}
}
