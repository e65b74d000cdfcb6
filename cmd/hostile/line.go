package main

import (
	"context"
	"sync"
)

// line lets one of each host through at a time; the others wait for their turn, in the
// order in which they came. It may be used concurrently.
type line struct {
	mu    sync.Mutex
	hosts map[string]*turn // guarded by mu; those of which somebody is here
}

type turn struct {
	taken chan struct{} // has room for one
	here  int           // guarded by line.mu
}

func newLine() *line { return &line{hosts: make(map[string]*turn)} }

// wait returns when it is this one's turn. The turn must be given back by done; there
// was none if it is nil, because ctx ended first.
func (l *line) wait(ctx context.Context, host string) (done func()) {
	l.mu.Lock()
	t := l.hosts[host]
	if t == nil {
		t = &turn{taken: make(chan struct{}, 1)}
		l.hosts[host] = t
	}
	t.here++
	l.mu.Unlock()
	select {
	case t.taken <- struct{}{}:
		return func() {
			<-t.taken
			l.leave(host, t)
		}
	case <-ctx.Done():
		l.leave(host, t)
		return nil
	}
}

func (l *line) leave(host string, t *turn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.here--; t.here == 0 {
		delete(l.hosts, host)
	}
}
