package faults_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/transport/follow"
)

var scrubRounds = flag.Int("rounds.scrub", 2, "how often a bit flips under a server that runs")

// What a server says that looks after its files.
const (
	saysDamaged = "the files of the log are damaged"
	saysMended  = "replaced by what is in memory"
	saysLost    = "the damage could not be mended"
)

// TestScrub: a bit flips in what was written a while ago, and the server does not notice,
// or mends it and loses something, or goes on though it can't.
func TestScrub(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the scrub")
	}
	y := newTally(t, "scrub")
	rng, seed := seeded(t)
	done := make(map[string]int)
	defer func() { y.extra = fmt.Sprintf(" done=%q", fmt.Sprint(done)) }()
	streams := []string{"LOG", "CHECKPOINT"}
	for left := *scrubRounds; left > 0 && !t.Failed(); {
		campaign := min(left, 6)
		r := newRecorder()
		size := []string{"16KiB", "64KiB", "1MiB"}[rng.IntN(3)]
		if left < 6 {
			size = "64KiB" // so that there is a checkpoint soon
		}
		s := newServer(t, r, filepath.Join(t.TempDir(), "data"), "--log-size", size, "--scrub", "300ms")
		if err := s.start(fault{what: "the first start"}); err != nil {
			t.Fatal(err)
		}
		w := begin(t, r, s, seed+uint64(left), load{followers: 3})
		over := false
		for range campaign {
			left--
			y.rounds++
			stream := streams[y.rounds%2]
			outcome := flip(t, r, s, w, stream, rng)
			done[stream+": "+outcome]++
			if over = outcome == "not mended"; over {
				break
			}
			s.kill()
			if over = s.start(fault{what: "a flipped bit and kill -9", look: true}) != nil; over {
				break
			}
		}
		if over {
			w.abandon()
		} else {
			w.end()
		}
		s.kill()
		y.add(r, w)
	}
}

// flip flips a bit under a server and looks what becomes of it.
func flip(t testing.TB, r *recorder, s *server, w *workload, stream string, rng *rand.Rand) (outcome string) {
	where, err := flipOld(s.data, stream, rng)
	if err != nil {
		t.Logf("%v\n%s", err, s.out.tail())
		return "nothing to flip"
	}
	says := func(most time.Duration, texts ...string) string {
		for over := time.Now().Add(most); ; time.Sleep(20 * time.Millisecond) {
			out := s.out.String()
			for _, text := range texts {
				if strings.Contains(out, text) {
					return text
				}
			}
			if !s.alive() || time.Now().After(over) {
				return ""
			}
		}
	}
	if says(4*time.Second, saysDamaged) == "" {
		// It may have been trimmed away; then nothing is damaged.
		w.pause()
		defer w.resume()
		s.kill()
		said := s.out.tail()
		if code, out := verify(t, s.data); code != 0 {
			r.problem("scrub", "%s: it was not noticed in 4 s, and verify says:\n%s\nthe server said:\n%s", where, out, said)
			return "not noticed"
		}
		return "trimmed away"
	}
	switch says(10*time.Second, saysMended, saysLost) {
	case saysMended:
		aside, err := filepath.Glob(filepath.Join(s.data, "aside", "*", "nats", "jetstream", "$G", "streams", stream, "msgs", "*.blk"))
		if err != nil || len(aside) == 0 {
			r.problem("scrub", "%s: nothing is aside: %v", where, err)
		}
		time.Sleep(time.Duration(rng.IntN(700)) * time.Millisecond)
		if n := strings.Count(s.out.String(), saysDamaged); n > 1 {
			r.problem("scrub", "%s: damage was found %d times\n%s", where, n, s.out.tail())
		}
		return "mended"
	case saysLost:
		t.Logf("%s:\n%s", where, s.out.tail())
		r.problem("scrub", "%s: what is in memory is whole, and it could not be mended", where)
		givesUp(t, r, s, where)
		return "not mended"
	}
	r.problem("scrub", "%s: it is neither mended nor given up after 10 s\n%s", where, s.out.tail())
	return "not mended"
}

// givesUp checks that a server which can't mend its files serves no more, and does not
// start again.
func givesUp(t testing.TB, r *recorder, s *server, where string) {
	time.Sleep(500 * time.Millisecond)
	if status, _, err := probe(s, 1); err != nil || status != http.StatusServiceUnavailable {
		r.problem("scrub", "%s: it can't mend it, and answers a write with %d, %v", where, status, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if c, err := follow.Dial(ctx, follow.Options{URL: s.url(), Tenant: tenant, Collections: fresh(collections), Transport: follow.SSE}); err == nil {
		defer c.Close()
		for {
			f, err := c.Next(ctx)
			if ctx.Err() != nil {
				r.problem("scrub", "%s: it can't mend it, and a feed goes on", where)
			}
			if err != nil || f.Type == "end" {
				break
			}
		}
	}
	s.kill()
	s.spawn(fault{})
	if err := s.ready(t.Context(), readyWithin); err == nil || s.alive() || s.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(s.out.String(), "damage") {
		r.problem("scrub", "%s: it could not mend it, and must refuse to start with exit code 1 and name it: %v", where, err)
	}
}

// verify has the program look at a directory that no server has open.
func verify(t testing.TB, data string) (code int, out string) {
	p := start(t, nil, "verify", "--data", data)
	if !p.wait(time.Minute) {
		p.kill()
	}
	return p.cmd.ProcessState.ExitCode(), p.out.String()
}

// flipOld flips a bit in a record of a stream that was written at least a second ago,
// and says which.
func flipOld(data, stream string, rng *rand.Rand) (string, error) {
	dir := filepath.Join(data, "nats", "jetstream", "$G", "streams", stream, "msgs")
	for range 8 {
		before, err := blocks(dir)
		if err != nil {
			return "", err
		}
		time.Sleep(1100 * time.Millisecond)
		now, err := blocks(dir)
		if err != nil {
			return "", err
		}
		var old []string
		for name, b := range before {
			if len(b) > 0 && len(now[name]) >= len(b) && bytes.Equal(b, now[name][:len(b)]) {
				old = append(old, name)
			}
		}
		if len(old) == 0 {
			continue
		}
		slices.Sort(old)
		name := old[rng.IntN(len(old))]
		b := before[name]
		records := recordsOf(b)
		if len(records) == 0 {
			continue
		}
		at := records[rng.IntN(len(records))]
		size := int(binary.LittleEndian.Uint32(b[at:]) &^ (1 << 31))
		place, bit := at+rng.IntN(size), rng.IntN(8)
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		_, err = f.WriteAt([]byte{b[place] ^ 1<<bit}, int64(place))
		return fmt.Sprintf("bit %d of byte %d of %s/%s, in the record at %d", bit, place, stream, name, at), errors.Join(err, f.Close())
	}
	return "", fmt.Errorf("no record of %s lasts for a second", stream)
}

// blocks are the block files of a stream.
func blocks(dir string) (map[string][]byte, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.blk"))
	if err != nil {
		return nil, err
	}
	all := make(map[string][]byte)
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		all[filepath.Base(path)] = b
	}
	return all, nil
}

// recordsOf is where the records of a block file begin. Each begins with its length; the
// highest bit says whether it has headers.
func recordsOf(b []byte) (begins []int) {
	for at := 0; at+4 <= len(b); {
		size := int(binary.LittleEndian.Uint32(b[at:]) &^ (1 << 31))
		if size < 30 || at+size > len(b) {
			break
		}
		begins = append(begins, at)
		at += size
	}
	return begins
}
