package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/tidemark-sync/tidemark/broker/history"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// historyName is the directory of what was trimmed.
const historyName = "history"

// archived is the log as its history reads it.
type archived struct{ *Log }

var _ history.Log = archived{}

// Bounds are the oldest and the newest group of the log.
func (l archived) Bounds(ctx context.Context) (oldest, newest feed.Position, err error) {
	state, err := l.state(ctx)
	if err != nil {
		return 0, 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(1, l.floor, position(state.FirstSeq)), position(state.LastSeq), nil
}

// Get reads one group.
func (l archived) Get(ctx context.Context, p feed.Position) ([]byte, error) {
	b, err := l.get(ctx, logStream, sequence(p))
	if errors.Is(err, errMissing) {
		return nil, &feed.Damage{At: p, What: "it is missing"}
	}
	return b, err
}

// History reads what was trimmed and then what the log still holds; see the history's
// own method. feed.ErrNoHistory: none is kept.
func (l *Log) History(ctx context.Context, r feed.HistoryRange, fn func(feed.HistoryStep) error) (begins feed.Seq, err error) {
	if err := l.enter(); err != nil {
		return 0, err
	}
	defer l.calls.Done()
	if l.history == nil {
		return 0, feed.ErrNoHistory
	}
	if err := l.sound(ctx); err != nil {
		return 0, fmt.Errorf("read the history: %w", err)
	}
	return l.history.History(ctx, archived{l}, r, fn)
}

// soundFor is how long it is believed that the log's files are as they were written: a
// reader of the history may not cost more than what it reads.
const soundFor = 10 * time.Second

// sound is why the server may not read what a history lacks out of the log's files.
func (l *Log) sound(ctx context.Context) error {
	l.looking.Lock()
	defer l.looking.Unlock()
	if time.Since(l.looked) < soundFor {
		return nil
	}
	state, err := l.state(ctx)
	if err != nil {
		return err
	}
	if _, err := l.untouched(ctx, l.nats.Load(), logStream, logSubject, state.LastSeq); err != nil {
		return err
	}
	l.looked = time.Now()
	return nil
}

// Archive adds to the history in dir what is left of a log, up to a position: before
// the log is replaced by another. It does nothing where no history is kept.
func (r *Remains) Archive(ctx context.Context, opts Options, upTo feed.Position) error {
	if opts.History == nil {
		return nil
	}
	store, err := history.Open(ctx, opts.historyOptions())
	if err != nil {
		return err
	}
	return errors.Join(r.archive(ctx, store, upTo, opts.Logger), store.Close())
}

func (r *Remains) archive(ctx context.Context, store *history.Store, upTo feed.Position, logger *slog.Logger) error {
	epoch, last := store.Last()
	err := r.Read(ctx, func(p feed.Position, b []byte) error {
		if p > upTo || epoch == r.Epoch && p <= last {
			return nil
		}
		if err := store.Add(p, b); err != nil {
			logger.Warn("a group of the log that is replaced is not in the history", "position", p, "err", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return store.Sync()
}

// historyOptions are those of the store's own history.
func (o *Options) historyOptions() history.Options {
	h := *o.History
	h.Dir, h.Logger = filepath.Join(o.Dir, historyName), o.Logger
	return h
}

// VerifyHistory reads all of the history in dir and tells what is wrong with it; nothing
// where there is none.
func VerifyHistory(ctx context.Context, dir string) (found []string, err error) {
	store, err := history.Open(ctx, history.Options{Dir: filepath.Join(dir, historyName), ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := store.Verify(ctx, nil)
	for _, f := range all {
		found = append(found, f.String())
	}
	return found, errors.Join(err, store.Close())
}
