package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tidemark-sync/tidemark/transport/credential"
)

// KeysCmd makes keys.
type KeysCmd struct {
	Type string `default:"ed25519" enum:"hs256,ed25519,es256,rs256" placeholder:"TYPE" help:"${enum}. Default: ${default}."`
	Out  string `required:"" placeholder:"DIR" type:"path" help:"Where they are written. Files that are there are never overwritten."`
}

// Help teaches.
func (KeysCmd) Help() string {
	return `Who has the private key, or the secret, makes tokens; the server takes them.

    $ tidemark keys --out keys                # private.pem for the app, public.pem for the server
    $ tidemark serve --data /var/lib/tidemark --jwt-public-key keys/public.pem
    $ tidemark token --key-file keys/private.pem --tenant acme

With ed25519, es256 and rs256 the server can verify tokens and not make any. jwks.json is the public key again, to be served by the app: then keys can be changed without the server (tidemark serve --jwks-url URL).

With hs256 there is one secret, which the app and the server share. It is the text of tidemark.secret, to the last byte.

    $ tidemark keys --type hs256 --out keys
    $ tidemark serve --data /var/lib/tidemark --jwt-secret-file keys/tidemark.secret`
}

// made is a file to be written.
type made struct {
	name, what string
	mode       fs.FileMode
	text       []byte
}

// Run writes them.
func (c *KeysCmd) Run(std stdio) error {
	signer, err := credential.Generate(c.Type)
	if err != nil {
		return err
	}
	files, err := c.files(signer)
	if err != nil {
		return err
	}
	if err := writeNew(c.Out, files); err != nil {
		return err
	}
	for _, f := range files {
		fmt.Fprintf(std.out, "%s  %s\n", filepath.Join(c.Out, f.name), f.what)
	}
	server, token := "--jwt-public-key "+shellWord(filepath.Join(c.Out, "public.pem")), "--key-file "+shellWord(filepath.Join(c.Out, "private.pem"))
	if c.Type == "hs256" {
		server, token = "--jwt-secret-file "+shellWord(filepath.Join(c.Out, "tidemark.secret")), "--secret-file "+shellWord(filepath.Join(c.Out, "tidemark.secret"))
	}
	_, err = fmt.Fprintf(std.out, "\nStart the server, and make a token, with\n\n    tidemark serve --data DIR %s\n    tidemark token --tenant NAME %s\n", server, token)
	return err
}

func (c *KeysCmd) files(signer *credential.Signer) ([]made, error) {
	private, err := signer.Private()
	if err != nil {
		return nil, err
	}
	if c.Type == "hs256" {
		return []made{{"tidemark.secret", "the secret, for the server and the app only", 0o600, private}}, nil
	}
	public, err := signer.Public()
	if err != nil {
		return nil, err
	}
	jwks, err := signer.JWKS()
	if err != nil {
		return nil, err
	}
	return []made{
		{"private.pem", "the private key, for the app only", 0o600, private},
		{"public.pem", "the public key, for the server", 0o644, public},
		{"jwks.json", "the public key again, as a set to serve at a URL", 0o644, jwks},
	}, nil
}

// writeNew writes files that are not there yet: all of them, or none.
func writeNew(dir string, files []made) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var done []string
	defer func() {
		if err != nil {
			for _, name := range done {
				os.Remove(name)
			}
		}
	}()
	for _, made := range files {
		name := filepath.Join(dir, made.name)
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, made.mode)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s is there already, and keys are never overwritten: choose another --out", name)
		}
		if err != nil {
			return err
		}
		done = append(done, name)
		_, err = f.Write(made.text)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// shellWord quotes what a shell would take apart.
func shellWord(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
