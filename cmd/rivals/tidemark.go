//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
)

// tidemarkFlags are beside --data and the addresses. The two limits are there to keep strangers
// and tenants from taking more than their share, and 5,000 followers that come within two
// seconds, or 100,000 rows that are written at once, are more than that.
var tidemarkFlags = []string{"--feed-rate=20000", "--tenant-writes=1000000", "--log-level=error"}

// tidemark is the real program: durable, its limits and metrics on.
func tidemark() *contender {
	feed := func(channel int, after string) string {
		path := "/v1/rivals/feed?c=" + channelName(channel)
		if after != "" {
			path += "&cursor=" + after
		}
		return path
	}
	return &contender{
		name:    "Tidemark",
		about:   "`tidemark serve --data DIR " + strings.Join(tidemarkFlags, " ") + "`; published to by `write` frames of one WebSocket, where not by POST",
		resumes: true,
		durable: true,
		version: func(ctx context.Context, p *paths) (string, error) {
			return output(ctx, filepath.Join(p.bin, "tidemark"), "version")
		},
		launch: func(p *paths, dir string, to netip.AddrPort) (launch, error) {
			admin, err := freeAddress()
			args := append([]string{"serve", "--data=" + filepath.Join(dir, "data"), "--listen=" + to.String(), "--admin-listen=" + admin.String()}, tidemarkFlags...)
			return launch{cmd: exec.Command(filepath.Join(p.bin, "tidemark"), args...), ready: "/readyz"}, err
		},
		ways: []*way{
			{transport: sse, request: func(channel int, after string) []byte { return get(feed(channel, after), acceptEvents) }},
			{transport: websocket, request: func(channel int, after string) []byte {
				return upgrade(feed(channel, after), "Sec-WebSocket-Protocol: tidemark.v1\r\n")
			}},
			{
				transport: poll,
				request:   func(channel int, after string) []byte { return get(feed(channel, after), "") },
				next: func(f *follower) []byte {
					if cursor := lastOf(f.tail, `"cursor":"`, `"`); cursor != "" {
						f.session = cursor
					}
					return get(feed(f.channel, f.session), "")
				},
			},
		},
		dialect: tidemarkDialect(),
		post:    tidemarkPosts(),
	}
}

// tidemarkDialect is write frames. Every message is a row of its own: a newer row of the same key
// would stand for the older, and then not all of them had to come.
func tidemarkDialect() *dialect {
	return &dialect{
		upgrade:  true,
		hello:    upgrade("/v1/rivals/feed?c=publisher", "Sec-WebSocket-Protocol: tidemark.v1\r\n"),
		yes:      []byte(`{"type":"written"`),
		no:       []byte(`"type":"error"`),
		requests: func(n int) int { return (n + tidemarkBatch - 1) / tidemarkBatch },
		encode: func(dst []byte, channel int, messages []record, size int) []byte {
			for len(messages) > 0 {
				n := min(len(messages), tidemarkBatch)
				text := []byte(`{"type":"write","id":"w","atomic":false,"changes":[`)
				for i, m := range messages[:n] {
					if i > 0 {
						text = append(text, ',')
					}
					text = fmt.Appendf(text, `{"collection":"%s","op":"put","key":"%d","value":`, channelName(channel), m.seq)
					text = append(m.message(text, size), '}')
				}
				dst = frame(dst, opText, append(text, "]}"...))
				messages = messages[n:]
			}
			return dst
		},
	}
}

// tidemarkBatch is how many changes are in one request at most, where many are published at once.
const tidemarkBatch = 100
