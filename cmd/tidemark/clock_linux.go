package main

import (
	"hash/fnv"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidemark-sync/tidemark/sync/fault"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// kernelClock counts since the machine's boot, which the kernel names.
type kernelClock struct{ boot uint64 }

// bootClock is a clock that a restart of the process does not lose; nil where there is
// none, and then the hub has its own.
func bootClock() hub.Clock {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(id) == 0 {
		return nil
	}
	sum := fnv.New64a()
	sum.Write(id)
	return kernelClock{max(1, sum.Sum64())}
}

func (kernelClock) Wall() time.Time { return time.Now().Add(fault.Skew()) }

func (k kernelClock) Up() (uint64, time.Duration) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("the kernel has no time since its boot: " + err.Error()) // it has, since 2.6.39
	}
	return k.boot, time.Duration(t.Nano())
}
