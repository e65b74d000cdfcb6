package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, or stdin if that is watched.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("hostile", flag.ContinueOnError)
	flags.SetOutput(stderr)
	to := flags.String("target", "http://127.0.0.1:7333", "the server, as `URL`")
	watch := flags.Bool("watch-stdin", false, "exit when standard input ends, too")
	list := flags.Bool("list", false, "print what there is, as the rows of a table, and exit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is not understood: there are only flags", flags.Arg(0))
	}
	if *list {
		for _, p := range personalities {
			fmt.Fprintf(stdout, "| `%s` | %s |\n", p.Name, p.What)
		}
		return nil
	}
	target, err := targetOf(*to)
	if err != nil {
		return err
	}
	urls := make(map[string]string)
	for _, p := range personalities {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("listen for %s: %w", p.Name, err)
		}
		h := newHop(p, target, nil)
		h.serve(l)
		defer h.close()
		urls[p.Name] = "http://" + l.Addr().String()
	}
	if *watch {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		go func() { // it ends with stdin, or the process
			_, _ = io.Copy(io.Discard, stdin) // an error is an end
			cancel()
		}()
	}
	if err := json.NewEncoder(stdout).Encode(urls); err != nil {
		return fmt.Errorf("tell where they are: %w", err)
	}
	<-ctx.Done()
	return nil
}

// targetOf checks the URL of the server, and keeps its scheme and host.
func targetOf(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		return nil, fmt.Errorf("-target %q is not the URL of a server: it looks like http://127.0.0.1:7333", text)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}
