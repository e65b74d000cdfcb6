package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport/credential"
)

// TokenCmd makes a token, for development.
type TokenCmd struct {
	SecretFile string        `type:"existingfile" placeholder:"FILE" help:"Sign with the secret in this file (HS256). Without it and --key-file, with TIDEMARK_JWT_SECRET."`
	KeyFile    string        `type:"existingfile" placeholder:"FILE" help:"Sign with this private key (PEM)."`
	Tenant     string        `required:"" placeholder:"NAME" help:"For which tenant; * is all."`
	Read       []string      `default:"**" placeholder:"PATTERN" help:"Which collections may be read; may be repeated. Default: ${default}."`
	Write      []string      `default:"**" placeholder:"PATTERN" help:"Which collections may be written; may be repeated. Default: ${default}."`
	Filter     []string      `sep:"none" placeholder:"PATTERN=EXPRESSION" help:"Of these collections only rows for which this is true; may be repeated."`
	Sub        string        `placeholder:"NAME" help:"Whom it is for."`
	Admin      bool          `help:"It may revoke credentials and forget tenants."`
	TTL        time.Duration `name:"ttl" default:"1h" placeholder:"TIME" help:"How long it counts. Default: ${default}."`
	Issuer     string        `placeholder:"NAME" help:"What the server's --jwt-issuer is."`
	Audience   string        `placeholder:"NAME" help:"What the server's --jwt-audience is."`
	ID         string        `name:"id" placeholder:"ID" help:"Its own name, to revoke it by. Default: a random one."`
}

// Help teaches.
func (TokenCmd) Help() string {
	return `For development: an app makes tokens itself, with the JWT library of its language. The token goes to standard output, and nothing else does.

    $ tidemark keys --type hs256 --out dev-keys
    $ tidemark token --secret-file dev-keys/tidemark.secret --tenant acme
    $ curl -H "Authorization: Bearer $(tidemark token --key-file dev-keys/private.pem --tenant acme)" \
        http://127.0.0.1:7333/v1/acme/rows/todos

What it may read and write are patterns: * is one segment of a collection's name, ** as the last is any rest. --write= is nothing at all.

    $ tidemark token --tenant acme --sub ada --read 'todos,lists/*' --write= --ttl 10m
    $ tidemark token --tenant acme --sub ada --filter 'todos=row.owner == claims.sub'
    $ tidemark token --tenant '*' --admin --ttl 5m

A secret is never given on the command line, where other users of the machine can read it.`
}

// Run prints it.
func (c *TokenCmd) Run(ctx context.Context, std stdio) error {
	signer, err := c.signer()
	if err != nil {
		return err
	}
	claims, err := c.claims(time.Now())
	if err != nil {
		return err
	}
	token, err := signer.Sign(claims)
	if err != nil {
		return fmt.Errorf("sign the token: %w", err)
	}
	if err := c.try(ctx, signer, token); err != nil {
		return usageError{err}
	}
	_, err = fmt.Fprintln(std.out, token)
	return err
}

func (c *TokenCmd) signer() (*credential.Signer, error) {
	if c.KeyFile != "" {
		if c.SecretFile != "" {
			return nil, misuse("give --secret-file or --key-file, not both")
		}
		text, err := readKeyFile(c.KeyFile)
		if err != nil {
			return nil, err
		}
		signer, err := credential.ParseSigner(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.KeyFile, err)
		}
		return signer, nil
	}
	secret, err := jwtSecret(c.SecretFile)
	switch {
	case err != nil:
		return nil, err
	case secret == nil:
		return nil, misuse("what should it be signed with? --secret-file, --key-file or TIDEMARK_JWT_SECRET; tidemark keys makes one")
	}
	return credential.NewSigner(secret)
}

func (c *TokenCmd) claims(now time.Time) (map[string]any, error) {
	if c.TTL < time.Second {
		return nil, misuse("--ttl must be at least 1s")
	}
	if c.ID == "" {
		c.ID = rand.Text()
	}
	claims := map[string]any{
		"tenant": c.Tenant, "iat": now.Unix(), "exp": now.Add(c.TTL).Unix(), "jti": c.ID,
		"read": given(c.Read), "write": given(c.Write),
	}
	for name, value := range map[string]string{"sub": c.Sub, "iss": c.Issuer, "aud": c.Audience} {
		if value != "" {
			claims[name] = value
		}
	}
	if c.Admin {
		claims["admin"] = true
	}
	filters := map[string]any{}
	for _, f := range c.Filter {
		pattern, expression, ok := strings.Cut(f, "=")
		if pattern = strings.TrimSpace(pattern); !ok || pattern == "" {
			return nil, misuse("--filter %q: it looks like 'todos=row.owner == claims.sub'", f)
		}
		if _, twice := filters[pattern]; twice {
			return nil, misuse("--filter: %s has two; join them with &&", pattern)
		}
		filters[pattern] = strings.TrimSpace(expression)
	}
	if len(filters) > 0 {
		claims["filters"] = filters
	}
	return claims, nil
}

// given is a list without what is empty: --write= is no pattern.
func given(patterns []string) []string {
	list := []string{}
	for _, p := range patterns {
		if p = strings.TrimSpace(p); p != "" {
			list = append(list, p)
		}
	}
	return list
}

// try verifies the token as a server would, so that whoever makes one that no server takes
// hears of it here. Only the server compiles filters.
func (c *TokenCmd) try(ctx context.Context, signer *credential.Signer, token string) error {
	keys, err := signer.Keys()
	if err != nil {
		return err
	}
	v, err := credential.New(ctx, credential.Options{
		Keys: keys, Issuer: c.Issuer, Audience: c.Audience,
		Filter: func(string, map[string]any) (hub.Filter, error) { return nil, nil },
	})
	if err != nil {
		return err
	}
	defer v.Close()
	_, err = v.Verify(ctx, token)
	return err
}

// jwtSecret reads a secret: from a file if one is named, else from TIDEMARK_JWT_SECRET; nil if there
// is neither. A line's end after it does not belong to it.
func jwtSecret(file string) ([]byte, error) {
	text, set := os.LookupEnv("TIDEMARK_JWT_SECRET")
	secret := []byte(text)
	if file != "" {
		var err error
		if secret, err = readKeyFile(file); err != nil {
			return nil, err
		}
	}
	secret = bytes.TrimSuffix(bytes.TrimSuffix(secret, []byte("\n")), []byte("\r"))
	switch {
	case len(secret) > 0:
		return secret, nil
	case file != "":
		return nil, fmt.Errorf("%s is empty", file)
	case set:
		return nil, errors.New("TIDEMARK_JWT_SECRET is empty: give it a secret, or unset it")
	}
	return nil, nil
}

// readKeyFile reads a file with keys: no larger than such are, whatever it is.
func readKeyFile(name string) ([]byte, error) {
	const most = 256 << 10
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(text) > most {
		err = errors.New("it is too large for a file of keys")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return text, nil
}
