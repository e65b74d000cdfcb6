//go:build tidemark_faults

package fault

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Built tells whether the process can be told to fail.
const Built = true

var (
	crashAt, crashNumber, _ = strings.Cut(os.Getenv("TIDEMARK_CRASH"), ":")
	crashIn                 atomic.Int64
	bug                     = os.Getenv("TIDEMARK_BUG")
	skewFile                = os.Getenv("TIDEMARK_SKEW")
)

func init() {
	n, err := strconv.ParseInt(crashNumber, 10, 64)
	if crashAt != "" && (err != nil || n < 1) {
		panic("TIDEMARK_CRASH must be NAME:N, N at least 1")
	}
	crashIn.Store(n)
}

// Point is a place where the process may be killed.
func Point(name string) {
	if name == crashAt && crashIn.Add(-1) == 0 {
		p, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = p.Kill()
		}
		if err != nil {
			panic("the process can't kill itself: " + err.Error())
		}
		select {}
	}
}

// Bug tells whether the mistake called name is to be made.
func Bug(name string) bool { return name == bug }

// Skew is how wrong the wall clock is.
func Skew() time.Duration {
	if skewFile == "" {
		return 0
	}
	b, err := os.ReadFile(skewFile)
	if err != nil {
		return 0
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}
