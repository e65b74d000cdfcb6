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

// newPages is memory that is there when it is returned; freePages gives it back.
func newPages(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
}

func freePages(b []byte) {
	if b != nil {
		_ = unix.Munmap(b) // which only fails for what is no memory of newPages
	}
}
