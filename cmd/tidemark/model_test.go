package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// model is a small honest server: rows and ids in memory, one log, feeds over all
// transports, and accidents on demand.
type model struct {
	t   *testing.T
	srv *httptest.Server

	// accident, if set, is asked about each request to write, by number from 0.
	accident func(n int) accident
	// refuse, if set, may answer a request before anything else is done; true if it has.
	refuse func(w http.ResponseWriter, r *http.Request) bool

	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	epoch   string
	log     []logged
	rows    map[string]logged // by collection, NUL, key
	ids     map[string]string // id -> what it did, and the change
	writes  int
	tenants []string
	conns   map[*websocket.Conn]bool
}

type logged struct {
	seq, last       int
	collection, key string
	op, value       string
	by              string // the id
}

type accident int

const (
	none      accident = iota
	busy               // refused for now, nothing done
	lostAfter          // done, and the connection is gone before the answer
	lostFore           // the connection is gone and nothing was done
)

func newModel(t *testing.T) *model {
	m := &model{t: t, epoch: "k3f9a1", changed: make(chan struct{}), rows: make(map[string]logged), ids: make(map[string]string), conns: make(map[*websocket.Conn]bool)}
	m.srv = httptest.NewServer(m)
	t.Cleanup(func() {
		m.cutSockets()
		m.srv.CloseClientConnections()
		m.srv.Close()
	})
	return m
}

func (m *model) cutSockets() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.conns {
		c.CloseNow()
	}
}

func (m *model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tenant, what, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
	m.mu.Lock()
	m.tenants = append(m.tenants, tenant)
	m.mu.Unlock()
	if m.refuse != nil && m.refuse(w, r) {
		return
	}
	switch {
	case what == "changes" && r.Method == http.MethodPost:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			m.t.Error(err)
		}
		status, answer := m.write(body)
		if status == 0 {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		w.Write(answer)
	case what == "feed":
		m.feed(w, r)
	default:
		http.NotFound(w, r)
	}
}

type modelChange struct {
	ID         string          `json:"id"`
	Collection string          `json:"collection"`
	Op         string          `json:"op"`
	Key        string          `json:"key"`
	Value      json.RawMessage `json:"value"`
	Patch      json.RawMessage `json:"patch"`
	If         *int            `json:"if"`
}

type modelResult struct {
	ID     string          `json:"id,omitempty"`
	Status string          `json:"status"`
	Key    string          `json:"key,omitempty"`
	Seq    int             `json:"seq"`
	Value  json.RawMessage `json:"value,omitempty"`
}

// write applies a request; the status is 0 if the connection is to be cut.
func (m *model) write(body []byte) (int, []byte) {
	var req struct {
		Type, ID, Client string
		Atomic           bool
		Changes          []json.RawMessage
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&req); err != nil || !req.Atomic || req.Client != "import" {
		m.t.Errorf("a request to write: %v: %.300s", err, body)
		return 400, []byte(`{"code":"bad-request"}`)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.writes
	m.writes++
	what := none
	if m.accident != nil {
		what = m.accident(n)
	}
	switch what {
	case busy:
		return 503, []byte(`{"code":"unavailable","status":503,"title":"Service Unavailable","detail":"try again"}`)
	case lostFore:
		return 0, nil
	}
	var results []modelResult
	refused := false
	before := len(m.log)
	rows := make(map[string]*logged) // as they will be; nil: gone
	var add []logged
	for _, raw := range req.Changes {
		var c modelChange
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		if err := d.Decode(&c); err != nil || c.ID == "" || c.Key == "" {
			m.t.Errorf("a change: %v: %s", err, raw)
		}
		if done, seen := m.ids[c.ID]; seen {
			if !strings.HasSuffix(done, string(raw)) {
				results, refused = append(results, modelResult{ID: c.ID, Status: "id-reused", Key: c.Key}), true
				continue
			}
			results = append(results, modelResult{ID: c.ID, Status: "duplicate", Key: c.Key})
			continue
		}
		at := c.Collection + "\x00" + c.Key
		now, there := rows[at]
		if !there {
			if row, held := m.rows[at]; held {
				now = &row
			}
		}
		status := "ok"
		switch {
		case c.If != nil && ((now == nil && *c.If != 0) || (now != nil && now.seq != *c.If)):
			status = "conflict"
		case c.Op == "insert" && now != nil:
			status = "exists"
		case c.Op == "modify" && now == nil:
			status = "missing"
		}
		r := modelResult{ID: c.ID, Status: status, Key: c.Key}
		if status != "ok" {
			refused = true
			if now != nil {
				r.Seq, r.Value = now.seq, json.RawMessage(now.value)
			}
			results = append(results, r)
			continue
		}
		l := logged{seq: before + len(add) + 1, collection: c.Collection, key: c.Key, op: c.Op, value: string(c.Value), by: c.ID}
		if c.Op == "put" {
			l.op = "insert"
		}
		if c.Op == "remove" {
			rows[at] = nil
			l.value = ""
		} else {
			rows[at] = &l
		}
		add = append(add, l)
		r.Seq = l.seq
		results = append(results, r)
	}
	if refused {
		for i := range results {
			if results[i].Status == "ok" {
				results[i].Status = "aborted"
			}
		}
		b, _ := json.Marshal(map[string]any{"code": "conflict", "status": 409, "title": "Conflict", "results": results})
		return 409, b
	}
	for i := range add {
		add[i].last = before + len(add)
	}
	m.log = append(m.log, add...)
	for at, row := range rows {
		if row == nil {
			delete(m.rows, at)
		} else {
			m.rows[at] = *row
		}
	}
	for i, raw := range req.Changes {
		m.ids[results[i].ID] = results[i].Status + string(raw)
	}
	close(m.changed)
	m.changed = make(chan struct{})
	if what == lostAfter {
		return 0, nil
	}
	b, _ := json.Marshal(map[string]any{"cursor": m.cursor(len(m.log)), "results": results})
	return 200, b
}

func (m *model) cursor(seq int) string { return fmt.Sprintf("%s-%d", m.epoch, seq) }

// put writes one row.
func (m *model) put(collection, key, value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.log) + 1
	l := logged{n, n, collection, key, "insert", value, ""}
	m.log = append(m.log, l)
	m.rows[collection+"\x00"+key] = l
	close(m.changed)
	m.changed = make(chan struct{})
}

// remove removes one row.
func (m *model) remove(collection, key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.log) + 1
	m.log = append(m.log, logged{n, n, collection, key, "remove", "", ""})
	delete(m.rows, collection+"\x00"+key)
	close(m.changed)
	m.changed = make(chan struct{})
}

// feed answers one feed.
func (m *model) feed(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	how := q.Get("transport")
	var ws *websocket.Conn
	send := func(frames ...string) {
		switch how {
		case "websocket":
			ws.Write(r.Context(), websocket.MessageText, []byte(strings.Join(frames, "\n")))
			return
		case "sse":
			for _, f := range frames {
				fmt.Fprintf(w, "data: %s\n\n", f)
			}
		default:
			fmt.Fprintln(w, strings.Join(frames, "\n"))
		}
		http.NewResponseController(w).Flush()
	}
	switch how {
	case "websocket":
		var err error
		if ws, err = websocket.Accept(w, r, nil); err != nil {
			return
		}
		m.mu.Lock()
		m.conns[ws] = true
		m.mu.Unlock()
		defer func() {
			ws.CloseNow()
			m.mu.Lock()
			delete(m.conns, ws)
			m.mu.Unlock()
		}()
		ws.SetReadLimit(32 << 20)
	case "sse":
		w.Header().Set("Content-Type", "text/event-stream")
	default:
		w.Header().Set("Content-Type", "application/x-ndjson")
	}
	send(fmt.Sprintf(`{"type":"open","epoch":%q,"session":"s","heartbeat":10,"server":"model","transports":["sse","websocket","poll"],"network":""}`, m.epoch))
	if ws != nil && len(q["c"]) == 0 {
		m.answerWrites(ws, send)
		return
	}
	gone := r.Context().Done()
	if ws != nil {
		gone = ws.CloseRead(r.Context()).Done()
	}
	at := make(map[string]int)
	for _, c := range q["c"] {
		name, own, _ := strings.Cut(c, "@")
		if own == "" {
			own = q.Get("cursor")
		}
		start := feed.Start{Collection: name}
		if own != "" {
			start.Cursors = []string{own}
		}
		seq, reason := start.Choose(feed.Epoch(m.epoch))
		if reason != "" {
			send(fmt.Sprintf(`{"type":"reset","collections":[%q],"reason":%q}`, name, reason))
		}
		at[name] = int(seq)
	}
	held := how == "poll" && q.Get("wait") != "0"
	for {
		m.mu.Lock()
		changed := m.changed
		var list []logged
		for i, l := range m.log {
			after, followed := at[l.collection]
			newest := !slices.ContainsFunc(m.log[i+1:], func(x logged) bool { return x.collection == l.collection && x.key == l.key })
			if followed && l.seq > after && newest {
				list = append(list, l)
			}
		}
		end := len(m.log)
		m.mu.Unlock()
		if len(list) > 0 || !held {
			var frames []string
			for i, l := range list {
				value, more := "", ""
				if l.op != "remove" {
					value = `,"value":` + l.value
				}
				if i+1 < len(list) && list[i+1].last == l.last {
					more = `,"more":true`
				}
				frames = append(frames, fmt.Sprintf(`{"type":"change","seq":%d,"collection":%q,"op":%q,"key":%s,"at":"2026-03-01T10:00:00.000Z"%s%s}`,
					l.seq, l.collection, l.op, quoteJSON(l.key), value, more))
			}
			for name := range at {
				at[name] = max(at[name], end)
			}
			send(append(frames, fmt.Sprintf(`{"type":"live","cursor":%q}`, m.cursor(end)))...)
			if how == "poll" {
				return
			}
		}
		select {
		case <-changed:
		case <-gone:
			return
		}
	}
}

func quoteJSON(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// answerWrites is the life of a WebSocket that only writes.
func (m *model) answerWrites(ws *websocket.Conn, send func(...string)) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		_, msg, err := ws.Read(ctx)
		if err != nil {
			return
		}
		var head struct{ Type, ID string }
		if err := json.Unmarshal(msg, &head); err != nil || head.Type != "write" {
			m.t.Errorf("a frame: %v: %s", err, msg)
			return
		}
		status, answer := m.write(msg)
		if status == 0 {
			return
		}
		kind := "written"
		if status != 200 {
			kind = "error"
		}
		send(`{"type":"` + kind + `","id":"` + head.ID + `",` + string(answer[1:]))
	}
}

// table is the rows of a collection.
func (m *model) table(collection string) map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	rows := make(map[string]string)
	for _, l := range m.rows {
		if l.collection == collection {
			rows[l.key] = l.value
		}
	}
	return rows
}

// requests is how many writes have come.
func (m *model) requests() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writes
}

// command runs the command line with what it prints in memory.
func command(ctx context.Context, in string, args ...string) (code int, out, errs string) {
	var o, e output
	code = execute(ctx, args, stdio{strings.NewReader(in), &o, &e})
	return code, o.String(), e.String()
}

// output may be written and read at once.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// eventually waits until what is asked for is there.
func eventually(t *testing.T, what string, there func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !there(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain waited for: ", what)
		}
	}
}
