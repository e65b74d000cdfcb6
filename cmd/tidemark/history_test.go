package main_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type historyChange struct {
	Seq             uint64
	Collection, Key string
	Op, At, Epoch   string
	Value           json.RawMessage
	By              struct{ Client, ID string }
}

// historyOf reads all pages of a history.
func historyOf(t testing.TB, server, query string) (all []historyChange, begins uint64) {
	t.Helper()
	for after := ""; ; {
		var page struct {
			Changes []historyChange
			Begins  uint64
			Next    string
		}
		u := server + "/v1/acme/history?limit=37&" + query
		if after != "" {
			u += "&after=" + after
		}
		if err := json.Unmarshal([]byte(get(t, u)), &page); err != nil {
			t.Fatal(err)
		}
		all, begins = append(all, page.Changes...), page.Begins
		if after = page.Next; after == "" {
			return all, begins
		}
	}
}

// Every change is in the history, uncompacted, also after the log has forgotten it, the
// server was killed, and the log was made anew; the rows and their feed are as without.
func TestHistoryHasEveryChange(t *testing.T) {
	addr, data := freePort(t), t.TempDir()
	server := "http://" + addr
	flags := []string{"--history", "forever", "--log-size", "32KiB", "--log-level", "warn"}
	p := serve(t, addr, data, flags...)
	n := 0
	write := func(more int) {
		for range more {
			n++
			changes := []map[string]any{
				{"id": fmt.Sprint("a", n), "collection": "todos", "op": "put", "key": fmt.Sprint(n % 5), "value": map[string]any{"n": n, "text": strings.Repeat("z", 300)}},
				{"id": fmt.Sprint("b", n), "collection": "lists/1", "op": "put", "key": "k", "value": map[string]any{"n": n}},
			}
			if n%9 == 0 {
				changes[0] = map[string]any{"id": fmt.Sprint("a", n), "collection": "todos", "op": "remove", "key": fmt.Sprint((n - 1) % 5)}
			}
			if _, err := post(t.Context(), server, changes); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(when string) {
		t.Helper()
		all, begins := historyOf(t, server, "")
		if len(all) != 2*n || begins != 1 {
			t.Fatalf("%s: %d changes of %d, from %d on", when, len(all), 2*n, begins)
		}
		for i, c := range all {
			wanted := fmt.Sprint(string("ab"[i%2]), i/2+1)
			if c.By.ID != wanted || c.By.Client != "test" || c.At == "" || c.Epoch == "" || i > 0 && c.Seq <= all[i-1].Seq {
				t.Fatalf("%s: change %d is %+v, want %s", when, i, c, wanted)
			}
		}
		one, _ := historyOf(t, server, "c=todos&key=3")
		for _, c := range one {
			if c.Collection != "todos" || c.Key != "3" {
				t.Errorf("%s: %+v", when, c)
			}
		}
		if len(one) < n/6 {
			t.Errorf("%s: %d changes of one row", when, len(one))
		}
		from, to := all[10], all[20]
		if some, _ := historyOf(t, server, fmt.Sprintf("from=%d&to=%d", from.Seq, to.Seq)); len(some) != 11 {
			t.Errorf("%s: %d changes from %d to %d", when, len(some), from.Seq, to.Seq)
		}
		if some, _ := historyOf(t, server, "from="+url.QueryEscape(from.At)+"&to="+url.QueryEscape(to.At)); len(some) < 11 {
			t.Errorf("%s: %d changes from %s to %s", when, len(some), from.At, to.At)
		}
	}
	write(200)
	check("at first")
	if segments, err := filepath.Glob(filepath.Join(data, "history/*.seg")); err != nil || len(segments) == 0 {
		t.Fatalf("nothing was trimmed yet: %q, %v", segments, err)
	}
	p.kill()
	p = serve(t, addr, data, flags...)
	check("after a kill")
	write(50)
	p.stop(t)
	if code, out := tidemark(t, "verify", "--data", data); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	// The mark is lost: what goes on is under another epoch, and the history with it.
	if err := os.Truncate(filepath.Join(data, "high-water"), 0); err != nil {
		t.Fatal(err)
	}
	before := epochOf(t, data)
	p = serve(t, addr, data, append(flags, "--accept-data-loss")...)
	if epochOf(t, data) == before {
		t.Fatal("the epoch is the old one")
	}
	check("under another epoch")
	write(50)
	check("and on")
	p.stop(t)
	// A harmed history is told by verify, and does not keep the server from starting.
	segments, err := filepath.Glob(filepath.Join(data, "history/*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	harm(t, segments[0], 0.5)
	if code, out := tidemark(t, "verify", "--data", data); code != 1 || !strings.Contains(out, "damaged: history: ") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	serve(t, addr, data, flags...)
}
