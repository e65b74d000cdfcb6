// Package fault lets a test program kill, mislead and misbuild the server at named places.
//
// A normal build has none of it: Point does nothing, Bug is false and Skew is 0, all
// three known to the compiler. Built with the tag tidemark_faults, the process obeys its
// environment:
//
//	TIDEMARK_CRASH=NAME:N   kill -9 of itself at the N-th passing of Point(NAME)
//	TIDEMARK_BUG=NAME       Bug(NAME) is true: one deliberate mistake is in force
//	TIDEMARK_SKEW=FILE      how many seconds the wall clock is wrong by, read from FILE each time
//
// Such a build says so when it starts, and is not for use. Everything here may be called
// concurrently.
package fault
