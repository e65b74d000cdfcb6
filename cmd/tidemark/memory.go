package main

import (
	"bytes"
	"math"
	"os"
	"runtime/debug"
	"strconv"
)

// usableMemory is how many bytes this process may use: the least of GOMEMLIMIT, the
// control group's limit and the machine's memory. Where none of them can be read (no
// Linux), 2 GiB.
func usableMemory() int64 {
	limit := debug.SetMemoryLimit(-1)
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64); err == nil && n > 0 {
			limit = min(limit, n)
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if rest, ok := bytes.CutPrefix(b, []byte("MemTotal:")); ok {
			if fields := bytes.Fields(rest); len(fields) > 0 {
				if kb, err := strconv.ParseInt(string(fields[0]), 10, 64); err == nil {
					limit = min(limit, kb<<10)
				}
			}
		}
	}
	if limit == math.MaxInt64 {
		return 2 << 30
	}
	return limit
}
