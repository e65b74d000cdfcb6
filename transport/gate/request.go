package gate

import (
	"fmt"
	"net/http"
)

// Bounds of a request before its body.
const (
	// URLBytes is the most bytes of a request's target, as it came.
	URLBytes = 8 << 10
	// Fields is the most header fields, each line counted, without what net/http takes out
	// of the header: Host, Transfer-Encoding and Trailer.
	Fields = 100
	// HeaderBytes is the most bytes of the request line and the header of HTTP/1.
	HeaderBytes = 16 << 10
	// MaxHeaderBytes is what to set http.Server.MaxHeaderBytes to, so that HeaderBytes
	// holds: net/http reads 4,096 bytes more than it is told. Beyond it answers 431 itself
	// and closes the connection.
	//
	// Of HTTP/2 it then takes 12,608 bytes, counted as RFC 9113 does (6.5.2: name, value
	// and 32 for each field): it adds 320 to what it is told, and says so to the client.
	// Somewhat more ends in 431, much more ends the connection.
	MaxHeaderBytes = HeaderBytes - 4096
)

// CheckRequest checks what net/http does not: the length of the URL and the number of
// header fields. It must be asked before the request is routed. The error is a
// [*Refusal]: 414 or 431.
//
// What is wrong about a request as such is refused by net/http: see
// TestMalformedRequestsAreRefusedByTheServer for what, and for what is not.
func CheckRequest(r *http.Request) error {
	n := len(r.RequestURI)
	if n == 0 && r.URL != nil { // it came over no network
		n = len(r.URL.RequestURI())
	}
	if n > URLBytes {
		return &Refusal{
			Status: http.StatusRequestURITooLong, Code: codeTooLarge, Short: URL,
			Detail: fmt.Sprintf("the URL has %d bytes; at most %d: name fewer collections in one feed", n, URLBytes),
		}
	}
	if len(r.Header) > Fields {
		return fields(len(r.Header))
	}
	lines := 0
	for _, values := range r.Header {
		lines += len(values)
	}
	if lines > Fields {
		return fields(lines)
	}
	return nil
}

func fields(n int) error {
	return &Refusal{
		Status: http.StatusRequestHeaderFieldsTooLarge, Code: codeTooMany, Short: HeaderFields,
		Detail: fmt.Sprintf("the request has %d header fields; at most %d", n, Fields),
	}
}
