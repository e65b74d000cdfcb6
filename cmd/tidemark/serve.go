package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/alecthomas/units"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
)

// ServerFlags are those of dev and serve alike.
type ServerFlags struct {
	Memory         *units.Base2Bytes `placeholder:"SIZE" help:"How much rows, tombstones and remembered ids may hold; writes beyond it are refused. Default: half of what the process may use."`
	LogSize        units.Base2Bytes  `default:"64MiB" placeholder:"SIZE" help:"How much log is kept at least before a checkpoint replaces it. Default: ${default}."`
	MaxBody        units.Base2Bytes  `default:"1MiB" placeholder:"SIZE" help:"The most that one request may send. Default: ${default}."`
	Tombstones     time.Duration     `default:"168h" placeholder:"TIME" help:"How long a remove is remembered; who was away longer gets every row anew. Default: ${default}."`
	IDs            time.Duration     `name:"ids" default:"1h" placeholder:"TIME" help:"How long the id of a change is remembered: for so long a write may be sent again. Default: ${default}."`
	IDsMost        int               `name:"ids-most" default:"1000000" placeholder:"N" help:"How many ids of one tenant are remembered at most, should they come faster. Default: ${default}."`
	Durability     string            `default:"durable" enum:"durable,relaxed" placeholder:"HOW" help:"durable: what is acknowledged was made durable first. relaxed: it is about a second later; a crash may take the last back, and then every client starts anew. Default: ${default}."`
	Gather         time.Duration     `default:"4ms" placeholder:"TIME" help:"How long changes that come one by one, but fast, wait for each other, to be made durable together; 100ms at most. 0s: never, at more CPU for each. Default: ${default}."`
	IOUring        bool              `name:"io-uring" default:"true" negatable:"" help:"Write to many followers in one system call, by io_uring, where the kernel lets us. Default: yes; --no-io-uring: each by itself."`
	DiskReserve    units.Base2Bytes  `default:"64MiB" placeholder:"SIZE" help:"Free space on the disk below which writes are refused. Default: ${default}."`
	Scrub          time.Duration     `default:"6h" placeholder:"TIME" help:"How often all files are checked while the server runs. Default: ${default}."`
	AcceptDataLoss bool              `help:"If the data directory is damaged, go on with what can be read, under a new epoch. What is damaged is kept in DIR/aside."`
	History        History           `default:"off" placeholder:"HOW" help:"How long every change is kept for GET /v1/{tenant}/history: off, forever, a time (720h, 90d), a size on disk (10GiB), or both (90d,10GiB: whichever is less). Default: ${default}."`
	PollCache      string            `default:"private, max-age=60" placeholder:"VALUE" help:"Cache-Control of long-poll answers that may be cached. Default: ${default}."`
	TLSCert        string            `type:"existingfile" placeholder:"FILE" help:"Serve TLS and HTTP/2 with this certificate (PEM)."`
	TLSKey         string            `type:"existingfile" placeholder:"FILE" help:"The certificate's key (PEM)."`
	Strangers      `embed:""`
	Tenants        `embed:""`
	AdminListen    string     `placeholder:"ADDR" help:"Where administration is served, which asks nobody who they are: metrics, status, profiles, revocations. off: only at the socket in the data directory. Default: 127.0.0.1:7334, if it is free."`
	InsecureAdmin  bool       `help:"Let --admin-listen be reached from other machines."`
	LogLevel       slog.Level `default:"info" placeholder:"LEVEL" help:"debug, info, warn or error. Default: ${default}."`
}

// Validate is called by kong: a limit of 0 never means that there is none.
func (f *ServerFlags) Validate() error {
	for name, n := range map[string]int64{"log-size": int64(f.LogSize), "max-body": int64(f.MaxBody), "tombstones": int64(f.Tombstones), "ids": int64(f.IDs),
		"ids-most": int64(f.IDsMost), "disk-reserve": int64(f.DiskReserve), "scrub": int64(f.Scrub)} {
		if n <= 0 {
			return fmt.Errorf("--%s must be above 0", name)
		}
	}
	if f.Memory != nil && *f.Memory <= 0 {
		return fmt.Errorf("--memory must be above 0")
	}
	if f.Gather < 0 || f.Gather > hub.MaxGather {
		return fmt.Errorf("--gather must be 0s to %s", hub.MaxGather)
	}
	return errors.Join(f.Strangers.Validate(), f.Tenants.Validate())
}

func (f *ServerFlags) config(listen, data string, std stdio) Config {
	own, _ := f.Tenants.own() // Validate has read them
	return Config{
		Tenants: f.Only, Limits: f.Tenants.limits(), TenantLimits: own,
		Listen: listen, Data: data, TLSCert: f.TLSCert, TLSKey: f.TLSKey,
		Admin: f.AdminListen, InsecureAdmin: f.InsecureAdmin, Strangers: f.Strangers,
		Memory: int64(valueOf(f.Memory)), Log: int64(f.LogSize), Body: int64(f.MaxBody),
		Tombstones: f.Tombstones, IDs: f.IDs, IDsMost: f.IDsMost, Gather: max(f.Gather, 1), PollCache: f.PollCache, OneByOne: !f.IOUring,
		Relaxed: f.Durability == "relaxed", Reserve: int64(f.DiskReserve), Scrub: f.Scrub, AcceptLoss: f.AcceptDataLoss,
		History: f.History.options,
		Logger:  slog.New(slog.NewTextHandler(std.err, &slog.HandlerOptions{Level: f.LogLevel})),
	}
}

// DevCmd runs a server to try things out.
type DevCmd struct {
	Listen string `default:"127.0.0.1:7333" placeholder:"ADDR" help:"Where to listen; this machine only. Default: ${default}."`
	Data   string `default:"./tidemark-data" placeholder:"DIR" type:"path" help:"Where the log lives. Default: ${default}."`
	ServerFlags
}

// Help teaches.
func (DevCmd) Help() string {
	return `A server on this machine, without credentials, with a demo page at /. What you write stays in the data directory; remove it to start anew.

    $ tidemark dev
    $ curl -N -H 'Accept: text/event-stream' 'http://127.0.0.1:7333/v1/demo/feed?c=todos'
    $ curl 'http://127.0.0.1:7333/v1/demo/rows/todos' -d '{"title":"milk","done":false}'`
}

// Run serves until ctx ends.
func (d *DevCmd) Run(ctx context.Context, std stdio) error {
	c := d.config(d.Listen, d.Data, std)
	c.Pages = func(s *transport.Server) {
		mountClient(s)
		mountDemo(s)
	}
	c.Ready = func(url string, _ *hub.Hub) { banner(std.out, url, d.Data) }
	return run(ctx, c)
}

// ServeCmd runs the server.
type ServeCmd struct {
	Listen string `default:"127.0.0.1:7333" placeholder:"ADDR" help:"Where to listen. Without credentials, only loopback is accepted. Default: ${default}."`
	Data   string `required:"" placeholder:"DIR" type:"path" help:"Where the log lives."`
	Access `embed:""`
	ServerFlags
}

// Help teaches.
func (ServeCmd) Help() string {
	return `The server for real: its log in a directory of its own, held by one process at a time. GET /healthz is 200 while it lives, GET /readyz once it serves. On SIGTERM it tells every client when to come back, answers what it has taken, and exits with 0 within 30 seconds.

    $ tidemark keys --out keys
    $ tidemark serve --data /var/lib/tidemark --listen 0.0.0.0:7333 --jwt-public-key keys/public.pem --origins https://app.example.com --tls-cert cert.pem --tls-key key.pem
    $ tidemark serve --data /var/lib/tidemark                 # no credentials: this machine only
    $ TIDEMARK_MEMORY=4GiB tidemark serve --config /etc/tidemark.yaml`
}

// Run serves until ctx ends.
func (s *ServeCmd) Run(ctx context.Context, std stdio) error {
	c := s.config(s.Listen, s.Data, std)
	c.Access, c.Hint, c.Pages = s.Access, true, mountClient
	return run(ctx, c)
}
