package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/broker/history"
	"github.com/tidemark-sync/tidemark/sync/fault"
	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
	"github.com/tidemark-sync/tidemark/transport/gate"
)

// Config is all that the server is told. validate fills defaults, once.
type Config struct {
	Listen  string // host:port; port 0 takes a free one
	Data    string // directory of log and checkpoints
	TLSCert string // PEM files; both or none
	TLSKey  string
	Admin   string // host:port of administration; "": adminDefault, if it is free; "off": the socket alone

	Access        Access
	Tenants       []string              // all that there are; nil: a tenant comes to be when somebody uses it
	Limits        hub.Limits            // of each
	TenantLimits  map[string]hub.Limits // of some
	Strangers     Strangers
	InsecureAdmin bool // Admin may be reached from other machines

	Memory     int64         // bytes for rows, tombstones and ids; 0: half of what the process may use
	Log        int64         // bytes of log kept at least before a checkpoint; 0: 64 MiB
	Body       int64         // bytes of a request's body; 0: 1 MiB
	Tombstones time.Duration // how long removes are remembered; 0: 7 days
	IDs        time.Duration // how long ids are remembered; 0: 1 h
	IDsMost    int           // how many ids of one tenant are remembered; 0: 1,000,000
	Gather     time.Duration // how long changes that come fast wait for each other; 0: 4 ms, 1 ns: they do not
	OneByOne   bool          // each socket is written to by itself
	PollCache  string        // Cache-Control of long-poll answers that may be cached

	Relaxed    bool             // acknowledge before it is durable
	Reserve    int64            // free bytes of the disk below which writes are refused; 0: 64 MiB
	Scrub      time.Duration    // how often all files are checked; 0: 6 h
	AcceptLoss bool             // go on with what can be read of a damaged store
	History    *history.Options // how much history is kept; nil: none

	Hint   bool                         // say how to get credentials, where there are none
	Pages  func(*transport.Server)      // mounts pages
	Ready  func(url string, h *hub.Hub) // called once it serves
	Logger *slog.Logger
}

// drainTime is how long a stop may take: below the 30 s after which most supervisors kill.
const drainTime = 20 * time.Second

func (c *Config) validate() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("--listen %q must be host:port, like 127.0.0.1:7333", c.Listen)
	}
	if c.Admin != "" && c.Admin != "off" {
		if _, _, err := net.SplitHostPort(c.Admin); err != nil {
			return fmt.Errorf("--admin-listen %q must be host:port, like 127.0.0.1:7334, or off", c.Admin)
		}
		if !loopbackListen(c.Admin) && !c.InsecureAdmin {
			return fmt.Errorf("--admin-listen %s is refused: administration asks nobody who they are, so only this machine may reach it; --insecure-admin lets others", c.Admin)
		}
	}
	if c.Data == "" {
		return errors.New("--data must name a directory")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return errors.New("--tls-cert and --tls-key go together")
	}
	for name, n := range map[string]int64{"memory": c.Memory, "log-size": c.Log, "max-body": c.Body, "tombstones": int64(c.Tombstones), "ids": int64(c.IDs),
		"ids-most": int64(c.IDsMost), "disk-reserve": c.Reserve, "scrub": int64(c.Scrub)} {
		if n < 0 {
			return fmt.Errorf("--%s must not be negative", name)
		}
	}
	if c.Memory == 0 {
		c.Memory = usableMemory() / 2
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// run serves until ctx ends, then drains. It returns nil after an orderly stop.
func run(ctx context.Context, c Config) (err error) {
	if err := c.validate(); err != nil {
		return usageError{err}
	}
	var cert *tls.Config
	if c.TLSCert != "" {
		files, err := readCertificate(c.TLSCert, c.TLSKey, c.Logger)
		if err != nil {
			return fmt.Errorf("read --tls-cert and --tls-key: %w", err)
		}
		cert = &tls.Config{GetCertificate: files.get, MinVersion: tls.VersionTLS12}
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	secret, err := secretOf(c.Data)
	if err != nil {
		return err
	}
	collectEarly()
	who, err := c.settle(ctx)
	if err != nil {
		return err
	}
	defer who.close()
	if c.Relaxed {
		who.warnings = append(who.warnings, "durability is relaxed: what is acknowledged is durable about a second later, and a crash may take it back")
	}
	if c.InsecureAdmin {
		who.warnings = append(who.warnings, "--insecure-admin: whoever reaches "+c.Admin+" may take credentials back and forget tenants")
	}
	strangers, listen, err := c.Strangers.gate(usableMemory())
	if err != nil {
		return err
	}
	listen.TLS, listen.Logger = cert != nil, c.Logger
	k := &keeper{logger: c.Logger, hub: make(chan *hub.Hub, 1)}
	front := transport.New(transport.Options{
		Forget: k.forget, Authorizer: who.authorizer, Origins: who.origins, Gate: strangers, Version: version(), NetworkKey: secret,
		Body: c.Body, PollCache: c.PollCache, OneByOne: c.OneByOne, Logger: c.Logger, Remark: strings.Join(who.warnings, "; "),
	})
	if c.Pages != nil {
		c.Pages(front)
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	bounded, err := gate.Listen(l, listen)
	if err != nil {
		l.Close()
		return err
	}
	server := &http.Server{
		Handler: front, TLSConfig: cert,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: gate.MaxHeaderBytes,
		ErrorLog: slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	scheme := "http"
	if cert != nil {
		scheme = "https"
	}
	go func() {
		if cert != nil {
			served <- server.ServeTLS(transport.Listen(bounded), "", "")
		} else {
			served <- server.Serve(front.Door(bounded, server))
		}
	}()
	defer func() {
		_ = server.Close() // what Shutdown has not closed
		if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
	}()

	front.NotReady("reading the log")
	started := time.Now()
	for _, warning := range who.warnings {
		c.Logger.Warn(warning)
	}
	switch _, open := who.authorizer.(transport.Loopback); {
	case open && c.Hint:
		c.Logger.Warn("there are no credentials, so only this machine may use the server; to listen elsewhere make keys (tidemark keys --out keys) and add: --jwt-public-key keys/public.pem")
	case !open && cert == nil && !loopbackListen(c.Listen):
		c.Logger.Warn("credentials come over plain HTTP: let a proxy that speaks TLS stand in front, or add --tls-cert and --tls-key")
	}
	if fault.Built {
		c.Logger.Warn("this build can be told to fail, and is for tests only")
	}
	log, h, err := openStore(ctx, c, broker.Options{
		Dir: c.Data, Relaxed: c.Relaxed, Reserve: c.Reserve, Scrub: c.Scrub, Damaged: k.damaged, History: c.History, Logger: c.Logger,
	}, hub.Options{
		Memory: c.Memory, Log: c.Log, Tombstones: c.Tombstones, IDs: c.IDs, IDCount: c.IDsMost, Gather: c.Gather, Sessions: c.Strangers.MaxConnections,
		Limits: c.Limits, TenantLimits: c.TenantLimits, Tenants: c.Tenants, Clock: bootClock(), Logger: c.Logger,
	})
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		c.Logger.Info("stopped before it served")
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the log in %s: %w", c.Data, err)
	}
	defer func() {
		if cerr := log.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("close the log: %w", cerr))
		}
	}()
	k.log = log
	k.hub <- h
	m := &metrics{hub: h, front: front, gate: strangers, main: bounded}
	admin := &admins{logger: c.Logger, handler: administration(&c, who, m)}
	admin.local = withBackup(&c, m, admin.handler)
	defer admin.stop()
	if err := errors.Join(admin.socket(c.Data), admin.tcp(&c)); err != nil {
		return errors.Join(err, h.Drain(ctx))
	}
	front.Serve(h)
	stats := h.Stats()
	c.Logger.Info("serving", "url", scheme+"://"+l.Addr().String(), "epoch", h.Epoch(), "rows", stats.Rows, "seq", stats.Head, "io_uring", !c.OneByOne && transport.IOUring(),
		"memory", stats.Memory, "opened", time.Since(started).Round(time.Millisecond))
	if c.Ready != nil {
		c.Ready(scheme+"://"+l.Addr().String(), h)
	}

	select {
	case <-ctx.Done():
		c.Logger.Info("draining", "sessions", h.Stats().Sessions)
	case err = <-served:
		served <- err
		err = fmt.Errorf("serve: %w", err)
	}
	front.NotReady("draining")
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if derr := h.Drain(stop); derr != nil {
		err = errors.Join(err, fmt.Errorf("drain: %w", derr))
	}
	if serr := server.Shutdown(stop); serr != nil {
		c.Logger.Warn("some connections had to be cut", "err", serr)
	}
	if werr := front.Wait(stop); werr != nil {
		c.Logger.Warn("some WebSockets had to be cut", "err", werr)
	}
	c.Logger.Info("stopped")
	return err
}

// secretOf reads the data directory's secret, and makes it the first time: 32 random
// bytes that key what clients are shown about themselves.
func secretOf(dir string) ([]byte, error) {
	const size = 32
	path := filepath.Join(dir, "secret")
	b, err := os.ReadFile(path)
	if err == nil && len(b) == size {
		return b, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the secret: %w", err)
	}
	b = make([]byte, size)
	rand.Read(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return nil, fmt.Errorf("write the secret: %w", err)
	}
	return b, nil
}

// banner is what dev prints: where it is, and three lines that work.
func banner(w io.Writer, url, data string) {
	fmt.Fprintf(w, `
  Tidemark is at %[1]s  (data in %[2]s, no credentials, this machine only)

  Follow a collection, as Server-Sent Events:
    curl -N -H 'Accept: text/event-stream' '%[1]s/v1/demo/feed?c=todos'

  Write to it; the page and every follower show it at once:
    curl '%[1]s/v1/demo/rows/todos' -d '{"title":"milk","done":false}'

  Read its rows:
    curl '%[1]s/v1/demo/rows/todos'

  Stop with Ctrl-C.

`, url, data)
}
