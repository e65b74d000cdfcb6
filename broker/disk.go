package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tidemark-sync/tidemark/broker/history"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// A disk that is full or fails costs no acknowledged group, and nobody has to come. The
// store refuses to write while there is less free space than the reserve, so that it
// does not meet a full disk itself. Where a write fails nonetheless, the NATS server
// takes nothing any more; it is stopped, what it had not acknowledged is cut off (after
// a failed sync nobody can say what the disk has of it), and once the disk takes bytes
// again all files are checked and another server is started on them.

const (
	lookEvery = 250 * time.Millisecond // how often free space and the mark are looked at
	mendEvery = 500 * time.Millisecond // how often a failed disk is tried
	probeName = "probe"                // a file that is written to see whether that goes

	// Where more than plentyOver is free beyond the reserve, plentyMost bytes may be written before the file system is asked
	// again: the others who write there don't fill that between two looks. To ask for each group took 4 us of the 190 of
	// one who writes alone.
	plentyOver = 1 << 30
	plentyMost = 256 << 20
)

// notReady is why the log takes no groups.
type notReady struct {
	why    string // for whoever wants to write, a stranger perhaps: the logger tells the rest
	mark   bool   // it is the mark that can't be written
	damage error  // it will not be over by itself
}

// What those are told who want to write.
const (
	whyFull    = "the log's disk is full: its operator must make room, and then it goes on by itself"
	whyFailing = "the log's disk fails; the server goes on by itself as soon as it can be written again"
	whyDamaged = "the log is damaged: its operator must look at it"
	whyRewrite = "the log's files are being written anew: try again in a moment"
)

func (n *notReady) Error() string { return n.why }

// Is makes errors.Is(err, feed.ErrNotReady) true.
func (n *notReady) Is(target error) bool { return target == feed.ErrNotReady }

// Ready is why the log takes no groups now; see feed.Log.
func (l *Log) Ready() error {
	if n := l.broken.Load(); n != nil {
		return n
	}
	if n := l.space.Load(); n != nil {
		return n
	}
	return nil
}

// room is why n bytes can't be written now.
func (l *Log) room(n int64) error {
	if n := l.broken.Load(); n != nil && !l.anew.Load() {
		if n.damage != nil {
			return n.damage // it is not over some time
		}
		return n
	}
	if l.plenty.Add(-n) >= 0 {
		return nil
	}
	return l.lookForRoom(n)
}

// lookForRoom is room, by what the file system says now. Once the disk was too full, somewhat more
// must be free, so that it lasts.
func (l *Log) lookForRoom(n int64) error {
	was := l.space.Load()
	keep := l.opts.Reserve
	if was != nil {
		keep += keep / 8
	}
	free, known := freeSpace(l.opts.Dir)
	l.plenty.Store(min(free-n-keep-plentyOver, plentyMost))
	if !known || free-n >= keep {
		if was != nil && l.space.CompareAndSwap(was, nil) {
			l.logger.Info("there is room again: the log takes writes", "free", free)
		}
		return nil
	}
	full := &notReady{why: whyFull}
	if l.space.Swap(full) == nil {
		l.logger.Error("the disk is full: the log takes no writes until there is room", "free", free, "reserve", keep)
	}
	return full
}

// certainly adds to why nothing is taken that what was under way was not written, where
// that is settled.
func (e *embedded) certainly(why error) error {
	select {
	case <-e.cut:
		return fmt.Errorf("%w: %w", feed.ErrNotWritten, why)
	default:
		return why
	}
}

// settle waits until it is settled what became of a group whose server failed.
func (l *Log) settle(ctx context.Context, n *embedded, unknown error) error {
	timeout := time.NewTimer(l.opts.Timeout)
	defer timeout.Stop()
	select {
	case <-n.cut:
		return fmt.Errorf("%w: %w", feed.ErrNotWritten, context.Cause(n.log.failing))
	case <-timeout.C:
	case <-ctx.Done():
	case <-l.done:
	}
	return unknown
}

// watch looks after disk and server while the log is open.
func (l *Log) watch() {
	ctx, cancel := l.context()
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.done:
			return
		case <-l.nats.Load().log.failing.Done():
			switch err := l.mend(ctx); {
			case errors.Is(err, feed.ErrDamaged):
				l.opts.Damaged(ctx, err)
				// Where that has helped, the new server may have failed by now: that is another matter.
				if b := l.broken.Load(); b != nil && b.damage != nil {
					return // nothing replaces it any more
				}
			case err != nil:
				return
			}
		case <-tick.C:
			_ = l.lookForRoom(0) // kept, for Ready
			l.lookAtMark()
		}
	}
}

// lookAtMark refuses writes while the mark can't be written.
func (l *Log) lookAtMark() {
	err := l.high.err()
	if err != nil {
		err = l.high.sync()
	}
	was := l.broken.Load()
	switch {
	case err != nil && was == nil:
		l.markBroken(err)
	case err == nil && was != nil && was.mark && l.broken.CompareAndSwap(was, nil):
		l.logger.Info("the high-water mark can be written again: the log takes writes")
	}
}

func (l *Log) markBroken(err error) {
	l.broken.Store(&notReady{why: whyFailing, mark: true})
	l.logger.Error("the high-water mark can't be written: the log takes no writes until it can", "err", err)
}

// mend replaces a server that could not write. It tries until it has succeeded, or the
// log is closed, or what is on the disk is damaged: the last two are its errors.
func (l *Log) mend(ctx context.Context) error {
	l.mending.Lock()
	defer l.mending.Unlock()
	began := time.Now()
	n := l.nats.Load()
	if !n.failing() {
		return nil // it was replaced meanwhile
	}
	why := context.Cause(n.log.failing)
	l.broken.Store(&notReady{why: whyFailing})
	l.logger.Error("the disk fails; the log takes no writes until it can be written again", "err", why)
	n.stop()
	told := time.Now()
	for {
		err := l.mended(ctx, n)
		switch {
		case err == nil:
			l.broken.Store(nil)
			l.logger.Info("the log takes writes again", "after", time.Since(began).Round(time.Millisecond))
			return nil
		case errors.Is(err, feed.ErrDamaged):
			l.broken.Store(&notReady{why: whyDamaged, damage: err})
			return err
		case time.Since(told) > 10*time.Second:
			told = time.Now()
			l.logger.Error("the log still can't be written", "since", began.UTC().Format(time.RFC3339), "err", err)
		}
		l.broken.Store(&notReady{why: whyFailing})
		select {
		case <-time.After(mendEvery):
		case <-ctx.Done():
			return ErrClosed
		}
	}
}

// mended tries once to get from a server that was stopped to one that works.
func (l *Log) mended(ctx context.Context, failed *embedded) error {
	acked := sequence(l.high.now().pos)
	select {
	case <-failed.cut:
	default:
		if err := cutAfter(l.opts.Dir, acked); err != nil {
			return err
		}
		close(failed.cut)
	}
	if free, known := freeSpace(l.opts.Dir); known && free < l.opts.Reserve {
		return fmt.Errorf("%d MiB are free, and %d MiB are to be left free: make room", free>>20, l.opts.Reserve>>20)
	}
	if err := probe(l.opts.Dir); err != nil {
		return err
	}
	if err := l.high.sync(); err != nil {
		return err
	}
	if err := l.begin(ctx); err != nil {
		if n := l.nats.Load(); n != failed {
			n.stop()
			close(n.cut) // it was given nothing to write
		}
		return err
	}
	return nil
}

// Rewrite puts a new store in the place of files that are damaged, under the same epoch:
// what they held is in memory, whole. save is called once the new log is there, empty,
// and takes groups after the last that was acknowledged; it must append one and save a
// checkpoint of it, and nobody else may append until Rewrite returns. The old files go
// aside. A server never reads them again: where a record is harmed, it drops others, or
// asks for all memory that there is.
//
// An error says that it did not help, and no group is taken any more. The directory then
// holds the old files as they were, or else the new store, whole. Groups that are in no history yet are read from the old files; those
// that are harmed are missing from it, and the logger is told.
func (l *Log) Rewrite(ctx context.Context, save func(context.Context) error) error {
	return l.renew(ctx, save, "")
}

// Purge is Rewrite for files that hold what must be forgotten: the old ones are removed,
// and after a crash the next Open removes them. Where there is no room for the old files and
// the new ones together, nothing is done, and the log goes on. What a history has is for
// ForgetHistory to forget, afterwards.
func (l *Log) Purge(ctx context.Context, save func(context.Context) error) error {
	if err := l.roomAnew(ctx); err != nil {
		return fmt.Errorf("write the files anew: %w", err)
	}
	if err := l.renew(ctx, save, forgotten); err != nil {
		return err
	}
	return removeForgotten(l.opts.Dir)
}

// roomAnew is why there is no room to write all anew beside what is there.
func (l *Log) roomAnew(ctx context.Context) error {
	if err := l.enter(); err != nil {
		return err
	}
	defer l.calls.Done()
	state, err := l.state(ctx)
	if err != nil {
		return err
	}
	checkpoint, err := l.nats.Load().info(ctx, checkpointStream)
	if err != nil {
		return err
	}
	need := int64(state.Bytes + checkpoint.State.Bytes) // no more than that comes of it
	if free, known := freeSpace(l.opts.Dir); known && free-need < l.opts.Reserve {
		return fmt.Errorf("it may take %d MiB, and the disk has %d MiB left, of which %d stay free", need>>20, free>>20, l.opts.Reserve>>20)
	}
	return nil
}

// ForgetHistory takes what a tenant wrote, up to a sequence, out of the history, if there is
// one, also where nothing is added to it any more; see the history's Forget. What is newer
// than the history is in the log still: Purge first.
func (l *Log) ForgetHistory(ctx context.Context, tenant string, upTo feed.Seq) error {
	if err := l.enter(); err != nil {
		return err
	}
	defer l.calls.Done()
	if l.history != nil {
		return l.history.Forget(ctx, tenant, upTo)
	}
	l.forgetting.Lock()
	defer l.forgetting.Unlock()
	open, closed := l.context()
	defer closed()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(open, func() { cancel(ErrClosed) })() // Close waits for this one
	dir := filepath.Join(l.opts.Dir, historyName)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	store, err := history.Open(ctx, history.Options{Dir: dir, Logger: l.logger})
	if err != nil {
		return err
	}
	return errors.Join(store.Forget(ctx, tenant, upTo), store.Close())
}

// forgotten ends the name of what is put aside only to be removed.
const forgotten = ".forgotten"

// removeForgotten removes what was put aside to be removed.
func removeForgotten(dir string) error {
	all, err := filepath.Glob(filepath.Join(dir, asideName, "*"+forgotten))
	for _, path := range all {
		err = errors.Join(err, os.RemoveAll(path))
	}
	if err == nil && len(all) > 0 {
		err = syncPath(filepath.Join(dir, asideName))
		_ = os.Remove(filepath.Join(dir, asideName)) // if there is nothing else in it
	}
	return err
}

func (l *Log) renew(ctx context.Context, save func(context.Context) error, suffix string) error {
	if err := l.enter(); err != nil {
		return err
	}
	defer l.calls.Done()
	l.mending.Lock()
	defer l.mending.Unlock()
	l.broken.Store(&notReady{why: whyRewrite})
	l.anew.Store(true)
	defer l.anew.Store(false)
	if err := l.rewrite(ctx, save, suffix); err != nil {
		err = fmt.Errorf("write the files anew: %w", err)
		l.broken.Store(&notReady{why: whyDamaged, damage: &feed.Damage{What: err.Error()}})
		return err
	}
	l.broken.Store(nil)
	return nil
}

func (l *Log) rewrite(ctx context.Context, save func(context.Context) error, suffix string) error {
	fresh := filepath.Join(l.opts.Dir, newName)
	l.nats.Load().stop()
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o750); err != nil {
		return err
	}
	server, err := startServer(fresh, l.opts)
	if err != nil {
		return err
	}
	l.nats.Store(server)
	l.newMark = mark{}
	err = func() error {
		for _, want := range streamConfigs(l.epoch) {
			if want.Name == logStream {
				want.FirstSeq = sequence(l.high.now().pos) + 1
			}
			if err := server.createStream(ctx, want); err != nil {
				return err
			}
		}
		if err := server.takeGroups(); err != nil {
			return err
		}
		return save(ctx)
	}()
	server.stop()
	if err == nil && l.newMark.pos == 0 {
		err = errors.New("nothing was written to the new log")
	}
	if err == nil {
		err = l.swap(ctx, fresh, suffix)
	}
	if err != nil {
		return err
	}
	if err := l.high.advance(l.newMark); err != nil {
		return err
	}
	l.mu.Lock()
	l.trims++
	l.mu.Unlock()
	return l.begin(ctx)
}

// swap puts the log in fresh in the place of the old one, which goes aside.
func (l *Log) swap(ctx context.Context, fresh, suffix string) error {
	dir := l.opts.Dir
	if err := syncTree(fresh); err != nil {
		return err
	}
	if l.history != nil {
		old := &Remains{Dir: dir, Epoch: l.epoch}
		if err := old.archive(ctx, l.history, l.high.now().pos, l.logger); err != nil {
			return err
		}
	}
	aside, err := putInPlace(dir, l.marker, l.epoch, suffix)
	if err == nil && suffix == "" {
		l.logger.Info("the damaged files were put aside", "to", aside)
	}
	return err
}

// probe writes, syncs and removes a file of the size of a group.
func probe(dir string) error {
	path := filepath.Join(dir, probeName)
	err := writeSynced(path, make([]byte, feed.GroupSize))
	if rerr := os.Remove(path); err == nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = rerr
	}
	return err
}

// cutAfter cuts off what the files of the log hold after a sequence, and makes that
// durable. No server may have them open.
func cutAfter(dir string, seq uint64) error {
	msgs := msgsDir(dir, logStream)
	cutFile, cutAt := "", 0
	cut := func(file string, at int) error {
		cutFile, cutAt = file, at
		return errEnough
	}
	v := &verifier{stream: logStream, subject: logSubject}
	v.each = func(file string, at int, s uint64, _ []byte) error {
		if s <= seq {
			return nil
		}
		return cut(file, at)
	}
	v.harmed = func(h harm) error {
		if h.after < seq {
			return &feed.Damage{At: position(h.after + 1), What: fmt.Sprintf("in the file %s, byte %d: %s", h.file, h.at, h.what)}
		}
		return cut(h.file, h.at)
	}
	if err := v.run(context.Background(), dir); err != nil {
		return err
	}
	blocks, err := blocksOf(msgs)
	if err != nil {
		return fmt.Errorf("cut the log: %w", err)
	}
	beyond := false
	for _, block := range blocks {
		path := filepath.Join(msgs, block.name)
		switch {
		case beyond:
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("cut the log: %w", err)
			}
		case block.name == cutFile:
			beyond = true
			if err := os.Truncate(path, int64(cutAt)); err != nil {
				return fmt.Errorf("cut the log: %w", err)
			}
			if err := syncPath(path); err != nil {
				return fmt.Errorf("cut the log: %w", err)
			}
		}
	}
	return syncPath(msgs)
}
