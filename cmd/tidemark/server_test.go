package main_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/transport/follow"
)

// post writes changes, and returns the statuses; an error where there was no answer.
func post(ctx context.Context, url string, changes []map[string]any) (statuses []string, err error) {
	body, err := json.Marshal(map[string]any{"client": "test", "changes": changes})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/acme/changes", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", res.Status, b)
	}
	var answer struct{ Results []struct{ Status string } }
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, err
	}
	for _, r := range answer.Results {
		statuses = append(statuses, r.Status)
	}
	return statuses, nil
}

// snapshot reads what the server has, up to live.
func snapshot(t testing.TB, url string, collections ...string) *follow.Rows {
	t.Helper()
	rows := &follow.Rows{}
	o := follow.Options{URL: url, Tenant: "acme", Transport: follow.Poll, Wait: -1}
	for _, name := range collections {
		o.Collections = append(o.Collections, follow.Collection{Name: name})
	}
	err := follow.Follow(t.Context(), o, func(s follow.Step) error {
		for _, f := range s.Frames {
			rows.Apply(f)
		}
		if rows.Live() {
			return errSettled
		}
		return nil
	})
	if !errors.Is(err, errSettled) {
		t.Fatal(err)
	}
	return rows
}

// TestKillInTransactions: a transaction over several collections is there in part, or
// an acknowledged one is gone, after kill -9 in the middle of it.
func TestKillInTransactions(t *testing.T) {
	if testing.Short() {
		t.Skip("many restarts")
	}
	addr, data := freePort(t), t.TempDir()
	url := "http://" + addr
	collections := []string{"a", "b", "deep/er/c"}
	const writers, width = 4, 7
	// The n-th transaction of a writer brings all its rows, in all collections, to n.
	transaction := func(writer, n int) (changes []map[string]any) {
		for i := range width {
			for _, c := range collections {
				changes = append(changes, map[string]any{"id": fmt.Sprintf("%d-%d-%s-%d", writer, n, c, i),
					"collection": c, "op": "put", "key": fmt.Sprintf("%d/%d", writer, i), "value": map[string]int{"n": n}})
			}
		}
		return changes
	}
	var begun, acknowledged [writers]int
	settled, duplicates := 0, 0
	for range rounds(50) {
		server := serve(t, addr, data, "--log-size", "64KiB", "--log-level", "warn")
		// What is there is whole, and all that was acknowledged.
		rows := snapshot(t, url, collections...)
		for w := range writers {
			for _, c := range collections {
				for i := range width {
					row, ok := rows.Get(c, fmt.Sprintf("%d/%d", w, i))
					var value struct{ N int }
					if ok {
						if err := json.Unmarshal(row.Value, &value); err != nil {
							t.Fatal(err)
						}
					}
					if value.N != begun[w] && value.N != acknowledged[w] {
						t.Fatalf("writer %d: a row of %s is at %d; acknowledged %d, begun %d", w, c, value.N, acknowledged[w], begun[w])
					}
					if first, _ := rows.Get(collections[0], fmt.Sprintf("%d/0", w)); ok && !bytes.Equal(first.Value, row.Value) {
						t.Fatalf("writer %d: half a transaction: %s and %s", w, first.Value, row.Value)
					}
				}
			}
			// What was under way is sent again, and takes effect once.
			if begun[w] > acknowledged[w] {
				statuses, err := post(t.Context(), url, transaction(w, begun[w]))
				if err != nil {
					t.Fatal(err)
				}
				settled++
				if statuses[0] == "duplicate" {
					duplicates++
				}
				if slices.ContainsFunc(statuses, func(s string) bool { return s != statuses[0] }) {
					t.Fatalf("half of a transaction was there already: %v", statuses)
				}
				acknowledged[w] = begun[w]
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var writing sync.WaitGroup
		for w := range writers {
			writing.Go(func() {
				for {
					begun[w]++
					if _, err := post(ctx, url, transaction(w, begun[w])); err != nil {
						return // killed in the middle of it
					}
					acknowledged[w] = begun[w]
				}
			})
		}
		time.Sleep(time.Duration(1+mathrand.IntN(80)) * time.Millisecond) // the accident's own time
		server.kill()
		cancel()
		writing.Wait()
	}
	t.Logf("%v transactions acknowledged; %d were under way at a kill, %d of them had been written", acknowledged, settled, duplicates)
}

// TestOnlyOurPorts: a port is open that nobody asked for, and that no one guards.
func TestOnlyOurPorts(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	admin := freePort(t)
	for _, flags := range [][]string{{"--admin-listen", "off"}, {"--admin-listen", admin}} {
		addr := freePort(t)
		server := serve(t, addr, t.TempDir(), flags...)
		want := []string{hexPort(t, addr)}
		if flags[1] == admin {
			want = append(want, hexPort(t, admin))
		}
		got := listening(t, server.cmd.Process.Pid)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%v: listening on %v, want %v alone", flags, got, want)
		}
	}
}

func hexPort(t testing.TB, addr string) string {
	t.Helper()
	_, port, _ := net.SplitHostPort(addr)
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("tcp 0100007F:%04X", n)
}

// listening is all that a process listens on, as /proc has it.
func listening(t testing.TB, pid int) (all []string) {
	t.Helper()
	sockets := make(map[string]bool)
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil {
			if inode, ok := strings.CutPrefix(target, "socket:["); ok {
				sockets[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	for _, kind := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, kind))
		if err != nil {
			continue // no IPv6 here
		}
		for _, line := range strings.Split(string(b), "\n")[1:] {
			f := strings.Fields(line)
			const listen = "0A"
			if len(f) > 9 && sockets[f[9]] && (f[3] == listen || strings.HasPrefix(kind, "udp")) {
				all = append(all, kind+" "+f[1])
			}
		}
	}
	return all
}

// TestRefusesTheWorld: a server without credentials can be reached by strangers.
func TestRefusesTheWorld(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:80", "example.com:80"} {
		p := start(t, "serve", "--listen", addr, "--data", t.TempDir())
		<-p.exited
		if code := p.cmd.ProcessState.ExitCode(); code == 0 || !strings.Contains(p.out.String(), "--jwt-public-key keys/public.pem") {
			t.Errorf("%s: exit code %d: %s", addr, code, p.out)
		}
	}
}

// TestOneStoreOneProcess: two servers write to one log.
func TestOneStoreOneProcess(t *testing.T) {
	data := t.TempDir()
	serve(t, freePort(t), data)
	second := start(t, "serve", "--listen", freePort(t), "--data", data)
	<-second.exited
	if code := second.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(second.out.String(), "in use") {
		t.Errorf("exit code %d: %s", code, second.out)
	}
}

// TestDrain: a deploy cuts clients off without a word, or takes longer than a
// supervisor waits.
func TestDrain(t *testing.T) {
	addr, admin := freePort(t), freePort(t)
	server := serve(t, addr, t.TempDir(), "--admin-listen", admin)
	ends := make(chan error, len(follow.Transports))
	live := make(chan struct{}, len(follow.Transports))
	for _, transport := range follow.Transports {
		go func() {
			c, err := follow.Dial(t.Context(), follow.Options{URL: "http://" + addr, Tenant: "acme", Transport: transport,
				Collections: []follow.Collection{{Name: "a"}}})
			if err != nil {
				ends <- err
				return
			}
			defer c.Close()
			for told := false; ; {
				f, err := c.Next(t.Context())
				switch {
				case err != nil:
					var ended *follow.Ended
					if errors.As(err, &ended) && ended.Reason == "draining" && ended.Retry > 0 {
						err = nil
					}
					if transport == follow.Poll && errors.Is(err, syscall.ECONNREFUSED) {
						err = nil // it was between two polls
					}
					ends <- err
					return
				case f.Type == "live" && !told:
					told = true
					live <- struct{}{}
				}
			}
		}()
	}
	for range follow.Transports {
		select {
		case <-live:
		case err := <-ends:
			t.Fatal(err)
		case <-time.After(20 * time.Second):
			t.Fatal("not live")
		}
	}
	// A poll that is not there yet again would be told 503, as any new request is. The feed of the one before may be seen
	// for a moment.
	for held, over := 0, time.Now().Add(20*time.Second); held < 5; {
		if time.Now().After(over) {
			t.Fatal("the poll does not come again")
		}
		if _, metrics, _ := call(t, "GET", "http://"+admin+"/metrics", "", ""); strings.Contains(metrics, fmt.Sprintf("\ntidemark_sessions %d\n", len(follow.Transports))) {
			held++
		} else {
			held = 0
		}
	}
	began := time.Now()
	if code := server.stop(t); code != 0 {
		t.Errorf("exit code %d:\n%s", code, server.out)
	}
	t.Logf("stopped within %s", time.Since(began).Round(time.Millisecond))
	for range follow.Transports {
		if err := <-ends; err != nil {
			t.Errorf("no last word: %v", err)
		}
	}
}

// TestDevTeaches: the first lines that a newcomer copies do not work.
func TestDevTeaches(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("needs curl")
	}
	addr := freePort(t)
	p := start(t, "dev", "--listen", addr, "--data", filepath.Join(t.TempDir(), "new"))
	if err := p.ready(t.Context(), addr); err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^ +curl .*$`)
	var curls []string
	for deadline := time.Now().Add(10 * time.Second); len(curls) < 3 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		curls = lines.FindAllString(p.out.String(), -1)
	}
	if len(curls) != 3 || !strings.Contains(p.out.String(), "http://"+addr) {
		t.Fatalf("%d curl lines:\n%s", len(curls), p.out)
	}
	follower := exec.CommandContext(t.Context(), "sh", "-c", curls[0])
	out, err := follower.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follower.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = follower.Process.Kill()
		_ = follower.Wait()
	}()
	seen := make(chan string, 100)
	go func() {
		defer close(seen)
		for s := bufio.NewScanner(out); s.Scan(); {
			seen <- s.Text()
		}
	}()
	wait := func(what string) {
		t.Helper()
		for timeout := time.After(20 * time.Second); ; {
			select {
			case line, ok := <-seen:
				if strings.Contains(line, what) {
					return
				}
				if !ok {
					t.Fatalf("the follower ended before %s", what)
				}
			case <-timeout:
				t.Fatalf("never saw %s", what)
			}
		}
	}
	wait(`"live"`)
	for _, line := range curls[1:] {
		b, err := exec.CommandContext(t.Context(), "sh", "-c", line).CombinedOutput()
		if err != nil || !bytes.Contains(b, []byte("milk")) {
			t.Errorf("%s: %v\n%s", line, err, b)
		}
	}
	wait(`"milk"`)
	for path, kind := range map[string]string{"/": "text/html", "/demo.js": "text/javascript", "/demo.css": "text/css", "/client.js": "text/javascript", "/client/index.js": "text/javascript"} {
		res, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := res.Header.Get("Content-Type"); res.StatusCode != http.StatusOK || !strings.HasPrefix(got, kind) {
			t.Errorf("%s: %s, %s", path, res.Status, got)
		}
	}
}

// certify makes a certificate for this machine, signed by itself, and its key.
func certify(t *testing.T, template *x509.Certificate) (pair [2]pem.Block) {
	t.Helper()
	template.NotAfter, template.IPAddresses = time.Now().Add(time.Hour), []net.IP{net.IPv4(127, 0, 0, 1)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return [2]pem.Block{{Type: "CERTIFICATE", Bytes: cert}, {Type: "PRIVATE KEY", Bytes: private}}
}

// TestCertificateThatWasRenewedIsServedWithoutARestart: else every client is locked out once the one of the start has ended.
func TestCertificateThatWasRenewedIsServedWithoutARestart(t *testing.T) {
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	renew := func(serial int64) {
		for i, block := range certify(t, &x509.Certificate{SerialNumber: big.NewInt(serial)}) {
			if err := os.WriteFile(files[i], pem.EncodeToMemory(&block), 0o600); err != nil {
				t.Fatal(err)
			}
			at := time.Now().Add(time.Duration(serial) * time.Minute) // whatever the file system's clock can tell apart
			if err := os.Chtimes(files[i], at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	renew(1)
	addr := freePort(t)
	start(t, "serve", "--listen", addr, "--admin-listen", "off", "--data", filepath.Join(dir, "data"), "--tls-cert", files[0], "--tls-key", files[1])
	served := func() int64 {
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
			if err == nil {
				defer c.Close()
				return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	if n := served(); n != 1 {
		t.Fatalf("certificate %d", n)
	}
	renew(2)
	if n := served(); n != 2 {
		t.Errorf("after it was renewed, certificate %d is served", n)
	}
	if err := os.WriteFile(files[1], []byte("half a k"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := served(); n != 2 {
		t.Errorf("while the key is written, certificate %d is served", n)
	}
}

// TestTLS: behind TLS, and so on HTTP/2, a feed, a poll or a write does not work.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	pair := certify(t, &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true})
	write := func(name string, block pem.Block) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&block), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	addr := freePort(t)
	p := start(t, "serve", "--listen", addr, "--data", filepath.Join(dir, "data"),
		"--tls-cert", write("cert.pem", pair[0]), "--tls-key", write("key.pem", pair[1]))
	pool := x509.NewCertPool()
	cert, err := x509.ParseCertificate(pair[0].Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(cert)
	for _, h2 := range []bool{true, false} {
		roundTripper := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: h2}
		defer roundTripper.CloseIdleConnections()
		client := &http.Client{Transport: roundTripper}
		url := "https://" + addr
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			res, err := client.Get(url + "/readyz")
			if err == nil {
				res.Body.Close()
				if res.StatusCode == http.StatusOK {
					if want := map[bool]int{true: 2, false: 1}[h2]; res.ProtoMajor != want {
						t.Fatalf("%s instead of HTTP/%d", res.Proto, want)
					}
					break
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("never ready: %v\n%s", err, p.out)
			}
		}
		row := fmt.Sprintf("row-%v", h2)
		for _, transport := range follow.Transports {
			if h2 && transport == follow.WebSocket {
				continue // HTTP/2 has no Upgrade; browsers take HTTP/1.1 for it
			}
			wrote := false
			err := follow.Follow(t.Context(), follow.Options{URL: url, Tenant: "acme", Transport: transport, HTTP: client,
				Collections: []follow.Collection{{Name: transport}}}, func(s follow.Step) error {
				switch {
				case s.Lost != nil && !wrote:
					return s.Lost
				case len(s.Frames) == 0:
				case s.Frames[0].Type == "change" && s.Frames[0].Key == row:
					return errSettled
				case s.Frames[0].Type == "live" && !wrote:
					wrote = true
					req, err := http.NewRequest(http.MethodPut, url+"/v1/acme/rows/"+transport+"?key="+row, strings.NewReader(`{}`))
					if err != nil {
						return err
					}
					res, err := client.Do(req)
					if err != nil {
						return err
					}
					res.Body.Close()
					if res.StatusCode != http.StatusOK {
						return errors.New(res.Status)
					}
				}
				return nil
			})
			if !errors.Is(err, errSettled) {
				t.Errorf("HTTP/2 %v, %s: %v", h2, transport, err)
			}
		}
	}
	if code := p.stop(t); code != 0 {
		t.Errorf("exit code %d:\n%s", code, p.out)
	}
}

// Woken each time that the runtime's own watch asks for it, a server spends up to a third of its CPU
// on that; and the process that was started is still the one that serves.
func TestAServerPaysForNoMoreWakingsThanItNeeds(t *testing.T) {
	if runtime.GOOS != "linux" || runtime.GOMAXPROCS(0) == 1 {
		t.Skip("for Linux, and two processors")
	}
	addr := freePort(t)
	p := serve(t, addr, t.TempDir())
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", p.cmd.Process.Pid))
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		t.Skip("only root may see it: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if slack, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || slack < 1_000_000 {
		t.Errorf("the slack of its timers is %q ns", b)
	}
	if code := p.stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
