package hub

import (
	"fmt"
	"time"
)

// Ended is the error of Session.Next when the session is over: the server's last
// word to its client.
type Ended struct {
	Reason string
	Detail string        // what happened, for people, where the reason alone does not say it
	Retry  time.Duration // when to come back; 0: not unchanged
}

// The reasons of an end.
const (
	EndDraining = "draining" // the server stops
	EndEvicted  = "evicted"  // a limit
	EndExpired  = "expired"  // the credential's time is over
	EndRevoked  = "revoked"  // the credential was taken back
	EndFailed   = "failed"   // the log can't be used any more
)

func (e *Ended) Error() string { return "the session is over: " + e.Reason }

// Code is the kind of a refusal, one of the protocol's words.
type Code string

// The codes that the hub gives.
const (
	BadRequest Code = "bad-request"
	BadName    Code = "bad-name"
	TooLarge   Code = "too-large"
	TooMany    Code = "too-many"
	Forbidden  Code = "forbidden"
	// Unauthenticated: the credential does not count any more.
	Unauthenticated Code = "unauthenticated"
	Unavailable     Code = "unavailable"
)

// Refusal is why the hub did nothing that it was asked for, and what the caller can
// do about it.
type Refusal struct {
	Code   Code
	Detail string
	Retry  time.Duration // with Unavailable, and TooMany where that passes: when to try again
	Limit  Limit         // of the tenant, that it would have broken; "": it was no such limit
	// Unknown, with Unavailable: a write may have happened nonetheless, because the log
	// did not say. The same ids sent again settle it.
	Unknown bool
}

func (r *Refusal) Error() string { return r.Detail }

func refuse(code Code, format string, args ...any) error {
	return &Refusal{Code: code, Detail: fmt.Sprintf(format, args...)}
}

func unavailable(retry time.Duration, format string, args ...any) error {
	return &Refusal{Code: Unavailable, Detail: fmt.Sprintf(format, args...), Retry: retry}
}
