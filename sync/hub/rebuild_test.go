package hub_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// remains is what is left of a log in memory.
type remains struct {
	parts  [][]byte // nil: missing
	groups [][]byte
}

// remainsOf copies what a log holds.
func remainsOf(log *feedtest.Memory) *remains {
	r := &remains{}
	log.Harm(func(groups [][]byte) [][]byte {
		for _, b := range groups {
			r.groups = append(r.groups, bytes.Clone(b))
		}
		return groups
	})
	log.HarmCheckpoint(func(parts [][]byte) [][]byte {
		for _, b := range parts {
			r.parts = append(r.parts, bytes.Clone(b))
		}
		return parts
	})
	return r
}

func (r *remains) LoadCheckpoint(_ context.Context, fn func(int, []byte) error, missing func(*feed.Damage)) error {
	for i, part := range r.parts {
		if part == nil {
			missing(&feed.Damage{What: fmt.Sprintf("part %d is missing", i)})
		} else if err := fn(i, part); err != nil {
			return err
		}
	}
	return nil
}

func (r *remains) Read(_ context.Context, fn func(feed.Position, []byte) error) error {
	for _, b := range r.groups {
		if b == nil {
			continue
		}
		g, _, err := feed.DecodeGroup(b)
		if err != nil {
			continue // its place can't be told, as in a file
		}
		if err := fn(g.Position, b); err != nil {
			return err
		}
	}
	return nil
}

// drop takes out the group at a position, and returns it.
func (r *remains) drop(p feed.Position) *feed.Group {
	for i, b := range r.groups {
		if g, _, err := feed.DecodeGroup(b); err == nil && g.Position == p {
			r.groups[i] = nil
			return g
		}
	}
	return nil
}

func rebuild(t testing.TB, r *remains, opts hub.RebuildOptions) *hub.Rebuilt {
	t.Helper()
	got, err := hub.Rebuild(context.Background(), r, opts)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// reborn is a hub on the log that was rebuilt.
func reborn(t testing.TB, r *hub.Rebuilt) *hub.Hub {
	t.Helper()
	log := feedtest.NewMemory()
	if err := r.Save(context.Background(), log); err != nil {
		t.Fatal(err)
	}
	return open(t, log, hub.Options{})
}

// sameRows compares two hubs by all that a client can see but the cursors.
func sameRows(t testing.TB, got, want *hub.Hub) {
	t.Helper()
	for _, c := range []string{"todos", "lists/1", "lists/2"} {
		if g, w := rows(t, got, c), rows(t, want, c); !slices.Equal(g, w) {
			t.Errorf("%s has %q, want %q", c, g, w)
		}
	}
}

func TestARebuiltLogHasTheSameRowsAndIDsUnderAnotherEpochWithLaterSequences(t *testing.T) {
	for _, padding := range []int{1, 200_000} {
		log := aLog(t, padding)
		was := open(t, log, hub.Options{})
		r := rebuild(t, remainsOf(log), hub.RebuildOptions{Epoch: log.Epoch()})
		if len(r.Losses) > 0 || !r.CheckpointWhole {
			t.Fatal(r.Losses)
		}
		h := reborn(t, r)
		sameRows(t, h, was)
		if h.Epoch() == was.Epoch() {
			t.Error("the epoch is the same")
		}
		again, err := h.Write(t.Context(), hub.Everything, hub.Request{Tenant: "acme", Client: "c", Writes: []hub.Write{as("id2", put("todos", "k2", `{"x":"é\"\\"}`))}})
		if err != nil || again.Outcomes[0].Status != hub.Duplicate {
			t.Errorf("an id is forgotten: %+v, %v", again, err)
		}
		if seq := write(t, h, put("todos", "new", `{}`)).Outcomes[0].Seq; seq < was.Stats().Head+1<<32 {
			t.Errorf("the next sequence is %d after %d: what was lost may have had it", seq, was.Stats().Head)
		}
	}
}

// Whatever is missing is told, by its sequences, and everything else is there.
func TestARebuiltLogLacksWhatItSaysItLacks(t *testing.T) {
	log := feedtest.NewMemory()
	h := open(t, log, hub.Options{})
	for n := range 20 {
		write(t, h, put("todos", fmt.Sprint(n%7), fmt.Sprintf(`{"n":%d}`, n)), put("lists/1", fmt.Sprint(n), `{}`))
	}
	left := remainsOf(log)
	last := feed.Position(len(left.groups))
	middle := left.drop(10)
	left.drop(11)
	end := left.drop(last)
	r := rebuild(t, left, hub.RebuildOptions{Epoch: log.Epoch(), Damages: []*feed.Damage{{At: last, To: last, What: "the log ends before it"}}})
	if len(r.Losses) != 2 {
		t.Fatalf("%v", r.Losses)
	}
	if l := r.Losses[0]; l.From != 10 || l.To != 11 || l.First != middle.First || l.Last != middle.First+3 {
		t.Errorf("the middle: %s", l)
	}
	if l := r.Losses[1]; l.From != last || l.First != end.First || l.Last != 0 {
		t.Errorf("the end: %s", l)
	}
	got := reborn(t, r)
	if n := len(rows(t, got, "lists/1")); n != 17 {
		t.Errorf("%d rows of 20, and 3 transactions are lost", n)
	}
}

// With Prefix the state is one that the log had.
func TestARebuiltPrefixIsAStateThatThereWas(t *testing.T) {
	log := feedtest.NewMemory()
	h := open(t, log, hub.Options{})
	for n := range 20 {
		write(t, h, put("todos", "a", fmt.Sprintf(`{"n":%d}`, n)), put("todos", "b", fmt.Sprintf(`{"n":%d}`, n)))
	}
	left := remainsOf(log)
	left.drop(10)
	r := rebuild(t, left, hub.RebuildOptions{Epoch: log.Epoch(), Prefix: true})
	if got := rows(t, reborn(t, r), "todos"); r.Last != 9 || len(got) != 2 || !strings.HasSuffix(got[0], `{"n":8}`) || !strings.HasSuffix(got[1], `{"n":8}`) {
		t.Errorf("up to %d: %q", r.Last, got)
	}
}

// A checkpoint of which a part is lost still gives the rows of the others.
func TestOneLostPartOfACheckpointCostsItsRowsAlone(t *testing.T) {
	log := aLog(t, 200_000)
	was := open(t, log, hub.Options{})
	whole := remainsOf(log)
	if len(whole.parts) < 3 {
		t.Fatalf("%d parts", len(whole.parts))
	}
	want := rows(t, was, "lists/2")
	for i := range whole.parts {
		left := remainsOf(log)
		left.parts[i] = nil
		r := rebuild(t, left, hub.RebuildOptions{Epoch: log.Epoch()})
		if len(r.Losses) == 0 || r.CheckpointWhole {
			t.Errorf("part %d: nothing is told", i)
		}
		got := rows(t, reborn(t, r), "lists/2")
		if len(got) == 0 || len(got) > len(want) {
			t.Errorf("part %d: %d rows of %d", i, len(got), len(want))
		}
		for _, row := range got {
			if !slices.Contains(want, row) {
				t.Errorf("part %d: %.60s was made up", i, row)
			}
		}
	}
}

// Whatever of a log is harmed or missing: nothing is made up, and either something is
// told or everything is there.
func TestRebuildMakesNothingUp(t *testing.T) {
	log := aLog(t, 50_000)
	was := open(t, log, hub.Options{})
	known := make(map[string]bool)
	for _, c := range []string{"todos", "lists/1", "lists/2"} {
		for _, row := range rows(t, was, c) {
			key, value, _ := strings.Cut(row, "=")
			known[c+" "+key[:strings.LastIndexByte(key, '@')]+"="+value] = true
		}
	}
	whole := remainsOf(log)
	for _, b := range whole.groups {
		g, _, err := feed.DecodeGroup(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range g.Transactions {
			for _, r := range x.Records {
				known[r.Collection+" "+r.Key+"="+r.Value] = true
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		left := remainsOf(log)
		harm := func(list [][]byte, name string) {
			for range rapid.IntRange(0, 3).Draw(t, name) {
				i := rapid.IntRange(0, len(list)-1).Draw(t, "which")
				if len(list[i]) == 0 {
					continue
				}
				switch rapid.IntRange(0, 2).Draw(t, "how") {
				case 0:
					list[i] = nil
				case 1:
					list[i] = list[i][:rapid.IntRange(0, len(list[i])-1).Draw(t, "cut")]
				case 2:
					list[i][rapid.IntRange(0, len(list[i])-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
				}
			}
		}
		harm(left.groups, "groups")
		if len(left.parts) > 0 {
			harm(left.parts, "parts")
		}
		opts := hub.RebuildOptions{Epoch: log.Epoch(), Prefix: rapid.Bool().Draw(t, "prefix")}
		r, err := hub.Rebuild(context.Background(), left, opts)
		if err != nil {
			t.Fatal(err)
		}
		into := feedtest.NewMemory()
		if err := r.Save(context.Background(), into); err != nil {
			t.Fatal(err)
		}
		h, err := hub.Open(context.Background(), into, hub.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Drain(context.Background())
		if h.Stats().Rows != r.Rows {
			t.Fatalf("%d rows were rebuilt, %d are there", r.Rows, h.Stats().Rows)
		}
		for _, c := range []string{"todos", "lists/1", "lists/2"} {
			page, err := h.Rows(hub.Everything, "acme", c, "", 10_000)
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range page.Rows {
				if !known[c+" "+row.Key()+"="+row.Value()] {
					t.Fatalf("%s %s %.60s was made up", c, row.Key(), row.Value())
				}
			}
		}
	})
}

func TestABackupIsThereWholeOrNotAtAll(t *testing.T) {
	log := aLog(t, 1)
	h := open(t, log, hub.Options{})
	var file bytes.Buffer
	header, err := h.Backup(t.Context(), &file)
	if err != nil || header.Epoch != h.Epoch() || header.Seq != h.Stats().Head || header.Rows != h.Stats().Rows {
		t.Fatal(header, err)
	}
	whole := file.Bytes()
	r, got, err := hub.ReadBackup(bytes.NewReader(whole), nil)
	if err != nil || got != header {
		t.Fatal(got, err)
	}
	sameRows(t, reborn(t, r), h)
	for i := range whole {
		if _, _, err := hub.ReadBackup(bytes.NewReader(whole[:i]), nil); !errors.Is(err, hub.ErrBackup) {
			t.Fatalf("cut after %d of %d bytes: %v", i, len(whole), err)
		}
		harmed := bytes.Clone(whole)
		harmed[i] ^= 4
		if _, _, err := hub.ReadBackup(bytes.NewReader(harmed), nil); err == nil {
			t.Fatalf("harmed at byte %d of %d", i, len(whole))
		}
	}
	full := errors.New("the disk is full")
	if _, err := h.Backup(t.Context(), failing{full}); !errors.Is(err, full) {
		t.Errorf("a backup that could not be written: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Backup(ctx, &file); !errors.Is(err, context.Canceled) {
		t.Errorf("a backup that nobody waits for: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func FuzzReadHarmed(f *testing.F) {
	log := feedtest.NewMemory()
	h := open(f, log, hub.Options{})
	write(f, h, put("todos", "a", `{}`), as("id", remove("todos", "b")))
	f.Add(remainsOf(log).groups[0])
	f.Fuzz(func(t *testing.T, b []byte) { feed.ReadHarmed(b) })
}

// A log whose files are damaged goes on from the state in memory: the new one holds a group
// of its own, and a checkpoint that stands for all.
func TestRenewWritesAllThatIsInMemory(t *testing.T) {
	log := feedtest.NewMemory()
	h := open(t, log, hub.Options{})
	for n := range 3 {
		write(t, h, as(fmt.Sprint("id", n), put("todos", fmt.Sprint(n), `{}`)))
	}
	before, head := rows(t, h, "todos"), h.Stats().Head
	if err := h.Renew(t.Context(), func(ctx context.Context, save func(context.Context) error) error {
		log.Harm(func(groups [][]byte) [][]byte { // what was there can't be read any more
			for i := range groups {
				groups[i] = []byte("harmed")
			}
			return groups
		})
		if err := save(ctx); err != nil {
			return err
		}
		return log.Trim(ctx, 4)
	}); err != nil {
		t.Fatal(err)
	}
	if got := h.Stats().Head; got != head {
		t.Errorf("an empty group took the sequences up to %d", got)
	}
	write(t, h, put("todos", "after", `{}`))
	again := open(t, log, hub.Options{})
	if got := rows(t, again, "todos"); !slices.Equal(got[:3], before) || len(got) != 4 {
		t.Errorf("%q, before %q", got, before)
	}
	no := errors.New("no")
	if err := h.Renew(t.Context(), func(context.Context, func(context.Context) error) error { return no }); !errors.Is(err, no) {
		t.Errorf("%v", err)
	}
}

// Where the files are damaged beyond mending, the rows in memory are the only whole ones.
func TestTheRowsOfAHubThatHasFailedCanStillBeSaved(t *testing.T) {
	h := open(t, feedtest.NewMemory(), hub.Options{})
	write(t, h, put("todos", "1", `{}`))
	if err := h.Fail(t.Context(), &feed.Damage{What: "its files are gone"}); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(h.Err(), hub.ErrFailed) {
		t.Fatal(h.Err())
	}
	var b bytes.Buffer
	if _, err := h.Backup(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	if _, header, err := hub.ReadBackup(&b, nil); err != nil || header.Rows != 1 {
		t.Errorf("%d rows, %v", header.Rows, err)
	}
	h.Drain(context.Background())
	if _, err := h.Backup(t.Context(), &b); !errors.Is(err, hub.ErrFailed) {
		t.Errorf("of one that is stopped: %v", err)
	}
}
