package hub

import (
	"time"

	"github.com/tidemark-sync/tidemark/sync/fault"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Clock is where a hub has its time from. It may be called concurrently.
type Clock interface {
	// Wall is the time of day, which people and machines may set.
	Wall() time.Time
	// Up is the time since a boot of the machine that boot names, suspended or not.
	// Nobody sets it. Boot 0: which boot is not known, and up is good for this process only.
	Up() (boot uint64, up time.Duration)
}

// goClock is what Go has: time since the start of the process, while it is not suspended.
type goClock struct{ start time.Time }

func (c goClock) Wall() time.Time             { return time.Now().Add(fault.Skew()) }
func (c goClock) Up() (uint64, time.Duration) { return 0, time.Since(c.start) }

// times count on from where the log's last group left them.
type times struct {
	clock Clock
	from  feed.Times
}

// countTimes begins to count after a group, or where the log is empty (position 0).
func countTimes(c Clock, position feed.Position, last feed.Times) times {
	boot, up := c.Up()
	wall := wallOf(c)
	now := feed.Times{Age: last.Age, Steady: max(last.Steady, wall), Boot: boot, Up: millis(up)}
	switch {
	case position == 0:
		now.Age = wall
	case boot != 0 && boot == last.Boot:
		now.Steady = min(last.Steady+max(now.Up-last.Up, 0), feed.MaxTime)
	}
	return times{c, now}
}

// now never goes back.
func (t *times) now() feed.Times {
	_, up := t.clock.Up()
	passed := max(millis(up)-t.from.Up, 0)
	return feed.Times{
		Age: min(t.from.Age+passed, feed.MaxTime), Steady: min(t.from.Steady+passed, feed.MaxTime),
		Boot: t.from.Boot, Up: t.from.Up + passed,
	}
}

// wallOf is the time of day in milliseconds since 1970, within what a log can hold.
func wallOf(c Clock) int64 { return min(max(c.Wall().UnixMilli(), 0), feed.MaxTime) }

func millis(up time.Duration) int64 { return max(up.Milliseconds(), 0) }
