package main_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/tidemark-sync/tidemark/"

// floors says what each package may import of ours and of others beside the standard
// library; a package that is not here fails the test. sync/README.md has the drawing.
var floors = map[string][]string{
	"sync/fault":         {},
	"sync/filter":        {"github.com/google/cel-go", "google.golang.org/protobuf", "golang.org/x/sync"},
	"sync/feed":          {"sync/fault"},
	"sync/feed/feedtest": {"sync/feed"},
	"sync/hub":           {"sync/fault", "sync/feed", "github.com/go-json-experiment/json", "github.com/google/uuid"},
	"broker":             {"sync/fault", "sync/feed", "broker/history", "github.com/nats-io/nats-server", "github.com/nats-io/nats.go", "github.com/minio/highwayhash", "golang.org/x/sys"},
	"broker/history":     {"sync/feed"},
	"transport": {"sync/feed", "sync/hub", "transport/gate", "transport/uring", "github.com/go-chi/chi", "github.com/coder/websocket",
		"github.com/go-json-experiment/json", "golang.org/x/sys"},
	"transport/credential": {"sync/feed", "sync/hub", "github.com/golang-jwt/jwt", "github.com/MicahParks/jwkset", "github.com/go-json-experiment/json"},
	"transport/follow":     {"sync/feed", "github.com/coder/websocket"},
	"transport/gate":       {"golang.org/x/sys"},
	"transport/load":       {},
	"transport/uring":      {"golang.org/x/sys"},
	"clientjs":             {},
	"cmd/tidemark": {"sync/fault", "sync/feed", "sync/hub", "broker", "broker/history", "transport", "transport/credential", "transport/follow", "transport/gate", "transport/load", "sync/filter", "clientjs",
		"github.com/alecthomas/kong", "github.com/prometheus/client_golang", "github.com/alecthomas/units", "golang.org/x/sys", "golang.org/x/term", "gopkg.in/yaml.v3"},
	"cmd/faults":        {"sync/feed", "transport/follow", "github.com/coder/websocket", "github.com/hanwen/go-fuse", "golang.org/x/sys"},
	"cmd/faults/oracle": {},
	"cmd/hostile":       {},
	"cmd/rivals":        {"transport/load", "transport/uring"},
	"examples/publish":  {},
}

// TestFloors fails when a package knows more than its floor allows: then nobody could
// change the broker or a transport without reading the whole house.
func TestFloors(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Standard", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, known := floors[name]
		if !known {
			t.Errorf("%s is on no floor: give it one in this test and in sync/README.md", name)
			continue
		}
		for _, path := range p.Imports {
			short := strings.TrimPrefix(path, module)
			if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
				continue // the standard library
			}
			if !covered(allowed, short) {
				t.Errorf("%s must not import %s", name, short)
			}
		}
	}
	if seen < len(floors) {
		t.Errorf("%d packages have a floor, but there are %d", len(floors), seen)
	}
}

// covered tells whether a path is one of the allowed, or a package below another's module.
func covered(allowed []string, path string) bool {
	for _, a := range allowed {
		if path == a || strings.Contains(a, ".") && strings.HasPrefix(path, a+"/") {
			return true
		}
	}
	return false
}
