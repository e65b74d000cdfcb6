// Command tidemark is the server, and the tools to look at what it serves.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// CLI is the command line. Each flag is also an environment variable (TIDEMARK_URL for
// --url) and a name in the file that --config names. The command line wins over the
// environment, and that over the file.
type CLI struct {
	Config kong.ConfigFlag `placeholder:"FILE" help:"Read flags from this YAML file."`

	Dev     DevCmd     `cmd:"" help:"Try it out: a server on this machine, without credentials."`
	Serve   ServeCmd   `cmd:"" help:"Run the server."`
	Tail    TailCmd    `cmd:"" help:"Follow collections in a terminal."`
	Import  ImportCmd  `cmd:"" help:"Write a file of transactions to a server."`
	Bench   BenchCmd   `cmd:"" help:"Put a server under load, and tell how it fares."`
	Verify  VerifyCmd  `cmd:"" help:"Check a data directory, and tell what is damaged."`
	Backup  BackupCmd  `cmd:"" help:"Write a backup, while the server runs."`
	Restore RestoreCmd `cmd:"" help:"Make a data directory of a backup."`
	Token   TokenCmd   `cmd:"" help:"Make a token, for development."`
	Keys    KeysCmd    `cmd:"" help:"Make keys to sign tokens with."`
	Version VersionCmd `cmd:"" help:"Show which version this is."`
}

const about = `Tidemark keeps collections in browsers and other clients in step with a server.`

// Help is what --help says below that.
func (CLI) Help() string {
	return `To see it work:

    tidemark dev                       # in one terminal
    tidemark tail todos                # in a second one
    curl 127.0.0.1:7333/v1/demo/rows/todos -d '{"title":"milk"}'

Every flag may also stand in the environment (--cursor-file as TIDEMARK_CURSOR_FILE), or in a YAML file that --config or TIDEMARK_CONFIG names. The command line wins over the environment, the environment over the file. In the file a name counts for every command that has the flag, and below a command's name for that one:

    url: https://sync.example.com
    tenant: acme
    tail:
      transport: websocket

It exits with 0 if all went well, 1 if something failed, and 2 if it was called wrongly.`
}

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// stdio is what a command reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// usageError is a mistake in how the command was called.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func misuse(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	relaxTimers(os.Args[1:]) // before anything is listened for
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		signals = append(signals, syscall.SIGHUP) // the terminal is gone
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(execute(ctx, os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr}))
}

// execute does what the arguments say, until ctx ends, and returns the exit code.
func execute(ctx context.Context, args []string, std stdio) int {
	var cli CLI
	helped := false
	out := std.out
	if len(args) == 0 {
		args, out = []string{"--help"}, std.err
	}
	parser, err := kong.New(&cli,
		kong.Name("tidemark"), kong.Description(about),
		kong.Writers(out, std.err),
		kong.Exit(func(int) { helped = true }), // --help has printed; parsing goes on, to no avail
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.DefaultEnvars("TIDEMARK"),
		kong.Configuration(readConfigFile),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(std),
	)
	if err != nil {
		panic("the command line's own definition: " + err.Error())
	}
	command, err := parser.Parse(args)
	switch {
	case helped && out == std.err:
		return exitUsage
	case helped:
		return exitOK
	case err != nil:
		at := "tidemark"
		var p *kong.ParseError
		if errors.As(err, &p) && p.Context != nil && p.Context.Selected() != nil {
			at += " " + p.Context.Selected().Name
		}
		return complain(std, at, usageError{err})
	}
	return complain(std, "tidemark "+command.Selected().Name, command.Run())
}

// complain prints an error, and returns the exit code for it.
func complain(std stdio, at string, err error) int {
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(std.err, "%s: %v\n", at, err)
	var u usageError
	if errors.As(err, &u) {
		fmt.Fprintf(std.err, "Try \"%s --help\".\n", at)
		return exitUsage
	}
	return exitFailed
}
