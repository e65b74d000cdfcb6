// Gosse is a server made with tmaxmax/go-sse, as its README's "Implementing a server" has it: Joe,
// its provider, with a replayer that holds enough for followers that come back. It is a module of its
// own, so that what Tidemark is measured against is nothing that Tidemark depends on.
//
//	gosse ADDRESS
package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/tmaxmax/go-sse"
)

// kept is how many events can be replayed, over all channels.
const kept = 200_000

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: gosse ADDRESS")
	}
	replayer, err := sse.NewFiniteReplayer(kept, true)
	if err != nil {
		log.Fatal(err)
	}
	events := &sse.Server{
		Provider: &sse.Joe{Replayer: replayer},
		OnSession: func(_ http.ResponseWriter, r *http.Request) ([]string, bool) {
			return []string{strings.TrimPrefix(r.URL.Path, "/sub/")}, true
		},
	}
	mux := http.NewServeMux()
	mux.Handle("GET /sub/{channel}", events)
	mux.HandleFunc("POST /pub/{channel}", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		m := new(sse.Message)
		m.AppendData(string(text))
		if err := events.Publish(m, r.PathValue("channel")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	// No part of go-sse: see emptyHandler of cmd/rivals.
	mux.HandleFunc("POST /empty", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, "{}\n")
	})
	mux.HandleFunc("GET /ready", func(http.ResponseWriter, *http.Request) {})
	log.Fatal(http.ListenAndServe(os.Args[1], mux))
}
