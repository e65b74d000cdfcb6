package load_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
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
		strange                 int
	}{
		"nothing": {func(_ int, frame string) []string { return []string{frame} }, 0, 0, 0, 0},
		"a change is lost": {func(seq int, frame string) []string {
			if seq == 1 || seq == 7 {
				return nil
			}
			return []string{frame}
		}, 4, 0, 0, 0},
		"a change comes twice": {func(seq int, frame string) []string {
			if seq == 5 {
				return []string{frame, frame}
			}
			return []string{frame}
		}, 0, 2, 0, 0},
		"two change places": {func(seq int, frame string) []string {
			if seq == 5 {
				held = frame
				return nil
			}
			if seq == 6 {
				return []string{frame, held}
			}
			return []string{frame}
		}, 0, 0, 2, 0},
		"a row comes with another key": {func(seq int, frame string) []string {
			if seq == 5 {
				frame = strings.Replace(frame, `"key":"`, `"key":"9`, 1)
			}
			return []string{frame}
		}, 0, 0, 0, 2},
		"a row that was put is removed": {func(seq int, frame string) []string {
			if seq == 5 {
				frame = strings.Replace(frame, `"op":"put"`, `"op":"remove"`, 1)
			}
			return []string{frame}
		}, 0, 0, 0, 2},
		"an old value comes at a new sequence": {func(seq int, frame string) []string {
			if seq == 5 {
				frame = strings.Replace(frame, `"t":`, `"t":1`, 1)
			}
			return []string{frame}
		}, 0, 0, 0, 2},
		"changes of somebody else": {func(seq int, frame string) []string {
			if seq == 8 {
				return []string{frame, `{"type":"change","seq":100008,"collection":"secret","op":"insert","key":"1","value":{"t":1}}`}
			}
			return []string{frame}
		}, 0, 0, -1, 2}, // what comes after it is out of order, too
	} {
		t.Run(name, func(t *testing.T) {
			r, err := load.Run(t.Context(), load.Options{
				URL: fake(t, c.spoil), Tenant: "acme", Transport: "sse", Collection: "bench", Followers: 2, Collections: 1, ConnectRate: 1000,
				Rate: 200, Writers: 1, Batch: 2, Payload: 100, Duration: 100 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			if r.Gaps != c.gaps || r.Doubles != c.doubles || c.disorder >= 0 && r.Disorder != c.disorder || r.Strange != c.strange || r.Changes < 8 {
				t.Errorf("%+v", r)
			}
		})
	}
}

// taking takes changes, and keeps what is made of each, which is told whether more of its request follow.
func taking(mu *sync.Mutex, frames *[]string, of func(frame string, more bool) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var b struct{ Changes []json.RawMessage }
		_ = json.NewDecoder(r.Body).Decode(&b)
		mu.Lock()
		defer mu.Unlock()
		var results []string
		for i, c := range b.Changes {
			*frames = append(*frames, of(fmt.Sprintf(`{"type":"change","seq":%d,%s`, len(*frames)+1, c[1:]), i+1 < len(b.Changes)))
			results = append(results, fmt.Sprintf(`{"seq":%d}`, len(*frames)))
		}
		fmt.Fprintf(w, `{"results":[%s]}`, strings.Join(results, ","))
	}
}

func TestAReplayThatLosesRowsIsReported(t *testing.T) {
	var mu sync.Mutex
	var frames []string
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/acme/changes", taking(&mu, &frames, func(frame string, _ bool) string { return "data: " + frame + "\n\n" }))
	mux.HandleFunc("GET /v1/acme/feed", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		for i, f := range frames {
			if strings.Contains(r.URL.RawQuery, "replay") && i%10 != 3 {
				fmt.Fprint(w, f)
			}
		}
		fmt.Fprintf(w, "data: {\"type\":\"live\",\"cursor\":\"k-%d\"}\n\n", len(frames))
		mu.Unlock()
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	r, err := load.Run(t.Context(), load.Options{URL: s.URL, Tenant: "acme", Transport: "sse", Collection: "bench", Collections: 1, ConnectRate: 1000,
		Rate: 1, Writers: 1, Batch: 1, Payload: 100, Duration: time.Millisecond, Replay: 1000, ReplayBy: 2})
	if err != nil {
		t.Fatal(err)
	}
	if r.Gaps < 190 || r.Faults() == 0 {
		t.Errorf("a tenth of the rows did not come to either of two: %+v", r)
	}
}

func TestARowThatWasWrittenAgainNeedNotComeTwice(t *testing.T) {
	var c load.Check
	c.Begin(10)
	for _, seq := range []uint64{9, 12, 13} {
		c.Saw(seq, 0, 0)
	}
	writes := []load.Written{{Seq: 11, Key: 1}, {Seq: 12, Key: 2}, {Seq: 13, Key: 1}, {Seq: 14, Key: 3}}
	if n := c.Gaps(writes); n != 1 {
		t.Errorf("%d gaps, and one is lost: 14", n)
	}
}

func TestALogThatIsMadeAnewTakesNoMemoryOfWhoFollows(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var c load.Check
	c.Begin(10)
	c.Saw(11, 0, 0)
	c.Reset() // and its sequences go on 2^32 further on
	for _, seq := range []uint64{11, 1<<32 + 12, 1<<32 + 13, 1<<32 + 13, 1<<32 + 12} {
		c.Saw(seq, 0, 0)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("a follower took %d MB", n>>20)
	}
	if n := c.Gaps([]load.Written{{Seq: 11, Key: 1}, {Seq: 1<<32 + 12, Key: 2}, {Seq: 1<<32 + 14, Key: 3}}); n != 1 || c.Doubles != 2 {
		t.Errorf("%d gaps, and one is lost; %d doubles of 2", n, c.Doubles)
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

func TestRowsAreInEachCollectionBeforeFollowersComeOrThereIsNoFigure(t *testing.T) {
	for _, c := range []struct{ rows, collections, payload int }{{100, 10, 100}, {700, 3, 100}, {1200, 2, 5000}, {3, 2, 1 << 19}} {
		var mu sync.Mutex
		rows, seq := make(map[string]map[string]bool), 0
		refuse := false
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			raw, _ := io.ReadAll(r.Body)
			var b struct {
				Changes []struct{ Collection, Key string }
			}
			_ = json.Unmarshal(raw, &b)
			mu.Lock()
			defer mu.Unlock()
			if len(raw) > 1<<20 || len(b.Changes) > 500 {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
				return
			}
			if refuse {
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			var results []string
			for _, c := range b.Changes {
				if seq++; rows[c.Collection] == nil {
					rows[c.Collection] = make(map[string]bool)
				}
				rows[c.Collection][c.Key] = true
				results = append(results, fmt.Sprintf(`{"seq":%d}`, seq))
			}
			fmt.Fprintf(w, `{"results":[%s]}`, strings.Join(results, ","))
		}))
		o := load.Options{URL: s.URL, Tenant: "acme", Transport: "sse", Collection: "bench", Collections: c.collections, ConnectRate: 1,
			Rate: 1, Writers: 4, Batch: 1, Payload: c.payload, Rows: c.rows, Duration: time.Nanosecond}
		if _, err := load.Run(t.Context(), o); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
		for i := range c.collections {
			if n := len(rows[fmt.Sprintf("bench-%d", i)]); n != c.rows {
				t.Errorf("%+v: collection %d has %d rows", c, i, n)
			}
		}
		if refuse = true; c.payload == 100 {
			if _, err := load.Run(t.Context(), o); err == nil {
				t.Errorf("%+v: the rows were refused, and nobody is told", c)
			}
		}
		s.Close()
	}
}

func TestWhatANetworkCutsOffIsNoFaultOfTheServer(t *testing.T) {
	for _, transport := range []string{"sse", "poll"} {
		var mu sync.Mutex
		var frames []string // of transactions of two
		feeds := 0
		mux := http.NewServeMux()
		mux.HandleFunc("POST /v1/acme/changes", taking(&mu, &frames, func(frame string, more bool) string {
			if more {
				frame = strings.TrimSuffix(frame, "}") + `,"more":true}`
			}
			return frame
		}))
		mux.HandleFunc("GET /v1/acme/feed", func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			feeds++
			first := feeds == 1
			mu.Unlock()
			if transport == "poll" && !first {
				time.Sleep(50 * time.Millisecond) // so that there is more than fits
			}
			from := 0
			_, _ = fmt.Sscanf(r.URL.Query().Get("cursor"), "k-%d", &from)
			prefix, end := "data: ", "\n\n"
			if transport == "poll" {
				prefix, end = "", "\n"
			}
			fmt.Fprint(w, prefix+`{"type":"open","epoch":"k"}`+end)
			for deadline := time.Now().Add(time.Second); !first && r.Context().Err() == nil; time.Sleep(time.Millisecond) {
				mu.Lock()
				some := frames[from:]
				mu.Unlock()
				for _, f := range some[:min(5, len(some))] { // five are two transactions and a half
					fmt.Fprint(w, prefix+f+end)
				}
				if len(some) >= 5 {
					_ = http.NewResponseController(w).Flush()
					panic(http.ErrAbortHandler)
				}
				if from += len(some); len(some) > 0 || time.Now().After(deadline) {
					break
				}
			}
			fmt.Fprintf(w, prefix+`{"type":"live","cursor":"k-%d"}`+end, from)
			_ = http.NewResponseController(w).Flush()
			if transport == "sse" && first {
				time.Sleep(300 * time.Millisecond)
			}
		})
		s := httptest.NewUnstartedServer(mux)
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.Start()
		r, err := load.Run(t.Context(), load.Options{URL: s.URL, Tenant: "acme", Transport: transport, Collection: "bench", Followers: 1, Collections: 1, ConnectRate: 1,
			Rate: 100, Writers: 1, Batch: 2, Payload: 100, Duration: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if r.Faults() > 0 || r.Reconnects == 0 || r.Deliveries != r.Changes {
			t.Errorf("over %s: %+v", transport, r)
		}
		s.CloseClientConnections()
		s.Close()
	}
}

func TestWhoeverIsNotLetInIsToldAtOnceAndWhy(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the token is no good", http.StatusUnauthorized)
	}))
	for _, transport := range []string{"sse", "websocket", "poll"} {
		o := load.Options{URL: s.URL, Tenant: "acme", Transport: transport, Collection: "bench", Followers: 2, Collections: 1, ConnectRate: 100,
			Rate: 1, Writers: 1, Batch: 1, Duration: time.Second}
		began := time.Now()
		if _, err := load.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "the token is no good") || time.Since(began) > 5*time.Second {
			t.Errorf("over %s, after %v: %v", transport, time.Since(began), err)
		}
	}
	s.Close()
	began := time.Now()
	if _, err := load.Run(t.Context(), load.Options{URL: s.URL, Tenant: "acme", Transport: "sse", Followers: 1, Collections: 1, ConnectRate: 1, Writers: 1,
		Batch: 1, Rate: 1, Duration: time.Second}); err == nil || !strings.Contains(err.Error(), "refused") || time.Since(began) > 5*time.Second {
		t.Errorf("where nobody listens, after %v: %v", time.Since(began), err)
	}
}

func TestALoadEndsInTimeThoughTheServerIsTooSlow(t *testing.T) {
	url := fake(t, func(_ int, frame string) []string {
		time.Sleep(5 * time.Millisecond)
		return []string{frame}
	})
	began := time.Now()
	r, err := load.Run(t.Context(), load.Options{URL: url, Tenant: "acme", Transport: "sse", Collection: "bench", Collections: 1, ConnectRate: 1,
		Rate: 2000, Writers: 2, Batch: 1, Duration: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 3*time.Second || r.Seconds > 1 {
		t.Errorf("it took %v, %.1f s of them to write, which were to be 0.5", took, r.Seconds)
	}
	if sum := r.Changes + r.Missed; r.Missed < 500 || sum < 990 || sum > 1010 {
		t.Errorf("of 1,000 changes %d were made and %d missed", r.Changes, r.Missed)
	}
}

func TestWhoeverInterruptsALoadDoesNotWaitForAllFollowers(t *testing.T) {
	url := fake(t, func(_ int, frame string) []string { return []string{frame} })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := load.Run(ctx, load.Options{URL: url, Tenant: "acme", Transport: "sse", Collection: "bench", Followers: 5, Collections: 1, ConnectRate: 1,
		Rate: 1, Writers: 1, Batch: 1, Duration: time.Hour}); err == nil {
		t.Error("it is done")
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it stopped after %v", took)
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
