package faults_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/cmd/faults/oracle"
)

const tenant = "acme"

// collections are all that the workload writes to.
var collections = []string{"todos", "projects/7/todos", "notes", "a"}

// load is how hard a workload is.
type load struct {
	writers, followers int
	keys               int           // of each collection
	pause              time.Duration // of a writer between two requests, at most
	again              int           // one answered write in so many is sent again
	anew               int           // one connection in so many begins with nothing
	pad                int           // bytes more in a value, at most
	twice              bool          // what carries the writes may deliver them twice
	timeout            time.Duration // how long a writer waits for an answer
	via                string        // host:port that writes go to; "": the server
	ids                int           // so many the server remembers; 0: all
	ttl                bool          // some rows get a time to live
	away               time.Duration // for how long a follower stays away at most
	quiet              func()        // returns when nothing is on its way any more; nil: nothing ever is
}

func (l load) filled() load {
	set := func(p *int, n int) {
		if *p == 0 {
			*p = n
		}
	}
	set(&l.writers, 4)
	set(&l.followers, 6)
	set(&l.keys, 25)
	set(&l.again, 8)
	set(&l.anew, 7)
	set(&l.pad, 200)
	if l.away == 0 {
		l.away = 45 * time.Millisecond
	}
	if l.pause == 0 {
		l.pause = 15 * time.Millisecond
	}
	if l.timeout == 0 {
		l.timeout = 5 * time.Second
	}
	return l
}

// workload is writers and followers of one server.
type workload struct {
	t    testing.TB
	r    *recorder
	s    *server
	load load
	ctx  context.Context // ends with the test

	gate      sync.RWMutex    // held for reading by an attempt; for writing by pause
	finish    chan struct{}   // closed: no new writes, and what is under way is brought to its end
	settle    <-chan struct{} // closed: followers stay until they have seen the end
	settling  context.Context // the same
	settled   context.CancelFunc
	final     atomic.Pointer[oracle.Snapshot]
	all       []*writer // static; theirs until writers is done
	writers   sync.WaitGroup
	followers sync.WaitGroup
	cancel    context.CancelFunc
	ended     bool

	ids atomic.Int64 // that the server was given, about

	acknowledged, unknown, duplicates, refused, writes atomic.Int64
	ways                                               [3]atomic.Int64 // attempts of each
}

// begin starts a workload.
func begin(t testing.TB, r *recorder, s *server, seed uint64, l load) *workload {
	w := &workload{t: t, r: r, s: s, load: l.filled(), finish: make(chan struct{})}
	w.ctx, w.cancel = context.WithCancel(t.Context())
	w.settling, w.settled = context.WithCancel(w.ctx)
	w.settle = w.settling.Done()
	t.Cleanup(func() {
		w.cancel()
		w.writers.Wait()
		w.followers.Wait()
	})
	for i := range w.load.writers {
		wr := &writer{w: w, name: fmt.Sprintf("w%d", i), rng: rand.New(rand.NewPCG(seed, uint64(1000+i))), seqs: make(map[[2]string]uint64),
			http: &http.Client{Transport: &http.Transport{}, Timeout: w.load.timeout}}
		w.all = append(w.all, wr)
		w.writers.Go(func() {
			wr.run()
			wr.hangUp()
			wr.http.CloseIdleConnections()
		})
	}
	for i := range w.load.followers {
		f := &follower{w: w, rng: rand.New(rand.NewPCG(seed, uint64(2000+i))), tape: tape{r: r, follower: fmt.Sprintf("f%d", i)}}
		r.mu.Lock()
		r.h.Settle = append(r.h.Settle, f.tape.follower)
		r.mu.Unlock()
		w.followers.Go(f.run)
	}
	return w
}

// pause keeps writers from sending, and returns when no write is under way.
func (w *workload) pause() { w.gate.Lock() }

func (w *workload) resume() { w.gate.Unlock() }

// end lets the writers bring what is under way to its end, reads the final rows and
// waits for the followers to come there. The server must be up.
func (w *workload) end() {
	if w.ended {
		return
	}
	w.ended = true
	close(w.finish)
	if !within(60*time.Second, w.writers.Wait) {
		w.r.problem("unanswered", "a minute after the last fault, writes are not answered\n%s", w.s.out.tail())
		w.abandon()
		return
	}
	if w.load.quiet != nil {
		w.load.quiet()
	}
	final, err := w.s.snapshot(w.ctx, collections)
	if err != nil {
		w.r.problem("converge", "the final rows can't be read: %v\n%s", err, w.s.out.tail())
		w.abandon()
		return
	}
	w.final.Store(final)
	w.r.mu.Lock()
	w.r.h.Final = final
	w.r.mu.Unlock()
	w.settled()
	if !within(40*time.Second, w.followers.Wait) {
		w.cancel() // the oracle says who is missing
		w.followers.Wait()
	}
}

// abandon ends a workload whose server can't serve any more.
func (w *workload) abandon() {
	w.cancel()
	w.writers.Wait()
	w.followers.Wait()
}

func within(most time.Duration, wait func()) bool {
	done := make(chan struct{})
	go func() {
		wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(most):
		return false
	}
}

// writer sends one request after another.
type writer struct {
	w    *workload
	name string
	rng  *rand.Rand
	http *http.Client
	n    int
	seqs map[[2]string]uint64 // where it believes that rows are
	done []*sent              // answered, to be sent again

	socket *socket // nil: not open
}

func (wr *writer) run() {
	for {
		select {
		case <-wr.w.finish:
			return
		case <-wr.w.ctx.Done():
			return
		case <-time.After(rand.N(wr.w.load.pause)):
		}
		if len(wr.done) > 0 && wr.rng.IntN(wr.w.load.again) == 0 {
			if s := wr.done[wr.rng.IntN(len(wr.done))]; wr.w.remembered(s) {
				wr.attempt(s)
				continue
			}
		}
		s := wr.make()
		wr.w.writes.Add(1)
		if !wr.bring(s) {
			return
		}
		s.n = wr.w.ids.Load()
		if wr.done = append(wr.done, s); len(wr.done) > 40 {
			wr.done = wr.done[1:]
		}
	}
}

// remembered tells whether the server surely remembers the ids of a request that was
// answered.
func (w *workload) remembered(s *sent) bool {
	return w.load.ids == 0 || w.ids.Load()-s.n < int64(w.load.ids/3)
}

// bring sends a request until it is answered; false if that can't be.
func (wr *writer) bring(s *sent) bool {
	for n := 0; ; n++ {
		if wr.attempt(s) {
			if n == 0 && wr.rng.IntN(2*wr.w.load.again) == 0 {
				wr.attempt(s) // at once again, on purpose
			}
			return true
		}
		select {
		case <-wr.w.ctx.Done():
			return false
		case <-time.After(time.Duration(10+rand.IntN(60)) * time.Millisecond):
		}
	}
}

// make invents a request.
func (wr *writer) make() *sent {
	w := &oracle.Write{Client: wr.name, Atomic: true}
	n := 1
	switch k := wr.rng.IntN(10); {
	case k < 3:
		n = 2 + wr.rng.IntN(5)
	case k < 4:
		n = 2 + wr.rng.IntN(3)
		w.Atomic = false
	}
	used := make(map[[2]string]bool)
	for range n {
		wr.n++
		c := oracle.Change{ID: fmt.Sprintf("%s-m%d", wr.name, wr.n), Collection: collections[wr.rng.IntN(len(collections))]}
		c.Key = fmt.Sprintf("k%d", wr.rng.IntN(wr.w.load.keys))
		k := [2]string{c.Collection, c.Key}
		if used[k] {
			continue // so that what it believes of a row holds within the request
		}
		used[k] = true
		value := fmt.Sprintf(`{"w":"%s-%d","n":%d,"pad":"%s"}`, wr.name, wr.n, wr.n, bytes.Repeat([]byte("x"), wr.rng.IntN(wr.w.load.pad)))
		switch wr.rng.IntN(12) {
		case 0:
			c.Op, c.Value, c.Key = "insert", value, ""
			if wr.rng.IntN(3) > 0 {
				c.Key = k[1] // rarely without, so that the rows stay few
			}
		case 1, 2:
			c.Op, c.Value = "insert", value
		case 3, 4, 5, 6:
			c.Op, c.Value = "put", value
		case 7, 8:
			c.Op, c.Patch = "modify", fmt.Sprintf(`{"w":"%s-%d","p%d":{"n":%d},"pad":null}`, wr.name, wr.n, wr.rng.IntN(4), wr.n)
		case 9:
			c.Op, c.Value = "modify", value
		default:
			c.Op = "remove"
		}
		if wr.rng.IntN(5) == 0 {
			if seq, known := wr.seqs[k]; known && c.Key != "" && (c.Op != "insert" || seq == 0) {
				c.If = &seq
			}
		}
		if wr.w.load.ttl && c.Op != "remove" && wr.rng.IntN(4) == 0 {
			c.TTL = time.Duration([]int{1, 2, 900, 900}[wr.rng.IntN(4)]) * time.Second
		}
		w.Changes = append(w.Changes, c)
	}
	if len(w.Changes) == 1 && wr.rng.IntN(2) == 0 {
		// By the address of its row, which has no client.
		w.Row, w.Client, w.Atomic = true, "", true
		if c := &w.Changes[0]; c.Op == "modify" && c.Patch == "" {
			c.Patch, c.Value = c.Value, ""
		}
	}
	type change struct {
		ID         string          `json:"id"`
		Collection string          `json:"collection"`
		Op         string          `json:"op"`
		Key        string          `json:"key,omitempty"`
		Value      json.RawMessage `json:"value,omitempty"`
		Patch      json.RawMessage `json:"patch,omitempty"`
		If         *uint64         `json:"if,omitempty"`
		TTL        int             `json:"ttl,omitempty"`
	}
	var body struct {
		Client  string   `json:"client"`
		Atomic  bool     `json:"atomic"`
		Changes []change `json:"changes"`
	}
	body.Client, body.Atomic = w.Client, w.Atomic
	for _, c := range w.Changes {
		body.Changes = append(body.Changes, change{c.ID, c.Collection, c.Op, c.Key, json.RawMessage(c.Value), json.RawMessage(c.Patch), c.If, int(c.TTL / time.Second)})
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	wr.w.r.write(w)
	return &sent{write: w, body: b}
}

// attempt sends a request once; false if it must be sent again.
func (wr *writer) attempt(s *sent) bool {
	w := wr.w
	w.gate.RLock()
	defer w.gate.RUnlock()
	a := oracle.Attempt{Sent: w.r.now(), Twice: w.load.twice}
	err := wr.send(&a, s)
	a.Answered = w.r.now()
	if errors.Is(err, errUnread) {
		w.r.problem("answer", "%s/%s: %v", s.write.Client, s.write.Changes[0].ID, err)
	}
	w.r.mu.Lock()
	s.write.Attempts = append(s.write.Attempts, a)
	w.r.mu.Unlock()
	if len(a.Results) == 0 {
		w.unknown.Add(1)
		if err == nil && a.Status >= 400 && a.Status < 500 && a.Status != http.StatusTooManyRequests && a.Status != http.StatusRequestTimeout {
			w.r.problem("answer", "%s/%s: status %d to a good request", s.write.Client, s.write.Changes[0].ID, a.Status)
			return true
		}
		return false
	}
	for i, r := range a.Results {
		if i >= len(s.write.Changes) {
			break
		}
		switch k := [2]string{s.write.Changes[i].Collection, r.Key}; r.Status {
		case "ok":
			w.acknowledged.Add(1)
			w.ids.Add(1)
			wr.seqs[k] = r.Seq
			if s.write.Changes[i].Op == "remove" {
				wr.seqs[k] = 0
			}
		case "duplicate":
			w.duplicates.Add(1)
			if len(s.write.Attempts) > 1 && !slices.ContainsFunc(s.write.Attempts[:len(s.write.Attempts)-1], func(a oracle.Attempt) bool { return len(a.Results) > 0 }) {
				w.acknowledged.Add(1) // for the first time
				w.ids.Add(1)
			}
		case "conflict", "exists", "missing":
			w.refused.Add(1)
			wr.seqs[k] = r.Seq
		}
	}
	return true
}
