package faults_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/cmd/faults/oracle"
)

// scenario is the shortest story in which a mistake shows. It returns why it can't be
// told here.
type scenario struct {
	name string
	play func(t *testing.T, r *recorder, env []string, seed uint64) error
}

var (
	quiet   = scenario{"nothing breaks", playQuiet}
	calm    = scenario{"nothing breaks, and everybody begins with nothing", playCalm}
	large   = scenario{"snapshots too large for one batch", playLarge}
	killed  = scenario{"kill -9 and a restart", playKilled}
	window  = scenario{"followers that are away for longer than removes are remembered", playWindow}
	anew    = scenario{"another store under the same address", playAnew}
	outage  = scenario{"a power cut", playOutage}
	tailcut = scenario{"a power cut, and a disk that lost the end of the log", playTailCut}
)

// bugs are the deliberate mistakes of a server built with the tag tidemark_faults.
var bugs = []struct {
	bug string
	in  scenario
}{
	{"drop-change", quiet},
	{"resend-last", quiet},
	{"snapshot-tail", calm},
	{"tombstone-skipped", quiet},
	{"live-too-early", large},
	{"transaction-split", quiet},
	{"ids-forgotten", killed},
	{"sequence-reused", killed},
	{"floor-forgotten", window},
	{"resume-ignores-epoch", anew},
	{"ack-before-fsync", outage},
	{"mark-not-fsynced", tailcut},
}

// TestTheCheckerCatchesEveryDeliberateBug: the server makes a mistake and the oracle does
// not see it, or sees one that is not there.
func TestTheCheckerCatchesEveryDeliberateBug(t *testing.T) {
	if testing.Short() {
		t.Skip("many servers")
	}
	y := newTally(t, "deliberate-bugs")
	_, seed := seeded(t)
	var mu sync.Mutex // guards y and caught
	play := func(t *testing.T, x scenario, bug string, seed uint64) oracle.Report {
		r := newRecorder()
		var env []string
		if bug != "" {
			env = []string{"TIDEMARK_BUG=" + bug}
		}
		if err := x.play(t, r, env, seed); err != nil {
			mu.Lock()
			y.skipped = "some"
			mu.Unlock()
			fmt.Fprintf(os.Stderr, "***** SKIPPED: THE DELIBERATE BUG %q IN %q: %v *****\n", bug, x.name, err)
			t.Skip(err)
		}
		h, report := r.check()
		mu.Lock()
		defer mu.Unlock()
		for _, s := range h.Streams {
			y.frames += len(s.Frames)
		}
		y.lives += report.Lives
		return report
	}
	var clean []string
	caught := 0
	t.Run("all", func(t *testing.T) {
		for _, b := range bugs {
			if !slices.Contains(clean, b.in.name) {
				clean = append(clean, b.in.name)
				t.Run("no bug in "+b.in.name, func(t *testing.T) {
					t.Parallel()
					for _, v := range play(t, b.in, "", seed).Violations {
						t.Errorf("VIOLATION %s", v)
					}
				})
			}
			y.rounds++
			t.Run(b.bug, func(t *testing.T) {
				t.Parallel()
				// A mistake shows by chance; on a machine that is busy otherwise less happens in the
				// time of a story.
				var report oracle.Report
				for try := uint64(0); try < 8 && report.Found == 0; try++ {
					report = play(t, b.in, b.bug, seed+try)
				}
				if report.Found == 0 {
					t.Fatalf("a server with the bug %s is found honest in %q", b.bug, b.in.name)
				}
				mu.Lock()
				caught++
				mu.Unlock()
				t.Logf("%d violations, the first: %s", report.Found, report.Violations[0])
			})
		}
	})
	y.extra = fmt.Sprintf(" caught=%d", caught)
}

func playQuiet(t *testing.T, r *recorder, env []string, seed uint64) error {
	return playLoad(t, r, env, seed, load{pause: 6 * time.Millisecond, keys: 300, anew: 2})
}

// playCalm writes so slowly that the change after a snapshot comes by itself.
func playCalm(t *testing.T, r *recorder, env []string, seed uint64) error {
	return playLoad(t, r, env, seed, load{writers: 2, followers: 12, pause: 30 * time.Millisecond, keys: 300, anew: 1})
}

func playLarge(t *testing.T, r *recorder, env []string, seed uint64) error {
	return playLoad(t, r, env, seed, load{pad: 12 << 10, keys: 40})
}

func playLoad(t *testing.T, r *recorder, env []string, seed uint64, l load) error {
	s := newServer(t, r, t.TempDir(), "--log-size", "64KiB")
	s.env = env
	if s.start(fault{what: "the first start"}) != nil {
		return nil
	}
	w := begin(t, r, s, seed, l)
	time.Sleep(1200 * time.Millisecond)
	w.end()
	s.kill()
	return nil
}

func playKilled(t *testing.T, r *recorder, env []string, seed uint64) error {
	s := newServer(t, r, t.TempDir(), "--log-size", "64KiB")
	s.env = env
	if s.start(fault{what: "the first start"}) != nil {
		return nil
	}
	w := begin(t, r, s, seed, load{again: 3})
	for range 3 {
		time.Sleep(400 * time.Millisecond)
		s.kill()
		if s.start(fault{what: "kill -9"}) != nil {
			break
		}
	}
	time.Sleep(300 * time.Millisecond)
	w.end()
	s.kill()
	return nil
}

func playWindow(t *testing.T, r *recorder, env []string, seed uint64) error {
	const window = 200 * time.Millisecond
	r.h.Tombstones = window
	s := newServer(t, r, t.TempDir(), "--tombstones", window.String())
	s.env = env
	if s.start(fault{what: "the first start"}) != nil {
		return nil
	}
	w := begin(t, r, s, seed, load{keys: 60, followers: 10, away: 900 * time.Millisecond})
	time.Sleep(2500 * time.Millisecond)
	w.end()
	s.kill()
	return nil
}

func playAnew(t *testing.T, r *recorder, env []string, seed uint64) error {
	s := newServer(t, r, t.TempDir())
	s.env = env
	if s.start(fault{what: "the first start"}) != nil {
		return nil
	}
	w := begin(t, r, s, seed, load{})
	time.Sleep(700 * time.Millisecond)
	w.pause()
	s.kill()
	s.data = t.TempDir()
	err := s.start(fault{what: "another store", newEpoch: true, mustEpoch: true, loss: true})
	w.resume()
	if err == nil {
		time.Sleep(700 * time.Millisecond)
		w.end()
	}
	s.kill()
	return nil
}

// onForgetful starts a server on a disk that forgets what was not flushed; nil where it
// does not start, which was noted.
func onForgetful(t *testing.T, r *recorder, env []string) (*machine, *server, error) {
	m, err := newMachine(t)
	if err != nil {
		return nil, nil, err
	}
	if m.disk == nil {
		return nil, nil, errors.New("without FUSE a disk forgets nothing")
	}
	s := newServer(t, r, m.data(), "--disk-reserve", "1MiB")
	s.env = env
	if s.start(fault{what: "the first start"}) != nil {
		return m, nil, nil
	}
	return m, s, nil
}

func playOutage(t *testing.T, r *recorder, env []string, seed uint64) error {
	m, s, err := onForgetful(t, r, env)
	if err != nil || s == nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 5))
	w := begin(t, r, s, seed, load{})
	for range 2 {
		time.Sleep(500 * time.Millisecond)
		if err := m.cut(s, 1+rng.IntN(10), rng); err != nil {
			return err
		}
		if err := m.on(); err != nil {
			return err
		}
		if s.start(fault{what: "a power cut"}) != nil {
			return nil // which is a violation, and was noted
		}
	}
	w.end()
	s.kill()
	return nil
}

// playTailCut: the power goes when nothing was written for a while, and the disk turns
// out to have lost what it had said was safe. Nobody can bring that back; but a good
// server knows that it is missing, and does not start.
func playTailCut(t *testing.T, r *recorder, env []string, seed uint64) error {
	m, s, err := onForgetful(t, r, env)
	if err != nil || s == nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 6))
	w := begin(t, r, s, seed, load{followers: 2})
	time.Sleep(600 * time.Millisecond)
	w.end()
	time.Sleep(1200 * time.Millisecond) // what was acknowledged is older than a second now
	m.disk.powerOff(nil)
	if err := m.cut(s, 1, rng); err != nil {
		return err
	}
	if err := m.on(); err != nil {
		return err
	}
	if err := loseTail(m.data(), 3); err != nil {
		return err
	}
	began := r.now()
	s.spawn(fault{})
	if err := s.ready(t.Context(), readyWithin); err != nil {
		if out := s.out.String(); s.alive() || s.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(out, "damage") {
			r.problem("start", "it must refuse to start with exit code 1 and name the damage: %v", err)
		}
	} else {
		_ = s.started(fault{what: "a power cut and a lost end of the log", look: true}, began) // recorded
	}
	s.kill()
	return nil
}

// loseTail takes the last records off the newest file of the log, as if they had never
// been written.
func loseTail(data string, records int) error {
	files, err := filepath.Glob(filepath.Join(data, "nats", "jetstream", "$G", "streams", "LOG", "msgs", "*.blk"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no file of the log below %s: %w", data, err)
	}
	number := func(path string) int {
		n, _ := strconv.Atoi(strings.TrimSuffix(filepath.Base(path), ".blk"))
		return n
	}
	slices.SortFunc(files, func(a, b string) int { return number(a) - number(b) })
	newest := files[len(files)-1]
	b, err := os.ReadFile(newest)
	if err != nil {
		return err
	}
	begins := recordsOf(b)
	if len(begins) <= records {
		return fmt.Errorf("%s has only %d records", newest, len(begins))
	}
	return os.Truncate(newest, int64(begins[len(begins)-records]))
}
