package load

import (
	"bytes"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// usage is what a process has used, and uses.
type usage struct {
	cpu  time.Duration
	rss  int64
	most int64 // that rss ever was
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
	u = usage{cpu: time.Duration(number(11)+number(12)) * tick, rss: number(21) * int64(os.Getpagesize())}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if _, most, ok := bytes.Cut(status, []byte("VmHWM:")); ok && err == nil {
		_, _ = fmt.Sscan(string(most), &u.most)
		u.most *= 1024
	}
	return u, nil
}

// serverOf finds the process that listens at a URL of this machine; 0: it can't be found, as where it
// is another user's.
func serverOf(base *url.URL) int {
	if ip, err := netip.ParseAddr(base.Hostname()); base.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		return 0
	}
	port, err := strconv.Atoi(base.Port())
	if err != nil {
		return 0
	}
	sockets := make(map[string]bool)
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, _ := os.ReadFile(table)
		for line := range strings.Lines(string(text)) {
			// proc(5): the local address is ADDRESS:PORT in hexadecimal, state 0A is listening, and
			// the tenth field is the inode.
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				sockets["socket:["+f[9]+"]"] = true
			}
		}
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && sockets[to] {
			pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
			return pid
		}
	}
	return 0
}

// descriptors is how many files and sockets this process may have open.
func descriptors() uint64 {
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) != nil {
		return 1 << 63
	}
	return r.Cur
}
