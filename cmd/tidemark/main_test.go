package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCommandLineWinsOverEnvironmentOverFileOverDefault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tidemark.yaml")
	tenant := func(args ...string) string {
		m := newModel(t)
		// tail: of the file, so that it counts below the command's name too.
		if err := os.WriteFile(file, []byte("tenant: file\ntail:\n  once: true\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"tail", "--url", m.srv.URL, "todos"}, args...)
		if !slices.Contains(args, "--config") {
			args = append(args, "--once")
		}
		if code, _, errs := command(t.Context(), "", args...); code != 0 {
			t.Fatalf("%v: %d, %s", args, code, errs)
		}
		return m.tenants[0]
	}
	if got := tenant(); got != "demo" {
		t.Errorf("by default the tenant is %q", got)
	}
	if got := tenant("--config", file); got != "file" {
		t.Errorf("with a file the tenant is %q", got)
	}
	t.Setenv("TIDEMARK_TENANT", "env")
	if got := tenant("--config", file); got != "env" {
		t.Errorf("with file and environment the tenant is %q", got)
	}
	if got := tenant("--config", file, "--tenant", "flag"); got != "flag" {
		t.Errorf("with all three the tenant is %q", got)
	}
	t.Setenv("TIDEMARK_CONFIG", file)
	if got := tenant("--tenant=flag"); got != "flag" {
		t.Errorf("with the file's name in the environment the tenant is %q", got)
	}
}

func TestMistakeInTheConfigFileIsNamedAndNotIgnored(t *testing.T) {
	for text, want := range map[string]string{
		"url: http://127.0.0.1:1\ntenat: acme\n":  `:2: unknown key "tenat"`,
		"tail:\n  via: post\n":                    `:2: unknown key "tail.via"`,
		"config: other.yaml\n":                    `unknown key "config"`,
		"help: true\n":                            `unknown key "help"`,
		"tenant: a\ntenant: b\n":                  `:2: "tenant" is there twice`,
		"tenant:\n":                               `a plain value belongs here`,
		"tenant: {a: b}\n":                        `a plain value belongs here`,
		"tail: yes\n":                             `"tail" is a command`,
		"- tenant\n":                              `a list of names with values belongs here`,
		"tenant: [\n":                             `yaml`,
		"tenant: a\n---\nurl: x\n":                `:2: a second document`,
		"tenant: a\n---\nurl: [\n":                `yaml`,
		"tail:\n  transport: pigeon\n":            `must be one of`,
		"once: maybe\nurl: http://127.0.0.1:1\n":  `--once`,
		"tenant: a\ntail:\n  tenant: [[a]]\n":     `a list of plain values belongs here`,
		"import:\n  patience: tomorrow\nurl: x\n": `--patience`,
	} {
		file := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{"tail", "--config", file, "todos"}
		if strings.HasPrefix(text, "import") {
			args = []string{"import", "--config", file}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // a mistake that is not seen would follow for ever
		code, out, errs := command(ctx, "", args...)
		cancel()
		if code != exitUsage || out != "" || !strings.Contains(errs, want) {
			t.Errorf("%q: exit code %d: %s%s", text, code, out, errs)
		}
	}
	if code, _, errs := command(t.Context(), "", "tail", "--config", "/nowhere/c.yaml", "todos"); code != exitUsage || !strings.Contains(errs, "/nowhere/c.yaml") {
		t.Errorf("without the file: exit code %d: %s", code, errs)
	}
}

func TestExitCodeTellsAScriptWhatHappened(t *testing.T) {
	for _, x := range []struct {
		args []string
		code int
		out  string // what is on standard output
		err  string
	}{
		{[]string{"version"}, exitOK, "tidemark ", ""},
		{[]string{"--help"}, exitOK, "Usage: tidemark", ""},
		{[]string{"tail", "--help"}, exitOK, "Usage: tidemark tail", ""},
		{nil, exitUsage, "", "Usage: tidemark"},
		{[]string{"tail"}, exitUsage, "", `Try "tidemark tail --help"`},
		{[]string{"tial", "todos"}, exitUsage, "", "tial"},
		{[]string{"tail", "--cursr", "x", "todos"}, exitUsage, "", "--cursr"},
		{[]string{"tail", "to dos"}, exitUsage, "", `"to dos" is not a collection`},
		{[]string{"tail", "todos", "todos@k3f9a1-1"}, exitUsage, "", "named twice"},
		{[]string{"tail", "--rows", "--cursor", "k3f9a1-1", "todos"}, exitUsage, "", "--rows"},
		{[]string{"tail", "--rows", "--changes", "todos"}, exitUsage, "", "--rows"},
		{[]string{"tail", "--url", "127.0.0.1:7333", "todos"}, exitUsage, "", "it looks like http://"},
		{[]string{"tail", "--url", "http://127.0.0.1:1", "--once", "todos"}, exitFailed, "", "refused"},
		{[]string{"import", "/nowhere/file"}, exitFailed, "", "/nowhere/file"},
		{[]string{"import", "--window", "0"}, exitUsage, "", "--window"},
		{[]string{"import", "--tenant", "a/b"}, exitUsage, "", "tenant"},
		// What starts the server again after exit code 1 would do so for ever.
		{[]string{"serve", "--data", "/nowhere/d", "--listen", "nope"}, exitUsage, "", "nope"},
		{[]string{"serve", "--data", "/nowhere/d", "--listen", "0.0.0.0:1"}, exitUsage, "", "--listen"},
		{[]string{"serve", "--data", "/nowhere/d", "--admin-listen", "0.0.0.0:1"}, exitUsage, "", "--admin-listen"},
		{[]string{"serve", "--data", "/nowhere/d", "--origins", "x"}, exitUsage, "", "--origins"},
		{[]string{"serve", "--data", "/nowhere/d", "--auth-cookies", "x"}, exitUsage, "", "--auth-url"},
		{[]string{"serve", "--data", "/nowhere/d", "--jwt-issuer", "x"}, exitUsage, "", "--jwt-issuer"},
		{[]string{"bench", "--rate", "NaN"}, exitUsage, "", "--rate"},
		{[]string{"bench", "--rate", "0"}, exitUsage, "", "--rate"},
		{[]string{"bench", "--rate", "5", "--flat-out"}, exitUsage, "", "--flat-out"},
	} {
		code, out, errs := command(t.Context(), "", x.args...)
		if code != x.code || !strings.Contains(out, x.out) || (x.out == "" && out != "") || !strings.Contains(errs, x.err) {
			t.Errorf("%v: exit code %d\n%s\n%s", x.args, code, out, errs)
		}
	}
}

func TestHelpOfEveryCommandShowsAnExample(t *testing.T) {
	for _, name := range []string{"tail", "import", "version", "dev", "serve"} {
		code, out, _ := command(t.Context(), "", name, "--help")
		if code != exitOK || !strings.Contains(out, "\n    ") || !strings.Contains(strings.SplitN(out, "Flags:", 2)[0][10:], "tidemark "+name) {
			t.Errorf("%s --help: exit code %d\n%s", name, code, out)
		}
	}
}

func TestVersionNamesTheBuild(t *testing.T) {
	info := func(version string, settings ...string) *debug.BuildInfo {
		b := &debug.BuildInfo{Main: debug.Module{Version: version}}
		for i := 0; i < len(settings); i += 2 {
			b.Settings = append(b.Settings, debug.BuildSetting{Key: settings[i], Value: settings[i+1]})
		}
		return b
	}
	for _, x := range []struct {
		info *debug.BuildInfo
		want string
	}{
		{info("v1.2.3"), "v1.2.3"},
		{info("(devel)"), "dev"},
		{info("", "vcs.revision", "0123456789abcdef0123", "vcs.modified", "false"), "dev-0123456789ab"},
		{info("(devel)", "vcs.revision", "0123456789abcdef0123", "vcs.modified", "true"), "dev-0123456789ab-dirty"},
	} {
		if got := versionOf(x.info); got != x.want {
			t.Errorf("the version is %q, want %q", got, x.want)
		}
	}
	defer func(was string) { buildVersion = was }(buildVersion)
	buildVersion = "v9"
	if code, out, _ := command(t.Context(), "", "version"); code != 0 || !strings.HasPrefix(out, "tidemark v9 (go") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
