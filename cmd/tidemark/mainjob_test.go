package main_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/transport/follow"
)

// history is a real history of changes: the oracle knows every state that the server
// may ever show.
type history struct {
	collection string
	file       string
	final      map[string]string // key -> blob
	states     map[uint64][]int  // fingerprint of the rows after n transactions -> all such n
	last       int
}

// fingerprint of a set of rows does not depend on their order: it can be kept up as
// they change.
func fingerprint(key string, value []byte) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key))
	h.Write([]byte{0})
	h.Write(value)
	return h.Sum64()
}

// loadHistory unpacks a history and plays it by itself.
func loadHistory(t testing.TB, name string) *history {
	t.Helper()
	packed, err := os.Open(filepath.Join("testdata", name+"-history.ndjson.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	unzip, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	h := &history{file: filepath.Join(t.TempDir(), name+".ndjson"), states: map[uint64][]int{0: {0}}}
	out, err := os.Create(h.file)
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]uint64)
	var state uint64
	lines := bufio.NewScanner(unzip)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if _, err := fmt.Fprintf(out, "%s\n", lines.Bytes()); err != nil {
			t.Fatal(err)
		}
		var line struct {
			Final   map[string]string
			Changes []struct {
				Op, Collection, Key string
				Value               json.RawMessage
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line.Final != nil {
			h.final = line.Final
			continue
		}
		for _, c := range line.Changes {
			h.collection = c.Collection
			state -= rows[c.Key]
			delete(rows, c.Key)
			if c.Op != "remove" {
				rows[c.Key] = fingerprint(c.Key, c.Value)
				state += rows[c.Key]
			}
		}
		h.last++
		h.states[state] = append(h.states[state], h.last)
	}
	if err := errors.Join(lines.Err(), out.Close()); err != nil {
		t.Fatal(err)
	}
	if h.final == nil || len(rows) != len(h.final) {
		t.Fatalf("%s: %d rows, %d in final", name, len(rows), len(h.final))
	}
	return h
}

// place tells after how many transactions the rows were as they are, at the earliest
// after so many as before; an error if they never were.
func (h *history) place(rows *follow.Rows, before int) (int, error) {
	var state uint64
	for row := range rows.All(h.collection) {
		state += fingerprint(row.Key, row.Value)
	}
	all, ok := h.states[state]
	if !ok {
		return 0, fmt.Errorf("%s: %d rows that the server never had together", h.collection, rows.Len(h.collection))
	}
	for _, n := range all {
		if n >= before {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s went back from %d transactions to %d", h.collection, before, all[len(all)-1])
}

// check compares the rows with final.
func (h *history) check(rows *follow.Rows) error {
	if n := rows.Len(h.collection); n != len(h.final) {
		return fmt.Errorf("%s: %d rows instead of %d", h.collection, n, len(h.final))
	}
	for row := range rows.All(h.collection) {
		var value struct{ Blob string }
		if err := json.Unmarshal(row.Value, &value); err != nil {
			return err
		}
		if want := h.final[row.Key]; value.Blob != want {
			return fmt.Errorf("%s: %s ends with %s instead of %s", h.collection, row.Key, value.Blob, want)
		}
	}
	return nil
}

// follower is somebody whose network, and computer, is bad.
type follower struct {
	name      string
	url       string
	histories []*history
	rng       *rand.Rand

	rows    *follow.Rows
	cursors []follow.Collection
	places  map[string]int
	epoch   feed.Epoch

	lives, cuts, fresh, resumed int
}

// errSettled ends a follower that has seen the end.
var errSettled = errors.New("settled")

// restart makes it start anew: what it held is gone.
func (f *follower) restart() {
	f.fresh++
	f.rows, f.cursors, f.places = &follow.Rows{}, nil, make(map[string]int)
	for _, h := range f.histories {
		f.cursors = append(f.cursors, follow.Collection{Name: h.collection})
	}
}

// run follows until done is closed and the end is seen, by any transport, for as long
// as it lasts, over and over.
func (f *follower) run(ctx context.Context, done <-chan struct{}) error {
	f.restart()
	for {
		for1 := time.Duration(5+f.rng.IntN(800)) * time.Millisecond
		select {
		case <-done:
			for1 = time.Minute
		default:
		}
		session, cancel := context.WithTimeout(ctx, for1)
		transport := follow.Transports[f.rng.IntN(len(follow.Transports))]
		err := follow.Follow(session, follow.Options{
			URL: f.url, Tenant: "acme", Collections: f.cursors, Transport: transport,
			Heartbeat: 3 * time.Second, Wait: time.Second, Limit: 1 + f.rng.IntN(300),
		}, func(s follow.Step) error { return f.step(s, done) })
		cancel()
		switch {
		case errors.Is(err, errSettled):
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s: not settled in time: %w", f.name, context.Cause(ctx))
		case !errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("%s by %s: %w", f.name, transport, err)
		}
		f.cuts++
		if f.rng.IntN(6) == 0 {
			f.restart()
		} else {
			f.resumed++
		}
	}
}

func (f *follower) step(s follow.Step, done <-chan struct{}) error {
	for _, frame := range s.Frames {
		if frame.Type == "open" {
			if f.epoch != "" && frame.Epoch != f.epoch {
				return fmt.Errorf("a new epoch %s after %s, though nothing was lost", frame.Epoch, f.epoch)
			}
			f.epoch = frame.Epoch
		}
		f.rows.Apply(frame)
	}
	f.cursors = s.Cursors.Collections()
	if !f.rows.Live() || len(s.Frames) == 0 || s.Frames[0].Type != "live" {
		return nil
	}
	f.lives++
	settled := true
	for _, h := range f.histories {
		n, err := h.place(f.rows, f.places[h.collection])
		if err != nil {
			return fmt.Errorf("at live %s: %w", s.Frames[0].Cursor, err)
		}
		f.places[h.collection] = n
		settled = settled && n == h.last
	}
	select {
	case <-done:
		if settled {
			return errSettled
		}
	default:
	}
	return nil
}

// TestMainJob: followers on bad networks lose or double a change, or see half a
// transaction, while two real histories are imported into a server that is killed.
func TestMainJob(t *testing.T) {
	if testing.Short() {
		t.Skip("minutes of accidents")
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	histories := []*history{loadHistory(t, "chi"), loadHistory(t, "tanstack-db")}
	addr, data := freePort(t), t.TempDir()
	url := "http://" + addr
	// Checkpoints, trims and forgotten tombstones come often, so that they meet the accidents.
	flags := []string{"--log-size", "256KiB", "--tombstones", "3s", "--log-level", "warn"}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	kills, atLeast := 0, rounds(8)
	var imported, restarts atomic.Int32
	var followers []*follower
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
		t.Logf("%d kills of the server, %d of an import, %d imports done", kills, restarts.Load(), imported.Load())
		for _, f := range followers {
			t.Logf("%s: %d connections cut, %d times resumed, %d times begun anew, %d states checked at live, at %v", f.name, f.cuts, f.resumed, f.fresh, f.lives, f.places)
		}
	}()

	server := serve(t, addr, data, flags...)
	done := make(chan struct{})
	fail := make(chan error, 100)
	for i := range 9 {
		f := &follower{name: fmt.Sprintf("follower %d", i), url: url, histories: histories, rng: rand.New(rand.NewPCG(seed, uint64(100+i)))}
		followers = append(followers, f)
		running.Go(func() {
			if err := f.run(ctx, done); err != nil {
				fail <- err
			}
		})
	}

	// Two imports, each killed now and then and started again where it was.
	for i, h := range histories {
		rng := rand.New(rand.NewPCG(seed, uint64(200+i)))
		state := filepath.Join(t.TempDir(), "state")
		running.Go(func() {
			defer imported.Add(1)
			for n := 0; ctx.Err() == nil; n++ {
				alone := 50 + rng.IntN(600)
				if n >= atLeast {
					alone = 1e6 // it has had its share: it comes through by itself now
				}
				p := start(t, "import", "--url", url, "--tenant", "acme", "--state", state, h.file)
				select {
				case <-p.exited:
					if code := p.cmd.ProcessState.ExitCode(); code != 0 {
						fail <- fmt.Errorf("import of %s: exit code %d\n%s", h.collection, code, p.out)
					}
					return
				case <-time.After(time.Duration(alone) * time.Millisecond):
					p.kill()
					restarts.Add(1)
				}
			}
		})
	}

	// The server is killed while the imports go on, and a few times after.
	for left := atLeast; left > 0; {
		select {
		case err := <-fail:
			t.Fatalf("%v\nserver:\n%s", err, server.out)
		case <-time.After(time.Duration(50+rng.IntN(1200)) * time.Millisecond):
		}
		if imported.Load() == int32(len(histories)) || kills >= 4*atLeast {
			left -= 4
		}
		server.kill()
		kills++
		server = serve(t, addr, data, flags...)
	}
	close(done)
	ended := make(chan struct{})
	go func() {
		running.Wait()
		close(ended)
	}()
	select {
	case err := <-fail:
		t.Fatalf("%v\nserver:\n%s", err, server.out)
	case <-ended:
	}
	select {
	case err := <-fail:
		t.Fatal(err)
	default:
	}
	for _, f := range followers {
		for _, h := range histories {
			if err := h.check(f.rows); err != nil {
				t.Errorf("%s: %v", f.name, err)
			}
		}
	}

	// Whoever starts now has the same, by each transport.
	for _, transport := range follow.Transports {
		rows := &follow.Rows{}
		var collections []follow.Collection
		for _, h := range histories {
			collections = append(collections, follow.Collection{Name: h.collection})
		}
		err := follow.Follow(ctx, follow.Options{URL: url, Tenant: "acme", Collections: collections, Transport: transport}, func(s follow.Step) error {
			for _, frame := range s.Frames {
				rows.Apply(frame)
			}
			if rows.Live() {
				return errSettled
			}
			return nil
		})
		if !errors.Is(err, errSettled) {
			t.Fatalf("%s: %v", transport, err)
		}
		for _, h := range histories {
			if err := h.check(rows); err != nil {
				t.Errorf("fresh by %s: %v", transport, err)
			}
		}
	}
	if code := server.stop(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM:\n%s", code, server.out)
	}
}
