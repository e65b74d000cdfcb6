//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tidemark-sync/tidemark/transport/load"
)

// emptyHandler is no rival but a bound: what Go's HTTP server can do that does nothing.
func emptyHandler() *contender {
	return &contender{
		name:  "empty handler",
		about: "a handler of Go's `net/http` that reads the request and answers a line (`cmd/rivals/gosse`)",
		version: func(ctx context.Context, p *paths) (string, error) {
			text, err := output(ctx, "go", "version", filepath.Join(p.bin, "gosse"))
			return "net/http of " + text[strings.LastIndexByte(text, ' ')+1:], err
		},
		launch: func(p *paths, _ string, to netip.AddrPort) (launch, error) {
			return launch{cmd: exec.Command(filepath.Join(p.bin, "gosse"), to.String()), ready: "/ready"}, nil
		},
		dialect: posts(func(int) string { return "/empty" }, bare, bare),
	}
}

// tidemarkPosts is a change for each request; the rows are as many as there are channels.
func tidemarkPosts() *dialect {
	return posts(func(int) string { return "/v1/rivals/changes" }, func(channel int) string {
		return fmt.Sprintf(`{"changes":[{"collection":"posts","op":"put","key":"%d","value":`, channel)
	}, func(int) string { return "}]}" })
}

// poster is a connection that posts one message after another.
type poster struct {
	fd     int
	answer answer
	at     time.Duration // when the request under way was sent
	buf    []byte
}

// posting has so many connections post, each once it was answered, and tells how many were a second. One
// thread does it for all, as with followers.
func posting(ctx context.Context, s *stage) (map[string]float64, error) {
	const lasts, warm, channels = 4 * time.Second, 500 * time.Millisecond, 10_000
	d := s.contender.posts()
	var connections int
	if _, err := fmt.Sscanf(s.way.transport, "%d", &connections); err != nil {
		return nil, err
	}
	poller, err := newPoller()
	if err != nil {
		return nil, err
	}
	defer poller.close()
	var latency load.Histogram
	all := make([]*poster, connections)
	sent, answered, from := 0, 0, now()+warm
	for i := range all {
		p := &poster{}
		if p.fd, err = dial(s.server.to); err != nil {
			return nil, err
		}
		defer hang(p.fd)
		if err := poller.add(p.fd, i); err != nil {
			return nil, err
		}
		post := func() error {
			sent++
			p.at = now()
			p.buf = d.encode(p.buf[:0], sent%channels, []record{{sent % channels, uint64(sent), p.at}}, messageSize)
			return send(p.fd, p.buf)
		}
		p.answer = answer{
			onHead: func(h head) (bool, error) {
				if h.status/100 != 2 {
					return false, fmt.Errorf("a message was answered %d", h.status)
				}
				return false, nil
			},
			onBody: func(b []byte) {
				if len(d.no) > 0 && bytes.Contains(b, d.no) && err == nil {
					err = fmt.Errorf("a message was refused: %.200q", b)
				}
			},
			onEnd: func() error {
				if p.at >= from {
					answered++
					latency.Add(now() - p.at)
				}
				return post()
			},
		}
		all[i] = p
		if err := post(); err != nil {
			return nil, err
		}
	}
	var before usage
	came := now()
	buf := make([]byte, 64<<10)
	for now() < from+lasts {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if before == nil && now() >= from {
			if before, err = usageOf(s.server.cmd.Process.Pid); err != nil {
				return nil, err
			}
		}
		events, werr := poller.wait(patience)
		if werr != nil {
			return nil, werr
		}
		switch {
		case len(events) > 0:
			came = now()
		case now() > came+patience: // it may have been a signal
			return nil, errors.New("nothing is answered any more")
		}
		for _, e := range events {
			p := all[e.Fd]
			n, rerr := syscall.Read(p.fd, buf)
			switch {
			case errors.Is(rerr, syscall.EAGAIN), errors.Is(rerr, syscall.EINTR):
				continue
			case rerr != nil:
				return nil, os.NewSyscallError("read", rerr)
			case n == 0:
				return nil, io.ErrUnexpectedEOF
			}
			if ferr := p.answer.feed(buf[:n]); ferr != nil {
				return nil, ferr
			}
		}
		if err != nil {
			return nil, err
		}
	}
	after, err := usageOf(s.server.cmd.Process.Pid)
	return map[string]float64{
		"rate": float64(answered) / lasts.Seconds() / 1000,
		"cpu":  micro(before.until(after)) / float64(max(1, answered)),
		"p50":  milli(latency.Quantile(0.5)),
		"p99":  milli(latency.Quantile(0.99)),
	}, err
}
