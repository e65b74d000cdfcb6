package transport_test

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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// BenchmarkFollowers delivers b.N changes to 1,000 followers of one collection, 20
// changes a second. The followers are another process, so the CPU is the server's, from
// the write to the socket. Say how many: -benchtime=100000x takes 5 s.
func BenchmarkFollowers(b *testing.B) {
	for _, tr := range transports {
		b.Run(tr, func(b *testing.B) { benchmarkFollowers(b, tr, 1000) })
	}
}

func benchmarkFollowers(b *testing.B, tr string, followers int) {
	s := open(b, settings{})
	runtime.GC()
	before := memory()
	crowd := newCrowd(b, s, tr, followers)
	s.sessions(followers)
	time.Sleep(500 * time.Millisecond) // the ticks
	runtime.GC()
	runtime.GC() // what a sync.Pool holds goes with the second
	idle := (memory() - before) / int64(followers)
	changes := (b.N + followers - 1) / followers
	pad := strings.Repeat("x", 150)
	crowd.say("begin")
	b.ResetTimer()
	cpu := cpuTime()
	next := time.Now()
	for i := range changes {
		time.Sleep(time.Until(next))
		next = next.Add(50 * time.Millisecond)
		write(b, s.hub, "todos", fmt.Sprint(i%100), fmt.Sprintf(`{"t":%d,"pad":%q}`, time.Now().UnixNano(), pad))
	}
	result := crowd.end(changes * followers)
	cpu = cpuTime() - cpu
	b.StopTimer()
	if result.Deliveries != changes*followers {
		b.Errorf("%d deliveries of %d", result.Deliveries, changes*followers)
	}
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(result.Deliveries), "cpu-ns/delivery")
	b.ReportMetric(float64(result.P50.Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(result.P99.Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(idle), "idle-B/follower")
}

// noLimits are beyond what a benchmark does: what is measured is not when a tenant is refused.
var noLimits = hub.Limits{Writes: 1 << 30, Bytes: 1 << 50, Rows: 1 << 40, Size: 1 << 50}

// BenchmarkSnapshot sends 100,000 rows of 200 bytes to one SSE client.
func BenchmarkSnapshot(b *testing.B) {
	s := open(b, settings{})
	pad := strings.Repeat("x", 188)
	for i := 0; i < 100_000; i += 500 {
		req := hub.Request{Tenant: "acme"}
		for j := range 500 {
			req.Writes = append(req.Writes, hub.Write{Collection: "todos", Op: "put", Key: fmt.Sprint("key", i+j), Value: []byte(`{"pad":"` + pad + `"}`)})
		}
		if _, err := s.hub.Write(b.Context(), hub.Everything, req); err != nil {
			b.Fatal(err)
		}
	}
	var first, bytes atomic.Int64
	b.ResetTimer()
	for range b.N {
		start := time.Now()
		c, err := s.dial(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		io.WriteString(c, "GET /v1/acme/feed?c=todos HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
		buf := make([]byte, 256<<10)
		tail := make([]byte, 0, 512<<10)
		for n := 0; ; n++ {
			m, err := c.Read(buf)
			if err != nil {
				b.Fatal(err)
			}
			bytes.Add(int64(m))
			if n == 0 {
				first.Add(int64(time.Since(start)))
			}
			tail = append(tail[:0], append(tail[max(0, len(tail)-100):], buf[:m]...)...)
			if strings.Contains(string(tail), "event: live") {
				break
			}
		}
		c.Close()
	}
	b.StopTimer()
	b.ReportMetric(float64(first.Load())/float64(b.N)/1e6, "first-byte-ms")
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "total-ms")
	b.SetBytes(bytes.Load() / int64(b.N))
}

// BenchmarkPost writes b.N single changes over 64 connections. The clients are in the
// same process; the log is in memory.
func BenchmarkPost(b *testing.B) {
	s := open(b, settings{hub: hub.Options{Limits: noLimits, Memory: 1 << 40, Log: 1 << 40}})
	const connections = 64
	var n atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range connections {
		c, err := s.dial(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			defer c.Close()
			r := bufio.NewReader(c)
			var request bytes.Buffer
			for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
				body := changes(put(fmt.Sprint(i%10_000), `{"title":"milk","done":false,"note":"`+strings.Repeat("x", 100)+`"}`))
				request.Reset()
				fmt.Fprintf(&request, "POST /v1/acme/changes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				c.Write(request.Bytes())
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					b.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				if resp.StatusCode != 200 {
					b.Errorf("status %d", resp.StatusCode)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
}

func write(b *testing.B, h *hub.Hub, collection, key, value string) {
	if _, err := h.Write(b.Context(), hub.Everything, hub.Request{Tenant: "acme", Writes: []hub.Write{{Collection: collection, Op: "put", Key: key, Value: []byte(value)}}}); err != nil {
		b.Fatal(err)
	}
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memory is what heap and stacks hold, in bytes.
func memory() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// crowd is a process with many followers.
type crowd struct {
	b   *testing.B
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

const followersEnv = "TIDEMARK_BENCH_FOLLOWERS"

type crowdResult struct {
	Deliveries int
	P50, P99   time.Duration
}

func newCrowd(b *testing.B, s *site, tr string, n int) *crowd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", followersEnv, strings.TrimPrefix(s.url, "http://"), tr, n))
	cmd.Stderr = os.Stderr
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
	c := &crowd{b, cmd, in, bufio.NewReader(out)}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return c
}

func (c *crowd) say(word string) {
	if _, err := fmt.Fprintln(c.in, word); err != nil {
		c.b.Fatal(err)
	}
	c.line()
}

func (c *crowd) line() string {
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.b.Fatal("the followers: ", err)
	}
	return line
}

// end waits until all is delivered.
func (c *crowd) end(deliveries int) (r crowdResult) {
	fmt.Fprintln(c.in, deliveries)
	if err := json.Unmarshal([]byte(c.line()), &r); err != nil {
		c.b.Fatal(err)
	}
	return r
}

// followers is the other process.
func followers() {
	var address, tr string
	var n int
	if _, err := fmt.Sscan(os.Getenv(followersEnv), &address, &tr, &n); err != nil {
		panic(err)
	}
	var counting atomic.Bool
	var deliveries atomic.Int64
	latencies := make([][]time.Duration, n)
	for i := range n {
		go func() {
			seen := func(b []byte) { // a frame or what stands around it
				if !counting.Load() || !bytes.Contains(b, []byte(`"type":"change"`)) {
					return
				}
				_, rest, _ := bytes.Cut(b, []byte(`"t":`))
				digits, _, _ := bytes.Cut(rest, []byte(","))
				if sent, err := strconv.ParseInt(string(digits), 10, 64); err == nil {
					latencies[i] = append(latencies[i], time.Since(time.Unix(0, sent)))
					deliveries.Add(1)
				}
			}
			var d net.Dialer
			c, err := d.DialContext(context.Background(), "tcp", address)
			if err != nil {
				panic(err)
			}
			if tr == poll {
				followByPolls(c, seen)
				return
			}
			headers := "Accept: text/event-stream\r\n"
			if tr == websocket {
				headers = strings.ReplaceAll(upgrade, "\n", "\r\n")
			}
			io.WriteString(c, "GET /v1/acme/feed?c=todos&heartbeat=30 HTTP/1.1\r\nHost: localhost\r\n"+headers+"\r\n")
			r := bufio.NewReader(c)
			for {
				// A message of a WebSocket has no line end after it; those of this benchmark are
				// one change each, and end with a brace.
				var line []byte
				var err error
				if tr == websocket {
					line, err = r.ReadSlice('}')
					for err == nil && !bytes.HasSuffix(line, []byte("}}")) && r.Buffered() > 0 {
						var more []byte
						more, err = r.ReadBytes('}')
						line = append(bytes.Clone(line), more...)
					}
				} else {
					line, err = r.ReadSlice('\n')
				}
				if err != nil {
					return
				}
				seen(line)
			}
		}()
	}
	in := bufio.NewScanner(os.Stdin)
	in.Scan()
	counting.Store(true)
	fmt.Println("counting")
	in.Scan()
	want, _ := strconv.ParseInt(in.Text(), 10, 64)
	for end := time.Now().Add(10 * time.Second); deliveries.Load() < want && time.Now().Before(end); {
		time.Sleep(2 * time.Millisecond)
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	r := crowdResult{Deliveries: len(all)}
	if len(all) > 0 {
		r.P50, r.P99 = all[len(all)/2], all[len(all)*99/100]
	}
	json.NewEncoder(os.Stdout).Encode(r)
	in.Scan()
}

func followByPolls(c net.Conn, seen func([]byte)) {
	r := bufio.NewReader(c)
	cursor := ""
	for {
		fmt.Fprintf(c, "GET /v1/acme/feed?c=todos&wait=55&cursor=%s HTTP/1.1\r\nHost: localhost\r\n\r\n", cursor)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return
		}
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			seen(lines.Bytes())
			if _, rest, ok := bytes.Cut(lines.Bytes(), []byte(`"cursor":"`)); ok {
				at, _, _ := bytes.Cut(rest, []byte(`"`))
				cursor = string(at)
			}
		}
	}
}
