package hub_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// owner is a filter for the rows of somebody.
type owner string

func (o owner) Sees(value string) bool { return strings.Contains(value, `"owner":"`+string(o)+`"`) }
func (o owner) Identity() string       { return "owner " + string(o) }

// of is the grant of somebody who sees and writes their own rows of todos, and all of lists.
func of(name string) hub.Grant {
	g := hub.Grant{Tenant: "acme", Read: []string{"**"}, Write: []string{"**"}, Subject: name}
	g.Filters = []hub.RowFilter{{Pattern: "todos", Filter: owner(name)}}
	return g
}

// watcher is a client that may see the rows of one owner, as a plain client would be
// written, with a conscience: it notes what it should not have been told.
type watcher struct {
	name    string
	cursor  string
	rows    map[string]string
	pending map[string]bool // collections that are being reset
	keep    map[string]string
	session *hub.Session
	began   feed.Seq // what the log had come to when it began from nothing
	exact   bool     // and did, or held nothing, when it connected: else the server can't know what it holds
}

// moment is what a row was from a sequence on: "" for not there.
type stand struct {
	seq   feed.Seq
	owner string
}

// TestWhoSeesSomeRowsGetsTheseAndHearsOfNoOther does random things to rows that move
// between owners, and to the connections of those who may see one owner's only.
func TestWhoSeesSomeRowsGetsTheseAndHearsOfNoOther(t *testing.T) {
	for _, past := range []int{1000, 3} {
		t.Run(fmt.Sprint("past of ", past), func(t *testing.T) {
			defer hub.KeepPast(past)()
			rapid.Check(t, func(t *rapid.T) { rapid.SyncTest(t, whoSees) })
		})
	}
}

func whoSees(t *rapid.T) {
	log := feedtest.NewMemory()
	open := func() *hub.Hub {
		h, err := hub.Open(context.Background(), log, hub.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := open()
	defer func() { h.Drain(context.Background()) }()
	owners := []string{"ann", "bob"}
	past := make(map[string][]stand) // of each row of todos
	rows := make(map[string]string)  // collection and key to value
	note := func(r hub.Result, writes []hub.Write) {
		for i, o := range r.Outcomes {
			name := writes[i].Collection + " " + o.Key
			if writes[i].Op == "remove" {
				if rows[name] == "" {
					continue
				}
				delete(rows, name)
			} else {
				rows[name] = o.Value
			}
			_, who, _ := strings.Cut(rows[name], `"owner":"`)
			who, _, _ = strings.Cut(who, `"`)
			past[name] = append(past[name], stand{o.Seq, who})
		}
	}
	var all []*watcher
	for _, name := range append(owners, owners...) {
		all = append(all, &watcher{name: name, rows: make(map[string]string)})
	}
	// read takes a batch, and tells whether the watcher is live.
	read := func(w *watcher) bool {
		b, err := w.session.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range b.Resets {
			for _, c := range r.Collections {
				if w.pending == nil {
					w.pending, w.keep = make(map[string]bool), make(map[string]string)
				}
				w.pending[c] = true
				if c == "todos" {
					w.began = h.Stats().Head
				}
			}
		}
		for _, i := range b.Items {
			c := wireOf(i)
			name := c.Collection + " " + c.Key
			_, has := w.rows[name]
			if c.Op != "remove" {
				if c.Collection == "todos" && !owner(w.name).Sees(string(c.Value)) {
					t.Fatalf("%s was sent a row of another: %s", w.name, i.Frame)
				}
				w.rows[name] = string(c.Value)
				if w.keep != nil {
					w.keep[name] = string(c.Value)
				}
			} else {
				if c.Collection == "todos" {
					seen := false
					for i, s := range past[name] {
						then := i+1 == len(past[name]) || past[name][i+1].seq > w.began || !w.exact
						seen = seen || s.seq < c.Seq && then && s.owner == w.name
					}
					if !seen {
						t.Fatalf("%s was told of %s, which it never could see", w.name, name)
					}
					if !has && w.pending == nil && w.exact {
						t.Fatalf("%s was told that %s went, which it did not hold: %s", w.name, name, i.Frame)
					}
				}
				delete(w.rows, name)
				delete(w.keep, name)
			}
			if !i.More {
				w.cursor = feed.Cursor{Epoch: b.Cursor.Epoch, Seq: i.Seq}.String()
			}
		}
		if b.Announce {
			for name := range w.rows {
				c, _, _ := strings.Cut(name, " ")
				if _, again := w.keep[name]; w.pending[c] && !again {
					delete(w.rows, name)
				}
			}
			w.pending, w.keep = nil, nil
			w.cursor = b.Cursor.String()
		}
		return b.Live
	}
	connect := func(w *watcher) {
		starts := []feed.Start{{Collection: "todos"}, {Collection: "lists"}}
		if w.cursor != "" {
			starts[0].Cursors, starts[1].Cursors = []string{w.cursor}, []string{w.cursor}
		} else {
			clear(w.rows)
			w.began = h.Stats().Head
		}
		s, err := h.Open(of(w.name), "acme", starts, hub.SessionOptions{Limit: rapid.IntRange(1, 5).Draw(t, "limit")})
		if err != nil {
			t.Fatal(err)
		}
		w.session = s
	}
	drop := func(w *watcher) {
		if w.session != nil {
			w.session.Close()
			w.session = nil
			if w.pending != nil { // it would have to go on with the reset: it starts anew
				w.cursor, w.pending, w.keep = "", nil, nil
			}
		}
	}
	check := func(w *watcher) {
		for !read(w) {
		}
		want := make(map[string]string)
		for name, v := range rows {
			if !strings.HasPrefix(name, "todos ") || owner(w.name).Sees(v) {
				want[name] = v
			}
		}
		if !maps.Equal(w.rows, want) {
			t.Fatalf("%s holds %v, and should hold %v", w.name, w.rows, want)
		}
	}
	defer func() {
		for _, w := range all {
			drop(w)
		}
	}()
	pick := rapid.SampledFrom(all)
	t.Repeat(map[string]func(*rapid.T){
		"write": func(t *rapid.T) {
			var writes []hub.Write
			for range rapid.IntRange(1, 4).Draw(t, "changes") {
				c := rapid.SampledFrom([]string{"todos", "todos", "todos", "lists"}).Draw(t, "collection")
				key := rapid.SampledFrom(strings.Split("abcdefgh", "")).Draw(t, "key")
				if slices.ContainsFunc(writes, func(w hub.Write) bool { return w.Collection == c && w.Key == key }) {
					continue
				}
				if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
					writes = append(writes, remove(c, key))
					continue
				}
				who := rapid.SampledFrom([]string{"ann", "bob", "nobody"}).Draw(t, "owner")
				writes = append(writes, put(c, key, fmt.Sprintf(`{"owner":%q,"n":%d}`, who, rapid.IntRange(0, 9).Draw(t, "n"))))
			}
			r, err := try(h, writes...)
			if err != nil || r.Refused {
				t.Fatal(err, r)
			}
			note(r, writes)
		},
		"read": func(t *rapid.T) {
			w := pick.Draw(t, "who")
			if w.session == nil {
				connect(w)
			}
			// Only where there is something: Next would wait.
			if b := w.cursor; b == "" || b != feedHead(h) {
				read(w)
			}
		},
		"catch up": func(t *rapid.T) {
			w := pick.Draw(t, "who")
			drop(w)
			connect(w)
			check(w)
		},
		"drop":  func(t *rapid.T) { drop(pick.Draw(t, "who")) },
		"again": func(t *rapid.T) { w := pick.Draw(t, "who"); drop(w); w.cursor = "" },
		"restart": func(t *rapid.T) {
			for _, w := range all {
				drop(w)
			}
			h.Drain(context.Background())
			h = open()
		},
	})
	for _, w := range all {
		drop(w)
		connect(w)
		check(w)
	}
}

// feedHead is the cursor of who holds all.
func feedHead(h *hub.Hub) string {
	return feed.Cursor{Epoch: h.Epoch(), Seq: h.Stats().Head}.String()
}

// rowsOf is what a page shows.
func rowsOf(t *testing.T, h *hub.Hub, g hub.Grant, collection string) (all []string) {
	t.Helper()
	after := ""
	for {
		p, err := h.Rows(g, "acme", collection, after, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range p.Rows {
			all = append(all, c.Key()+" "+c.Value())
		}
		if after = p.Next; after == "" {
			slices.SortFunc(all, cmp.Compare[string])
			return all
		}
	}
}

func TestAFilterHoldsForRowsAndForWrites(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	write(t, h, put("todos", "1", `{"owner":"ann"}`), put("todos", "2", `{"owner":"bob","secret":1}`), put("todos", "3", `{"owner":"ann"}`))
	ann := of("ann")
	if got := rowsOf(t, h, ann, "todos"); !slices.Equal(got, []string{`1 {"owner":"ann"}`, `3 {"owner":"ann"}`}) {
		t.Fatalf("ann is shown %v", got)
	}
	if c, err := h.Row(ann, "acme", "todos", "2"); c != nil || err != nil {
		t.Fatalf("ann is shown bob's row: %v, %v", c, err)
	}
	if _, err := h.History(context.Background(), ann, "acme", hub.HistoryQuery{Collections: []string{"todos"}}); code(err) != hub.Forbidden {
		t.Fatalf("the history of a collection of which ann sees some rows: %v", err)
	}
	do := func(w hub.Write) (hub.Outcome, error) {
		r, err := h.Write(context.Background(), ann, hub.Request{Tenant: "acme", Client: "c", Atomic: true, Writes: []hub.Write{w}})
		if err != nil {
			return hub.Outcome{}, err
		}
		return r.Outcomes[0], nil
	}
	seq := feed.Seq(2)
	for name, w := range map[string]hub.Write{
		"put over another's row":    put("todos", "2", `{"owner":"ann"}`),
		"insert over another's row": insert("todos", "2", `{"owner":"ann"}`),
		"give a row away":           modify("todos", "1", `{"owner":"bob"}`),
		"insert another's row":      insert("todos", "9", `{"owner":"bob"}`),
		"put another's row":         put("todos", "1", `{"owner":"bob"}`),
	} {
		if o, err := do(w); code(err) != hub.Forbidden || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
	}
	if o, err := do(modify("todos", "2", `{"x":1}`)); err != nil || o.Status != hub.Missing || o.Value != "" || o.Seq != 0 {
		t.Errorf("another's row is not missing: %+v, %v", o, err)
	}
	w := put("todos", "2", `{"owner":"ann"}`)
	w.If = &seq
	if o, err := do(w); err != nil || o.Status != hub.Conflict || o.Value != "" || o.Seq != 0 {
		t.Errorf("another's row is shown by a conflict: %+v, %v", o, err)
	}
	if o, err := do(remove("todos", "2")); err != nil || o.Status != hub.OK {
		t.Errorf("to remove what is not there must be well: %+v, %v", o, err)
	}
	if c, _ := h.Row(hub.Everything, "acme", "todos", "2"); c == nil {
		t.Error("ann has removed bob's row")
	}
	// What an id did is not shown to who can't see the row.
	write(t, h, as("m1", modify("todos", "2", `{"x":1}`)))
	if o, err := do(as("m1", modify("todos", "2", `{"x":1}`))); err != nil || strings.Contains(o.Value, "secret") {
		t.Errorf("another's row is shown by its id: %+v, %v", o, err)
	}
}

func TestWhoMayOnlyWriteIsShownNoRow(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	write(t, h, put("todos", "1", `{"secret":1}`))
	g := hub.Grant{Tenant: "acme", Write: []string{"**"}}
	for _, w := range []hub.Write{insert("todos", "1", `{}`), modify("todos", "1", `{"x":1}`)} {
		r, err := h.Write(context.Background(), g, hub.Request{Tenant: "acme", Atomic: true, Writes: []hub.Write{w}})
		if err != nil || r.Outcomes[0].Value != "" {
			t.Errorf("%s: %+v, %v", w.Op, r, err)
		}
	}
}

func TestManyWithTheSameFilterAskItOnceForEachChange(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	asked := 0
	g := of("ann")
	g.Filters[0].Filter = counted{owner("ann"), &asked}
	var sessions []*hub.Session
	for range 50 {
		s, err := h.Open(g, "acme", []feed.Start{{Collection: "todos"}}, hub.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		sessions = append(sessions, s)
	}
	// At the tail, where each change is news to everybody.
	for _, w := range []hub.Write{put("todos", "1", `{"owner":"ann"}`), put("todos", "2", `{"owner":"bob"}`), put("todos", "1", `{"owner":"bob"}`)} {
		seq := write(t, h, w).Cursor.Seq
		for _, s := range sessions {
			for seq != 2 { // which nobody hears of
				b, err := s.Next(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if b.Live && b.Cursor.Seq >= seq {
					break
				}
			}
		}
	}
	if asked == 0 || asked > 4 {
		t.Errorf("50 sessions asked the filter %d times about 3 changes", asked)
	}
}

type counted struct {
	owner
	n *int
}

func (c counted) Sees(value string) bool { *c.n++; return c.owner.Sees(value) }

// code is a refusal's.
func code(err error) hub.Code {
	var r *hub.Refusal
	if errors.As(err, &r) {
		return r.Code
	}
	return ""
}

func TestWhoComesLaterHearsNothingOfWhatWentOutOfSightBefore(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	start := func() *hub.Session {
		s, err := h.Open(of("ann"), "acme", []feed.Start{{Collection: "todos"}}, hub.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	first := start() // from now on it is known what changes replace
	if b, err := first.Next(context.Background()); err != nil || !b.Live {
		t.Fatal(b, err)
	}
	write(t, h, put("todos", "1", `{"owner":"ann"}`))
	write(t, h, put("todos", "1", `{"owner":"bob"}`))
	write(t, h, put("todos", "2", `{"owner":"bob"}`))
	write(t, h, put("todos", "2", `{"owner":"ann"}`))
	for s, want := range map[*hub.Session]string{first: "remove 1, insert 2", start(): "modify 2"} {
		var got []string
		for live := false; !live; {
			b, err := s.Next(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range b.Items {
				c := wireOf(i)
				got = append(got, c.Op+" "+c.Key)
			}
			live = b.Live
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("got %s, want %s", text, want)
		}
	}
}

func TestNobodyLearnsOfARowOutOfSightByTheAnswerToAWrite(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	write(t, h, as("m1", put("salaries", "bob@example.com", `{}`)))
	write(t, h, as("m2", put("todos", "1", `{"owner":"bob"}`)))
	write(t, h, put("todos", "2", `{"owner":"bob"}`))
	ann := of("ann")
	ann.Read, ann.Write = []string{"todos"}, []string{"todos"}
	do := func(w hub.Write) hub.Result {
		r, err := h.Write(context.Background(), ann, hub.Request{Tenant: "acme", Client: "c", Writes: []hub.Write{w}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, id := range []string{"m1", "m2"} {
		if o := do(as(id, insert("todos", "", `{"owner":"ann"}`))).Outcomes[0]; o.Status != hub.IDReused || o.Key != "" || o.Seq != 0 {
			t.Errorf("an id that another row came under tells which: %+v", o)
		}
	}
	none := do(remove("todos", "none"))
	if r := do(remove("todos", "1")); r.Cursor != none.Cursor {
		t.Errorf("the answer for a hidden row, %s, is not that for none, %s", r.Cursor, none.Cursor)
	}
	none = do(modify("todos", "none", `{}`))
	if r := do(modify("todos", "1", `{}`)); r.Cursor != none.Cursor {
		t.Errorf("the answer for a hidden row, %s, is not that for none, %s", r.Cursor, none.Cursor)
	}
}

func TestWhoFollowsTwoCollectionsByOneFilterCostsLittleMore(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what others have left in pools goes with the second
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const n = 500
	before := heap()
	for i := range n {
		g := of(fmt.Sprint(i))
		g.Filters[0].Pattern = "**"
		s, err := h.Open(g, "acme", []feed.Start{{Collection: "todos"}, {Collection: "lists"}}, hub.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
	}
	if each := (heap() - before) / n; each > 4<<10 {
		t.Errorf("each takes %d bytes", each)
	}
}

// stuck is a filter that takes until it is released.
type stuck struct {
	owner
	asked, release chan struct{}
	once           *sync.Once
}

func (s stuck) Sees(value string) bool {
	s.once.Do(func() { close(s.asked) })
	<-s.release
	return s.owner.Sees(value)
}

func TestNobodyElseWaitsToWriteWhileAFilterTakesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, feedtest.NewMemory(), hub.Options{})
		write(t, h, put("todos", "1", `{"owner":"bob"}`))
		for name, w := range map[string]hub.Write{"a row that is there": modify("todos", "1", `{}`), "a new row": put("todos", "2", `{"owner":"ann"}`)} {
			slow := stuck{"ann", make(chan struct{}), make(chan struct{}), new(sync.Once)}
			g := of("ann")
			g.Filters[0].Filter = slow
			done := make(chan error, 1)
			go func() {
				_, err := h.Write(context.Background(), g, hub.Request{Tenant: "acme", Writes: []hub.Write{w}})
				done <- err
			}()
			<-slow.asked
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, err := h.Write(ctx, hub.Everything, hub.Request{Tenant: "globex", Writes: []hub.Write{put("todos", "1", `{}`)}})
			if cancel(); err != nil {
				t.Errorf("%s: another tenant's write: %v", name, err)
			}
			close(slow.release)
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// long is a filter that takes 10 ms.
type long struct{ owner }

func (l long) Sees(value string) bool {
	time.Sleep(10 * time.Millisecond)
	return l.owner.Sees(value)
}

func TestNobodyElseWaitsToWriteWhileAFilterIsAskedAboutManyChanges(t *testing.T) {
	const most = 100
	for name, w := range map[string]func(i int) hub.Write{
		"patches":            func(i int) hub.Write { return modify("todos", fmt.Sprint(i), `{"done":true}`) },
		"patches of one row": func(i int) hub.Write { return modify("todos", "0", fmt.Sprintf(`{"n":%d}`, i)) },
		"puts":               func(i int) hub.Write { return put("todos", fmt.Sprint(i), `{"owner":"ann"}`) },
	} {
		for _, atOnce := range []int{1, 3} {
			t.Run(fmt.Sprint(name, " by ", atOnce), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { others(t, atOnce, most, w) })
			})
		}
	}
}

// others has so many requests of slow changes written at once, and somebody else write meanwhile.
func others(t *testing.T, atOnce, most int, w func(i int) hub.Write) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	var first, all []hub.Write
	for i := range most {
		first, all = append(first, put("todos", fmt.Sprint(i), `{"owner":"ann"}`)), append(all, w(i))
	}
	write(t, h, first...)
	g := of("ann")
	g.Filters[0].Filter = long{"ann"}
	done := make(chan error, atOnce)
	for range atOnce {
		go func() {
			_, err := h.Write(context.Background(), g, hub.Request{Tenant: "acme", Writes: all})
			done <- err
		}()
	}
	written := 0
	for left := atOnce; left > 0; {
		began := time.Now()
		write(t, h, put("lists", "1", `{}`))
		if took := time.Since(began); took > 250*time.Millisecond { // what is spent on each of them, and a row more
			t.Errorf("another's write waited for %v", took)
		}
		select {
		case err := <-done:
			var refusal *hub.Refusal
			if left--; err == nil {
				written++
			} else if !errors.As(err, &refusal) || refusal.Code != hub.Unavailable || refusal.Retry == 0 {
				t.Error(err)
			}
		default:
			time.Sleep(time.Millisecond)
		}
	}
	if written == 0 {
		t.Error("none was written")
	}
}

// late is a filter that takes 2 ms of a processor.
type late struct {
	owner
	asked *atomic.Int64
	first chan struct{}
}

func (l late) Sees(value string) bool {
	if l.asked.Add(1) == 1 {
		close(l.first)
	}
	for began := time.Now(); time.Since(began) < 2*time.Millisecond; {
	}
	return l.owner.Sees(value)
}

func TestWhoWritesDoesNotWaitUntilAllRowsAreGoneOverBySlowFilters(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	var all []hub.Write
	const most = 300
	for i := range most {
		all = append(all, put("todos", fmt.Sprint(i), `{"owner":"bob"}`))
	}
	if _, err := h.Write(t.Context(), hub.Everything, hub.Request{Tenant: "acme", Writes: all}); err != nil {
		t.Fatal(err)
	}
	g := of("ann")
	slow := late{"ann", new(atomic.Int64), make(chan struct{})}
	g.Filters[0].Filter = slow
	s := follow(t, h, g)
	live := make(chan error, 1)
	go func() {
		_, err := s.Next(context.Background())
		live <- err
	}()
	<-slow.first
	write(t, h, put("lists", "1", `{}`))
	if n := slow.asked.Load(); n > most/2 {
		t.Errorf("a write waited until %d of %d rows were gone over", n, most)
	}
	if err := <-live; err != nil {
		t.Fatal(err)
	}
}

// moved is somebody who followed todos as one of the red team, up to a cursor, and is one of the blue one now.
func moved(t *testing.T) (h *hub.Hub, red, blue hub.Grant, s *hub.Session, cursor string) {
	t.Helper()
	h = open(t, feedtest.NewMemory(), hub.Options{})
	write(t, h, put("todos", "1", `{"owner":"red"}`), put("todos", "2", `{"owner":"blue"}`))
	red, blue = of("red"), of("blue")
	red.Subject, blue.Subject = "ada", "ada"
	s = follow(t, h, red)
	b, err := s.Next(t.Context())
	if err != nil || len(b.Items) != 1 || !b.Live {
		t.Fatal(b, err)
	}
	return h, red, blue, s, b.Cursor.String()
}

func TestWhoComesBackWithACredentialThatSeesOtherRowsHoldsTheseInTheEnd(t *testing.T) {
	h, _, blue, s, cursor := moved(t)
	s.Close()
	s, err := h.Open(blue, "acme", []feed.Start{{Collection: "todos", Cursors: []string{cursor}}}, hub.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if b, err := s.Next(t.Context()); err != nil || len(b.Resets) != 1 || len(b.Items) != 1 {
		t.Errorf("she keeps what she may not see any more, and is not shown what she may: %+v, %v", b, err)
	}
}

// tallied is a filter that counts how often it is asked.
type tallied struct {
	owner
	n *atomic.Int64
}

func (c tallied) Sees(value string) bool { c.n.Add(1); return c.owner.Sees(value) }

func TestARowThatARequestItselfWroteIsAskedForOnce(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	c := tallied{"ann", new(atomic.Int64)}
	g := of("ann")
	g.Filters[0].Filter = c
	writes := []hub.Write{put("todos", "1", `{"owner":"ann","text":"`+strings.Repeat("x", 900<<10)+`"}`)}
	for range 199 {
		writes = append(writes, insert("todos", "1", `{"owner":"ann"}`))
	}
	if _, err := h.Write(t.Context(), g, hub.Request{Tenant: "acme", Writes: writes}); err != nil {
		t.Fatal(err)
	}
	// look asks for each value once: 200 times. What is more, the writer asked.
	if n := c.n.Load() - 200; n > 2 {
		t.Errorf("the writer asked %d times for one row of 900 KiB", n)
	}
}
