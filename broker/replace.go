package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Replace makes a new log, with an epoch of its own, in the place of whatever is in the
// directory, which may be nothing. fill is given the new log to fill and must not close
// it; its error leaves the directory as it was. What was there is moved to a directory
// below aside, where Inspect can still read it; aside is its path, "" where there was
// nothing. The new log is not open when Replace returns.
//
// ErrInUse: a process has the store open. A crash at any moment leaves either the old
// log or the new one.
func Replace(ctx context.Context, opts Options, fill func(*Log) error) (aside string, err error) {
	if err := opts.validate(); err != nil {
		return "", err
	}
	dir := opts.Dir
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("make the store's directory: %w", err)
	}
	locked, err := lock(dir)
	if err != nil {
		return "", err
	}
	defer locked.Close()
	doing := func(err error) error { return fmt.Errorf("replace the log in %s: %w", dir, err) }
	old, found, err := readMarker(dir)
	if err == nil && found && old.Moving != "" {
		err = finishMove(dir, &old)
	}
	if err != nil && !errors.Is(err, feed.ErrDamaged) {
		return "", doing(err) // of a newer version, or the disk fails: neither is ours to move
	}
	fresh := opts
	fresh.Dir = filepath.Join(dir, newName)
	fresh.Relaxed, fresh.Scrub, fresh.History = false, -1, nil
	if err := os.RemoveAll(fresh.Dir); err != nil { // of a Replace that was cut short
		return "", doing(err)
	}
	l, err := Open(ctx, fresh)
	if err != nil {
		return "", doing(err)
	}
	err = fill(l)
	if cerr := l.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.RemoveAll(fresh.Dir) // it is in nobody's way
		return "", doing(err)
	}
	if aside, err = putInPlace(dir, l.marker, old.Epoch, ""); err != nil {
		return "", doing(err)
	}
	return aside, nil
}

// putInPlace puts the log of the directory new, whose marker is m, in the place of what is
// there, which goes to a directory below aside, whose name ends with suffix, with copies of
// its marker and its mark; "" where there is nothing. A crash leaves the one log or the other.
func putInPlace(dir string, m marker, old feed.Epoch, suffix string) (aside string, err error) {
	m.Moving = "."
	if hasLog(dir) {
		if aside, err = makeAside(dir, old, suffix); err != nil {
			return "", err
		}
		for _, name := range []string{markerName, highName} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = writeSynced(filepath.Join(aside, name), b)
			}
			if err != nil {
				return "", err
			}
		}
		if m.Moving, err = filepath.Rel(dir, aside); err != nil {
			return "", err
		}
	}
	if err := writeMarker(dir, m); err != nil { // from here on it is the new log's directory
		return "", err
	}
	return aside, finishMove(dir, &m)
}

// hasLog tells whether there is anything of a log in dir.
func hasLog(dir string) bool {
	for _, name := range []string{markerName, highName, natsName} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// finishMove puts the log of the directory new in its place, and what is there aside. It
// can be called again until it succeeds: what was moved is not in new any more.
func finishMove(dir string, m *marker) error {
	doing := func(err error) error { return fmt.Errorf("put a new log in its place: %w", err) }
	for _, name := range []string{natsName, highName} {
		from, to := filepath.Join(dir, newName, name), filepath.Join(dir, name)
		if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if _, err := os.Lstat(to); err == nil {
			if m.Moving == "." {
				return doing(fmt.Errorf("%s is in the way", to))
			}
			if err := os.Rename(to, filepath.Join(dir, m.Moving, name)); err != nil {
				return doing(err)
			}
		}
		if err := os.Rename(from, to); err != nil {
			return doing(err)
		}
	}
	for _, path := range []string{filepath.Join(dir, m.Moving), dir} {
		if err := syncPath(path); err != nil {
			return doing(err)
		}
	}
	m.Moving = ""
	if err := writeMarker(dir, *m); err != nil {
		return doing(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, newName)); err != nil {
		return doing(err)
	}
	return nil
}

// makeAside makes a directory for what is damaged, named for when that was and the epoch.
func makeAside(dir string, epoch feed.Epoch, suffix string) (string, error) {
	if epoch == "" {
		epoch = "unknown"
	}
	parent := filepath.Join(dir, asideName)
	if err := os.MkdirAll(parent, 0o750); err != nil {
		return "", fmt.Errorf("make a place for damaged files: %w", err)
	}
	stamp := time.Now().UTC().Format("20060102T150405Z")
	for n := 0; ; n++ {
		path := filepath.Join(parent, fmt.Sprintf("%s-%s", stamp, epoch))
		if n > 0 {
			path += fmt.Sprintf("-%d", n)
		}
		path += suffix
		err := os.Mkdir(path, 0o750)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = syncPath(parent)
		}
		if err != nil {
			return "", fmt.Errorf("make a place for damaged files: %w", err)
		}
		return path, nil
	}
}
