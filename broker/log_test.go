package broker_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir) // does not return
	}
	flag.Parse()
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, dir string) *broker.Log {
	t.Helper()
	return openWith(t, broker.Options{Dir: dir})
}

func openWith(t testing.TB, opts broker.Options) *broker.Log {
	t.Helper()
	l, err := broker.Open(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLog(t, l) })
	return l
}

func closeLog(t testing.TB, l *broker.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestLog(t *testing.T) {
	feedtest.Run(t, func(t *testing.T) feedtest.Harness {
		dir := t.TempDir()
		l := open(t, dir)
		return feedtest.Harness{Log: l, Reopen: func(t *testing.T) feed.Log {
			closeLog(t, l)
			l = open(t, dir)
			return l
		}}
	})
}

// chain makes groups as a writer does: real ones, each with the sum of the one before.
type chain struct {
	epoch feed.Epoch
	pos   feed.Position
	prev  feed.Sum
}

// next is the next group, with n records whose values have the size given.
func (c *chain) next(n, size int) []byte {
	g := &feed.Group{Epoch: c.epoch, Position: c.pos + 1, First: feed.Seq(c.pos)*1000 + 1, At: int64(c.pos), Prev: c.prev}
	t := feed.Transaction{Tenant: "acme", Client: "test", Records: make([]feed.Record, n)}
	for i := range t.Records {
		t.Records[i] = feed.Record{Op: feed.Insert, Collection: "todos", Key: fmt.Sprintf("key-%d-%d", c.pos+1, i),
			Value: `{"v":"` + strings.Repeat("x", size) + `"}`}
	}
	g.Transactions = []feed.Transaction{t}
	b, sum := feed.AppendGroup(nil, g)
	c.pos, c.prev = c.pos+1, sum
	return b
}

// follow takes a group as the core does: anything but the next group of the chain is
// an error.
func (c *chain) follow(at feed.Position, b []byte) error {
	g, sum, err := feed.DecodeGroup(b)
	if err != nil {
		return fmt.Errorf("position %d: %w", at, err)
	}
	if at != c.pos+1 || g.Position != at || g.Epoch != c.epoch || g.Prev != c.prev {
		return fmt.Errorf("position %d does not follow %d", at, c.pos)
	}
	c.pos, c.prev = at, sum
	return nil
}

// fill appends n groups and returns their chain.
func fill(t testing.TB, l *broker.Log, n int) *chain {
	t.Helper()
	c := &chain{epoch: l.Epoch()}
	grow(t, l, c, n)
	return c
}

func grow(t testing.TB, l *broker.Log, c *chain, n int) {
	t.Helper()
	for range n {
		after := c.pos
		if _, err := l.Append(context.Background(), after, c.next(3, 100)); err != nil {
			t.Fatal(err)
		}
	}
}

// readAll follows the log from its first group.
func readAll(l *broker.Log) (*chain, error) {
	c := &chain{epoch: l.Epoch()}
	err := l.Read(context.Background(), 0, c.follow)
	return c, err
}

func wantAll(t testing.TB, l *broker.Log, want *chain) {
	t.Helper()
	got, err := readAll(l)
	if err != nil {
		t.Fatal(err)
	}
	if *got != *want {
		t.Fatalf("read up to %d, want %d", got.pos, want.pos)
	}
}

func onePart(b []byte) func(func([]byte, error) bool) {
	return func(yield func([]byte, error) bool) { yield(b, nil) }
}

func save(t testing.TB, l *broker.Log, at feed.Position, part []byte) {
	t.Helper()
	if err := l.SaveCheckpoint(context.Background(), at, onePart(part)); err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, l *broker.Log) (feed.Position, []byte) {
	t.Helper()
	var all []byte
	at, err := l.LoadCheckpoint(context.Background(), func(b []byte) error {
		all = append(all, b...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return at, all
}

// wantDamage wants Open to fail with a *feed.Damage that says something.
func wantDamage(t testing.TB, dir, says string) {
	t.Helper()
	l, err := broker.Open(context.Background(), broker.Options{Dir: dir})
	if err == nil {
		l.Close()
		t.Fatalf("opened, though %s", says)
	}
	var damage *feed.Damage
	if !errors.As(err, &damage) || !errors.Is(err, feed.ErrDamaged) || !strings.Contains(err.Error(), says) {
		t.Fatalf("%v; want damage that says %q", err, says)
	}
}

func TestTwoProcessesCannotOpenOneStore(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	_, err := broker.Open(t.Context(), broker.Options{Dir: dir})
	if !errors.Is(err, broker.ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second Open: %v", err)
	}
	fill(t, l, 1)
	closeLog(t, l)
	open(t, dir)
}

func TestOpenNeedsADirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	closeLog(t, open(t, broken))
	if err := os.RemoveAll(filepath.Join(broken, "nats")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, "nats"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, opts := range []broker.Options{
		{},
		{Dir: broken},
		{Dir: filepath.Join(t.TempDir(), "no", "parent")},
		{Dir: file},
		{Dir: t.TempDir(), Timeout: -1},
	} {
		if l, err := broker.Open(t.Context(), opts); err == nil {
			l.Close()
			t.Errorf("opened with %+v", opts)
		}
	}
	l := open(t, filepath.Join(t.TempDir(), "new"))
	fill(t, l, 1)
}

func TestNothingListens(t *testing.T) {
	before := listening(t)
	open(t, t.TempDir())
	if after := listening(t); after != before {
		t.Fatalf("%d sockets listen, %d did before", after, before)
	}
}

// listening counts this process's listening sockets, TCP and Unix, as Linux shows them.
func listening(t *testing.T) (n int) {
	t.Helper()
	inodes := make(map[string]bool)
	for _, table := range []struct {
		name         string
		state, inode int
		listens      string
	}{
		{"tcp", 3, 9, "0A"},
		{"tcp6", 3, 9, "0A"},
		{"unix", 5, 6, "01"}, // not connected: listening, or of no use
	} {
		f, err := os.Open("/proc/self/net/" + table.name)
		if err != nil {
			t.Skip("needs Linux's /proc/self/net")
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if fields := strings.Fields(lines.Text()); len(fields) > table.inode && fields[table.state] == table.listens {
				inodes["socket:["+fields[table.inode]+"]"] = true
			}
		}
		f.Close()
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && inodes[target] {
			n++
		}
	}
	return n
}

func TestClosedLogRefuses(t *testing.T) {
	l := open(t, t.TempDir())
	fill(t, l, 1)
	closeLog(t, l)
	closeLog(t, l)
	ctx := t.Context()
	_, appendErr := l.Append(ctx, 1, []byte("x"))
	_, loadErr := l.LoadCheckpoint(ctx, func([]byte) error { return nil })
	for _, err := range []error{
		appendErr, loadErr, l.Trim(ctx, 1),
		l.Read(ctx, 0, func(feed.Position, []byte) error { return nil }),
		l.SaveCheckpoint(ctx, 1, onePart(nil)),
	} {
		if !errors.Is(err, broker.ErrClosed) || errors.Is(err, feed.ErrUnknown) {
			t.Errorf("after Close: %v", err)
		}
	}
	if !l.Epoch().Valid() {
		t.Error("the epoch is gone")
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	l := open(t, t.TempDir())
	fill(t, l, 50)
	inside, leave := make(chan struct{}), make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		first := true
		err := l.Read(context.Background(), 0, func(feed.Position, []byte) error {
			if first {
				close(inside)
				<-leave
				first = false
			}
			return nil
		})
		// All fifty came in one batch, so the read may well come to its end.
		if err != nil && !errors.Is(err, broker.ErrClosed) {
			t.Errorf("Read: %v", err)
		}
	})
	<-inside
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		closeLog(t, l)
	}()
	for at := feed.Position(50); ; at++ { // until Close cuts one short, or refuses it
		if _, err := l.Append(context.Background(), at, []byte("x")); err != nil {
			if !errors.Is(err, broker.ErrClosed) {
				t.Errorf("Append: %v", err)
			}
			break
		}
	}
	select {
	case <-closed:
		t.Error("Close did not wait for a Read")
	default:
	}
	close(leave)
	<-closed
	reading.Wait()
}

func TestReadsLeaveNothingInTheServer(t *testing.T) {
	l := open(t, t.TempDir())
	c := fill(t, l, 20)
	save(t, l, 10, []byte("state"))
	wantAll(t, l, c)
	stop := errors.New("stop")
	if err := l.Read(t.Context(), 5, func(feed.Position, []byte) error { return stop }); err != stop {
		t.Fatal(err)
	}
	load(t, l)
	if n, err := l.Consumers(t.Context()); n != 0 || err != nil {
		t.Errorf("%d consumers, %v", n, err)
	}
	if n := l.Subscriptions(); n != 1 {
		t.Errorf("%d subscriptions, want the one for answers", n)
	}
}

func TestReadWithoutAnswersEnds(t *testing.T) {
	l := open(t, t.TempDir())
	c := fill(t, l, 50)
	save(t, l, 50, c.state())
	restoreTimeout := l.SetTimeout(time.Nanosecond)
	failed := 0
	for range 20 {
		got := &chain{epoch: l.Epoch()}
		err := l.Read(t.Context(), 0, got.follow)
		if err == nil && *got != *c || errors.Is(err, feed.ErrDamaged) {
			t.Fatalf("without answers in time, read up to %d: %v", got.pos, err)
		}
		if err != nil {
			failed++
		}
		if at, err := l.LoadCheckpoint(t.Context(), func([]byte) error { return nil }); err == nil && at != 50 || errors.Is(err, feed.ErrDamaged) {
			t.Fatalf("without answers in time, loaded %d: %v", at, err)
		}
	}
	restoreTimeout()
	if failed == 0 {
		t.Error("all answers came within a nanosecond")
	}
	wantAll(t, l, c)
}

func TestReadGoesOnOverManyBatches(t *testing.T) {
	l := open(t, t.TempDir())
	c := &chain{epoch: l.Epoch()}
	for range 30 { // 18 MB: batches end by size, blocks at 8 MB
		after := c.pos
		if _, err := l.Append(t.Context(), after, c.next(1, 600_000)); err != nil {
			t.Fatal(err)
		}
	}
	grow(t, l, c, 1100) // and by count
	wantAll(t, l, c)
	n := 0
	if err := l.Read(t.Context(), 29, func(feed.Position, []byte) error { n++; return nil }); err != nil || n != 1101 {
		t.Fatalf("%d groups, %v", n, err)
	}
}

// An append whose answer does not come in time is settled by appending the same bytes
// again, whether it was stored or not.
func TestUnknownOutcomeIsSettledByTheSameBytes(t *testing.T) {
	l := open(t, t.TempDir())
	c := fill(t, l, 3)
	unknown := 0
	for range 20 {
		after := c.pos
		b := c.next(1, 10)
		restore := l.SetTimeout(time.Nanosecond)
		_, err := l.Append(t.Context(), after, b)
		restore()
		if err == nil {
			continue // the answer was faster than the clock
		}
		if !errors.Is(err, feed.ErrUnknown) || errors.Is(err, feed.ErrFenced) {
			t.Fatalf("Append without time: %v", err)
		}
		unknown++
		if _, err := l.Append(t.Context(), after, b); err == nil {
			continue
		} else if !errors.Is(err, feed.ErrFenced) {
			t.Fatalf("Append of the same bytes: %v", err)
		}
		var there []byte
		if err := l.Read(t.Context(), after, func(_ feed.Position, g []byte) error {
			there = bytes.Clone(g)
			return nil
		}); err != nil || !bytes.Equal(there, b) {
			t.Fatalf("fenced, and what is there is not what was sent: %v", err)
		}
	}
	if unknown == 0 {
		t.Error("all of twenty answers came within a nanosecond")
	}
	wantAll(t, l, c)
}

func TestCancelledAppendIsUnknown(t *testing.T) {
	l := open(t, t.TempDir())
	c := &chain{epoch: l.Epoch()}
	unknown := 0
	for unknown < 3 {
		if c.pos == 5000 {
			t.Fatal("no append of 5000 was cancelled on its way")
		}
		after := c.pos
		b := c.next(1, 10_000)
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_, err := l.Append(ctx, after, b)
		cancel()
		switch {
		case err == nil:
			continue
		case errors.Is(err, feed.ErrUnknown):
			unknown++
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("%v does not say that it was cancelled", err)
			}
		case !errors.Is(err, context.Canceled):
			t.Fatal(err)
		}
		if _, err := l.Append(t.Context(), after, b); err != nil && !errors.Is(err, feed.ErrFenced) {
			t.Fatal(err)
		}
	}
	wantAll(t, l, c)
}

// What goes through the connection comes back with it, and groups do not need it.
func TestALostConnectionComesBackAndCostsNoGroup(t *testing.T) {
	l := open(t, t.TempDir())
	c := fill(t, l, 5)
	for range 5 {
		if err := l.CutConnection(); err != nil {
			t.Fatal(err)
		}
		after := c.pos
		if _, err := l.Append(t.Context(), after, c.next(1, 10)); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for {
			err := l.SaveCheckpoint(t.Context(), c.pos, onePart(c.state()))
			if err == nil {
				break
			}
			if errors.Is(err, feed.ErrDamaged) {
				t.Fatal(err)
			}
			if time.Now().After(deadline) {
				t.Fatalf("the connection did not come back: %v", err)
			}
		}
		if at, b := load(t, l); at != c.pos || string(b) != string(c.state()) {
			t.Errorf("the checkpoint is at %d, %q", at, b)
		}
	}
	wantAll(t, l, c)
}

// A store at its limit says that nothing was written, at once, and goes on when there
// is room.
func TestACheckpointThatHasNoRoomIsRefusedAndHarmsNothing(t *testing.T) {
	dir := t.TempDir()
	l := openWith(t, broker.Options{Dir: dir}.WithMaxStore(1<<20))
	c := &chain{epoch: l.Epoch()}
	for range 30 {
		before := c.pos
		if _, err := l.Append(t.Context(), before, c.next(1, 50_000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.SaveCheckpoint(t.Context(), c.pos, onePart([]byte("state"))); err == nil || !strings.Contains(err.Error(), "nothing was written") {
		t.Fatalf("a full store says: %v", err)
	}
	wantAll(t, l, c)
	closeLog(t, l)
	l = open(t, dir)
	wantAll(t, l, c)
	grow(t, l, c, 3)
	save(t, l, c.pos, []byte("state"))
	wantAll(t, l, c)
}

func TestCheckpointsThatMakeNoSenseAreRefused(t *testing.T) {
	l := open(t, t.TempDir())
	fill(t, l, 5)
	save(t, l, 3, []byte("three"))
	for _, at := range []feed.Position{0, 2, 6, 1<<64 - 1} {
		if err := l.SaveCheckpoint(t.Context(), at, onePart(nil)); err == nil {
			t.Errorf("saved a checkpoint at %d of a log of 5 groups with a checkpoint at 3", at)
		}
	}
	if at, b := load(t, l); at != 3 || string(b) != "three" {
		t.Errorf("the checkpoint is at %d, %q", at, b)
	}
}

func TestTrimForgetsAndSaysSo(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	c := fill(t, l, 40)
	save(t, l, 30, []byte("thirty"))
	for _, before := range []feed.Position{1, 2, 12, 30} {
		if err := l.Trim(t.Context(), before); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			for after := range before {
				n := feed.Position(0)
				err := l.Read(t.Context(), after, func(feed.Position, []byte) error { n++; return nil })
				if after+1 < before && (!errors.Is(err, feed.ErrDamaged) || n != 0) {
					t.Fatalf("trimmed before %d; Read after %d gave %d groups and %v", before, after, n, err)
				}
				if after+1 == before && (err != nil || n != 40-after) {
					t.Fatalf("trimmed before %d; Read after %d gave %d groups and %v", before, after, n, err)
				}
			}
			closeLog(t, l)
			l = open(t, dir)
		}
	}
	grow(t, l, c, 1)
}

func TestTrimLeavesWhatIsBeingRead(t *testing.T) {
	l := open(t, t.TempDir())
	c := &chain{epoch: l.Epoch()}
	for range 25 { // more than two batches: the last is asked for after the trim
		after := c.pos
		if _, err := l.Append(t.Context(), after, c.next(1, 600_000)); err != nil {
			t.Fatal(err)
		}
	}
	save(t, l, c.pos, nil)
	got := &chain{epoch: l.Epoch()}
	err := l.Read(t.Context(), 0, func(at feed.Position, b []byte) error {
		if at == 1 {
			if err := l.Trim(t.Context(), c.pos); err != nil {
				return err
			}
		}
		return got.follow(at, b)
	})
	if err != nil || *got != *c {
		t.Fatalf("read up to %d of %d: %v", got.pos, c.pos, err)
	}
	if err := l.Trim(t.Context(), c.pos); err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(l); !errors.Is(err, feed.ErrDamaged) {
		t.Fatalf("the next Trim left it, too: %v", err)
	}
}

func TestCheckpointIsNotPurgedUnderItsReader(t *testing.T) {
	l := open(t, t.TempDir())
	fill(t, l, 2)
	part := bytes.Repeat([]byte("old"), 300_000)
	if err := l.SaveCheckpoint(t.Context(), 1, func(yield func([]byte, error) bool) {
		for range 20 { // several batches
			if !yield(part, nil) {
				return
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	n := 0
	at, err := l.LoadCheckpoint(t.Context(), func(b []byte) error {
		if n++; n == 1 {
			save(t, l, 2, []byte("new"))
		}
		if !bytes.Equal(b, part) {
			return errors.New("a part of another checkpoint")
		}
		return nil
	})
	if err != nil || at != 1 || n != 20 {
		t.Fatalf("loaded %d parts at %d: %v", n, at, err)
	}
	if at, b := load(t, l); at != 2 || string(b) != "new" {
		t.Fatalf("then %d, %q", at, b)
	}
	save(t, l, 2, []byte("newer"))
	if at, b := load(t, l); at != 2 || string(b) != "newer" {
		t.Fatalf("then %d, %q", at, b)
	}
}

func TestServerLogsGoToSlog(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	l := openWith(t, broker.Options{Dir: t.TempDir(), Logger: log})
	closeLog(t, l)
	for line := range strings.Lines(out.String()) {
		if chatter := strings.Contains(line, `msg="nats: `); chatter && !strings.Contains(line, "level=DEBUG") {
			t.Errorf("chatter above Debug: %s", line)
		}
		if strings.Contains(line, "___") {
			t.Errorf("a banner: %s", line)
		}
	}
	if !strings.Contains(out.String(), `msg="opened the log"`) || !strings.Contains(out.String(), `msg="nats: `) {
		t.Errorf("not told:\n%s", out.String())
	}
}

// state is what the tests save in checkpoints: where the chain is.
func (c *chain) state() []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(c.pos)), c.prev[:]...)
}

// restore takes up the chain where a checkpoint left it, if there is one, and follows
// the log to its end.
func restore(l *broker.Log) (*chain, error) {
	c := &chain{epoch: l.Epoch()}
	var state []byte
	at, err := l.LoadCheckpoint(context.Background(), func(b []byte) error {
		state = append(state, b...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if at > 0 {
		if len(state) != 8+len(c.prev) || feed.Position(binary.BigEndian.Uint64(state)) != at {
			return nil, fmt.Errorf("the checkpoint at %d holds %x", at, state)
		}
		c.pos = at
		copy(c.prev[:], state[8:])
	}
	return c, l.Read(context.Background(), c.pos, c.follow)
}

// copyStore copies a store as it is on disk at this moment, as a backup of a running
// server would.
func copyStore(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(memoryDir(t), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	// CopyFS keeps no write permission where a umask took it; the broker needs it.
	err := filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = os.Chmod(path, 0o700)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}
