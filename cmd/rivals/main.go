//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "rivals:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 2 && args[0] == "bareloop" {
		return serveBareLoop(args[1])
	}
	flags := flag.NewFlagSet("rivals", flag.ContinueOnError)
	flags.SetOutput(stderr)
	rounds := flags.Int("rounds", 5, "how often each is measured")
	only := flags.String("only", "", "only contenders with these names, beside Tidemark, with commas between; for looking closer: nothing is kept")
	over := flags.String("over", "", "only these transports, with commas between; for looking closer: nothing is kept")
	names := flags.String("works", "", "only these works, with commas between: "+strings.Join(workNames(), ", "))
	keep := flags.String("json", "bin/rivals.json", "keep what was measured in this file; works that were not asked for now stay in it")
	table := flags.String("table", "", "write the tables into this file, between its rivals marks")
	p := new(paths)
	flags.StringVar(&p.here, "here", "cmd/rivals", "where this program's sources are")
	flags.StringVar(&p.bin, "bin", "bin", "where tidemark, nats-server and gosse were built")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *rounds < 1 {
		return errors.New("rivals takes no arguments but flags, and at least one round: see rivals -h")
	}
	var those []*work
	for _, w := range works() {
		if *names == "" || slices.Contains(strings.Split(*names, ","), w.name) {
			those = append(those, w)
		}
	}
	if len(those) == 0 {
		return fmt.Errorf("no work has one of the names %q; there are %s", *names, strings.Join(workNames(), ", "))
	}
	present, versions := attendance(ctx, p, *only, stderr)
	all, err := readMeasured(*keep)
	if err != nil {
		return err
	}
	for _, w := range those {
		if *over != "" {
			w.over = strings.Split(*over, ",")
		}
		m := measure(ctx, p, w, present, *rounds, stderr)
		m.Versions = versions
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		all[w.name] = m
		if err := writeTables(stdout, map[string]*measured{w.name: m}); err != nil {
			return err
		}
		if *only+*over != "" {
			continue
		}
		text, err := json.MarshalIndent(all, "", "\t")
		if err != nil {
			return err
		}
		if err := os.WriteFile(*keep, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	if *table == "" || *only+*over != "" {
		return nil
	}
	return replaceTables(*table, all)
}

func workNames() (names []string) {
	for _, w := range works() {
		names = append(names, w.name)
	}
	return names
}

// attendance is those that can be measured here, and their versions.
func attendance(ctx context.Context, p *paths, only string, stderr io.Writer) (present []*contender, versions map[string]string) {
	versions = make(map[string]string)
	for i, c := range contenders() {
		if i > 0 && only != "" && !slices.Contains(strings.Split(only, ","), c.name) {
			continue
		}
		version, err := c.version(ctx, p)
		if err != nil {
			fmt.Fprintf(stderr, "***** LEFT OUT: %s, because it is not here: %v *****\n", c.name, err)
			continue
		}
		present, versions[c.name] = append(present, c), version
	}
	return present, versions
}

// measured is what a work measured.
type measured struct {
	Date     string            `json:"date"`
	Rounds   int               `json:"rounds"`
	Versions map[string]string `json:"versions"`
	Results  []result          `json:"results"`
}

// result is what one way of one contender came to in one round.
type result struct {
	Contender string             `json:"contender"`
	Transport string             `json:"transport"`
	Round     int                `json:"round"`
	Values    map[string]float64 `json:"values,omitempty"`
	Faults    faults             `json:"faults"`
	Note      string             `json:"note,omitempty"`   // something that was odd
	Failed    string             `json:"failed,omitempty"` // why there are no values
}

// measure does a work with every way of every contender, round by round.
func measure(ctx context.Context, p *paths, w *work, present []*contender, rounds int, stderr io.Writer) *measured {
	m := &measured{Date: time.Now().Format(time.DateOnly), Rounds: rounds}
	for round := range rounds {
		for _, transport := range w.over {
			for _, c := range present {
				way := w.by(c, transport)
				if way == nil || w.resumes && !c.resumes || ctx.Err() != nil {
					continue
				}
				r := result{Contender: c.name, Transport: transport, Round: round}
				if s, err := open(ctx, p, c, way, w.channels); err != nil {
					r.Failed = err.Error()
				} else {
					if r.Values, err = w.do(ctx, s); err != nil {
						r.Values, r.Failed = nil, err.Error()
					}
					if s.note != nil {
						r.Note = s.note.Error()
					}
					r.Faults = s.faults
					s.close()
				}
				fmt.Fprintln(stderr, w.name, round+1, c.name, transport, r.Values, r.Faults, r.Note, r.Failed)
				m.Results = append(m.Results, r)
			}
		}
	}
	return m
}

func readMeasured(path string) (map[string]*measured, error) {
	all := make(map[string]*measured)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("%s is not what rivals wrote (remove it to begin anew): %w", path, err)
	}
	return all, nil
}

// Between these, the tables stand in a page.
const (
	tablesBegin = "<!-- rivals:begin -->\n"
	tablesEnd   = "<!-- rivals:end -->\n"
)

func replaceTables(path string, all map[string]*measured) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, begins := bytes.Cut(text, []byte(tablesBegin))
	_, after, ends := bytes.Cut(rest, []byte(tablesEnd))
	if !begins || !ends {
		return fmt.Errorf("%s does not have the lines %q and %q", path, tablesBegin, tablesEnd)
	}
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(tablesBegin)
	if err := writeTables(&b, all); err != nil {
		return err
	}
	b.WriteString(tablesEnd)
	b.Write(after)
	return os.WriteFile(path, b.Bytes(), 0o644)
}
