//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// server is a contender's process and those that come from it, in a process group of their own.
type server struct {
	cmd    *exec.Cmd
	to     netip.AddrPort
	said   *lastWords
	exited chan struct{}
}

// startServer starts one and waits until it serves: until ready, a path, is answered 200, or
// until it accepts connections if that is empty. stop ends it.
func startServer(ctx context.Context, cmd *exec.Cmd, to netip.AddrPort, ready string) (*server, error) {
	s := &server{cmd: cmd, to: to, said: new(lastWords), exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = s.said, s.said
	// Should this program die, it takes its servers along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		close(s.exited)
	}()
	for end := time.Now().Add(20 * time.Second); ; {
		if s.serves(ready) {
			return s, nil
		}
		select {
		case <-s.exited:
			return nil, fmt.Errorf("the server exited (%s): %s", cmd.ProcessState, s.said)
		case <-ctx.Done():
			s.stop()
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			s.stop()
			return nil, fmt.Errorf("the server does not serve after 20 s: %s", s.said)
		}
	}
}

func (s *server) serves(ready string) bool {
	if ready == "" {
		c, err := net.Dial("tcp", s.to.String())
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	}
	res, err := (&http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + s.to.String() + ready)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// stop asks it to end, and ends it if it takes its time.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(3 * time.Second):
		// While its leader was not waited for, the group's number is nobody else's.
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		<-s.exited
	}
}

// lastWords keeps the end of what a server prints.
type lastWords struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

func (w *lastWords) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, b...)
	if n := len(w.text) - 2000; n > 0 {
		w.text = append(w.text[:0], w.text[n:]...)
	}
	return len(b), nil
}

func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.text)
}
