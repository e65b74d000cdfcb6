//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
)

// stage is a server that was just started, with a publisher and what it is being asked over.
type stage struct {
	contender *contender
	way       *way
	server    *server
	publisher *publisher
	faults    faults
	note      error // something that was odd
	dir       string
}

// messageSize is how many bytes a message has.
const messageSize = 200

// open starts a server; close ends it.
func open(ctx context.Context, p *paths, c *contender, w *way, channels int) (_ *stage, err error) {
	s := &stage{contender: c, way: w}
	if s.dir, err = os.MkdirTemp("", "rivals-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	var to netip.AddrPort
	if to, err = freeAddress(); err != nil {
		return nil, err
	}
	l, err := c.launch(p, s.dir, to)
	if err != nil {
		return nil, err
	}
	if s.server, err = startServer(ctx, l.cmd, to, l.ready); err != nil {
		return nil, err
	}
	if !l.publish.IsValid() {
		l.publish = to
	}
	if s.publisher, err = newPublisher(ctx, c.dialect, l.publish, channels, messageSize); err != nil {
		return nil, fmt.Errorf("connect the publisher: %w", err)
	}
	return s, nil
}

func (s *stage) close() {
	if s.publisher != nil {
		s.publisher.close()
	}
	if s.server != nil {
		s.server.stop()
	}
	_ = os.RemoveAll(s.dir)
}

// joinWithin is how long followers may take to get their first message.
const joinWithin = 20 * time.Second

// crowded has n followers join, spread over channels in turn, does something with them, and
// holds what they got against what was published.
func (s *stage) crowded(ctx context.Context, n, channels int, do func(*crowd) (map[string]float64, error)) (map[string]float64, error) {
	c, err := newCrowd(s.server.to)
	if err != nil {
		return nil, err
	}
	defer c.leave()
	if err := c.joinAll(ctx, s.way, n, channels, 3000); err != nil {
		return nil, err
	}
	if err := s.begin(ctx, c, n, channels); err != nil {
		return nil, err
	}
	values, err := do(c)
	if err != nil {
		return nil, errors.Join(err, c.example())
	}
	return values, s.dismiss(c)
}

// begin publishes until each of a crowd's n followers has got something: only then is it sure that
// they follow.
func (s *stage) begin(ctx context.Context, c *crowd, n, channels int) error {
	end := time.Now().Add(joinWithin)
	// One that answers only once there is something to say, as go-sse does, is not waited for.
	for had, still := int64(-1), 0; still < 10 && c.opened.Load() < int64(n); still++ {
		if n := c.opened.Load(); n != had {
			had, still = n, 0
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	for c.begun.Load() < int64(n) {
		if c.gone.Load() > 0 || time.Now().After(end) {
			return errors.Join(fmt.Errorf("only %d of %d followers got a first message", c.begun.Load(), n), c.example())
		}
		for channel := range channels {
			if err := s.publisher.publish(channel, 1); err != nil {
				return err
			}
			if channel%20 == 19 { // 2,000 a second
				if err := sleep(ctx, 10*time.Millisecond); err != nil {
					return err
				}
			}
		}
		for wait := time.Now().Add(500 * time.Millisecond); c.begun.Load() < int64(n) && time.Now().Before(wait); {
			if err := sleep(ctx, 10*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return c.quiet(ctx, 200*time.Millisecond)
}

// dismiss ends a crowd, and holds what it got against what was published.
func (s *stage) dismiss(c *crowd) error {
	err := c.leave()
	s.faults.add(c.judge(s.publisher.seq))
	if s.note == nil {
		s.note = c.example()
	}
	return errors.Join(err, s.publisher.err())
}
