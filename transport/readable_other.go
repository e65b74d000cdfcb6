//go:build !linux

package transport

import "syscall"

const watches = false

// readable is for Linux; elsewhere a goroutine waits for each socket.
type readable struct{}

func (*readable) watch(syscall.RawConn, uint64, func(id uint64)) (id uint64, ok bool) {
	return 0, false
}
func (*readable) watchOn(syscall.RawConn, uint64, func(id uint64)) (id uint64, ok bool) {
	return 0, false
}
func (*readable) again(syscall.RawConn, uint64) {}
func (*readable) drop(syscall.RawConn, uint64)  {}
func (*readable) forget(uint64)                 {}

func arrived(syscall.RawConn, []byte, bool) (n int, over bool) { return 0, true }
