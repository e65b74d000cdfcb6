package hub_test

import (
	"context"
	"testing"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

func TestSmoke(t *testing.T) {
	log := feedtest.NewMemory()
	h, err := hub.Open(context.Background(), log, hub.Options{})
	if err != nil { t.Fatal(err) }
	ctx := context.Background()
	s, err := h.Open(hub.Everything, "acme", []feed.Start{{Collection: "todos"}}, hub.SessionOptions{Tick: true})
	if err != nil { t.Fatal(err) }
	b, err := s.Next(ctx)
	t.Logf("%+v %v", b, err)
	r, err := h.Write(ctx, hub.Everything, hub.Request{Tenant: "acme", Client: "c", Atomic: true, Writes: []hub.Write{
		{ID: "1", Collection: "todos", Op: "insert", Key: "a", Value: []byte(`{"a":1, "b":{"c":2}}`)},
		{ID: "2", Collection: "todos", Op: "modify", Key: "a", Patch: []byte(`{"a":null,"b":{"d":3},"e":{"x":null,"y":1}}`)},
		{ID: "3", Collection: "todos", Op: "insert", Value: []byte(`{}`)},
	}})
	t.Logf("%+v %v", r, err)
	b, err = s.Next(ctx)
	t.Logf("%+v %v", b, err)
	b, err = s.Next(ctx)
	t.Logf("%+v %v", b, err)
	s.Close()
	if err := h.Drain(ctx); err != nil { t.Fatal(err) }
}
