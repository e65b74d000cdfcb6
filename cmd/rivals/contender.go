//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// Transports.
const (
	sse       = "sse"
	websocket = "websocket"
	poll      = "poll"
)

// contender is a server, and how it is set up, followed and published to.
type contender struct {
	name string
	// about says in a few words how it is set up.
	about string
	// version is what is measured, or an error that says why it can't be.
	version func(ctx context.Context, p *paths) (string, error)
	// launch says how to start it, with a directory of its own.
	launch func(p *paths, dir string, to netip.AddrPort) (launch, error)
	ways   []*way
	// dialect is how one publishes to it.
	dialect *dialect
	// post is how one publishes to it by a POST for each message, where dialect is something else.
	post *dialect
	// resumes: a follower that comes back is given what it missed.
	resumes bool
	// durable: what was published survives the server.
	durable bool
}

// launch is a command that starts a server.
type launch struct {
	cmd *exec.Cmd
	// ready is a path that is answered 200 once it serves. Empty: it is enough that it accepts
	// connections.
	ready string
	// publish is where one publishes, if that is elsewhere.
	publish netip.AddrPort
}

// paths is where things are.
type paths struct {
	here string // this program's sources: configurations and scripts of servers
	bin  string // what was built of ours and of the rivals that are written in Go
}

// contenders is all of them; Tidemark is first, because the others are held against it.
func contenders() []*contender {
	return []*contender{tidemark(), nchan(), centrifugo(), goSSE(), betterSSE(), bun(), ws(), socketIO(), natsServer(), emptyHandler(), bareLoop()}
}

// way is how one follows a contender over a transport, or nil.
func (c *contender) way(transport string) *way {
	for _, w := range c.ways {
		if w.transport == transport {
			return w
		}
	}
	return nil
}

// posts is how one publishes to a contender by POST, nil where that can't be.
func (c *contender) posts() *dialect {
	if c.post == nil && c.dialect.http {
		return c.dialect
	}
	return c.post
}

// by is how a work is done over a transport with a contender, nil where it is not.
func (w *work) by(c *contender, transport string) *way {
	switch {
	case !w.posts:
		return c.way(transport)
	case c.posts() == nil:
		return nil
	}
	return &way{transport: transport}
}

// get is a request that a follower begins with.
func get(path, headers string) []byte {
	return []byte("GET " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers + "\r\n")
}

// acceptEvents is the header of an EventSource.
const acceptEvents = "Accept: text/event-stream\r\n"

// lastEvent is the header with which an EventSource comes back.
func lastEvent(place string) string {
	if place == "" {
		return ""
	}
	return "Last-Event-ID: " + place + "\r\n"
}

// channelName is a channel's name with all contenders.
func channelName(channel int) string { return fmt.Sprintf("c%d", channel) }

// output is what a command prints, with standard error, on one line.
func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	text := strings.Join(strings.Fields(string(out)), " ")
	if err != nil {
		return "", fmt.Errorf("%s: %w %s", name, err, text)
	}
	return text, nil
}
