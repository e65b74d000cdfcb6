//go:build !linux

package load

import (
	"errors"
	"time"
)

type usage struct {
	cpu time.Duration
	rss int64
}

func look(pid int) (u usage, err error) {
	if pid != 0 {
		err = errors.New("what a process uses can be told on Linux only: leave --pid out")
	}
	return u, err
}
