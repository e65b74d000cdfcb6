package faults_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var clockRounds = flag.Int("rounds.clock", 4, "how often the wall clock jumps")

// TestClock: the wall clock jumps by an hour, and a write that is sent again happens
// twice, a row goes before its time, or a follower has to begin anew.
func TestClock(t *testing.T) {
	if testing.Short() {
		t.Skip("many restarts")
	}
	y := newTally(t, "clock")
	rng, seed := seeded(t)
	for left := *clockRounds; left > 0 && !t.Failed(); {
		campaign := min(left, 20)
		left -= campaign
		r := newRecorder()
		skew := filepath.Join(t.TempDir(), "skew")
		s := newServer(t, r, filepath.Join(t.TempDir(), "data"), "--log-size", "64KiB", "--tombstones", "30m", "--ids", "30m")
		s.env = []string{"TIDEMARK_SKEW=" + skew}
		jump := func() {
			at := []int{-3600, 0, 3600}[rng.IntN(3)]
			// In one piece: a file that is half written would be a third clock.
			if err := os.WriteFile(skew+".new", fmt.Append(nil, at), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(skew+".new", skew); err != nil {
				t.Fatal(err)
			}
		}
		jump()
		if err := s.start(fault{what: "the first start"}); err != nil {
			t.Fatal(err)
		}
		w := begin(t, r, s, seed+uint64(left), load{ttl: true, again: 3})
		for range campaign {
			y.rounds++
			time.Sleep(time.Duration(50+rng.IntN(500)) * time.Millisecond)
			switch rng.IntN(3) {
			case 0:
				jump()
			case 1:
				s.kill()
				jump()
				if s.start(fault{what: "kill -9 and a jump of the clock"}) != nil {
					return
				}
			default:
				s.stop()
				jump()
				if s.start(fault{what: "SIGTERM and a jump of the clock"}) != nil {
					return
				}
			}
		}
		time.Sleep(time.Second)
		w.end()
		s.stop()
		y.add(r, w)
	}
}
