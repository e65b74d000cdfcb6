package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/tidemark-sync/tidemark/transport/follow"
)

// Remote says which server a command talks to.
type Remote struct {
	URL       string `default:"http://127.0.0.1:7333" placeholder:"URL" help:"The server. Default: ${default}."`
	Tenant    string `default:"demo" help:"Whose data. Default: ${default}."`
	TokenFile string `type:"existingfile" placeholder:"FILE" help:"The token is in this file; it may also stand in the environment, as TIDEMARK_TOKEN. Default: none."`
}

// options reads the token, too.
func (r Remote) options() (follow.Options, error) {
	o := follow.Options{URL: r.URL, Tenant: r.Tenant}
	token := os.Getenv("TIDEMARK_TOKEN")
	if r.TokenFile != "" {
		text, err := readKeyFile(r.TokenFile)
		if err != nil {
			return o, fmt.Errorf("--token-file: %w", err)
		}
		token = string(text)
	}
	switch token = strings.TrimSpace(token); {
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7F }):
		return o, errors.New("the token holds characters that none may: it is one line, as tidemark token prints it")
	case token != "":
		o.Header = http.Header{"Authorization": {"Bearer " + token}}
	}
	return o, nil
}
