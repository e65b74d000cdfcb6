//go:build !linux

package main

import "github.com/tidemark-sync/tidemark/sync/hub"

// bootClock is not known here: the hub has its own, which begins with the process.
func bootClock() hub.Clock { return nil }
