package broker

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// dataSync makes a file's content durable, without the times that nobody reads back.
func dataSync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// freeSpace is how many bytes this process may still write to the file system of dir.
func freeSpace(dir string) (free int64, known bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, false
	}
	return int64(s.Bavail) * s.Bsize, true
}

// uncache lets the system forget what it holds of a file in memory, so that it is read
// from the disk again. What is not written yet stays.
func uncache(f *os.File) {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // a hint, no more
}
