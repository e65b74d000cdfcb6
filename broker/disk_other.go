//go:build !linux

package broker

import "os"

// dataSync makes a file's content durable.
func dataSync(f *os.File) error { return f.Sync() }

// freeSpace is not known here: a full disk is noticed when a write fails.
func freeSpace(string) (free int64, known bool) { return 0, false }

// uncache does nothing here: what the system holds in memory is what is checked.
func uncache(*os.File) {}

// newPages is memory of the heap here.
func newPages(size int) ([]byte, error) { return make([]byte, size), nil }

func freePages([]byte) {}

// linger does nothing here, where a file that is open may be one that can't be removed.
func linger(string) (free func(pause func())) { return func(func()) {} }
