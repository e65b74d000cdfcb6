//go:build linux

package main

import (
	"context"
	"net/netip"
	"os/exec"
	"path/filepath"
)

// goSSE is a server made with tmaxmax/go-sse; gosse has it.
func goSSE() *contender {
	return &contender{
		name:    "go-sse",
		about:   "tmaxmax/go-sse with its provider Joe and a replayer of 200,000 events in memory (`cmd/rivals/gosse`); published to by POST requests of one connection",
		resumes: true,
		version: func(ctx context.Context, p *paths) (string, error) {
			// The module that was built in is said by the toolchain.
			text, err := output(ctx, "go", "version", "-m", filepath.Join(p.bin, "gosse"))
			if err != nil {
				return "", err
			}
			return "tmaxmax/go-sse " + lastOf([]byte(text), "github.com/tmaxmax/go-sse ", " "), nil
		},
		launch: func(p *paths, _ string, to netip.AddrPort) (launch, error) {
			return launch{cmd: exec.Command(filepath.Join(p.bin, "gosse"), to.String()), ready: "/ready"}, nil
		},
		ways: []*way{{transport: sse, request: func(channel int, after string) []byte {
			return get("/sub/"+channelName(channel), acceptEvents+lastEvent(after))
		}}},
		dialect: posts(func(channel int) string { return "/pub/" + channelName(channel) }, bare, bare),
	}
}
