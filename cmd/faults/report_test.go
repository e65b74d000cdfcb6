package faults_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/cmd/faults/oracle"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "of all that is random; default: the time")
	reportFlag = flag.String("report", "", "a file to append one line for each kind of fault to")
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Tests that run side by side mostly wait; a machine of two processors can do more.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue && runtime.GOMAXPROCS(0) < 4 {
		_ = f.Value.Set("4") // a number
	}
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// seeded is a source of chance that can be played again, and its seed.
func seeded(t testing.TB) (*rand.Rand, uint64) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1)), seed
}

// tally is the line of one kind of fault.
type tally struct {
	t                                 testing.TB
	kind                              string
	rounds                            int
	acknowledged, unknown, duplicates int64
	frames, lives, lost               int
	restarts, epochs                  int
	violations                        int
	ways                              [3]int64
	skipped                           string
	extra                             string
	began                             time.Time
}

// newTally writes its line when the test ends, however it ends.
func newTally(t testing.TB, kind string) *tally {
	y := &tally{t: t, kind: kind, skipped: "nothing", began: time.Now()}
	t.Cleanup(y.tell)
	return y
}

// add takes a campaign in, and fails the test for what it brought to light.
func (y *tally) add(r *recorder, w *workload) oracle.Report {
	y.t.Helper()
	h, report := r.check()
	y.count(h, w, report)
	y.violations += report.Found
	for _, v := range report.Violations {
		y.t.Errorf("VIOLATION %s", v)
	}
	if more := report.Found - len(report.Violations); more > 0 {
		y.t.Errorf("and %d more", more)
	}
	if report.Found > 0 {
		y.t.Logf("the server's last words:\n%s", w.s.out.tail())
	}
	return report
}

func (y *tally) count(h *oracle.History, w *workload, report oracle.Report) {
	y.acknowledged += w.acknowledged.Load()
	y.unknown += w.unknown.Load()
	y.duplicates += w.duplicates.Load()
	for i := range ways {
		y.ways[i] += w.ways[i].Load()
	}
	for _, s := range h.Streams {
		y.frames += len(s.Frames)
	}
	y.lives += report.Lives
	y.lost += report.Lost
	y.restarts += max(len(h.Starts)-1, 0)
	epochs := make(map[string]bool)
	for _, s := range h.Starts {
		if s.Epoch != "" { // else nobody looked
			epochs[s.Epoch] = true
		}
	}
	y.epochs += max(len(epochs)-1, 0)
}

func (y *tally) tell() {
	violations := fmt.Sprint(y.violations)
	if y.t.Failed() && y.violations == 0 {
		violations = "FAILED"
	}
	by := fmt.Sprintf("%s:%d,%s:%d,%s:%d", ways[0], y.ways[0], ways[1], y.ways[1], ways[2], y.ways[2])
	line := fmt.Sprintf("faults: kind=%s rounds=%d acknowledged=%d unknown=%d duplicates=%d by=%s restarts=%d new-epochs=%d lost-as-allowed=%d frames=%d states-compared=%d violations=%s skipped=%s%s seconds=%.0f",
		y.kind, y.rounds, y.acknowledged, y.unknown, y.duplicates, by, y.restarts, y.epochs, y.lost, y.frames, y.lives, violations, y.skipped, y.extra, time.Since(y.began).Seconds())
	y.t.Log(line)
	if *reportFlag == "" {
		return
	}
	f, err := os.OpenFile(*reportFlag, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintln(f, line)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		y.t.Errorf("write the report: %v", err)
	}
}

// skip skips a test, loudly.
func (y *tally) skip(format string, args ...any) {
	y.t.Helper()
	why := fmt.Sprintf(format, args...)
	y.skipped = fmt.Sprintf("%q", why)
	fmt.Fprintf(os.Stderr, "***** SKIPPED: THE FAULTS OF KIND %s: %s *****\n", y.kind, why)
	y.t.Skipf("***** SKIPPED: %s *****", why)
}
