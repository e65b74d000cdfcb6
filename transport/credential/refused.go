package credential

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Errors that a *Refused may be, for errors.Is.
var (
	// ErrKeysUnavailable: the JWKS endpoint has to be asked first, and does not answer.
	ErrKeysUnavailable = errors.New("the keys that tokens are verified with can't be had")
	// ErrAppUnavailable: the app that was to be asked does not answer, or not properly.
	ErrAppUnavailable = errors.New("the app that knows who may can't be asked")
)

// Reason is the kind of a refusal: few, so that they can be counted.
type Reason string

// The reasons of a Refused.
const (
	Malformed   Reason = "malformed"   // it is no token, or holds what no token may
	TooLarge    Reason = "too-large"   // longer than MaxToken
	Algorithm   Reason = "algorithm"   // alg is none that fits the keys
	UnknownKey  Reason = "unknown-key" // kid names a key that is not there
	Signature   Reason = "signature"   // signed by somebody else, or changed since
	Expired     Reason = "expired"     // its time is over
	Early       Reason = "early"       // its time has not come
	Issuer      Reason = "issuer"      // iss is another
	Audience    Reason = "audience"    // it was made for somebody else
	Claims      Reason = "claims"      // a claim is missing or can't be read
	FilterFault Reason = "filter"      // a filter does not compile
	Denied      Reason = "denied"      // the app said no
	Unavailable Reason = "unavailable" // nobody could say
)

// Refused is why a credential does not count. Its message says what to do about it and
// is safe to show to whoever sent it. It unwraps to a *hub.Refusal with the code
// Unauthenticated, Forbidden or Unavailable.
type Refused struct {
	Reason  Reason
	refusal hub.Refusal
	cause   error // ErrKeysUnavailable, ErrAppUnavailable, a context's error; or nil
}

func (r *Refused) Error() string { return r.refusal.Detail }

// Unwrap gives the *hub.Refusal, and the sentinel if there is one.
func (r *Refused) Unwrap() []error {
	if r.cause == nil {
		return []error{&r.refusal}
	}
	return []error{&r.refusal, r.cause}
}

func refuse(reason Reason, format string, args ...any) *Refused {
	return &Refused{Reason: reason, refusal: hub.Refusal{Code: hub.Unauthenticated, Detail: fmt.Sprintf(format, args...)}}
}

// comeBack is how long who was refused for want of keys, or of the app, should wait.
const comeBack = 5 * time.Second

func unavailable(kind, cause error) *Refused {
	return &Refused{
		Reason:  Unavailable,
		refusal: hub.Refusal{Code: hub.Unavailable, Retry: comeBack, Detail: kind.Error() + " now: try again soon"},
		cause:   errors.Join(kind, cause),
	}
}

// clip makes a stranger's text fit to print: one line, at most 200 bytes.
func clip(s string) string {
	const most = 200
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
