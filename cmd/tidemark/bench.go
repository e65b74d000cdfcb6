package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tidemark-sync/tidemark/transport/load"
)

// BenchCmd puts a server under load.
type BenchCmd struct {
	Remote      `embed:""`
	Followers   int           `default:"100" help:"How many follow; 0: none. Default: ${default}."`
	Transport   string        `default:"sse" enum:"sse,websocket,poll" help:"How they follow: ${enum}. Default: ${default}."`
	Collections int           `default:"1" help:"Over how many collections followers and writes are spread. Default: ${default}."`
	Rate        *float64      `xor:"rate" placeholder:"20" help:"Changes a second, in all. Default: 20, unless --flat-out is said."`
	FlatOut     bool          `xor:"rate" help:"As many as --writers can, each one request after another."`
	Writers     int           `default:"16" help:"Connections that write. Default: ${default}."`
	Batch       int           `default:"1" help:"Changes a request. Default: ${default}."`
	Payload     int           `default:"200" help:"Bytes of a row's value, about. Default: ${default}."`
	Duration    time.Duration `default:"10s" help:"How long to write. Default: ${default}."`
	ConnectRate int           `default:"1000" help:"Followers that connect a second. Default: ${default}."`
	Storm       int           `help:"Then all followers leave, so many changes are written, and all come back at once. Default: not."`
	Restart     string        `placeholder:"COMMAND" help:"Then this command restarts the server, and all followers must come back. Default: not."`
	Replay      int           `help:"Then so many rows are written, and read from nothing. Default: not."`
	ReplayBy    int           `default:"1" help:"How many followers read them at once. Default: ${default}."`
	Rows        int           `help:"Rows that are in each collection before followers come, who begin behind them. Default: none."`
	Laggards    int           `help:"How many of the followers read 1 KB a second; they do not count. Default: none."`
	PID         int           `name:"pid" help:"The server's process, if it is on this machine: what it uses is told, too (Linux). Default: who listens at --url."`
	JSON        bool          `name:"json" help:"Print JSON."`
	Verbose     bool          `help:"Say what goes wrong on the way, on standard error."`
}

// Help teaches.
func (BenchCmd) Help() string {
	return `Followers are connected, changes are written, and what every follower is given is held against what was written: gaps, doubles, disorder and changes that nobody wrote are counted, and make it exit with 1. Rows go to collections whose names begin with "bench-"; they stay there: give it a tenant of its own, which can be forgotten.

1,000 followers over WebSocket, 20 changes a second, and what the server uses for it:

    tidemark bench --followers 1000 --transport websocket

How many writes it takes:

    tidemark bench --followers 0 --flat-out --writers 64

All followers drop and come back, 100 changes behind:

    tidemark bench --followers 2000 --duration 1s --storm 100

What a restart costs those who follow:

    tidemark bench --followers 10000 --connect-rate 5000 --restart 'systemctl restart tidemark'

It needs a file descriptor for each follower (ulimit -n), and so does the server, whose limits on feeds of one address it meets, too (--max-feeds-per-address).`
}

// Run runs it.
func (c *BenchCmd) Run(ctx context.Context, std stdio) error {
	for _, limit := range []struct {
		name    string
		n, from int
		most    int
	}{
		{"followers", c.Followers, 0, 100_000}, {"collections", c.Collections, 1, 1_000_000}, {"writers", c.Writers, 1, 10_000}, {"batch", c.Batch, 1, 500},
		{"payload", c.Payload, 0, 1 << 19}, {"connect-rate", c.ConnectRate, 1, 1_000_000}, {"storm", c.Storm, 0, 1_000_000}, {"replay", c.Replay, 0, 10_000_000},
		{"replay-by", c.ReplayBy, 1, 10_000}, {"rows", c.Rows, 0, 10_000_000}, {"laggards", c.Laggards, 0, max(c.Followers-1, 0)},
	} {
		if limit.n < limit.from || limit.n > limit.most {
			return misuse("--%s must be %d to %d", limit.name, limit.from, limit.most)
		}
	}
	if c.PID < 0 {
		return misuse("--pid must be that of a process")
	}
	rate := 20.0
	if c.Rate != nil {
		rate = *c.Rate
	}
	if !(rate >= 0.01 && rate <= 10_000_000) { // NaN is neither
		return misuse("--rate must be 0.01 to 10,000,000 changes a second; for as many as there can be say --flat-out")
	}
	if c.Duration <= 0 || c.Duration > 24*time.Hour {
		return misuse("--duration must be above 0, and at most 24h")
	}
	remote, err := c.options()
	if err != nil {
		return usageError{err}
	}
	o := load.Options{
		URL: c.URL, Tenant: c.Tenant, Token: strings.TrimPrefix(remote.Header.Get("Authorization"), "Bearer "), Transport: c.Transport,
		Collection: "bench-" + strconv.FormatInt(time.Now().UnixMilli(), 36),
		Followers:  c.Followers, Collections: c.Collections, ConnectRate: c.ConnectRate, Rate: rate, Writers: c.Writers, Batch: c.Batch,
		Payload: c.Payload, Duration: c.Duration, Rows: c.Rows, Laggards: c.Laggards,
		Storm: c.Storm, Restart: c.Restart, Replay: c.Replay, ReplayBy: c.ReplayBy, PID: c.PID,
	}
	if c.FlatOut {
		o.Rate = 0
	}
	if c.Verbose {
		o.Logf = func(format string, args ...any) { fmt.Fprintf(std.err, format+"\n", args...) }
	}
	r, err := load.Run(ctx, o)
	if err != nil {
		return err
	}
	if c.JSON {
		e := json.NewEncoder(std.out)
		e.SetIndent("", "  ")
		err = e.Encode(r)
	} else {
		err = printReport(std, r)
	}
	if err == nil && r.Faults() > 0 {
		err = fmt.Errorf("followers were given %d gaps, %d doubles, %d changes out of order and %d that nobody wrote", r.Gaps, r.Doubles, r.Disorder, r.Strange)
	}
	return err
}

func printReport(std stdio, r *load.Report) error {
	w := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	times := func(q load.Quantiles) string {
		ms := func(n int64) string { return strconv.FormatFloat(float64(n)/1000, 'f', 2, 64) }
		return fmt.Sprintf("p50 %s  p90 %s  p99 %s  max %s ms", ms(q.P50), ms(q.P90), ms(q.P99), ms(q.Max))
	}
	if r.Followers > 0 {
		line("followers", "%d over %s, of %d collections; all live after %.2f s", r.Followers, r.Transport, r.Collections, r.ConnectS)
	}
	line("writes", "%d changes in %.1f s, %.0f a second; %d requests refused", r.Changes, r.Seconds, r.ChangesS, r.Refused)
	if r.Missed > 0 {
		line("", "%d more were due: the rate was not kept", r.Missed)
	}
	line("to the answer", "%s", times(r.WriteUS))
	if r.Followers > 0 {
		line("to the followers", "%s", times(r.LatencyUS))
		line("deliveries", "%d, %.0f a second, %.1f MB/s", r.Deliveries, r.DeliverS, r.BytesS/1e6)
		line("checked", "%d gaps, %d doubles, %d out of order, %d that nobody wrote; %d reconnects, %d resets", r.Gaps, r.Doubles, r.Disorder, r.Strange, r.Reconnects, r.Resets)
	}
	if r.StormS > 0 {
		line("storm", "all caught up after %.0f ms", r.StormS*1000)
	}
	if r.RestartS > 0 {
		line("restart", "all live again %.2f s after it was begun", r.RestartS)
	}
	if r.ReplayRowsS > 0 {
		line("replay", "%.0f rows a second, %.0f MB/s", r.ReplayRowsS, r.ReplayMBS)
	}
	if s := r.Server; s != nil {
		if r.Followers > 0 {
			line("server, CPU", "%.2f µs a delivery, %.0f µs a change, %.2f cores", s.CPUPerDeliveryUS, s.CPUPerChangeUS, s.Cores)
			line("server, memory", "%.1f MB before, %.1f MB with followers (%.1f KB each), %.1f MB at the end", mb(s.RSSBefore), mb(s.RSSIdle), float64(s.PerFollower)/1e3, mb(s.RSSEnd))
			if s.RSSRestart > 0 {
				line("", "%.1f MB at most since the restart", mb(s.RSSRestart))
			}
		} else {
			line("server, CPU", "%.0f µs a change, %.2f cores", s.CPUPerChangeUS, s.Cores)
			line("server, memory", "%.1f MB before, %.1f MB at the end", mb(s.RSSBefore), mb(s.RSSEnd))
		}
	}
	return w.Flush()
}

func mb(n int64) float64 { return float64(n) / 1e6 }
