package feedtest_test

import (
	"testing"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
)

func TestMemory(t *testing.T) {
	feedtest.Run(t, func(*testing.T) feedtest.Harness {
		m := feedtest.NewMemory()
		return feedtest.Harness{Log: m, Reopen: func(*testing.T) feed.Log { return m }}
	})
}
