package feed

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of the words of the protocol (docs/protocol.md). Lengths are in bytes.
const (
	MaxName        = 64  // a tenant, or one segment of a collection
	MaxSegments    = 8   // segments of a collection
	MaxKey         = 256 // a key
	MaxID          = 256 // the id of a change, and the name that a client gives itself
	MaxCollections = 256 // collections of one feed
	MaxChanges     = 500 // changes of one request
)

// NameError tells what is wrong with a name and what a good one looks like.
type NameError struct {
	What string // "tenant", "collection", "key", "id", "client"
	Name string // as it was given, cut to a length that is fit to print
	Want string
}

func (e *NameError) Error() string {
	return fmt.Sprintf("%q is not a %s: %s", e.Name, e.What, e.Want)
}

func badName(what, name, want string) error {
	const most = 80
	if len(name) > most {
		cut := most
		for cut > 0 && !utf8.RuneStart(name[cut]) {
			cut--
		}
		name = name[:cut] + "…"
	}
	return &NameError{What: what, Name: strings.ToValidUTF8(name, "\uFFFD"), Want: want}
}

// CheckTenant returns a *NameError unless name is a tenant: [A-Za-z0-9_-]{1,64}.
func CheckTenant(name string) error {
	if segment(name) {
		return nil
	}
	return badName("tenant", name, "1 to 64 of A-Z a-z 0-9 _ -")
}

// CheckCollection returns a *NameError unless name is a collection: 1 to 8
// segments of [A-Za-z0-9_-]{1,64} joined by "/".
func CheckCollection(name string) error {
	rest, n := name, 0
	for more := true; more; {
		var s string
		s, rest, more = strings.Cut(rest, "/")
		if n++; n > MaxSegments || !segment(s) {
			return badName("collection", name, `1 to 8 segments, joined by "/", each 1 to 64 of A-Z a-z 0-9 _ -`)
		}
	}
	return nil
}

// CheckKey returns a *NameError unless key is 1 to 256 bytes of UTF-8 without
// control characters.
func CheckKey(key string) error { return checkText("key", key, MaxKey) }

// CheckID is CheckKey for the id of a change.
func CheckID(id string) error { return checkText("id", id, MaxID) }

// CheckClient is CheckKey for the name that a writing client gives itself.
func CheckClient(name string) error { return checkText("client", name, MaxID) }

func checkText(what, s string, most int) error {
	if s == "" || len(s) > most || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return badName(what, s, fmt.Sprintf("1 to %d bytes of UTF-8 without control characters", most))
	}
	return nil
}

func segment(s string) bool {
	if s == "" || len(s) > MaxName {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}
