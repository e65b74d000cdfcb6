package hub_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// syncs is how long the disk of these tests takes.
const syncs = 300 * time.Microsecond

// gathers runs fn on a hub whose log takes syncs for each group. groups tells how many there were.
func gathers(t *testing.T, opts hub.Options, fn func(h *hub.Hub, groups func() int)) {
	synctest.Test(t, func(t *testing.T) {
		log := feedtest.NewMemory()
		n := 0
		log.OnAppend = func(feed.Position, []byte) error {
			time.Sleep(syncs)
			n++
			return nil
		}
		h, err := hub.Open(t.Context(), log, opts)
		if err != nil {
			t.Fatal(err)
		}
		fn(h, func() int { return n })
		if err := h.Drain(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// every writes n changes, one after each pause, whether or not those before were answered, and returns how long
// the slowest took.
func every(t *testing.T, h *hub.Hub, pause time.Duration, n int) (slowest time.Duration) {
	t.Helper()
	return slices.Max(times(t, h, pause, n))
}

// times is every, and returns how long each took.
func times(t *testing.T, h *hub.Hub, pause time.Duration, n int) (each []time.Duration) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			began := time.Now()
			if _, err := try(h, put("todos", fmt.Sprint(i), `{}`)); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			each = append(each, time.Since(began))
		})
		time.Sleep(pause)
	}
	all.Wait()
	return each
}

func TestChangesThatComeFastShareAGroupAndNoneWaitsLong(t *testing.T) {
	gathers(t, hub.Options{}, func(h *hub.Hub, groups func() int) {
		const n = 4000
		slowest := every(t, h, syncs*3/2, n)
		if got := groups(); got > n/3 {
			t.Errorf("%d changes, one every %s, were synced %d times; want a third of that at most", n, syncs*3/2, got)
		}
		if most := 4*time.Millisecond + 2*syncs; slowest > most {
			t.Errorf("one took %s; want %s at most", slowest, most)
		}
	})
}

func TestWhoWantsNobodyToWaitForOthersHasThatToo(t *testing.T) {
	gathers(t, hub.Options{Gather: 1}, func(h *hub.Hub, _ func() int) {
		if slowest := every(t, h, syncs*3/2, 1000); slowest > syncs {
			t.Errorf("one took %s; a sync is %s", slowest, syncs)
		}
	})
}

func TestWhoSeldomWritesWaitsForNobody(t *testing.T) {
	for _, pause := range []time.Duration{2 * time.Millisecond, 50 * time.Millisecond} {
		gathers(t, hub.Options{}, func(h *hub.Hub, _ func() int) {
			if slowest := every(t, h, pause, 1000); slowest > syncs {
				t.Errorf("with one change every %s one took %s; a sync is %s", pause, slowest, syncs)
			}
		})
	}
}

func TestWhereFewWouldShareAGroupHardlyAnybodyWaits(t *testing.T) {
	gathers(t, hub.Options{}, func(h *hub.Hub, _ func() int) {
		const n = 20_000
		late := 0
		for _, took := range times(t, h, time.Millisecond, n) {
			if took > syncs {
				late++
			}
		}
		if late > n/100 {
			t.Errorf("of %d changes, one every millisecond, %d waited for others", n, late)
		}
	})
}

func TestWhoWritesOneAfterTheOtherIsNotHeldUp(t *testing.T) {
	for writers, each := range map[int]int{1: 5000, 2: 5000, 5: 5000, 64: 2500} {
		gathers(t, hub.Options{}, func(h *hub.Hub, _ func() int) {
			began := time.Now()
			var all sync.WaitGroup
			for w := range writers {
				all.Go(func() {
					for i := range each {
						if _, err := try(h, put("todos", fmt.Sprint(w, i%10), `{}`)); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			// All share a group, or two halves of them take turns.
			if took, most := time.Since(began), time.Duration(2*each)*syncs*102/100; took > most || writers == 1 && took > most/2 {
				t.Errorf("%d writers took %s for %d changes each; %d syncs are %s", writers, took, each, each, time.Duration(each)*syncs)
			}
		})
	}
}

func TestWhatAppliesOnceManyWriteAppliesAfterALoneWriterToo(t *testing.T) {
	gathers(t, hub.Options{}, func(h *hub.Hub, groups func() int) {
		for i := range 10_000 { // waits do not seem worth it any more
			write(t, h, put("todos", fmt.Sprint(i%10), `{}`))
		}
		before := groups()
		const n = 8000
		every(t, h, syncs*3/2, n)
		if got := groups() - before; got > n/2 {
			t.Errorf("%d changes that came fast were synced %d times", n, got)
		}
	})
}
