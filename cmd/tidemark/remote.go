package main

import (
	"net/http"

	"github.com/tidemark-sync/tidemark/transport/follow"
)

// Remote says which server a command talks to.
type Remote struct {
	URL    string `default:"http://127.0.0.1:7333" placeholder:"URL" help:"The server. Default: ${default}."`
	Tenant string `default:"demo" help:"Whose data. Default: ${default}."`
	Token  string `placeholder:"JWT" help:"A credential. On a shared machine, others can read it off the command line: better in the environment."`
}

func (r Remote) options() follow.Options {
	o := follow.Options{URL: r.URL, Tenant: r.Tenant}
	if r.Token != "" {
		o.Header = http.Header{"Authorization": {"Bearer " + r.Token}}
	}
	return o
}
