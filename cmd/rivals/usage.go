//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// usage is what a server's processes have used of the processors, by thread. It comes from the
// scheduler, to the nanosecond: /proc/PID/stat counts in hundredths of a second.
type usage map[int]time.Duration

// family is a process and those that come from it.
func family(pid int) (all []int) {
	all = []int{pid}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread is gone
		}
		for _, word := range bytes.Fields(text) {
			if child, err := strconv.Atoi(string(word)); err == nil {
				all = append(all, family(child)...)
			}
		}
	}
	return all
}

// usageOf looks at a process and those that come from it.
func usageOf(pid int) (usage, error) {
	u := make(usage)
	for _, process := range family(pid) {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", process))
		if err != nil {
			return nil, fmt.Errorf("look at a server's threads: %w", err)
		}
		for _, thread := range threads {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", process, thread.Name()))
			if errors.Is(err, fs.ErrNotExist) {
				continue // it ended meanwhile
			} else if err != nil {
				return nil, fmt.Errorf("look at what a server uses: %w", err)
			}
			first, _, _ := bytes.Cut(text, []byte(" "))
			ns, err := strconv.ParseInt(string(first), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("schedstat says %q", text)
			}
			id, err := strconv.Atoi(thread.Name())
			if err != nil {
				return nil, err
			}
			u[id] = time.Duration(ns)
		}
	}
	return u, nil
}

// until is what was used from u to later. A thread that ended in between is left out.
func (u usage) until(later usage) (sum time.Duration) {
	for id, used := range later {
		sum += used - u[id]
	}
	return sum
}

// memoryOf is what a process and those that come from it hold: each page that several of them
// share counts once (Pss), which the sum of their RSS would not do.
func memoryOf(pid int) (bytesHeld int64, err error) {
	for _, process := range family(pid) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", process))
		if err != nil {
			return 0, fmt.Errorf("look at what a server holds: %w", err)
		}
		_, rest, found := bytes.Cut(text, []byte("\nPss:"))
		fields := bytes.Fields(rest)
		if !found || len(fields) < 1 {
			return 0, errors.New("smaps_rollup has no Pss")
		}
		kb, err := strconv.ParseInt(string(fields[0]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("smaps_rollup: %w", err)
		}
		bytesHeld += kb << 10
	}
	return bytesHeld, nil
}
