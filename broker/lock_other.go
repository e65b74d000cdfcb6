//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package broker

import (
	"errors"
	"fmt"
	"runtime"
)

// lock refuses: without flock, two processes could write one store.
func lock(dir string) (*locks, error) {
	return nil, fmt.Errorf("lock the store in %s on %s: %w", dir, runtime.GOOS, errors.ErrUnsupported)
}
