package hub_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// TestEveryFollowerEndsUpWithTheRowsThatAPlainMapHas does random things to a hub, to its
// log and to the connections of its followers, and holds all that comes out against a
// model that is nothing but maps.
func TestEveryFollowerEndsUpWithTheRowsThatAPlainMapHas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			w := newWorld(t)
			defer w.stop()
			actions := map[string]func(*rapid.T){
				"write":     w.write,
				"write 2":   w.write, // more often than the others
				"write 3":   w.write,
				"burst":     w.burst,
				"follow":    w.follow,
				"read":      w.read,
				"read 2":    w.read,
				"catch up":  w.catchUp,
				"drop":      w.drop,
				"resume":    w.resume,
				"subscribe": w.subscribe,
				"wait":      w.wait,
				"restart":   w.restart,
				"forget":    w.forget,
				"lose":      w.lose,
			}
			for name, act := range actions {
				actions[name] = func(t *rapid.T) { w.settle(t); act(t) }
			}
			t.Repeat(actions)
			w.settle(t)
			// In the end everybody comes back and sees the same.
			for _, f := range w.followers {
				if f.session == nil {
					w.connect(t, f)
				}
				w.readAll(t, f)
			}
		})
	})
}

const (
	aStep      = 100 * time.Second
	idWindow   = 250 * time.Second
	tombWindow = 450 * time.Second
)

var (
	tenants     = []string{"acme", "other"}
	collections = []string{"todos", "lists/1", "lists/2"}
)

type (
	modelKey struct{ tenant, collection, key string }
	modelRow struct {
		seq     feed.Seq
		value   string
		expires int64 // 0: never
	}
	modelID struct{ tenant, client, id string }
	seen    struct {
		body    string
		outcome hub.Outcome
		age     int64
	}
	moment struct {
		seq feed.Seq
		age int64
	}
)

// model is what the hub should be.
type model struct {
	next feed.Seq
	rows map[modelKey]modelRow
	ids  map[modelID]seen
	last map[feed.Seq]feed.Seq // of each change: the last of its transaction
	// newest is the newest change of each key, removes too; gone has all removes.
	newest map[modelKey]moment
	gone   map[string][]moment
	forgot int64 // tombstones below this age are forgotten
	// dropped is the last sequence at which a tenant was forgotten, floors those before which
	// nobody can resume: what dropped was when the tenant was first written to.
	dropped feed.Seq
	floors  map[string]feed.Seq
}

func newModel() *model {
	return &model{next: 1, rows: make(map[modelKey]modelRow), ids: make(map[modelID]seen), last: make(map[feed.Seq]feed.Seq),
		newest: make(map[modelKey]moment), gone: make(map[string][]moment), floors: make(map[string]feed.Seq)}
}

func (m *model) clone() *model {
	c := *m
	c.rows, c.ids, c.last, c.newest, c.gone = maps.Clone(m.rows), maps.Clone(m.ids), maps.Clone(m.last), maps.Clone(m.newest), maps.Clone(m.gone)
	c.floors = maps.Clone(m.floors)
	return &c
}

// drop forgets a tenant: a change of its own in the log.
func (m *model) drop(tenant string) {
	m.dropped = m.next
	m.next++
	maps.DeleteFunc(m.rows, func(k modelKey, _ modelRow) bool { return k.tenant == tenant })
	maps.DeleteFunc(m.ids, func(k modelID, _ seen) bool { return k.tenant == tenant })
	maps.DeleteFunc(m.newest, func(k modelKey, _ moment) bool { return k.tenant == tenant })
	delete(m.gone, tenant)
	delete(m.floors, tenant)
}

// floor is the sequence before which nobody can resume in a tenant, because it, or before
// it was there another, was forgotten.
func (m *model) floor(tenant string) feed.Seq {
	if floor, there := m.floors[tenant]; there {
		return floor
	}
	return m.dropped
}

// same tells whether two values are equal as JSON.
func same(t *rapid.T, a, b string) bool {
	if a == "" || b == "" {
		return a == b
	}
	return reflect.DeepEqual(value(t, a), value(t, b))
}

// removes tells whether a transaction is what the hub does by itself to a row that is due.
func removes(x feed.Transaction) bool {
	return x.Client == "" && len(x.Records) == 1 && x.Records[0].Op == feed.Remove && x.Records[0].ID == ""
}

// expired is how many transactions of a group, at its beginning, remove what is due.
func (m *model) expired(g *feed.Group) (n int) {
	for _, x := range g.Transactions {
		if !removes(x) {
			break
		}
		row, there := m.rows[modelKey{x.Tenant, x.Records[0].Collection, x.Records[0].Key}]
		if !there || row.expires == 0 || row.expires > g.Steady {
			break
		}
		n++
	}
	return n
}

// fold does to the model what a group of the log does beside the requests in it, which
// are done in the middle.
func (m *model) fold(t *rapid.T, g *feed.Group, most int, requests func(feed.Times)) {
	n := m.expired(g)
	for _, x := range g.Transactions[:n] {
		key, now := modelKey{x.Tenant, x.Records[0].Collection, x.Records[0].Key}, moment{m.next, g.Age}
		delete(m.rows, key)
		m.newest[key], m.last[m.next] = now, m.next
		m.gone[x.Tenant] = append(slices.Clip(m.gone[x.Tenant]), now)
		m.next++
	}
	for key, row := range m.rows {
		if row.expires != 0 && row.expires <= g.Steady && len(g.Transactions) > 0 {
			t.Fatalf("at %d, %v was decided about though it was due at %d", g.Steady, key, row.expires)
		}
	}
	if requests != nil {
		requests(g.Times)
	} else if n < len(g.Transactions) {
		t.Fatalf("nobody wrote %+v", g.Transactions[n:])
	}
	if g.ForgetIDs > g.Age-idWindow.Milliseconds() || g.ForgetTombstones > g.Age-tombWindow.Milliseconds() {
		t.Fatalf("too much is forgotten at age %d: %d, %d", g.Age, g.ForgetIDs, g.ForgetTombstones)
	}
	m.forgot = max(m.forgot, g.ForgetTombstones)
	maps.DeleteFunc(m.ids, func(_ modelID, s seen) bool { return s.age < g.ForgetIDs })
	floors := make(map[string]feed.Seq)
	for _, f := range g.ForgetIDsOf {
		floors[f.Tenant] = f.Seq
	}
	maps.DeleteFunc(m.ids, func(id modelID, s seen) bool { return s.outcome.Seq <= floors[id.tenant] })
	for _, tenant := range tenants {
		added, held := 0, 0
		for _, x := range g.Transactions {
			for _, r := range x.Records {
				if x.Tenant == tenant && r.ID != "" {
					added++
				}
			}
		}
		for id := range m.ids {
			if id.tenant == tenant {
				held++
			}
		}
		if _, forgets := floors[tenant]; added > 0 && held > max(most, added) || forgets && held != max(most, added) {
			t.Fatalf("%d ids of %s are remembered, of which %d came with the group; it should be %d", held, tenant, added, most)
		}
	}
}

// apply does a request to the model, and holds the hub's answer against what it did.
func (m *model) apply(t *rapid.T, r hub.Request, got hub.Result, now feed.Times) {
	tried := m.clone()
	refused := false
	want := make([]hub.Outcome, len(r.Writes))
	var seqs []feed.Seq
	for i, w := range r.Writes {
		var logged bool
		want[i], logged = tried.one(t, r, w, got.Outcomes[i], now)
		if logged {
			seqs = append(seqs, want[i].Seq)
		}
		refused = refused || r.Atomic && want[i].Status != hub.OK && want[i].Status != hub.Duplicate
	}
	if refused {
		for i := range want {
			if o := &want[i]; o.Status == hub.OK || o.Status == hub.Duplicate {
				*o = hub.Outcome{ID: o.ID, Status: hub.Aborted}
			} else {
				row := m.rows[modelKey{r.Tenant, r.Writes[i].Collection, o.Key}]
				o.Seq, o.Value = row.seq, row.value
			}
		}
	} else {
		for _, seq := range seqs {
			tried.last[seq] = seq
			if r.Atomic {
				tried.last[seq] = seqs[len(seqs)-1]
			}
		}
		*m = *tried
	}
	if got.Refused != refused {
		t.Fatalf("%+v: refused %v instead of %v: %+v", r, got.Refused, refused, got.Outcomes)
	}
	for i, o := range got.Outcomes {
		w := want[i]
		if o.ID != w.ID || o.Status != w.Status || o.Key != w.Key && !strings.HasPrefix(w.Key, unknownKey) || o.Seq != w.Seq || !same(t, o.Value, w.Value) {
			t.Fatalf("%+v\n  got  %+v\n  want %+v", r.Writes[i], o, w)
		}
	}
	if !refused && (got.Cursor.Seq >= m.next || slices.ContainsFunc(got.Outcomes, func(o hub.Outcome) bool {
		return o.Status == hub.OK && o.Value != "" && o.Seq > got.Cursor.Seq
	})) {
		t.Fatalf("cursor %d of %+v, with %d the next", got.Cursor.Seq, got.Outcomes, m.next)
	}
}

// unknownKey begins the keys that the hub made for what it aborted then.
const unknownKey = "made "

func (m *model) one(t *rapid.T, r hub.Request, w hub.Write, got hub.Outcome, times feed.Times) (o hub.Outcome, logged bool) {
	o.ID = w.ID
	id := modelID{r.Tenant, r.Client, w.ID}
	body := fmt.Sprintf("%s %s %q %s %s %v %v", w.Op, w.Collection, w.Key, w.Value, w.Patch, w.TTL, w.If != nil)
	if w.If != nil {
		body += fmt.Sprint(*w.If)
	}
	if s, ok := m.ids[id]; ok && w.ID != "" {
		if s.body == body {
			o = s.outcome
			o.Status = hub.Duplicate
			return o, false
		}
		o.Status, o.Key = hub.IDReused, w.Key
		if _, rest, _ := strings.Cut(s.body, " "); o.Key == "" && strings.HasPrefix(rest, w.Collection+" ") {
			o.Key = s.outcome.Key
		}
		row := m.rows[modelKey{r.Tenant, w.Collection, o.Key}]
		o.Seq, o.Value = row.seq, row.value
		return o, false
	}
	if o.Key = w.Key; o.Key == "" {
		if o.Key = got.Key; got.Status == hub.Aborted {
			o.Key = fmt.Sprint(unknownKey, m.next)
		} else if len(o.Key) != 36 {
			t.Fatalf("the key that was made is %q", o.Key)
		}
	}
	key := modelKey{r.Tenant, w.Collection, o.Key}
	row, there := m.rows[key]
	o.Seq, o.Value = row.seq, row.value
	if w.If != nil && *w.If != row.seq {
		o.Status = hub.Conflict
		return o, false
	}
	value := string(w.Value)
	switch {
	case w.Op == "insert" && there:
		o.Status = hub.Exists
		return o, false
	case w.Op == "modify" && !there:
		o.Status = hub.Missing
		return o, false
	case w.Patch != nil:
		value = patched(t, row.value, string(w.Patch))
	case w.Op == "remove" && !there && w.ID == "":
		o.Status, o.Seq = hub.OK, m.next-1
		return o, false
	}
	o.Status, o.Seq, o.Value = hub.OK, m.next, value
	m.next++
	m.floors[r.Tenant] = m.floor(r.Tenant)
	now := moment{o.Seq, times.Age}
	expires := int64(0)
	if w.TTL > 0 {
		expires = times.Steady + w.TTL.Milliseconds()
	} else if w.Op == "modify" {
		expires = row.expires
	}
	switch {
	case w.Op != "remove":
		m.rows[key], m.newest[key] = modelRow{o.Seq, value, expires}, now
	case there:
		delete(m.rows, key)
		m.newest[key] = now
		m.gone[r.Tenant] = append(slices.Clip(m.gone[r.Tenant]), now)
	}
	if w.ID != "" {
		m.ids[id] = seen{body, o, times.Age}
	}
	return o, true
}

func patched(t *rapid.T, target, patch string) string {
	b, err := json.Marshal(merged(value(t, target), value(t, patch)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// world is a hub, the model of it, and who follows it.
type world struct {
	log       *feedtest.Memory
	hub       *hub.Hub
	opts      hub.Options
	model     *model
	followers []*follower
	sent      []hub.Request
	epochs    []feed.Epoch

	mu     sync.Mutex
	faults []error       // guarded by mu: what the next appends come to
	busy   chan struct{} // guarded by mu: the next append waits until it is closed
	stored []*feed.Group // guarded by mu: what the model was not told of
	last   feed.Times    // guarded by mu: of the last group that was stored
	at     feed.Position // guarded by mu: its position
	tried  []byte        // guarded by mu: the last group that came
	age    int64         // guarded by mu: of the log when the hub was opened
	opened time.Time     // guarded by mu
	wrong  string        // guarded by mu: a group told the wrong time
}

// plan says what the next appends come to, and returns what was planned and not used.
func (w *world) plan(faults []error, busy chan struct{}) (unused []error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	unused, w.faults, w.busy = w.faults, faults, busy
	return unused
}

func (w *world) append(_ feed.Position, group []byte) error {
	g, _, err := feed.DecodeGroup(group)
	if err != nil {
		return err
	}
	w.mu.Lock()
	if age := w.age + time.Since(w.opened).Milliseconds(); !slices.Equal(group, w.tried) && (g.Age != age || g.Steady != time.Now().UnixMilli()) {
		w.wrong = fmt.Sprintf("a group says %+v at age %d", g.Times, age)
	}
	w.tried = slices.Clone(group)
	var busy chan struct{}
	// What is forgotten, and removed because it is due, comes whenever it comes.
	if slices.ContainsFunc(g.Transactions, func(x feed.Transaction) bool { return !removes(x) }) {
		busy, w.busy = w.busy, nil
		if busy == nil && len(w.faults) > 0 {
			err, w.faults = w.faults[0], w.faults[1:]
		}
	}
	w.mu.Unlock()
	if busy != nil {
		<-busy
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if (err == nil || errors.Is(err, feedtest.ErrStored)) && g.Position > w.at {
		w.at, w.last, w.stored = g.Position, g.Times, append(w.stored, g)
	}
	return err
}

// pull is the groups that were stored since it was called before.
func (w *world) pull(t *rapid.T) []*feed.Group {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wrong != "" {
		t.Fatal(w.wrong)
	}
	groups := w.stored
	w.stored = nil
	return groups
}

// settle lets everything come to rest, and tells the model what the hub did by itself.
func (w *world) settle(t *rapid.T) {
	synctest.Wait()
	w.done(t)
}

// done tells the model what became of requests: each of the batches had a group, unless
// there was nothing to log of it.
func (w *world) done(t *rapid.T, batches ...func(feed.Times)) {
	for _, g := range w.pull(t) {
		var batch func(feed.Times)
		if w.model.expired(g) < len(g.Transactions) && len(batches) > 0 {
			batch, batches = batches[0], batches[1:]
		}
		w.model.fold(t, g, w.opts.IDCount, batch)
	}
	for _, batch := range batches {
		batch(feed.Times{})
	}
}

func newWorld(t *rapid.T) *world {
	w := &world{opts: hub.Options{Tombstones: tombWindow, IDs: idWindow, Log: rapid.Int64Range(1, 20_000).Draw(t, "log"),
		IDCount: rapid.SampledFrom([]int{3, 10, 1000}).Draw(t, "ids")}}
	w.lose(t)
	return w
}

// lose begins again with an empty log, as after a disk that is gone.
func (w *world) lose(t *rapid.T) {
	if w.hub != nil && rapid.IntRange(0, 9).Draw(t, "really") > 0 {
		t.Skip()
	}
	w.stop()
	w.log, w.model, w.sent = feedtest.NewMemory(), newModel(), nil
	w.epochs = append(w.epochs, w.log.Epoch())
	w.log.OnAppend = w.append
	w.mu.Lock()
	w.stored, w.at = nil, 0
	w.mu.Unlock()
	w.open(t)
}

func (w *world) open(t *rapid.T) {
	w.mu.Lock()
	if w.at == 0 {
		w.last.Age = time.Now().UnixMilli()
	}
	w.age, w.opened = w.last.Age, time.Now()
	w.mu.Unlock()
	h, err := hub.Open(context.Background(), w.log, w.opts)
	if err != nil {
		t.Fatal(err)
	}
	w.hub = h
}

func (w *world) stop() {
	for _, f := range w.followers {
		f.close()
	}
	if w.hub != nil {
		w.hub.Drain(context.Background())
	}
}

// restart reads the log back: nothing may be different.
func (w *world) restart(t *rapid.T) {
	for _, f := range w.followers {
		f.close()
	}
	before, stats := w.dump(t), w.hub.Stats()
	w.hub.Drain(context.Background())
	w.open(t)
	after := w.hub.Stats()
	if got := w.dump(t); got != before {
		t.Fatalf("before the restart\n%s\nafter it\n%s", before, got)
	}
	if after.Head != stats.Head || after.Rows != stats.Rows || after.Bytes != stats.Bytes || after.Head != w.model.next-1 || int(after.Rows) != len(w.model.rows) {
		t.Fatalf("before the restart %+v, after it %+v, the model has %d rows and is before %d", stats, after, len(w.model.rows), w.model.next)
	}
}

// dump is what each collection says to a reader from the beginning, and below which
// cursor it would have to begin anew.
func (w *world) dump(t *rapid.T) string {
	var b strings.Builder
	for _, tenant := range tenants {
		for _, collection := range collections {
			first := func(cursors ...string) *feed.Batch {
				s, err := w.hub.Open(hub.Everything, tenant, []feed.Start{{Collection: collection, Cursors: cursors}}, hub.SessionOptions{})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				batch, err := s.Next(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				return batch
			}
			fmt.Fprintln(&b, tenant, collection)
			for _, i := range first().Items {
				fmt.Fprintf(&b, "%s\n", i.Append(nil))
			}
			head := int(w.model.next - 1)
			floor := 1
			for low, high := 1, head; low <= high; {
				floor = (low + high) / 2
				if len(first(feed.Cursor{Epoch: w.log.Epoch(), Seq: feed.Seq(floor)}.String()).Resets) > 0 {
					low = floor + 1
				} else {
					high = floor - 1
				}
				floor = low
			}
			fmt.Fprintln(&b, "from", floor)
		}
	}
	return b.String()
}

// forget forgets a tenant. Its followers are told that it is over, and nothing after that.
func (w *world) forget(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "really") > 0 {
		t.Skip()
	}
	tenant := rapid.SampledFrom(tenants).Draw(t, "tenant")
	want := 0
	for key := range w.model.rows {
		if key.tenant == tenant {
			want++
		}
	}
	rewrite, fails := asItIs, rapid.Bool().Draw(t, "the log stays") // a restart then reads the step itself
	if fails {
		rewrite = func(context.Context, func(context.Context) error) error { return errDefinite }
	}
	gone, err := w.hub.Forget(context.Background(), root, tenant, rewrite)
	if fails != errors.Is(err, errDefinite) || !fails && err != nil || int(gone.Rows) != want {
		t.Fatalf("%+v, %v; it had %d rows", gone, err, want)
	}
	w.done(t, func(feed.Times) { w.model.drop(tenant) })
	for _, f := range w.followers {
		if f.session == nil || f.tenant != tenant {
			continue
		}
		b, err := f.next(context.Background())
		for err == nil && (f.parks || len(b.Items)+len(b.Resets) == 0 && !b.Live) { // what came before, or the answers to what it asked for
			_, err = f.next(context.Background())
		}
		if end := (*hub.Ended)(nil); !errors.As(err, &end) || end.Reason != hub.EndEvicted || end.Detail == "" || end.Retry == 0 {
			t.Fatalf("a follower of what was forgotten is told %+v, %v", b, err)
		}
		f.close()
	}
}

func (w *world) wait(t *rapid.T) {
	time.Sleep(aStep) // of the bubble
	w.settle(t)
	for key, row := range w.model.rows {
		if row.expires != 0 && row.expires <= time.Now().UnixMilli() {
			t.Fatalf("%v is due since %d and still there", key, row.expires)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, s := range w.model.ids {
		if most := idWindow + idWindow/20; s.age < w.age+(time.Since(w.opened)-most).Milliseconds() && time.Since(w.opened) > aStep {
			t.Fatalf("%v of age %d is still remembered", id, s.age)
		}
	}
}

// request draws a request; sometimes one that was sent before.
func (w *world) request(t *rapid.T) hub.Request {
	if len(w.sent) > 0 && rapid.IntRange(0, 4).Draw(t, "again") == 0 {
		return rapid.SampledFrom(w.sent).Draw(t, "request")
	}
	r := hub.Request{
		Tenant: rapid.SampledFrom(tenants).Draw(t, "tenant"),
		Client: rapid.SampledFrom([]string{"", "c"}).Draw(t, "client"),
		Atomic: rapid.Bool().Draw(t, "atomic"),
	}
	for range rapid.IntRange(1, 4).Draw(t, "n") {
		c := hub.Write{
			Op:         rapid.SampledFrom([]string{"insert", "put", "put", "modify", "remove"}).Draw(t, "op"),
			Collection: rapid.SampledFrom(collections).Draw(t, "collection"),
			Key:        rapid.SampledFrom([]string{"a", "b", `"`, "d"}).Draw(t, "key"),
		}
		if rapid.Bool().Draw(t, "has id") {
			c.ID = fmt.Sprint(rapid.IntRange(0, 30).Draw(t, "id"))
		}
		v := []byte(fmt.Sprintf(`{"n":%d}`, rapid.IntRange(0, 9).Draw(t, "value")))
		switch {
		case c.Op == "modify" && rapid.Bool().Draw(t, "patch"):
			c.Patch = []byte(rapid.SampledFrom([]string{`{"p":{"x":1}}`, `{"p":{"x":null,"y":2}}`, `{"n":null}`}).Draw(t, "patch of"))
		case c.Op != "remove":
			c.Value = v
		}
		if c.Op == "insert" && rapid.IntRange(0, 9).Draw(t, "make key") == 0 {
			c.Key = ""
		}
		if c.Op != "remove" && rapid.IntRange(0, 2).Draw(t, "has ttl") == 0 {
			c.TTL = rapid.SampledFrom([]time.Duration{time.Second, 50 * time.Second, 150 * time.Second}).Draw(t, "ttl")
		}
		if rapid.IntRange(0, 4).Draw(t, "has if") == 0 {
			seq := feed.Seq(rapid.IntRange(0, int(w.model.next)).Draw(t, "if"))
			if row, ok := w.model.rows[modelKey{r.Tenant, c.Collection, c.Key}]; ok && rapid.Bool().Draw(t, "right if") {
				seq = row.seq
			}
			c.If = &seq
		}
		r.Writes = append(r.Writes, c)
	}
	w.sent = append(w.sent, r)
	return r
}

var errDefinite = errors.New("the disk is full")

// fault draws what the next append comes to; lost tells that it does not happen.
func (w *world) fault(t *rapid.T) (faults []error, lost bool) {
	switch rapid.IntRange(0, 19).Draw(t, "fault") {
	case 0:
		return []error{feedtest.ErrStored}, false
	case 1:
		return []error{feed.ErrUnknown}, false
	case 2:
		return []error{feed.ErrUnknown, errDefinite, feedtest.ErrStored}, false
	case 3:
		return []error{errDefinite}, true
	}
	return nil, false
}

func (w *world) write(t *rapid.T) {
	r := w.request(t)
	faults, lost := w.fault(t)
	w.plan(faults, nil)
	got, err := w.hub.Write(context.Background(), hub.Everything, r)
	if unused := w.plan(nil, nil); err != nil && lost && len(unused) == 0 {
		w.done(t)
		return
	}
	if err != nil {
		t.Fatalf("%+v: %v", r, err)
	}
	w.done(t, func(now feed.Times) { w.model.apply(t, r, got, now) })
}

// burst sends several requests while the log is busy, so that they come into one group.
func (w *world) burst(t *rapid.T) {
	faults, lost := w.fault(t)
	busy := make(chan struct{})
	w.plan(faults, busy)
	var pending []*hub.Pending
	first := hub.Request{Tenant: "acme", Writes: []hub.Write{put("todos", "a", `{}`)}}
	requests := []hub.Request{first}
	for range rapid.IntRange(1, 5).Draw(t, "requests") {
		requests = append(requests, w.request(t))
	}
	for i, r := range requests {
		p, err := w.hub.Begin(hub.Everything, r)
		if err != nil {
			t.Fatal(err)
		}
		if pending = append(pending, p); i == 0 {
			synctest.Wait() // it is being appended
		}
	}
	close(busy)
	results := make([]hub.Result, len(pending))
	failed := 0
	for i, p := range pending {
		var err error
		if results[i], err = p.Wait(context.Background()); err != nil {
			if failed++; !lost || i == 0 {
				t.Fatal(err)
			}
		}
	}
	// Nothing of the group happened, so nobody in it may have been told anything else.
	if failed > 0 && failed != len(requests)-1 {
		t.Fatalf("%d of %d requests of one group failed", failed, len(requests)-1)
	}
	w.plan(nil, nil)
	w.done(t, func(now feed.Times) { w.model.apply(t, first, results[0], now) }, func(now feed.Times) {
		for i := 1; i < len(requests) && failed == 0; i++ {
			w.model.apply(t, requests[i], results[i], now)
		}
	})
}

// follower is a client that keeps the rules of the protocol.
type follower struct {
	tenant      string
	collections []string
	// single: it keeps one cursor, as an EventSource does. Else one for each collection,
	// and it subscribes and unsubscribes.
	single bool
	limit  int
	parks  bool // its session is parked where it can be

	epoch   feed.Epoch
	last    string              // the one cursor
	at      map[string]feed.Seq // those of each collection
	rows    map[modelKey]modelRow
	staged  map[string]map[modelKey]modelRow // of collections that were reset
	session *hub.Session
	berth   *berth
	prev    feed.Seq            // the sequence before, in this session, since something began
	from    map[string]feed.Seq // where the collections began in this session
}

func (f *follower) close() {
	if f.session == nil {
		return
	}
	if f.parks {
		f.session.Unpark()
		synctest.Wait()
	}
	f.session.Close()
	f.session = nil
}

// berth is where what is delivered to a parked session waits until its follower reads.
type berth struct {
	mu     sync.Mutex
	got    []*feed.Batch // guarded by mu
	parked bool          // guarded by mu
	n      int           // guarded by mu: batches so far
	waits  bool          // guarded by mu: what was delivered last is not sent

	session *hub.Session
}

func (b *berth) Deliver(batch *feed.Batch, desk *hub.Desk) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := *batch
	c.Items = slices.Clone(c.Items)
	b.got = append(b.got, &c)
	b.n++
	if b.n%7 == 3 { // it is sent later
		b.waits = true
		waiting, ok := desk.Memo.(*[]*berth)
		if !ok {
			waiting = new([]*berth)
			desk.Memo, desk.Flush = waiting, func() {
				for _, b := range *waiting {
					b.sent()
				}
				*waiting = nil
			}
		}
		*waiting = append(*waiting, b)
	}
	return b.n%5 != 0 // now and then its client takes no more
}

// sent is called when what was to be sent later is: with every other its client takes no more then.
func (b *berth) sent() {
	b.mu.Lock()
	b.waits = false
	full := b.n%2 == 0
	b.mu.Unlock()
	if full {
		b.session.Unpark()
	}
}

func (b *berth) Leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waits {
		panic("a session leaves though what was delivered to it is not sent")
	}
	b.parked = false
}

// take is what was delivered next, nil if nothing was.
func (b *berth) take() (batch *feed.Batch, parked bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.got) > 0 {
		batch, b.got = b.got[0], b.got[1:]
	}
	return batch, b.parked
}

// next is Next's of the session, or what came of it while it was parked.
func (f *follower) next(ctx context.Context) (*feed.Batch, error) {
	if !f.parks {
		return f.session.Next(ctx)
	}
	for {
		synctest.Wait()
		b, parked := f.berth.take()
		if b != nil {
			return b, nil
		}
		if parked {
			return nil, context.Canceled
		}
		f.berth.mu.Lock()
		f.berth.parked = true // not after Next, which may be late
		f.berth.mu.Unlock()
		b, err := f.session.Next(context.Background())
		if !errors.Is(err, hub.ErrParked) {
			f.berth.Leave()
			return b, err
		}
	}
}

func (w *world) follow(t *rapid.T) {
	if len(w.followers) == 4 {
		t.Skip()
	}
	f := &follower{
		tenant:      rapid.SampledFrom(tenants).Draw(t, "tenant"),
		collections: rapid.SliceOfNDistinct(rapid.SampledFrom(collections), 1, 3, rapid.ID).Draw(t, "collections"),
		single:      rapid.Bool().Draw(t, "single"),
		limit:       rapid.SampledFrom([]int{1, 2, 5, 1000}).Draw(t, "limit"),
		parks:       rapid.Bool().Draw(t, "parks"),
		at:          make(map[string]feed.Seq), from: make(map[string]feed.Seq), rows: make(map[modelKey]modelRow), staged: make(map[string]map[modelKey]modelRow),
	}
	w.followers = append(w.followers, f)
	w.connect(t, f)
}

// some draws a follower that is connected, or not.
func (w *world) some(t *rapid.T, connected bool) *follower {
	var some []*follower
	for _, f := range w.followers {
		if (f.session != nil) == connected {
			some = append(some, f)
		}
	}
	if len(some) == 0 {
		t.Skip()
	}
	return rapid.SampledFrom(some).Draw(t, "follower")
}

func (w *world) drop(t *rapid.T)   { w.some(t, true).close() }
func (w *world) resume(t *rapid.T) { w.connect(t, w.some(t, false)) }

// start is where f begins in a collection: where it has come to, or somewhere before.
func (w *world) start(t *rapid.T, f *follower, collection string) feed.Start {
	s := feed.Start{Collection: collection}
	f.from[collection] = 0
	if f.single {
		if f.last != "" {
			s.Cursors = []string{f.last}
			c, _ := feed.ParseCursor(f.last)
			f.from[collection] = c.Seq
		}
	} else if at := f.at[collection]; at > 0 {
		if rapid.IntRange(0, 4).Draw(t, "go back") == 0 {
			at = feed.Seq(rapid.IntRange(1, int(at)).Draw(t, "to"))
		}
		f.from[collection] = at
		s.Cursors = []string{feed.Cursor{Epoch: f.epoch, Seq: at}.String()}
		if rapid.Bool().Draw(t, "with more") {
			s.Cursors = append(s.Cursors, "nonsense", "other-9")
		}
	}
	return s
}

func (w *world) connect(t *rapid.T, f *follower) {
	var starts []feed.Start
	for _, c := range f.collections {
		starts = append(starts, w.start(t, f, c))
	}
	s, err := w.hub.Open(hub.Everything, f.tenant, starts, hub.SessionOptions{Limit: f.limit})
	if err != nil {
		t.Fatal(err)
	}
	// What the frame open says: the epoch. Sequences of two epochs can't be compared, so
	// another one is a reset, also where the server has no cursor to see it by.
	if f.epoch != w.hub.Epoch() {
		f.epoch, f.at, f.last = w.hub.Epoch(), make(map[string]feed.Seq), ""
		clear(f.from) // of another log: it begins with nothing
		for _, c := range collections {
			f.staged[c] = make(map[modelKey]modelRow)
		}
	}
	f.session, f.prev = s, 0
	if f.parks {
		f.berth = &berth{session: s}
		s.Park(f.berth)
	}
}

func (w *world) subscribe(t *rapid.T) {
	f := w.some(t, true)
	if f.single {
		t.Skip()
	}
	for f.parks && w.next(t, f) { // what was delivered is of what is followed until now
	}
	c := rapid.SampledFrom(collections).Draw(t, "collection")
	if i := slices.Index(f.collections, c); i >= 0 {
		f.collections = slices.Delete(f.collections, i, i+1)
		f.session.Unsubscribe([]string{c}, "done")
	} else {
		f.collections = append(f.collections, c)
		if err := f.session.Subscribe([]feed.Start{w.start(t, f, c)}, "done"); err != nil {
			t.Fatal(err)
		}
	}
	f.prev = 0
}

func (w *world) read(t *rapid.T) {
	f := w.some(t, true)
	for range rapid.IntRange(1, 3).Draw(t, "batches") {
		w.next(t, f)
	}
}

func (w *world) catchUp(t *rapid.T) { w.readAll(t, w.some(t, true)) }

func (w *world) readAll(t *rapid.T, f *follower) {
	for w.next(t, f) {
	}
	w.compare(t, f)
}

// next takes what there is for a follower now, and tells whether there was anything.
func (w *world) next(t *rapid.T, f *follower) bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b, err := f.next(ctx)
	if errors.Is(err, context.Canceled) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range b.Resets {
		for _, c := range r.Collections {
			if r.Reason == feed.ResetExpired && f.from[c] >= w.model.floor(f.tenant) && !slices.ContainsFunc(w.model.gone[f.tenant], func(g moment) bool {
				return g.seq > f.from[c] && g.age < w.model.forgot
			}) {
				t.Fatalf("%s is said to be expired after %d, and nothing was forgotten since: %+v", c, f.from[c], w.model.gone[f.tenant])
			}
			if r.Reason == feed.ResetAhead || r.Reason == feed.ResetMalformed || r.Reason == feed.ResetEpoch && len(w.epochs) == 1 {
				t.Fatalf("%s is reset because of %s", c, r.Reason)
			}
			f.staged[c], f.at[c], f.prev = make(map[modelKey]modelRow), 0, 0
		}
	}
	var transaction []wire
	for n, i := range b.Items {
		c := wireOf(i)
		if c.Seq <= f.prev {
			t.Fatalf("%d comes after %d", c.Seq, f.prev)
		}
		f.prev = c.Seq
		if !slices.Contains(f.collections, c.Collection) {
			t.Fatalf("%s comes, which is not followed: %v", c.Collection, f.collections)
		}
		transaction = append(transaction, c)
		if n+1 < len(b.Items) && i.More != (w.model.last[c.Seq] == w.model.last[b.Items[n+1].Seq]) || n+1 == len(b.Items) && i.More {
			t.Fatalf("%d says more: %v, item %d of %d", c.Seq, i.More, n, len(b.Items))
		}
		if i.More {
			continue
		}
		for _, c := range transaction {
			f.take(c)
		}
		for _, c := range transaction {
			f.at[c.Collection] = max(f.at[c.Collection], i.Seq)
		}
		f.last = feed.Cursor{Epoch: f.epoch, Seq: i.Seq}.String()
		w.border(t, f, i.Seq)
		transaction = nil
	}
	w.border(t, f, b.Cursor.Seq)
	if b.Live != b.Announce && b.Announce || b.Cursor.Epoch != f.epoch {
		t.Fatalf("%+v", b)
	}
	if b.Announce {
		f.last = b.Cursor.String()
		for _, c := range f.collections {
			f.at[c] = max(f.at[c], b.Cursor.Seq)
			if staged, ok := f.staged[c]; ok {
				maps.DeleteFunc(f.rows, func(k modelKey, _ modelRow) bool { return k.collection == c })
				maps.Copy(f.rows, staged)
				delete(f.staged, c)
			}
		}
	}
	if b.Live {
		// What was delivered to a parked session is as old as it is.
		if b.Cursor.Seq != w.model.next-1 && !f.parks || b.Cursor.Seq >= w.model.next {
			t.Fatalf("live at %d, and the log is at %d", b.Cursor.Seq, w.model.next-1)
		}
		if !f.parks {
			w.compare(t, f)
		}
	}
	return true
}

// take puts a change that is newer than what is held.
func (f *follower) take(c wire) {
	rows := f.rows
	if staged, ok := f.staged[c.Collection]; ok {
		rows = staged
	}
	key := modelKey{f.tenant, c.Collection, c.Key}
	if c.Seq <= rows[key].seq {
		return
	}
	if c.Op == "remove" {
		delete(rows, key)
	} else {
		rows[key] = modelRow{seq: c.Seq, value: string(c.Value)}
	}
}

// border checks that the cursor of a feed stands in no transaction, as far as f could be
// told of it. Where collections began at cursors of their own, a part may be told alone.
func (w *world) border(t *rapid.T, f *follower, cursor feed.Seq) {
	if !f.single {
		return
	}
	before, after := make(map[feed.Seq]bool), make(map[feed.Seq]bool)
	for key, newest := range w.model.newest {
		_, there := w.model.rows[key]
		switch {
		case key.tenant != f.tenant || !slices.Contains(f.collections, key.collection):
		case !there && newest.age < w.model.forgot:
		case newest.seq <= cursor:
			before[w.model.last[newest.seq]] = true
		case newest.seq > f.at[key.collection]: // not told before a reset of another collection
			after[w.model.last[newest.seq]] = true
		}
	}
	for last := range before {
		if after[last] {
			t.Fatalf("cursor %d stands in the transaction that ends with %d", cursor, last)
		}
	}
}

// compare holds the rows of a follower that is live against the model's.
func (w *world) compare(t *rapid.T, f *follower) {
	n := 0
	for key, row := range w.model.rows {
		if key.tenant != f.tenant || !slices.Contains(f.collections, key.collection) {
			continue
		}
		n++
		if has := f.rows[key]; has.seq != row.seq || !same(t, has.value, row.value) {
			t.Fatalf("live, and %v is %+v instead of %+v", key, has, row)
		}
	}
	for key := range f.rows {
		if slices.Contains(f.collections, key.collection) {
			n--
		}
	}
	if n != 0 {
		t.Fatalf("live, and there are %d rows that should be gone: %v", -n, f.rows)
	}
}
