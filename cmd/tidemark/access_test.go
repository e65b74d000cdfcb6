package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/transport/follow"
)

// command runs the program to its end.
func command(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // its state says how it ended
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// tokenOf makes a token by the program.
func tokenOf(t testing.TB, args ...string) string {
	t.Helper()
	out, errs, code := command(t, append([]string{"token"}, args...)...)
	if code != 0 {
		t.Fatalf("tidemark token %v: %s", args, errs)
	}
	return strings.TrimSpace(out)
}

// call makes a request and reads the answer.
func call(t testing.TB, method, url, body, token string, headers ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header
}

// TestKeysTokenServe is what a newcomer does with the three commands, for each kind of key: else
// nobody gets a server that strangers can't use.
func TestKeysTokenServe(t *testing.T) {
	for _, kind := range []string{"hs256", "ed25519", "es256", "rs256"} {
		t.Run(kind, func(t *testing.T) {
			keys := filepath.Join(t.TempDir(), "keys")
			if out, errs, code := command(t, "keys", "--type", kind, "--out", keys); code != 0 {
				t.Fatalf("tidemark keys: %s%s", out, errs)
			}
			server, sign := []string{"--jwt-public-key", filepath.Join(keys, "public.pem")}, []string{"--key-file", filepath.Join(keys, "private.pem")}
			if kind == "hs256" {
				server, sign = []string{"--jwt-secret-file", filepath.Join(keys, "tidemark.secret")}, []string{"--secret-file", filepath.Join(keys, "tidemark.secret")}
			}
			addr := freePort(t)
			serve(t, addr, t.TempDir(), append(server, "--admin-listen", "off", "--listen", addr)...)
			ada := tokenOf(t, append(sign, "--tenant", "acme", "--sub", "ada", "--filter", "todos=row.owner == claims.sub")...)
			rows := "http://" + addr + "/v1/acme/rows/todos"
			for _, c := range []struct {
				method, query, body, token string
				status                     int
			}{
				{"GET", "", "", "", 401}, {"PUT", "?key=1", `{"owner":"ada"}`, "", 401}, {"PUT", "?key=1", `{"owner":"ada"}`, ada, 200}, {"GET", "?key=1", "", ada, 200},
				{"PUT", "?key=2", `{"owner":"eve"}`, ada, 403}, {"GET", "?key=1", "", tokenOf(t, append(sign, "--tenant", "acme", "--read", "lists")...), 403},
				{"GET", "?key=1", "", tokenOf(t, append(sign, "--tenant", "other")...), 403},
			} {
				if status, body, _ := call(t, c.method, rows+c.query, c.body, c.token); status != c.status {
					t.Errorf("%s %s: %d %s, want %d", c.method, c.query, status, body, c.status)
				}
			}
		})
	}
}

// TestInsecureIsSaid: somebody finds out too late that the server asks nobody who they are.
func TestInsecureIsSaid(t *testing.T) {
	addr := freePort(t)
	keys := filepath.Join(t.TempDir(), "keys")
	command(t, "keys", "--type", "hs256", "--out", keys)
	for name, c := range map[string]struct {
		flags []string
		say   string
	}{
		"no credentials": {[]string{"--insecure-no-credentials"}, "--insecure-no-credentials"},
		"open admin":     {[]string{"--insecure-admin", "--admin-listen", "127.0.0.1:0"}, "--insecure-admin"},
		"keys by http":   {[]string{"--insecure-http-keys", "--jwt-secret-file", filepath.Join(keys, "tidemark.secret")}, "--insecure-http-keys"},
		"relaxed":        {[]string{"--durability", "relaxed"}, "durability is relaxed"},
	} {
		data := t.TempDir()
		for range 2 { // each time that it starts
			p := serve(t, addr, data, append([]string{"--admin-listen", "off"}, c.flags...)...)
			status, ready, _ := call(t, "GET", "http://"+addr+"/readyz", "", "")
			if status != 200 || !strings.Contains(ready, c.say) || !strings.Contains(p.out.String(), c.say) {
				t.Errorf("%s: /readyz: %d %s; the log:\n%s", name, status, ready, p.out)
			}
			p.stop(t)
		}
	}
	for name, flags := range map[string][]string{
		"administration for others":       {"--admin-listen", "0.0.0.0:0"},
		"credentials and none":            {"--insecure-no-credentials", "--jwt-secret-file", filepath.Join(keys, "tidemark.secret")},
		"tokens and the app":              {"--auth-url", "http://localhost/auth", "--jwt-secret-file", filepath.Join(keys, "tidemark.secret")},
		"an app by http":                  {"--auth-url", "http://app.example.com/auth"},
		"a key set by http":               {"--jwks-url", "http://app.example.com/keys"},
		"everybody is a proxy":            {"--trusted-proxies", "0.0.0.0/0"},
		"an origin that is none":          {"--origins", "app.example.com", "--jwt-secret-file", filepath.Join(keys, "tidemark.secret")},
		"a private key as the public one": {"--jwt-public-key", filepath.Join(keys, "tidemark.secret")},
		"origins without credentials":     {"--origins", "https://app.example.com"},
	} {
		p := start(t, append([]string{"serve", "--listen", "127.0.0.1:0", "--data", t.TempDir()}, flags...)...)
		select {
		case <-p.exited:
			if p.cmd.ProcessState.ExitCode() == 0 {
				t.Errorf("%s: it ended well", name)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: it serves:\n%s", name, p.out)
		}
	}
}

// TestServerIsNotOpenWhereHalfOfItsCredentialsIsMissing: who names an issuer, or has an empty secret, believes that tokens
// are asked for, and everybody whom a proxy lets through may read and write everything.
func TestServerIsNotOpenWhereHalfOfItsCredentialsIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		env   string
		flags []string
	}{
		"an issuer without keys":     {flags: []string{"--jwt-issuer", "https://id.example.com"}},
		"an audience without keys":   {flags: []string{"--jwt-audience", "tidemark"}},
		"cookies without the app":    {flags: []string{"--auth-cookies", "session"}},
		"an issuer beside the app":   {flags: []string{"--auth-url", "http://localhost:1/auth", "--jwt-issuer", "https://id.example.com"}},
		"a secret that is not there": {env: "TIDEMARK_JWT_SECRET"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.env != "" {
				t.Setenv(c.env, "")
			}
			p := start(t, append([]string{"serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--data", t.TempDir()}, c.flags...)...)
			select {
			case <-p.exited:
				if p.cmd.ProcessState.ExitCode() == 0 {
					t.Error("it ended well")
				}
			case <-time.After(10 * time.Second):
				t.Errorf("it serves:\n%s", p.out)
			}
		})
	}
}

// TestNoSecretGetsOut greps all that a server prints, counts and answers for words that came in
// where secrets do, after it was made to complain in every way that can be thought of here.
func TestNoSecretGetsOut(t *testing.T) {
	const canary = "CANARYc4n4ry"
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(canary+strings.Repeat("x", 40)), 0o600); err != nil {
		t.Fatal(err)
	}
	addr, admin := freePort(t), freePort(t)
	p := serve(t, addr, t.TempDir(), "--jwt-secret-file", secret, "--admin-listen", admin, "--log-level", "debug", "--origins", "https://app.example.com")
	token := tokenOf(t, "--secret-file", secret, "--tenant", "acme", "--sub", canary+"-sub", "--id", canary+"-jti", "--admin")
	base := "http://" + addr + "/v1/acme"
	var answers strings.Builder
	note := func(_ int, body string, h http.Header) { fmt.Fprintln(&answers, body, h) }
	signature := token[strings.LastIndexByte(token, '.')+1:]
	for _, credential := range []string{token, token + "x", canary, token[:len(token)-10]} {
		note(call(t, "GET", base+"/rows/todos", "", credential))
		note(call(t, "GET", base+"/feed?c=todos&wait=0&ticket="+canary+"&token="+canary, "", credential))
		note(call(t, "GET", base+"/feed?c=todos&wait=0", "", "", "Cookie", "tidemark="+credential, "Origin", "https://app.example.com"))
		note(call(t, "POST", base+"/changes", `{"changes":[{"op":"put","collection":"todos","key":"`+canary+`-key","value":{"x":"`+canary+`-value"}}]}`, credential))
		note(call(t, "POST", base+"/tickets", "", credential))
		note(call(t, "GET", base+"/"+canary, "", credential))
	}
	note(call(t, "POST", base+"/revocations", `{"sub":"somebody else"}`, token))
	note(call(t, "GET", base+"/rows/todos?key=a%0Ab%1b[31m", "", token))
	note(call(t, "GET", base+"/feed?c=%0d%0aevil&wait=0", "", token))
	if strings.Contains(answers.String(), signature) || strings.Contains(answers.String(), canary+strings.Repeat("x", 40)) {
		t.Error("an answer holds a token or the secret")
	}
	_, metrics, _ := call(t, "GET", "http://"+admin+"/metrics", "", "")
	_, status, _ := call(t, "GET", "http://"+admin+"/status", "", "")
	if !strings.Contains(metrics, "tidemark_rows 2") || !strings.Contains(metrics, `tidemark_problems_total{code="unauthenticated"}`) || !json.Valid([]byte(status)) {
		t.Errorf("metrics and status lack something:\n%s\n%s", metrics, status)
	}
	for path, want := range map[string]int{"/debug/pprof/": 200, "/debug/pprof/cmdline": 404, "/": 404, "/v1/acme/rows/todos": 404, "/v1/acme/feed": 404} {
		got, body, _ := call(t, "GET", "http://"+admin+path, "", "")
		if got != want && !(path == "/debug/pprof/cmdline" && !strings.Contains(body, "serve")) {
			t.Errorf("administration: %s: %d %s", path, got, body)
		}
	}
	p.stop(t)
	for what, text := range map[string]string{"the log": p.out.String(), "metrics": metrics, "status": status} {
		if strings.Contains(text, canary) || strings.Contains(text, signature) || strings.ContainsAny(text, "\x1b\x00\r") {
			t.Errorf("%s holds a secret, or a control character:\n%s", what, text)
		}
	}
}

// TestRowsAreNotForWhoeverReachesThePortOfAdministration: another user of the machine, or what can be made to fetch a
// URL on it, reads all tenants' rows.
func TestRowsAreNotForWhoeverReachesThePortOfAdministration(t *testing.T) {
	addr, admin, data := freePort(t), freePort(t), t.TempDir()
	serve(t, addr, data, "--admin-listen", admin)
	if status, body, _ := call(t, "PUT", "http://"+addr+"/v1/acme/rows/todos?key=a", `{"title":"canary"}`, ""); status != 200 {
		t.Fatalf("a write: %d %s", status, body)
	}
	if status, body, _ := call(t, "GET", "http://"+admin+"/backup", "", ""); status != 404 || strings.Contains(body, "canary") {
		t.Errorf("a backup over TCP: %d, %d bytes", status, len(body))
	}
	if _, errs, code := command(t, "backup", "--data", data, filepath.Join(t.TempDir(), "today.backup")); code != 0 {
		t.Errorf("a backup by who may read the data: %s", errs)
	}
}

// TestRevokedByAdministration: whoever runs the server can't stop somebody, or it is forgotten with
// a restart.
func TestRevokedByAdministration(t *testing.T) {
	keys, data := filepath.Join(t.TempDir(), "keys"), t.TempDir()
	command(t, "keys", "--out", keys)
	addr, admin := freePort(t), freePort(t)
	flags := []string{"--jwt-public-key", filepath.Join(keys, "public.pem"), "--admin-listen", admin}
	p := serve(t, addr, data, flags...)
	ada := tokenOf(t, "--key-file", filepath.Join(keys, "private.pem"), "--tenant", "acme", "--sub", "ada")
	eve := tokenOf(t, "--key-file", filepath.Join(keys, "private.pem"), "--tenant", "acme", "--sub", "eve")
	var conns []*follow.Conn
	for _, transport := range follow.Transports {
		c, err := follow.Dial(t.Context(), follow.Options{URL: "http://" + addr, Tenant: "acme", Transport: transport, Header: http.Header{"Authorization": {"Bearer " + ada}}, Collections: []follow.Collection{{Name: "todos"}}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	if status, body, _ := call(t, "POST", "http://"+admin+"/v1/acme/revocations", `{"sub":"ada"}`, ""); status != 200 {
		t.Fatalf("revoke: %d %s", status, body)
	}
	began := time.Now()
	for _, c := range conns {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		for {
			if _, err := c.Next(ctx); err != nil {
				t.Logf("after %v: %v", time.Since(began), err)
				if time.Since(began) > time.Second || ctx.Err() != nil {
					t.Errorf("it took %v", time.Since(began))
				}
				break
			}
		}
		cancel()
	}
	for range 2 {
		for who, want := range map[string]int{ada: 401, eve: 200} {
			if status, body, _ := call(t, "GET", "http://"+addr+"/v1/acme/rows/todos", "", who); status != want {
				t.Errorf("%d %s, want %d", status, body, want)
			}
		}
		p.kill()
		p = serve(t, addr, data, flags...)
	}
}
