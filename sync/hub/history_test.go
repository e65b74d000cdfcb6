package hub_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// keeping is a log that keeps every group.
type keeping struct {
	*feedtest.Memory
	// Static. before is called before each group is handed out, and may give steps of its
	// own or an error.
	before func(g *feed.Group, fn func(feed.HistoryStep) error) error

	mu     sync.Mutex
	groups [][]byte // guarded by mu
}

func (k *keeping) Append(ctx context.Context, after feed.Position, group []byte) (feed.Position, error) {
	k.mu.Lock()
	k.groups = append(k.groups, slices.Clone(group)) // as of now it can be read, as in a log
	k.mu.Unlock()
	return k.Memory.Append(ctx, after, group)
}

func (k *keeping) History(ctx context.Context, r feed.HistoryRange, fn func(feed.HistoryStep) error) (feed.Seq, error) {
	k.mu.Lock()
	groups := k.groups
	k.mu.Unlock()
	for _, b := range groups {
		g, _, err := feed.DecodeGroup(b)
		if err != nil {
			return 1, err
		}
		if r.To > 0 && g.First > r.To {
			return 1, nil
		}
		if g.Last() < r.From {
			continue
		}
		if k.before != nil {
			if err := k.before(g, fn); err != nil {
				return 1, err
			}
		}
		if err := fn(feed.HistoryStep{Group: g, Place: g.Last(), Read: int64(len(b))}); err != nil {
			return 1, err
		}
	}
	return 1, nil
}

// tellAll reads all pages, and checks that each keeps to its limit and comes on.
func tellAll(t testing.TB, h *hub.Hub, g hub.Grant, q hub.HistoryQuery) (all []string, pages int) {
	t.Helper()
	for {
		p, err := h.History(t.Context(), g, "acme", q)
		if err != nil {
			t.Fatal(err)
		}
		if pages++; len(p.Changes) > max(q.Limit, 1) {
			t.Fatalf("%d changes in a page of %d", len(p.Changes), q.Limit)
		}
		for _, c := range p.Changes {
			client, id := c.By()
			all = append(all, fmt.Sprintf("%d|%s|%s|%s|%s|%d|%s|%s|%s", c.Seq(), c.Op(), c.Collection(), c.Key(), c.Value(), c.At(), client, id, c.Epoch))
		}
		if p.Next == "" {
			return all, pages
		}
		if q.After != "" && number(p.Next) <= number(q.After) {
			t.Fatalf("the page after %s ends at %s", q.After, p.Next)
		}
		q.After = p.Next
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func TestTheHistoryShowsEveryChangeHoweverItsPagesAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &keeping{Memory: feedtest.NewMemory()}
		h := open(t, log, hub.Options{})
		r := rand.New(rand.NewPCG(1, 1))
		var wants []string // sequence, collection, key and value of what was put
		begins := time.Now().UnixMilli()
		for range 60 {
			var writes []hub.Write
			for range 1 + r.IntN(6) {
				c, k := fmt.Sprint("c", r.IntN(2)), fmt.Sprint("k", r.IntN(4))
				if r.IntN(3) == 0 {
					writes = append(writes, as(fmt.Sprint("id", r.Int()), remove(c, k))) // of what is not there, too
				} else {
					writes = append(writes, put(c, k, fmt.Sprintf(`{"n":%d}`, r.IntN(9))))
				}
			}
			got, err := h.Write(t.Context(), hub.Everything, hub.Request{Tenant: "acme", Client: "c-1", Writes: writes})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.Write(t.Context(), hub.Everything, hub.Request{Tenant: "other", Writes: []hub.Write{put("c0", "k0", `{}`)}}); err != nil {
				t.Fatal(err)
			}
			for i, o := range got.Outcomes {
				if writes[i].Op == "put" {
					wants = append(wants, fmt.Sprintf("%d|%s|%s|%s", o.Seq, writes[i].Collection, o.Key, o.Value))
				}
			}
			time.Sleep(time.Second) // in the bubble
		}
		full, _ := tellAll(t, h, hub.Everything, hub.HistoryQuery{Limit: 10_000})
		var puts []string
		rows := make(map[string]bool) // whether a row is there, as the history tells it
		for _, line := range full {
			f := strings.Split(line, "|")
			row := f[2] + f[3]
			switch op := f[1]; {
			case op != "insert" && op != "modify" && op != "remove", (op == "insert") == rows[row]:
				t.Fatalf("%s, but that the row is there is %v", line, rows[row])
			case f[6] != "c-1" || f[8] != string(h.Epoch()):
				t.Fatalf("%s is by another, or of another log", line)
			}
			if rows[row] = f[1] != "remove"; rows[row] {
				puts = append(puts, strings.Join([]string{f[0], f[2], f[3], f[4]}, "|"))
			}
		}
		if !slices.Equal(puts, wants) || len(puts) == len(full) {
			t.Fatalf("%v is told instead of %v", puts, wants)
		}
		field := func(l string, i int) string { return strings.Split(l, "|")[i] }
		for limit := 1; limit < 30; limit += 4 {
			for what, c := range map[string]struct {
				q    hub.HistoryQuery
				want func(string) bool
			}{
				"all":        {hub.HistoryQuery{}, func(string) bool { return true }},
				"collection": {hub.HistoryQuery{Collections: []string{"c1", "none"}}, func(l string) bool { return field(l, 2) == "c1" }},
				"key":        {hub.HistoryQuery{Collections: []string{"c1"}, Key: "k2"}, func(l string) bool { return field(l, 2) == "c1" && field(l, 3) == "k2" }},
				"range":      {hub.HistoryQuery{From: 17, To: 101}, func(l string) bool { return number(field(l, 0)) >= 17 && number(field(l, 0)) <= 101 }},
				"time": {hub.HistoryQuery{Since: begins + 5000, Until: begins + 17000}, func(l string) bool {
					return number(field(l, 5)) >= int(begins)+5000 && number(field(l, 5)) <= int(begins)+17000
				}},
			} {
				c.q.Limit = limit
				want := slices.DeleteFunc(slices.Clone(full), func(l string) bool { return !c.want(l) })
				if got, _ := tellAll(t, h, hub.Everything, c.q); !slices.Equal(got, want) || len(want) == 0 {
					t.Fatalf("%s, %d a page: %d changes instead of %d", what, limit, len(got), len(want))
				}
			}
		}
		if err := h.Drain(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestTheHistoryIsForWhoMayReadTheCollection(t *testing.T) {
	log := &keeping{Memory: feedtest.NewMemory()}
	h := open(t, log, hub.Options{})
	write(t, h, put("todos", "a", `{}`), put("secret", "a", `{}`), put("lists/1", "a", `{}`))
	g := hub.Grant{Tenant: "acme", Read: []string{"todos", "lists/*"}}
	if got, _ := tellAll(t, h, g, hub.HistoryQuery{Limit: 10}); len(got) != 2 || strings.Contains(fmt.Sprint(got), "secret") {
		t.Error(got)
	}
	for what, c := range map[string]struct {
		code   hub.Code
		tenant string
		q      hub.HistoryQuery
	}{
		"collection":      {hub.Forbidden, "acme", hub.HistoryQuery{Collections: []string{"todos", "secret"}}},
		"tenant":          {hub.Forbidden, "other", hub.HistoryQuery{}},
		"tenant's name":   {hub.BadName, "a/b", hub.HistoryQuery{}},
		"name":            {hub.BadName, "acme", hub.HistoryQuery{Collections: []string{"*"}}},
		"key's name":      {hub.BadName, "acme", hub.HistoryQuery{Collections: []string{"todos"}, Key: "\n"}},
		"key":             {hub.BadRequest, "acme", hub.HistoryQuery{Key: "a"}},
		"key of two":      {hub.BadRequest, "acme", hub.HistoryQuery{Collections: []string{"todos", "lists/1"}, Key: "a"}},
		"range":           {hub.BadRequest, "acme", hub.HistoryQuery{From: 2, To: 1}},
		"times":           {hub.BadRequest, "acme", hub.HistoryQuery{Since: 2, Until: 1}},
		"after":           {hub.BadRequest, "acme", hub.HistoryQuery{After: "x"}},
		"after, negative": {hub.BadRequest, "acme", hub.HistoryQuery{After: "-1"}},
		"after, zeros":    {hub.BadRequest, "acme", hub.HistoryQuery{After: "01"}},
		"too many":        {hub.TooMany, "acme", hub.HistoryQuery{Collections: make([]string, feed.MaxCollections+1)}},
	} {
		_, err := h.History(t.Context(), g, c.tenant, c.q)
		t.Run(what, func(t *testing.T) { refusal(t, err, c.code) })
	}
}

func TestAServerWithoutAHistorySaysHowToGetOne(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	_, err := h.History(t.Context(), hub.Everything, "acme", hub.HistoryQuery{})
	if r := refusal(t, err, hub.NotFound); !strings.Contains(r.Detail, "--history") {
		t.Error(r.Detail)
	}
	off := &keeping{Memory: feedtest.NewMemory(), before: func(*feed.Group, func(feed.HistoryStep) error) error { return feed.ErrNoHistory }}
	h = open(t, off, hub.Options{})
	write(t, h, put("todos", "a", `{}`))
	_, err = h.History(t.Context(), hub.Everything, "acme", hub.HistoryQuery{})
	refusal(t, err, hub.NotFound)
}

// What a crash can take back is not in the history either, though the log shows it.
func TestTheHistoryShowsNothingThatIsNotAcknowledged(t *testing.T) {
	log := &keeping{Memory: feedtest.NewMemory()}
	appending, goOn := make(chan struct{}), make(chan struct{})
	var hold sync.Once
	log.OnAppend = func(after feed.Position, _ []byte) error {
		if after == 1 {
			hold.Do(func() { close(appending); <-goOn })
		}
		return nil
	}
	h := open(t, log, hub.Options{})
	if got, _ := tellAll(t, h, hub.Everything, hub.HistoryQuery{}); len(got) != 0 {
		t.Error("before anything was written:", got)
	}
	write(t, h, put("todos", "a", `{}`))
	done := make(chan error)
	go func() {
		_, err := try(h, put("todos", "b", `{}`))
		done <- err
	}()
	<-appending
	if got, _ := tellAll(t, h, hub.Everything, hub.HistoryQuery{Limit: 10}); len(got) != 1 {
		t.Error("while it is being written:", got)
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, _ := tellAll(t, h, hub.Everything, hub.HistoryQuery{Limit: 10}); len(got) != 2 {
		t.Error("once it is acknowledged:", got)
	}
}

// A question that finds nothing for long, or very large values, is answered in parts.
func TestAPageOfHistoryTakesNoLongerThanItMay(t *testing.T) {
	for what, c := range map[string]struct {
		before func(*feed.Group, func(feed.HistoryStep) error) error
		pages  int
	}{
		"bytes": {func(g *feed.Group, fn func(feed.HistoryStep) error) error {
			return fn(feed.HistoryStep{Place: g.First - 1, Read: 16 << 20})
		}, 7},
		"time": {func(*feed.Group, func(feed.HistoryStep) error) error {
			time.Sleep(500 * time.Millisecond) // in a bubble
			return nil
		}, 4},
		"changes": {nil, 5}, // of 1 MiB
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &keeping{Memory: feedtest.NewMemory(), before: c.before}
				h := open(t, log, hub.Options{})
				value := `{}`
				if c.before == nil {
					value = `{"v":"` + strings.Repeat("v", 1<<20-20) + `"}`
				}
				for i := range 20 {
					write(t, h, put("todos", fmt.Sprint(i), value))
				}
				got, pages := tellAll(t, h, hub.Everything, hub.HistoryQuery{Limit: 10_000})
				if len(got) != 20 || pages < c.pages-1 || pages > c.pages+1 {
					t.Errorf("%d changes in %d pages", len(got), pages)
				}
				none, empty := tellAll(t, h, hub.Everything, hub.HistoryQuery{Collections: []string{"none"}, Limit: 10_000})
				if len(none) != 0 || empty != pages && c.before != nil {
					t.Errorf("nothing is found in %d pages instead of %d", empty, pages)
				}
				if err := h.Drain(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestDamageOfTheHistoryIsSaidAfterAllThatIsBeforeIt(t *testing.T) {
	log := &keeping{Memory: feedtest.NewMemory(), before: func(g *feed.Group, _ func(feed.HistoryStep) error) error {
		if g.First == 3 {
			return &feed.HistoryDamage{First: 3, Last: 4, What: "a test"}
		}
		return nil
	}}
	h := open(t, log, hub.Options{})
	for range 2 {
		write(t, h, put("todos", "a", `{}`), put("todos", "b", `{}`))
	}
	write(t, h, put("todos", "c", `{}`))
	p, err := h.History(t.Context(), hub.Everything, "acme", hub.HistoryQuery{Limit: 10})
	if err != nil || len(p.Changes) != 2 || p.Next != "2" {
		t.Fatal(len(p.Changes), p.Next, err)
	}
	_, err = h.History(t.Context(), hub.Everything, "acme", hub.HistoryQuery{Limit: 10, After: p.Next})
	if r := refusal(t, err, hub.Internal); !strings.Contains(r.Detail, "3 to 4") || !strings.Contains(r.Detail, "from=5") {
		t.Error(r.Detail)
	}
	if p, err := h.History(t.Context(), hub.Everything, "acme", hub.HistoryQuery{Limit: 10, From: 5}); err != nil || len(p.Changes) != 1 {
		t.Error(len(p.Changes), err)
	}
	lost := errors.New("the disk is gone")
	log.before = func(*feed.Group, func(feed.HistoryStep) error) error { return lost }
	if _, err := h.History(t.Context(), hub.Everything, "acme", hub.HistoryQuery{}); !errors.Is(err, lost) {
		t.Error(err)
	}
}

func TestAHistoryThatCanNotBeReadWhileTheDiskFailsIsToBeAskedForAgain(t *testing.T) {
	log := &keeping{Memory: feedtest.NewMemory()}
	h := open(t, log, hub.Options{})
	write(t, h, put("todos", "a", `{}`))
	log.before = func(*feed.Group, func(feed.HistoryStep) error) error {
		return errors.New("/var/lib: input/output error")
	}
	log.OnReady = func() error { return fmt.Errorf("%w: the disk fails", feed.ErrNotReady) }
	_, err := h.History(t.Context(), hub.Everything, "acme", hub.HistoryQuery{Limit: 10})
	if r := refusal(t, err, hub.Unavailable); r.Retry == 0 || strings.Contains(r.Detail, "/var/lib") {
		t.Errorf("%+v", r)
	}
}
