package hub_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

var root = hub.Grant{Tenant: "*", Admin: true}

// asItIs is a rewrite that leaves the files as they are: there are none.
func asItIs(ctx context.Context, save func(context.Context) error) error { return save(ctx) }

func forget(t testing.TB, h *hub.Hub, tenant string) hub.Forgotten {
	t.Helper()
	gone, err := h.Forget(context.Background(), root, tenant, asItIs)
	if err != nil {
		t.Fatal(err)
	}
	return gone
}

func TestAForgottenTenantIsGoneAndItsClientsAreToldSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		h := open(t, log, hub.Options{})
		write(t, h, put("todos", "1", `{}`), put("todos", "2", `{}`))
		withTTL := put("lists", "1", `{}`)
		withTTL.TTL, withTTL.ID = time.Hour, "m-1"
		write(t, h, withTTL)
		write(t, h, remove("todos", "2"))
		if err := into(h, "other", put("todos", "1", `{"of":"other"}`)); err != nil {
			t.Fatal(err)
		}
		gone := given("ann", "jti-1", 100*time.Hour)
		if err := h.Revoke(t.Context(), root, hub.Revocation{Tenant: "acme", ID: "jti-1", Until: time.Now().Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
		bystander, err := h.Open(hub.Everything, "other", []feed.Start{{Collection: "todos"}}, hub.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer bystander.Close()
		b, err := bystander.Next(t.Context())
		if err != nil || len(b.Items) != 1 {
			t.Fatalf("%+v, %v", b, err)
		}
		cursor := b.Cursor.String()
		s := session(t, h, "todos", "lists")

		if got := forget(t, h, "acme"); got.Rows != 2 || got.Bytes <= 0 {
			t.Errorf("%+v went", got)
		}
		if reason, _ := ended(t, s); reason != hub.EndEvicted {
			t.Errorf("its feed ended with %q", reason)
		}
		check := func() {
			t.Helper()
			for _, c := range []string{"todos", "lists"} {
				if got := rows(t, h, c); len(got) != 0 {
					t.Errorf("there is still %v", got)
				}
			}
			// It says that what the client holds is gone, to whoever was there at any time before.
			for _, at := range []string{cursor, string(h.Epoch()) + "-1"} {
				s, err := h.Open(hub.Everything, "acme", []feed.Start{{Collection: "todos", Cursors: []string{at}}}, hub.SessionOptions{})
				if err != nil {
					t.Fatal(err)
				}
				b, err := s.Next(t.Context())
				if err != nil || len(b.Resets) != 1 || b.Resets[0].Reason != feed.ResetExpired || len(b.Items) != 0 || !b.Live {
					t.Errorf("from %s: %+v, %v", at, b, err)
				}
				// And once told, it is not told again: a poll would else ask for ever.
				next := b.Cursor.String()
				s.Close()
				s, err = h.Open(hub.Everything, "acme", []feed.Start{{Collection: "todos", Cursors: []string{next}}}, hub.SessionOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if b, err := s.Next(t.Context()); err != nil || len(b.Resets) != 0 {
					t.Errorf("from %s, which it was given: %+v, %v", next, b, err)
				}
				s.Close()
			}
			if _, err := h.Open(gone, "acme", nil, hub.SessionOptions{}); err == nil {
				t.Error("a credential that was revoked counts again")
			}
			if page, err := h.Rows(hub.Everything, "other", "todos", "", 10); err != nil || len(page.Rows) != 1 {
				t.Errorf("of another tenant: %+v, %v", page, err)
			}
		}
		check()
		// Another tenant's feed goes on, without a reset.
		if err := into(h, "other", put("todos", "2", `{}`)); err != nil {
			t.Fatal(err)
		}
		for items := 0; items == 0; {
			b, err := bystander.Next(t.Context())
			if err != nil || len(b.Resets) > 0 {
				t.Fatalf("%+v, %v", b, err)
			}
			items = len(b.Items)
		}
		if err := into(h, "other", remove("todos", "2")); err != nil {
			t.Fatal(err)
		}
		// And after a restart.
		if err := h.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		h = open(t, log, hub.Options{})
		check()
		// Whoever writes makes it anew, and ids mean nothing any more.
		if r := write(t, h, hub.Write{ID: "m-1", Collection: "todos", Op: "insert", Key: "1", Value: []byte(`{"new":true}`)}); r.Outcomes[0].Status != hub.OK {
			t.Errorf("%+v", r)
		}
		time.Sleep(2 * time.Hour) // a deadline of before means nothing either
		if got := rows(t, h, "todos"); len(got) != 1 {
			t.Errorf("%v", got)
		}
	})
}

func TestOnlyAnAdministratorForgets(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	write(t, h, put("todos", "1", `{}`))
	for _, g := range []hub.Grant{hub.Everything, {Tenant: "other", Admin: true}, {Tenant: "acme"}} {
		_, err := h.Forget(t.Context(), g, "acme", asItIs)
		refusal(t, err, hub.Forbidden)
	}
	_, err := h.Forget(t.Context(), root, "*", asItIs)
	refusal(t, err, hub.BadName)
	if got := rows(t, h, "todos"); len(got) != 1 {
		t.Errorf("%v", got)
	}
	if got := forget(t, h, "nobody"); got.Rows != 0 || got.Bytes != 0 {
		t.Errorf("of a tenant that never was: %+v went", got)
	}
}

// TestWhatATenantHoldsIsCountedRight does random things to three tenants, forgetting them among
// these, and compares what is counted with what a restart comes to, from the log or from a checkpoint,
// which counts by itself; and with a plain model of the rows.
func TestWhatATenantHoldsIsCountedRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			log := feedtest.NewMemory()
			opts := hub.Options{Log: int64(rapid.SampledFrom([]int{1, 2000, 1 << 20}).Draw(t, "log")), Tombstones: time.Minute, IDs: time.Minute}
			h, err := hub.Open(context.Background(), log, opts)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { h.Drain(context.Background()) }()
			tenants := []string{"a", "b", "c"}
			model := map[string]map[string]bool{"a": {}, "b": {}, "c": {}}
			for step := range rapid.IntRange(1, 60).Draw(t, "steps") {
				tenant := rapid.SampledFrom(tenants).Draw(t, "tenant")
				key := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "key")
				switch rapid.IntRange(0, 9).Draw(t, "what") {
				case 0, 1, 2, 3:
					w := put("todos", key, fmt.Sprintf(`{"v":"%0*d"}`, rapid.IntRange(1, 60).Draw(t, "size"), 0))
					if rapid.Bool().Draw(t, "id") {
						w.ID = fmt.Sprint("m", step)
					}
					if err := into(h, tenant, w); err != nil {
						t.Fatal(err)
					}
					model[tenant][key] = true
				case 4, 5:
					w := remove("todos", key)
					w.ID = fmt.Sprint("m", step)
					if err := into(h, tenant, w); err != nil {
						t.Fatal(err)
					}
					delete(model[tenant], key)
				case 6:
					time.Sleep(time.Duration(rapid.IntRange(1, 90).Draw(t, "s")) * time.Second)
				case 7:
					if _, err := h.Forget(context.Background(), root, tenant, asItIs); err != nil {
						t.Fatal(err)
					}
					model[tenant] = map[string]bool{}
				case 8, 9:
					synctest.Wait() // what is due at this moment is forgotten
					before := make(map[string]hub.TenantStats)
					for _, tenant := range tenants {
						before[tenant] = h.TenantStats(tenant)
					}
					all := h.Stats()
					if err := h.Drain(context.Background()); err != nil {
						t.Fatal(err)
					}
					if h, err = hub.Open(context.Background(), log, opts); err != nil {
						t.Fatal(err)
					}
					sum := hub.TenantStats{}
					for _, tenant := range tenants {
						got := h.TenantStats(tenant)
						sum.Rows, sum.Size = sum.Rows+got.Rows, sum.Size+got.Size
						if got.Rows != before[tenant].Rows || got.Size != before[tenant].Size {
							t.Fatalf("%s: counted %+v, and after a restart %+v", tenant, before[tenant], got)
						}
						if int(got.Rows) != len(model[tenant]) {
							t.Fatalf("%s: %d rows, and the model has %d", tenant, got.Rows, len(model[tenant]))
						}
					}
					hidden := h.TenantStats("*")
					if got := h.Stats(); got.Rows != all.Rows || got.Bytes != all.Bytes || got.Rows != sum.Rows || got.Bytes != sum.Size+hidden.Size {
						t.Fatalf("all: counted %+v, after a restart %+v, and tenants have %+v and %+v", all, got, sum, hidden)
					}
				}
			}
		})
	})
}
