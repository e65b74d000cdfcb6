package hub_test

import (
	"sort"
	"testing"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// A feed that begins one change too late has lost it, wherever sequences are close together and wherever they are not.
func TestAFeedBeginsAtTheFirstChangeAfterItsCursor(t *testing.T) {
	const most = feed.Seq(1) << 53
	rapid.Check(t, func(t *rapid.T) {
		var all []feed.Seq
		var last feed.Seq
		for range rapid.IntRange(0, 12).Draw(t, "runs") {
			apart := rapid.SampledFrom([]feed.Seq{1, 2, 1000, 1 << 40}).Draw(t, "apart")
			for range rapid.IntRange(1, 40).Draw(t, "so many") {
				if last < most-apart {
					last += apart
					all = append(all, last)
				}
			}
		}
		looks := []feed.Seq{0, 1, last, last + 1, most, rapid.Custom(func(t *rapid.T) feed.Seq { return feed.Seq(rapid.Uint64Range(0, uint64(most)).Draw(t, "seq")) }).Draw(t, "any")}
		for _, s := range all {
			looks = append(looks, s-1, s, s+1)
		}
		for _, seq := range looks {
			want := sort.Search(len(all), func(i int) bool { return all[i] > seq })
			if got := hub.Search(all, seq); got != want {
				t.Fatalf("after %d it begins with the %dth of %v; it should be the %dth", seq, got, all, want)
			}
		}
	})
}
