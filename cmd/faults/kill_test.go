package faults_test

import (
	"errors"
	"flag"
	"fmt"
	"testing"
	"time"
)

var killRounds = flag.Int("rounds.kill", 8, "how often the server is killed")

// points are the places where the server can be told to kill itself.
var points = []string{"decided", "appended", "applied", "checkpoint-begin", "checkpoint-saved", "trimmed", "append-published", "mark-written"}

// remembered is how many ids the server remembers in TestKill: so few that its state
// stays small, and a checkpoint is due often.
const remembered = 300

// TestKill: after kill -9 an acknowledged write is gone, one has happened twice, or a
// follower sees half a transaction.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("many restarts")
	}
	y := newTally(t, "kill")
	rng, seed := seeded(t)
	missed, terms := 0, 0
	reached := make(map[string]int)
	defer func() {
		y.extra = fmt.Sprintf(" terms=%d points=%q not-reached=%d", terms, fmt.Sprint(reached), missed)
	}()
	next := rng.IntN(len(points))
	for left := *killRounds; left > 0 && !t.Failed(); {
		campaign := min(left, 25)
		left -= campaign
		r := newRecorder()
		s := newServer(t, r, t.TempDir(), "--log-size", "16KiB", "--ids-most", fmt.Sprint(remembered))
		if err := s.start(fault{what: "the first start"}); err != nil {
			t.Fatal(err)
		}
		w := begin(t, r, s, seed+uint64(left), load{keys: 10, ids: remembered, pad: []int{200, 200, 8 << 10}[rng.IntN(3)]})
		for range campaign {
			y.rounds++
			time.Sleep(time.Duration(20+rng.IntN(500)) * time.Millisecond)
			f := fault{what: "kill -9"}
			if rng.IntN(8) == 0 {
				terms++
				f.what = "SIGTERM"
				if code := s.stop(); code != 0 {
					r.problem("start", "exit code %d after SIGTERM:\n%s", code, s.out.tail())
				}
			} else {
				s.kill()
			}
			if rng.IntN(2) == 0 { // the next process kills itself
				point := points[next%len(points)]
				next++
				n := 1 + rng.IntN(20)
				if point == "checkpoint-begin" || point == "checkpoint-saved" || point == "trimmed" {
					n = 1
				}
				armed := fault{what: f.what, env: []string{fmt.Sprintf("TIDEMARK_CRASH=%s:%d", point, n)}}
				err := s.start(armed)
				if err == nil && !s.wait(1500*time.Millisecond) {
					missed++
					s.kill()
				} else if err != nil && !errors.Is(err, errCrashed) {
					break
				} else {
					reached[point]++
				}
				f.what = fmt.Sprintf("a crash at %s, the %d. time", point, n)
			}
			if err := s.start(f); err != nil {
				break
			}
		}
		w.end()
		s.stop()
		y.add(r, w)
	}
}
