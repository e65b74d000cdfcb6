package faults_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var diskRounds = flag.Int("rounds.disk", 3, "how often a disk is full or ill for a while")

// place is where a store lies, and how its disk can be made to fail.
type place struct {
	name string
	open func(t testing.TB) (*bed, error)
	ills []string
}

// bed is an open place.
type bed struct {
	data  string
	sick  func(ill string) error // makes it so
	heal  func() error
	close func()
}

var places = []place{
	{"tmpfs", tmpfsBed, []string{"nearly full", "full"}},
	{"ext4", ext4Bed, []string{"nearly full", "full"}},
	{"passthrough", passthroughBed, []string{writeEIO.String(), syncEIO.String(), writeENOSPC.String(), shortWrites.String(), slowSync.String()}},
}

// reserve is the server's --disk-reserve in these tests.
const reserve = 4 << 20

// hog fills a file system by another file: up to the reserve, or to the last byte.
func hog(mnt, ill string) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(mnt, &st); err != nil {
		return err
	}
	free := int64(st.Bavail) * int64(st.Bsize)
	if ill == "nearly full" {
		free -= reserve / 2
	}
	f, err := os.Create(filepath.Join(mnt, "hog"))
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	for i := range b {
		b[i] = byte(i) // no hole
	}
	for free > 0 || ill == "full" {
		n, err := f.Write(b)
		free -= int64(n)
		if err != nil && ill == "full" {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return f.Sync()
}

func hogBed(mnt string, close func()) *bed {
	return &bed{data: filepath.Join(mnt, "data"),
		sick: func(ill string) error { return hog(mnt, ill) },
		heal: func() error { return os.Remove(filepath.Join(mnt, "hog")) }, close: close}
}

func tmpfsBed(t testing.TB) (*bed, error) {
	if os.Getuid() != 0 {
		return nil, errNotRoot
	}
	mnt := t.TempDir()
	if err := syscall.Mount("tmpfs", mnt, "tmpfs", 0, "size=32m"); err != nil {
		return nil, err
	}
	off := func() { _ = syscall.Unmount(mnt, syscall.MNT_DETACH) }
	t.Cleanup(off)
	return hogBed(mnt, off), nil
}

func ext4Bed(t testing.TB) (*bed, error) {
	m, err := newMachine(t)
	if err != nil {
		return nil, err
	}
	return hogBed(m.mnt, m.off), nil
}

func passthroughBed(t testing.TB) (*bed, error) {
	if os.Getuid() != 0 {
		return nil, errNotRoot
	}
	p := &passthrough{}
	root, err := p.root(t.TempDir())
	if err != nil {
		return nil, err
	}
	mnt := t.TempDir()
	off, err := mountFuse(t, mnt, root)
	if err != nil {
		return nil, err
	}
	t.Cleanup(off)
	return &bed{data: filepath.Join(mnt, "data"), close: off,
		sick: func(ill string) error {
			for a := healthy; a <= slowSync; a++ {
				if a.String() == ill {
					p.set(a)
				}
			}
			return nil
		},
		heal: func() error { p.set(healthy); return nil }}, nil
}

// TestDisk: while the disk is full or ill an acknowledged write is lost, reads stop, or
// the server needs a restart to write again.
func TestDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("takes its time")
	}
	y := newTally(t, "disk")
	rng, seed := seeded(t)
	type round struct {
		place *place
		ill   string
	}
	var deck []round
	var skipped []string
	done := make(map[string]int)
	defer func() { y.extra = fmt.Sprintf(" done=%q", fmt.Sprint(done)) }()
	for y.rounds < *diskRounds && !t.Failed() {
		// All that there is comes in turn, grouped by place so that a server lives through
		// several ills.
		if len(deck) == 0 {
			for _, at := range rng.Perm(len(places)) {
				for _, i := range rng.Perm(len(places[at].ills)) {
					deck = append(deck, round{&places[at], places[at].ills[i]})
				}
			}
		}
		at := deck[0].place
		n := 0
		for n < len(deck) && deck[n].place == at && n < *diskRounds-y.rounds {
			n++
		}
		if *diskRounds < 9 {
			n = min(n, 2) // so that a short run sees several places
		}
		rounds := deck[:n]
		deck = slices.DeleteFunc(slices.Clone(deck[n:]), func(r round) bool { return *diskRounds < 9 && r.place == at })
		b, err := at.open(t)
		if err != nil {
			if !slices.Contains(skipped, at.name) {
				skipped = append(skipped, at.name)
				fmt.Fprintf(os.Stderr, "***** SKIPPED: A FULL OR ILL DISK ON %s: %v *****\n", at.name, err)
				y.skipped = strings.Join(skipped, ",")
			}
			if y.rounds += n; len(skipped) == len(places) {
				y.skip("no disk of our own: %v", err)
			}
			continue
		}
		r := newRecorder()
		s := newServer(t, r, b.data, "--log-size", "64KiB", "--disk-reserve", fmt.Sprint(reserve, "B"))
		if err := s.start(fault{what: "the first start"}); err != nil {
			t.Fatal(err)
		}
		w := begin(t, r, s, seed+uint64(y.rounds), load{followers: 4, timeout: 20 * time.Second})
		pid := s.cmd.Process.Pid
		for _, x := range rounds {
			y.rounds++
			done[at.name+": "+x.ill]++
			ill(t, y, r, s, w, b, x.ill, rng)
			if !s.alive() || s.cmd.Process.Pid != pid {
				r.problem("start", "the server ended over %s on %s: %s", x.ill, at.name, s.out.tail())
				break
			}
		}
		if s.alive() {
			w.end()
			s.stop()
			// All that was acknowledged is on the disk, too.
			_ = s.start(fault{what: "an ill disk and a restart", look: true}) // recorded
			s.stop()
		}
		y.add(r, w)
		b.close()
	}
}

// ill lets a server live through one ailment of its disk.
func ill(t testing.TB, y *tally, r *recorder, s *server, w *workload, b *bed, what string, rng *rand.Rand) {
	time.Sleep(time.Duration(100+rng.IntN(300)) * time.Millisecond)
	began := time.Now()
	if err := b.sick(what); err != nil {
		t.Fatal(err)
	}
	full := strings.HasSuffix(what, "full")
	lasts := time.Duration(1500+rng.IntN(1500)) * time.Millisecond
	if full {
		lasts += 2 * time.Second
	}
	if what == slowSync.String() {
		lasts += 5 * time.Second
	}
	refused, read := "", false
	for n := 0; time.Since(began) < lasts; n++ {
		if full && refused == "" {
			status, header, _ := probe(s, n)
			if status == http.StatusServiceUnavailable {
				refused = "without Retry-After"
				if header.Get("Retry-After") != "" {
					refused = "well"
				}
			}
		}
		if rows, err := rowsOf(s); err != nil {
			r.problem("live", "%s: a row can't be read: %v", what, err)
		} else if rows {
			read = true
		}
		time.Sleep(50 * time.Millisecond)
	}
	if full && refused != "well" {
		r.problem("start", "%s for %v: writes were not refused by 503 with Retry-After (%q)", what, lasts, refused)
	}
	if !read {
		r.problem("live", "%s for %v: nothing could be read", what, lasts)
	}
	if err := b.heal(); err != nil {
		t.Fatal(err)
	}
	over := time.Now()
	var last string
	for n := 0; ; n++ {
		status, _, err := probe(s, 1000+n)
		if status == http.StatusOK {
			break
		}
		last = fmt.Sprint(status, err)
		if time.Since(over) > readyWithin || !s.alive() {
			r.problem("start", "%s: %v after its end writes do not work again: %s\n%s", what, time.Since(over).Round(time.Millisecond), last, s.out.tail())
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	if back := time.Since(over); back > time.Second {
		t.Logf("after %s it took %v until a write was taken", what, back.Round(time.Millisecond))
	}
}

// probeCollection is beside those of the workload: what probes write is no part of the history.
const probeCollection = "probe"

func probe(s *server, n int) (status int, header http.Header, err error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 12 * time.Second}
	req, err := http.NewRequest(http.MethodPut, fmt.Sprintf("%s/v1/%s/rows/%s?key=k", s.url(), tenant, probeCollection), strings.NewReader(fmt.Sprintf(`{"n":%d}`, n)))
	if err != nil {
		return 0, nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, res.Header, err
}

// rowsOf reads some rows.
func rowsOf(s *server) (bool, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	res, err := client.Get(s.url() + "/v1/" + tenant + "/rows/" + collections[0] + "?limit=5")
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return false, fmt.Errorf("status %d", res.StatusCode)
	}
	var answer struct{ Rows []json.RawMessage }
	err = json.NewDecoder(res.Body).Decode(&answer)
	return len(answer.Rows) > 0, err
}
