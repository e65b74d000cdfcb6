package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/sync/filter"
	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
	"github.com/tidemark-sync/tidemark/transport/follow"
	"github.com/tidemark-sync/tidemark/transport/load"
)

// The benchmarks of the whole write path: hub on the real log. Rates are to be
// compared within one run, where the disk is the same: BenchmarkFsync is the floor.

func TestMain(m *testing.M) {
	if base := os.Getenv(noiseAt); base != "" {
		makeNoise(base)
		return
	}
	os.Exit(m.Run())
}

// noLimits are beyond what a benchmark does: what is measured is not when a tenant is refused.
var noLimits = hub.Limits{Writes: 1 << 30, Bytes: 1 << 50, Rows: 1 << 40, Size: 1 << 50}

// openHub opens a hub on a log in dir.
func openHub(b *testing.B, dir string, opts hub.Options) (h *hub.Hub, stop func()) {
	b.Helper()
	log, err := broker.Open(b.Context(), broker.Options{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	h, err = hub.Open(b.Context(), log, opts)
	if err != nil {
		b.Fatal(err)
	}
	return h, func() {
		if err := h.Drain(context.Background()); err != nil {
			b.Fatal(err)
		}
		if err := log.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// value is a row of about 200 bytes.
func value(n int) []byte {
	return fmt.Appendf(nil, `{"n":%d,"text":%q}`, n, bytes.Repeat([]byte("x"), 180))
}

// BenchmarkFsync appends what so many writes weigh to a file, and syncs it: what the disk alone allows for as many
// writers, where each group holds all of them.
func BenchmarkFsync(b *testing.B) {
	for _, writers := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "file"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			rows := bytes.Repeat(value(1), writers)
			for b.Loop() {
				if _, err := f.Write(rows); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*writers)/b.Elapsed().Seconds(), "changes/s")
		})
	}
}

// BenchmarkWrite is a durable write of one change, in process, by so many writers at once.
func BenchmarkWrite(b *testing.B) {
	for _, writers := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			h, stop := openHub(b, b.TempDir(), hub.Options{Limits: noLimits})
			defer stop()
			keys, values := make([]string, 10_000), make([][]byte, 10_000)
			for i := range keys {
				keys[i], values[i] = fmt.Sprint(i), value(i) // what making them takes is not the hub's
			}
			var n atomic.Int64
			var latency load.Histogram
			b.ResetTimer()
			var all sync.WaitGroup
			for range writers {
				all.Go(func() {
					for {
						i := int(n.Add(1))
						if i > b.N {
							return
						}
						began := time.Now()
						_, err := h.Write(b.Context(), hub.Everything, hub.Request{Tenant: "acme", Atomic: true, Writes: []hub.Write{
							{Collection: "todos", Op: "put", Key: keys[i%len(keys)], Value: values[i%len(keys)]}}})
						if err != nil {
							b.Error(err)
							return
						}
						latency.Add(time.Since(began))
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "changes/s")
			b.ReportMetric(latency.Quantile(0.99).Seconds()*1000, "p99-ms")
		})
	}
}

// BenchmarkPost is a durable write of one change over HTTP, by 64 connections at once;
// empty is the same request to a handler that does nothing.
func BenchmarkPost(b *testing.B) {
	const connections = 64
	run := func(b *testing.B, handler http.Handler) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		server := &http.Server{Handler: handler}
		go server.Serve(transport.Listen(l))
		defer server.Close()
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}}
		defer client.CloseIdleConnections()
		url := "http://" + l.Addr().String() + "/v1/acme/changes"
		var n atomic.Int64
		b.ResetTimer()
		var all sync.WaitGroup
		for range connections {
			all.Go(func() {
				for {
					i := int(n.Add(1))
					if i > b.N {
						return
					}
					body := fmt.Sprintf(`{"changes":[{"collection":"todos","op":"put","key":"%d","value":%s}]}`, i%10_000, value(i))
					res, err := client.Post(url, "application/json", bytes.NewReader([]byte(body)))
					if err != nil {
						b.Error(err)
						return
					}
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if res.StatusCode != http.StatusOK {
						b.Error(res.Status)
						return
					}
				}
			})
		}
		all.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "changes/s")
	}
	b.Run("durable", func(b *testing.B) {
		h, stop := openHub(b, b.TempDir(), hub.Options{Limits: noLimits})
		defer stop()
		s := transport.New(transport.Options{Authorizer: transport.Loopback{}})
		s.Serve(h)
		run(b, s)
	})
	b.Run("empty", func(b *testing.B) {
		run(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, "{}\n")
		}))
	})
}

// BenchmarkReadBack is a start: 1,000,000 changes of 100,000 rows, and as many rows, out
// of the log alone, and out of a checkpoint with little log after it. All files are
// checked.
func BenchmarkReadBack(b *testing.B) {
	const changes, width = 1_000_000, 500
	for _, c := range []struct {
		name    string
		rows    int
		logSize int64
	}{{"log", 100_000, 8 << 30}, {"checkpoint", 100_000, 64 << 20}, {"log,rows=1000000", changes, 8 << 30}, {"checkpoint,rows=1000000", changes, 64 << 20}} {
		b.Run(c.name, func(b *testing.B) {
			dir, rows := b.TempDir(), c.rows
			opts := hub.Options{Limits: noLimits, Log: c.logSize, Memory: 4 << 30}
			h, stop := openHub(b, dir, opts)
			var all sync.WaitGroup
			var n atomic.Int64
			for range 8 {
				all.Go(func() {
					for {
						from := int(n.Add(width)) - width
						if from >= changes {
							return
						}
						req := hub.Request{Tenant: "acme", Atomic: true}
						for i := from; i < from+width; i++ {
							req.Writes = append(req.Writes, hub.Write{Collection: "todos", Op: "put", Key: fmt.Sprint(i % rows), Value: value(i)})
						}
						if _, err := h.Write(b.Context(), hub.Everything, req); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			stop()
			for b.Loop() {
				began := time.Now()
				h, stop := openHub(b, dir, opts)
				b.ReportMetric(time.Since(began).Seconds(), "s/start")
				if got := h.Stats().Rows; got != int64(rows) {
					b.Fatalf("%d rows", got)
				}
				stop()
			}
		})
	}
}

// BenchmarkHiddenRow measures whether a row out of sight is told from one that is not there by how long a refusal
// takes, in process, where a network hides nothing: an insert that meets it beside one whose own value the filter does
// not let through, and a modify of it beside one of nothing, in turns. A row has 4 KiB.
func BenchmarkHiddenRow(b *testing.B) {
	h, stop := openHub(b, b.TempDir(), hub.Options{Limits: noLimits})
	defer stop()
	f, err := filter.Compile(`row.owner == claims.sub`, map[string]any{"sub": "ann"})
	if err != nil {
		b.Fatal(err)
	}
	ann := hub.Everything
	ann.Filters = []hub.RowFilter{{Pattern: "todos", Filter: f}}
	row := func(owner string) []byte {
		return fmt.Appendf(nil, `{"owner":%q,"text":%q}`, owner, strings.Repeat("x", 4<<10))
	}
	mine, theirs, patch := row("ann"), row("bob"), []byte(`{"a":1}`)
	write := func(g hub.Grant, op, key string, value, patch []byte) time.Duration {
		began := time.Now()
		_, _ = h.Write(b.Context(), g, hub.Request{Tenant: "acme", Writes: []hub.Write{{Collection: "todos", Op: op, Key: key, Value: value, Patch: patch}}})
		return time.Since(began)
	}
	write(hub.Everything, "insert", "hidden", theirs, nil)
	if rows := h.Stats().Rows; rows != 1 {
		b.Fatalf("%d rows", rows)
	}
	var took [4][]time.Duration
	for b.Loop() {
		took[0] = append(took[0], write(ann, "insert", "hidden", mine, nil))
		took[1] = append(took[1], write(ann, "insert", "absent", theirs, nil))
		took[2] = append(took[2], write(ann, "modify", "hidden", nil, patch))
		took[3] = append(took[3], write(ann, "modify", "absent", nil, patch))
	}
	if rows := h.Stats().Rows; rows != 1 {
		b.Fatalf("%d rows", rows)
	}
	for i, name := range []string{"insert-hidden", "insert-refused", "modify-hidden", "modify-absent"} {
		slices.Sort(took[i])
		b.ReportMetric(float64(took[i][len(took[i])/2].Nanoseconds())/1000, name+"-µs")
	}
}

// BenchmarkNoisyTenant measures how long a quiet tenant waits from its write to its delivery, while
// another sends ten times the changes that it may and holds as many feeds as it may, as a ratio to how long it waits
// without: the whole program, over HTTP, durable, in turns. The noise is made by a process of its own that takes what
// CPU is left over, as elsewhere it would come from other machines.
func BenchmarkNoisyTenant(b *testing.B) {
	addr := freePort(b)
	serve(b, addr, b.TempDir(), "--admin-listen", "off", "--log-level", "error", "--tenant-limit", fmt.Sprintf("noisy:writes=%d,sessions=%d", noisyWrites, noisyFeeds))
	base := "http://" + addr
	quiet, err := follow.Dial(b.Context(), follow.Options{URL: base, Tenant: "quiet", Transport: follow.SSE, Collections: []follow.Collection{{Name: "todos"}}})
	if err != nil {
		b.Fatal(err)
	}
	defer quiet.Close()
	turn := func(n int) (all []time.Duration) {
		for range n {
			began := time.Now()
			if status := postOne(http.DefaultClient, base, "quiet", 1); status != 200 {
				b.Fatalf("the quiet tenant is answered %d", status)
			}
			for {
				f, err := quiet.Next(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if f.Type == "change" {
					break
				}
			}
			all = append(all, time.Since(began))
			time.Sleep(5 * time.Millisecond)
		}
		return all
	}
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	noise := func() (stop func() (refused int)) {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), noiseAt+"="+base)
		in, err := cmd.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() { // its feeds are there
			b.Fatal("there is no noise")
		}
		return func() (refused int) {
			in.Close()
			lines.Scan()
			refused, _ = strconv.Atoi(lines.Text())
			if err := cmd.Wait(); err != nil {
				b.Fatal(err)
			}
			return refused
		}
	}
	stop := noise()
	time.Sleep(3 * time.Second) // what it had saved up is used up
	stop()
	var with, without []time.Duration
	refused := 0
	for b.Loop() {
		for range 5 {
			without = append(without, turn(200)...)
			stop := noise()
			with = append(with, turn(200)...)
			refused += stop()
		}
	}
	if refused == 0 {
		b.Fatal("the noisy tenant was never refused anything")
	}
	quantile := func(all []time.Duration, q int) float64 {
		slices.Sort(all)
		return float64(all[len(all)*q/100].Microseconds())
	}
	b.ReportMetric(quantile(with, 99)/quantile(without, 99), "p99-with/without")
	b.ReportMetric(quantile(with, 50)/quantile(without, 50), "p50-with/without")
	b.ReportMetric(quantile(without, 99), "p99-µs-without")
	b.ReportMetric(float64(refused), "refused")
}

// What the noisy tenant may: changes a second, and feeds.
const noisyWrites, noisyFeeds = 200, 50

// noiseAt names the server at which a process of this program makes noise, in its environment.
const noiseAt = "TIDEMARK_TEST_NOISE_AT"

// postOne writes a row so many times in one request, and returns the status.
func postOne(client *http.Client, base, tenant string, times int) int {
	const one = `{"op":"put","collection":"todos","key":"1","value":{"a":1}}`
	res, err := client.Post(base+"/v1/"+tenant+"/changes", "application/json", strings.NewReader(`{"changes":[`+strings.Repeat(one+",", times-1)+one+`]}`))
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// makeNoise sends ten times what the noisy tenant may and follows as often as it may, until the input ends. It prints
// a line when it begins, and then how often it was refused.
func makeNoise(base string) {
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	for range noisyFeeds {
		// It reads, and does no more: what is measured is not how fast a follower decodes.
		req, _ := http.NewRequest(http.MethodGet, base+"/v1/noisy/feed?c=todos", nil)
		req.Header.Set("Accept", "text/event-stream")
		if res, err := client.Do(req); err == nil {
			go io.Copy(io.Discard, res.Body)
		}
	}
	fmt.Println("noise")
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	var all sync.WaitGroup
	var refused atomic.Int64
	tick := time.NewTicker(time.Second / 200) // times noisyWrites/20 changes: ten times the limit
	for {
		select {
		case <-tick.C:
			all.Go(func() { // not one after the other: ten times the limit is sent however long the answers take
				if postOne(client, base, "noisy", noisyWrites/20) == http.StatusTooManyRequests {
					refused.Add(1)
				}
			})
		case <-over:
			all.Wait()
			fmt.Println(refused.Load())
			return
		}
	}
}

// TestBenchGetsAndChecksAllThatIsWritten: over each transport, through a storm and a replay.
func TestBenchGetsAndChecksAllThatIsWritten(t *testing.T) {
	addr := freePort(t)
	p := serve(t, addr, t.TempDir(), "--admin-listen", "off")
	for _, tr := range []string{"sse", "websocket", "poll"} {
		out, errs, code := command(t, "bench", "--json", "--url", "http://"+addr, "--transport", tr, "--followers", "6", "--collections", "2",
			"--rate", "200", "--duration", "500ms", "--storm", "50", "--replay", "1000", "--pid", fmt.Sprint(p.cmd.Process.Pid))
		var r struct {
			Changes, Deliveries, Gaps, Doubles, Disorder int
			StormS, ReplayRowsS                          float64
			Server                                       struct{ CPU float64 } `json:"server"`
		}
		if err := json.Unmarshal([]byte(strings.NewReplacer("storm_s", "StormS", "replay_rows_per_s", "ReplayRowsS", "cpu_us_per_change", "CPU").Replace(out)), &r); err != nil || code != 0 {
			t.Fatalf("over %s: exit code %d, %v\n%s\n%s", tr, code, err, out, errs)
		}
		if r.Changes < 20 || r.Deliveries != r.Changes*3 || r.Gaps+r.Doubles+r.Disorder != 0 || r.StormS <= 0 || r.ReplayRowsS <= 0 {
			t.Errorf("over %s: %+v", tr, r)
		}
	}
	for _, wrong := range [][]string{{"--followers", "-1"}, {"--rate", "0"}, {"--collections", "0"}, {"--duration", "0s"}, {"--transport", "pigeon"}, {"--batch", "501"}, {"--pid=-1"}} {
		if _, errs, code := command(t, append([]string{"bench", "--url", "http://" + addr}, wrong...)...); code != 2 || errs == "" {
			t.Errorf("%v: exit code %d\n%s", wrong, code, errs)
		}
	}
}

// TestBenchFollowersComeBackAfterAKill: those who follow get each change once, also where the server is
// killed between; and what is left out on purpose (rows from before, who reads too slowly) does not count.
func TestBenchFollowersComeBackAfterAKill(t *testing.T) {
	addr, data := freePort(t), t.TempDir()
	p := serve(t, addr, data, "--admin-listen", "off")
	for _, tr := range []string{"sse", "websocket", "poll"} {
		here := t.TempDir()
		asked, done := filepath.Join(here, "asked"), filepath.Join(here, "done")
		ctx, cancel := context.WithCancel(t.Context())
		var restart sync.WaitGroup
		restart.Go(func() {
			for ctx.Err() == nil {
				if _, err := os.Stat(asked); err == nil {
					p.kill()
					p = serve(t, addr, data, "--admin-listen", "off")
					_ = os.WriteFile(done, nil, 0o600)
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
		out, errs, code := command(t, "bench", "--json", "--url", "http://"+addr, "--transport", tr, "--followers", "20", "--laggards", "1",
			"--rate", "100", "--duration", "500ms", "--rows", "2000", "--replay", "1000", "--replay-by", "3",
			"--restart", fmt.Sprintf("touch %s; while ! [ -e %s ]; do sleep 0.01; done", asked, done))
		cancel()
		restart.Wait()
		var r struct {
			Changes, Deliveries, Gaps, Doubles, Disorder, Reconnects, Resets int
			RestartS                                                         float64 `json:"restart_s"`
			Server                                                           struct {
				Most int64 `json:"rss_restart"`
			}
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 {
			t.Fatalf("over %s: exit code %d, %v\n%s\n%s", tr, code, err, out, errs)
		}
		if r.Deliveries != r.Changes*19 || r.Gaps+r.Doubles+r.Disorder != 0 || r.Reconnects < 19 || r.Resets != 0 || r.RestartS <= 0 {
			t.Errorf("over %s: %+v", tr, r)
		}
		if runtime.GOOS == "linux" && r.Server.Most < 1<<20 {
			t.Errorf("over %s: nothing of the server's memory: %s", tr, out)
		}
	}
}
