package credential_test

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/transport/credential"
)

// TestCacheIsBoundedAndNeverGivesWhatIsOver does random things to a cache and to a map.
func TestCacheIsBoundedAndNeverGivesWhatIsOver(t *testing.T) {
	const most, mostBytes = 8, 100
	type held struct {
		value string
		until time.Time
	}
	rapid.Check(t, func(t *rapid.T) {
		c := credential.NewCache(most, mostBytes)
		model := map[byte]held{}
		now := time.Unix(1_000_000, 0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			key := rapid.ByteRange(0, 20).Draw(t, "key")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				now = now.Add(time.Duration(rapid.IntRange(0, 5).Draw(t, "seconds")) * time.Second)
			case 1:
				v := held{strings.Repeat(string('a'+rune(key)), rapid.IntRange(1, 110).Draw(t, "size")), now.Add(time.Duration(rapid.IntRange(-1, 20).Draw(t, "life")) * time.Second)}
				c.Put(key, v.value, now, v.until)
				if len(v.value) <= mostBytes && now.Before(v.until) {
					model[key] = v
				}
			}
			got := c.Get(key, now)
			if got != "" && (got != model[key].value || !now.Before(model[key].until)) {
				t.Fatalf("%d is %q, and should be %+v at %s", key, got, model[key], now)
			}
			if entries, queued, bytes := c.Held(); entries > most || bytes > mostBytes || bytes < 0 || queued != entries {
				t.Fatalf("it holds %d entries, %d in the queue, of %d bytes", entries, queued, bytes)
			}
		}
	})
}
