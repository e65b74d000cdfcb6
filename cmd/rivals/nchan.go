//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// nchanModule is where Debian's package has it.
const nchanModule = "/usr/lib/nginx/modules/ngx_nchan_module.so"

// nchan is nginx with the Nchan module; nginx.conf has its settings.
func nchan() *contender {
	path := func(channel int) string { return "/sub/" + channelName(channel) }
	return &contender{
		name:    "Nchan",
		about:   "nginx with one worker a core, a buffer of 200,000 messages a channel in memory (`cmd/rivals/nginx.conf`); published to by POST requests of one connection",
		resumes: true,
		version: func(ctx context.Context, p *paths) (string, error) {
			nginx, err := findNginx()
			if err != nil {
				return "", err
			}
			if _, err := os.Stat(nchanModule); err != nil {
				return "", fmt.Errorf("the package libnginx-mod-nchan is not installed: %w", err)
			}
			version, err := output(ctx, nginx, "-v")
			if err != nil {
				return "", err
			}
			if module, err := output(ctx, "dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"); err == nil {
				version += ", Nchan " + module
			}
			return strings.TrimPrefix(version, "nginx version: "), nil
		},
		launch: func(p *paths, dir string, to netip.AddrPort) (launch, error) {
			nginx, err := findNginx()
			if err != nil {
				return launch{}, err
			}
			text, err := os.ReadFile(filepath.Join(p.here, "nginx.conf"))
			if err != nil {
				return launch{}, err
			}
			conf := filepath.Join(dir, "nginx.conf")
			filled := strings.NewReplacer("{module}", nchanModule, "{dir}", dir, "{listen}", to.String()).Replace(string(text))
			if err := os.WriteFile(conf, []byte(filled), 0o600); err != nil {
				return launch{}, err
			}
			return launch{cmd: exec.Command(nginx, "-p", dir, "-c", conf, "-e", "stderr"), ready: "/ready"}, nil
		},
		ways: []*way{
			{transport: sse, request: func(channel int, after string) []byte {
				return get(path(channel), acceptEvents+lastEvent(after))
			}},
			{transport: websocket, request: func(channel int, after string) []byte {
				return upgrade(path(channel), lastEvent(after))
			}},
			{
				transport: poll,
				request:   func(channel int, after string) []byte { return get(path(channel), lastEvent(after)) },
				next: func(f *follower) []byte {
					return get(path(f.channel), "If-Modified-Since: "+f.head.modified+"\r\nIf-None-Match: "+f.head.etag+"\r\n")
				},
			},
		},
		dialect: posts(func(channel int) string { return "/pub/" + channelName(channel) }, bare, bare),
	}
}

// findNginx looks where Debian has it, too, which is not on everybody's PATH.
func findNginx() (string, error) {
	if path, err := exec.LookPath("nginx"); err == nil {
		return path, nil
	}
	path, err := exec.LookPath("/usr/sbin/nginx")
	if err != nil {
		return "", fmt.Errorf("nginx is not installed: %w", err)
	}
	return path, nil
}
