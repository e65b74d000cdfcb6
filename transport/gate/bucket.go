package gate

import "time"

// How far those who are refused are spread.
const (
	retryLeast = time.Second
	retryMost  = time.Minute
)

// bucket is a token bucket that also knows how many it has turned away. Its owner
// guards it, and tells it the time.
type bucket struct {
	at     time.Duration // when the rest was true
	tokens float64       // Invariant: 0 <= tokens <= burst.
	debt   float64       // refused, and not yet served if they came back one after the other
}

func (b *bucket) fill(now time.Duration, rate, burst float64) {
	if now <= b.at {
		return // who has read the clock first may come second
	}
	came := (now - b.at).Seconds() * rate
	b.at = now
	b.tokens = min(burst, b.tokens+came)
	b.debt = max(0, b.debt-came)
}

// refuse counts one that was turned away, and says when it should come back. While n
// are turned away that takes n/rate seconds to serve: they come within about twice that.
func (b *bucket) refuse(rate float64) time.Duration {
	b.debt = min(b.debt+1, rate*retryMost.Seconds())
	window := time.Duration(2 * b.debt / rate * float64(time.Second))
	return between(retryLeast, min(retryLeast+window, retryMost))
}
