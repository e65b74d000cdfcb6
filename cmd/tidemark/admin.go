package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// The server's own door for those who administer it: a socket in the data directory, so
// that whoever may read the data may use it, and nobody over the network.

const adminName = "admin.sock"

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

// serveAdmin serves the socket until the function that it returns is called. The caller
// must have the store open, so that no other server uses the socket.
func serveAdmin(dir string, h *hub.Hub, logger *slog.Logger) (stop func(), err error) {
	if err := os.Remove(filepath.Join(dir, adminName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove a socket that was left behind: %w", err)
	}
	path, done, err := adminPath(dir)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		done()
		return nil, fmt.Errorf("listen for administrators: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // by its short name it might be another's
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		done()
		return nil, fmt.Errorf("listen for administrators: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /backup", func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		w.Header().Set("Content-Type", "application/octet-stream")
		header, err := h.Backup(r.Context(), w)
		if err != nil {
			logger.Warn("a backup was not finished", "err", err)
			panic(http.ErrAbortHandler) // what was sent is cut off, and so no whole backup
		}
		logger.Info("a backup was made", "seq", header.Seq, "rows", header.Rows, "took", time.Since(began).Round(time.Millisecond))
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // it ends by Close
	}()
	return func() {
		_ = server.Close()
		<-served
		_ = os.Remove(filepath.Join(dir, adminName)) // or the next start does
		done()
	}, nil
}

// adminGet asks the server whose data directory it is. errNoServer: none is running.
func adminGet(ctx context.Context, dir, path string) (*http.Response, error) {
	socket, done, err := adminPath(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoServer, err)
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://tidemark"+path, nil)
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
		res.Body.Close()
		return nil, fmt.Errorf("the server answers %s", res.Status)
	}
	return res, nil
}

var errNoServer = errors.New("no server is running on this data directory")
