package faults_test

import (
	"context"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/transport/follow"
)

// follower is somebody whose network is bad: it follows by any transport for a while,
// again and again.
type follower struct {
	w    *workload
	rng  *rand.Rand
	tape tape

	names   []string
	cursors follow.Cursors
}

// restart makes it begin with nothing.
func (f *follower) restart() {
	f.tape.life++
	f.names = collections
	if f.rng.IntN(2) == 0 {
		f.names = nil
		for _, i := range f.rng.Perm(len(collections))[:1+f.rng.IntN(len(collections)-1)] {
			f.names = append(f.names, collections[i])
		}
	}
	f.cursors = follow.NewCursors(fresh(f.names)...)
}

func (f *follower) run() {
	f.restart()
	for f.w.ctx.Err() == nil {
		if f.connection() {
			return
		}
		select {
		case <-f.w.ctx.Done():
		case <-f.w.settle:
		case <-time.After(5*time.Millisecond + time.Duration(f.rng.Int64N(int64(f.w.load.away)))):
		}
		if f.rng.IntN(f.w.load.anew) == 0 {
			f.restart()
		}
	}
}

// connection makes one connection and follows it for a while; true once it has seen
// the end.
func (f *follower) connection() (settled bool) {
	stay := time.Duration(5+f.rng.IntN(700)) * time.Millisecond
	if f.rng.IntN(8) == 0 {
		stay = 5 * time.Second
	}
	ctx, cancel := context.WithCancel(f.w.ctx)
	defer cancel()
	select {
	case <-f.w.settle:
		stay = time.Minute
	default:
	}
	over := time.AfterFunc(stay, cancel)
	defer over.Stop()
	if stay < time.Minute {
		// What began before the end is cut there: whoever comes anew is live at once.
		stop := context.AfterFunc(f.w.settling, cancel)
		defer stop()
	}

	transport := follow.Transports[f.rng.IntN(len(follow.Transports))]
	hc := &http.Client{Transport: &http.Transport{}}
	defer hc.CloseIdleConnections()
	o := follow.Options{URL: f.w.s.url(), Tenant: tenant, Collections: f.cursors.Collections(), Transport: transport,
		Heartbeat: 3 * time.Second, Wait: time.Second, Limit: 1 + f.rng.IntN(200), HTTP: hc}
	f.tape.asked()
	dialing, stop := context.WithTimeout(ctx, 5*time.Second)
	c, err := follow.Dial(dialing, o)
	stop()
	if err != nil {
		return false // it comes back
	}
	defer c.Close()
	for {
		at := c.Cursors()
		frame, err := c.Next(ctx)
		if err != nil {
			return false
		}
		f.tape.frame(transport, at, frame)
		f.cursors = c.Cursors()
		if frame.Type != "live" {
			continue
		}
		if final := f.w.final.Load(); final != nil {
			end, _ := feed.ParseCursor(final.Cursor)
			here, _ := feed.ParseCursor(frame.Cursor)
			if here.Epoch == end.Epoch && here.Seq >= end.Seq {
				return true
			}
		}
	}
}
