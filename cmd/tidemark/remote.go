package main

import (
	"github.com/tidemark-sync/tidemark/transport/follow"
)

// Remote says which server a command talks to.
type Remote struct {
	URL    string `default:"http://127.0.0.1:7333" placeholder:"URL" help:"The server. Default: ${default}."`
	Tenant string `default:"demo" help:"Whose data. Default: ${default}."`
}

func (r Remote) options() follow.Options {
	return follow.Options{URL: r.URL, Tenant: r.Tenant}
}
