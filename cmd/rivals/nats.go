//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
)

// natsServer is the NATS server's own WebSocket listener, without JetStream: what is published is
// gone. Ours embeds the same server, for its log.
func natsServer() *contender {
	const hello = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n"
	return &contender{
		name:  "NATS",
		about: "nats-server with its WebSocket listener, core NATS: nothing is kept; published to over NATS' own protocol",
		version: func(ctx context.Context, p *paths) (string, error) {
			return output(ctx, filepath.Join(p.bin, "nats-server"), "--version")
		},
		launch: func(p *paths, dir string, to netip.AddrPort) (launch, error) {
			publish, err := freeAddress()
			if err != nil {
				return launch{}, err
			}
			conf := filepath.Join(dir, "nats.conf")
			text := fmt.Sprintf("listen: %q\nwebsocket { listen: %q, no_tls: true }\n", publish, to)
			return launch{cmd: exec.Command(filepath.Join(p.bin, "nats-server"), "-c", conf), publish: publish}, os.WriteFile(conf, []byte(text), 0o600)
		},
		ways: []*way{{
			transport: websocket,
			request:   func(int, string) []byte { return upgrade("/", "") },
			greet: func(channel int, _ string) []byte {
				return frame(nil, opBinary, []byte(hello+"SUB "+channelName(channel)+" 1\r\n"))
			},
			ping: "PING\r\n",
			pong: frame(nil, opBinary, []byte("PONG\r\n")),
		}},
		dialect: &dialect{
			hello:    []byte(hello + "PING\r\n"),
			welcome:  []byte("PONG\r\n"),
			no:       []byte("-ERR"),
			ping:     "PING\r\n",
			pong:     []byte("PONG\r\n"),
			requests: func(n int) int { return n },
			encode: func(dst []byte, channel int, messages []record, size int) []byte {
				for _, m := range messages {
					dst = fmt.Appendf(dst, "PUB %s %d\r\n", channelName(channel), size)
					dst = append(m.message(dst, size), "\r\n"...)
				}
				return dst
			},
		},
	}
}
