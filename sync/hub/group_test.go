package hub_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// TestWhoWritesIsAnsweredTheSameWhetherOthersShareTheSyncOrNot has the same requests written one after another, and all
// in one group, whose memory is used again before the answers are looked at.
func TestWhoWritesIsAnsweredTheSameWhetherOthersShareTheSyncOrNot(t *testing.T) {
	grants := []hub.Grant{
		hub.Everything, of("mine"),
		{Tenant: "acme", Write: []string{"**"}}, // may not read
		{Tenant: "acme", Write: []string{"**"}, Filters: []hub.RowFilter{{Pattern: "**", Filter: owner("mine")}}},
	}
	rapid.Check(t, func(t *rapid.T) {
		all := make([]asked, rapid.IntRange(1, 30).Draw(t, "requests"))
		for i := range all {
			all[i] = asked{rapid.SampledFrom(grants).Draw(t, "grant"), drawRequest(t)}
		}
		alone, together := answers(t, all, false), answers(t, all, true)
		for i := range all {
			if alone[i] != together[i] {
				t.Errorf("request %d of %d, %.300s, is answered alone\n%s\nand in a group\n%s", i, len(all), fmt.Sprint(all[i].req), alone[i], together[i])
			}
		}
	})
}

type asked struct {
	grant hub.Grant
	req   hub.Request
}

func drawRequest(t *rapid.T) hub.Request {
	pick := func(what string, from ...string) string { return rapid.SampledFrom(from).Draw(t, what) }
	one := func(of int, what string) bool { return rapid.IntRange(1, of).Draw(t, what) == 1 }
	req := hub.Request{Tenant: "acme", Client: pick("client", "a", "b"), Atomic: rapid.Bool().Draw(t, "atomic")}
	for range rapid.SampledFrom([]int{1, 1, 1, 2, 3, 6}).Draw(t, "changes") {
		w := hub.Write{
			Collection: pick("collection", "todos", "lists"), Key: pick("key", "1", "2", "3"), IfExists: one(10, "there"),
			Op: pick("op", "insert", "put", "modify", "patch", "remove"),
		}
		switch w.Op {
		case "insert", "put", "modify":
			text := strings.Repeat("x", rapid.SampledFrom([]int{0, 10, 300, 5000}).Draw(t, "size"))
			w.Value = fmt.Appendf(nil, `{"owner":%q,"n":%d,"text":%q}`, pick("owner", "mine", "theirs"), rapid.IntRange(0, 9).Draw(t, "n"), text)
		case "patch":
			w.Op, w.Patch = "modify", []byte(pick("patch", `{"n":null}`, `{"owner":"mine"}`, `{"owner":"theirs"}`, `{"deep":{"a":1,"b":null}}`, `{"deep":{"b":[1,2]}}`))
		}
		if one(4, "with an id") {
			w.ID = pick("id", "x", "y", "z")
		}
		if one(4, "if") {
			at := feed.Seq(rapid.IntRange(0, 40).Draw(t, "at"))
			w.If = &at
		}
		req.Writes = append(req.Writes, w)
	}
	return req
}

// answers writes requests, and returns what each is answered, without the cursor: where a row is not there, it may be that
// of any change before.
func answers(t *rapid.T, all []asked, together bool) (texts []string) {
	log := feedtest.NewMemory()
	h, err := hub.Open(t.Context(), log, hub.Options{Gather: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Drain(t.Context())
	first := hub.Request{Tenant: "acme", Writes: []hub.Write{put("todos", "first", `{}`)}}
	results, errs := make([]hub.Result, len(all)), make([]error, len(all))
	if together {
		under, goOn := make(chan struct{}, len(all)+2), make(chan struct{})
		log.OnAppend = func(feed.Position, []byte) error { under <- struct{}{}; <-goOn; return nil }
		p, err := h.Begin(hub.Everything, first)
		if err != nil {
			t.Fatal(err)
		}
		<-under
		var answered sync.WaitGroup
		answered.Add(len(all))
		for i, a := range all {
			then := func(r hub.Result, err error) { results[i], errs[i] = r, err; answered.Done() }
			if err := h.BeginThen(a.grant, a.req, then); err != nil {
				then(hub.Result{}, err)
			}
		}
		log.OnAppend = nil
		close(goOn)
		if _, err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		answered.Wait()
		for range 40 { // the memory of those is used again
			if _, err := h.Write(t.Context(), hub.Everything, hub.Request{Tenant: "else", Writes: []hub.Write{put("todos", "other", `{"other":"`+strings.Repeat("#", 400)+`"}`)}}); err != nil {
				t.Fatal(err)
			}
		}
	} else {
		for i, a := range slices.Insert(slices.Clone(all), 0, asked{hub.Everything, first}) {
			r, err := h.Write(t.Context(), a.grant, a.req)
			if i > 0 {
				results[i-1], errs[i-1] = r, err
			}
		}
	}
	for i, r := range results {
		var refusal *hub.Refusal
		if errors.As(errs[i], &refusal) {
			texts = append(texts, fmt.Sprint(refusal.Code, refusal.Detail))
			continue
		}
		text := fmt.Sprint(r.Refused, errs[i])
		for _, o := range r.Outcomes {
			text += fmt.Sprintf("\n%s %s %s %d %s", o.ID, o.Status, o.Key, o.Seq, o.Value)
		}
		texts = append(texts, text)
	}
	return texts
}
