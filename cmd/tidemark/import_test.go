package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// story is a file of n random transactions, and the rows at its end.
func story(rng *rand.Rand, n, keys int) (file string, rows map[string]string) {
	var b strings.Builder
	rows = make(map[string]string)
	for i := range n {
		var changes []string
		for range 1 + rng.IntN(3) {
			key := fmt.Sprintf("k%d", rng.IntN(keys))
			value := fmt.Sprintf(`{"line":%d,"big":12345678901234567890}`, i+1)
			_, there := rows[key]
			switch {
			case !there:
				changes = append(changes, fmt.Sprintf(`{"op":"insert","key":%q,"value":%s}`, key, value))
				rows[key] = value
			case rng.IntN(4) == 0:
				changes = append(changes, fmt.Sprintf(`{"op":"remove","key":%q}`, key))
				delete(rows, key)
			default:
				changes = append(changes, fmt.Sprintf(`{"op":"modify","key":%q,"value":%s}`, key, value))
				rows[key] = value
			}
		}
		id := ""
		if rng.IntN(2) == 0 {
			id = fmt.Sprintf(`"id":"t-%d",`, i)
		}
		fmt.Fprintf(&b, "{%s\"changes\":[%s]}\n", id, strings.Join(changes, ","))
	}
	return b.String(), rows
}

func same(t *testing.T, m *model, want map[string]string) {
	t.Helper()
	if got := m.table("h"); !maps.Equal(got, want) {
		t.Errorf("the rows are\n%v, want\n%v", got, want)
	}
}

// importing runs an import of a story into collection h.
func importing(ctx context.Context, m *model, in string, args ...string) (int, string) {
	code, out, errs := command(ctx, in, append([]string{"import", "--url", m.srv.URL, "--collection", "h"}, args...)...)
	if out != "" {
		errs += "\nON STANDARD OUTPUT: " + out
	}
	return code, errs
}

func TestImportedRowsAreThoseOfTheFile(t *testing.T) {
	file, rows := story(rand.New(rand.NewPCG(1, 1)), 200, 20)
	file += `{"final":{"k1":"x"}}` + "\n"
	for _, via := range []string{"websocket", "post", "auto"} {
		m := newModel(t)
		code, errs := importing(t.Context(), m, file, "--via", via)
		if code != 0 || !strings.Contains(errs, "imported 200 lines") || !strings.Contains(errs, "line 201 was skipped") || !strings.Contains(errs, "cursor k3f9a1-") {
			t.Errorf("by %s: exit code %d\n%s", via, code, errs)
		}
		same(t, m, rows)
		// Once more, from the beginning.
		before := len(m.log)
		code, errs = importing(t.Context(), m, file, "--via", via)
		if code != 0 || len(m.log) != before || !strings.Contains(errs, "200 of the lines were there already") {
			t.Errorf("by %s, again: exit code %d\n%s", via, code, errs)
		}
		same(t, m, rows)
	}
}

func TestOrderOfTheFileIsTheOrderOfTheLog(t *testing.T) {
	file, _ := story(rand.New(rand.NewPCG(2, 2)), 300, 200)
	m := newModel(t)
	if code, errs := importing(t.Context(), m, file); code != 0 {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	last := 0
	for _, l := range m.log {
		var n int
		if _, err := fmt.Sscanf(l.value, `{"line":%d,`, &n); err != nil {
			continue // a remove
		}
		if n < last {
			t.Fatalf("line %d is in the log after line %d", n, last)
		}
		last = n
	}
}

// TestAccidentsDoNotChangeTheOutcome: whatever is refused for now, lost before or
// after it was done, and whenever the import itself is killed, the rows at the end are
// the file's.
func TestAccidentsDoNotChangeTheOutcome(t *testing.T) {
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	for seed := range uint64(rounds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel() // it waits, most of the time
			rng := rand.New(rand.NewPCG(seed, 3))
			file, rows := story(rng, 120, 8+int(seed)*8)
			path := filepath.Join(t.TempDir(), "story")
			if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
				t.Fatal(err)
			}
			m := newModel(t)
			var kill context.CancelFunc
			kills, left := 0, 12 // accidents cost half a second each
			m.accident = func(n int) accident {
				what := rng.IntN(40)
				if what > 4 || left == 0 {
					return none
				}
				left--
				switch what {
				case 0, 1:
					return busy
				case 2:
					return lostAfter
				case 3:
					return lostFore
				}
				kills++
				kill()
				return none
			}
			args := []string{}
			if seed%2 == 0 {
				args = append(args, "--state", filepath.Join(t.TempDir(), "state"))
			}
			if seed%3 == 2 {
				args = append(args, "--via", "post")
			}
			args = append(args, path)
			for runs := 1; ; runs++ {
				ctx, cancel := context.WithCancel(t.Context())
				m.mu.Lock()
				kill = cancel
				m.mu.Unlock()
				code, errs := importing(ctx, m, "", args...)
				killed := ctx.Err() != nil
				cancel()
				if code == 0 {
					break
				}
				m.mu.Lock() // a socket of the run that was killed may still be served
				tolerated := kills
				m.mu.Unlock()
				if !killed || runs > tolerated {
					t.Fatalf("run %d: exit code %d\n%s", runs, code, errs)
				}
			}
			same(t, m, rows)
			m.mu.Lock()
			defer m.mu.Unlock()
			if left == 12 {
				t.Error("there were no accidents")
			}
		})
	}
}

func TestServerThatComesBackIsNotNoticed(t *testing.T) {
	file, rows := story(rand.New(rand.NewPCG(4, 4)), 400, 50)
	m := newModel(t)
	left := 0 // how many times it is still away
	m.accident = func(n int) accident {
		if n == 150 {
			left = 2
			return lostAfter
		}
		return none
	}
	refused := 0
	m.refuse = func(w http.ResponseWriter, r *http.Request) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		if left == 0 {
			return false
		}
		left--
		refused++
		panic(http.ErrAbortHandler)
	}
	code, errs := importing(t.Context(), m, file)
	if code != 0 || refused != 2 || !strings.Contains(errs, "waiting for the server") {
		t.Errorf("exit code %d after %d refusals\n%s", code, refused, errs)
	}
	same(t, m, rows)
}

func TestServerThatAsksForTimeIsNotAskedAgainBefore(t *testing.T) {
	file, rows := story(rand.New(rand.NewPCG(5, 5)), 10, 5)
	m := newModel(t)
	var times []time.Time
	m.refuse = func(w http.ResponseWriter, r *http.Request) bool {
		times = append(times, time.Now())
		if len(times) > 1 {
			return false
		}
		w.Header().Set("Retry-After", "1")
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(429)
		io.WriteString(w, `{"code":"too-many","status":429}`)
		return true
	}
	code, errs := importing(t.Context(), m, file)
	if code != 0 || len(times) < 2 || times[1].Sub(times[0]) < time.Second {
		t.Errorf("exit code %d, asked at %v\n%s", code, times, errs)
	}
	same(t, m, rows)
}

func TestWhereWebSocketsFailImportGoesByPost(t *testing.T) {
	for name, refuse := range map[string]http.HandlerFunc{
		"upgrades are stripped": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(426)
			io.WriteString(w, `{"code":"upgrade-required"}`)
		},
		"a box forbids them": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(403)
			io.WriteString(w, "<h1>Policy</h1>")
		},
		"a server wants a collection": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(400)
			io.WriteString(w, `{"code":"bad-request"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			file, rows := story(rand.New(rand.NewPCG(6, 6)), 30, 5)
			m := newModel(t)
			posts := 0
			m.refuse = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPost {
					posts++
					return false
				}
				refuse(w, r)
				return true
			}
			code, errs := importing(t.Context(), m, file)
			if code != 0 || posts != 30 {
				t.Errorf("exit code %d, %d posts\n%s", code, posts, errs)
			}
			same(t, m, rows)
			if code, _ := importing(t.Context(), m, file, "--via", "websocket"); code != exitFailed {
				t.Errorf("by WebSocket alone: exit code %d", code)
			}
		})
	}
}

func TestWebSocketsThatDieYoungDoNotStopAnImport(t *testing.T) {
	file, rows := story(rand.New(rand.NewPCG(7, 7)), 30, 5)
	m := newModel(t)
	sockets := 0
	m.refuse = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			sockets++
			m.accident = func(int) accident { return lostFore }
		} else {
			m.accident = nil
		}
		return false
	}
	code, errs := importing(t.Context(), m, file)
	if code != 0 || sockets != fruitless {
		t.Errorf("exit code %d after %d sockets\n%s", code, sockets, errs)
	}
	same(t, m, rows)
}

func TestRefusedLineIsNamedAndNothingOfItsRowsGoesOn(t *testing.T) {
	lines := []string{
		`{"changes":[{"op":"insert","key":"a","value":{"n":1}}]}`,
		`{"changes":[{"op":"insert","key":"b","value":{"n":2}},{"op":"insert","key":"a","value":{"n":2}}]}`,
		`{"changes":[{"op":"insert","key":"c","value":{"n":3}}]}`,
		`{"changes":[{"op":"modify","key":"a","value":{"n":4}}]}`,
		`{"changes":[{"op":"insert","key":"d","value":{"n":5}}]}`,
	}
	for _, via := range []string{"websocket", "post"} {
		m := newModel(t)
		code, errs := importing(t.Context(), m, strings.Join(lines, "\n"), "--via", via)
		if code != exitFailed || !strings.Contains(errs, `line 2 was refused: exists: insert, but the row is there (change 2, key "a"; as it stands, at 1: {"n":1})`) ||
			!strings.Contains(errs, "up to line 1, everything is in the log") {
			t.Errorf("by %s: exit code %d\n%s", via, code, errs)
		}
		got := m.table("h")
		if got["a"] != `{"n":1}` || got["b"] != "" || got["d"] != "" {
			t.Errorf("by %s the rows are %v", via, got)
		}
		if _, there := got["c"]; there != strings.Contains(errs, "touches other rows, line 3") {
			t.Errorf("by %s the rows are %v, and it says\n%s", via, got, errs)
		}
	}
	// The window alone decides whether anything behind it is sent.
	m := newModel(t)
	if code, _ := importing(t.Context(), m, strings.Join(lines, "\n"), "--window", "1"); code != exitFailed || len(m.table("h")) != 1 {
		t.Errorf("with --window 1: exit code %d, the rows are %v", code, m.table("h"))
	}
}

func TestConditionsOfALineAreKept(t *testing.T) {
	m := newModel(t)
	code, errs := importing(t.Context(), m, `{"changes":[{"op":"put","key":"a","value":{"n":1},"if":0}]}
{"changes":[{"op":"put","key":"a","value":{"n":2},"if":1}]}
{"changes":[{"op":"put","key":"a","value":{"n":3},"if":1}]}`)
	if code != exitFailed || !strings.Contains(errs, `line 3 was refused: conflict`) || m.table("h")["a"] != `{"n":2}` {
		t.Errorf("exit code %d, %v\n%s", code, m.table("h"), errs)
	}
}

func TestLinesThatSayTheSameAreAllApplied(t *testing.T) {
	m := newModel(t)
	file := `{"changes":[{"op":"put","key":"a","value":{"n":1}}]}
{"changes":[{"op":"put","key":"a","value":{"n":2}}]}
{"changes":[{"op":"put","key":"a","value":{"n":1}}]}`
	if code, errs := importing(t.Context(), m, file); code != 0 || m.table("h")["a"] != `{"n":1}` || len(m.log) != 3 {
		t.Errorf("exit code %d, %v\n%s", code, m.table("h"), errs)
	}
	for id := range m.ids {
		if hash, index, ok := strings.Cut(id, "/"); !ok || len(hash) != 16 || index != "0" {
			t.Errorf("an id is %q", id)
		}
	}
}

func TestMistakeInALineIsFoundBeforeAnythingOfItIsSent(t *testing.T) {
	many := `{"changes":[` + strings.TrimSuffix(strings.Repeat(`{"op":"put","key":"a","value":{}},`, 501), ",") + `]}`
	ok := `{"changes":[{"op":"put","key":"ok","value":{}}]}`
	for line, want := range map[string]string{
		`{"changes":[{"op":"put","key":"ä","value":{x}}]}`: "line 3: column 44: invalid character 'x'",
		`{"changes":[`:                  "line 3: column 12: unexpected end of JSON input",
		`[1]`:                           "line 3: it is no object",
		`null`:                          "line 3: it is no object",
		`{}`:                            `line 3: it has no "changes"`,
		`{"change":[]}`:                 `line 3: unknown name "change"`,
		`{"changes":[],"atomic":false}`: `line 3: unknown name "atomic"`,
		`{"changes":{}}`:                `line 3: "changes" is no list`,
		`{"id":7,"changes":[{}]}`:       `line 3: its "id" is no text`,
		`{"changes":[{"op":"put","key":"a","value":{}},{"op":"upsert","key":"a"}]}`:               `line 3: change 2: "upsert" is no operation`,
		`{"changes":[{"op":"put","key":"a","vaule":{}}]}`:                                         `line 3: change 1: unknown name "vaule"`,
		`{"changes":[{"op":"put","value":{}}]}`:                                                   `line 3: change 1: "" is not a key`,
		`{"changes":[{"op":"put","key":7,"value":{}}]}`:                                           `line 3: change 1: its "key" is no text`,
		`{"changes":[{"op":"put","key":"a","collection":"a b","value":{}}]}`:                      `line 3: change 1: "a b" is not a collection`,
		`{"id":"` + strings.Repeat("x", 255) + `","changes":[{"op":"put","key":"a","value":{}}]}`: `is not a id`,
		`{"changes":[7]}`: `line 3: change 1: it is no object`,
		many:              `line 3: it has 501 changes: a transaction has at most 500`,
		`{"changes":[{"op":"put","key":"a","value":{"x":"` + strings.Repeat("y", maxLine) + `"}}]}`: "line 3 has more than 16 MiB",
	} {
		m := newModel(t)
		code, errs := importing(t.Context(), m, ok+"\n\n"+line+"\n"+strings.Replace(ok, "ok", "after", 1))
		if code != exitFailed || !strings.Contains(errs, want) {
			t.Errorf("%.80s: exit code %d, want %s\n%.400s", line, code, want, errs)
		}
		if got := m.table("h"); len(got) != 1 || got["ok"] == "" {
			t.Errorf("%.80s: the rows are %v: all that is in front of it, and no more, should be there", line, got)
		}
	}
	m := newModel(t)
	if code, _, errs := command(t.Context(), ok, "import", "--url", m.srv.URL); code != exitFailed || !strings.Contains(errs, "there is no --collection") {
		t.Errorf("without a collection: exit code %d\n%s", code, errs)
	}
}

func TestLineEndsAndMarksOfOtherSystemsAreNoMistakes(t *testing.T) {
	m := newModel(t)
	code, errs := importing(t.Context(), m, "\uFEFF{\"changes\":[ {\"op\" : \"put\",\"key\":\"a\",\"value\":{}} ]}\r\n \r\n{\"changes\":[]}\r\n{\"id\":\"x\",\"changes\":[{\"op\":\"put\",\"key\":\"b\",\"collection\":\"i\",\"id\":\"own\",\"value\":{}}]}")
	if code != 0 || len(m.table("h")) != 1 || len(m.table("i")) != 1 || m.ids["own"] == "" || !strings.Contains(errs, "imported 2 lines") {
		t.Errorf("exit code %d, %v\n%s", code, m.ids, errs)
	}
}

func TestImportGoesOnWhereItWas(t *testing.T) {
	file, rows := story(rand.New(rand.NewPCG(8, 8)), 100, 10)
	lines := strings.SplitAfter(file, "\n")
	dir := t.TempDir()
	path, state := filepath.Join(dir, "story"), filepath.Join(dir, "state")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := newModel(t)
	write(strings.TrimSuffix(strings.Join(lines[:60], ""), "\n")) // its last line lacks its end
	if code, errs := importing(t.Context(), m, "", "--state", state, path); code != 0 {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	clear(m.ids) // long ago
	write(file)
	before := m.requests()
	code, errs := importing(t.Context(), m, "", "--state", state, path)
	if code != 0 || m.requests()-before != 40 || !strings.Contains(errs, "going on after line 60") || !strings.Contains(errs, "imported 40 lines") {
		t.Errorf("exit code %d, %d requests\n%s", code, m.requests()-before, errs)
	}
	same(t, m, rows)
	// From standard input too; and there is nothing left.
	clear(m.ids)
	before = m.requests()
	if code, errs := importing(t.Context(), m, file, "--state", state); code != 0 || m.requests() != before {
		t.Errorf("exit code %d\n%s", code, errs)
	}
	// Another file, another place, another meaning.
	for name, change := range map[string]string{
		"a line is another":   strings.Replace(file, lines[99], strings.Replace(lines[99], `"op"`, `"po"`, 1), 1),
		"it is shorter":       strings.Join(lines[:99], ""),
		"a line has grown":    strings.TrimSuffix(file, "\n") + " \n",
		"it has moved by one": " " + file,
		"a file of nothing":   "",
	} {
		if code, errs := importing(t.Context(), m, change, "--state", state); code != exitFailed || !strings.Contains(errs, "another file") {
			t.Errorf("%s: exit code %d\n%s", name, code, errs)
		}
	}
	for _, args := range [][]string{{"--tenant", "acme"}, {"--collection", "i"}, {"--url", m.srv.URL + "/other"}} {
		if code, errs := importing(t.Context(), m, file, append(args, "--state", state)...); code != exitUsage || !strings.Contains(errs, "another import") {
			t.Errorf("%v: exit code %d\n%s", args, code, errs)
		}
	}
	if m.requests() != before {
		t.Error("something was sent all the same")
	}
	if err := os.WriteFile(state, []byte("60"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, errs := importing(t.Context(), m, file, "--state", state); code != exitFailed || !strings.Contains(errs, state) {
		t.Errorf("exit code %d\n%s", code, errs)
	}
}

func TestRefusedLineIsTriedAgainFromTheState(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	m := newModel(t)
	bad := `{"changes":[{"op":"insert","key":"a","value":{}}]}
{"changes":[{"op":"modify","key":"b","value":{}}]}
`
	if code, errs := importing(t.Context(), m, bad, "--state", state); code != exitFailed || !strings.Contains(errs, "line 2 was refused: missing") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
	if code, errs := importing(t.Context(), m, bad, "--state", state); code != exitFailed || !strings.Contains(errs, "line 2 was refused: missing") {
		t.Errorf("the second time: exit code %d\n%s", code, errs)
	}
	// The line behind the state may be mended.
	if code, errs := importing(t.Context(), m, strings.Replace(bad, "modify", "put", 1), "--state", state); code != 0 || !strings.Contains(errs, "imported 1 lines") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
}

func TestImportDoesNotWaitForEver(t *testing.T) {
	began := time.Now()
	code, _, errs := command(t.Context(), `{"changes":[{"op":"put","collection":"h","key":"a","value":{}}]}`,
		"import", "--url", "http://127.0.0.1:1", "--patience", "700ms")
	if took := time.Since(began); code != exitFailed || !strings.Contains(errs, "gave up after") || !strings.Contains(errs, "refused") || took < 700*time.Millisecond || took > 5*time.Second {
		t.Errorf("exit code %d after %v\n%s", code, took, errs)
	}
	// What will not change is not waited for at all.
	m := newModel(t)
	m.refuse = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(401)
		io.WriteString(w, `{"code":"unauthenticated","status":401,"title":"Unauthorized","detail":"log in"}`)
		return true
	}
	code, errs = importing(t.Context(), m, `{"changes":[{"op":"put","key":"a","value":{}}]}`)
	if code != exitFailed || !strings.Contains(errs, "401 unauthenticated: Unauthorized: log in") || strings.Contains(errs, "again in") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
}

func TestBarShowsHowFarAFileIs(t *testing.T) {
	var b bytes.Buffer
	p := &progress{w: &b, size: 1000}
	p.show(500, 7, 9, time.Now().Add(-time.Second))
	if got := b.String(); !strings.Contains(got, "[###############...............]  50%  7 lines, 9 changes") {
		t.Errorf("it shows %q", got)
	}
	p.show(600, 8, 9, time.Now()) // too soon
	p.clear()
	p.clear()
	if got := b.String(); strings.Contains(got, "60%") || strings.Count(got, "\x1b[K") != 2 {
		t.Errorf("it shows %q", got)
	}
	var none *progress // no terminal
	none.show(1, 1, 1, time.Now())
	none.clear()
}
