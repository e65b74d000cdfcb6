//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package broker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// lock takes the store's lock. The kernel lets go of it when the files are closed and
// when the process ends, however it ends, so there is no stale lock to remove. Who does
// so all the same, because other databases have one, gets no second process in: the
// directory is locked, too, where the file system can do that.
func lock(dir string) (*locks, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock the store: %w", err)
	}
	l := &locks{f}
	if err = flock(f); err == nil {
		var d *os.File
		if d, err = os.Open(dir); err == nil {
			*l = append(*l, d)
			if derr := flock(d); errors.Is(derr, syscall.EWOULDBLOCK) {
				err = derr
			}
		}
	}
	if err == nil {
		return l, nil
	}
	l.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s: %w", dir, ErrInUse)
	}
	return nil, fmt.Errorf("lock the store in %s: %w", dir, err)
}

func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != syscall.EINTR {
			return err
		}
	}
}
