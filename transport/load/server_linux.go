package load

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// usage is what a process has used, and uses.
type usage struct {
	cpu time.Duration
	rss int64
}

// tick is what /proc counts CPU in: USER_HZ, which is 100 on every platform that Go knows.
const tick = time.Second / 100

// look looks at a process, of which nothing is known if it is 0.
func look(pid int) (u usage, err error) {
	if pid == 0 {
		return u, nil
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, fmt.Errorf("look at process %d: %w", pid, err)
	}
	// proc(5): the name, which may hold anything, is in parentheses; utime and stime are 11
	// and 12 after it, and rss, in pages, 21.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 22 {
		return u, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	number := func(i int) int64 { n, _ := strconv.ParseInt(string(fields[i]), 10, 64); return n }
	return usage{time.Duration(number(11)+number(12)) * tick, number(21) * int64(os.Getpagesize())}, nil
}
