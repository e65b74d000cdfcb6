package gate

import (
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// files counts the descriptors of this process: since Linux 6.2 the size of the
// directory says so (proc_pid_fd(5)); before, its names are counted.
func files() (used, limit int) {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 0, 0
	}
	limit = int(min(r.Cur, math.MaxInt32))
	const dir = "/proc/self/fd"
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0, 0 // no /proc
	}
	if st.Size > 0 {
		return int(st.Size), limit
	}
	return names(dir, limit), limit
}

func names(dir string, limit int) int {
	f, err := os.Open(dir)
	if err != nil {
		return limit // not even one is left
	}
	defer f.Close()
	used := -1 // without f
	for {
		names, err := f.Readdirnames(1024)
		used += len(names)
		if err != nil { // the end
			return used
		}
	}
}
