package main

import (
	"embed"
	"io/fs"
	"net/http"

	"github.com/tidemark-sync/tidemark/clientjs"
	"github.com/tidemark-sync/tidemark/transport"
)

// web is the demo page.
//
//go:embed web
var web embed.FS

// mountClient serves the JavaScript client as it is: its modules below /client/, and
// /client.js, which is all that a page need know.
func mountClient(s *transport.Server) {
	src, err := fs.Sub(clientjs.Files, "src")
	if err != nil {
		panic(err) // the directory is compiled in
	}
	s.Mount("/client/*", page(http.StripPrefix("/client", http.FileServerFS(src))))
	s.Mount("/client.js", page(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
		w.Write([]byte("export * from './client/index.js'\n"))
	})))
}

// mountDemo serves the demo page at /.
func mountDemo(s *transport.Server) {
	pages, err := fs.Sub(web, "web")
	if err != nil {
		panic(err) // the directory is compiled in
	}
	for _, path := range []string{"/", "/demo.css", "/demo.js"} {
		s.Mount(path, page(http.FileServerFS(pages)))
	}
}

// page adds what every page of ours is served with: it runs its own scripts and speaks
// to its own server, and nobody may frame it. It is asked for anew each time, because
// its content changes with the binary.
func page(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
		h.Set("Cross-Origin-Resource-Policy", "cross-origin") // pages of a dev server may import the client
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-cache")
		next.ServeHTTP(w, r)
	})
}
