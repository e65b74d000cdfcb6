package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestProgramServesEveryPersonalityUntilItsParentIsGone: processes that pile up, or a
// line that a test can't read.
func TestProgramServesEveryPersonalityUntilItsParentIsGone(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(&upstream{gone: make(chan string, 100)})
	t.Cleanup(server.Close)
	for _, way := range []string{"stdin", "signal"} {
		t.Run(way, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			stdin, parent := io.Pipe()
			line, stdout := io.Pipe()
			args := []string{"-target", server.URL}
			if way == "stdin" {
				args = append(args, "-watch-stdin")
			}
			ended := make(chan error, 1)
			go func() {
				err := run(ctx, args, stdin, stdout, io.Discard)
				stdout.Close()
				ended <- err
			}()
			var urls map[string]string
			d := json.NewDecoder(line)
			if err := d.Decode(&urls); err != nil {
				t.Fatal(err)
			}
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
			for _, p := range personalities {
				res, err := client.Get(urls[p.Name] + "/page")
				if err != nil {
					t.Fatalf("%s: %v", p.Name, err)
				}
				if res.Body.Close(); res.StatusCode != http.StatusOK {
					t.Errorf("%s: a page was answered %s", p.Name, res.Status)
				}
			}
			if len(urls) != len(personalities) {
				t.Errorf("there are %d URLs", len(urls))
			}
			if way == "stdin" {
				parent.Close()
			} else {
				stop()
			}
			rest, _ := io.ReadAll(io.MultiReader(d.Buffered(), line))
			if err := <-ended; err != nil || strings.TrimSpace(string(rest)) != "" {
				t.Errorf("it ended with %v, and has said %q beside", err, rest)
			}
			if res, err := client.Get(urls["plain"]); err == nil {
				res.Body.Close()
				t.Error("a port is still open")
			}
			parent.Close()
		})
	}
}

func TestEveryPersonalityHasANameAndASentence(t *testing.T) {
	t.Parallel()
	names := make(map[string]bool)
	for _, p := range personalities {
		if !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`).MatchString(p.Name) || names[p.Name] {
			t.Errorf("%q is no name, or is there twice", p.Name)
		}
		names[p.Name] = true
		if !strings.HasSuffix(p.What, ".") {
			t.Errorf("%s: %q is no sentence", p.Name, p.What)
		}
	}
	var out strings.Builder
	if err := run(t.Context(), []string{"-list"}, nil, &out, io.Discard); err != nil || strings.Count(out.String(), "\n") != len(personalities) {
		t.Errorf("the list is %q, %v", out.String(), err)
	}
}

func TestNonsenseIsRefusedBeforeAnythingListens(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-target", "127.0.0.1:7333"}, {"-target", "https://127.0.0.1"}, {"-target", "http://127.0.0.1/path"}, {"plain"}, {"-nonsense"}} {
		if err := run(t.Context(), args, nil, io.Discard, io.Discard); err == nil {
			t.Errorf("%v: taken", args)
		}
	}
}
