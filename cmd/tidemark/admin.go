package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
	"github.com/tidemark-sync/tidemark/transport/gate"
)

// The server's own door for those who administer it: a socket in the data directory, so
// that whoever may read the data may use it; and a port of its own, which is this machine's
// alone unless somebody insists.

const adminName = "admin.sock"

// adminDefault is where administration is served over TCP, too: metrics are asked for
// by programs that know no sockets of files.
const adminDefault = "127.0.0.1:7334"

// adminPath is the socket's name as the system takes it, which is at most about a hundred
// bytes long: on Linux a longer one is reached by the directory's descriptor.
func adminPath(dir string) (path string, done func(), err error) {
	path = filepath.Join(dir, adminName)
	if len(path) < 100 || runtime.GOOS != "linux" {
		return path, func() {}, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), adminName), func() { d.Close() }, nil
}

// withBackup adds the backup, which is all of everybody's rows: for who may read the data directory.
func withBackup(c *Config, m *metrics, rest http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /backup", func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		w.Header().Set("Content-Type", "application/octet-stream")
		header, err := m.hub.Backup(r.Context(), w)
		if err != nil {
			c.Logger.Warn("a backup was not finished", "err", err)
			if header.Epoch == "" { // it was not begun
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			panic(http.ErrAbortHandler) // what was sent is cut off, and so no whole backup
		}
		c.Logger.Info("a backup was made", "seq", header.Seq, "rows", header.Rows, "took", time.Since(began).Round(time.Millisecond))
	})
	mux.Handle("/", rest)
	return mux
}

// administration is what administrators are served with, at the socket and, where
// --admin-listen says so, over TCP.
func administration(c *Config, s settled, m *metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.handler())
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		status := struct {
			Version  string           `json:"version"`
			Epoch    string           `json:"epoch"`
			Ready    string           `json:"ready"`
			Warnings []string         `json:"warnings"`
			Hub      hub.Stats        `json:"hub"`
			Gate     gate.Reading     `json:"process"`
			Listener gate.ListenStats `json:"connections"`
		}{version(), string(m.hub.Epoch()), "ready", append([]string{}, s.warnings...), m.hub.Stats(), m.gate.Watch.Reading(), m.main.Stats()}
		if err := m.hub.Err(); err != nil {
			status.Ready = err.Error()
		} else if err := m.hub.Ready(); err != nil {
			status.Ready = "writes are refused: " + err.Error()
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(status) // or the client is gone
	})
	for path, handler := range map[string]http.HandlerFunc{
		"/debug/pprof/": pprof.Index, "/debug/pprof/profile": pprof.Profile, "/debug/pprof/symbol": pprof.Symbol, "/debug/pprof/trace": pprof.Trace,
	} { // not cmdline: somebody may have put a secret there
		mux.HandleFunc("GET "+path, handler)
	}
	mux.Handle("/v1/", m.front.Administration())
	return mux
}

// admins serves administration until its end.
type admins struct {
	handler http.Handler
	local   http.Handler // at the socket
	logger  *slog.Logger
	stops   []func()
}

func (a *admins) serve(l net.Listener, handler http.Handler) {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: gate.MaxHeaderBytes,
		ErrorLog: slog.NewLogLogger(a.logger.Handler(), slog.LevelDebug),
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // it ends by Close
	}()
	a.stops = append(a.stops, func() {
		_ = server.Close()
		<-served
	})
}

func (a *admins) stop() {
	for _, stop := range a.stops {
		stop()
	}
}

// socket serves the socket in the data directory. The caller must have the store open, so
// that no other server uses it.
func (a *admins) socket(dir string) error {
	if err := os.Remove(filepath.Join(dir, adminName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a socket that was left behind: %w", err)
	}
	path, done, err := adminPath(dir)
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		done()
		return fmt.Errorf("listen for administrators: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // by its short name it might be another's
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		done()
		return fmt.Errorf("listen for administrators: %w", err)
	}
	a.serve(l, a.local)
	a.stops = append(a.stops, func() {
		_ = os.Remove(filepath.Join(dir, adminName)) // or the next start does
		done()
	})
	return nil
}

// tcp serves what --admin-listen names.
func (a *admins) tcp(c *Config) error {
	if c.Admin == "off" {
		return nil
	}
	address := c.Admin
	if address == "" {
		address = adminDefault
	}
	l, err := net.Listen("tcp", address)
	if err != nil && c.Admin == "" {
		// A second server on a machine must not fail for want of what nobody asked for.
		a.logger.Warn("administration is served at the socket in the data directory alone; name another --admin-listen", "err", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("--admin-listen: %w", err)
	}
	bounded, err := gate.Listen(l, gate.ListenOptions{Most: 256, Logger: a.logger})
	if err != nil {
		l.Close()
		return err
	}
	a.serve(bounded, transport.NoPages(a.handler, !loopbackListen(address)))
	a.logger.Info("administration", "url", "http://"+l.Addr().String())
	return nil
}

// adminGet asks the server whose data directory it is. errNoServer: none is running.
func adminGet(ctx context.Context, dir, path string) (*http.Response, error) {
	socket, done, err := adminPath(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoServer, err)
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		conn.Close()
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
		res.Body.Close()
		return nil, fmt.Errorf("the server answers %s: %s", res.Status, bytes.TrimSpace(why))
	}
	return res, nil
}

var errNoServer = errors.New("no server is running on this data directory")
