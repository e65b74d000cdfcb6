//go:build !tidemark_faults

package fault

import "time"

// Built tells whether the process can be told to fail.
const Built = false

// Point is a place where the process may be killed.
func Point(string) {}

// Bug tells whether the mistake called name is to be made.
func Bug(string) bool { return false }

// Skew is how wrong the wall clock is.
func Skew() time.Duration { return 0 }
