//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// centrifugoConf is for one server without Redis: a history in memory, as long as the load needs,
// that subscribers recover from. Insecure: no tokens, neither to follow nor to publish, as with the others here.
const centrifugoConf = `{
	"http_server": {"address": %q, "port": "%d"},
	"log": {"level": "error"},
	"client": {"insecure": true, "recovery_max_publication_limit": 200000, "queue_max_size": 268435456},
	"http_api": {"insecure": true},
	"uni_sse": {"enabled": true},
	"channel": {"without_namespace": {
		"history_size": 200000, "history_ttl": "1h",
		"force_positioning": true, "force_recovery": true
	}}
}`

// centrifugo is the program of that name, if it is on the PATH.
func centrifugo() *contender {
	// What a subscription is asked with: all of it, or what came after a place, which is an
	// epoch and an offset.
	subscription := func(after string) string {
		epoch, offset, found := strings.Cut(after, " ")
		if !found {
			return ""
		}
		return fmt.Sprintf(`"recover":true,"epoch":%q,"offset":%s`, epoch, offset)
	}
	place := func(tail []byte) string {
		epoch, offset := lastOf(tail, `"epoch":"`, `"`), lastOf(tail, `"offset":`, `}`)
		if epoch == "" || offset == "" {
			return ""
		}
		return epoch + " " + offset
	}
	return &contender{
		name:    "Centrifugo",
		about:   "one node, a history of 200,000 messages a channel in memory; published to by POST requests of one connection to `/api/publish`",
		resumes: true,
		version: func(ctx context.Context, p *paths) (string, error) {
			return output(ctx, "centrifugo", "version")
		},
		launch: func(p *paths, dir string, to netip.AddrPort) (launch, error) {
			conf := filepath.Join(dir, "config.json")
			text := fmt.Sprintf(centrifugoConf, to.Addr(), to.Port())
			return launch{cmd: exec.Command("centrifugo", "--config="+conf)}, os.WriteFile(conf, []byte(text), 0o600)
		},
		ways: []*way{
			{
				transport: sse,
				request: func(channel int, after string) []byte {
					connect := fmt.Sprintf(`{"subs":{"%s":{%s}}}`, channelName(channel), subscription(after))
					return get("/connection/uni_sse?cf_connect="+url.QueryEscape(connect), acceptEvents)
				},
				place: place,
			},
			{
				transport: websocket,
				request:   func(int, string) []byte { return upgrade("/connection/websocket", "") },
				greet: func(channel int, after string) []byte {
					with := subscription(after)
					if with != "" {
						with = "," + with
					}
					return frame(nil, opText, fmt.Appendf(nil, `{"id":1,"connect":{}}`+"\n"+`{"id":2,"subscribe":{"channel":"%s"%s}}`, channelName(channel), with))
				},
				ping: "{}",
				pong: frame(nil, opText, []byte("{}")),
			},
		},
		dialect: func() *dialect {
			d := posts(
				func(int) string { return "/api/publish" },
				func(channel int) string { return `{"channel":"` + channelName(channel) + `","data":` },
				func(int) string { return "}" },
			)
			d.no = []byte(`"error":`)
			return d
		}(),
	}
}
