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

// linger keeps what a file takes of the disk though it is removed, until free is called. Where a file system tells the disk
// what is free (the mount option discard), to remove one of 8 MiB took 6 ms, and whoever appended waited for as long, because
// the disk did nothing else. free does it a piece at a time, so that what others write comes in between: as RocksDB does
// (bytes_max_delete_chunk). It calls pause between two pieces. Who reads the file yet sees it become shorter.
func linger(path string) (free func(pause func())) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return func(func()) {} // then it takes its time
	}
	return func(pause func()) {
		defer f.Close()
		var s unix.Stat_t
		if unix.Fstat(int(f.Fd()), &s) != nil || s.Nlink != 0 {
			return // it has a name, and stays as it is
		}
		for size := s.Size - freedAtOnce; size > 0; size -= freedAtOnce {
			if f.Truncate(size) != nil {
				return
			}
			pause()
		}
	}
}
