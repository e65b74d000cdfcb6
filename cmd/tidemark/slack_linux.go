package main

import (
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is how late the kernel may wake the server's threads for a timer. The Go runtime has a thread
// (sysmon) that sleeps for 20 µs at a time while anything is going on, and longer only after a while in which no
// thread waited for the kernel. With the kernel's own slack of 50 µs it wakes 13,000 times a second where changes
// are synced one by one. Without that, 2,000 changes a second in 1,000 collections of five followers cost 45 µs a
// delivery instead of 62, and 20 a second to 1,000 followers 5.7 instead of 6.5; nothing that was measured comes
// later, because what the server does at once waits for no timer. The runtime takes a processor from a thread that
// waits for the disk up to so much later, so a server that has only one does without.
const timerSlack = time.Millisecond

// relaxTimers starts a server's program once more, with that slack: the thread is there before any code of
// ours runs, and inherits the slack that the process was started with. Who starts it with as much
// (systemd's TimerSlackNSec=1ms) spares it that. Where it can't be done, all goes on as it is.
func relaxTimers(args []string) {
	if runtime.GOMAXPROCS(0) == 1 || !slices.ContainsFunc(args, func(s string) bool { return s == "serve" || s == "dev" }) {
		return
	}
	runtime.LockOSThread() // the slack is the thread's, and the new program's first thread has it from this one
	defer runtime.UnlockOSThread()
	if now, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || now >= int(timerSlack) {
		return
	}
	path, err := os.Executable()
	if err != nil || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(path, os.Args, os.Environ())
}
