package load

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"time"
)

// fill writes the rows that are to be there before.
func (x *run) fill(ctx context.Context) error {
	if x.o.Rows == 0 {
		return nil
	}
	o := x.o
	o.Rate, o.Batch = 0, 500
	y := &run{o: o, base: x.base, keys: o.Rows}
	if err := y.write(ctx, 0, int64(o.Rows)*int64(o.Collections)); err != nil {
		return err
	}
	x.keys, x.from = o.Rows, y.from
	return nil
}

// storm has all followers leave, writes, and has them come back at once.
func (x *run) storm(ctx context.Context, c *crowd) (*crowd, error) {
	c.leave()
	if err := x.write(ctx, 0, int64(x.o.Storm)); err != nil {
		return c, err
	}
	began := time.Now()
	back, err := x.follow(ctx, 0)
	if err != nil {
		return c, err
	}
	err = x.settle(ctx)
	x.report.StormS = time.Since(began).Seconds()
	return back, err
}

// restartWithin is how long followers may take to come back.
const restartWithin = 2 * time.Minute

// restart runs the command, waits until all followers are live again, and writes once more.
func (x *run) restart(ctx context.Context) error {
	was := make([]int64, len(x.all))
	for i, f := range x.all {
		was[i] = f.lived.Load()
	}
	began := time.Now()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "sh", "-c", x.o.Restart)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second // a server that it started may hold its output open
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != 0 {
		return fmt.Errorf("%s: %w: %s", x.o.Restart, err, bytes.TrimSpace(said.Bytes()))
	}
	for i, f := range x.all {
		for !f.slow && f.lived.Load() == was[i] {
			if time.Since(began) > restartWithin {
				return fmt.Errorf("%s after the restart not all followers are live again", restartWithin)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			time.Sleep(time.Millisecond)
		}
	}
	x.report.RestartS = time.Since(began).Seconds()
	if err := x.write(ctx, min(x.o.Duration, 2*time.Second), 0); err != nil {
		return err
	}
	if err := x.settle(ctx); err != nil {
		return err
	}
	if r := x.report.Server; r != nil {
		u, err := look(serverOf(x.base))
		r.RSSRestart = u.most
		return err
	}
	return nil
}

// replay writes rows, and has followers read them, all at once.
func (x *run) replay(ctx context.Context) error {
	o := x.o
	o.Collection, o.Collections, o.Rate, o.Batch, o.Followers = o.Collection+"-replay", 1, 0, 500, o.ReplayBy
	y := &run{o: o, base: x.base, keys: o.Replay}
	if err := y.write(ctx, 0, int64(o.Replay)); err != nil {
		return err
	}
	for range o.ReplayBy {
		y.all = append(y.all, &follower{o: &y.o, base: x.base, collection: y.collection(0), seen: new(Check), latency: &y.latency, bytes: &y.bytes})
	}
	began := time.Now()
	c, err := y.follow(ctx, 0)
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	c.leave()
	x.report.ReplayRowsS, x.report.ReplayMBS = float64(y.deliveries())/took, float64(y.bytes.Load())/took/1e6
	return nil
}
