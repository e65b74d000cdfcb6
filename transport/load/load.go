package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options say what to do. URL, Tenant and Transport must be set.
type Options struct {
	URL, Tenant string
	Token       string // "" for none
	Transport   string // sse, websocket or poll
	Collection  string // what the names of collections begin with

	Followers   int // 0: writes only
	Collections int // followers and writes are spread over them; at least 1
	ConnectRate int // followers a second; at least 1

	Rate     float64       // changes a second in all; 0: as fast as Writers can, one write after another each
	Writers  int           // connections that write; at least 1
	Batch    int           // changes a request; at least 1
	Payload  int           // bytes of a value, about
	Duration time.Duration // of the writes

	Rows     int // so many rows are in each collection before followers come, who need not read them; 0: none
	Laggards int // of the followers read 1 KB a second, and do not count

	Storm    int    // after that: so many changes while no follower is there, then all come back at once; 0: none
	Restart  string // after that: a command that restarts the server; "": none
	Replay   int    // after that: so many rows, which followers read from nothing; 0: none
	ReplayBy int    // so many followers at once; at least 1

	PID  int                  // of a server on this machine; 0: who listens at URL there, if that can be found out
	Logf func(string, ...any) // hears what goes wrong on the way; nil: nobody

	header string
}

// Report is how it went. Durations are in microseconds.
type Report struct {
	Transport   string  `json:"transport"`
	Followers   int     `json:"followers"`
	Collections int     `json:"collections"`
	ConnectS    float64 `json:"connect_s"` // until the last follower was live

	Seconds    float64   `json:"seconds"` // of the writes
	Changes    int64     `json:"changes"` // acknowledged
	ChangesS   float64   `json:"changes_per_s"`
	Refused    int64     `json:"refused"`    // requests that were not answered with 200
	Missed     int64     `json:"missed"`     // changes for which it came too late: the server, or this machine, could not keep the rate
	WriteUS    Quantiles `json:"write_us"`   // from request to answer
	Deliveries int64     `json:"deliveries"` // changes that followers were given
	DeliverS   float64   `json:"deliveries_per_s"`
	LatencyUS  Quantiles `json:"latency_us"` // from before the request to the follower
	BytesS     float64   `json:"bytes_per_s"`

	// What came wrong, of all followers: it must be 0.
	Gaps     int `json:"gaps"`
	Doubles  int `json:"doubles"`
	Disorder int `json:"disorder"`
	Strange  int `json:"strange"` // changes that nobody wrote, or not so
	// What may happen: a connection that broke, and rows that came anew.
	Reconnects int `json:"reconnects"`
	Resets     int `json:"resets"`

	StormS      float64 `json:"storm_s,omitempty"`   // until the last follower had caught up
	RestartS    float64 `json:"restart_s,omitempty"` // from the command's beginning until the last follower was live
	ReplayRowsS float64 `json:"replay_rows_per_s,omitempty"`
	ReplayMBS   float64 `json:"replay_mb_per_s,omitempty"`

	Server *Server `json:"server,omitempty"`
}

// Server is what a server on this machine used.
type Server struct {
	CPUPerDeliveryUS float64 `json:"cpu_us_per_delivery,omitempty"` // during the writes, those included
	CPUPerChangeUS   float64 `json:"cpu_us_per_change"`
	Cores            float64 `json:"cores"`      // busy, on average
	RSSBefore        int64   `json:"rss_before"` // bytes
	RSSIdle          int64   `json:"rss_idle"`   // with all followers, before the writes
	RSSEnd           int64   `json:"rss_end"`
	RSSRestart       int64   `json:"rss_restart,omitempty"` // the most since the restart
	PerFollower      int64   `json:"rss_per_follower"`
}

// Quantiles of durations.
type Quantiles struct {
	P50 int64 `json:"p50"`
	P90 int64 `json:"p90"`
	P99 int64 `json:"p99"`
	Max int64 `json:"max"`
}

func quantiles(h *Histogram) Quantiles {
	return Quantiles{h.Quantile(0.5).Microseconds(), h.Quantile(0.9).Microseconds(), h.Quantile(0.99).Microseconds(), h.Max().Microseconds()}
}

// Faults is how much came wrong.
func (r *Report) Faults() int { return r.Gaps + r.Doubles + r.Disorder + r.Strange }

// run is one load.
type run struct {
	o       Options
	base    *url.URL
	report  Report
	all     []*follower
	latency Histogram
	writes  Histogram
	bytes   atomic.Int64
	changes atomic.Int64
	refused atomic.Int64
	missed  atomic.Int64
	n       atomic.Int64 // changes that were begun
	exactly bool         // no write may be refused
	keys    int          // how many rows of a collection are written, in turn
	from    string       // the cursor where followers begin
	newest  uint64       // guarded by mu: what from stands for

	mu      sync.Mutex
	written []map[string]*pages // guarded by mu: one for each phase, by collection
}

// Run puts the server under load. An error says why that could not be done; what the server did
// wrong is in the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	base, err := url.Parse(strings.TrimSuffix(o.URL, "/"))
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, fmt.Errorf("%q is no http or https URL", o.URL)
	}
	if need := uint64(max(o.Followers, o.ReplayBy)+o.Writers) + 50; need > descriptors() {
		return nil, fmt.Errorf("%d followers and %d writers need %d file descriptors, and this process may have %d: raise it (ulimit -n %d), here and where the server runs", max(o.Followers, o.ReplayBy), o.Writers, need, descriptors(), need)
	}
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	if o.Token != "" {
		o.header = "Authorization: Bearer " + o.Token + "\r\n"
	}
	if o.PID == 0 {
		o.PID = serverOf(base)
	}
	_, hangUp, err := dial(ctx, base) // is there a server at all?
	if err != nil {
		return nil, err
	}
	hangUp()
	x := &run{o: o, base: base, keys: 10_000}
	x.report = Report{Transport: o.Transport, Followers: o.Followers, Collections: o.Collections}
	if err := x.fill(ctx); err != nil {
		return nil, err
	}
	before, err := look(o.PID)
	if err != nil {
		return nil, err
	}
	connected, err := x.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer connected.leave()
	select { // proofs of the path, 300 ms after the start, and garbage
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
	idle, _ := look(o.PID)
	deliveries, bytes, began := x.deliveries(), x.bytes.Load(), time.Now()
	if err := x.write(ctx, o.Duration, 0); err != nil {
		return nil, err
	}
	if err := x.settle(ctx); err != nil {
		return nil, err
	}
	took := time.Since(began)
	end, _ := look(o.PID)
	r := &x.report
	r.Seconds, r.Changes, r.Refused, r.Missed = took.Seconds(), x.changes.Load(), x.refused.Load(), x.missed.Load()
	r.Deliveries = x.deliveries() - deliveries
	r.ChangesS, r.DeliverS, r.BytesS = float64(r.Changes)/took.Seconds(), float64(r.Deliveries)/took.Seconds(), float64(x.bytes.Load()-bytes)/took.Seconds()
	r.WriteUS, r.LatencyUS = quantiles(&x.writes), quantiles(&x.latency)
	if o.PID > 0 {
		cpu := (end.cpu - idle.cpu)
		r.Server = &Server{RSSBefore: before.rss, RSSIdle: idle.rss, RSSEnd: end.rss, Cores: cpu.Seconds() / took.Seconds(),
			CPUPerDeliveryUS: float64(cpu.Microseconds()) / float64(max(r.Deliveries, 1)), CPUPerChangeUS: float64(cpu.Microseconds()) / float64(max(r.Changes, 1))}
		if o.Followers > 0 {
			r.Server.PerFollower = (idle.rss - before.rss) / int64(o.Followers)
		} else {
			r.Server.CPUPerDeliveryUS = 0
		}
	}
	if o.Storm > 0 && o.Followers > 0 {
		if connected, err = x.storm(ctx, connected); err != nil {
			return nil, err
		}
	}
	if o.Restart != "" {
		if err := x.restart(ctx); err != nil {
			return nil, err
		}
	}
	connected.leave()
	x.judge(r)
	if o.Replay > 0 {
		if err := x.replay(ctx); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (x *run) deliveries() (n int64) {
	for _, f := range x.all {
		if !f.slow {
			n += f.frames.Load()
		}
	}
	return n
}

func (x *run) collection(i int) string {
	return fmt.Sprintf("%s-%d", x.o.Collection, i%x.o.Collections)
}

// crowd are followers that are connected.
type crowd struct{ leave func() }

// connect connects all followers, and returns when all are live.
func (x *run) connect(ctx context.Context) (*crowd, error) {
	began := time.Now()
	for i := range x.o.Followers {
		x.all = append(x.all, &follower{
			o: &x.o, base: x.base, collection: x.collection(i), seen: new(Check), latency: &x.latency, bytes: &x.bytes,
			slow: i < x.o.Laggards, cursor: x.from,
		})
	}
	c, err := x.follow(ctx, x.o.ConnectRate)
	x.report.ConnectS = time.Since(began).Seconds()
	return c, err
}

// follow runs all followers, so many more a second, and returns when all are live.
func (x *run) follow(ctx context.Context, rate int) (*crowd, error) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	c := &crowd{leave: func() { cancel(); running.Wait() }}
	next := time.Now()
	var lives []chan struct{}
	denied := make(chan error, 1)
	for _, f := range x.all {
		f.lives, f.denied = make(chan struct{}), denied
		if !f.slow {
			lives = append(lives, f.lives)
		}
		running.Go(func() { f.run(ctx) })
		if rate > 0 {
			next = next.Add(time.Second / time.Duration(rate))
			pause(ctx, time.Until(next))
		}
		if ctx.Err() != nil {
			break
		}
	}
	patience := time.After(30 * time.Second)
	for i, live := range lives {
		select {
		case <-live:
		case err := <-denied:
			c.leave()
			return nil, fmt.Errorf("a follower was %w", err)
		case <-patience:
			c.leave()
			err := errors.New("they get no answer")
			for _, f := range x.all {
				if why := f.why.Load(); why != nil {
					err = *why
					break
				}
			}
			return nil, fmt.Errorf("after 30 s only %d of %d followers are live: %w", i, len(lives), err)
		case <-ctx.Done():
			c.leave()
			return nil, ctx.Err()
		}
	}
	return c, nil
}

// write writes for so long, or so many changes.
func (x *run) write(ctx context.Context, d time.Duration, most int64) error {
	x.mu.Lock()
	x.written = append(x.written, make(map[string]*pages))
	x.mu.Unlock()
	whole := ctx
	ctx, cancel := context.WithCancelCause(whole)
	defer cancel(nil)
	over := time.Now().Add(d)
	var left atomic.Int64
	left.Store(most)
	due := make(chan struct{})
	var all sync.WaitGroup
	if x.o.Rate > 0 && most == 0 {
		all.Go(func() {
			defer close(due)
			each := time.Duration(float64(x.o.Batch) / x.o.Rate * float64(time.Second))
			next := time.Now()
			for ; next.Before(over); next = next.Add(each) {
				pause(ctx, time.Until(next))
				if ctx.Err() != nil || time.Now().After(over) {
					break
				}
				select {
				case due <- struct{}{}:
				case <-ctx.Done():
				}
			}
			x.missed.Add(max(0, int64(over.Sub(next)/each)) * int64(x.o.Batch))
		})
	} else {
		close(due)
	}
	for range x.o.Writers {
		all.Go(func() {
			s := x.sender()
			defer s.close()
			for ctx.Err() == nil {
				if x.o.Rate > 0 && most == 0 {
					if _, ok := <-due; !ok {
						return
					}
				} else if most == 0 && time.Now().After(over) || most > 0 && left.Add(-int64(x.o.Batch)) < -int64(x.o.Batch)+1 {
					return
				}
				if err := x.post(ctx, s, x.o.Batch); err != nil {
					cancel(err)
				}
			}
		})
	}
	all.Wait()
	if err := whole.Err(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// post writes one request, of a collection.
func (x *run) post(ctx context.Context, s *sender, batch int) error {
	first := x.n.Add(int64(batch)) - int64(batch)
	turn := int(first / int64(batch))
	name := x.collection(turn)
	sent := time.Now()
	row := func(i int) int { return (turn/x.o.Collections*batch + i) % x.keys }
	b := append(s.body[:0], `{"changes":[`...)
	for i := range batch {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendQuote(append(b, `{"collection":`...), name)
		b = strconv.AppendInt(append(b, `,"op":"put","key":"`...), int64(row(i)), 10)
		b = strconv.AppendInt(append(b, `","value":{"t":`...), sent.UnixNano(), 10)
		b = append(b, `,"pad":"`...)
		for range x.o.Payload - 40 {
			b = append(b, 'x')
		}
		b = append(b, `"}}`...)
	}
	s.body = append(b, "]}"...)
	status, answer, err := s.send(ctx, s.body)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		x.refused.Add(1)
		x.o.Logf("a write was answered %d: %s", status, bytes.TrimSpace(answer))
		if x.exactly || status/100 == 4 && status != http.StatusTooManyRequests {
			return fmt.Errorf("a write was answered %d: %s", status, bytes.TrimSpace(answer))
		}
		return nil
	}
	x.writes.Add(time.Since(sent))
	x.changes.Add(int64(batch))
	if s.seqs = sequences(s.seqs[:0], answer); len(s.seqs) != batch {
		return fmt.Errorf("the answer to a write can't be read: %s", answer)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if last := s.seqs[batch-1]; last > x.newest {
		x.newest, x.from = last, quoted(answer, cursorMark)
	}
	phase := x.written[len(x.written)-1]
	w := phase[name]
	if w == nil {
		w = new(pages)
		phase[name] = w
	}
	for i, seq := range s.seqs {
		w.add(Written{seq, row(i), sent.UnixNano()})
	}
	return nil
}

// pause waits for so long, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// pages are the writes to a collection. To make one list of a million longer took 100 ms, and all writers waited.
type pages [][]Written

func (p *pages) add(w Written) {
	last := len(*p) - 1
	if last < 0 || len((*p)[last]) == cap((*p)[last]) {
		last++
		*p = append(*p, make([]Written, 0, 64<<min(last, 7)))
	}
	(*p)[last] = append((*p)[last], w)
}

// settleWithin is how long followers may be behind the last write before it counts as lost.
const settleWithin = 20 * time.Second

// settle waits until all followers have come to the last write of their collection.
func (x *run) settle(ctx context.Context) error {
	target := make(map[string]uint64)
	for _, phase := range x.written {
		for name, writes := range phase {
			for _, page := range *writes {
				for _, w := range page {
					target[name] = max(target[name], w.Seq)
				}
			}
		}
	}
	patience := time.Now().Add(settleWithin)
	for _, f := range x.all {
		for !f.slow && f.last.Load() < target[f.collection] && time.Now().Before(patience) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// judge holds what followers got against what was written. None may be running.
func (x *run) judge(r *Report) {
	of := make(map[string][]Written)
	for _, phase := range x.written {
		for name, writes := range phase {
			of[name] = append(of[name], slices.Concat(*writes...)...)
		}
	}
	for _, f := range x.all {
		if f.slow {
			continue
		}
		r.Gaps += f.seen.Gaps(of[f.collection])
		r.Strange += f.seen.Strange(of[f.collection])
		r.Doubles += f.seen.Doubles
		r.Disorder += f.seen.Disorder
		r.Resets += f.seen.Resets
		r.Reconnects += f.reconnects
	}
}
