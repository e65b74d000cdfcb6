package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// heldMost bounds what is kept of an event stream; one that has more is reset.
const heldMost = 8 << 20

// errReset is why a body ends in a reset.
var errReset = errors.New("the network resets this connection")

// ServeHTTP carries one exchange.
func (h *hop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.begin() {
		panic(http.ErrAbortHandler)
	}
	defer h.running.Done()
	// The server's own check of these is passed by what outgoing puts in their place.
	if origin := r.Header.Get("Origin"); !loopback(r.Host) || origin != "" && !loopbackOrigin(origin) {
		http.Error(w, "a hop carries for this machine's own pages only", http.StatusForbidden)
		return
	}
	if r.URL.Path == "/_hop" {
		h.record.ServeHTTP(w, r)
		return
	}
	connOf(r).count()
	answered := h.record.came(transportOf(r))
	if upgradeOf(r.Header) != "" {
		switch h.p.upgrades {
		case refuseUpgrades:
			answered(http.StatusForbidden)
			http.Error(w, "nothing is upgraded here", http.StatusForbidden)
			return
		case hangUpgrades:
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}
	}
	if h.p.alone {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			host = r.RemoteAddr
		}
		done := h.line.wait(r.Context(), host)
		if done == nil {
			panic(http.ErrAbortHandler)
		}
		defer done()
	}
	h.carry(w, r, answered)
}

// carry asks the server and passes its answer on. A panic with ErrAbortHandler is how
// net/http closes a connection in the middle of an answer.
func (h *hop) carry(w http.ResponseWriter, r *http.Request, answered func(int)) {
	key := ""
	if h.p.cache > 0 && r.Method == http.MethodGet {
		key = r.URL.RequestURI()
		if a, ok := h.cache.get(key); ok {
			answered(a.status)
			copyHeader(w.Header(), a.header)
			w.Header().Set("X-Cache", "hit")
			w.WriteHeader(a.status)
			_, _ = w.Write(a.body) // whoever is gone has no answer
			return
		}
	}
	res, err := h.up.RoundTrip(h.outgoing(r))
	if err != nil {
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
		answered(http.StatusBadGateway)
		http.Error(w, fmt.Sprintf("ask the server: %v", err), http.StatusBadGateway)
		return
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		answered(res.StatusCode)
		h.relay(w, r, res)
		return
	}
	h.incoming(res, r)
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	events := kind == "text/event-stream"
	body := io.Reader(res.Body)
	kept := &keeper{}
	switch {
	case events && h.p.hold != holdNothing:
		body = &heldReader{body: res.Body}
	case !events && key != "":
		body = io.TeeReader(body, kept)
	}
	if h.p.body > 0 && strings.HasPrefix(r.URL.Path, "/v1/") {
		// Pages and modules pass whole: without them there is no client to be harmed.
		body = &deadlyReader{body, h.p.body}
	}
	f := fate{}
	if events {
		f = h.p.events
	}
	if err := pass(w, r, res, body, events && h.p.hold == holdAll, f, answered); err != nil {
		if errors.Is(err, errReset) {
			connOf(r).reset()
		}
		panic(http.ErrAbortHandler)
	}
	whole := res.StatusCode != http.StatusNotModified && res.StatusCode != http.StatusPartialContent
	if !events && key != "" && whole && !kept.over {
		h.cache.put(key, answer{status: res.StatusCode, header: res.Header, body: kept.body})
	}
}

// outgoing is a client's request as the server gets it.
func (h *hop) outgoing(r *http.Request) *http.Request {
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host, out.Host = h.target.Scheme, h.target.Host, h.target.Host
	if r.ContentLength == 0 {
		out.Body = nil
	}
	dropHopHeaders(out.Header)
	if protocol := upgradeOf(r.Header); protocol != "" && h.p.upgrades == passUpgrades {
		out.Header.Set("Connection", "Upgrade")
		out.Header.Set("Upgrade", protocol)
	}
	if out.Header.Get("Origin") != "" {
		out.Header.Set("Origin", h.origin())
	}
	if out.Header.Get("User-Agent") == "" {
		out.Header.Set("User-Agent", "") // else net/http would add its own
	}
	if h.p.feed != nil && isFeed(r.URL.Path) {
		h.p.feed(out)
	}
	return out
}

// incoming makes an answer's headers what the client gets. A page of another port of
// this machine is told that it is welcome by its own name, not by the one that
// outgoing gave it.
func (h *hop) incoming(res *http.Response, r *http.Request) {
	dropHopHeaders(res.Header)
	if res.Header.Get("Access-Control-Allow-Origin") == h.origin() {
		res.Header.Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
	}
}

func (h *hop) origin() string { return h.target.Scheme + "://" + h.target.Host }

// heldReader gives nothing until its body is over.
type heldReader struct {
	body io.Reader
	held *bytes.Reader // nil: not read yet
	err  error         // how it ended
}

func (h *heldReader) Read(b []byte) (int, error) {
	if h.held == nil {
		all, err := io.ReadAll(io.LimitReader(h.body, heldMost+1))
		if len(all) > heldMost {
			return 0, errReset
		}
		h.held, h.err = bytes.NewReader(all), err
	}
	n, err := h.held.Read(b)
	if err == io.EOF && h.err != nil {
		err = h.err
	}
	return n, err
}

// deadlyReader gives so many bytes, and asks for a reset if there are more.
type deadlyReader struct {
	body io.Reader
	left int64
}

func (d *deadlyReader) Read(b []byte) (int, error) {
	if d.left == 0 {
		n, err := d.body.Read(b[:1])
		if n > 0 {
			err = errReset
		}
		return 0, err
	}
	n, err := d.body.Read(b[:min(int64(len(b)), d.left)])
	d.left -= int64(n)
	return n, err
}

// upgradeOf is the protocol that a request wants its connection to change to.
func upgradeOf(h http.Header) string {
	for _, v := range h["Connection"] {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return h.Get("Upgrade")
			}
		}
	}
	return ""
}

// dropHopHeaders removes what is between two neighbours only.
func dropHopHeaders(h http.Header) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"} {
		h.Del(name)
	}
}

func copyHeader(to, from http.Header) {
	for name, values := range from {
		to[name] = values
	}
}

// loopback tells whether a host, with or without a port, is this machine to itself.
func loopback(host string) bool {
	name := (&url.URL{Host: host}).Hostname()
	ip, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && ip.IsLoopback()
}

func loopbackOrigin(origin string) bool {
	u, err := url.Parse(origin)
	return err == nil && loopback(u.Host)
}
