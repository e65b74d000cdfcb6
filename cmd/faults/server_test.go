package faults_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/cmd/faults/oracle"
	"github.com/tidemark-sync/tidemark/transport/follow"
)

// readyWithin is how long a server may take to serve again.
const readyWithin = 10 * time.Second

// server is one address and one data directory, and the processes that serve there one
// after another.
type server struct {
	t     testing.TB
	r     *recorder
	addr  string
	data  string
	flags []string
	env   []string
	*process
}

func newServer(t testing.TB, r *recorder, data string, flags ...string) *server {
	t.Helper()
	if _, err := program(); err != nil { // now, as to build it is no part of the first start
		t.Fatal(err)
	}
	return &server{t: t, r: r, addr: freePort(t), data: data, flags: flags}
}

func (s *server) url() string { return "http://" + s.addr }

// fault is what was done before a start, and what it allows.
type fault struct {
	what                             string
	newEpoch, mustEpoch, loss, holes bool
	look                             bool          // all rows are read before anybody writes
	since                            time.Duration // what was acknowledged before it must be there; 0: nothing must
	env                              []string      // for this start alone
	flags                            []string      // for this start alone
}

// spawn starts a process, and does not wait until it serves.
func (s *server) spawn(f fault) {
	args := append([]string{"serve", "--listen", s.addr, "--data", s.data, "--log-level", "warn"}, s.flags...)
	s.process = start(s.t, append(append([]string{}, s.env...), f.env...), append(args, f.flags...)...)
}

// start starts a process and waits until it serves. A server that does not is a
// violation, unless it was killed by itself, as f.env may have asked.
func (s *server) start(f fault) error {
	began := s.r.now()
	s.spawn(f)
	return s.started(f, began)
}

// errCrashed says that a server killed itself before it was ready, as it was told to.
var errCrashed = errors.New("it killed itself before it was ready")

func (s *server) started(f fault, began time.Duration) error {
	if err := s.ready(s.t.Context(), 3*readyWithin); err != nil {
		if len(f.env) > 0 && s.killed() {
			return errCrashed
		}
		s.r.problem("start", "after %s: %v", f.what, err)
		return err
	}
	ready := s.r.now()
	if took := ready - began; took > readyWithin {
		s.r.problem("start", "after %s the server took %v to get ready", f.what, took.Round(time.Millisecond))
	}
	x := &oracle.Start{Began: began, Ready: ready, Fault: f.what, NewEpoch: f.newEpoch, MustEpoch: f.mustEpoch, Loss: f.loss, Holes: f.holes, Since: f.since}
	if f.look || f.newEpoch || f.mustEpoch || f.loss || f.holes || s.r.starts() == 0 {
		base, err := s.snapshot(s.t.Context(), collections)
		if err != nil {
			if len(f.env) > 0 && s.killed() {
				return errCrashed
			}
			s.r.problem("start", "after %s: the rows can't be read: %v", f.what, err)
			return err
		}
		x.Epoch, x.Base = epochOf(base.Cursor), base
	} else if base, err := s.snapshot(s.t.Context(), collections[:1]); err == nil {
		x.Epoch = epochOf(base.Cursor)
	}
	s.r.start(x)
	return nil
}

// killed tells whether the process was ended by kill -9.
func (s *server) killed() bool {
	return s.wait(2*time.Second) && s.cmd.ProcessState.ExitCode() == -1
}

// ready waits until the server says that it serves.
func (s *server) ready(ctx context.Context, most time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url()+"/readyz", nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-s.exited:
			return fmt.Errorf("the server ended: %s\n%s", s.cmd.ProcessState, s.out.tail())
		case <-ctx.Done():
			return fmt.Errorf("the server does not get ready within %v\n%s", most, s.out.tail())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// snapshot reads all rows of collections, by long poll.
func (s *server) snapshot(ctx context.Context, names []string) (*oracle.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	snap := &oracle.Snapshot{Taken: s.r.now()}
	c, err := follow.Dial(ctx, follow.Options{URL: s.url(), Tenant: tenant, Collections: fresh(names), Transport: follow.Poll, Wait: -1})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	rows := make(map[[2]string]oracle.Row)
	for {
		f, err := c.Next(ctx)
		if err != nil {
			return nil, err
		}
		switch f.Type {
		case "change":
			k := [2]string{f.Collection, f.Key}
			if f.Op == "remove" {
				delete(rows, k)
			} else {
				rows[k] = oracle.Row{Collection: f.Collection, Key: f.Key, Seq: uint64(f.Seq), Value: string(f.Value)}
			}
		case "live":
			snap.Cursor = f.Cursor
			for _, r := range rows {
				snap.Rows = append(snap.Rows, r)
			}
			return snap, nil
		}
	}
}
