package faults_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/cmd/faults/oracle"
)

var damageRounds = flag.Int("rounds.damage", 10, "how many damaged stores are opened")

// notData are files whose loss costs nothing: the lock and the socket are made anew, and
// so is the secret, which keys nothing that is stored. A server may change them before
// it refuses to start.
var notData = []string{"LOCK", "secret", "admin.sock"}

// wound is one way to damage a file.
type wound struct {
	what string
	// of returns what is left of a file; nil if the wound would change nothing.
	of func(b []byte, rng *rand.Rand) []byte
}

var deleted = []byte("deleted")

var wounds = []wound{
	{"one bit flipped", func(b []byte, rng *rand.Rand) []byte {
		if len(b) == 0 {
			return nil
		}
		c := slices.Clone(b)
		c[rng.IntN(len(c))] ^= 1 << rng.IntN(8)
		return c
	}},
	{"a range zeroed", func(b []byte, rng *rand.Rand) []byte {
		if len(b) == 0 {
			return nil
		}
		c := slices.Clone(b)
		from := rng.IntN(len(c))
		clear(c[from:min(len(c), from+1+rng.IntN(4096))])
		if bytes.Equal(b, c) {
			return nil
		}
		return c
	}},
	{"truncated", func(b []byte, rng *rand.Rand) []byte {
		if len(b) == 0 {
			return nil
		}
		if rng.IntN(2) == 0 {
			return slices.Clone(b[:len(b)-1-rng.IntN(min(len(b), 600))])
		}
		return slices.Clone(b[:rng.IntN(len(b))])
	}},
	{"deleted", func([]byte, *rand.Rand) []byte { return deleted }},
}

// digits are what names of one kind differ in: numbers, and the epoch of a segment of
// the history.
var digits = regexp.MustCompile(`[0-9]+(-[0-9]+){4}-[0-9a-z]+|[0-9]+`)

// kinds groups the files below a directory: those that differ in a number are of one.
func kinds(t testing.TB, dir string) (names []string, files map[string][]string) {
	files = make(map[string][]string)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		kind := digits.ReplaceAllString(rel, "#")
		if files[kind] == nil {
			names = append(names, kind)
		}
		files[kind] = append(files[kind], rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, files
}

// treeSum is a digest of all data below a directory.
func treeSum(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || slices.Contains(notData, e.Name()) {
			return err
		}
		b, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(b), b)
		return err
	})
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

// most is how many violations a test of damage goes on after.
const most = 20

// store is one that was filled and stopped, and all that is known of it.
type store struct {
	dir     string
	history *oracle.History
	answers []*sent
	past    []past // its history
}

// storeFlags are what a store's servers are started with.
var storeFlags = []string{"--log-size", "48KiB", "--history", "forever"}

// fill makes a store; stop ends its server.
func fill(t testing.TB, y *tally, seed uint64, stop func(*server)) *store {
	r := newRecorder()
	st := &store{dir: filepath.Join(t.TempDir(), "data")}
	s := newServer(t, r, st.dir, storeFlags...)
	if err := s.start(fault{what: "the first start"}); err != nil {
		t.Fatal(err)
	}
	w := begin(t, r, s, seed, load{followers: 2, pause: 4 * time.Millisecond})
	time.Sleep(1200 * time.Millisecond)
	s.stop()
	if err := s.start(fault{what: "a restart"}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond)
	w.end()
	st.remember(t, s, r.h.Writes)
	stop(s)
	if y.add(r, w).Found > 0 {
		t.FailNow()
	}
	st.history, _ = r.check()
	for _, wr := range w.all {
		for _, x := range wr.done {
			// What was refused would be decided anew.
			if last := x.write.Attempts[len(x.write.Attempts)-1]; len(last.Results) > 0 && !slices.ContainsFunc(last.Results, func(r oracle.Result) bool { return r.Status != "ok" && r.Status != "duplicate" }) {
				st.answers = append(st.answers, x)
			}
		}
	}
	return st
}

// TestDamage: a file below the data directory is harmed while the server is down, and
// the server starts and serves less, or something else, without a word.
func TestDamage(t *testing.T) {
	if testing.Short() {
		t.Skip("many restarts")
	}
	y := newTally(t, "damage")
	rng, seed := seeded(t)
	refused, healed, gaps := 0, 0, 0
	defer func() {
		y.extra = fmt.Sprintf(" refused=%d healed=%d history-told=%d", refused, healed, gaps)
	}()
	outcomes := make(map[string]string)
	var st *store
	var names []string
	var files map[string][]string
	var deck []int
	for n := range *damageRounds {
		if n%48 == 0 { // a store of its own now and then
			if n/48%2 == 0 {
				st = fill(t, y, seed+uint64(n), func(s *server) { s.stop() })
			} else {
				st = fill(t, y, seed+uint64(n), func(s *server) { s.kill() })
			}
			names, files = kinds(t, st.dir)
		}
		if len(deck) == 0 {
			deck = rng.Perm(len(names) * len(wounds))
		}
		at := deck[0] % (len(names) * len(wounds))
		deck = deck[1:]
		kind, wd := names[at/len(wounds)], wounds[at%len(wounds)]
		file := files[kind][rng.IntN(len(files[kind]))]
		y.rounds++
		outcome := st.harm(t, y, rng, file, wd)
		switch outcome {
		case "refused":
			refused++
		case "healed":
			healed++
		case "told":
			gaps++
		}
		k := fmt.Sprintf("%-60s %-16s", kind, wd.what)
		if !strings.Contains(outcomes[k], outcome) {
			outcomes[k] += " " + outcome
		}
		if y.violations > 2*most {
			break
		}
	}
	var table strings.Builder
	for _, k := range slices.Sorted(func(yield func(string) bool) {
		for k := range outcomes {
			if !yield(k) {
				return
			}
		}
	}) {
		fmt.Fprintf(&table, "%s%s\n", k, outcomes[k])
	}
	t.Logf("what became of it:\n%s", &table)
}

// harm damages a copy of the store and starts a server on it.
func (st *store) harm(t testing.TB, y *tally, rng *rand.Rand, file string, wd wound) (outcome string) {
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := run("cp", "-a", st.dir, dir); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(filepath.Dir(dir))
	path := filepath.Join(dir, file)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	left := wd.of(whole, rng)
	switch {
	case left == nil:
		return "untouched"
	case len(left) > 0 && &left[0] == &deleted[0]:
		err = os.Remove(path)
	default:
		err = os.WriteFile(path, left, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	what := fmt.Sprintf("%s of %d bytes: %s", file, len(whole), wd.what)

	r := newRecorder()
	r.h = *st.history
	r.h.Starts = slices.Clone(st.history.Starts)
	r.h.Final = nil // the last start's rows are looked at instead
	r.epoch = r.epoch.Add(-st.history.Final.Taken - time.Second)
	s := newServer(t, r, dir, storeFlags...)
	defer func() {
		if s.process != nil {
			s.kill()
		}
		y.restarts += len(r.h.Starts) - len(st.history.Starts)
		report := oracle.Check(&r.h)
		y.violations += report.Found
		y.lost += report.Lost
		for _, v := range report.Violations {
			t.Errorf("VIOLATION after %s: %s", what, v)
		}
		if report.Found > 0 {
			outcome = "VIOLATION"
			t.Logf("the server's last words:\n%s", s.out.tail())
		}
	}()
	ofHistory := strings.HasPrefix(file, "history/")
	named, verdict := true, ""
	if ofHistory {
		var code int
		code, verdict = verify(t, dir)
		named = code == 1 && strings.Contains(verdict, "history: ")
	}
	before, err := treeSum(dir)
	if err != nil {
		t.Fatal(err)
	}
	began := r.now()
	s.spawn(fault{})
	err = s.ready(t.Context(), 3*readyWithin)
	if err == nil {
		if s.started(fault{what: what, look: true}, began) != nil {
			return "not served"
		}
		st.again(t, r, s, rng, what)
		whole := st.checkHistory(r, s, rng, what)
		if !named {
			r.problem("history", "after %s: verify must have the exit code 1 and name it: %s", what, verdict)
		}
		if !whole && !ofHistory {
			r.problem("history", "after %s: the history lacks something, and was not harmed", what)
		}
		// What was read once must be there again.
		s.stop()
		if s.start(fault{what: what + ", and a restart", look: true}) != nil {
			return "not served again"
		}
		if st.checkHistory(r, s, rng, what+", and a restart"); !whole {
			return "told"
		}
		return "healed"
	}
	if ofHistory {
		r.problem("history", "after %s: rows and feeds do not need it, and it does not start: %v", what, err)
		return "refused"
	}
	out := s.out.String()
	if s.alive() || s.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(out, "damage") {
		r.problem("start", "after %s: it must refuse to start with exit code 1 and name the damage: %v", what, err)
		return "refused badly"
	}
	if after, err := treeSum(dir); err != nil || after != before {
		r.problem("start", "after %s: a server that refused to start has changed the files: %v\n%s", what, err, out)
	}
	f := fault{what: what + ", accepted", newEpoch: true, loss: true, holes: true, flags: []string{"--accept-data-loss"}}
	if s.start(f) != nil {
		return "refused for good"
	}
	if st.epoch() != r.h.Starts[len(r.h.Starts)-1].Epoch {
		if err := kept(dir, left); err != nil {
			r.problem("start", "after %s: %v", what, err)
		}
	}
	s.stop()
	if s.start(fault{what: what + ", accepted, and a restart", look: true}) != nil {
		return "not served again"
	}
	return "refused"
}

func (st *store) epoch() string { return st.history.Starts[len(st.history.Starts)-1].Epoch }

// kept tells whether a damaged file is below aside, as it was found.
func kept(dir string, left []byte) error {
	found, same := 0, false
	err := filepath.WalkDir(filepath.Join(dir, "aside"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		found++
		b, err := os.ReadFile(path)
		same = same || bytes.Equal(b, left)
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("a new epoch, and nothing is aside: %w", err)
	case found == 0:
		return errors.New("a new epoch, and nothing is aside")
	case !same && string(left) != string(deleted):
		return fmt.Errorf("the damaged file is not among the %d that are aside", found)
	}
	return nil
}

// again sends some writes again that were answered before: they must be remembered.
func (st *store) again(t testing.TB, r *recorder, s *server, rng *rand.Rand, what string) {
	wr := &writer{w: &workload{t: t, s: s, ctx: t.Context()}, rng: rng, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}}
	defer wr.hangUp()
	for range 3 {
		x := st.answers[rng.IntN(len(st.answers))]
		first := len(x.write.Attempts) - 1
		var a oracle.Attempt
		if err := wr.send(&a, x); err != nil {
			if !errors.Is(err, context.Canceled) {
				r.problem("answer", "after %s: a write that was answered before is not answered: %v", what, err)
			}
			return
		}
		for i, was := range x.write.Attempts[first].Results {
			if was.Status != "ok" && was.Status != "duplicate" {
				continue
			}
			if i >= len(a.Results) || a.Results[i].Status != "duplicate" || a.Results[i].Seq != was.Seq || a.Results[i].Value != was.Value {
				r.problem("answer", "after %s: %s/%s was answered %+v, and now %d %+v", what, x.write.Client, was.ID, was, a.Status, a.Results)
				break
			}
		}
	}
}
