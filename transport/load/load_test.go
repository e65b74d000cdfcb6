package load_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/quick"
	"time"

	"github.com/tidemark-sync/tidemark/transport/load"
)

// fake is a server whose feeds may be wrong: spoil says what becomes of a change's frame.
func fake(t *testing.T, spoil func(seq int, frame string) []string) string {
	var mu sync.Mutex
	seq := 0
	var feeds []chan string
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/acme/changes", func(w http.ResponseWriter, r *http.Request) {
		var b struct{ Changes []json.RawMessage }
		raw, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(raw, &b); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		var results []string
		for _, c := range b.Changes {
			seq++
			results = append(results, fmt.Sprintf(`{"seq":%d}`, seq))
			for _, frame := range spoil(seq, fmt.Sprintf(`{"type":"change","seq":%d,%s`, seq, c[1:])) {
				for _, f := range feeds {
					f <- frame
				}
			}
		}
		// As any server may answer that is in between.
		switch seq % 3 {
		case 1:
			w.Header().Set("Connection", "close")
		case 2:
			_ = http.NewResponseController(w).Flush() // so that it is chunked
		}
		fmt.Fprintf(w, `{"results":[%s]}`, strings.Join(results, ","))
	})
	mux.HandleFunc("GET /v1/acme/feed", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		f := make(chan string, 10_000)
		feeds = append(feeds, f)
		fmt.Fprintf(w, "data: {\"type\":\"open\",\"epoch\":\"k\"}\n\ndata: {\"type\":\"live\",\"cursor\":\"k-%d\"}\n\n", seq)
		mu.Unlock()
		for {
			_ = http.NewResponseController(w).Flush()
			select {
			case frame := <-f:
				fmt.Fprintf(w, "data: %s\n\n", frame)
			case <-r.Context().Done():
				return
			}
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

func TestWhatAServerDoesWrongIsReported(t *testing.T) {
	var held string
	for name, c := range map[string]struct {
		spoil                   func(seq int, frame string) []string
		gaps, doubles, disorder int
	}{
		"nothing": {func(_ int, frame string) []string { return []string{frame} }, 0, 0, 0},
		"a change is lost": {func(seq int, frame string) []string {
			if seq == 1 || seq == 7 {
				return nil
			}
			return []string{frame}
		}, 4, 0, 0},
		"a change comes twice": {func(seq int, frame string) []string {
			if seq == 5 {
				return []string{frame, frame}
			}
			return []string{frame}
		}, 0, 2, 0},
		"two change places": {func(seq int, frame string) []string {
			if seq == 5 {
				held = frame
				return nil
			}
			if seq == 6 {
				return []string{frame, held}
			}
			return []string{frame}
		}, 0, 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := load.Run(t.Context(), load.Options{
				URL: fake(t, c.spoil), Tenant: "acme", Transport: "sse", Collection: "bench", Followers: 2, Collections: 1, ConnectRate: 1000,
				Rate: 200, Writers: 1, Batch: 2, Payload: 100, Duration: 100 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			if r.Gaps != c.gaps || r.Doubles != c.doubles || r.Disorder != c.disorder || r.Changes < 8 {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestARowThatWasWrittenAgainNeedNotComeTwice(t *testing.T) {
	var c load.Check
	c.Begin(10)
	for _, seq := range []uint64{9, 12, 13} {
		c.Saw(seq)
	}
	writes := []load.Written{{Seq: 11, Key: 1}, {Seq: 12, Key: 2}, {Seq: 13, Key: 1}, {Seq: 14, Key: 3}}
	if n := c.Gaps(writes); n != 1 {
		t.Errorf("%d gaps, and one is lost: 14", n)
	}
}

// TestQuantilesAreNearTheTruth holds them against sorting.
func TestQuantilesAreNearTheTruth(t *testing.T) {
	if err := quick.Check(func(all []uint32) bool {
		var h load.Histogram
		for _, n := range all {
			h.Add(time.Duration(n))
		}
		if h.N() != int64(len(all)) {
			return false
		}
		slices.Sort(all)
		for _, q := range []float64{0, 0.5, 0.99, 1} {
			if len(all) == 0 {
				continue
			}
			want := float64(all[min(int(q*float64(len(all))), len(all)-1)])
			if got := float64(h.Quantile(q)); got < want || got > want*1.04+1 {
				t.Logf("q %v of %v: %v", q, all, got)
				return false
			}
		}
		return true
	}, nil); err != nil {
		t.Error(err)
	}
}

func TestALoadThatIsInterruptedStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	url := fake(t, func(seq int, frame string) []string {
		if seq == 3 {
			cancel()
		}
		return []string{frame}
	})
	if _, err := load.Run(ctx, load.Options{URL: url, Tenant: "acme", Transport: "sse", Collection: "bench", Followers: 1, Collections: 1, ConnectRate: 100,
		Rate: 1000, Writers: 1, Batch: 1, Duration: time.Hour}); err == nil {
		t.Error("it is done")
	}
}
