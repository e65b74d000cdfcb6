package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/tidemark-sync/tidemark/broker"
)

// VerifyCmd checks a store that no server has open.
type VerifyCmd struct {
	Data string `required:"" placeholder:"DIR" type:"path" help:"The server's data directory."`
	JSON bool   `name:"json" help:"Report as JSON."`
}

// Help teaches.
func (VerifyCmd) Help() string {
	return `Reads every file of a data directory and changes nothing: each record's checksum, the chain of the groups, the parts of the checkpoint, the history, and that all is there that was acknowledged. It names what is damaged and which collections, keys and sequences are lost by it. Stop the server first; it checks by itself while it runs (--scrub).

    $ tidemark verify --data /var/lib/tidemark
    $ tidemark verify --data /var/lib/tidemark/aside/20260301T100000Z-k3f9a1kq2m

It exits with 0 if all is whole, 1 if anything is damaged or could not be read.`
}

// report is what verify says as JSON.
type report struct {
	Whole      bool     `json:"whole"`
	Epoch      string   `json:"epoch"`
	Format     int      `json:"format"`
	Relaxed    bool     `json:"relaxed,omitempty"` // and not closed
	First      uint64   `json:"firstGroup"`
	Last       uint64   `json:"lastGroup"`
	Mark       uint64   `json:"acknowledged"`
	Checkpoint uint64   `json:"checkpoint"`
	Parts      int      `json:"parts"`
	Rows       int64    `json:"rows"`
	Seq        uint64   `json:"seq"`
	Damages    []string `json:"damages"`
	Losses     []string `json:"losses"`
}

// errDamaged ends verify where it has said already what is wrong.
var errDamaged = errors.New("the store is damaged")

// Run checks.
func (v *VerifyCmd) Run(ctx context.Context, std stdio) error {
	s, err := survey(ctx, v.Data, false)
	if errors.Is(err, broker.ErrInUse) {
		return fmt.Errorf("%w: stop the server first; it checks by itself while it runs", err)
	}
	if err != nil {
		return err
	}
	r := s.remains
	defer r.Close()
	rep := report{
		Whole: s.whole(), Epoch: string(r.Epoch), Format: r.Format, Relaxed: r.Relaxed, First: uint64(r.First), Last: uint64(r.Last), Mark: uint64(r.Mark),
		Checkpoint: uint64(r.At), Parts: r.Parts, Rows: s.rebuilt.Rows, Seq: uint64(s.rebuilt.Seq), Damages: []string{}, Losses: []string{},
	}
	for _, d := range r.Damages {
		rep.Damages = append(rep.Damages, d.Error())
	}
	history, err := broker.VerifyHistory(ctx, v.Data)
	if err != nil {
		return err
	}
	rep.Whole = rep.Whole && len(history) == 0
	for _, line := range history {
		rep.Damages = append(rep.Damages, "history: "+line)
	}
	for _, l := range s.rebuilt.Losses {
		rep.Losses = append(rep.Losses, l.String())
	}
	if v.JSON {
		e := json.NewEncoder(std.out)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		err = e.Encode(rep)
	} else {
		err = rep.print(std.out, s, history)
	}
	if err == nil && !rep.Whole {
		err = errDamaged
	}
	return err
}

func (r *report) print(w io.Writer, s *findings, history []string) error {
	state := ""
	if r.Relaxed {
		state = "; it was relaxed and was not closed: what it took last may be lost, and the next start makes a new epoch"
	}
	fmt.Fprintf(w, "epoch       %s (format %d%s)\n", r.Epoch, r.Format, state)
	fmt.Fprintf(w, "groups      %d to %d, acknowledged up to %d\n", r.First, r.Last, r.Mark)
	if r.Checkpoint > 0 {
		fmt.Fprintf(w, "checkpoint  at group %d, %d parts\n", r.Checkpoint, r.Parts)
	}
	fmt.Fprintf(w, "rows        %d, up to sequence %d\n", r.Rows, r.Seq)
	for _, line := range s.lines() {
		fmt.Fprintln(w, line)
	}
	for _, line := range history {
		fmt.Fprintln(w, "damaged: history: "+line)
	}
	result := "whole: every file is as it was written, and all that was acknowledged is there"
	if !r.Whole {
		result = "DAMAGED"
	}
	_, err := fmt.Fprintln(w, result)
	return err
}
