//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// figure is something that a work measures.
type figure struct {
	key, title, unit string
	more             bool // is better
}

// work is what is asked of a server.
type work struct {
	name  string
	title string
	about string
	// channels is how many there are.
	channels int
	// resumes: only for those that give a follower what it missed.
	resumes bool
	// posts: nobody follows, and over says how many post.
	posts bool
	// over are the transports that it is done over.
	over    []string
	figures []figure
	do      func(ctx context.Context, s *stage) (map[string]float64, error)
}

var (
	cpuFigure  = figure{key: "cpu", title: "CPU a delivery", unit: "µs"}
	p50Figure  = figure{key: "p50", title: "p50", unit: "ms"}
	p99Figure  = figure{key: "p99", title: "p99", unit: "ms"}
	rateFigure = figure{key: "rate", title: "thousand deliveries a second", more: true}
	everyWay   = []string{sse, websocket, poll}
	streams    = []string{sse, websocket}
)

func works() []*work {
	return []*work{
		{
			name: "fanout", title: "One channel, 1,000 followers, 20 changes a second", channels: 1, over: everyWay,
			about:   "What each delivery costs the server, the publishing included, and how long it takes from before the change is published until a follower has it.",
			figures: []figure{cpuFigure, p50Figure, p99Figure},
			do: func(ctx context.Context, s *stage) (map[string]float64, error) {
				return spread(ctx, s, 1000, 1, 20, 4*time.Second)
			},
		},
		{
			name: "many", title: "1,000 channels with 5 followers each, 2,000 changes a second", channels: 1000, over: streams,
			about:   "The same where each change is for few.",
			figures: []figure{cpuFigure, p50Figure, p99Figure},
			do: func(ctx context.Context, s *stage) (map[string]float64, error) {
				return spread(ctx, s, 5, 1000, 2000, 4*time.Second)
			},
		},
		{
			name: "flatout", title: fmt.Sprintf("One channel, 1,000 followers, as fast as it goes with %d changes under way", window), channels: 1, over: streams,
			about:   "A change is published once that of " + fmt.Sprint(window) + " places before it is with every follower. The reader is one thread, which also limits the fastest.",
			figures: []figure{rateFigure, cpuFigure},
			do:      flatOut,
		},
		{
			name: "idle", title: "10,000 followers that wait", channels: 1, over: everyWay,
			about:   "What the server's processes hold (Pss) for each, three seconds after each was given one change.",
			figures: []figure{{key: "held", title: "memory a follower", unit: "KB"}},
			do:      idle,
		},
		{
			name: "storm", title: "2,000 followers leave, miss 100 changes and come back at once", channels: 1, resumes: true, over: everyWay,
			about:   "From the first connection until all of them have all that they missed.",
			figures: []figure{{key: "time", title: "until all caught up", unit: "ms"}},
			do:      storm,
		},
		{
			name: "replay", title: "One follower comes back after 100,000 changes", channels: 1, resumes: true, over: streams,
			about:   "From its request until it has the last of them. What has not come 3 s after the one before counts as lost.",
			figures: []figure{{key: "replayed", title: "thousand changes a second", more: true}},
			do:      replay,
		},
		{
			name: "posts", title: "One message a POST, each connection as soon as it was answered", channels: 1, posts: true, over: []string{"64 connections", "256 connections"},
			about:   "How many are answered a second, and how long each takes. Tidemark answers once the change is synced to disk; nobody else here writes to one.",
			figures: []figure{{key: "rate", title: "thousand requests a second", more: true}, {key: "cpu", title: "CPU a request", unit: "µs"}, p50Figure, p99Figure},
			do:      posting,
		},
	}
}

// paced publishes to channels in turn, so many messages a second.
func paced(ctx context.Context, s *stage, perSecond int, d time.Duration) (published int64, err error) {
	start := time.Now()
	n := int(d.Seconds() * float64(perSecond))
	for i := range n {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(perSecond))
		if ahead := time.Until(due); ahead > 0 {
			if err := sleep(ctx, ahead); err != nil {
				return 0, err
			}
		}
		if err := s.publisher.publish(i%len(s.publisher.seq), 1); err != nil {
			return 0, err
		}
	}
	return int64(n), nil
}

// spread publishes at a rate to channels that have so many followers each, and tells what each
// delivery cost and how long it took.
func spread(ctx context.Context, s *stage, each, channels, perSecond int, d time.Duration) (map[string]float64, error) {
	return s.crowded(ctx, each*channels, channels, func(c *crowd) (map[string]float64, error) {
		before, err := usageOf(s.server.cmd.Process.Pid)
		if err != nil {
			return nil, err
		}
		c.count()
		published, err := paced(ctx, s, perSecond, d)
		if err != nil {
			return nil, err
		}
		if err := c.settle(ctx, published*int64(each)); err != nil {
			return nil, err
		}
		after, err := usageOf(s.server.cmd.Process.Pid)
		return map[string]float64{
			"cpu": micro(before.until(after)) / float64(max(1, c.delivered.Load())),
			"p50": milli(c.latency.Quantile(0.5)),
			"p99": milli(c.latency.Quantile(0.99)),
		}, err
	})
}

// flatOut publishes one message after another, with window of them under way.
func flatOut(ctx context.Context, s *stage) (map[string]float64, error) {
	const followers, lasts = 1000, 4 * time.Second
	return s.crowded(ctx, followers, 1, func(c *crowd) (map[string]float64, error) {
		before, err := usageOf(s.server.cmd.Process.Pid)
		if err != nil {
			return nil, err
		}
		c.count()
		start := time.Now()
		published := int64(0)
		for time.Since(start) < lasts {
			for published-c.complete.Load() >= window {
				select {
				case <-c.progress:
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				case <-time.After(patience):
					return nil, errors.New("some of the followers get nothing any more")
				}
			}
			published++
			c.left[(s.publisher.seq[0]+1)%uint64(len(c.left))].Store(followers)
			if err := s.publisher.publish(0, 1); err != nil {
				return nil, err
			}
		}
		delivered, took := c.delivered.Load(), time.Since(start)
		after, err := usageOf(s.server.cmd.Process.Pid)
		if err != nil {
			return nil, err
		}
		return map[string]float64{
			"rate": float64(delivered) / took.Seconds() / 1000,
			"cpu":  micro(before.until(after)) / float64(max(1, delivered)),
		}, c.settle(ctx, published*followers)
	})
}

// idle tells what is held for followers that wait.
func idle(ctx context.Context, s *stage) (map[string]float64, error) {
	const followers = 10_000
	before, err := memoryOf(s.server.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	return s.crowded(ctx, followers, 1, func(c *crowd) (map[string]float64, error) {
		if err := sleep(ctx, 3*time.Second); err != nil {
			return nil, err
		}
		after, err := memoryOf(s.server.cmd.Process.Pid)
		return map[string]float64{"held": float64(after-before) / followers / 1024}, err
	})
}

// witness follows the channel until it has a message, and tells where it stands then: over SSE,
// whose events say it, for whoever comes back over any transport.
func witness(ctx context.Context, s *stage) (after string, err error) {
	way := s.way
	s.way = s.contender.way(sse)
	defer func() { s.way = way }()
	c, err := newCrowd(s.server.to)
	if err != nil {
		return "", err
	}
	defer c.leave()
	f := newFollower(c, s.way, 0, "")
	f.keepsTail = true
	if err := c.join(f); err != nil {
		return "", err
	}
	if err := s.begin(ctx, c, 1, 1); err != nil {
		return "", err
	}
	if err := s.dismiss(c); err != nil {
		return "", err
	}
	if after = f.place(); after == "" {
		return "", fmt.Errorf("a follower was not told where it stands: %q", f.tail)
	}
	return after, nil
}

// back has followers come back that stand there, after they missed so many messages, and tells how
// long it takes until all of them have them.
func back(ctx context.Context, s *stage, followers int, after string, missed int) (time.Duration, error) {
	c, err := newCrowd(s.server.to)
	if err != nil {
		return 0, err
	}
	defer c.leave()
	stands := s.publisher.seq[0]
	c.count()
	for left := missed; left > 0; left -= min(left, 1000) {
		if err := s.publisher.publish(0, min(left, 1000)); err != nil {
			return 0, err
		}
		if err := s.publisher.wait(ctx, 1000); err != nil {
			return 0, err
		}
	}
	if err := s.publisher.wait(ctx, 0); err != nil {
		return 0, err
	}
	if err := sleep(ctx, 500*time.Millisecond); err != nil {
		return 0, err
	}
	start := time.Now()
	for range followers {
		f := newFollower(c, s.way, 0, after)
		f.tally.startAfter(stands)
		if err := c.join(f); err != nil {
			return 0, err
		}
	}
	if err := c.settle(ctx, int64(followers*missed)); err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, s.dismiss(c)
}

func storm(ctx context.Context, s *stage) (map[string]float64, error) {
	const followers, missed = 2000, 100
	// Who comes back was there before: memory and caches are as they would be.
	if _, err := s.crowded(ctx, followers, 1, func(*crowd) (map[string]float64, error) { return nil, nil }); err != nil {
		return nil, err
	}
	after, err := witness(ctx, s)
	if err != nil {
		return nil, err
	}
	took, err := back(ctx, s, followers, after, missed)
	return map[string]float64{"time": milli(took)}, err
}

func replay(ctx context.Context, s *stage) (map[string]float64, error) {
	const missed = 100_000
	after, err := witness(ctx, s)
	if err != nil {
		return nil, err
	}
	took, err := back(ctx, s, 1, after, missed)
	return map[string]float64{"replayed": missed / took.Seconds() / 1000}, err
}

func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func milli(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
