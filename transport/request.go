package transport

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// The three transports, by the names that the query and the frame open use.
const (
	websocketName = "websocket"
	sseName       = "sse"
	pollName      = "poll"
)

// Bounds of what a feed's query may ask for (docs/protocol.md).
const (
	heartbeatLeast, heartbeatMost, heartbeatDefault = 3, 30, 15 // seconds
	waitMost, waitDefault                           = 55, 25    // seconds
	limitMost, limitDefault                         = 10_000, 1000
)

// feedRequest is the query of a feed, read and checked.
type feedRequest struct {
	transport string
	starts    starts
	heartbeat time.Duration
	wait      time.Duration
	limit     int
}

func readFeedRequest(r *http.Request, q url.Values) (f feedRequest, err error) {
	if f.transport, err = choose(r, q); err != nil {
		return f, err
	}
	heartbeat, err := number(q, "heartbeat", heartbeatLeast, heartbeatMost, heartbeatDefault)
	if err != nil {
		return f, err
	}
	wait, err := number(q, "wait", 0, waitMost, waitDefault)
	if err != nil {
		return f, err
	}
	if f.limit, err = number(q, "limit", 1, limitMost, limitDefault); err != nil {
		return f, err
	}
	f.heartbeat, f.wait = time.Duration(heartbeat)*time.Second, time.Duration(wait)*time.Second
	names := q["c"]
	if len(names) == 0 && f.transport != websocketName {
		return f, newProblem(hub.BadRequest, "name at least one collection: ?c=todos")
	}
	if err := fewEnough(len(names)); err != nil {
		return f, err
	}
	// What the transport remembers counts for all collections.
	remembered := []string{r.Header.Get("Last-Event-ID"), q.Get("last_event_id")}
	for _, c := range names {
		name, own, _ := strings.Cut(c, "@")
		if own == "" {
			own = q.Get("cursor")
		}
		if err := feed.CheckCollection(name); err != nil {
			return f, newProblem(hub.BadName, "%s", err)
		}
		f.starts.add(name, append(remembered[:len(remembered):len(remembered)], own)...)
	}
	return f, nil
}

// starts are the places where the collections of a feed begin, at most
// feed.MaxCollections.
type starts []feed.Start

// add adds a collection with the cursors that the client named for it; empty ones are
// none. A collection that is named again is still one: all its cursors count.
func (s *starts) add(name string, cursors ...string) {
	i := slices.IndexFunc(*s, func(x feed.Start) bool { return x.Collection == name })
	if i < 0 {
		i = len(*s)
		*s = append(*s, feed.Start{Collection: name})
	}
	for _, c := range cursors {
		if c != "" {
			(*s)[i].Cursors = append((*s)[i].Cursors, c)
		}
	}
}

func fewEnough(collections int) error {
	if collections > feed.MaxCollections {
		return newProblem(hub.TooMany, "%d collections; a feed has at most %d: open another", collections, feed.MaxCollections)
	}
	return nil
}

// choose picks the transport: what the query says, else what the headers ask for.
func choose(r *http.Request, q url.Values) (string, error) {
	upgrade := upgradable(r) && hasToken(r.Header["Connection"], "upgrade") && hasToken(r.Header["Upgrade"], "websocket")
	switch t := q.Get("transport"); t {
	case websocketName:
		if !upgrade {
			p := newProblem(codeUpgrade, "transport=websocket needs an HTTP/1.1 request with Upgrade: websocket; something between us may have taken it away: use transport=sse or transport=poll")
			p.upgrade = r.ProtoMajor == 1
			return "", p
		}
		return t, nil
	case sseName, pollName:
		return t, nil
	case "":
	default:
		return "", newProblem(hub.BadRequest, "transport %q is not known: websocket, sse or poll", clip(t))
	}
	switch {
	case upgrade:
		return websocketName, nil
	case acceptsEvents(r.Header["Accept"]):
		return sseName, nil
	}
	return pollName, nil
}

// upgradable tells whether a connection can become a WebSocket: not over HTTP/2, and
// not behind a hop that speaks HTTP/1.0.
func upgradable(r *http.Request) bool { return r.ProtoMajor == 1 && r.ProtoMinor >= 1 }

func hasToken(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

func acceptsEvents(values []string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			t, parameters, _ := strings.Cut(t, ";")
			if strings.EqualFold(strings.TrimSpace(t), "text/event-stream") {
				return !unwanted.MatchString(parameters)
			}
		}
	}
	return false
}

// unwanted is the weight of what a client does not want (RFC 9110, 12.4.2).
var unwanted = regexp.MustCompile(`(?i)(^|;)\s*q=0(\.0*)?\s*(;|$)`)

// query reads the query strictly: a pair that can't be read is an error, and then there is none.
func query(r *http.Request) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, newProblem(hub.BadRequest, "the query can't be read: %s", err)
	}
	return q, nil
}

// queryInPath takes the rest of the path for the query, for networks that lose queries
// on the way: feed/c=todos&wait=0 is feed?c=todos&wait=0. false: it is none.
func queryInPath(r *http.Request) bool {
	_, tail, _ := strings.Cut(r.URL.EscapedPath(), "/feed/")
	if !strings.Contains(tail, "=") {
		return false
	}
	if r.URL.RawQuery == "" {
		r.URL.RawQuery = tail
	} else {
		r.URL.RawQuery = tail + "&" + r.URL.RawQuery
	}
	return true
}

// single reads a parameter that may come once.
func single(q url.Values, name string) (string, error) {
	if n := len(q[name]); n > 1 {
		return "", newProblem(hub.BadRequest, "%s is given %d times", name, n)
	}
	return q.Get(name), nil
}

// number reads a whole number between least and most.
func number(q url.Values, name string, least, most, otherwise int) (int, error) {
	text := q.Get(name)
	if text == "" && !q.Has(name) {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most || text[0] == '+' {
		return 0, newProblem(hub.BadRequest, "%s=%s is not a whole number from %d to %d", name, clip(text), least, most)
	}
	return n, nil
}

// param reads a parameter of the path, percent-decoded.
func param(r *http.Request, name string) (string, error) {
	text := chi.URLParam(r, name)
	if r.URL.RawPath == "" {
		return text, nil // chi matched the decoded path
	}
	s, err := url.PathUnescape(text)
	if err != nil {
		return "", newProblem(hub.BadRequest, "the path can't be read: %s", err)
	}
	return s, nil
}

func clip(s string) string {
	if len(s) > 40 {
		s = s[:40] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// network is a keyed hash of the prefix of the client's address (/24, or /48 for IPv6):
// the same for the same network, and of no use to anybody else.
func (s *Server) network(addr netip.Addr) string {
	if !addr.IsValid() || len(s.opts.NetworkKey) == 0 {
		return ""
	}
	bits := 48
	if addr.Is4() {
		bits = 24
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return ""
	}
	mac, ok := s.macs.Get().(hash.Hash) // a new one takes twice as long as all the rest
	if ok {
		mac.Reset()
	} else {
		mac = hmac.New(sha256.New, s.opts.NetworkKey)
	}
	defer s.macs.Put(mac)
	var text [64]byte
	mac.Write(prefix.AppendTo(text[:0]))
	return hex.EncodeToString(mac.Sum(text[:0])[:8])
}
