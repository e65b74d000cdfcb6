//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// What comes from npm; node has their scripts and package-lock.json their versions.

// script starts one of them with its port.
func script(runtime, name string) func(p *paths, dir string, to netip.AddrPort) (launch, error) {
	return func(p *paths, _ string, to netip.AddrPort) (launch, error) {
		command := "node"
		if runtime != "" {
			command = filepath.Join(p.here, runtime)
		}
		cmd := exec.Command(command, filepath.Join(p.here, "node", name+".js"), strconv.Itoa(int(to.Port())))
		cmd.Env = append(os.Environ(), "NODE_ENV=production")
		return launch{cmd: cmd}, nil
	}
}

// npmVersion is a package's, and its runtime's.
func npmVersion(name, runtime string) func(ctx context.Context, p *paths) (string, error) {
	return func(ctx context.Context, p *paths) (string, error) {
		text, err := os.ReadFile(filepath.Join(p.here, "node", "node_modules", name, "package.json"))
		if err != nil {
			return "", err
		}
		var of struct{ Version string }
		if err := json.Unmarshal(text, &of); err != nil {
			return "", fmt.Errorf("the version of %s: %w", name, err)
		}
		if runtime == "" {
			return name + " " + of.Version, nil
		}
		version, err := output(ctx, runtime, "--version")
		return name + " " + of.Version + ", Node " + version, err
	}
}

const node = "node"

// follows is a server whose paths are its channels.
func follows(transport string, request func(path string) []byte) []*way {
	return []*way{{transport: transport, request: func(channel int, _ string) []byte { return request("/sub/" + channelName(channel)) }}}
}

// toPub publishes by messages that begin with the channel's name.
func toPub() *dialect {
	return sockets("/pub", func(dst []byte, channel int, message []byte) []byte {
		return append(append(append(dst, channelName(channel)...), ' '), message...)
	})
}

func ws() *contender {
	return &contender{
		name:    "ws",
		about:   "ws on node:http, one process (`cmd/rivals/node/ws.js`); published to over a WebSocket",
		version: npmVersion("ws", node),
		launch:  script("", "ws"),
		ways:    follows(websocket, func(path string) []byte { return upgrade(path, "") }),
		dialect: toPub(),
	}
}

func bun() *contender {
	return &contender{
		name:    "Bun",
		about:   "Bun's own WebSocket server with its publish and subscribe (`cmd/rivals/node/bun.js`); published to over a WebSocket",
		version: npmVersion("bun", ""),
		launch:  script("node/node_modules/.bin/bun", "bun"),
		ways:    follows(websocket, func(path string) []byte { return upgrade(path, "") }),
		dialect: toPub(),
	}
}

func betterSSE() *contender {
	return &contender{
		name:    "better-sse",
		about:   "better-sse on node:http, one process (`cmd/rivals/node/better-sse.js`); published to by POST requests of one connection",
		version: npmVersion("better-sse", node),
		launch:  script("", "better-sse"),
		ways:    follows(sse, func(path string) []byte { return get(path, acceptEvents) }),
		dialect: posts(func(channel int) string { return "/pub/" + channelName(channel) }, bare, bare),
	}
}

// socketIO speaks Engine.IO 4 and, in it, Socket.IO 5: a digit for each layer's kind of packet, and
// packets of one answer are apart by a record separator.
func socketIO() *contender {
	const path = "/socket.io/?EIO=4&transport="
	join := func(channel int) string { return `40{"c":"` + channelName(channel) + `"}` }
	dialect := sockets(path+"websocket", func(dst []byte, channel int, message []byte) []byte {
		quoted, _ := json.Marshal(string(message))
		return fmt.Appendf(dst, `42["pub","%s",%s]`, channelName(channel), quoted)
	})
	dialect.greet, dialect.welcome = frame(nil, opText, []byte("40")), []byte(`40{`)
	dialect.ping, dialect.pong = "2", frame(nil, opText, []byte("3"))
	return &contender{
		name:    "Socket.IO",
		about:   "Socket.IO on node:http, one process, rooms (`cmd/rivals/node/socketio.js`); published to by events over a WebSocket",
		version: npmVersion("socket.io", node),
		launch:  script("", "socketio"),
		ways: []*way{
			{
				transport: websocket,
				request:   func(int, string) []byte { return upgrade(path+"websocket", "") },
				greet:     func(channel int, _ string) []byte { return frame(nil, opText, []byte(join(channel))) },
				ping:      "2",
				pong:      frame(nil, opText, []byte("3")),
			},
			{
				transport: poll,
				request:   func(int, string) []byte { return get(path+"polling", "") },
				next: func(f *follower) []byte {
					at := path + "polling&sid=" + f.session
					say := func(packet string) []byte {
						return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain;charset=UTF-8\r\nContent-Length: %d\r\n\r\n%s", at, len(packet), packet)
					}
					switch {
					case f.session == "": // it was opened
						f.session = lastOf(f.tail, `"sid":"`, `"`)
						at = path + "polling&sid=" + f.session
						return say(join(f.channel))
					case bytes.Equal(f.tail, []byte("2")) || bytes.HasSuffix(f.tail, []byte("\x1e2")):
						return say("3")
					}
					return get(at, "")
				},
			},
		},
		dialect: dialect,
	}
}
