package follow

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// The transports.
const (
	SSE       = "sse"
	WebSocket = "websocket"
	Poll      = "poll"
)

// Transports lists them all.
var Transports = []string{SSE, WebSocket, Poll}

// Options says what to follow, and how. URL, Tenant and, for a feed, Collections
// must be there; the rest may be left out.
type Options struct {
	URL         string // the server: "http://127.0.0.1:7333"; a path in front of /v1 is kept
	Tenant      string
	Collections []Collection

	// Transport is SSE, WebSocket or Poll. Default: SSE.
	Transport string
	// Pick, if set, names the transport of each connection that Follow makes, 0 the
	// first, instead of Transport. It is called by Follow's caller's goroutine.
	Pick func(connection int) string

	// Heartbeat is how often a quiet feed is to be heard of, in whole seconds, 3 to
	// 30. Default: the server's (15 s).
	Heartbeat time.Duration
	// Wait is how long a poll without news is held, in whole seconds, at most 55.
	// Default: the server's (25 s). Negative: not at all; Follow then asks once a second.
	Wait time.Duration
	// Limit is about how many changes one poll brings, at most 10000. Default: the
	// server's (1000).
	Limit int

	// HTTP makes the requests; its Timeout bounds the wait for an answer, not the
	// answer's length. Default: a client of its own, closed with the connection.
	HTTP *http.Client
	// Header goes with every request; Authorization belongs here.
	Header http.Header
	// MaxLine bounds a line, in bytes. Default: 16 MiB.
	MaxLine int
}

// Validate tells what is wrong with the options, in words for whoever wrote them;
// collections may be missing. Dial, Follow and Post do the same by themselves.
func (o Options) Validate() error {
	_, err := o.check()
	return err
}

// check fills the defaults in.
func (o Options) check() (Options, error) {
	u, err := url.Parse(o.URL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return o, fmt.Errorf("%q is not the URL of a server: it looks like http://127.0.0.1:7333", o.URL)
	}
	o.URL = strings.TrimSuffix(o.URL, "/")
	if err := feed.CheckTenant(o.Tenant); err != nil {
		return o, err
	}
	if n := len(o.Collections); n > feed.MaxCollections {
		return o, fmt.Errorf("%d collections are too many for one feed: at most %d", n, feed.MaxCollections)
	}
	for i, c := range o.Collections {
		if err := feed.CheckCollection(c.Name); err != nil {
			return o, err
		}
		if slices.ContainsFunc(o.Collections[:i], func(x Collection) bool { return x.Name == c.Name }) {
			return o, fmt.Errorf("the collection %q is named twice", c.Name)
		}
	}
	if o.Transport == "" {
		o.Transport = SSE
	}
	if !slices.Contains(Transports, o.Transport) {
		return o, fmt.Errorf("%q is not a transport: %s", o.Transport, strings.Join(Transports, ", "))
	}
	if o.Heartbeat < 0 {
		return o, errors.New("the heartbeat is negative")
	}
	if o.MaxLine <= 0 {
		o.MaxLine = 16 << 20
	}
	return o, nil
}

// client returns the client to use, and what closes it if it is not the caller's.
func (o Options) client() (*http.Client, func()) {
	if o.HTTP != nil {
		return o.HTTP, func() {}
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	return &http.Client{Transport: t}, t.CloseIdleConnections
}

// feedURL is where a feed is read from these cursors on.
func (o Options) feedURL(at Cursors, wait time.Duration) string {
	q := make(url.Values)
	at.query(q)
	q.Set("transport", o.Transport)
	if o.Heartbeat > 0 {
		q.Set("heartbeat", seconds(o.Heartbeat))
	}
	if o.Transport == Poll {
		if wait < 0 {
			q.Set("wait", "0")
		} else if wait > 0 {
			q.Set("wait", seconds(wait))
		}
		if o.Limit > 0 {
			q.Set("limit", strconv.Itoa(o.Limit))
		}
	}
	return o.URL + "/v1/" + o.Tenant + "/feed?" + q.Encode()
}

func seconds(d time.Duration) string {
	return strconv.Itoa(int((d + time.Second - 1) / time.Second))
}
