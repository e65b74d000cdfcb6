//go:build !linux

package uring

// Ring is there on Linux alone.
type Ring struct{}

// Entry is nothing here.
type Entry struct{}

// New always fails.
func New(uint32) (*Ring, error) { return nil, ErrUnsupported }

// Close does nothing.
func (*Ring) Close() {}

// Do does nothing.
func (*Ring) Do(Work, int) bool { return false }

// Send is nothing.
func Send(int, []byte) Entry { return Entry{} }

// Receive is nothing.
func Receive(int, []byte) Entry { return Entry{} }
