package hub_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// tooMany is a refusal that says what and when.
func tooMany(t testing.TB, err error, says string) time.Duration {
	t.Helper()
	var r *hub.Refusal
	if !errors.As(err, &r) || r.Code != hub.TooMany || r.Retry < time.Second || !strings.Contains(r.Detail, says) {
		t.Fatalf("%v (%+v) instead of a refusal that says %q and when to come back", err, r, says)
	}
	return r.Retry
}

func into(h *hub.Hub, tenant string, writes ...hub.Write) error {
	_, err := h.Write(context.Background(), hub.Everything, hub.Request{Tenant: tenant, Atomic: true, Writes: writes})
	return err
}

func TestATenantThatWritesTooFastIsToldAndOthersAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, feedtest.NewMemory(), hub.Options{Gather: 1, Limits: hub.Limits{Writes: 1000}, TenantLimits: map[string]hub.Limits{"large": {Writes: 5000}}})
		flood := func(tenant string) (n int, err error) {
			for n = range 100_000 {
				if err := into(h, tenant, put("todos", "1", `{}`)); err != nil {
					return n, err
				}
			}
			return n, nil
		}
		for tenant, most := range map[string]int{"small": 2000, "large": 10_000} { // two seconds' worth
			n, err := flood(tenant)
			retry := tooMany(t, err, fmt.Sprintf("%d changes a second", most/2))
			if n != most {
				t.Errorf("%s writes %d at once", tenant, n)
			}
			if err := into(h, "quiet", put("todos", "1", `{}`)); err != nil {
				t.Errorf("another tenant: %v", err)
			}
			time.Sleep(retry)
			if err := into(h, tenant, put("todos", "1", `{}`)); err != nil {
				t.Errorf("%s, after the time that it was told: %v", tenant, err)
			}
			time.Sleep(time.Second)
			if n, _ := flood(tenant); n < most/2 || n > most {
				t.Errorf("%s saves up %d in about a second", tenant, n)
			}
		}
	})
}

// TestTheLargestRequestIsNeverRefusedForEver: a limit below it would lock its sender out.
func TestTheLargestRequestIsNeverRefusedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, feedtest.NewMemory(), hub.Options{Limits: hub.Limits{Writes: 1, Bytes: 1}})
		var all []hub.Write
		for i := range feed.MaxChanges {
			all = append(all, put("todos", fmt.Sprint(i), `{}`))
		}
		if err := into(h, "acme", all...); err != nil {
			t.Fatal(err)
		}
		retry := tooMany(t, into(h, "acme", all...), "1 changes a second")
		time.Sleep(retry)
		if err := into(h, "acme", all...); err != nil {
			t.Fatal(err)
		}
	})
}

func TestATenantThatWritesTooMuchIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, feedtest.NewMemory(), hub.Options{Limits: hub.Limits{Bytes: 10 << 20}})
		large := `{"v":"` + strings.Repeat("v", 1<<20-100) + `"}`
		n := 0
		var err error
		for err == nil {
			err = into(h, "acme", put("todos", "1", large))
			n++
		}
		tooMany(t, err, "10485760 bytes of changes a second")
		if n < 20 || n > 22 {
			t.Errorf("%d MiB at once", n-1)
		}
	})
}

func TestATenantHasSoManyRowsAndBytesAndNoMore(t *testing.T) {
	log := feedtest.NewMemory()
	opts := hub.Options{Limits: hub.Limits{Rows: 3, RowBytes: 100}, TenantLimits: map[string]hub.Limits{"wide": {Rows: 1000, Size: 20_000}}}
	h := open(t, log, opts)
	for i := range 3 {
		if err := into(h, "acme", insert("todos", fmt.Sprint(i), `{}`)); err != nil {
			t.Fatal(err)
		}
	}
	tooMany(t, into(h, "acme", insert("lists", "4", `{}`)), "3 rows")
	tooMany(t, into(h, "acme", put("todos", "1", `{"a":1}`), insert("todos", "4", `{}`)), "3 rows")
	for _, writes := range [][]hub.Write{
		{put("todos", "1", `{"a":2}`)},                     // what changes a row
		{remove("todos", "0"), insert("todos", "4", `{}`)}, // one that goes for one that comes
		{remove("todos", "1"), remove("todos", "1")},       // what takes away
	} {
		if err := into(h, "acme", writes...); err != nil {
			t.Errorf("%s %s: %v", writes[0].Op, writes[0].Key, err)
		}
	}
	if err := into(h, "acme", insert("todos", "5", `{}`)); err != nil {
		t.Errorf("there is room again: %v", err)
	}
	tooMany(t, into(h, "acme", insert("todos", "6", `{}`)), "3 rows")
	var r *hub.Refusal
	if err := into(h, "acme", put("todos", "5", `{"v":"`+strings.Repeat("v", 100)+`"}`)); !errors.As(err, &r) || r.Code != hub.TooLarge || !strings.Contains(r.Detail, "100 bytes") {
		t.Errorf("a row that is too large: %v", err)
	}
	if err := into(h, "acme", modify("todos", "5", `{"v":"`+strings.Repeat("v", 100)+`"}`)); !errors.As(err, &r) || r.Code != hub.TooLarge {
		t.Errorf("a patch that makes it so: %v", err)
	}
	for i := 0; ; i++ {
		if err := into(h, "wide", insert("todos", fmt.Sprint(i), `{"v":"some text that takes its room"}`)); err != nil {
			tooMany(t, err, "20000 bytes")
			break
		}
		if i > 200 {
			t.Fatal("there is no end to it")
		}
	}
	if n := h.TenantStats("wide").Size; n > 20_000 || n < 15_000 {
		t.Errorf("it holds %d bytes", n)
	}
	if err := into(h, "wide", remove("todos", "0")); err != nil {
		t.Errorf("a full tenant can't take away: %v", err)
	}
	// What is there when limits get lower stays.
	want := h.TenantStats("wide")
	if err := h.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	h = open(t, log, hub.Options{Limits: hub.Limits{Rows: 1, Size: 1, RowBytes: 1, Writes: 1, Bytes: 1}})
	if got := h.TenantStats("wide"); got.Rows != want.Rows || got.Size != want.Size {
		t.Errorf("after a restart with lower limits: %+v, was %+v", got, want)
	}
}

func TestATenantHasSoManyFeedsAndSubscriptionsAndNoMore(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{Limits: hub.Limits{Sessions: 3, Subscriptions: 5}})
	feeds := func(tenant string, collections ...string) (*hub.Session, error) {
		var starts []feed.Start
		for _, c := range collections {
			starts = append(starts, feed.Start{Collection: c})
		}
		return h.Open(hub.Everything, tenant, starts, hub.SessionOptions{})
	}
	a, err := feeds("acme", "a", "b", "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := feeds("acme", "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	_, err = feeds("acme", "a", "b")
	tooMany(t, err, "5 collections")
	tooMany(t, a.Subscribe([]feed.Start{{Collection: "b"}, {Collection: "c"}, {Collection: "d"}}, "done"), "5 collections")
	if err := a.Subscribe([]feed.Start{{Collection: "b"}, {Collection: "c"}}, "done"); err != nil {
		t.Error(err)
	}
	b.Unsubscribe([]string{"a", "never"}, "done")
	c, err := feeds("acme", "a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = feeds("acme")
	tooMany(t, err, "3 feeds")
	if other, err := feeds("other", "a"); err != nil {
		t.Errorf("another tenant: %v", err)
	} else {
		other.Close()
	}
	if s := h.TenantStats("acme"); s.Sessions != 3 || s.Subscriptions != 5 {
		t.Errorf("%+v", s)
	}
	for _, s := range []*hub.Session{a, b, c} {
		s.Close()
		s.Close()
	}
	if s := h.TenantStats("acme"); s.Sessions != 0 || s.Subscriptions != 0 {
		t.Errorf("after all are closed: %+v", s)
	}
}

// TestOnlyTheTenantsOnTheListAreThere: else whoever has a token for any tenant makes new ones.
func TestOnlyTheTenantsOnTheListAreThere(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{Tenants: []string{"acme"}})
	write(t, h, put("todos", "1", `{}`))
	session(t, h, "todos").Close()
	forbidden := func(err error) {
		t.Helper()
		var r *hub.Refusal
		if !errors.As(err, &r) || r.Code != hub.Forbidden {
			t.Errorf("%v", err)
		}
	}
	forbidden(into(h, "other", put("todos", "1", `{}`)))
	_, err := h.Open(hub.Everything, "other", nil, hub.SessionOptions{})
	forbidden(err)
	_, err = h.Rows(hub.Everything, "other", "todos", "", 1)
	forbidden(err)
	_, err = h.Row(hub.Everything, "other", "todos", "1")
	forbidden(err)
	if err := h.Revoke(t.Context(), hub.Grant{Tenant: "*", Admin: true}, hub.Revocation{Tenant: "*", ID: "x"}); err != nil {
		t.Errorf("credentials of all tenants: %v", err)
	}
	if _, err := hub.Open(t.Context(), feedtest.NewMemory(), hub.Options{Tenants: []string{"a/b"}}); err == nil {
		t.Error("a list with what is no tenant passes")
	}
	for _, l := range []hub.Limits{{Sessions: -1}, {Writes: -1}, {Bytes: -1}, {Rows: -1}, {Size: -1}, {RowBytes: -1}, {Subscriptions: -1}, {RowBytes: hub.MaxValue + 1}} {
		if _, err := hub.Open(t.Context(), feedtest.NewMemory(), hub.Options{Limits: l}); err == nil {
			t.Errorf("%+v passes", l)
		}
	}
}

// TestTenantsThatWereOnlyTriedAreForgotten: else who has a credential for all fills the memory with names.
func TestTenantsThatWereOnlyTriedAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, feedtest.NewMemory(), hub.Options{})
		memory := func() uint64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		try := func(from, to int) {
			for i := from; i < to; i++ {
				tenant := fmt.Sprintf("tenant-%d", i)
				_ = into(h, tenant, hub.Write{Collection: "todos", Op: "modify", Key: "1", Patch: []byte(`{}`)}) // there is no such row
				if s, err := h.Open(hub.Everything, tenant, []feed.Start{{Collection: "todos"}}, hub.SessionOptions{}); err == nil {
					s.Close()
				}
				if i%100 == 0 {
					time.Sleep(time.Second)
				}
			}
		}
		try(0, 20_000)
		before := memory()
		try(20_000, 120_000)
		if after := memory(); after > before+4<<20 {
			t.Errorf("100,000 names cost %d KiB", (after-before)>>10)
		}
	})
}

// TestARowWhoseTimeIsOverMakesRoom: who is at the limit would else be told to come back in 30 s.
func TestARowWhoseTimeIsOverMakesRoom(t *testing.T) {
	for range 20 { // the writer takes the request first, or looks what is due
		synctest.Test(t, func(t *testing.T) {
			log := feedtest.NewMemory()
			h := open(t, log, hub.Options{Limits: hub.Limits{Rows: 2}})
			w := put("todos", "1", `{}`)
			w.TTL = 10 * time.Second
			if err := into(h, "acme", w); err != nil {
				t.Fatal(err)
			}
			release := busy(t, h, log) // by a second row
			time.Sleep(11 * time.Second)
			p, err := h.Begin(hub.Everything, hub.Request{Tenant: "acme", Writes: []hub.Write{insert("todos", "2", `{}`)}})
			if err != nil {
				t.Fatal(err)
			}
			release()
			if _, err := p.Wait(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestARowFromBeforeTheLimitMayShrink: it could else be neither kept in order nor made smaller.
func TestARowFromBeforeTheLimitMayShrink(t *testing.T) {
	log := feedtest.NewMemory()
	h := open(t, log, hub.Options{})
	if err := into(h, "acme", put("todos", "1", `{"a":"`+strings.Repeat("a", 500)+`","b":1}`)); err != nil {
		t.Fatal(err)
	}
	if err := h.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	h = open(t, log, hub.Options{Limits: hub.Limits{RowBytes: 100}})
	if err := into(h, "acme", modify("todos", "1", `{"b":null}`)); err != nil {
		t.Error(err)
	}
	var r *hub.Refusal
	if err := into(h, "acme", modify("todos", "1", `{"b":12}`)); !errors.As(err, &r) || r.Code != hub.TooLarge || r.Retry != 0 {
		t.Errorf("it may grow: %v", err)
	}
}

// TestRefusalsAreCountedByTheirLimit: an operator would else not know which one to raise, nor whose.
func TestRefusalsAreCountedByTheirLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, feedtest.NewMemory(), hub.Options{Limits: hub.Limits{Sessions: 1, Subscriptions: 1, Writes: 1, Bytes: 1, Rows: 2, Size: 5000, RowBytes: 3000}})
		feeds := func(collections ...string) error {
			var starts []feed.Start
			for _, c := range collections {
				starts = append(starts, feed.Start{Collection: c})
			}
			s, err := h.Open(hub.Everything, "acme", starts, hub.SessionOptions{})
			if err == nil {
				t.Cleanup(s.Close)
			}
			return err
		}
		write := func(w ...hub.Write) error { return into(h, "acme", w...) }
		large := `{"v":"` + strings.Repeat("v", 2500) + `"}`
		steps := []struct {
			limit hub.Limit
			do    func() error
		}{
			{"", func() error { return write(insert("todos", "1", large)) }},
			{hub.LimitSize, func() error { return write(insert("todos", "2", large)) }},
			{hub.LimitRowBytes, func() error { return write(put("todos", "1", `{"v":"`+strings.Repeat("v", 3000)+`"}`)) }},
			{"", func() error { return write(insert("todos", "2", `{}`)) }},
			{hub.LimitRows, func() error { return write(insert("todos", "3", `{}`)) }},
			{hub.LimitSubscriptions, func() error { return feeds("todos", "lists") }},
			{"", func() error { return feeds("todos") }},
			{hub.LimitSessions, func() error { return feeds("todos") }},
			{"", func() error {
				for {
					if err := write(put("todos", "2", `{}`)); err != nil {
						return err
					}
				}
			}},
		}
		want := make(map[hub.Limit]int64)
		for i, s := range steps {
			err := s.do()
			if i == len(steps)-1 {
				s.limit = hub.LimitWrites
			}
			var r *hub.Refusal
			if s.limit == "" && err != nil || s.limit != "" && (!errors.As(err, &r) || r.Limit != s.limit) {
				t.Fatalf("step %d: %v (%+v), want a refusal by %q", i, err, r, s.limit)
			}
			if s.limit != "" {
				want[s.limit]++
			}
		}
		_ = into(h, "tried", modify("todos", "1", `{}`)) // no such row, and so no such tenant
		if got := h.TenantStats("acme"); !maps.Equal(got.Refused, want) || got.Rows != 2 || got.Sessions != 1 || got.Subscriptions != 1 {
			t.Errorf("%+v, want %v", got, want)
		}
		if got := h.TenantStats("tried"); len(got.Refused) != 0 || got.Rows != 0 {
			t.Errorf("of a tenant that was only tried: %+v", got)
		}
		if got := h.Stats().Refused; !maps.Equal(got, want) {
			t.Errorf("of all: %v, want %v", got, want)
		}
	})
}

// TestATenantIsRememberedForNoLongerThanItsRates: with a low limit the largest burst takes
// minutes to save up, and whoever tries names one after the other would fill the memory meanwhile.
func TestATenantIsRememberedForNoLongerThanItsRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, feedtest.NewMemory(), hub.Options{Limits: hub.Limits{Writes: 1, Bytes: 1000}})
		for i := range 50_000 {
			_ = into(h, fmt.Sprintf("tenant-%d", i), modify("todos", "1", `{}`)) // there is no such row
			if i%100 == 0 {
				time.Sleep(time.Second)
			}
		}
		if n := h.Rates(); n > 2048 {
			t.Errorf("%d tenants are remembered", n)
		}
	})
}

// BenchmarkQuietTenant measures how long a quiet tenant waits from its write to its delivery while
// another writes at ten times its limit, and opens feeds without end, as a ratio to how long it
// waits without: in turns, so that what else the machine does counts for both. The log takes
// no time, or as long as a disk does for each group: then who is quiet waits at most for the group
// before its own, which a tenant that keeps its limit has as well.
func BenchmarkQuietTenant(b *testing.B) {
	for name, disk := range map[string]time.Duration{"memory": 0, "disk=1ms": time.Millisecond} {
		b.Run(name, func(b *testing.B) { quietTenant(b, disk) })
	}
}

func quietTenant(b *testing.B, disk time.Duration) {
	const limit = 100 // changes a second
	log := feedtest.NewMemory()
	if disk > 0 {
		log.OnAppend = func(feed.Position, []byte) error { time.Sleep(disk); return nil }
	}
	h := open(b, log, hub.Options{TenantLimits: map[string]hub.Limits{"noisy": {Writes: limit, Sessions: 100}}})
	s, err := h.Open(hub.Everything, "quiet", []feed.Start{{Collection: "todos"}}, hub.SessionOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	turn := func(n int) (all []time.Duration) {
		for range n {
			began := time.Now()
			if err := into(h, "quiet", put("todos", "1", `{"a":1}`)); err != nil {
				b.Fatal(err)
			}
			for items := 0; items == 0; {
				batch, err := s.Next(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				items = len(batch.Items)
			}
			all = append(all, time.Since(began))
			time.Sleep(2 * time.Millisecond) // quiet
		}
		return all
	}
	noise := func() (stop func() int) {
		over, done := make(chan struct{}), make(chan int)
		go func() {
			refused := 0
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-over:
					done <- refused
					return
				case <-tick.C:
				}
				for range limit / 10 {
					if _, err := h.Begin(hub.Everything, hub.Request{Tenant: "noisy", Writes: []hub.Write{put("todos", "1", `{"a":1}`)}}); err != nil {
						refused++
					}
				}
				if s, err := h.Open(hub.Everything, "noisy", []feed.Start{{Collection: "todos"}}, hub.SessionOptions{}); err == nil {
					defer s.Close()
				}
			}
		}()
		return func() int { close(over); return <-done }
	}
	for range 2 * limit / 10 { // what it had saved up is used up
		for range 10 {
			_ = into(h, "noisy", put("todos", "1", `{"a":1}`))
		}
	}
	var with, without []time.Duration
	refused := 0
	for b.Loop() {
		for range 4 {
			without = append(without, turn(100)...)
			stop := noise()
			with = append(with, turn(100)...)
			refused += stop()
		}
	}
	p99 := func(all []time.Duration) float64 {
		slices.Sort(all)
		return float64(all[len(all)*99/100].Microseconds())
	}
	b.ReportMetric(p99(with)/p99(without), "with/without")
	b.ReportMetric(p99(with), "p99-µs")
	b.ReportMetric(float64(refused), "refused")
}

// TestATenantOverItsLimitIsNotWaitedFor: what it may write is in no group of others, so that they wait neither for
// the disk to sync it nor for its followers; and what it wrote is there soon anyway, in its order.
func TestATenantOverItsLimitIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		h := open(t, log, hub.Options{TenantLimits: map[string]hub.Limits{"noisy": {Writes: 1000}}})
		var all []hub.Write
		for i := range feed.MaxChanges {
			all = append(all, put("todos", fmt.Sprint(i), `{}`))
		}
		var err error
		for err == nil {
			err = into(h, "noisy", all...)
		}
		tooMany(t, err, "1000 changes a second")
		refused := time.Now()
		time.Sleep(100 * time.Millisecond)
		begin := func(tenant, key string) *hub.Pending {
			p, err := h.Begin(hub.Everything, hub.Request{Tenant: tenant, Writes: []hub.Write{put("todos", key, `{}`)}})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		before, began := log.Appends(), time.Now()
		var noisy []*hub.Pending
		for i := range 5 {
			time.Sleep(time.Millisecond)
			noisy = append(noisy, begin("noisy", fmt.Sprint(i)))
		}
		quiet := begin("quiet", "1")
		if _, err := quiet.Wait(t.Context()); err != nil || time.Since(began) != 5*time.Millisecond || log.Appends() != before+1 {
			t.Errorf("the quiet one's write took %s and %d groups: %v", time.Since(began), log.Appends()-before, err)
		}
		last := feed.Seq(0)
		for _, p := range noisy {
			r, err := p.Wait(t.Context())
			if err != nil || time.Since(began) != 21*time.Millisecond || r.Cursor.Seq <= last {
				t.Errorf("a write of the noisy one took %s, to %s after %d: %v", time.Since(began), r.Cursor, last, err)
			}
			last = r.Cursor.Seq
		}
		if n := log.Appends() - before; n != 2 {
			t.Errorf("there are %d groups", n)
		}
		began = time.Now()
		if _, err := begin("noisy", "late").Wait(t.Context()); err != nil || time.Since(began) != 20*time.Millisecond {
			t.Errorf("the noisy one's write took %s with nobody else there: %v", time.Since(began), err)
		}
		// Its patience ends 1 s after it was refused, here while one waits.
		time.Sleep(999*time.Millisecond - time.Since(refused))
		waits := begin("noisy", "2")
		time.Sleep(2 * time.Millisecond)
		follows := begin("noisy", "2")
		one, err1 := waits.Wait(t.Context())
		two, err2 := follows.Wait(t.Context())
		if err1 != nil || err2 != nil || one.Cursor.Seq >= two.Cursor.Seq {
			t.Errorf("what came first is at %s, what came then at %s: %v, %v", one.Cursor, two.Cursor, err1, err2)
		}
		time.Sleep(2 * time.Second)
		began = time.Now()
		if err := into(h, "noisy", put("todos", "1", `{}`)); err != nil || time.Since(began) != 0 {
			t.Errorf("after a pause it took %s: %v", time.Since(began), err)
		}
	})
}

func TestALargeRowThatIsWrittenAgainAndAgainTakesNoMemoryFromOthers(t *testing.T) {
	const row = 256 << 10
	h := open(t, feedtest.NewMemory(), hub.Options{Memory: 4 << 20})
	follow(t, h, of("ann"))
	for range 40 {
		write(t, h, put("todos", "1", fmt.Sprintf(`{"owner":"ann","text":%q}`, strings.Repeat("x", row))))
	}
	if bytes := h.Stats().Bytes; bytes > 3<<20 {
		t.Errorf("one row of %d bytes takes %d", row, bytes)
	}
	if _, err := h.Write(t.Context(), hub.Everything, hub.Request{Tenant: "globex", Writes: []hub.Write{put("todos", "1", `{}`)}}); err != nil {
		t.Errorf("another tenant can't write any more: %v", err)
	}
}
