package faults_test

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

var retriesRounds = flag.Int("rounds.retries", 4, "how often the server is killed while writes are lost, doubled and delayed")

// TestRetries: a write that is sent again, by its writer or by the network, happens twice
// or is answered in another way than the first time.
func TestRetries(t *testing.T) {
	if testing.Short() {
		t.Skip("many restarts")
	}
	y := newTally(t, "retries")
	rng, seed := seeded(t)
	var before, after, amid, doubled, delayed int64
	defer func() {
		y.extra = fmt.Sprintf(" cut-before=%d cut-amid=%d cut-after=%d doubled=%d delayed=%d", before, amid, after, doubled, delayed)
	}()
	for left := *retriesRounds; left > 0 && !t.Failed(); {
		campaign := min(left, 20)
		left -= campaign
		r := newRecorder()
		s := newServer(t, r, t.TempDir(), "--log-size", "64KiB")
		if err := s.start(fault{what: "the first start"}); err != nil {
			t.Fatal(err)
		}
		p := newProxy(t, s.addr, seed+uint64(left))
		w := begin(t, r, s, seed+uint64(left), load{followers: 3, writers: 8, again: 2, twice: true, via: p.addr, quiet: p.settle})
		for range campaign {
			y.rounds++
			time.Sleep(time.Duration(200+rng.IntN(700)) * time.Millisecond)
			s.kill()
			if s.start(fault{what: "kill -9"}) != nil {
				break
			}
		}
		time.Sleep(300 * time.Millisecond)
		w.end()
		s.stop()
		y.add(r, w)
		before += p.cutBefore.Load()
		after += p.cutAfter.Load()
		amid += p.cutAmid.Load()
		doubled += p.doubled.Load()
		delayed += p.delayed.Load()
	}
}
