package hub_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// trimmed is a log that tells when a checkpoint has replaced a part of it.
type trimmed struct {
	*feedtest.Memory
	to chan feed.Position
}

func (l *trimmed) Trim(ctx context.Context, before feed.Position) error {
	err := l.Memory.Trim(ctx, before)
	l.to <- before
	return err
}

// aLog has rows, tombstones and ids, in several tenants, in a checkpoint and in groups
// after it. Padding makes some rows larger, so that the checkpoint has several parts.
func aLog(t testing.TB, padding int) *feedtest.Memory {
	log := &trimmed{feedtest.NewMemory(), make(chan feed.Position, 1)}
	h, err := hub.Open(context.Background(), log, hub.Options{Log: 2000 + 12*int64(padding)})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Drain(context.Background())
	n := 0
	more := func() {
		n++
		for _, tenant := range []string{"acme", "other"} {
			_, err := h.Write(context.Background(), hub.Everything, hub.Request{Tenant: tenant, Client: "c", Atomic: true, Writes: []hub.Write{
				put("todos", "a", fmt.Sprintf(`{"n":%d}`, n)), as(fmt.Sprint("id", n), put("todos", fmt.Sprint("k", n), `{"x":"é\"\\"}`)),
				remove("todos", fmt.Sprint("k", n-1)), as(fmt.Sprint("noop", n), remove("lists/1", "never")), put("lists/2", `"`, `{}`),
				put("lists/2", fmt.Sprint("pad", n), `{"v":"`+strings.Repeat("v", padding)+`"}`),
			}})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	// The first checkpoint comes after some groups.
	for saved := feed.Position(0); saved == 0; {
		more()
		select {
		case saved = <-log.to:
		default:
		}
	}
	more()
	more()
	return log.Memory
}

// content is all that tenants hold.
func content(t testing.TB, h *hub.Hub) string {
	t.Helper()
	var b strings.Builder
	for _, tenant := range []string{"acme", "other"} {
		s, err := h.Open(hub.Everything, tenant, []feed.Start{{Collection: "todos"}, {Collection: "lists/1"}, {Collection: "lists/2"}}, hub.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for live := false; !live; {
			batch, err := s.Next(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range batch.Items {
				fmt.Fprintf(&b, "%s %s\n", tenant, i.Append(nil))
			}
			live = batch.Live
		}
	}
	return b.String()
}

func TestARestartShowsWhatWasThereBefore(t *testing.T) {
	log := aLog(t, 100_000)
	h := open(t, log, hub.Options{})
	if got := content(t, h); strings.Count(got, "\n") < 10 {
		t.Fatalf("too little: %s", got)
	}
	for range 3 {
		before, stats := content(t, h), h.Stats()
		h.Drain(context.Background())
		h = open(t, log, hub.Options{})
		if after := content(t, h); after != before {
			t.Fatalf("before:\n%s\nafter:\n%s", before, after)
		}
		again := h.Stats()
		if again.Head != stats.Head || again.Rows != stats.Rows || again.Bytes != stats.Bytes {
			t.Fatalf("before %+v, after %+v", stats, again)
		}
		write(t, h, put("todos", "more", `{}`))
	}
}

// With a value of the largest size, a part of the checkpoint has more than that.
func TestTheLargestRowsFitIntoACheckpoint(t *testing.T) {
	log := &trimmed{feedtest.NewMemory(), make(chan feed.Position, 10)}
	log.OnSave = func(feed.Position) error { return nil }
	h := open(t, log, hub.Options{Log: 1})
	value := `{"v":"` + strings.Repeat("v", hub.MaxValue-len(`{"v":""}`)) + `"}`
	quotes := strings.Repeat(`"`, feed.MaxKey)
	for i := range 3 {
		w := as(quotes, put("todos", quotes[1:]+fmt.Sprint(i), value))
		if _, err := h.Write(t.Context(), hub.Everything, hub.Request{Tenant: "acme", Client: quotes[i:], Writes: []hub.Write{w}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; len(log.to) == 0; i++ {
		write(t, h, put("todos", fmt.Sprint(i%10), strings.Repeat(" ", 1)+value[:len(value)-1000]+`"}`))
		if i > 50 {
			t.Fatal("no checkpoint is ever saved, so the log grows for ever")
		}
	}
	h.Drain(context.Background())
	h = open(t, log, hub.Options{})
	if row, err := h.Row(hub.Everything, "acme", "todos", quotes[1:]+"1"); err != nil || row == nil || row.Value() != value {
		t.Error("a large row is not there any more", err)
	}
}

func TestACheckpointThatFailsIsTriedAgainAndCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		saves := 0
		log.OnSave = func(feed.Position) error {
			if saves++; saves < 4 {
				return errors.New("the disk is full")
			}
			return nil
		}
		h := open(t, log, hub.Options{Log: 10_000})
		value := `{"v":"` + strings.Repeat("v", 1000) + `"}`
		for range 100 {
			write(t, h, put("todos", "a", value))
			synctest.Wait()
		}
		if saves < 5 || saves > 12 || log.Held() > 15 {
			t.Errorf("after %d attempts the log holds %d groups", saves, log.Held())
		}
		before := content(t, h)
		h.Drain(context.Background())
		if after := content(t, open(t, log, hub.Options{})); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
}

// spoilt is a log that loses something when it is trimmed, and says so.
type spoilt struct{ *feedtest.Memory }

func (spoilt) Trim(context.Context, feed.Position) error {
	return &feed.Damage{At: 7, What: "after trimming, it is empty"}
}

func TestALogThatIsDamagedUnderWayIsNotServedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, spoilt{feedtest.NewMemory()}, hub.Options{Log: 1})
		for range 2 { // the second looks how the checkpoint after the first went
			write(t, h, put("todos", "a", `{}`))
			synctest.Wait()
		}
		if err := h.Err(); !errors.Is(err, hub.ErrFailed) || !errors.Is(err, feed.ErrDamaged) {
			t.Errorf("the hub says %v", err)
		}
		_, err := try(h, put("todos", "b", `{}`))
		refusal(t, err, hub.Unavailable)
	})
}

// rewrite decodes a group, lets fn change it and signs it anew.
func rewrite(t *testing.T, b []byte, fn func(g *feed.Group)) []byte {
	t.Helper()
	g, _, err := feed.DecodeGroup(b)
	if err != nil {
		t.Fatal(err)
	}
	fn(g)
	b, _ = feed.AppendGroup(nil, g)
	return b
}

func TestADamagedLogIsNotServed(t *testing.T) {
	type list = [][]byte
	group := func(i int, fn func(g *feed.Group)) func(t *testing.T, groups list) list {
		return func(t *testing.T, groups list) list { groups[i] = rewrite(t, groups[i], fn); return groups }
	}
	whole := aLog(t, 400_000)
	at := feed.Position(whole.Appends()-whole.Held()) + 1
	clone := func(l list) list {
		l = slices.Clone(l)
		for i := range l {
			l[i] = bytes.Clone(l[i])
		}
		return l
	}
	for name, c := range map[string]struct {
		groups func(t *testing.T, groups list) list // the first is the checkpoint's own
		parts  func(parts list) list
		want   string
	}{
		"the checkpoint's own group is gone":   {groups: func(_ *testing.T, g list) list { return g[:0] }, want: "position A"},
		"another group stands in its place":    {groups: group(0, func(g *feed.Group) { g.At++ }), want: "position A"},
		"a group is missing":                   {groups: func(_ *testing.T, g list) list { return slices.Delete(g, 1, 2) }, want: "position B"},
		"the first ones are missing":           {groups: func(_ *testing.T, g list) list { return g[1:] }, want: "position A"},
		"two are exchanged":                    {groups: func(_ *testing.T, g list) list { g[1], g[2] = g[2], g[1]; return g }, want: "position B"},
		"one is there twice":                   {groups: func(_ *testing.T, g list) list { return slices.Insert(g, 1, g[1]) }, want: "position C"},
		"a byte differs":                       {groups: func(_ *testing.T, g list) list { g[2] = flip(g[2]); return g }, want: "position C"},
		"one is cut":                           {groups: func(_ *testing.T, g list) list { g[2] = g[2][:20]; return g }, want: "position C"},
		"one is of another log":                {groups: group(1, func(g *feed.Group) { g.Epoch = "other" }), want: "position B"},
		"one does not follow":                  {groups: group(1, func(g *feed.Group) { g.Prev[0]++ }), want: "position B"},
		"one has another content":              {groups: group(1, func(g *feed.Group) { g.Transactions[0].Records[0].Key = "b" }), want: "position C"},
		"one skips a sequence":                 {groups: group(1, func(g *feed.Group) { g.First++ }), want: "position B"},
		"one goes back in time":                {groups: group(2, func(g *feed.Group) { g.At = 1 }), want: "position C"},
		"one goes back in age":                 {groups: group(2, func(g *feed.Group) { g.Age = 1 }), want: "position C"},
		"one goes back in steady time":         {groups: group(2, func(g *feed.Group) { g.Steady = 1 }), want: "position C"},
		"a part of the checkpoint has changed": {parts: func(p list) list { p[2] = flip(p[2]); return p }, want: "part 3"},
		"a part is missing":                    {parts: func(p list) list { return slices.Delete(p, 2, 3) }, want: "part 3"},
		"the last part is missing":             {parts: func(p list) list { return p[:len(p)-1] }, want: "position A"},
		"the first part is missing":            {parts: func(p list) list { return p[1:] }, want: "part 1"},
		"all parts are missing":                {parts: func(p list) list { return nil }, want: "position A"},
		"two parts are exchanged":              {parts: func(p list) list { p[2], p[3] = p[3], p[2]; return p }, want: "part 3"},
		"the end is of another checkpoint":     {parts: forged(func(p list) { e := p[len(p)-1]; e[len(e)-17] ^= 1 }), want: "the parts before it"},
		"a part's head is of another one":      {parts: forged(func(p list) { p[2][17] ^= 1 }), want: "another checkpoint"},
		"there is more after the end":          {parts: func(p list) list { return append(p, p[0]) }, want: "checkpoint, part"},
		"a part is empty":                      {parts: func(p list) list { p[1] = nil; return p }, want: "part 2"},
	} {
		t.Run(name, func(t *testing.T) {
			var groups, parts list
			whole.Harm(func(all list) list { groups = clone(all); return all })
			whole.HarmCheckpoint(func(all list) list { parts = clone(all); return all })
			if c.groups != nil {
				groups = c.groups(t, groups)
			}
			if c.parts != nil {
				parts = c.parts(parts)
			}
			log := feedtest.Found(whole.Epoch(), at, parts, groups)
			want := strings.NewReplacer("A", fmt.Sprint(at), "B", fmt.Sprint(at+1), "C", fmt.Sprint(at+2)).Replace(c.want)
			h, err := hub.Open(t.Context(), log, hub.Options{})
			if err == nil {
				h.Drain(context.Background())
			}
			if !errors.Is(err, feed.ErrDamaged) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, without a word of %s", err, want)
			}
		})
	}
}

// forged harms the parts of a checkpoint, and gives them the sums that they should have.
func forged(harm func(parts [][]byte)) func(parts [][]byte) [][]byte {
	return func(parts [][]byte) [][]byte {
		harm(parts)
		for i, p := range parts {
			sum := sha256.Sum256(p[:len(p)-16])
			parts[i] = append(p[:len(p)-16:len(p)-16], sum[:16]...)
		}
		return parts
	}
}

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

// logV1 is what the hub before formats 2 made of aLog, with the parts of its checkpoint,
// and what it held.
func logV1(t testing.TB, name string) (*feedtest.Memory, [][]byte) {
	t.Helper()
	old := readV1(t, name)
	return feedtest.Found(old.Epoch, old.At, old.Parts, old.Groups), old.Parts
}

type v1 struct {
	Epoch         feed.Epoch
	At            feed.Position
	Parts, Groups [][]byte
	Content       string
	Bytes         int64
}

func readV1(t testing.TB, name string) (old v1) {
	t.Helper()
	f, err := os.Open("testdata/" + name + ".v1.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err == nil {
		err = json.NewDecoder(z).Decode(&old)
	}
	if err != nil {
		t.Fatal(err)
	}
	return old
}

// What an older version wrote is read, goes on in the new format, and ids are still known.
func TestALogOfTheVersionBeforeIsServedOn(t *testing.T) {
	for _, name := range []string{"small", "large"} {
		synctest.Test(t, func(t *testing.T) {
			old := readV1(t, name)
			log, _ := logV1(t, name)
			for _, how := range []string{"at first", "after a restart", "from a new checkpoint"} {
				h := open(t, log, hub.Options{})
				if got := content(t, h); got != old.Content {
					t.Fatalf("%s: got\n%.3000s\nwant\n%.3000s", how, got, old.Content)
				}
				if got := h.Stats().Bytes; got != old.Bytes {
					t.Errorf("%s %s: %d bytes are held instead of %d", name, how, got, old.Bytes)
				}
				r := write(t, h, as("id1", put("todos", "k1", `{"x":"é\"\\"}`)))
				if r.Outcomes[0].Status != hub.Duplicate {
					t.Errorf("%s: an id is forgotten: %+v", how, r.Outcomes)
				}
				if how == "after a restart" {
					if err := h.Checkpoint(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				h.Drain(context.Background())
			}
			h := open(t, log, hub.Options{})
			r, err := try(h, as("id1", put("todos", "k1", `{}`)))
			if err != nil || r.Outcomes[0].Status != hub.IDReused {
				t.Errorf("%+v, %v", r, err)
			}
			time.Sleep(2 * time.Hour) // of the bubble
			write(t, h, as("id1", put("todos", "k1", `{}`)))
		})
	}
}

// fuzzed is a log whose checkpoint has other parts.
type fuzzed struct {
	*feedtest.Memory
	at    feed.Position
	parts [][]byte
}

func (l *fuzzed) LoadCheckpoint(_ context.Context, fn func([]byte) error) (feed.Position, error) {
	for _, p := range l.parts {
		if err := fn(p); err != nil {
			return 0, err
		}
	}
	return l.at, nil
}

// FuzzCheckpoint reads any bytes as the parts of a checkpoint, as they are or, to get
// further, with the sums that they should have.
func FuzzCheckpoint(f *testing.F) {
	log := aLog(f, 0)
	h := open(f, log, hub.Options{})
	want := content(f, h)
	at := feed.Position(log.Appends()-log.Held()) + 1
	var parts [][]byte
	log.HarmCheckpoint(func(p [][]byte) [][]byte { parts = p; return p })
	join := func(parts [][]byte) (all []byte) {
		for _, p := range parts {
			all = append(binary.BigEndian.AppendUint16(all, uint16(len(p))), p...)
		}
		return all
	}
	f.Add(join(parts), false)
	f.Add(join(parts), true)
	_, old := logV1(f, "small")
	f.Add(join(old), true)
	for i := range parts {
		harmed := slices.Clone(parts)
		for bit := 0; bit < len(parts[i]); bit += 7 {
			harmed[i] = bytes.Clone(parts[i])
			harmed[i][bit] ^= 1
			f.Add(join(harmed), true)
			f.Add(join(harmed), false)
		}
		f.Add(join(slices.Delete(slices.Clone(parts), i, i+1)), true)
	}
	f.Fuzz(func(t *testing.T, all []byte, sign bool) {
		log := &fuzzed{Memory: log, at: at}
		for len(all) >= 2 {
			n := min(int(binary.BigEndian.Uint16(all)), len(all)-2)
			log.parts = append(log.parts, all[2:2+n:2+n])
			all = all[2+n:]
		}
		if sign {
			var sum [16]byte
			for i, p := range log.parts {
				body := p[:max(0, len(p)-len(sum))]
				full := sha256.Sum256(body)
				if len(body) > 3 && body[3] == 1 {
					full = sha256.Sum256(append(bytes.Clone(sum[:]), body...))
				}
				copy(sum[:], full[:])
				log.parts[i] = append(bytes.Clone(body), sum[:]...)
			}
		}
		h, err := hub.Open(context.Background(), log, hub.Options{})
		if err != nil {
			if !errors.Is(err, feed.ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		defer h.Drain(context.Background())
		// Some other state with the right sums is one that a hub may have had: it need
		// only be served.
		if got := content(t, h); !sign && got != want {
			t.Fatalf("got\n%s\nwant\n%s", got, want)
		}
		for _, c := range []string{"todos", "lists/1", "lists/2"} {
			rows(t, h, c)
		}
	})
}

// work does random things to a hub, so that all that it accounts for comes and goes.
func work(t *testing.T, h *hub.Hub, r *rand.Rand, n int) {
	t.Helper()
	for range n {
		req := hub.Request{Tenant: []string{"acme", "other"}[r.IntN(2)], Client: []string{"", "c", "dd"}[r.IntN(3)], Atomic: r.IntN(2) == 0}
		for range 1 + r.IntN(4) {
			collection, key := []string{"todos", "lists/1", "lists/2"}[r.IntN(3)], []string{"a", "b", `"c"`, "d", "e"}[r.IntN(5)]
			w := []hub.Write{
				put(collection, key, fmt.Sprintf(`{"v":"%s"}`, strings.Repeat("v", r.IntN(100)))),
				insert(collection, key, `{}`), insert(collection, "", `{"made":true}`),
				modify(collection, key, fmt.Sprintf(`{"n":%d}`, r.IntN(1000))), remove(collection, key), remove(collection, key),
			}[r.IntN(6)]
			if r.IntN(2) == 0 {
				w.ID = fmt.Sprint(r.IntN(200))
			}
			if w.Op != "remove" && r.IntN(3) == 0 {
				w.TTL = time.Duration(1+r.IntN(600)) * time.Second
			}
			req.Writes = append(req.Writes, w)
		}
		if _, err := h.Write(t.Context(), hub.Everything, req); err != nil {
			t.Fatal(err)
		}
		if r.IntN(3) == 0 {
			time.Sleep(time.Duration(r.IntN(60)) * time.Second) // of the bubble
		}
		synctest.Wait()
	}
}

func TestMemoryIsCountedTheSameAfterARestartAndAllOfItIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(20) {
			r := rand.New(rand.NewPCG(seed, 0))
			log := feedtest.NewMemory()
			opts := hub.Options{Log: int64(1 + r.IntN(20_000)), Tombstones: 10 * time.Minute, IDs: 5 * time.Minute}
			if seed%2 == 0 {
				opts.Tombstones, opts.IDs = opts.IDs, opts.Tombstones
			}
			if seed%3 == 0 {
				opts.IDCount = 20
			}
			h := open(t, log, opts)
			for range 5 {
				work(t, h, r, 50)
				before := h.Stats()
				h.Drain(context.Background())
				h = open(t, log, opts)
				if after := h.Stats(); after.Bytes != before.Bytes || after.Rows != before.Rows || after.Head != before.Head {
					t.Fatalf("seed %d: %+v before the restart, %+v after it", seed, before, after)
				}
			}
			for _, tenant := range []string{"acme", "other"} {
				for _, c := range []string{"todos", "lists/1", "lists/2"} {
					page, err := h.Rows(hub.Everything, tenant, c, "", 10_000)
					if err != nil {
						t.Fatal(err)
					}
					for _, row := range page.Rows {
						if _, err := h.Write(t.Context(), hub.Everything, hub.Request{Tenant: tenant, Writes: []hub.Write{remove(c, row.Key())}}); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			time.Sleep(time.Hour) // of the bubble
			synctest.Wait()
			tombstones, ids, collections, _ := h.Remembered()
			if s := h.Stats(); s.Rows != 0 || s.Bytes > 2000 || s.Bytes < 0 || tombstones+ids+collections > 0 {
				t.Fatalf("seed %d: all is gone, and what is left is %+v, %d tombstones, %d ids, %d collections", seed, s, tombstones, ids, collections)
			}
			h.Drain(context.Background())
		}
	})
}

// A collection that is empty and followed is kept; that must not show in what others may
// go on from, which a restart would forget.
func TestWhereFeedsMayGoOnFromDoesNotDependOnWhoLookedOn(t *testing.T) {
	for _, opts := range []hub.Options{{Tombstones: time.Hour}, {Tombstones: time.Hour, Log: 1}} {
		synctest.Test(t, func(t *testing.T) {
			log := feedtest.NewMemory()
			h := open(t, log, opts)
			looking := session(t, h, "a", "c")
			write(t, h, put("a", "x", `{}`))
			write(t, h, remove("a", "x"))
			time.Sleep(3 * time.Hour) // of the bubble
			write(t, h, put("b", "x", `{}`))
			write(t, h, put("c", "x", `{}`))
			resets := func() (all []feed.Reason) {
				for _, c := range []string{"a", "b", "c", "d"} {
					cursor := feed.Cursor{Epoch: h.Epoch(), Seq: 1}.String()
					s, err := h.Open(hub.Everything, "acme", []feed.Start{{Collection: c, Cursors: []string{cursor}}}, hub.SessionOptions{})
					if err != nil {
						t.Fatal(err)
					}
					defer s.Close()
					b, err := s.Next(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					for _, r := range b.Resets {
						all = append(all, feed.Reason(c)+" "+r.Reason)
					}
				}
				return all
			}
			before := resets()
			looking.Close()
			for range 20 { // enough for a checkpoint, where the options ask for it
				write(t, h, put("b", "x", `{"v":"`+strings.Repeat("v", 1000)+`"}`))
				synctest.Wait()
			}
			if (log.Held() < log.Appends()) != (opts.Log > 0) {
				t.Fatalf("%d groups of %d are held", log.Held(), log.Appends())
			}
			h.Drain(context.Background())
			h = open(t, log, opts)
			if after := resets(); !slices.Equal(before, after) || !slices.Contains(before, "a expired") {
				t.Errorf("before the restart %q, after it %q", before, after)
			}
		})
	}
}

// slow is a log that takes its time to give a checkpoint up.
type slow struct {
	*feedtest.Memory
	saving, gone chan struct{}
}

func (l *slow) SaveCheckpoint(ctx context.Context, _ feed.Position, _ iter.Seq2[[]byte, error]) error {
	close(l.saving)
	<-ctx.Done()
	time.Sleep(time.Second) // of the bubble
	close(l.gone)
	return ctx.Err()
}

func TestWhoDrainsMayCloseTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &slow{feedtest.NewMemory(), make(chan struct{}), make(chan struct{})}
		h := open(t, log, hub.Options{Log: 1})
		write(t, h, put("todos", "a", `{}`))
		<-log.saving
		write(t, h, put("todos", "b", `{}`)) // nobody waits for a checkpoint
		if err := h.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-log.gone:
		default:
			t.Error("it is still in use")
		}
	})
}

func TestRowsThatComeAndGoLeaveNoMoreBehindThanTheirLastTombstone(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	for i := range 3000 {
		write(t, h, put("todos", fmt.Sprint(i%3), `{}`))
		write(t, h, remove("todos", fmt.Sprint(i%3)))
	}
	if tombstones, _, _, _ := h.Remembered(); tombstones > 200 {
		t.Errorf("%d tombstones of 3 rows are held for 7 days", tombstones)
	}
	if changes, slots := h.After("todos", 0); changes != 3 || slots > 200 {
		t.Errorf("%d changes stand in %d slots", changes, slots)
	}
}
