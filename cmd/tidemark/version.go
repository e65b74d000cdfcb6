package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// buildVersion is set by the build: -ldflags "-X main.buildVersion=v1.2.3".
var buildVersion string

// VersionCmd shows the version.
type VersionCmd struct{}

// Help teaches.
func (VersionCmd) Help() string {
	return `    $ tidemark version
    tidemark v1.2.3 (go1.26.0, linux/amd64)`
}

// Run prints it.
func (VersionCmd) Run(std stdio) error {
	_, err := fmt.Fprintf(std.out, "tidemark %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// version names this build: what the build was told, else what Go knows of the
// module or of the commit, else "dev".
func version() string {
	if buildVersion != "" {
		return buildVersion
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	return versionOf(info)
}

func versionOf(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	commit, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if commit == "" {
		return "dev"
	}
	return "dev-" + commit[:min(12, len(commit))] + dirty
}
