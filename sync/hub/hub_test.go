package hub_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open opens a hub that is drained when the test ends.
func open(t testing.TB, log feed.Log, opts hub.Options) *hub.Hub {
	t.Helper()
	h, err := hub.Open(context.Background(), log, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Drain(context.Background()) })
	return h
}

// session opens a session on collections of acme, from the beginning, that is closed
// when the test ends.
func session(t testing.TB, h *hub.Hub, collections ...string) *hub.Session {
	t.Helper()
	starts := make([]feed.Start, len(collections))
	for i, c := range collections {
		starts[i].Collection = c
	}
	s, err := h.Open(hub.Everything, "acme", starts, hub.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// try sends an atomic request for tenant acme.
func try(h *hub.Hub, writes ...hub.Write) (hub.Result, error) {
	return h.Write(context.Background(), hub.Everything, hub.Request{Tenant: "acme", Client: "c", Atomic: true, Writes: writes})
}

// write is try that must do all that it is told.
func write(t testing.TB, h *hub.Hub, writes ...hub.Write) hub.Result {
	t.Helper()
	r, err := try(h, writes...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Refused {
		t.Fatalf("refused: %+v", r.Outcomes)
	}
	return r
}

func put(collection, key, value string) hub.Write {
	return hub.Write{Collection: collection, Op: "put", Key: key, Value: []byte(value)}
}

func insert(collection, key, value string) hub.Write {
	return hub.Write{Collection: collection, Op: "insert", Key: key, Value: []byte(value)}
}

func modify(collection, key, patch string) hub.Write {
	return hub.Write{Collection: collection, Op: "modify", Key: key, Patch: []byte(patch)}
}

func remove(collection, key string) hub.Write {
	return hub.Write{Collection: collection, Op: "remove", Key: key}
}

// as gives a write an id.
func as(id string, w hub.Write) hub.Write {
	w.ID = id
	return w
}

// when gives a write a condition.
func when(seq feed.Seq, w hub.Write) hub.Write {
	w.If = &seq
	return w
}

// refusal is the *hub.Refusal that err must be.
func refusal(t testing.TB, err error, code hub.Code) *hub.Refusal {
	t.Helper()
	var r *hub.Refusal
	if !errors.As(err, &r) || r.Code != code || r.Detail == "" || (r.Retry > 0) != (code == hub.Unavailable) {
		t.Fatalf("%v (%+v) instead of a refusal that says %s", err, r, code)
	}
	return r
}

// rows is what a collection of acme holds, as "key@seq=value", in sequence order.
func rows(t testing.TB, h *hub.Hub, collection string) (all []string) {
	t.Helper()
	for after := ""; ; {
		page, err := h.Rows(hub.Everything, "acme", collection, after, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range page.Rows {
			all = append(all, fmt.Sprintf("%s@%d=%s", c.Key(), c.Seq(), c.Value()))
		}
		if after = page.Next; after == "" {
			return all
		}
	}
}

func TestOptionsThatMakeNoSenseAreErrors(t *testing.T) {
	for _, o := range []hub.Options{{Memory: -1}, {Tombstones: -1}, {IDs: -1}, {IDCount: -1}, {Log: -1}, {Sessions: -1}, {Gather: -1}, {Gather: 2 * hub.MaxGather}} {
		if h, err := hub.Open(context.Background(), feedtest.NewMemory(), o); err == nil {
			h.Drain(context.Background())
			t.Errorf("%+v is taken", o)
		}
	}
}

// wire is a change as its frame says it.
type wire struct {
	Seq        feed.Seq        `json:"seq"`
	Collection string          `json:"collection"`
	Op         string          `json:"op"`
	Key        string          `json:"key"`
	Value      json.RawMessage `json:"value"`
	More       bool            `json:"more"`
}

func wireOf(i feed.Item) (w wire) {
	if err := json.Unmarshal(i.Append(nil), &w); err != nil {
		panic(err)
	}
	return w
}

// fataler is what testing.TB and rapid.T have in common, as far as it is needed.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}
