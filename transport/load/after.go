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
	o.Rate, o.Batch = 0, together(o.Rows, o.Payload)
	y := &run{o: o, base: x.base, exactly: true, keys: o.Rows}
	// Whole requests for each: those after the last row begin with the first again.
	each := (o.Rows + o.Batch - 1) / o.Batch * o.Batch
	if err := y.write(ctx, 0, int64(each)*int64(o.Collections)); err != nil {
		return err
	}
	x.keys, x.from = o.Rows, y.from
	return nil
}

// together is how many rows go in one request: as many as a server takes, of changes and of bytes.
func together(rows, payload int) int {
	return max(1, min(500, rows, 900_000/(payload+150)))
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
	o.Collection, o.Collections, o.Rate, o.Batch, o.Followers = o.Collection+"-replay", 1, 0, together(o.Replay, o.Payload), o.ReplayBy
	y := &run{o: o, base: x.base, exactly: true, keys: o.Replay}
	if err := y.write(ctx, 0, int64(o.Replay)); err != nil {
		return err
	}
	for range o.ReplayBy {
		f := &follower{o: &y.o, base: x.base, collection: y.collection(0), seen: new(Check), bytes: &y.bytes}
		f.seen.Begin(0) // all must come
		y.all = append(y.all, f)
	}
	began := time.Now()
	c, err := y.follow(ctx, 0)
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	c.leave()
	y.judge(&x.report)
	x.report.ReplayRowsS, x.report.ReplayMBS = float64(y.deliveries())/took, float64(y.bytes.Load())/took/1e6
	return nil
}
