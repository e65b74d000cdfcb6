package broker_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

var flips = flag.Int("flips", 4, "bits to flip in each small file of a store; 4 times as many in a block")

const (
	logDir        = "nats/jetstream/$G/streams/LOG"
	checkpointDir = "nats/jetstream/$G/streams/CHECKPOINT"
)

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// memoryDir is a directory in memory where the system has one: these tests open
// hundreds of stores, and none of them asks what a disk keeps.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tidemark-broker-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { remove(t, dir) })
	return dir
}

// stored makes a store with ten groups and a checkpoint at 5, and closes it.
func stored(t testing.TB) (dir string, c *chain) {
	t.Helper()
	dir = memoryDir(t)
	l := open(t, dir)
	c = fill(t, l, 5)
	save(t, l, 5, c.state())
	grow(t, l, c, 5)
	closeLog(t, l)
	return dir, c
}

// forgetMark sets a store's high-water mark back to 0, as if it had never reached the disk.
func forgetMark(t testing.TB, dir string) {
	t.Helper()
	l, err := broker.Open(context.Background(), broker.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	mark := l.NewMark()
	closeLog(t, l)
	write(t, filepath.Join(dir, "high-water"), mark)
}

func TestStoreWithoutItsMarkerIsNotMadeAnew(t *testing.T) {
	dir, _ := stored(t)
	marker := filepath.Join(dir, "tidemark.json")
	was := read(t, marker)
	remove(t, marker)
	wantDamage(t, dir, "has no marker")
	wantDamage(t, dir, "has no marker")
	write(t, marker, was)
	c, err := restore(open(t, dir))
	if err != nil || c.pos != 10 {
		t.Fatalf("with its marker again: %v", err)
	}
}

// The smallest store that holds anything, and one that was trimmed to a single group.
func TestSmallStoreWithoutItsMarkerIsNotMadeAnew(t *testing.T) {
	dir := memoryDir(t)
	l := open(t, dir)
	if _, err := l.Append(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	remove(t, filepath.Join(dir, "tidemark.json"))
	wantDamage(t, dir, "has no marker")

	dir = memoryDir(t)
	l = open(t, dir)
	for i := range feed.Position(3) {
		if _, err := l.Append(t.Context(), i, nil); err != nil {
			t.Fatal(err)
		}
	}
	save(t, l, 3, nil)
	if err := l.Trim(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	remove(t, filepath.Join(dir, "tidemark.json"))
	wantDamage(t, dir, "has no marker")
}

func TestForeignStoreIsNotTouched(t *testing.T) {
	for _, foreign := range []string{
		"nats/jetstream/$G/streams/ORDERS/meta.inf",
		"nats/jetstream/$SYS/streams/x",
		"nats/jetstream/$G/streams/LOGS/x",
		"nats/other",
		"nats",
	} {
		dir := memoryDir(t)
		path := filepath.Join(dir, foreign)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, path, nil)
		wantDamage(t, dir, "which is of no new store")
		read(t, path)
	}
}

func TestStoreWithoutMarkerAndStreamsIsNotMadeAnew(t *testing.T) {
	dir, _ := stored(t)
	remove(t, filepath.Join(dir, "tidemark.json"))
	remove(t, filepath.Join(dir, "nats"))
	wantDamage(t, dir, "a high-water mark of 10")
	read(t, filepath.Join(dir, "high-water"))
}

// A crash while the store is made leaves no marker, and at most the genesis message.
func TestUnfinishedCreationIsBegunAnew(t *testing.T) {
	made := memoryDir(t)
	closeLog(t, open(t, made))
	if size := len(read(t, filepath.Join(made, logDir, "msgs/1.blk"))); size == 0 || int64(size) > broker.GenesisRecord || int64(size) < broker.GenesisRecord-6 {
		t.Fatalf("the genesis message takes %d bytes, not %d at the longest epoch", size, broker.GenesisRecord)
	}
	for name, undo := range map[string]func(dir string){
		"only the marker is missing": func(string) {},
		"the marker is half written": func(dir string) { write(t, filepath.Join(dir, "tidemark.json.new"), []byte(`{"for`)) },
		"the genesis message too": func(dir string) {
			remove(t, filepath.Join(dir, logDir, "msgs"))
		},
		"half of it": func(dir string) {
			blk := filepath.Join(dir, logDir, "msgs/1.blk")
			write(t, blk, read(t, blk)[:40])
		},
		"a stream is half made": func(dir string) {
			remove(t, filepath.Join(dir, checkpointDir))
			write(t, filepath.Join(dir, logDir, "meta.inf"), nil)
		},
		"the streams are not made": func(dir string) { remove(t, filepath.Join(dir, "nats/jetstream/$G")) },
		"the mark is half made": func(dir string) {
			remove(t, filepath.Join(dir, "nats"))
			write(t, filepath.Join(dir, "high-water"), []byte{0})
		},
		"nothing is made": func(dir string) { remove(t, filepath.Join(dir, "nats")); remove(t, filepath.Join(dir, "high-water")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyStore(t, made)
			remove(t, filepath.Join(dir, "tidemark.json"))
			undo(dir)
			l := open(t, dir)
			c := fill(t, l, 3)
			closeLog(t, l)
			wantAll(t, open(t, dir), c)
		})
	}
}

func TestMarkerIsChecked(t *testing.T) {
	dir, _ := stored(t)
	marker := filepath.Join(dir, "tidemark.json")
	was := string(read(t, marker))
	for _, bad := range []string{
		"", "{", "[]", "null", `"x"`, `{}`, `{"format":1}`, `{"format":0,"epoch":"abcdefghij"}`, `{"format":-1,"epoch":"abcdefghij"}`,
		`{"format":1,"epoch":"NO"}`, `{"format":"1","epoch":"abcdefghij"}`, was[:len(was)/2], strings.Repeat("\x00", len(was)),
	} {
		write(t, marker, []byte(bad))
		wantDamage(t, dir, "the marker")
	}
	write(t, marker, []byte(`{"format":1,"epoch":"abcdefghij"}`))
	wantDamage(t, dir, "of another log")

	write(t, marker, []byte(`{"format":3,"log":"of a shape that this version can't know"}`))
	l, err := broker.Open(t.Context(), broker.Options{Dir: dir})
	if err == nil {
		l.Close()
		t.Fatal("opened a newer store")
	}
	if errors.Is(err, feed.ErrDamaged) || !strings.Contains(err.Error(), "use a newer one") {
		t.Fatalf("a newer store: %v", err)
	}
	write(t, marker, []byte(was))
	open(t, dir)
}

func TestMissingStreamIsDamage(t *testing.T) {
	for _, gone := range []string{"nats", "nats/jetstream/$G", logDir, checkpointDir, logDir + "/meta.inf", logDir + "/meta.sum", checkpointDir + "/meta.inf"} {
		t.Run(gone, func(t *testing.T) {
			dir, _ := stored(t)
			remove(t, filepath.Join(dir, gone))
			wantDamage(t, dir, "has no meta.")
			wantDamage(t, dir, "has no meta.") // and no attempt makes it anew
		})
	}
}

// JetStream does not restore a stream whose meta.inf is empty, and would take up its
// blocks again, or not, if it were made anew. After a power cut of a young store with
// the default sync, that was the state of things.
func TestEmptiedStreamMetaIsDamage(t *testing.T) {
	for _, emptied := range []string{logDir + "/meta.inf", logDir + "/meta.sum", checkpointDir + "/meta.inf"} {
		dir, c := stored(t)
		path := filepath.Join(dir, emptied)
		was := read(t, path)
		write(t, path, nil)
		wantDamage(t, dir, "has a meta.inf or meta.sum that is harmed")
		wantDamage(t, dir, "has a meta.inf or meta.sum that is harmed")
		write(t, path, was) // nothing was lost by trying
		got, err := restore(open(t, dir))
		if err != nil || *got != *c {
			t.Fatalf("with its %s again: %v", emptied, err)
		}
	}
}

func TestLostGroupsAreDamage(t *testing.T) {
	for name, test := range map[string]struct {
		says string
		fn   func(dir string)
	}{
		"all blocks": {"empty", func(dir string) {
			remove(t, filepath.Join(dir, logDir, "msgs"))
		}},
		"the block, but not the index": {"empty", func(dir string) {
			remove(t, filepath.Join(dir, logDir, "msgs/1.blk"))
		}},
		"the block is empty": {"empty", func(dir string) {
			write(t, filepath.Join(dir, logDir, "msgs/1.blk"), nil)
		}},
		"the end of the block": {"groups up to 10 were acknowledged", func(dir string) {
			blk := filepath.Join(dir, logDir, "msgs/1.blk")
			b := read(t, blk)
			write(t, blk, b[:len(b)-1])
			remove(t, filepath.Join(dir, logDir, "msgs/index.db"))
		}},
		"more than the checkpoint stands for": {"the newest checkpoint is at 5", func(dir string) {
			l := open(t, dir)
			c, err := restore(l)
			if err != nil {
				t.Fatal(err)
			}
			closeLog(t, l)
			forgetMark(t, dir)
			blk := filepath.Join(dir, logDir, "msgs/1.blk")
			b := read(t, blk)
			per := (len(b) - int(broker.GenesisRecord)) / int(c.pos) // roughly: groups are of nearly one size
			write(t, blk, b[:len(b)-7*per])
			remove(t, filepath.Join(dir, logDir, "msgs/index.db"))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := stored(t)
			test.fn(dir)
			wantDamage(t, dir, test.says)
			wantDamage(t, dir, "") // an attempt makes nothing better
		})
	}
}

func TestOlderLogIsDamage(t *testing.T) {
	dir := memoryDir(t)
	l := open(t, dir)
	c := fill(t, l, 5)
	closeLog(t, l)
	older := copyStore(t, dir)
	l = open(t, dir)
	grow(t, l, c, 1)
	closeLog(t, l)
	remove(t, filepath.Join(dir, logDir))
	if err := os.Rename(filepath.Join(older, logDir), filepath.Join(dir, logDir)); err != nil {
		t.Fatal(err)
	}
	wantDamage(t, dir, "at position 6: the log ends before it, and groups up to 6 were acknowledged")
}

func TestLogOfAnotherStoreIsDamage(t *testing.T) {
	for _, part := range []string{"nats", logDir, checkpointDir, "high-water", "tidemark.json"} {
		dir, _ := stored(t)
		other, _ := stored(t)
		remove(t, filepath.Join(dir, part))
		if err := os.Rename(filepath.Join(other, part), filepath.Join(dir, part)); err != nil {
			t.Fatal(err)
		}
		wantDamage(t, dir, "of ")
	}
}

func TestHighWaterMarkIsChecked(t *testing.T) {
	dir, c := stored(t)
	path := filepath.Join(dir, "high-water")
	was := read(t, path)
	remove(t, path)
	wantDamage(t, dir, "high-water mark")
	for _, bad := range [][]byte{nil, make([]byte, len(was)), was[:10], bytes.Repeat([]byte{0xff}, len(was))} {
		write(t, path, bad)
		wantDamage(t, dir, "high-water mark")
	}
	for _, slot := range []int{0, 512} { // torn: the other still holds
		torn := bytes.Clone(was)
		torn[slot+7] ^= 3
		write(t, path, torn)
		l := open(t, dir)
		if got, err := restore(l); err != nil || *got != *c {
			t.Fatal(err)
		}
		closeLog(t, l)
	}
}

func TestChangedConfigurationIsDamage(t *testing.T) {
	dir, _ := stored(t)
	l := open(t, dir)
	if err := l.LimitGroups(t.Context(), 5); err != nil { // which forgets five of them
		t.Fatal(err)
	}
	closeLog(t, l)
	wantDamage(t, dir, "is not configured as it was made")
}

func TestGenesisGoneWithoutCheckpointIsDamage(t *testing.T) {
	for _, before := range []uint64{2, 3, 1 << 40} {
		dir := memoryDir(t)
		l := open(t, dir)
		fill(t, l, 5)
		if err := l.PurgeGroups(t.Context(), before); err != nil {
			t.Fatal(err)
		}
		if before > 2 {
			if _, err := readAll(l); !errors.Is(err, feed.ErrDamaged) {
				t.Errorf("Read of a log that was emptied up to %d: %v", before, err)
			}
		}
		closeLog(t, l)
		wantDamage(t, dir, "")
	}
}

func TestLogThatBeginsAfterItsCheckpointIsDamage(t *testing.T) {
	dir, _ := stored(t)
	l := open(t, dir)
	if err := l.PurgeGroups(t.Context(), 7); err != nil { // position 6 is the first
		t.Fatal(err)
	}
	closeLog(t, l)
	wantDamage(t, dir, "at position 6: the log begins here, and the newest checkpoint is at 5")
}

func TestHarmedCheckpointIsDamage(t *testing.T) {
	threeParts := func(yield func([]byte, error) bool) {
		for _, part := range []string{"one", "two", "three"} {
			if !yield([]byte(part), nil) {
				return
			}
		}
	}
	for name, harm := range map[string]func(l *broker.Log) error{
		"a part is missing":        func(l *broker.Log) error { return l.PurgeCheckpoints(context.Background(), 2) },
		"all parts are missing":    func(l *broker.Log) error { return l.PurgeCheckpoints(context.Background(), 4) },
		"everything is missing":    func(l *broker.Log) error { return l.PurgeCheckpoints(context.Background(), 100) },
		"something else follows":   func(l *broker.Log) error { return l.Foreign(context.Background(), []byte("hello")) },
		"an empty message follows": func(l *broker.Log) error { return l.Foreign(context.Background(), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := memoryDir(t)
			l := open(t, dir)
			fill(t, l, 5)
			if err := l.SaveCheckpoint(t.Context(), 5, threeParts); err != nil {
				t.Fatal(err)
			}
			if err := harm(l); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if at, err := l.LoadCheckpoint(t.Context(), func([]byte) error { return nil }); !errors.Is(err, feed.ErrDamaged) || at != 0 {
					t.Fatalf("loaded position %d, %v", at, err)
				}
				if err := l.Trim(t.Context(), 5); !errors.Is(err, feed.ErrDamaged) {
					t.Fatalf("trimmed: %v", err)
				}
				if err := l.SaveCheckpoint(t.Context(), 5, threeParts); !errors.Is(err, feed.ErrDamaged) {
					t.Fatalf("saved over it: %v", err)
				}
			}
			closeLog(t, l)
			wantDamage(t, dir, "checkpoint")
		})
	}
}

// One bit is flipped in one file of a store, which was closed, or copied while it was
// open. Whatever comes of it, nobody gets fewer groups, or others, without an error.
func TestOneFlippedBitLosesNothingSilently(t *testing.T) {
	for _, trimmed := range []bool{false, true} {
		for _, clean := range []bool{false, true} {
			t.Run(fmt.Sprintf("trimmed=%t,closed=%t", trimmed, clean), func(t *testing.T) {
				dir := memoryDir(t)
				l := open(t, dir)
				mark := l.NewMark()
				c := fill(t, l, 30)
				if trimmed {
					save(t, l, 10, []byte("an older one"))
					save(t, l, 30, c.state())
					grow(t, l, c, 10)
					if err := l.Trim(t.Context(), 25); err != nil {
						t.Fatal(err)
					}
				}
				grow(t, l, c, 20)
				if clean {
					closeLog(t, l)
				}
				flipAll(t, copyStore(t, dir), c, mark)
			})
		}
	}
}

func flipAll(t *testing.T, dir string, want *chain, mark []byte) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if info, ierr := d.Info(); err == nil && ierr == nil && d.Type().IsRegular() && info.Size() > 0 {
			rel, _ := filepath.Rel(dir, path)
			files = append(files, rel)
		}
		return err
	})
	if err != nil || len(files) < 7 {
		t.Fatalf("only %q, %v", files, err)
	}
	outcomes := make(map[string]int)
	for _, file := range files {
		n := *flips
		if strings.HasSuffix(file, ".blk") {
			n *= 4
		}
		size := len(read(t, filepath.Join(dir, file)))
		for i := range n {
			bit := rng.IntN(8 * size)
			switch i {
			case 0:
				bit = rng.IntN(8)
			case 1:
				bit = 8*(size-1) + rng.IntN(8)
			}
			harmed := copyStore(t, dir)
			if i%2 == 1 && file != "high-water" { // as if the mark had never reached the disk
				write(t, filepath.Join(harmed, "high-water"), mark)
			}
			b := read(t, filepath.Join(harmed, file))
			b[bit/8] ^= 1 << (bit % 8)
			write(t, filepath.Join(harmed, file), b)
			what, err := survey(harmed, want)
			if err != nil {
				t.Errorf("bit %d of %d bytes of %s (seed %d): %v", bit, size, file, seed, err)
			}
			outcomes[what]++
			remove(t, harmed)
		}
	}
	t.Logf("%d files: %v", len(files), outcomes)
}

// survey opens a store and reads all of it. An error means that it lost something, or
// made something up, without saying so.
func survey(dir string, want *chain) (what string, err error) {
	began := time.Now()
	l, err := broker.Open(context.Background(), broker.Options{Dir: dir, Timeout: 5 * time.Second})
	if errors.Is(err, feed.ErrDamaged) || err != nil && strings.Contains(err.Error(), "use a newer one") {
		return "refused by Open", nil
	}
	if err != nil {
		return "", err
	}
	defer l.Close()
	got, err := restore(l)
	if took := time.Since(began); took > 30*time.Second {
		return "", fmt.Errorf("it took %s", took)
	}
	switch {
	case errors.Is(err, feed.ErrDamaged):
		return "refused by Read or LoadCheckpoint", nil
	case errors.Is(err, feed.ErrGroup):
		return "refused by DecodeGroup", nil
	case err != nil:
		return "", err
	case *got != *want:
		return "", fmt.Errorf("read up to %d, want %d", got.pos, want.pos)
	}
	// And it can still be written.
	next := *got
	if _, err := l.Append(context.Background(), got.pos, next.next(1, 1)); err != nil {
		return "", err
	}
	return "intact", nil
}

// What is harmed while the log is open is noticed when it is read. JetStream goes on
// counting such a message, and can't deliver it: a reader that waited for the last
// one would wait for ever.
func TestGroupHarmedWhileOpenEndsTheRead(t *testing.T) {
	dir := memoryDir(t)
	l := open(t, dir)
	c := &chain{epoch: l.Epoch()}
	for range 18 { // three blocks
		after := c.pos
		if _, err := l.Append(t.Context(), after, c.next(1, 1_000_000)); err != nil {
			t.Fatal(err)
		}
	}
	closeLog(t, l)
	for _, last := range []bool{false, true} {
		dir := copyStore(t, dir)
		l := open(t, dir)
		blk := filepath.Join(dir, logDir, "msgs/2.blk")
		if last {
			blk = filepath.Join(dir, logDir, "msgs/3.blk")
		}
		b := read(t, blk)
		b[len(b)-1000] ^= 1 // in its last group
		write(t, blk, b)
		runtime.GC() // the server read the last block when it started, and holds it by a weak pointer
		got := &chain{epoch: l.Epoch()}
		began := time.Now()
		err := l.Read(t.Context(), 0, got.follow)
		var damage *feed.Damage
		if !errors.As(err, &damage) || damage.At != got.pos+1 || last != (damage.At == c.pos) {
			t.Fatalf("last %t, read up to %d: %v", last, got.pos, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
		if err := l.Read(t.Context(), damage.At-1, got.follow); !errors.As(err, &damage) || damage.At != got.pos+1 {
			t.Fatalf("that group alone: %v", err)
		}
		closeLog(t, l)
		wantDamage(t, dir, fmt.Sprintf("at position %d", damage.At))
		remove(t, dir)
	}
}

// A write that a crash cut short was never acknowledged: it goes, and nothing else
// does. But a last group that is whole and harmed is not taken for one.
func TestTornLastGroupIsCut(t *testing.T) {
	dir := memoryDir(t)
	l := open(t, dir)
	mark := l.NewMark()
	c := fill(t, l, 9)
	before := len(read(t, filepath.Join(dir, logDir, "msgs/1.blk")))
	nine := *c
	if _, err := l.Append(t.Context(), 9, c.next(1, 2000)); err != nil {
		t.Fatal(err)
	}
	whole := read(t, filepath.Join(dir, logDir, "msgs/1.blk"))
	running := copyStore(t, dir) // as after a crash: there is no index of what it holds
	write(t, filepath.Join(running, "high-water"), mark)
	opened := func(b []byte) (*chain, error) {
		dir := copyStore(t, running)
		defer remove(t, dir)
		write(t, filepath.Join(dir, logDir, "msgs/1.blk"), b)
		l, err := broker.Open(t.Context(), broker.Options{Dir: dir})
		if err != nil {
			return nil, err
		}
		defer l.Close()
		got, err := restore(l)
		if err != nil {
			return nil, err
		}
		next := *got
		if _, err := l.Append(t.Context(), got.pos, next.next(1, 5)); err != nil {
			return nil, err
		}
		return got, nil
	}
	for _, cut := range []int{1, 3, 4, 21, 22, 29, 30, 31, 100, 1000, len(whole) - before - 1} {
		if got, err := opened(whole[:before+cut]); err != nil || *got != nine {
			t.Errorf("cut after %d of %d bytes: %v", cut, len(whole)-before, err)
		}
	}
	for from := before; from < len(whole); from = (from/512 + 1) * 512 {
		b := bytes.Clone(whole)
		clear(b[from:min(len(b), (from/512+1)*512)])
		if got, err := opened(b); err != nil || *got != nine {
			t.Errorf("without the sector of %d: %v", from, err)
		}
		clear(b[from:])
		if got, err := opened(b); err != nil || *got != nine {
			t.Errorf("without what follows %d: %v", from, err)
		}
	}
	for at := before; at < len(whole); at += 1 + (at-before)/8 { // denser in its head
		b := bytes.Clone(whole)
		b[at] ^= 1 << (at % 8)
		if _, err := opened(b); !errors.Is(err, feed.ErrDamaged) {
			t.Errorf("harmed at %d of %d bytes: %v", at-before, len(whole)-before, err)
		}
	}
	if got, err := opened(whole); err != nil || *got != *c {
		t.Errorf("whole: %v", err)
	}
}

// Several blocks, one of them harmed in its middle: JetStream would drop the rest of
// that block if it rebuilt its index, and skip one record if it need not.
func TestHarmedInnerBlockIsDamage(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	c := &chain{epoch: l.Epoch()}
	for range 18 {
		after := c.pos
		if _, err := l.Append(t.Context(), after, c.next(1, 1_000_000)); err != nil {
			t.Fatal(err)
		}
	}
	running := copyStore(t, dir)
	closeLog(t, l)
	for name, base := range map[string]string{"closed": dir, "copied while open": running} {
		blocks, err := filepath.Glob(filepath.Join(base, logDir, "msgs/*.blk"))
		if err != nil || len(blocks) < 3 {
			t.Fatalf("%q, %v", blocks, err)
		}
		for _, blk := range blocks {
			harmed := copyStore(t, base)
			path := filepath.Join(harmed, logDir, "msgs", filepath.Base(blk))
			b := read(t, path)
			b[len(b)/2] ^= 0x10
			write(t, path, b)
			what, err := survey(harmed, c)
			if err != nil || what == "intact" {
				t.Errorf("%s, %s: %s, %v", name, filepath.Base(blk), what, err)
			}
			remove(t, harmed)
		}
	}
}
