package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/transport/follow"
)

// ImportCmd writes a file of transactions to a server.
type ImportCmd struct {
	Remote     `embed:""`
	Collection string        `placeholder:"NAME" help:"Where changes go that name no collection."`
	Via        string        `default:"auto" enum:"auto,websocket,post" help:"How to write: ${enum}. auto is a WebSocket where one can be had, else POST. Default: ${default}."`
	Window     int           `default:"32" placeholder:"N" help:"How many lines may be under way at once over a WebSocket. Default: ${default}."`
	State      string        `placeholder:"FILE" type:"path" help:"Keep in this file how far the import has come, and go on from there."`
	Patience   time.Duration `default:"5m" help:"How long to try again without getting on. Default: ${default}."`

	File string `arg:"" optional:"" default:"-" help:"The file; - is standard input."`
}

// Help teaches.
func (ImportCmd) Help() string {
	return `Each line of the file is one transaction, which is applied whole or not at all, in the order of the file. For example (here on two lines):

    {"id": "t-1", "changes": [{"op": "insert", "collection": "todos", "key": "1",
                               "value": {"title": "milk"}}]}

The operations are insert, modify (with "value" or "patch"), put and remove, each with "if" and "id" as a change may have them; a line has at most 500 changes. A last line that has "final" instead of "changes" is skipped. The sizes that a server takes are its own matter (1 MiB a line, unless it was told otherwise).

    tidemark import history.ndjson
    zcat history.ndjson.gz | tidemark import --tenant acme --collection history/files
    tidemark import --state import.state history.ndjson    # again, after a crash

Sending a line again does no harm, so a server that goes away and comes back is waited for. This is because every change has an id: its own, or the line's "id" and its place in the line, or, where the line has none, a hash of the line and its number. A server remembers ids for a while only (an hour, unless it was told otherwise). Within that, starting a killed import again from the beginning is harmless too. Later it is not: inserts are refused then, and old values come back for a while. With --state FILE an import goes on where it was; only what it wrote in its last quarter of a second is sent again. It refuses to if the file's beginning is another.

A refused line stops the import, which says which line it was and why. Lines that are under way together never touch the same row. So what comes after a line that fails, and was applied all the same, has nothing to do with its rows: whatever has to be sent again, the rows at the end are those of the file's order. With --window 1 not even that happens: no line is sent before the one in front of it is in the log.`
}

const (
	maxLine       = 16 << 20
	maxInFlight   = 4 << 20          // bytes; one line may have more
	answerTimeout = 60 * time.Second // of one write
	stateEvery    = 250 * time.Millisecond
	progressEvery = 100 * time.Millisecond
	fruitless     = 3 // WebSockets in a row that brought no answer, before POST is used
)

// Run imports until the file ends.
func (c *ImportCmd) Run(ctx context.Context, std stdio) error {
	if c.Window < 1 {
		return misuse("--window must be at least 1")
	}
	if c.Patience < 0 {
		return misuse("--patience must not be negative")
	}
	if c.Collection != "" {
		if err := feed.CheckCollection(c.Collection); err != nil {
			return usageError{err}
		}
	}
	o, err := c.options()
	if err == nil {
		err = o.Validate()
	}
	if err != nil {
		return usageError{err}
	}
	in, size := std.in, int64(0)
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
		in = f
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	defer tr.CloseIdleConnections()
	m := &importer{
		cmd: c, o: o, log: std.err,
		src:      &source{r: bufio.NewReaderSize(in, 256<<10)},
		began:    time.Now(),
		progress: newProgress(std.err, size),
	}
	m.o.Transport, m.o.HTTP = follow.WebSocket, &http.Client{Transport: tr}
	if err := m.resume(in); err != nil {
		return err
	}
	err = m.run(ctx)
	m.progress.clear()
	if serr := m.save(true); err == nil {
		err = serr
	}
	m.summary(err)
	return err
}

// entry is one line of the file on its way.
type entry struct {
	number     int64 // of the line, from 1
	start, end int64 // its bytes in the file, without the line end
	sum        [sha256.Size]byte
	request    []byte   // what the server gets
	rows       []string // the rows that it touches
	changes    int

	sent, done bool
	duplicate  bool
}

// importState is what --state holds: up to where everything is in the server's log.
type importState struct {
	URL        string `json:"url"`
	Tenant     string `json:"tenant"`
	Collection string `json:"collection,omitempty"`
	Line       int64  `json:"line"`   // the last line up to which all is in the log
	Offset     int64  `json:"offset"` // where that line ends
	Start      int64  `json:"start"`  // where it starts
	SHA256     string `json:"sha256"` // of its bytes, to tell another file by
}

// importer is one run of ImportCmd. It is owned by one goroutine.
type importer struct {
	cmd *ImportCmd
	o   follow.Options
	log io.Writer
	src *source

	// queue holds the lines from the first that is not in the log on, in order: at most
	// --window of them.
	queue  []*entry
	ended  bool  // the file has
	unread error // why it was not read to its end

	state   importState
	saved   importState
	savedAt time.Time

	began        time.Time
	post         bool // no WebSocket can be had
	barren       int  // WebSockets in a row that brought no answer
	lines        int64
	changes      int64
	duplicates   int64 // lines
	cursor       string
	progress     *progress
	lastProgress time.Time
}

// refusal is a line that the server will not take.
type refusal struct {
	line int64
	why  string
}

func (r *refusal) Error() string { return fmt.Sprintf("line %d was refused: %s", r.line, r.why) }

// run sends everything, over as many connections as it takes.
func (m *importer) run(ctx context.Context) error {
	m.lastProgress = time.Now()
	for tries := 0; ; tries++ {
		before := m.lastProgress
		retry, err := m.connection(ctx)
		if err == nil || ctx.Err() != nil || retry < 0 {
			if err != nil && ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return err
		}
		if m.lastProgress != before {
			tries = 0
		}
		wait := follow.Backoff(tries) + retry
		away := time.Since(m.lastProgress)
		if away >= m.cmd.Patience {
			return fmt.Errorf("gave up after %v without getting on: %w", away.Round(time.Second), err)
		}
		wait = min(wait, m.cmd.Patience-away) // and once more at the end
		m.progress.clear()
		fmt.Fprintf(m.log, "waiting for the server: %v; again in %v\n", err, wait.Round(10*time.Millisecond))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return errors.New("interrupted")
		}
	}
}

// never is the time to wait before a try that would end the same way.
const never = -1

// connection sends what it can over one connection. It returns nil if everything is
// done, else the error with the least time to wait before the next connection.
func (m *importer) connection(ctx context.Context) (time.Duration, error) {
	for _, e := range m.queue {
		e.sent = false
	}
	m.fill()
	if len(m.queue) == 0 {
		return never, m.unread
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := m.open(ctx)
	if err != nil {
		return m.lost(err)
	}
	defer w.close()

	// trouble is why nothing more is sent; what is under way is waited for.
	var trouble error
	var retry time.Duration
	timer := time.NewTimer(answerTimeout)
	defer timer.Stop()
	for {
		if trouble == nil {
			m.fill()
			if err := m.send(ctx, w); err != nil {
				m.barren++
				return m.lost(err)
			}
		}
		switch {
		case m.underWay() > 0:
		case trouble != nil:
			return retry, trouble
		default: // the first of the queue could always go, so the queue is empty
			return never, m.unread
		}
		timer.Reset(answerTimeout)
		select {
		case a := <-w.answers():
			if a.err != nil {
				m.barren++
				return m.lost(a.err)
			}
			wait, err := m.take(a)
			var r *refusal
			if err != nil && (trouble == nil || (errors.As(err, &r) && retry != never)) {
				trouble, retry = err, wait
			}
		case <-timer.C:
			m.barren++
			return 0, fmt.Errorf("no answer for %v", answerTimeout)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// lost says whether another connection may do what this one did not.
func (m *importer) lost(err error) (time.Duration, error) {
	var end *follow.Ended
	if errors.As(err, &end) {
		if !end.Again {
			return never, err
		}
		return end.Retry, err
	}
	var p *follow.Problem
	if !errors.As(err, &p) {
		return 0, err
	}
	switch {
	case p.Temporary():
		return p.RetryAfter, err
	case m.cmd.Via == "auto" && !m.post:
		// What a POST is told says which line it is about.
		m.post = true
		return 0, err
	}
	return never, err
}

// open makes a connection to write over.
func (m *importer) open(ctx context.Context) (writer, error) {
	if m.cmd.Via == "post" {
		m.post = true
	}
	if !m.post && m.cmd.Via == "auto" && m.barren >= fruitless {
		m.post = true
	}
	if !m.post {
		dialing, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		c, err := follow.Dial(dialing, m.o)
		if err == nil {
			return newSocketWriter(ctx, c, m.cmd.Window), nil
		}
		var p *follow.Problem
		if m.cmd.Via != "auto" || !errors.As(err, &p) || p.Temporary() {
			return nil, err
		}
		m.post = true // a box in between, or a server that wants no WebSocket
	}
	return &postWriter{o: m.o, results: make(chan answer, 1)}, nil
}

// fill reads lines until the queue holds as many as may be under way, or there are no
// more, or one can't be read: then those in front of it are still sent.
func (m *importer) fill() {
	window := m.cmd.Window
	if m.post {
		window = 1
	}
	for !m.ended && len(m.queue) < window {
		e, err := m.next()
		if err != nil {
			m.ended, m.unread = true, err
		}
		if e != nil {
			m.queue = append(m.queue, e)
		}
	}
}

// send sends the lines that may go: in order, none that touches a row of one that is
// not in the log, so that lines under way can be exchanged without harm.
func (m *importer) send(ctx context.Context, w writer) error {
	busy := make(map[string]bool)
	bytes := 0
	for i, e := range m.queue {
		if e.done {
			continue
		}
		if !e.sent {
			if (bytes > 0 && bytes+len(e.request) > maxInFlight) || slices.ContainsFunc(e.rows, func(row string) bool { return busy[row] }) {
				return nil
			}
			if m.post && i > 0 {
				return nil
			}
			if err := w.send(ctx, e); err != nil {
				return err
			}
			e.sent = true
		}
		bytes += len(e.request)
		for _, row := range e.rows {
			busy[row] = true
		}
	}
	return nil
}

func (m *importer) underWay() (n int) {
	for _, e := range m.queue {
		if e.sent && !e.done {
			n++
		}
	}
	return n
}

// take takes an answer.
func (m *importer) take(a answer) (time.Duration, error) {
	i := slices.IndexFunc(m.queue, func(e *entry) bool { return e.number == a.line })
	if i < 0 || !m.queue[i].sent {
		return 0, nil // of a line that is done with
	}
	e := m.queue[i]
	if len(a.results) > 0 {
		bad := slices.IndexFunc(a.results, func(r follow.Result) bool { return !r.OK() && r.Status != "aborted" })
		if bad < 0 && !slices.ContainsFunc(a.results, func(r follow.Result) bool { return !r.OK() }) {
			m.finish(e, a)
			return 0, nil
		}
		e.sent = false
		return never, &refusal{e.number, why(a.results, bad)}
	}
	e.sent = false
	switch {
	case a.problem == nil:
		return never, &refusal{e.number, "the server's answer has no results"}
	case a.problem.Temporary():
		return a.problem.RetryAfter, a.problem
	}
	return never, &refusal{e.number, a.problem.Error()}
}

// why says what the server has against a change.
func why(results []follow.Result, i int) string {
	if i < 0 {
		return "all of it was aborted"
	}
	r := results[i]
	what := map[string]string{
		"exists":    "insert, but the row is there",
		"missing":   "modify, but the row is not there",
		"conflict":  `the row is not at the sequence that "if" names`,
		"id-reused": "another change has this id: the file was changed, or two of its lines share an id",
	}[r.Status]
	s := fmt.Sprintf("%s: %s (change %d, key %q", r.Status, what, i+1, r.Key)
	if r.Value != nil {
		s += fmt.Sprintf("; as it stands, at %d: %.200s", r.Seq, r.Value)
	}
	return s + ")"
}

// finish counts a line that is in the log.
func (m *importer) finish(e *entry, a answer) {
	e.done = true
	e.duplicate = !slices.ContainsFunc(a.results, func(r follow.Result) bool { return r.Status != "duplicate" })
	e.request, e.rows = nil, nil
	m.lastProgress, m.barren = time.Now(), 0
	if a.cursor != "" {
		m.cursor = a.cursor
	}
	for len(m.queue) > 0 && m.queue[0].done {
		e := m.queue[0]
		m.queue = m.queue[1:]
		m.lines++
		m.changes += int64(e.changes)
		if e.duplicate {
			m.duplicates++
		}
		m.state.Line, m.state.Start, m.state.Offset, m.state.SHA256 = e.number, e.start, e.end, hex.EncodeToString(e.sum[:])
	}
	if err := m.save(false); err != nil {
		m.progress.clear()
		fmt.Fprintln(m.log, err) // the import goes on; the last try to save it counts
	}
	m.progress.show(m.state.Offset, m.lines, m.changes, m.began)
}

// save writes the state, now and then or in any case.
func (m *importer) save(now bool) error {
	if m.cmd.State == "" || m.state == m.saved || (!now && time.Since(m.savedAt) < stateEvery) {
		return nil
	}
	if err := keep(m.cmd.State, m.state); err != nil {
		return fmt.Errorf("keep the state: %w", err)
	}
	m.saved, m.savedAt = m.state, time.Now()
	return nil
}

// resume goes to where the state says that the import was.
func (m *importer) resume(in io.Reader) error {
	m.state = importState{URL: m.cmd.URL, Tenant: m.cmd.Tenant, Collection: m.cmd.Collection}
	m.saved = m.state
	if m.cmd.State == "" {
		return nil
	}
	var old importState
	there, err := kept(m.cmd.State, &old)
	if err != nil {
		return fmt.Errorf("read the state: %w", err)
	}
	if !there {
		return nil
	}
	if old.URL != m.state.URL || old.Tenant != m.state.Tenant || old.Collection != m.state.Collection {
		return misuse("%s is the state of another import (to %s, tenant %s, collection %q): name another file, or remove it to begin anew",
			m.cmd.State, old.URL, old.Tenant, old.Collection)
	}
	if old.Line == 0 {
		return nil
	}
	other := fmt.Errorf("%s does not begin with what %s says was imported: it is another file, or was changed; remove the state to begin anew", m.cmd.File, m.cmd.State)
	if old.Start < 0 || old.Offset < old.Start || old.Offset-old.Start > maxLine {
		return other
	}
	if err := m.src.skip(in, old.Start); err != nil {
		return other
	}
	last := make([]byte, old.Offset-old.Start)
	if _, err := io.ReadFull(m.src.r, last); err != nil {
		return other
	}
	if sum := sha256.Sum256(last); hex.EncodeToString(sum[:]) != old.SHA256 {
		return other
	}
	m.src.offset, m.src.line = old.Offset, old.Line-1
	if rest, _, err := m.src.next(); len(rest) > 0 || (err != nil && !errors.Is(err, io.EOF)) {
		return other // the line goes on where it ended
	}
	m.state, m.saved = old, old
	fmt.Fprintf(m.log, "going on after line %d\n", old.Line)
	return nil
}

// summary says what was done.
func (m *importer) summary(err error) {
	took := time.Since(m.began)
	verb := "imported"
	if err != nil {
		verb = "stopped after"
	}
	fmt.Fprintf(m.log, "%s %d lines with %d changes in %v (%.0f changes/s)", verb, m.lines, m.changes,
		took.Round(time.Millisecond), float64(m.changes)/max(took.Seconds(), 0.001))
	if m.duplicates > 0 {
		fmt.Fprintf(m.log, "; %d of the lines were there already", m.duplicates)
	}
	if m.cursor != "" {
		fmt.Fprintf(m.log, "; cursor %s", m.cursor)
	}
	fmt.Fprintln(m.log)
	if err == nil {
		return
	}
	if m.state.Line > 0 {
		fmt.Fprintf(m.log, "up to line %d, everything is in the log", m.state.Line)
	} else {
		fmt.Fprint(m.log, "nothing of it is known to be in the log")
	}
	var later, open []string
	for _, e := range m.queue {
		switch {
		case e.done:
			later = append(later, strconv.FormatInt(e.number, 10))
		case e.sent:
			open = append(open, strconv.FormatInt(e.number, 10))
		}
	}
	if len(later) > 0 {
		fmt.Fprintf(m.log, "; so is what was under way together with it and touches other rows, line %s", strings.Join(later, ", "))
	}
	if len(open) > 0 {
		fmt.Fprintf(m.log, "; what became of line %s is not known", strings.Join(open, ", "))
	}
	fmt.Fprintln(m.log)
}

// source reads lines, and knows where it is.
type source struct {
	r      *bufio.Reader
	offset int64
	line   int64
}

// skip goes to an offset: at once in a file, else by reading.
func (s *source) skip(in io.Reader, n int64) error {
	if f, ok := in.(io.Seeker); ok {
		if _, err := f.Seek(n, io.SeekStart); err == nil {
			s.r.Reset(in)
			return nil
		}
	}
	_, err := io.CopyN(io.Discard, s.r, n)
	return err
}

// next returns the next line without its end, and where it starts; io.EOF after the last.
func (s *source) next() (line []byte, start int64, err error) {
	start = s.offset
	s.line++
	for {
		part, err := s.r.ReadSlice('\n')
		s.offset += int64(len(part))
		line = append(line, part...)
		if len(line) > maxLine+2 {
			return nil, start, fmt.Errorf("line %d has more than %d MiB", s.line, maxLine>>20)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil, start, io.EOF
		case err != nil && !errors.Is(err, io.EOF):
			return nil, start, fmt.Errorf("read line %d: %w", s.line, err)
		}
		return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r")), start, nil
	}
}

// next makes an entry of the next line; nil for a line without changes.
func (m *importer) next() (*entry, error) {
	line, start, err := m.src.next()
	if errors.Is(err, io.EOF) {
		m.ended = true
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	end := start + int64(len(line))
	text := line
	if start == 0 {
		text = bytes.TrimPrefix(text, []byte("\uFEFF"))
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	e, err := parseLine(text, m.src.line, m.cmd.Collection)
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", m.src.line, err)
	}
	if e == nil {
		m.progress.clear()
		fmt.Fprintf(m.log, "line %d was skipped: it has no changes\n", m.src.line)
		return nil, nil
	}
	e.start, e.end, e.sum = start, end, sha256.Sum256(line)
	return e, nil
}

// parseLine makes a request of a line; nil if it is one without changes. What the
// server would misunderstand in silence is an error: names that nobody knows.
func parseLine(text []byte, number int64, collection string) (*entry, error) {
	var line map[string]json.RawMessage
	if err := json.Unmarshal(text, &line); err != nil {
		return nil, place(text, err)
	}
	if line == nil {
		return nil, errors.New("it is no object")
	}
	for name := range line {
		if name != "id" && name != "changes" && name != "final" {
			return nil, fmt.Errorf(`unknown name %q: a line has "changes" and may have an "id"`, name)
		}
	}
	list, some := line["changes"]
	if !some {
		if _, final := line["final"]; final {
			return nil, nil
		}
		return nil, errors.New(`it has no "changes"`)
	}
	var changes []json.RawMessage
	if err := json.Unmarshal(list, &changes); err != nil {
		return nil, errors.New(`"changes" is no list`)
	}
	if len(changes) == 0 {
		return nil, nil
	}
	if len(changes) > feed.MaxChanges {
		return nil, fmt.Errorf("it has %d changes: a transaction has at most %d", len(changes), feed.MaxChanges)
	}
	var id string
	if raw, has := line["id"]; has {
		if err := json.Unmarshal(raw, &id); err != nil || id == "" {
			return nil, errors.New(`its "id" is no text`)
		}
	} else {
		// With the number: two lines that say the same are two transactions.
		sum := sha256.Sum256(strconv.AppendInt(append(slices.Clone(text), '\n'), number, 10))
		id = hex.EncodeToString(sum[:])[:16]
	}
	e := &entry{number: number, changes: len(changes)}
	e.request = append(make([]byte, 0, len(text)+64*len(changes)), `{"client":"import","atomic":true,"changes":[`...)
	for i, raw := range changes {
		c, row, err := completeChange(raw, id+"/"+strconv.Itoa(i), collection)
		if err != nil {
			return nil, fmt.Errorf("change %d: %w", i+1, err)
		}
		if i > 0 {
			e.request = append(e.request, ',')
		}
		e.request = append(e.request, c...)
		if row != "" {
			e.rows = append(e.rows, row)
		}
	}
	e.request = append(e.request, "]}"...)
	return e, nil
}

// completeChange gives a change the id and the collection that it lacks, and returns
// which row it touches; "" for an insert whose key the server makes.
func completeChange(raw []byte, id, collection string) (change []byte, row string, err error) {
	var c map[string]json.RawMessage
	if err := json.Unmarshal(raw, &c); err != nil || c == nil {
		return nil, "", errors.New("it is no object")
	}
	for name := range c {
		switch name {
		case "id", "collection", "op", "key", "value", "patch", "if":
		default:
			return nil, "", fmt.Errorf("unknown name %q", name)
		}
	}
	word := func(name string) (s string, has bool, err error) {
		raw, has := c[name]
		if has && (json.Unmarshal(raw, &s) != nil || raw[0] != '"') {
			return "", true, fmt.Errorf("its %q is no text", name)
		}
		return s, has, nil
	}
	op, _, err := word("op")
	if err != nil {
		return nil, "", err
	}
	if !slices.Contains([]string{"insert", "modify", "put", "remove"}, op) {
		return nil, "", fmt.Errorf(`%q is no operation: insert, modify, put or remove`, op)
	}
	key, hasKey, err := word("key")
	if err != nil {
		return nil, "", err
	}
	if hasKey || op != "insert" {
		if err := feed.CheckKey(key); err != nil {
			return nil, "", err
		}
	}
	var more []byte
	own, has, err := word("id")
	if err != nil {
		return nil, "", err
	}
	if has {
		id = own
	} else {
		more = appendMember(more, "id", id)
	}
	if err := feed.CheckID(id); err != nil {
		return nil, "", err
	}
	own, has, err = word("collection")
	if err != nil {
		return nil, "", err
	}
	if has {
		collection = own
	} else if collection != "" {
		more = appendMember(more, "collection", collection)
	} else {
		return nil, "", errors.New("it names no collection, and there is no --collection")
	}
	if err := feed.CheckCollection(collection); err != nil {
		return nil, "", err
	}
	if hasKey {
		row = collection + "\x00" + key
	}
	// The rest stays as it was written: numbers too long for this program, too.
	rest := bytes.TrimSpace(raw)[1:]
	change = append(append([]byte{'{'}, more...), rest...)
	return change, row, nil
}

// appendMember appends a member with a comma after it: a change has others.
func appendMember(b []byte, name, value string) []byte {
	text, err := json.Marshal(value)
	if err != nil {
		panic("a text can't be encoded: " + err.Error())
	}
	return append(append(strconv.AppendQuote(b, name), ':'), append(text, ',')...)
}

// place says where in a line the JSON is wrong.
func place(text []byte, err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		at := min(max(int(syntax.Offset)-1, 0), len(text))
		return fmt.Errorf("column %d: %w", utf8.RuneCount(text[:at])+1, err)
	}
	return errors.New("it is no object")
}

// writer is a connection that lines are sent over.
type writer interface {
	// send sends a line; the answer comes later.
	send(ctx context.Context, e *entry) error
	// answers brings the answers; one with err is the connection's end.
	answers() <-chan answer
	close()
}

// answer is what came back for a line.
type answer struct {
	line    int64
	cursor  string
	results []follow.Result
	problem *follow.Problem
	err     error
}

// socketWriter writes over a WebSocket.
type socketWriter struct {
	c       *follow.Conn
	results chan answer
	stop    chan struct{} // closed when nobody takes results any more
	done    chan struct{} // closed when the reading is over
}

// newSocketWriter starts reading answers; close ends that. There is room for all
// answers of a window: a server that can't get rid of them would read no more writes.
func newSocketWriter(ctx context.Context, c *follow.Conn, window int) *socketWriter {
	w := &socketWriter{c: c, results: make(chan answer, window+1), stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for {
			f, err := c.Next(ctx)
			a := answer{cursor: f.Cursor, results: f.Results, problem: f.Problem, err: err}
			switch {
			case err != nil:
			case f.Type == "error" && f.ID == "":
				a.err = f.Problem // about the connection itself
			case f.Type == "written" || f.Type == "error":
				a.line, a.err = strconv.ParseInt(f.ID, 10, 64)
			default:
				continue
			}
			select {
			case w.results <- a:
			case <-w.stop:
				return
			}
			if a.err != nil {
				return
			}
		}
	}()
	return w
}

func (w *socketWriter) send(ctx context.Context, e *entry) error {
	frame := append([]byte(`{"type":"write","id":"`), strconv.FormatInt(e.number, 10)...)
	frame = append(append(frame, `",`...), e.request[1:]...)
	return w.c.Send(ctx, frame)
}

func (w *socketWriter) answers() <-chan answer { return w.results }

func (w *socketWriter) close() {
	close(w.stop)
	w.c.Close()
	<-w.done
}

// postWriter writes by POST, one line at a time.
type postWriter struct {
	o       follow.Options
	results chan answer
}

func (w *postWriter) send(ctx context.Context, e *entry) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	f, err := follow.Post(ctx, w.o, e.request)
	a := answer{line: e.number, cursor: f.Cursor, results: f.Results}
	if err != nil && !errors.As(err, &a.problem) {
		return err
	}
	w.results <- a
	return nil
}

func (w *postWriter) answers() <-chan answer { return w.results }
func (w *postWriter) close()                 {}

// progress draws a bar on a terminal.
type progress struct {
	w     io.Writer
	size  int64 // of the file, 0: not known
	drawn bool
	last  time.Time
}

// newProgress returns nil, which draws nothing, unless w is a terminal.
func newProgress(w io.Writer, size int64) *progress {
	if f, ok := w.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return &progress{w: w, size: size}
}

func (p *progress) show(offset, lines, changes int64, began time.Time) {
	if p == nil || time.Since(p.last) < progressEvery {
		return
	}
	p.last, p.drawn = time.Now(), true
	bar := ""
	if p.size > 0 {
		const width = 30
		part := float64(offset) / float64(p.size)
		full := min(max(int(part*width), 0), width)
		bar = fmt.Sprintf("[%s%s] %3.0f%%  ", strings.Repeat("#", full), strings.Repeat(".", width-full), part*100)
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s%d lines, %d changes, %.0f changes/s", bar, lines, changes, float64(changes)/max(time.Since(began).Seconds(), 0.001))
}

// clear makes room for another line of text.
func (p *progress) clear() {
	if p != nil && p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}
