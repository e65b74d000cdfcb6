package broker_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/broker/history"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

func TestRelaxedLogThatNobodyClosedIsNotTakenForWhole(t *testing.T) {
	dir := memoryDir(t)
	l := openWith(t, broker.Options{Dir: dir, Relaxed: true})
	c := fill(t, l, 5)
	crashed := copyStore(t, dir)
	for _, relaxed := range []bool{true, false} {
		for range 2 {
			if _, err := broker.Open(t.Context(), broker.Options{Dir: crashed, Relaxed: relaxed}); !errors.Is(err, broker.ErrUnclean) {
				t.Fatalf("opened again, relaxed %t: %v", relaxed, err)
			}
		}
	}
	// Closed in order, it is as good as any other, in either durability.
	closeLog(t, l)
	for _, relaxed := range []bool{true, false, true} {
		l := openWith(t, broker.Options{Dir: dir, Relaxed: relaxed})
		wantAll(t, l, c)
		grow(t, l, c, 2)
		save(t, l, c.pos, c.state())
		closeLog(t, l)
	}
	wantAll(t, open(t, dir), c)
}

// fillWith fills a new log, and returns the chain of what it holds.
func fillWith(n int, c *chain) func(l *broker.Log) error {
	return func(l *broker.Log) error {
		*c = chain{epoch: l.Epoch()}
		for range n {
			after := c.pos
			if _, err := l.Append(context.Background(), after, c.next(1, 10)); err != nil {
				return err
			}
		}
		return nil
	}
}

func TestReplacedLogIsKeptAsideWhole(t *testing.T) {
	dir, was := stored(t)
	var c chain
	aside, err := broker.Replace(t.Context(), broker.Options{Dir: dir}, fillWith(3, &c))
	if err != nil {
		t.Fatal(err)
	}
	if c.epoch == was.epoch {
		t.Error("the new log has the epoch of the old one")
	}
	wantAll(t, open(t, dir), &c)
	got, err := restore(open(t, aside)) // with its marker and all
	if err != nil || *got != *was {
		t.Fatalf("aside: %+v, %v", got, err)
	}
}

func TestReplaceThatFailsLeavesTheLogAsItWas(t *testing.T) {
	dir, was := stored(t)
	no := errors.New("no")
	if _, err := broker.Replace(t.Context(), broker.Options{Dir: dir}, func(*broker.Log) error { return no }); !errors.Is(err, no) {
		t.Fatal(err)
	}
	l := open(t, dir)
	if _, err := broker.Replace(t.Context(), broker.Options{Dir: dir}, fillWith(1, &chain{})); !errors.Is(err, broker.ErrInUse) {
		t.Fatal(err)
	}
	got, err := restore(l)
	if err != nil || *got != *was {
		t.Fatal(got, err)
	}
}

func TestReplaceMakesALogWhereThereIsNone(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "deep", "store")
	var c chain
	aside, err := broker.Replace(t.Context(), broker.Options{Dir: dir}, fillWith(3, &c))
	if err != nil || aside != "" {
		t.Fatal(aside, err)
	}
	wantAll(t, open(t, dir), &c)
}

// A crash at any moment of a replacement leaves the old log or the new one.
func TestReplaceCutShortLeavesOneLog(t *testing.T) {
	dir, was := stored(t)
	before := copyStore(t, dir)
	var c chain
	aside, err := broker.Replace(t.Context(), broker.Options{Dir: dir}, fillWith(3, &c))
	if err != nil {
		t.Fatal(err)
	}
	after := copyStore(t, dir)
	rel, err := filepath.Rel(dir, aside)
	if err != nil {
		t.Fatal(err)
	}
	move := func(from, to string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	// From the end backwards: how it looked before each move.
	marker := string(read(t, filepath.Join(after, "tidemark.json")))
	moving := marker[:len(marker)-2] + `,"moving":"` + rel + "\"}\n"
	steps := []func(dir string){
		func(dir string) { write(t, filepath.Join(dir, "tidemark.json"), []byte(moving)) },
		func(dir string) { move(filepath.Join(dir, "high-water"), filepath.Join(dir, "new/high-water")) },
		func(dir string) { move(filepath.Join(dir, rel, "high-water"), filepath.Join(dir, "high-water")) },
		func(dir string) { move(filepath.Join(dir, "nats"), filepath.Join(dir, "new/nats")) },
		func(dir string) { move(filepath.Join(dir, rel, "nats"), filepath.Join(dir, "nats")) },
	}
	for n := range len(steps) {
		dir := copyStore(t, after)
		for _, step := range steps[:n+1] {
			step(dir)
		}
		wantAll(t, open(t, dir), &c)
		got, err := restore(open(t, filepath.Join(dir, rel)))
		if err != nil || *got != *was {
			t.Fatalf("%d steps before its end: aside %+v, %v", n+1, got, err)
		}
	}
	// Before the marker said so, it is still the old one.
	move(filepath.Join(copyStore(t, after), "nats"), filepath.Join(before, "new/nats"))
	got, err := restore(open(t, before))
	if err != nil || *got != *was {
		t.Fatal(got, err)
	}
}

func TestScrubFindsWhatIsHarmedWhileTheLogIsOpen(t *testing.T) {
	dir := memoryDir(t)
	l := open(t, dir)
	c := fill(t, l, 9)
	save(t, l, 5, c.state())
	grow(t, l, c, 4)
	if err := l.Scrub(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{logDir + "/msgs/1.blk", checkpointDir + "/msgs/1.blk", "high-water"} {
		path := filepath.Join(dir, file)
		was := read(t, path)
		b := append([]byte(nil), was...)
		for _, at := range []int{8, 512 + 8} { // the mark's slots, or anywhere in a block
			if at < len(b) {
				b[at] ^= 4
			}
		}
		write(t, path, b)
		if err := l.Scrub(t.Context()); !errors.Is(err, feed.ErrDamaged) {
			t.Errorf("%s: %v", file, err)
		}
		write(t, path, was)
	}
	if err := l.Scrub(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestGroupThatWasExchangedForAnotherIsDamage(t *testing.T) {
	dir := memoryDir(t)
	l := open(t, dir)
	c := fill(t, l, 5)
	closeLog(t, l)
	other := copyStore(t, dir)
	l = open(t, dir)
	mine := *c
	grow(t, l, &mine, 1)
	closeLog(t, l)
	// The same log once more, with another sixth group: of a copy that was written to.
	l = open(t, other)
	after := c.pos
	if _, err := l.Append(t.Context(), after, c.next(1, 7)); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	write(t, filepath.Join(dir, "high-water"), read(t, filepath.Join(other, "high-water")))
	wantDamage(t, dir, "at position 6: it is not the group that was acknowledged here")
}

// What is harmed but not needed any more, because a newer checkpoint stands for it, is
// taken out of the files, and nothing else is.
func TestRewriteLeavesOutWhatTheCheckpointStandsFor(t *testing.T) {
	for name, size := range map[string]int{"one file": 100, "several files": 1_000_000} {
		t.Run(name, func(t *testing.T) {
			dir := memoryDir(t)
			var told error
			l := openWith(t, broker.Options{Dir: dir, Damaged: func(_ context.Context, err error) { told = err }})
			c := &chain{epoch: l.Epoch()}
			add := func(n int) {
				for range n {
					after := c.pos
					if _, err := l.Append(t.Context(), after, c.next(1, size)); err != nil {
						t.Fatal(err)
					}
				}
			}
			add(12)
			save(t, l, 5, []byte("an older one"))
			blk := filepath.Join(dir, logDir, "msgs/1.blk")
			b := read(t, blk)
			b[len(b)/2] ^= 1
			write(t, blk, b)
			if err := l.Scrub(t.Context()); !errors.Is(err, feed.ErrDamaged) {
				t.Fatal(err)
			}
			if err := l.Rewrite(t.Context(), func(ctx context.Context) error {
				add(1)
				return l.SaveCheckpoint(ctx, 13, onePart(c.state()))
			}); err != nil {
				t.Fatal(err)
			}
			if err := l.Scrub(t.Context()); err != nil {
				t.Fatal(err)
			}
			add(3)
			if got, err := restore(l); err != nil || *got != *c {
				t.Fatal(got, err)
			}
			closeLog(t, l)
			l = open(t, dir)
			if got, err := restore(l); err != nil || *got != *c || told != nil {
				t.Fatal(got, err, told)
			}
		})
	}
}

// A new store that could not be written leaves the old files as they were, and nothing is
// taken any more.
func TestRewriteThatFailsChangesNothing(t *testing.T) {
	no := errors.New("no")
	for name, save := range map[string]func(*broker.Log, *chain) error{
		"save fails":         func(*broker.Log, *chain) error { return no },
		"nothing is written": func(*broker.Log, *chain) error { return nil },
	} {
		dir := memoryDir(t)
		l := open(t, dir)
		c := fill(t, l, 12)
		save5 := *c
		blk := filepath.Join(dir, logDir, "msgs/1.blk")
		b := read(t, blk)
		b[len(b)-300] ^= 1
		write(t, blk, b)
		if err := l.Rewrite(t.Context(), func(context.Context) error { return save(l, c) }); err == nil {
			t.Fatal(name, ": it went well")
		}
		if _, err := l.Append(t.Context(), save5.pos, nil); !errors.Is(err, feed.ErrDamaged) || !errors.Is(l.Ready(), feed.ErrNotReady) {
			t.Fatal(name, err, l.Ready())
		}
		closeLog(t, l)
		if got := read(t, blk); !bytes.Equal(got, b) {
			t.Errorf("%s: the old files were changed", name)
		}
		wantDamage(t, dir, "a record is harmed")
	}
}

// Whatever a start would refuse, the scrub finds while the server runs: wherever in a file
// a bit flips.
func TestScrubFindsWhatAStartWouldRefuse(t *testing.T) {
	dir := memoryDir(t)
	l := open(t, dir)
	c := fill(t, l, 9)
	save(t, l, 5, []byte("an older one"))
	save(t, l, 9, c.state())
	if err := l.Trim(t.Context(), 8); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{logDir + "/msgs/1.blk", checkpointDir + "/msgs/1.blk"} {
		blocks, err := filepath.Glob(filepath.Join(dir, filepath.Dir(file), "*.blk"))
		if err != nil || len(blocks) == 0 {
			t.Fatal(blocks, err)
		}
		path := blocks[len(blocks)-1]
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			t.Fatal(err)
		}
		whole := read(t, path)
		refused := 0
		for at := 0; at < len(whole); at += 1 + len(whole)/150 {
			harmed := bytes.Clone(whole)
			harmed[at] ^= 1 << (at % 8)
			copied := copyStore(t, dir)
			write(t, filepath.Join(copied, rel), harmed)
			again, oerr := broker.Open(t.Context(), broker.Options{Dir: copied})
			if oerr == nil {
				again.Close()
			}
			remove(t, copied)
			write(t, path, harmed)
			serr := l.Scrub(t.Context())
			write(t, path, whole)
			if errors.Is(oerr, feed.ErrDamaged) {
				refused++
			}
			if errors.Is(oerr, feed.ErrDamaged) != errors.Is(serr, feed.ErrDamaged) {
				t.Errorf("byte %d of %d of %s: a start says %v, the scrub %v", at, len(whole), rel, oerr, serr)
			}
		}
		if refused == 0 {
			t.Errorf("%s: nothing was refused", rel)
		}
	}
}

// A scrub that reads a file while it is trimmed must not take what is missing for damage: the log would be written anew.
func TestAScrubTakesNoTrimForDamage(t *testing.T) {
	l := open(t, t.TempDir())
	c := &chain{epoch: l.Epoch()}
	for range 10 {
		for range 6 { // three of them fill a file
			after := c.pos
			if _, err := l.Append(t.Context(), after, c.next(3, 900<<10)); err != nil {
				t.Fatal(err)
			}
		}
		save(t, l, c.pos, []byte("part"))
		ctx, cancel := context.WithCancel(t.Context())
		var scrubs sync.WaitGroup
		trimmed := make(chan error, 1)
		go func() { trimmed <- l.Trim(t.Context(), c.pos) }()
		var err error
		places := make(chan struct{}, 4) // each reads whole files
		for over := false; !over; {
			places <- struct{}{}
			scrubs.Go(func() {
				defer func() { <-places }()
				if err := l.Scrub(ctx); errors.Is(err, feed.ErrDamaged) {
					t.Error(err)
				}
			})
			select {
			case err = <-trimmed:
				over = true
			case <-time.After(500 * time.Microsecond):
			}
		}
		cancel()
		scrubs.Wait()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A checkpoint of which any record is harmed, also the last, is replaced by another.
func TestRewriteReplacesAHarmedCheckpoint(t *testing.T) {
	for _, last := range []bool{false, true} {
		dir := memoryDir(t)
		l := open(t, dir)
		c := fill(t, l, 9)
		save(t, l, 9, c.state())
		if err := l.Trim(t.Context(), 9); err != nil {
			t.Fatal(err)
		}
		grow(t, l, c, 1)
		blk := filepath.Join(dir, checkpointDir, "msgs/1.blk")
		b := read(t, blk)
		at := bytes.Index(b, []byte("tmb\x01p"))
		if last {
			at = bytes.LastIndex(b, []byte("tmb\x01c"))
		}
		b[at+6] ^= 1
		write(t, blk, b)
		runtime.GC() // the server holds what it has read by weak pointers
		if err := l.Scrub(t.Context()); !errors.Is(err, feed.ErrDamaged) {
			t.Fatal(err)
		}
		if err := l.Rewrite(t.Context(), func(ctx context.Context) error {
			grow(t, l, c, 1)
			return l.SaveCheckpoint(ctx, c.pos, onePart(c.state()))
		}); err != nil {
			t.Fatalf("last %t: %v", last, err)
		}
		if err := l.Scrub(t.Context()); err != nil {
			t.Fatal(err)
		}
		grow(t, l, c, 2)
		closeLog(t, l)
		if got, err := restore(open(t, dir)); err != nil || *got != *c {
			t.Fatal(got, err)
		}
	}
}

// Wherever in the log a bit flips while it is open, no group is lost by what mends it, nor
// by a trim before that: JetStream drops groups that are whole when it trims such a file.
func TestRewriteLosesNothingWhereverABitFlips(t *testing.T) {
	for at := range 60 {
		dir := memoryDir(t)
		l := open(t, dir)
		c := fill(t, l, 12)
		closeLog(t, l) // so that the server has to read what it trims
		l = open(t, dir)
		blk := filepath.Join(dir, logDir, "msgs/1.blk")
		b := read(t, blk)
		place := len(b) * at / 60
		if at%3 == 0 { // in the head of a record, where JetStream believes what it reads
			place = bytes.LastIndex(b[:place+300], []byte("NATS/1.0")) - 4 - 3 - 22 + 4 + at%18
		}
		b[place] ^= 1 << (at % 8)
		write(t, blk, b)
		runtime.GC() // the server holds what it has read by weak pointers
		// The trim that comes before anybody has noticed leaves the file alone.
		save(t, l, 11, []byte("of then"))
		if err := l.Trim(t.Context(), 11); err == nil || errors.Is(err, feed.ErrDamaged) {
			t.Fatalf("byte %d of %d: trimmed: %v", place, len(b), err)
		}
		err := l.Rewrite(t.Context(), func(ctx context.Context) error {
			grow(t, l, c, 1)
			return l.SaveCheckpoint(ctx, c.pos, onePart(c.state()))
		})
		if err != nil {
			t.Fatalf("byte %d of %d: %v", place, len(b), err)
		}
		grow(t, l, c, 1)
		closeLog(t, l)
		l = open(t, dir)
		if got, err := restore(l); err != nil || *got != *c {
			t.Fatalf("byte %d of %d: %v", place, len(b), err)
		}
		closeLog(t, l)
		remove(t, dir)
	}
}

// While a new store is written its disk may fail too: then it is known that nothing was
// written to the log that counts, and nobody waits for the outcome.
func TestRewriteOnADiskThatFailsTooEnds(t *testing.T) {
	dir := memoryDir(t)
	l := open(t, dir)
	c := fill(t, l, 3)
	var appended error
	err := l.Rewrite(t.Context(), func(ctx context.Context) error {
		l.FailServer()
		after := c.pos
		_, appended = l.Append(ctx, after, c.next(1, 10))
		return appended
	})
	if err == nil || !errors.Is(appended, feed.ErrNotWritten) {
		t.Fatalf("%v, and the append: %v", err, appended)
	}
}

// Whoever is told of damage may have to wait for what never comes: closing ends that.
func TestCloseEndsWhoeverIsToldOfDamage(t *testing.T) {
	dir := memoryDir(t)
	told := make(chan error, 1)
	l := openWith(t, broker.Options{Dir: dir, Scrub: 20 * time.Millisecond, Damaged: func(ctx context.Context, err error) {
		told <- err
		<-ctx.Done()
	}})
	fill(t, l, 9)
	blk := filepath.Join(dir, logDir, "msgs/1.blk")
	b := read(t, blk)
	b[len(b)/2] ^= 1
	write(t, blk, b)
	if err := <-told; !errors.Is(err, feed.ErrDamaged) {
		t.Error(err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		closeLog(t, l)
	}()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("it never closes")
	}
}

// A disk that failed comes back with damage: it is mended from memory like any other, and
// the next time that the disk fails the log comes back as well.
func TestDamageOfADiskThatFailedIsMendedToo(t *testing.T) {
	dir := memoryDir(t)
	var l *broker.Log
	var c *chain
	mended := make(chan error, 1)
	l = openWith(t, broker.Options{Dir: dir, Scrub: -1, Damaged: func(ctx context.Context, err error) {
		mended <- l.Rewrite(ctx, func(ctx context.Context) error {
			grow(t, l, c, 1)
			return l.SaveCheckpoint(ctx, c.pos, onePart(c.state()))
		})
	}})
	c = fill(t, l, 9)
	l.FailServer()
	comesBack(t, l, c)
	blk := filepath.Join(dir, logDir, "msgs/1.blk")
	b := read(t, blk)
	b[len(b)/2] ^= 1
	write(t, blk, b)
	l.FailServer()
	select {
	case err := <-mended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it is never mended")
	}
	comesBack(t, l, c)
	l.FailServer()
	comesBack(t, l, c)
	closeLog(t, l)
	if got, err := restore(open(t, dir)); err != nil || *got != *c {
		t.Fatal(got, err)
	}
}

// A disk that fails again before anybody has looked whether the last failure is over must not be given up.
func TestADiskThatFailsAgainAtOnceIsMendedAgain(t *testing.T) {
	dir := memoryDir(t)
	var l *broker.Log
	var c *chain
	told := make(chan error, 1)
	l = openWith(t, broker.Options{Dir: dir, Scrub: -1, Damaged: func(ctx context.Context, _ error) {
		err := l.Rewrite(ctx, func(ctx context.Context) error {
			grow(t, l, c, 1)
			return l.SaveCheckpoint(ctx, c.pos, onePart(c.state()))
		})
		l.FailServer()
		told <- err
	}})
	c = fill(t, l, 9)
	blk := filepath.Join(dir, logDir, "msgs/1.blk")
	b := read(t, blk)
	b[len(b)/2] ^= 1
	write(t, blk, b)
	l.FailServer()
	if err := <-told; err != nil {
		t.Fatal(err)
	}
	comesBack(t, l, c)
}

// TestWhatIsToBeForgottenIsGoneAfterACrash: a purge that was cut short leaves the old files.
func TestWhatIsToBeForgottenIsGoneAfterACrash(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"20260101T000000Z-abcd.forgotten", "20260101T000000Z-abcd"} {
		if err := os.MkdirAll(filepath.Join(dir, "aside", name, "nats"), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	l = open(t, dir)
	defer l.Close()
	all, err := filepath.Glob(filepath.Join(dir, "aside", "*"))
	if err != nil || len(all) != 1 || strings.HasSuffix(all[0], "forgotten") {
		t.Errorf("aside are %v, %v", all, err)
	}
}

// TestAHistoryForgetsWhetherOrNotItIsKeptOn: one that was switched off is still there.
func TestAHistoryForgetsWhetherOrNotItIsKeptOn(t *testing.T) {
	for _, on := range []bool{true, false} {
		dir := t.TempDir()
		l := openWith(t, broker.Options{Dir: dir, History: &history.Options{}})
		w := writing{}
		for range 9 {
			w.add(t, l, one("CANARY", `{"of":"CANARY"}`), one("other", `{"of":"other"}`))
		}
		save(t, l, 9, []byte("state"))
		if err := l.Trim(t.Context(), 9); err != nil {
			t.Fatal(err)
		}
		if !on {
			closeLog(t, l)
			l = openWith(t, broker.Options{Dir: dir})
		}
		if err := l.ForgetHistory(t.Context(), "CANARY", w.next); err != nil {
			t.Fatal(err)
		}
		found := map[string]int{}
		files, err := filepath.Glob(filepath.Join(dir, "history", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			for _, word := range []string{"CANARY", "other"} {
				found[word] += strings.Count(string(read(t, path)), word)
			}
		}
		if found["CANARY"] != 0 || found["other"] < 8 {
			t.Errorf("kept on %v: %v in %v", on, found, files)
		}
		if wrong, err := broker.VerifyHistory(t.Context(), dir); err != nil || len(wrong) > 0 {
			t.Errorf("kept on %v: %v, %v", on, wrong, err)
		}
		closeLog(t, l)
	}
	dir := t.TempDir()
	if err := open(t, dir).ForgetHistory(t.Context(), "acme", 1); err != nil {
		t.Errorf("where there never was one: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "history")); err == nil {
		t.Error("one was made")
	}
}
