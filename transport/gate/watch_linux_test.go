package gate_test

import (
	"os"
	"testing"

	"github.com/tidemark-sync/tidemark/transport/gate"
)

func TestDescriptorsAreCounted(t *testing.T) {
	const more = 100
	before, limit := gate.Files()
	var open []*os.File
	for range more {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, f)
	}
	with, _ := gate.Files()
	names := gate.Names(limit)
	for _, f := range open {
		f.Close()
	}
	after, _ := gate.Files()
	// Others (the poller) may open a few meanwhile.
	if with-before < more || with-before > more+4 || with-after != more || names != with || limit < with {
		t.Errorf("with %d more: %d, then %d (by their names %d) of %d, then %d", more, before, with, names, limit, after)
	}
}
