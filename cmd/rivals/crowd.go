//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tidemark-sync/tidemark/transport/load"
)

// began is when the program did; records count from it.
var began = time.Now()

func now() time.Duration { return time.Since(began) }

// window is how many messages may be under way at most: published, and not with every follower.
const window = 16

// crowd is the followers of one server, which one thread reads.
type crowd struct {
	to      netip.AddrPort
	poller  *poller
	latency *load.Histogram

	opened    atomic.Int64  // streams and sockets whose head came
	begun     atomic.Int64  // followers that got a message
	delivered atomic.Int64  // records of the phase that is counted, each follower's once
	gone      atomic.Int64  // followers that were closed or broke
	since     atomic.Int64  // when that phase began
	other     atomic.Int64  // records of before it
	goal      atomic.Int64  // of delivered
	reached   chan struct{} // room for one: delivered came to goal

	// What is under way, by its place modulo its size; only where all follow one channel.
	left     [4 * window]atomic.Int64
	complete atomic.Int64  // messages that every follower has
	progress chan struct{} // room for one: complete grew

	mu        sync.Mutex
	followers []*follower // guarded by mu; what they point to is the thread's until it ended
	over      atomic.Bool
	ended     chan struct{}
	failed    error // of the thread; to be read once it ended

	// Owned by the thread.
	read   time.Duration // when the piece was read that is looked at
	strays int
}

// newCrowd starts its thread; leave ends it.
func newCrowd(to netip.AddrPort) (*crowd, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	c := &crowd{to: to, poller: p, latency: new(load.Histogram), reached: make(chan struct{}, 1), progress: make(chan struct{}, 1), ended: make(chan struct{})}
	c.since.Store(math.MaxInt64)
	go func() {
		defer close(c.ended)
		c.failed = c.run()
	}()
	return c, nil
}

// join connects a follower, and asks for its channel.
func (c *crowd) join(f *follower) error {
	fd, err := dial(c.to)
	if err != nil {
		return err
	}
	f.fd = fd
	if err := send(fd, f.way.request(f.channel, f.after)); err != nil {
		hang(fd)
		return err
	}
	c.mu.Lock()
	f.index = len(c.followers)
	c.followers = append(c.followers, f)
	c.mu.Unlock()
	return c.poller.add(fd, f.index)
}

// rejoin connects one that polls anew: a server may close a connection between two answers.
func (c *crowd) rejoin(f *follower) error {
	hang(f.fd)
	f.fd = -1
	fd, err := dial(c.to)
	if err != nil {
		return err
	}
	f.fd = fd
	f.reset()
	if err := send(fd, f.way.next(f)); err != nil {
		return err
	}
	return c.poller.add(fd, f.index)
}

// joinAll has so many followers join, spread over channels in turn, perSecond of them a second.
func (c *crowd) joinAll(ctx context.Context, w *way, n, channels, perSecond int) error {
	start := time.Now()
	for i := range n {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if ahead := time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(perSecond))); ahead > time.Millisecond {
			time.Sleep(ahead)
		}
		if err := c.join(newFollower(c, w, i%channels, "")); err != nil {
			return err
		}
	}
	return nil
}

func (c *crowd) run() error {
	buf := make([]byte, 64<<10)
	reads := newReads()
	defer reads.close()
	for !c.over.Load() {
		events, err := c.poller.wait(20 * time.Millisecond)
		if err != nil {
			return err
		}
		for len(events) > 0 {
			n := reads.fill(c, events)
			events = events[n:]
			for i := range n {
				f, b, err := reads.got(i)
				if err = c.take(f, b, err, len(b) == readSize, buf); err != nil {
					f.err = err
					if f.fd >= 0 {
						hang(f.fd)
						f.fd = -1
					}
					c.gone.Add(1)
				}
			}
		}
	}
	return nil
}

// take has a follower look at what it got; more: there may be more, which is read into buf.
func (c *crowd) take(f *follower, b []byte, err error, more bool, buf []byte) error {
	for {
		switch {
		case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
			return nil
		case err != nil:
			return os.NewSyscallError("read", err)
		case len(b) == 0 && f.answers > 0 && f.answer.idle():
			return c.rejoin(f)
		case len(b) == 0:
			return io.ErrUnexpectedEOF
		}
		c.read = now()
		if err := f.feed(b); err != nil {
			return err
		}
		if f.err != nil || !more {
			return f.err
		}
		var n int
		n, err = syscall.Read(f.fd, buf)
		b, more = buf[:max(n, 0)], n == len(buf)
	}
}

// saw counts a record that a follower found.
func (c *crowd) saw(f *follower, r record) {
	if r.channel != f.channel {
		c.strays++
		return
	}
	first := !f.tally.begun()
	if !f.tally.saw(r.seq) {
		return
	}
	if first {
		c.begun.Add(1)
	}
	if int64(r.at) < c.since.Load() {
		c.other.Add(1)
		return
	}
	if c.left[r.seq%uint64(len(c.left))].Add(-1) == 0 {
		c.complete.Add(1)
		nudge(c.progress)
	}
	c.latency.Add(c.read - r.at)
	if c.delivered.Add(1) == c.goal.Load() {
		nudge(c.reached)
	}
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// count begins the phase that is counted: what is published from here on.
func (c *crowd) count() { c.since.Store(int64(now())) }

// patience is how long nothing may come before what is missing counts as lost.
const patience = 3 * time.Second

// settle waits until so many were delivered since the phase began, or nothing comes any more.
func (c *crowd) settle(ctx context.Context, want int64) error {
	c.goal.Store(want)
	for had := c.delivered.Load(); had < want; {
		select {
		case <-c.reached:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(patience):
			if c.delivered.Load() == had {
				return nil
			}
		}
		had = c.delivered.Load()
	}
	return nil
}

// quiet waits until nothing has come for d.
func (c *crowd) quiet(ctx context.Context, d time.Duration) error {
	for had := int64(-1); ; {
		n := c.other.Load() + c.delivered.Load()
		if n == had {
			return nil
		}
		had = n
		if err := sleep(ctx, d); err != nil {
			return err
		}
	}
}

// leave ends the thread and closes every follower. They may be read from then on.
func (c *crowd) leave() error {
	if c.over.Swap(true) {
		return nil
	}
	<-c.ended
	c.poller.close()
	for _, f := range c.followers {
		if f.fd >= 0 {
			hang(f.fd)
			f.fd = -1
		}
	}
	return c.failed
}

// faults is what followers were given that they should not have been, or not given.
type faults struct {
	Lost     int `json:"lost,omitempty"`
	Doubles  int `json:"doubles,omitempty"`
	Disorder int `json:"disorder,omitempty"`
	Strays   int `json:"strays,omitempty"` // of another channel
	Gone     int `json:"gone,omitempty"`   // followers whose connection the server ended
}

func (f *faults) add(g faults) {
	f.Lost += g.Lost
	f.Doubles += g.Doubles
	f.Disorder += g.Disorder
	f.Strays += g.Strays
	f.Gone += g.Gone
}

// judge holds what followers got against what was published to each channel; after leave.
func (c *crowd) judge(published []uint64) (sum faults) {
	sum = faults{Strays: c.strays, Gone: int(c.gone.Load())}
	for _, f := range c.followers {
		sum.Lost += f.tally.lost(published[f.channel])
		sum.Doubles += f.tally.Doubles
		sum.Disorder += f.tally.Disorder
	}
	return sum
}

// example ends the crowd, and says why the first of those that are gone is.
func (c *crowd) example() error {
	if err := c.leave(); err != nil {
		return err
	}
	for _, f := range c.followers {
		if f.err != nil {
			return fmt.Errorf("a follower's connection ended: %w", f.err)
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
