package hub_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

func TestARefusedTransactionShowsRowsAsTheyStandAndNotAsItWouldHaveMadeThem(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	held := write(t, h, put("todos", "held", `{"v":1}`)).Outcomes[0].Seq
	r, err := try(h,
		put("todos", "new", `{}`), insert("todos", "new", `{}`), // would be there
		put("todos", "held", `{"v":2}`), when(held, modify("todos", "held", `{"v":3}`)), // would have another sequence
		as("id", put("todos", "other", `{"v":4}`)), as("id", put("todos", "other", `{"v":5}`)),
	)
	if err != nil || !r.Refused {
		t.Fatal(r, err)
	}
	var got []string
	for _, o := range r.Outcomes {
		got = append(got, fmt.Sprintf("%s %d %s", o.Status, o.Seq, o.Value))
	}
	want := []string{"aborted 0 ", "exists 0 ", "aborted 0 ", fmt.Sprintf(`conflict %d {"v":1}`, held), "aborted 0 ", "id-reused 0 "}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestTheCursorOfAWriteIsReachedWithoutWaitingForOthers(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	s := session(t, h, "todos")
	write(t, h, put("todos", "a", `{}`))
	removed := write(t, h, remove("todos", "a")).Outcomes[0].Seq
	b, err := s.Next(t.Context())
	if err != nil || b.Cursor.Seq != removed {
		t.Fatal(b, err)
	}
	write(t, h, put("elsewhere", "x", `{}`))
	// Removed again, under an id and without one, and once more under that id: nothing
	// comes of it, so a follower that stands at the first remove has it all.
	for _, w := range []hub.Write{remove("todos", "a"), as("id", remove("todos", "a")), as("id", remove("todos", "a")), remove("todos", "never")} {
		if r := write(t, h, w); r.Cursor.Seq > removed {
			t.Errorf("%+v asks followers of its collection to come to %d, where nothing will bring them before a heartbeat", w, r.Cursor.Seq)
		}
	}
}

func TestAWriteWhoseReplyGotLostIsAnsweredAsWhatBecameOfIt(t *testing.T) {
	lost := errors.New("boom")
	for name, c := range map[string]struct {
		hook func(log *feedtest.Memory, try int, after feed.Position, group []byte) error
		ok   bool
		hub  error // what the hub is afterwards
	}{
		"stored, and asked again": {func(_ *feedtest.Memory, try int, _ feed.Position, _ []byte) error {
			return map[int]error{0: feedtest.ErrStored}[try]
		}, true, nil},
		"not stored, and asked again": {func(_ *feedtest.Memory, try int, _ feed.Position, _ []byte) error {
			return map[int]error{0: feed.ErrUnknown, 1: feed.ErrUnknown}[try]
		}, true, nil},
		"unknown, then failing, then stored": {func(_ *feedtest.Memory, try int, _ feed.Position, _ []byte) error {
			return map[int]error{0: feedtest.ErrStored, 1: lost, 2: lost}[try]
		}, true, nil},
		"certainly not stored": {func(_ *feedtest.Memory, try int, _ feed.Position, _ []byte) error {
			return map[int]error{0: lost}[try]
		}, false, nil},
		"certainly not stored, which was not known at first": {func(_ *feedtest.Memory, try int, _ feed.Position, _ []byte) error {
			return map[int]error{0: feed.ErrUnknown, 1: fmt.Errorf("asked: %w", feed.ErrNotReady), 2: fmt.Errorf("looked: %w", feed.ErrNotWritten)}[try]
		}, false, nil},
		"not ready": {func(_ *feedtest.Memory, try int, _ feed.Position, _ []byte) error {
			return map[int]error{0: fmt.Errorf("%w: the disk is full", feed.ErrNotReady)}[try]
		}, false, nil},
		"stored, and not ready when it is asked again": {func(_ *feedtest.Memory, try int, _ feed.Position, _ []byte) error {
			return map[int]error{0: feedtest.ErrStored, 1: feed.ErrNotReady, 2: feed.ErrNotReady}[try]
		}, true, nil},
		"fenced": {func(_ *feedtest.Memory, try int, _ feed.Position, _ []byte) error {
			return map[int]error{0: feed.ErrFenced}[try]
		}, false, hub.ErrFailed},
		"unknown, and somebody else's stands there": {func(log *feedtest.Memory, try int, after feed.Position, _ []byte) error {
			if try == 1 {
				log.Harm(func(groups [][]byte) [][]byte { return append(groups, []byte("theirs")) })
			}
			return map[int]error{0: feed.ErrUnknown}[try]
		}, false, hub.ErrFailed},
		"damaged": {func(_ *feedtest.Memory, try int, _ feed.Position, _ []byte) error {
			return map[int]error{0: &feed.Damage{What: "boom"}}[try]
		}, false, hub.ErrFailed},
		"stored, and somebody else wrote after it": {func(log *feedtest.Memory, try int, after feed.Position, _ []byte) error {
			if try == 1 {
				log.Harm(func(groups [][]byte) [][]byte { return append(groups, []byte("theirs")) })
			}
			return map[int]error{0: feedtest.ErrStored}[try]
		}, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := feedtest.NewMemory()
				h := open(t, log, hub.Options{})
				s := session(t, h, "todos")
				s.Next(t.Context())
				tries := 0
				log.OnAppend = func(after feed.Position, group []byte) error {
					tries++
					return c.hook(log, tries-1, after, group)
				}
				r, err := try(h, put("todos", "a", `{}`))
				switch {
				case c.ok && (err != nil || r.Outcomes[0].Status != hub.OK):
					t.Fatalf("%+v, %v", r, err)
				case !c.ok && refusal(t, err, hub.Unavailable).Unknown:
					t.Fatalf("%v, though it is known", err)
				case c.ok != (len(rows(t, h, "todos")) == 1):
					t.Fatalf("it was answered with %v, and there is %q", err, rows(t, h, "todos"))
				}
				if err := h.Err(); !errors.Is(err, c.hub) {
					t.Fatalf("the hub says %v", err)
				}
				if c.hub == nil {
					if log.Held() < 2 { // nobody else's
						write(t, h, put("todos", "b", `{}`))
					}
					return
				}
				h.Drain(context.Background()) // is not why any more
				var ended *hub.Ended
				if _, err := s.Next(t.Context()); !errors.As(err, &ended) || ended.Reason != hub.EndFailed || ended.Retry == 0 {
					t.Errorf("a session goes on: %v", err)
				}
				if _, err := h.Open(hub.Everything, "acme", nil, hub.SessionOptions{}); err == nil {
					t.Error("it takes a session, which would come and go for ever")
				}
				_, err = try(h, put("todos", "b", `{}`))
				refusal(t, err, hub.Unavailable)
			})
		})
	}
}

func TestStoppingDoesNotSayThatNothingHappenedWhereThatIsNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		h := open(t, log, hub.Options{})
		log.OnAppend = func(feed.Position, []byte) error { return feed.ErrUnknown }
		p, err := h.Begin(hub.Everything, hub.Request{Tenant: "acme", Writes: []hub.Write{put("todos", "a", `{}`)}})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_, err = try(h, put("todos", "b", `{}`))
		if refusal(t, err, hub.Unavailable).Unknown {
			t.Errorf("the write behind it, which is not, is answered with %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		if err := h.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 10*time.Second {
			t.Errorf("drained with %v after %v", err, time.Since(start))
		}
		_, err = p.Wait(t.Context())
		if !refusal(t, err, hub.Unavailable).Unknown {
			t.Errorf("the write that may be there is answered with %v", err)
		}
		if !errors.Is(h.Err(), hub.ErrDraining) {
			t.Errorf("the hub says %v", h.Err())
		}
	})
}

// A log that is not ready, or does not answer, is no reason to hang.
func TestWhoWritesToALogThatTakesNothingIsToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		var full error
		log.OnReady = func() error { return full }
		h := open(t, log, hub.Options{})
		full = fmt.Errorf("%w: the disk is full, make room", feed.ErrNotReady)
		_, err := try(h, put("todos", "a", `{}`))
		if r := refusal(t, err, hub.Unavailable); r.Unknown || !strings.Contains(r.Detail, "make room") {
			t.Errorf("%+v", r)
		}
		full = nil

		asked, gate := make(chan struct{}), make(chan error)
		log.OnAppend = func(feed.Position, []byte) error { asked <- struct{}{}; return <-gate }
		first, err := h.Begin(hub.Everything, hub.Request{Tenant: "acme", Writes: []hub.Write{put("todos", "a", `{}`)}})
		if err != nil {
			t.Fatal(err)
		}
		<-asked
		waits, err := h.Begin(hub.Everything, hub.Request{Tenant: "acme", Writes: []hub.Write{put("todos", "b", `{}`)}})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		gate <- feed.ErrUnknown
		_, err = waits.Wait(t.Context())
		if refusal(t, err, hub.Unavailable).Unknown || time.Since(start) > 0 {
			t.Errorf("who waited is told %v after %v", err, time.Since(start))
		}
		<-asked // again, and it takes its time
		_, err = try(h, put("todos", "c", `{}`))
		refusal(t, err, hub.Unavailable)
		gate <- nil
		if _, err := first.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		log.OnAppend = nil
		write(t, h, put("todos", "d", `{}`))
		if got := rows(t, h, "todos"); len(got) != 2 {
			t.Errorf("%q", got)
		}
	})
}

func TestDrainAnswersAllThatWasTakenAndTakesNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		h := open(t, log, hub.Options{})
		gate := make(chan struct{})
		log.OnAppend = func(feed.Position, []byte) error { <-gate; return nil }
		var taken []*hub.Pending
		for i := range 50 {
			p, err := h.Begin(hub.Everything, hub.Request{Tenant: "acme", Writes: []hub.Write{put("todos", fmt.Sprint(i), `{}`)}})
			if err != nil {
				t.Fatal(err)
			}
			taken = append(taken, p)
		}
		drained := make(chan error)
		go func() { drained <- h.Drain(context.Background()) }()
		synctest.Wait()
		_, err := try(h, put("todos", "late", `{}`))
		refusal(t, err, hub.Unavailable)
		_, err = h.Open(hub.Everything, "acme", nil, hub.SessionOptions{})
		refusal(t, err, hub.Unavailable)
		close(gate)
		if err := <-drained; err != nil {
			t.Fatal(err)
		}
		for _, p := range taken {
			if r, err := p.Wait(t.Context()); err != nil || r.Outcomes[0].Status != hub.OK {
				t.Fatal(r, err)
			}
		}
		if err := h.Drain(context.Background()); err != nil {
			t.Error("the second time:", err)
		}
		if n := len(rows(t, open(t, log, hub.Options{}), "todos")); n != 50 {
			t.Errorf("%d of 50 are there", n)
		}
	})
}

// busy keeps the log from answering a first write, so that others gather behind it,
// until release is called.
func busy(t *testing.T, h *hub.Hub, log *feedtest.Memory) (release func()) {
	t.Helper()
	entered, gate := make(chan struct{}, 1000), make(chan struct{})
	log.OnAppend = func(feed.Position, []byte) error {
		entered <- struct{}{}
		<-gate
		return nil
	}
	p, err := h.Begin(hub.Everything, hub.Request{Tenant: "acme", Writes: []hub.Write{put("todos", "first", `{}`)}})
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	return func() {
		t.Helper()
		close(gate)
		if _, err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManySmallWritesWithLongNamesFitIntoAGroup(t *testing.T) {
	log := feedtest.NewMemory()
	h := open(t, log, hub.Options{})
	release := busy(t, h, log)
	var pending []*hub.Pending
	begin := func(r hub.Request) {
		r.Tenant, r.Client = strings.Repeat("t", 64), strings.Repeat("c", 256)
		p, err := h.Begin(hub.Everything, r)
		if err != nil {
			t.Fatal(err)
		}
		pending = append(pending, p)
	}
	for i := range 22 {
		r := hub.Request{Writes: make([]hub.Write, feed.MaxChanges)}
		for j := range r.Writes {
			r.Writes[j] = put("t", fmt.Sprintf("%x", i*1000+j), `{}`)
		}
		begin(r)
	}
	large := hub.Request{Atomic: true}
	for i := range 3 {
		large.Writes = append(large.Writes, put("t", fmt.Sprint("large", i), `{"v":"`+strings.Repeat("v", 1<<20-10)+`"}`))
	}
	begin(large)
	release()
	for i, p := range pending {
		if _, err := p.Wait(t.Context()); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
}

func TestAFewSmallPatchesCanNotAskForAllMemory(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	write(t, h, put("todos", "a", `{"v":"`+strings.Repeat("v", 1<<20-100)+`"}`))
	patches := make([]hub.Write, feed.MaxChanges)
	for i := range patches {
		patches[i] = modify("todos", "a", `{"n":1}`)
	}
	for _, atomic := range []bool{true, false} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := h.Write(t.Context(), hub.Everything, hub.Request{Tenant: "acme", Atomic: atomic, Writes: patches})
		refusal(t, err, hub.TooLarge)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 100<<20 {
			t.Errorf("it took %d MiB to say no", n>>20)
		}
	}
}

func TestMemoryThatIsUsedUpRefusesGrowthAndTakesRemoves(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{Memory: 1 << 20})
	value := `{"v":"` + strings.Repeat("v", 1000) + `"}`
	fill := func(w func(i int) hub.Write) (n int) {
		for ; ; n++ {
			if _, err := try(h, w(n)); err != nil {
				refusal(t, err, hub.Unavailable)
				break
			}
			if n > 100_000 {
				t.Fatal("it never ends")
			}
		}
		if s := h.Stats(); s.Bytes > s.Memory+4096 || s.Bytes < s.Memory-4096 {
			t.Errorf("it says no at %d of %d bytes", s.Bytes, s.Memory)
		}
		return n
	}
	n := fill(func(i int) hub.Write { return put("todos", fmt.Sprint(i), value) })
	fill(func(i int) hub.Write { return as(fmt.Sprint("noop", i), remove("todos", "never")) })
	_, err := try(h, as("m", modify("todos", "0", `{"more":`+value+`}`)))
	refusal(t, err, hub.Unavailable)
	write(t, h, put("todos", "0", `{}`)) // smaller
	for i := range n {
		write(t, h, as(fmt.Sprint(i), remove("todos", fmt.Sprint(i))))
	}
	write(t, h, put("todos", "again", value))
}

func TestLimits(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{Sessions: 3})
	many := func(n int, w hub.Write) (all []hub.Write) { return slices.Repeat([]hub.Write{w}, n) }
	deep := func(n int) string { return `{"a":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + "}" }
	wide := func(n int) string { return `{"a":[` + strings.Repeat("1,", n) + "1]}" }
	long := func(n int) string { return `{"a":"` + strings.Repeat("x", n-len(`{"a":""}`)) + `"}` }
	for name, c := range map[string]struct {
		writes []hub.Write
		code   hub.Code // "": taken
	}{
		"no change":              {nil, hub.BadRequest},
		"500 changes":            {many(500, put("t", "a", `{}`)), ""},
		"501 changes":            {many(501, put("t", "a", `{}`)), hub.TooMany},
		"the largest value":      {many(1, put("t", "a", long(hub.MaxValue))), ""},
		"larger":                 {many(1, put("t", "a", long(hub.MaxValue+1))), hub.TooLarge},
		"the largest, and space": {many(1, put("t", "a", "  "+long(hub.MaxValue)+"\n ")), ""},
		"the largest request":    {many(3, put("t", "a", long(hub.MaxValue))), ""},
		"a larger one":           {many(5, put("t", "a", long(hub.MaxValue))), hub.TooLarge},
		"a huge one":             {many(100, put("t", "a", long(hub.MaxValue))), hub.TooLarge},
		"64 levels":              {many(1, put("t", "a", deep(64))), ""},
		"65 levels":              {many(1, put("t", "a", deep(65))), hub.BadRequest},
		"65 levels in a patch":   {many(1, modify("t", "a", deep(65))), hub.BadRequest},
		"many elements":          {many(1, put("t", "a", wide(99_000))), ""},
		"too many":               {many(1, put("t", "a", wide(101_000))), hub.BadRequest},
		"a name twice":           {many(1, put("t", "a", `{"a":1,"\u0061":2}`)), hub.BadRequest},
		"not UTF-8":              {many(1, put("t", "a", "{\"a\":\"\xff\"}")), hub.BadRequest},
		"half a surrogate":       {many(1, put("t", "a", `{"a":"\ud800"}`)), hub.BadRequest},
		"not an object":          {many(1, put("t", "a", `[1]`)), hub.BadRequest},
		"nothing":                {many(1, hub.Write{Collection: "t", Op: "insert"}), hub.BadRequest},
		"more than one value":    {many(1, put("t", "a", `{} {}`)), hub.BadRequest},
		"cut":                    {many(1, put("t", "a", `{"a":`)), hub.BadRequest},
		"an unknown op":          {many(1, hub.Write{Collection: "t", Op: "delete", Key: "a"}), hub.BadRequest},
		"value and patch":        {many(1, hub.Write{Collection: "t", Op: "modify", Key: "a", Value: []byte(`{}`), Patch: []byte(`{}`)}), hub.BadRequest},
		"neither":                {many(1, hub.Write{Collection: "t", Op: "modify", Key: "a"}), hub.BadRequest},
		"put with a patch":       {many(1, hub.Write{Collection: "t", Op: "put", Key: "a", Patch: []byte(`{}`)}), hub.BadRequest},
		"remove with a value":    {many(1, hub.Write{Collection: "t", Op: "remove", Key: "a", Value: []byte(`{}`)}), hub.BadRequest},
		"put without a key":      {many(1, put("t", "", `{}`)), hub.BadName},
		"a bad key":              {many(1, put("t", "a\n", `{}`)), hub.BadName},
		"a bad collection":       {many(1, put("t/", "a", `{}`)), hub.BadName},
		"a bad id":               {many(1, as("\n", put("t", "a", `{}`))), hub.BadName},
	} {
		if r, err := try(h, c.writes...); c.code != "" {
			t.Run(name, func(t *testing.T) { refusal(t, err, c.code) })
		} else if err != nil || r.Refused {
			t.Errorf("%s: %+v, %v", name, r.Outcomes, err)
		}
	}
	for _, r := range []hub.Request{
		{Tenant: "ac me", Writes: many(1, put("t", "a", `{}`))},
		{Tenant: "acme", Client: "\n", Writes: many(1, put("t", "a", `{}`))},
	} {
		_, err := h.Write(t.Context(), hub.Everything, r)
		refusal(t, err, hub.BadName)
	}

	// What grows by patches has the same bounds.
	write(t, h, put("t", "b", long(hub.MaxValue-20)))
	_, err := try(h, modify("t", "b", `{"b":"xxxxxxxxxxxxxxxxxxxxxxx"}`))
	refusal(t, err, hub.TooLarge)
	write(t, h, put("t", "b", wide(60_000)))
	_, err = try(h, modify("t", "b", strings.Replace(wide(60_000), "a", "b", 1)))
	refusal(t, err, hub.TooLarge)

	// A feed's.
	starts := make([]feed.Start, feed.MaxCollections)
	for i := range starts {
		starts[i].Collection = fmt.Sprint("c", i)
	}
	s, err := h.Open(hub.Everything, "acme", starts, hub.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	refusal(t, s.Subscribe([]feed.Start{{Collection: "more"}}, "done"), hub.TooMany)
	if err := s.Subscribe(starts[:2], "done"); err != nil {
		t.Error("what is followed already:", err)
	}
	_, err = h.Open(hub.Everything, "acme", append(starts, feed.Start{Collection: "more"}), hub.SessionOptions{})
	refusal(t, err, hub.TooMany)
	_, err = h.Open(hub.Everything, "ac me", nil, hub.SessionOptions{})
	refusal(t, err, hub.BadName)
	_, err = h.Open(hub.Everything, "acme", []feed.Start{{Collection: "/"}}, hub.SessionOptions{})
	refusal(t, err, hub.BadName)
	session(t, h)
	session(t, h)
	_, err = h.Open(hub.Everything, "acme", nil, hub.SessionOptions{})
	refusal(t, err, hub.Unavailable)
	s.Close()
	s.Close()
	session(t, h)
}

func TestWritesThatWaitAreBounded(t *testing.T) {
	log := feedtest.NewMemory()
	h := open(t, log, hub.Options{})
	release := busy(t, h, log)
	var pending []*hub.Pending
	fill := func(r hub.Request) (n int) {
		for ; ; n++ {
			p, err := h.Begin(hub.Everything, r)
			if err != nil {
				refusal(t, err, hub.Unavailable)
				return n
			}
			pending = append(pending, p)
		}
	}
	large := strings.Repeat(" ", 1<<20-100) + `{}`
	if n := fill(hub.Request{Tenant: "acme", Writes: []hub.Write{put("t", "a", large)}}); n < 28 || n > 33 {
		t.Errorf("%d MiB of one tenant wait: half of what there is room for", n)
	}
	release()
	for _, p := range pending {
		if _, err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	pending, release = nil, busy(t, h, log)
	if n := fill(hub.Request{Tenant: "acme", Writes: []hub.Write{put("t", "a", `{}`)}}); n != 2048 {
		t.Errorf("%d requests of one tenant wait: half of what there is room for", n)
	}
	// However many fill the line, there is room for one more; but not without end.
	total := 2048
	for i := range 30 {
		n := fill(hub.Request{Tenant: fmt.Sprint("tenant-", i), Writes: []hub.Write{put("t", "a", `{}`)}})
		if total += n; n == 0 && total < 4096 {
			t.Errorf("tenant %d is kept out, after %d", i, total)
		}
	}
	if total != 4096 {
		t.Errorf("%d requests wait", total)
	}
	release()
	for _, p := range pending {
		if _, err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAGrantCoversWhatItSaysAndNoMore(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	g := hub.Grant{Tenant: "acme", Read: []string{"todos", "projects/*/todos", "shared/**"}, Write: []string{"todos"}}
	for collection, may := range map[string]bool{
		"todos": true, "Todos": false, "todos/1": false, "projects/7/todos": true, "projects/7/8/todos": false, "projects/todos": false,
		"projects/7": false, "shared": false, "shared/a": true, "shared/a/b": true, "other": false,
	} {
		if g.MayRead("acme", collection) != may || g.MayRead("other", collection) {
			t.Errorf("%s: may read %v in its tenant, %v in another", collection, g.MayRead("acme", collection), g.MayRead("other", collection))
		}
		s, err := h.Open(g, "acme", []feed.Start{{Collection: collection}}, hub.SessionOptions{})
		if (err == nil) != may {
			t.Errorf("%s: a feed gives %v", collection, err)
		}
		if err == nil {
			s.Close()
		}
		_, rowsErr := h.Rows(g, "acme", collection, "", 1)
		_, rowErr := h.Row(g, "acme", collection, "a")
		if (rowsErr == nil) != may || (rowErr == nil) != may {
			t.Errorf("%s: rows give %v, %v", collection, rowsErr, rowErr)
		}
		_, err = h.Write(t.Context(), g, hub.Request{Tenant: "acme", Atomic: true, Writes: []hub.Write{put("todos", "a", `{}`), put(collection, "b", `{}`)}})
		if (err == nil) != (collection == "todos") {
			t.Errorf("%s: a write gives %v", collection, err)
		}
	}
	s, err := h.Open(g, "acme", nil, hub.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	refusal(t, s.Subscribe([]feed.Start{{Collection: "todos"}, {Collection: "other"}}, "done"), hub.Forbidden)
	_, err = h.Open(g, "other", []feed.Start{{Collection: "todos"}}, hub.SessionOptions{})
	refusal(t, err, hub.Forbidden)
	_, err = h.Write(t.Context(), hub.Grant{}, hub.Request{Tenant: "acme", Writes: []hub.Write{put("todos", "a", `{}`)}})
	refusal(t, err, hub.Forbidden)
	for _, g := range []hub.Grant{{Tenant: "*", Read: []string{"a/*"}}, {Tenant: "*", Read: []string{"*"}}, {Tenant: "*", Read: []string{""}}, {Tenant: "*"}} {
		if g.MayRead("acme", "a/b/c") {
			t.Errorf("%v covers a/b/c", g.Read)
		}
	}
}

// Everyone writes to rows of their own and to one that all share; each is told what
// became of it, and the shared one has seen every step.
func TestWritersAtOnceAreEachAnsweredAndNoneIsLost(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	write(t, h, put("todos", "shared", `{"n":0}`))
	const writers, each = 16, 50
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				for {
					row, err := h.Row(hub.Everything, "acme", "todos", "shared")
					if err != nil {
						t.Error(err)
						return
					}
					var n int
					fmt.Sscanf(row.Value(), `{"n":%d}`, &n)
					r, err := try(h, put("todos", fmt.Sprint(w, "-", i), `{}`), when(row.Seq(), put("todos", "shared", fmt.Sprintf(`{"n":%d}`, n+1))))
					if err != nil {
						t.Error(err)
						return
					}
					if !r.Refused {
						break
					}
					if r.Outcomes[1].Status != hub.Conflict || r.Outcomes[1].Seq <= row.Seq() {
						t.Errorf("refused with %+v", r.Outcomes[1])
						return
					}
				}
			}
		})
	}
	all.Wait()
	row, err := h.Row(hub.Everything, "acme", "todos", "shared")
	if want := fmt.Sprintf(`{"n":%d}`, writers*each); err != nil || row.Value() != want {
		t.Errorf("the shared row is at %s, %v; want %s", row.Value(), err, want)
	}
	if n := h.Stats().Rows; n != writers*each+1 {
		t.Errorf("%d rows", n)
	}
}

func TestWhoDoesNotWaitForAWriteIsToldOnceWhatBecameOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		h := open(t, log, hub.Options{})
		var told []string
		begin := func(w hub.Write) error {
			return h.BeginThen(hub.Everything, hub.Request{Tenant: "acme", Atomic: true, Writes: []hub.Write{w}}, func(r hub.Result, err error) {
				if err != nil {
					told = append(told, err.Error())
				} else {
					told = append(told, string(r.Outcomes[0].Status))
				}
			})
		}
		for _, w := range []hub.Write{insert("todos", "a", `{}`), insert("todos", "a", `{}`)} {
			if err := begin(w); err != nil {
				t.Fatal(err)
			}
		}
		refusal(t, begin(put("/", "a", `{}`)), hub.BadName)
		synctest.Wait()
		log.OnAppend = func(feed.Position, []byte) error { return errors.New("boom") }
		if err := begin(put("todos", "b", `{}`)); err != nil {
			t.Fatal(err)
		}
		if err := h.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		refusal(t, begin(put("todos", "c", `{}`)), hub.Unavailable)
		synctest.Wait()
		if want := []string{"ok", "exists", "the log did not take the write: try again in a moment"}; !slices.Equal(told, want) {
			t.Errorf("got %q, want %q", told, want)
		}
	})
}

func TestWhatAWriteWasAnsweredStaysTrueWhenOtherWritesFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		h := open(t, log, hub.Options{})
		release := busy(t, h, log) // what is begun meanwhile is one group
		var results []hub.Result
		begin := func(writes ...hub.Write) {
			err := h.BeginThen(hub.Everything, hub.Request{Tenant: "acme", Client: "c", Writes: writes}, func(r hub.Result, err error) {
				if err != nil {
					t.Error(err)
				}
				results = append(results, r)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		const a, merged = `{"row":"a","as it was":1}`, `{"row":"b","as it was":1}`
		first := insert("todos", "a", a)
		first.ID = "one"
		begin(first)
		begin(first)                                                        // a duplicate
		begin(insert("todos", "a", `{"x":1}`), modify("todos", "b", `{}`))  // exists, missing
		begin(modify("todos", "a", `{"row":"b"}`), insert("todos", "a", a)) // ok, exists
		release()
		synctest.Wait()
		for i := range 100 {
			write(t, h, put("todos", "other", fmt.Sprintf(`{"something else, and longer than before":%d}`, i)))
		}
		var got []string
		for _, r := range results {
			for _, o := range r.Outcomes {
				got = append(got, string(o.Status)+" "+o.Value)
			}
		}
		if want := []string{"ok " + a, "duplicate " + a, "exists " + a, "missing ", "ok " + merged, "exists " + merged}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
