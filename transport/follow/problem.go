package follow

import (
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Problem is a request that the server, or something in front of it, refused.
type Problem struct {
	Status int    // of HTTP
	Code   string // of the protocol, "forbidden" for example; "" if whoever answered is no Tidemark server
	Title  string
	Detail string // what to do about it
	// RetryAfter is the least time to wait before another try; 0 if it was not given.
	// What is beyond five minutes is brought back to that.
	RetryAfter time.Duration
}

func (p *Problem) Error() string {
	s := strconv.Itoa(p.Status)
	if p.Code != "" {
		s += " " + p.Code
	}
	if p.Title != "" && p.Title != p.Code {
		s += ": " + p.Title
	}
	if p.Detail != "" {
		s += ": " + p.Detail
	}
	return s
}

// Temporary tells whether the same request may succeed later.
func (p *Problem) Temporary() bool {
	switch p.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return p.Status >= 500 && p.Status != http.StatusNotImplemented
}

// Ended is the error of a feed whose server has said its last word.
type Ended struct {
	Reason string        // "draining", "expired", "revoked", "evicted", "slow", "failed"
	Retry  time.Duration // when to come back
	Again  bool          // false: coming back unchanged is useless
}

func (e *Ended) Error() string {
	what := map[string]string{
		"draining": "the server is going down",
		"expired":  "the credential has expired",
		"revoked":  "the credential was revoked",
		"evicted":  "the server has no room for this connection",
		"slow":     "this connection took too little for too long",
		"failed":   "the server failed",
	}[e.Reason]
	if what == "" {
		return fmt.Sprintf("the server ended the feed: %s", e.Reason)
	}
	return fmt.Sprintf("%s (%s)", what, e.Reason)
}

// longestRetryAfter is where trust in somebody else's patience ends.
const longestRetryAfter = 5 * time.Minute

// problemOf reads what a refusing answer says. It does not close the body.
func problemOf(resp *http.Response) *Problem {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what can't be read is not there
	return problemFrom(resp, body)
}

func problemFrom(resp *http.Response, body []byte) *Problem {
	p := &Problem{}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if strings.HasSuffix(kind, "json") {
		// What can't be read leaves its field empty: the status alone says enough.
		_ = members(body, func(name string, v []byte) error {
			switch name {
			case "code":
				p.Code, _ = text(v)
			case "title":
				p.Title, _ = text(v)
			case "detail":
				p.Detail, _ = text(v)
			}
			return nil
		})
	} else if strings.HasPrefix(kind, "text/plain") && len(body) < 300 {
		p.Detail = strings.ToValidUTF8(strings.TrimSpace(string(body)), "\uFFFD")
	}
	p.Status = resp.StatusCode
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	p.RetryAfter = retryAfter(resp.Header.Get("Retry-After"))
	return p
}

// retryAfter reads both forms of the header: seconds, and a date.
func retryAfter(s string) time.Duration {
	var d time.Duration
	if at, err := http.ParseTime(s); err == nil {
		d = time.Until(at)
	} else if n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 31); err == nil {
		d = time.Duration(n) * time.Second
	}
	return min(max(d, 0), longestRetryAfter)
}

// Backoff returns how long to wait before try n (0 is the first that follows a
// failure): a random time below 500 ms doubled n times, at most 30 s. All of it is
// random, so that clients which were lost together do not come back together.
func Backoff(n int) time.Duration {
	return backoff(n, shortestWindow)
}

const (
	shortestWindow = 500 * time.Millisecond
	longestWindow  = 30 * time.Second
)

func backoff(n int, first time.Duration) time.Duration {
	window := min(max(first, shortestWindow), longestWindow)
	for ; n > 0 && window < longestWindow; n-- {
		window = min(2*window, longestWindow)
	}
	return rand.N(window)
}
