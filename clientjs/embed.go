// Package clientjs holds the sources of the JavaScript client, so that a server can hand them to browsers as they
// are: plain ES modules that import each other by relative paths and need no build step.
package clientjs

import "embed"

// Files has the client's modules under src/. The entry is src/index.js.
//
//go:embed src/*.js
var Files embed.FS
