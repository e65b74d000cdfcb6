//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "rivals: what servers use is read from /proc, and followers are read by epoll: it runs on Linux only")
	os.Exit(1)
}
