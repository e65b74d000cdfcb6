package main

import (
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate is that of the files named, as they are now: whoever renews them need not stop the server. While they can't be
// read, or don't go together because only one was written yet, what was read before goes on to count.
type certificate struct {
	// Static after construction.
	files  [2]string // certificate, key
	logger *slog.Logger

	mu   sync.Mutex
	seen [2]time.Time     // guarded by mu: when the files were changed, as they were read last
	pair *tls.Certificate // guarded by mu
}

func readCertificate(cert, key string, logger *slog.Logger) (*certificate, error) {
	c := &certificate{files: [2]string{cert, key}, logger: logger}
	return c, c.read(c.changed())
}

// get is tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.changed(); now != c.seen {
		if err := c.read(now); err != nil {
			c.logger.Warn("the certificate was changed, and can't be read; the one before goes on to count", "err", err)
		} else {
			c.logger.Info("the certificate was read anew")
		}
	}
	return c.pair, nil
}

// changed is when the files were changed last; zero where that can't be told.
func (c *certificate) changed() (at [2]time.Time) {
	for i, name := range c.files {
		if info, err := os.Stat(name); err == nil {
			at[i] = info.ModTime()
		}
	}
	return at
}

func (c *certificate) read(changed [2]time.Time) error {
	c.seen = changed
	pair, err := tls.LoadX509KeyPair(c.files[0], c.files[1])
	if err == nil {
		c.pair = &pair
	}
	return err
}
