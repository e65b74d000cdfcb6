package hub_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

func aRow(seq feed.Seq, key string) *feed.Change {
	return feed.NewChange(feed.Fields{Seq: seq, Collection: "todos", Op: feed.Insert, Key: key, Value: `{}`})
}

func TestTheIndexFindsEachRowAndNoOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var index hub.Index
		model := make(map[string]*feed.Change)
		var seq feed.Seq
		// Few keys for many collisions of what is there and what is not, many to make it grow.
		keys := rapid.IntRange(1, rapid.SampledFrom([]int{10, 200}).Draw(t, "keys"))
		growing := true
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "n") {
					key := fmt.Sprint(keys.Draw(t, "key"))
					if c := model[key]; growing != rapid.Bool().Draw(t, "against the trend") {
						seq++
						c = aRow(seq, key)
						if old := index.Put(c); old != model[key] {
							t.Fatalf("%s replaced %v instead of %v", key, old, model[key])
						}
						model[key] = c
					} else if c != nil {
						if index.Remove(aRow(c.Seq(), key)) {
							t.Fatalf("%s was removed in the name of another change", key)
						}
						if !index.Remove(c) {
							t.Fatalf("%s can't be removed", key)
						}
						delete(model, key)
					}
				}
			},
			"turn": func(t *rapid.T) { growing = !growing },
			"": func(t *rapid.T) {
				for i := range 201 {
					if key := fmt.Sprint(i); index.Get(key) != model[key] {
						t.Fatalf("%s is %v instead of %v", key, index.Get(key), model[key])
					}
				}
				if n, places := index.Sizes(); n != len(model) || n*5 > places*4 || places > 8 && n*8 < places {
					t.Fatalf("%d of %d in %d places", n, len(model), places)
				}
			},
		})
	})
}
