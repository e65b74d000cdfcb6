package broker_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

var kills = flag.Int("kills", 5, "how often to kill a writing process")

// childEnv makes the test binary a writer on the store that it names.
const childEnv = "TIDEMARK_BROKER_TEST_CHILD"

// child appends groups until it is killed, and tells each acknowledgement by a line.
// Every 40 groups it saves a checkpoint and trims the log.
func child(dir string) {
	err := func() error {
		ctx := context.Background()
		l, err := broker.Open(ctx, broker.Options{Dir: dir})
		if err != nil {
			return err
		}
		c, err := restore(l)
		if err != nil {
			return err
		}
		for {
			after := c.pos
			if _, err := l.Append(ctx, after, nextOf(c)); err != nil {
				return err
			}
			if _, err := fmt.Println("acknowledged", c.pos); err != nil {
				return err // nobody listens any more
			}
			if c.pos%40 != 0 {
				continue
			}
			if err := l.SaveCheckpoint(ctx, c.pos, onePart(c.state())); err != nil {
				return err
			}
			if _, err := fmt.Println("saved", c.pos); err != nil {
				return err
			}
			if err := l.Trim(ctx, c.pos-feed.Position(rand.IntN(40))); err != nil {
				return err
			}
		}
	}()
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// nextOf makes the group that follows. Now and then it is large, so that a kill can
// come in the middle of its bytes.
func nextOf(c *chain) []byte {
	if c.pos%16 == 7 {
		return c.next(1, 900_000)
	}
	return c.next(3, int(c.pos%7)*100)
}

func TestKilledWriterLosesNothingThatWasAcknowledged(t *testing.T) {
	dir := t.TempDir()
	closeLog(t, open(t, dir))
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	var saved feed.Position
	inDoubt := 0
	for range *kills {
		// Some time after so many lines.
		acked, newer := killChild(t, dir, 1+rng.IntN(120), time.Duration(rng.IntN(2000))*time.Microsecond)
		saved = max(saved, newer)

		l := open(t, dir)
		at, _ := load(t, l)
		c, err := restore(l)
		if err != nil {
			t.Fatalf("acknowledged %d, saved %d: %v", acked, saved, err)
		}
		// One group and one checkpoint may have been under way.
		if c.pos != acked && c.pos != acked+1 || at < saved || at > acked || at%40 != 0 {
			t.Fatalf("the log ends at %d, %d was acknowledged; the checkpoint is at %d, %d was saved", c.pos, acked, at, saved)
		}
		// Append, as its writer would, what may be there or not.
		if c.pos == acked+1 {
			inDoubt++
			err = l.Read(t.Context(), acked, func(_ feed.Position, b []byte) error {
				_, err := l.Append(t.Context(), acked, b)
				return err
			})
		} else {
			b := nextOf(c)
			if _, err := l.Append(t.Context(), acked, b); err != nil {
				t.Fatal(err)
			}
			_, err = l.Append(t.Context(), acked, b)
		}
		if !errors.Is(err, feed.ErrFenced) {
			t.Fatalf("a group that is there was appended once more: %v", err)
		}
		got, err := restore(l)
		if err != nil || got.pos != acked+1 {
			t.Fatalf("then the log ends at %d, not %d: %v", got.pos, acked+1, err)
		}
		closeLog(t, l)
	}
	t.Logf("killed %d times: the group under way was there %d times", *kills, inDoubt)
}

func TestKilledWhileTheStoreIsMade(t *testing.T) {
	made := 0
	for range *kills {
		dir := t.TempDir()
		acked, _ := killChild(t, dir, -1, time.Duration(rand.IntN(100))*time.Millisecond)
		if acked > 0 {
			made++
		}
		l := open(t, dir)
		c, err := restore(l)
		if err != nil || c.pos != acked && c.pos != acked+1 {
			t.Fatalf("the log ends at %d, %d was acknowledged: %v", c.pos, acked, err)
		}
		grow(t, l, c, 1)
		closeLog(t, l)
	}
	t.Logf("killed %d times: the store was made %d times", *kills, made)
}

// killChild runs a writer, kills it some time after it has told n lines, or after its
// start where n is negative, and returns the last of what it told.
func killChild(t *testing.T, dir string, n int, after time.Duration) (acked, saved feed.Position) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.NewTimer(time.Hour)
	defer kill.Stop()
	if n < 0 {
		kill.Reset(after)
	}
	told := make(chan string)
	go func() {
		defer close(told)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			told <- lines.Text()
		}
	}()
	for i, more := 0, true; more; i++ {
		var line string
		select {
		case line, more = <-told:
		case <-kill.C:
			cmd.Process.Kill()
			continue
		}
		if !more {
			break
		}
		what, number, _ := strings.Cut(line, " ")
		p, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			t.Errorf("the writer says %q", line)
		}
		switch what {
		case "acknowledged":
			acked = feed.Position(p)
		case "saved":
			saved = feed.Position(p)
		}
		if i == n {
			kill.Reset(after)
		}
	}
	if err := cmd.Wait(); err == nil || stderr.Len() > 0 {
		t.Fatalf("the writer was not killed: %v: %s", err, &stderr)
	}
	return acked, saved
}
