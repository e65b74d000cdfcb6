package hub_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// TestAFeedOfAForgottenTenantIsGivenNoCursorThatHidesIt: a client that had one from after the
// end would come back with it, be told of nothing, and keep the rows for ever.
func TestAFeedOfAForgottenTenantIsGivenNoCursorThatHidesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, feedtest.NewMemory(), hub.Options{})
		write(t, h, put("todos", "1", `{}`))
		s := session(t, h, "todos")
		if b, err := s.Next(t.Context()); err != nil || len(b.Items) != 1 {
			t.Fatalf("%+v, %v", b, err)
		}
		s.Reply("an answer that the client must get") // it goes out before the end
		seen := ""
		_, err := h.Forget(t.Context(), root, "acme", func(ctx context.Context, save func(context.Context) error) error {
			for { // what it is sent until it is over
				b, err := s.Next(ctx)
				if err != nil {
					break
				}
				if b.Live || len(b.Items) > 0 {
					seen = b.Cursor.String()
				}
				s.Subscribe([]feed.Start{{Collection: "lists"}}, "done")
			}
			return save(ctx)
		})
		if err != nil {
			t.Fatal(err)
		}
		if seen == "" {
			return
		}
		again, err := h.Open(hub.Everything, "acme", []feed.Start{{Collection: "todos", Cursors: []string{seen}}}, hub.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if b, err := again.Next(t.Context()); err != nil || len(b.Resets) != 1 {
			t.Errorf("it came back from %s and was told %+v, %v: it still holds what was forgotten", seen, b, err)
		}
	})
}

// TestForgettingThatWasNotSeenThroughIsToldAtTheNextStart: whoever asked got no answer, and the
// files still hold what is gone from memory.
func TestForgettingThatWasNotSeenThroughIsToldAtTheNextStart(t *testing.T) {
	log := feedtest.NewMemory()
	restart := func(h *hub.Hub) (*hub.Hub, string) {
		t.Helper()
		if err := h.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		var told bytes.Buffer
		h = open(t, log, hub.Options{Logger: slog.New(slog.NewTextHandler(&told, nil))})
		return h, told.String()
	}
	h := open(t, log, hub.Options{})
	write(t, h, put("todos", "1", `{}`))
	broken := errors.New("the disk fails")
	if _, err := h.Forget(t.Context(), root, "acme", func(context.Context, func(context.Context) error) error { return broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	h, told := restart(h)
	if !strings.Contains(told, "forget it again") || strings.Contains(told, "acme") {
		t.Errorf("it is told %q", told)
	}
	if gone := forget(t, h, "acme"); gone.Rows != 0 || gone.Seq != h.Stats().Head {
		t.Errorf("%+v", gone)
	}
	if _, told := restart(h); strings.Contains(told, "forgot") {
		t.Errorf("once it was seen through: %q", told)
	}
}
