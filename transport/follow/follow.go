package follow

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

const (
	dialTimeout = 20 * time.Second // bounds one try to connect
	proof       = 5 * time.Second  // how long a connection lives that is no failure, even without news
)

// Step is what Follow hands out: something that a user could see.
type Step struct {
	Connection int    // which one it came over, 0 the first
	Transport  string // of that connection
	// Frames are the changes of one transaction, or one frame of another type; none
	// if the connection was lost.
	Frames []Frame
	// Cursors is where another Follow goes on once this step is done with. Between a
	// reset and the next live it does not say that the reset still lasts: whoever
	// resumes there remembers that beside the cursors.
	Cursors Cursors
	// Idle: nothing more has come yet. A good moment to flush what was written.
	Idle bool

	Lost error         // why the connection is gone, or could not be made
	Wait time.Duration // how long until the next one
}

// Follow follows a feed and calls fn with each step, in order, on the caller's
// goroutine, until ctx ends, or fn returns an error, or going on is useless. What it
// returns is, in this order, the cause of ctx's end, fn's error as it is, a *Problem
// that will not change by itself, an *Ended without a time to come back, or an
// ErrTooLarge.
//
// A lost connection is made anew after Backoff, never before the time that the
// server asked for; what follows continues at the cursors of the last step. Before
// the first frame any refusal by a 4xx ends Follow (a mistake in the URL is then
// seen at once); later, only one in the protocol's words does, so that a proxy that
// is being restarted does not.
func Follow(ctx context.Context, o Options, fn func(Step) error) error {
	checked, err := o.check()
	if err != nil {
		return err
	}
	if len(o.Collections) == 0 {
		return errNoCollection
	}
	client, done := checked.client()
	defer done()
	f := &follower{o: checked, http: client, fn: fn, cursors: NewCursors(o.Collections...)}
	for ; ; f.n++ {
		lost := f.connection(ctx)
		switch {
		case f.stopped != nil:
			return f.stopped
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case f.useless(lost):
			return lost
		}
		wait := f.wait(lost)
		f.step(Step{Lost: lost, Wait: wait, Idle: true})
		if f.stopped != nil {
			return f.stopped
		}
		if !pause(ctx, wait) {
			return context.Cause(ctx)
		}
	}
}

// follower is one run of Follow, owned by its caller's goroutine.
type follower struct {
	o       Options
	http    *http.Client
	fn      func(Step) error
	stopped error // fn's

	n         int
	transport string
	tries     int           // connections in a row that brought nothing
	retry     time.Duration // what an event stream asked for
	opened    bool
	cursors   Cursors
}

// connection makes one connection and follows it to its end.
func (f *follower) connection(ctx context.Context) error {
	o := f.o
	o.HTTP = f.http
	if o.Pick != nil {
		o.Transport = o.Pick(f.n)
	}
	f.transport = o.Transport
	o, err := o.check() // what Pick has said
	if err != nil {
		f.stopped = err
		return err
	}
	dialing, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("no answer within %v", dialTimeout))
	c, err := dial(dialing, o, f.cursors)
	cancel()
	if err != nil {
		return err
	}
	defer c.Close()

	began := time.Now()
	var held []Frame // the transaction that has begun
	size := 0
	for {
		frame, err := c.Next(ctx)
		if err != nil {
			return err
		}
		f.opened = true
		f.retry = c.events.retry
		frames := []Frame{frame}
		switch frame.Type {
		case "change":
			held, size = append(held, frame), size+len(frame.Raw)
			if frame.More {
				if size > 4*o.MaxLine {
					return fmt.Errorf("a transaction of more than %d bytes: %w", 4*o.MaxLine, ErrTooLarge)
				}
				continue
			}
			frames, held, size = held, nil, 0
			f.tries = 0
		case "open":
			held, size = nil, 0 // the next poll of a sequence: what was cut off comes again
		case "live":
			// Being live at once and gone soon after is what a box does that kills streams:
			// it proves nothing yet.
			if time.Since(began) >= proof {
				f.tries = 0
			}
		}
		f.step(Step{Frames: frames, Cursors: c.Cursors(), Idle: c.Idle()})
		if f.stopped != nil {
			return f.stopped
		}
	}
}

// step hands out one step.
func (f *follower) step(s Step) {
	s.Connection, s.Transport = f.n, f.transport
	if s.Lost != nil {
		s.Cursors = f.cursors
	}
	f.cursors = s.Cursors
	f.stopped = f.fn(s)
}

// useless tells whether coming back unchanged would end in the same way.
func (f *follower) useless(err error) bool {
	var end *Ended
	if errors.As(err, &end) {
		return !end.Again
	}
	var p *Problem
	if errors.As(err, &p) && p.Status >= 400 && p.Status < 500 && !p.Temporary() {
		if f.o.Pick != nil && p.Status == http.StatusUpgradeRequired {
			return false // another transport may do
		}
		return p.Code != "" || !f.opened
	}
	return errors.Is(err, ErrTooLarge)
}

// wait is how long to stay away.
func (f *follower) wait(err error) time.Duration {
	wait := backoff(f.tries, f.retry)
	f.tries++
	var end *Ended
	if errors.As(err, &end) {
		wait = max(wait, end.Retry)
	}
	var p *Problem
	if errors.As(err, &p) && p.RetryAfter > 0 {
		wait += p.RetryAfter // the server gives many the same time: the random part spreads them
	}
	return wait
}
