package main_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is the whole program, built once for all tests that run it as users do, and
// as fast; with TIDEMARK_RACE=1 with the race detector in it.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "tidemark-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "tidemark")
	args := []string{"build", "-o", path, "."}
	if os.Getenv("TIDEMARK_RACE") == "1" {
		args = slices.Insert(args, 1, "-race")
	}
	out, err := exec.Command("go", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// rounds is how often the tests of accidents have theirs: TIDEMARK_ROUNDS, else few.
func rounds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("TIDEMARK_ROUNDS")); err == nil && n > 0 {
		return n
	}
	return few
}

// process is a run of the program.
type process struct {
	cmd    *exec.Cmd
	out    *output
	exited chan struct{}
}

// output keeps what a process prints; it is safe for concurrent use.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start runs the program; it is killed when the test ends.
func start(t testing.TB, args ...string) *process {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(path, args...), out: &output{}, exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // its state says how it ended
		close(p.exited)
	}()
	t.Cleanup(p.kill)
	return p
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may be gone already
	<-p.exited
}

// stop is SIGTERM, and how it ended.
func (p *process) stop(t testing.TB) int {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		t.Fatalf("still there 30 s after SIGTERM:\n%s", p.out)
	}
	return p.cmd.ProcessState.ExitCode()
}

// freePort is a port on loopback that was free a moment ago.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// serve runs a server and returns when it serves.
func serve(t testing.TB, addr, data string, flags ...string) *process {
	t.Helper()
	p := start(t, append([]string{"serve", "--listen", addr, "--data", data}, flags...)...)
	if err := p.ready(t.Context(), addr); err != nil {
		t.Fatal(err)
	}
	return p
}

// ready waits until the server says that it serves.
func (p *process) ready(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/readyz", nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-p.exited:
			return fmt.Errorf("the server ended: %s\n%s", p.cmd.ProcessState, p.out)
		case <-ctx.Done():
			return fmt.Errorf("the server does not get ready: %w\n%s", ctx.Err(), p.out)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// waitFor waits until the process has printed something.
func waitFor(t testing.TB, p *process, text string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(p.out.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never says %q:\n%s", text, p.out)
		}
	}
}

// A supervisor that stops a server which still reads its log must not take that for a crash.
func TestAServerThatIsStoppedWhileItStartsHasNotFailed(t *testing.T) {
	addr, data := freePort(t), t.TempDir()
	server := serve(t, addr, data, "--log-level", "warn")
	text := strings.Repeat("x", 9000)
	for n := range 20 {
		changes := make([]map[string]any, 100)
		for i := range changes {
			changes[i] = map[string]any{"collection": "todos", "op": "put", "key": string(rune('a' + i%26)), "value": map[string]any{"n": n, "text": text}}
		}
		if _, err := post(t.Context(), "http://"+addr, changes); err != nil {
			t.Fatal(err)
		}
	}
	server.stop(t)
	server = start(t, "serve", "--data", data, "--listen", addr, "--admin-listen", "off")
	for began := time.Now(); ; {
		res, err := http.Get("http://" + addr + "/healthz")
		if err == nil {
			res.Body.Close()
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatal(err)
		}
	}
	if code := server.stop(t); code != 0 {
		t.Errorf("exit code %d:\n%s", code, server.out)
	}
}

// Who closes the terminal must not have killed the server in the middle of its work.
func TestAServerWhoseTerminalIsGoneStopsAsAtAnyOtherTime(t *testing.T) {
	server := serve(t, freePort(t), t.TempDir(), "--log-level", "warn")
	if err := server.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	select {
	case <-server.exited:
	case <-time.After(30 * time.Second):
		t.Fatal("it is still there")
	}
	if code := server.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, server.out)
	}
}

// Who writes 0 means none, or means no limit, and must not get a default without a word.
func TestALimitOf0IsRefused(t *testing.T) {
	for _, flag := range []string{"memory", "tenant-size", "max-connections", "max-connections-per-address", "max-feeds-per-address", "feed-rate", "feed-rate-per-address"} {
		code, out := tidemark(t, "serve", "--data", t.TempDir(), "--"+flag+"=0")
		if code == 0 || !strings.Contains(out, "--"+flag+" must be above 0") {
			t.Errorf("--%s=0: exit code %d:\n%s", flag, code, out)
		}
	}
}

// Whoever has several tenants with limits of their own writes them as a list.
func TestLimitsOfSeveralTenantsStandInTheConfigFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tidemark.yaml")
	if err := os.WriteFile(file, []byte("serve:\n  tenant-limit:\n    - acme:rows=5,writes=100\n    - globex:rows=0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out := tidemark(t, "serve", "--config", file, "--data", t.TempDir())
	if code == 0 || !strings.Contains(out, `--tenant-limit globex: "rows=0" must be above 0`) {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}
