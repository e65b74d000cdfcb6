package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/transport/follow"
)

// TailCmd follows collections in a terminal.
type TailCmd struct {
	Remote     `embed:""`
	Transport  string `default:"sse" enum:"sse,websocket,poll" help:"How to follow: ${enum}. Default: ${default}."`
	Cursor     string `xor:"from" placeholder:"CURSOR" help:"Go on after this cursor. Default: from the beginning."`
	CursorFile string `xor:"from" placeholder:"FILE" type:"path" help:"Keep the cursors in this file, and go on after them."`
	Changes    bool   `xor:"what" help:"Print each change, as the feed brings it. This is the default."`
	Rows       bool   `xor:"what" help:"Print the rows, once they are all there; then what becomes of them."`
	Once       bool   `help:"Stop once live: when all that there was has been printed."`
	JSON       bool   `name:"json" help:"Print JSON, an object on each line: the frames as they are, or with --rows the rows."`

	Collections []string `arg:"" name:"collection" help:"What to follow; todos@CURSOR goes on after a cursor of its own."`
}

// Help teaches.
func (TailCmd) Help() string {
	return `Prints a line for each change (its sequence, collection, operation, key and value) and, on standard error, how the connection fares. A lost connection is made anew, without a gap; Ctrl-C prints how to go on from there.

See a collection change:

    tidemark tail todos

All rows as they are now, and no more:

    tidemark tail --rows --once todos

Feed another program, which may be stopped and started again:

    tidemark tail --json --cursor-file todos.cursor todos | ./apply

The cursors in the file move past a change only once it was printed: after a crash some may come twice, none is left out. Between two runs a row that changed often comes once, in its newest state; insert and modify both mean "put", remove means "delete if there". After a reset, every row comes anew, and what has not come by the next live is gone.`
}

// errLive ends a follow that has seen enough.
var errLive = errors.New("live")

// tail is one run of TailCmd.
type tail struct {
	cmd    *TailCmd
	out    *bufio.Writer
	status io.Writer
	width  func() int // of the terminal, 0: lines have any length

	rows      follow.Rows
	shown     bool // the rows were printed once
	live      bool
	connected bool
	opened    int               // the connection that was announced last, -1: none
	at        follow.Cursors    // after what was written to out
	printed   follow.Cursors    // after what has left out
	printedAt time.Time         // when that was
	file      map[string]string // what the cursor file says
}

// cursorFile is what --cursor-file holds.
type cursorFile struct {
	Tenant  string            `json:"tenant"`
	Cursors map[string]string `json:"cursors"` // by collection
}

// Run follows until ctx ends.
func (c *TailCmd) Run(ctx context.Context, std stdio) error {
	o, err := c.options()
	if err != nil {
		return usageError{err}
	}
	o.Transport = c.Transport
	remembered, err := c.remembered()
	if err != nil {
		return err
	}
	for _, arg := range c.Collections {
		name, cursor, own := strings.Cut(arg, "@")
		if c.Rows && (own || c.Cursor != "" || c.CursorFile != "") {
			return misuse("--rows needs every row, from the beginning: it goes with no cursor")
		}
		if !own {
			cursor = cmp.Or(remembered[name], c.Cursor)
		}
		o.Collections = append(o.Collections, follow.Collection{Name: name, Cursor: cursor})
	}
	if err := o.Validate(); err != nil {
		return usageError{err}
	}
	t := &tail{
		cmd: c, out: bufio.NewWriterSize(std.out, 64<<10), status: std.err, width: widthOf(std.out),
		opened: -1, at: follow.NewCursors(o.Collections...), file: remembered,
	}
	t.printed = t.at
	err = follow.Follow(ctx, o, t.step)
	enough := errors.Is(err, errLive)
	if enough || ctx.Err() != nil { // that is how a tail ends
		err = nil
	}
	kerr := t.keep()
	if err == nil {
		err = kerr
	}
	if !enough && (t.connected || ctx.Err() != nil) {
		t.farewell(kerr == nil)
	}
	return err
}

// remembered reads the cursor file.
func (c *TailCmd) remembered() (map[string]string, error) {
	if c.CursorFile == "" {
		return nil, nil
	}
	var f cursorFile
	there, err := kept(c.CursorFile, &f)
	if err != nil {
		return nil, fmt.Errorf("read the cursors: %w", err)
	}
	if there && f.Tenant != c.Tenant {
		return nil, misuse("the cursors in %s are of the tenant %q, not of %q: use a file for each", c.CursorFile, f.Tenant, c.Tenant)
	}
	return f.Cursors, nil
}

// step prints one step of the feed.
func (t *tail) step(s follow.Step) error {
	if s.Lost != nil {
		t.live = false
		if t.cmd.Once && !t.connected {
			return s.Lost
		}
		t.say("lost", "%v; again in %v", s.Lost, s.Wait.Round(10*time.Millisecond))
		return nil
	}
	t.connected = true
	for _, f := range s.Frames {
		t.announce(s, f)
		t.print(f)
	}
	t.at = s.Cursors
	finished := t.cmd.Once && t.live
	if s.Idle || finished || time.Since(t.printedAt) > time.Second {
		if err := t.keep(); err != nil {
			return err
		}
	}
	if finished {
		return errLive
	}
	return nil
}

// announce says on standard error how the connection fares.
func (t *tail) announce(s follow.Step, f follow.Frame) {
	switch f.Type {
	case "open":
		if t.opened != s.Connection { // a poll opens again and again
			t.opened = s.Connection
			t.say("open", "%s over %s, epoch %s", t.cmd.URL, s.Transport, f.Epoch)
		}
	case "reset":
		t.live = false
		t.say("reset", "%s: every row comes again (%s)", strings.Join(f.Collections, ", "), resets[feed.Reason(f.Reason)])
	case "live":
		if !t.live {
			t.live = true
			t.say("live", "%s", f.Cursor)
		}
	}
}

// resets says why.
var resets = map[feed.Reason]string{
	feed.ResetEpoch:     "the cursor is of another log",
	feed.ResetExpired:   "the cursor is older than the removes that are remembered",
	feed.ResetAhead:     "the cursor is ahead of the log",
	feed.ResetMalformed: "the cursor can't be read",
}

func (t *tail) say(what, format string, args ...any) {
	fmt.Fprintf(t.status, "%-6s %s\n", what, printable(fmt.Sprintf(format, args...)))
}

// print prints what a frame says to whoever asked. Errors of the writer stay with it
// until it is flushed.
func (t *tail) print(f follow.Frame) {
	switch {
	case t.cmd.Rows:
		deltas := t.rows.Apply(f)
		switch {
		case t.shown:
			for _, d := range deltas {
				t.row(d)
			}
		case f.Type == "live":
			t.shown = true
			for _, c := range t.at.Collections() {
				for row := range t.rows.All(c.Name) {
					t.row(follow.Delta{Row: row})
				}
			}
		}
	case t.cmd.JSON:
		t.out.Write(f.Raw)
		t.out.WriteByte('\n')
	case f.Type == "change":
		t.line(f.Seq, f.Collection, f.Op, f.Key, f.Value)
	}
}

// row prints a row, or that it is gone.
func (t *tail) row(d follow.Delta) {
	op := "put"
	if d.Removed {
		op, d.Value = "remove", nil
	}
	if !t.cmd.JSON {
		t.line(d.Seq, d.Collection, op, d.Key, d.Value)
		return
	}
	enc := json.NewEncoder(t.out)
	enc.SetEscapeHTML(false)
	// A row of a valid frame can be encoded; an error of the writer stays with it.
	_ = enc.Encode(struct {
		Collection string          `json:"collection"`
		Op         string          `json:"op"`
		Key        string          `json:"key"`
		Seq        feed.Seq        `json:"seq,omitempty"`
		Value      json.RawMessage `json:"value,omitempty"`
	}{d.Collection, op, d.Key, d.Seq, d.Value})
}

// line prints a change for people.
func (t *tail) line(seq feed.Seq, collection, op, key string, value []byte) {
	place := ""
	if seq > 0 {
		place = strconv.FormatUint(uint64(seq), 10)
	}
	if key != printable(key) || strings.ContainsAny(key, " \"") {
		key = strconv.Quote(key)
	}
	text := fmt.Sprintf("%8s  %s  %-6s  %s", place, collection, op, key)
	if len(value) > 0 {
		text += "  " + printable(string(value))
	}
	t.out.WriteString(cut(text, t.width()))
	t.out.WriteByte('\n')
}

// keep makes sure that all was printed, and then that the cursor file says so.
// Collections that are not followed this time keep their place in it.
func (t *tail) keep() error {
	if err := t.out.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	t.printed, t.printedAt = t.at, time.Now()
	if t.cmd.CursorFile == "" {
		return nil
	}
	now := maps.Clone(t.file)
	if now == nil {
		now = make(map[string]string)
	}
	for _, c := range t.at.Collections() {
		delete(now, c.Name)
		if c.Cursor != "" {
			now[c.Name] = c.Cursor
		}
	}
	if maps.Equal(now, t.file) {
		return nil
	}
	if err := keep(t.cmd.CursorFile, cursorFile{t.cmd.Tenant, now}); err != nil {
		return fmt.Errorf("keep the cursors: %w", err)
	}
	t.file = now
	return nil
}

// farewell says how to go on. kept: the cursor file, if there is one, says where.
func (t *tail) farewell(kept bool) {
	if t.cmd.CursorFile != "" && kept {
		t.say("left", "the same command goes on from here, by %s", t.cmd.CursorFile)
		return
	}
	args := []string{"tidemark", "tail"}
	add := func(flag, value, unless string) {
		if value != unless {
			args = append(args, flag, quoted(value))
		}
	}
	add("--url", t.cmd.URL, "http://127.0.0.1:7333")
	add("--tenant", t.cmd.Tenant, "demo")
	add("--transport", t.cmd.Transport, follow.SSE)
	if t.cmd.JSON {
		args = append(args, "--json")
	}
	one, same := t.printed.One()
	if same && one == "" {
		return // nothing has come
	}
	if same {
		args = append(args, "--cursor", one)
	}
	for _, c := range t.printed.Collections() {
		if !same && c.Cursor != "" {
			c.Name += "@" + c.Cursor
		}
		args = append(args, c.Name)
	}
	if same {
		t.say("left", "at %s; what changes from here on:", one)
	} else {
		t.say("left", "what changes from here on:")
	}
	fmt.Fprintf(t.status, "       %s\n", strings.Join(args, " "))
}

// quoted is how a shell wants a word.
func quoted(s string) string {
	safe := func(r rune) bool {
		return r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("-_./:@,+=", r))
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// printable replaces what a terminal might obey, or hide.
func printable(s string) string {
	bad := func(r rune) bool { return r != ' ' && !unicode.IsPrint(r) }
	if strings.IndexFunc(s, bad) < 0 {
		return s
	}
	return strings.Map(func(r rune) rune {
		if bad(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// widthOf returns what tells the width of the terminal behind w, in columns; 0 where
// there is none.
func widthOf(w io.Writer) func() int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func() int { return 0 }
	}
	return func() int {
		width, _, err := term.GetSize(int(f.Fd()))
		if err != nil {
			return 0
		}
		return width
	}
}

// cut cuts a line to a width in columns; 0 leaves it as it is. Characters of East
// Asia and emoji count two.
func cut(s string, width int) string {
	if width <= 0 || len(s) <= width {
		return s
	}
	columns, last := 0, 0 // last: where the mark of a cut would still fit
	for i, r := range s {
		n := 1
		if r >= 0x1100 && (r <= 0x115F || (r >= 0x2E80 && r <= 0xA4CF) || (r >= 0xAC00 && r <= 0xD7A3) ||
			(r >= 0xF900 && r <= 0xFAFF) || (r >= 0xFE30 && r <= 0xFE6F) || (r >= 0xFF00 && r <= 0xFF60) || r >= 0x1F300) {
			n = 2
		} else if unicode.Is(unicode.Mn, r) {
			n = 0
		}
		if columns+n > width {
			return s[:last] + "…"
		}
		if columns += n; columns < width {
			last = i + len(string(r))
		}
	}
	return s
}
