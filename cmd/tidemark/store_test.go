package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/transport/follow"
)

// tidemark runs the program to its end.
func tidemark(t testing.TB, args ...string) (code int, out string) {
	t.Helper()
	p := start(t, args...)
	<-p.exited
	return p.cmd.ProcessState.ExitCode(), p.out.String()
}

// rowsOf are the rows of a collection as the server has them.
func rowsOf(t testing.TB, url, collection string) map[string]string {
	t.Helper()
	rows := make(map[string]string)
	for row := range snapshot(t, url, collection).All(collection) {
		rows[row.Key] = string(row.Value)
	}
	return rows
}

// stored makes a store by a server that is stopped, or killed: with a checkpoint, groups
// before and after it, removes and ids. It returns what it holds.
func stored(t testing.TB, kill bool) (data string, rows map[string]string) {
	t.Helper()
	addr := freePort(t)
	data = t.TempDir()
	server := serve(t, addr, data, "--log-size", "64KiB", "--log-level", "warn")
	for i := range 300 {
		change := map[string]any{"id": fmt.Sprint("id-", i), "collection": "todos", "op": "put", "key": fmt.Sprint("key-", i%100), "value": map[string]any{"n": i, "text": strings.Repeat("x", 300)}}
		if i%10 == 3 {
			change = map[string]any{"id": fmt.Sprint("id-", i), "collection": "todos", "op": "remove", "key": fmt.Sprint("key-", i%100)}
		}
		if _, err := post(t.Context(), "http://"+addr, []map[string]any{change}); err != nil {
			t.Fatal(err)
		}
	}
	rows = rowsOf(t, "http://"+addr, "todos")
	if kill {
		server.kill()
	} else if code := server.stop(t); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, server.out)
	}
	return data, rows
}

// blocks are the files of a stream's messages.
func blocks(t testing.TB, data, stream string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(data, "nats/jetstream/$G/streams", stream, "msgs/*.blk"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files of %s: %v", stream, err)
	}
	return files
}

// harm changes a byte of a file, some way through it.
func harm(t testing.TB, file string, part float64) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[int(float64(len(b))*part)] ^= 0x20
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func epochOf(t testing.TB, data string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(data, "tidemark.json"))
	if err != nil {
		t.Fatal(err)
	}
	var marker struct{ Epoch string }
	if err := json.Unmarshal(b, &marker); err != nil {
		t.Fatal(err)
	}
	return marker.Epoch
}

func TestVerifyPassesWhatIsWhole(t *testing.T) {
	for _, kill := range []bool{false, true} {
		data, rows := stored(t, kill)
		code, out := tidemark(t, "verify", "--data", data)
		if code != 0 || !strings.Contains(out, "whole") || !strings.Contains(out, fmt.Sprintf("rows        %d,", len(rows))) {
			t.Errorf("killed %t: exit code %d:\n%s", kill, code, out)
		}
	}
}

func TestVerifyLeavesARunningServerAlone(t *testing.T) {
	addr, data := freePort(t), t.TempDir()
	serve(t, addr, data)
	if code, out := tidemark(t, "verify", "--data", data); code != 1 || !strings.Contains(out, "stop the server first") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}

// A damaged store is not served as if nothing had happened: the damage is named, and
// nothing is touched. Who accepts the loss gets the rest under a new epoch.
func TestDamageIsNamedRefusedAndLeftAside(t *testing.T) {
	whole, rows := stored(t, true)
	for name, harmIt := range map[string]func(data string){
		"a group":      func(data string) { f := blocks(t, data, "LOG"); harm(t, f[len(f)-1], 0.7) },
		"a checkpoint": func(data string) { harm(t, blocks(t, data, "CHECKPOINT")[0], 0.5) },
		"all groups": func(data string) {
			for _, f := range blocks(t, data, "LOG") {
				if err := os.Truncate(f, 0); err != nil {
					t.Fatal(err)
				}
			}
		},
		"the marker": func(data string) { harm(t, filepath.Join(data, "tidemark.json"), 0.3) },
		"the mark": func(data string) {
			harm(t, filepath.Join(data, "high-water"), 0)
			harm(t, filepath.Join(data, "high-water"), 0.95)
		},
		"everything": func(data string) { os.RemoveAll(filepath.Join(data, "nats")) },
		"a meta file": func(data string) {
			os.Truncate(filepath.Join(filepath.Dir(filepath.Dir(blocks(t, data, "LOG")[0])), "meta.inf"), 0)
		},
		"no marker left": func(data string) { os.Remove(filepath.Join(data, "tidemark.json")) },
	} {
		t.Run(name, func(t *testing.T) {
			data := filepath.Join(t.TempDir(), "data")
			os.Remove(filepath.Join(whole, "admin.sock")) // of the server that was killed
			if err := os.CopyFS(data, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			harmIt(data)
			before := listing(t, data)
			addr := freePort(t)
			code, out := tidemark(t, "serve", "--listen", addr, "--data", data)
			if code != 1 || !strings.Contains(out, "damaged") || !strings.Contains(out, "--accept-data-loss") {
				t.Fatalf("exit code %d:\n%s", code, out)
			}
			if after := listing(t, data); after != before {
				t.Errorf("the refusal changed files:\n%s\nbefore:\n%s", after, before)
			}
			code, report := tidemark(t, "verify", "--data", data)
			if code != 1 || !strings.Contains(report, "DAMAGED") {
				t.Fatalf("verify: exit code %d:\n%s", code, report)
			}
			if name == "a group" && !regexp.MustCompile(`sequences \d+ to \d+; among them acme todos "key-\d+"`).MatchString(report) {
				t.Errorf("it does not say what is lost:\n%s", report)
			}
			server := serve(t, addr, data, "--accept-data-loss")
			got := rowsOf(t, "http://"+addr, "todos")
			if epochOf(t, data) == epochOf(t, whole) {
				t.Error("the epoch is the old one")
			}
			if name == "a group" && len(got) < len(rows)-1 || name != "everything" && name != "all groups" && name != "a checkpoint" && len(got) == 0 {
				t.Errorf("%d rows are left of %d", len(got), len(rows))
			}
			if _, err := post(t.Context(), "http://"+addr, []map[string]any{{"collection": "todos", "op": "put", "key": "new", "value": map[string]any{}}}); err != nil {
				t.Error(err)
			}
			if code := server.stop(t); code != 0 {
				t.Errorf("exit code %d:\n%s", code, server.out)
			}
			aside, err := filepath.Glob(filepath.Join(data, "aside/*"))
			if err != nil || len(aside) != 1 {
				t.Fatalf("aside is %q, %v", aside, err)
			}
			if code, out := tidemark(t, "verify", "--data", aside[0]); code != 1 || !strings.Contains(out, "DAMAGED") {
				t.Errorf("aside: exit code %d:\n%s", code, out)
			}
			if code, out := tidemark(t, "verify", "--data", data); code != 0 {
				t.Errorf("what goes on is not whole: exit code %d:\n%s", code, out)
			}
		})
	}
}

// listing is all files with their sizes, but for those that any start touches.
func listing(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if rel, _ := filepath.Rel(dir, path); rel != "LOCK" && rel != "secret" {
			fmt.Fprintf(&b, "%s %d %x\n", rel, info.Size(), fingerprint("", content))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A backup is made while writers write: it is one state that the server had, and what is
// restored of it is that state, under a new epoch.
func TestBackupOfARunningServerIsOneState(t *testing.T) {
	addr, data := freePort(t), t.TempDir()
	url := "http://" + addr
	server := serve(t, addr, data, "--log-size", "64KiB", "--log-level", "warn")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	written := make(chan int, 1)
	written <- 0
	writing := make(chan error, 1)
	go func() {
		for n := 1; ; n++ {
			time.Sleep(5 * time.Millisecond) // a writer, not a flood
			// All rows of both collections are always at the same n.
			var changes []map[string]any
			for i := range 5 {
				for _, c := range []string{"a", "b"} {
					changes = append(changes, map[string]any{"id": fmt.Sprint(n, c, i), "collection": c, "op": "put", "key": fmt.Sprint(i), "value": map[string]int{"n": n}})
				}
			}
			if _, err := post(ctx, url, changes); err != nil {
				if ctx.Err() != nil {
					err = nil
				}
				writing <- err
				return
			}
			<-written
			written <- n
		}
	}()
	at := func() int { n := <-written; written <- n; return n }
	for at() < 20 {
	}
	files := t.TempDir()
	for i := range 5 {
		before := at()
		file := filepath.Join(files, fmt.Sprint(i, ".backup"))
		if code, out := tidemark(t, "backup", "--data", data, file); code != 0 || !strings.Contains(out, "done") {
			t.Fatalf("exit code %d:\n%s", code, out)
		}
		after := at() + 1
		restored := filepath.Join(files, fmt.Sprint(i))
		if code, out := tidemark(t, "restore", "--data", restored, file); code != 0 || !strings.Contains(out, "verified") {
			t.Fatalf("exit code %d:\n%s", code, out)
		}
		other := freePort(t)
		copied := serve(t, other, restored)
		want := ""
		for _, c := range []string{"a", "b"} {
			for key, value := range rowsOf(t, "http://"+other, c) {
				var row struct{ N int }
				if err := json.Unmarshal([]byte(value), &row); err != nil {
					t.Fatal(err)
				}
				if want == "" {
					want = value
				}
				if value != want || row.N < before || row.N > after {
					t.Errorf("row %s of %s is at %s, another at %s; the backup began at %d and ended at %d", key, c, value, want, before, after)
				}
			}
		}
		// Ids go with it: what was sent before is not done again.
		statuses, err := post(t.Context(), "http://"+other, []map[string]any{{"id": fmt.Sprint(before, "a", 0), "collection": "a", "op": "put", "key": "0", "value": map[string]int{"n": before}}})
		if err != nil || statuses[0] != "duplicate" {
			t.Errorf("%q, %v", statuses, err)
		}
		copied.stop(t)
		if epochOf(t, restored) == epochOf(t, data) {
			t.Error("the restored log has the epoch of the one that was backed up")
		}
	}
	cancel()
	if err := <-writing; err != nil {
		t.Fatal(err)
	}
	if code := server.stop(t); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, server.out)
	}
	// Without a server, and to standard output.
	if code, out := tidemark(t, "backup", "--data", data, filepath.Join(files, "offline.backup")); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	var piped bytes.Buffer
	cmd := exec.Command(path, "backup", "--data", data, "-")
	cmd.Stdout = &piped
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(path, "restore", "--data", filepath.Join(files, "piped"), "-")
	cmd.Stdin = &piped
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestBackupThatIsNotWholeRestoresNothing(t *testing.T) {
	data, _ := stored(t, false)
	file := filepath.Join(t.TempDir(), "b")
	if code, out := tidemark(t, "backup", "--data", data, file); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty": nil, "cut": whole[:len(whole)/2], "without its last byte": whole[:len(whole)-1], "with more": append(bytes.Clone(whole), 'x'),
		"harmed": func() []byte { b := bytes.Clone(whole); b[len(b)/2] ^= 1; return b }(), "another file": []byte("hello"),
	} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), "to")
		if code, out := tidemark(t, "restore", "--data", to, file); code != 1 || !strings.Contains(out, "not a whole backup") {
			t.Errorf("%s: exit code %d:\n%s", name, code, out)
		}
		if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something was made of it", name)
		}
	}
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out := tidemark(t, "restore", "--data", data, file); code != 1 || !strings.Contains(out, "holds a store already") {
		t.Errorf("over a store: exit code %d:\n%s", code, out)
	}
}

// A kill under relaxed durability makes a new epoch each time, unasked, and says so.
func TestRelaxedIsSaidAndAnUncleanStopMakesANewEpoch(t *testing.T) {
	addr, data := freePort(t), t.TempDir()
	url := "http://" + addr
	for round := range 3 {
		server := serve(t, addr, data, "--durability", "relaxed")
		if ready := get(t, url+"/readyz"); !strings.Contains(ready, "relaxed") {
			t.Errorf("/readyz says %q", ready)
		}
		if !strings.Contains(server.out.String(), "durability is relaxed") {
			t.Error("the start says nothing")
		}
		if _, err := post(t.Context(), url, []map[string]any{{"collection": "a", "op": "put", "key": fmt.Sprint(round), "value": map[string]int{"n": round}}}); err != nil {
			t.Fatal(err)
		}
		if n := len(rowsOf(t, url, "a")); n != round+1 {
			t.Errorf("round %d: %d rows", round, n)
		}
		epoch := epochOf(t, data)
		server.kill()
		server = serve(t, addr, data, "--durability", "durable")
		if epochOf(t, data) == epoch {
			t.Error("the epoch is the old one")
		}
		if n := len(rowsOf(t, url, "a")); n != round+1 {
			t.Errorf("round %d: %d rows after a kill of the process alone", round, n)
		}
		epoch = epochOf(t, data)
		server.kill()
		server = serve(t, addr, data)
		if epochOf(t, data) != epoch {
			t.Error("a new epoch, though it was durable")
		}
		server.stop(t)
	}
	if aside, _ := filepath.Glob(filepath.Join(data, "aside/*")); len(aside) > 0 {
		t.Errorf("every kill leaves a whole log aside: %q", aside)
	}
}

// A sequence that a client holds from before a loss must not be found on another change.
func TestSequencesLeapWhereALogIsRebuilt(t *testing.T) {
	data, _ := stored(t, true)
	f := blocks(t, data, "LOG")
	b, err := os.ReadFile(f[len(f)-1])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f[len(f)-1], b[:len(b)-2000], 0o600); err != nil {
		t.Fatal(err)
	}
	addr := freePort(t)
	serve(t, addr, data, "--accept-data-loss")
	res, err := follow.Post(t.Context(), follow.Options{URL: "http://" + addr, Tenant: "acme"}, json.RawMessage(`{"changes":[{"collection":"todos","op":"put","key":"k","value":{}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if seq := res.Results[0].Seq; seq < 1<<32 {
		t.Errorf("the next change has the sequence %d", seq)
	}
}

// What is harmed on the disk while the server runs is found, and replaced by what is in
// memory: nothing is lost.
func TestDamageWhileTheServerRunsIsMendedFromMemory(t *testing.T) {
	for name, c := range map[string]struct {
		stream string
		part   float64
	}{"in the middle of the log": {"LOG", 0.5}, "the last group": {"LOG", 0.997}, "a checkpoint": {"CHECKPOINT", 0.5}, "the end of a checkpoint": {"CHECKPOINT", 0.999}} {
		t.Run(name, func(t *testing.T) {
			addr, data := freePort(t), t.TempDir()
			url := "http://" + addr
			server := serve(t, addr, data, "--scrub", "300ms", "--log-size", "64KiB")
			for i := range 300 { // there is a checkpoint by then
				if _, err := post(t.Context(), url, []map[string]any{{"collection": "todos", "op": "put", "key": fmt.Sprint(i), "value": map[string]any{"text": strings.Repeat("y", 300)}}}); err != nil {
					t.Fatal(err)
				}
			}
			rows := rowsOf(t, url, "todos")
			all := blocks(t, data, c.stream)
			harm(t, all[len(all)-1], c.part)
			waitFor(t, server, "the damaged files were replaced by what is in memory")
			if _, err := post(t.Context(), url, []map[string]any{{"collection": "todos", "op": "put", "key": "after", "value": map[string]any{}}}); err != nil {
				t.Fatal(err)
			}
			if kept, _ := filepath.Glob(filepath.Join(data, "aside/*")); len(kept) == 0 {
				t.Error("the damaged files were not kept")
			}
			server.kill()
			serve(t, addr, data)
			got := rowsOf(t, url, "todos")
			if delete(got, "after"); fmt.Sprint(got) != fmt.Sprint(rows) {
				t.Errorf("%d rows instead of %d", len(got), len(rows))
			}
		})
	}
}

func get(t testing.TB, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A store that the release before made, stopped in order or killed, is served on: the same
// epoch, rows, ids and cursors.
func TestStoreOfTheReleaseBeforeIsServedOn(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-xzf", "testdata/store-v1.tar.gz", "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "rows.txt"))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(string(text)), "\n") // the last cursor, then collections with their rows
	for _, name := range []string{"store", "killed"} {
		data := filepath.Join(dir, name)
		if code, out := tidemark(t, "verify", "--data", data); code != 0 || !strings.Contains(out, "format 1") {
			t.Fatalf("%s: exit code %d:\n%s", name, code, out)
		}
		addr := freePort(t)
		url := "http://" + addr
		server := serve(t, addr, data)
		for _, line := range want[1:] {
			collection, rows, _ := strings.Cut(line, " ")
			if got := strings.TrimSpace(get(t, url+"/v1/acme/rows/"+collection)); got != rows {
				t.Errorf("%s: %s is\n%s\nwant\n%s", name, collection, got, rows)
			}
		}
		if feed := get(t, url+"/v1/acme/feed?c=todos&wait=0&cursor="+want[0]); strings.Contains(feed, "reset") || !strings.Contains(feed, `"cursor":"`+want[0]+`"`) {
			t.Errorf("%s: the last cursor gives %s", name, feed)
		}
		statuses, err := post(t.Context(), url, []map[string]any{{"id": "id-253", "collection": "todos", "op": "remove", "key": "key-13"}})
		if err != nil || statuses[0] != "duplicate" {
			t.Errorf("%s: an id from before is %q, %v", name, statuses, err)
		}
		if _, err := post(t.Context(), url, []map[string]any{{"id": "new", "collection": "todos", "op": "put", "key": "new", "value": map[string]int{"n": 1}}}); err != nil {
			t.Error(err)
		}
		server.kill()
		if code, out := tidemark(t, "verify", "--data", data); code != 0 || !strings.Contains(out, "format 2") {
			t.Errorf("%s: exit code %d:\n%s", name, code, out)
		}
		server = serve(t, addr, data)
		if got := get(t, url+"/v1/acme/rows/todos?key=new"); !strings.Contains(got, `"seq":299`) {
			t.Errorf("%s: what was written since is %s", name, got)
		}
		server.stop(t)
	}
}

// A store that a newer program made is refused with a word that helps, and not touched.
func TestStoreOfANewerReleaseIsRefused(t *testing.T) {
	data, _ := stored(t, false)
	marker := filepath.Join(data, "tidemark.json")
	b, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(marker, bytes.Replace(b, []byte(`"format":2`), []byte(`"format":3`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	before := listing(t, data)
	for _, args := range [][]string{{"serve", "--listen", freePort(t), "--data", data}, {"serve", "--accept-data-loss", "--listen", freePort(t), "--data", data},
		{"verify", "--data", data}, {"backup", "--data", data, filepath.Join(t.TempDir(), "b")}} {
		if code, out := tidemark(t, args...); code != 1 || !strings.Contains(out, "use a newer one") {
			t.Errorf("%s: exit code %d:\n%s", args[0], code, out)
		}
	}
	if after := listing(t, data); after != before {
		t.Errorf("files were changed:\n%s\nbefore:\n%s", after, before)
	}
}

// A backup of a stopped server is a copy: neither ids that the server still remembers, nor
// rows that are due, nor log that its history has not taken yet may go by it.
func TestABackupOfAStoppedServerTakesNothingFromIt(t *testing.T) {
	data, rows := stored(t, true)
	before := contents(t, data)
	file := filepath.Join(t.TempDir(), "b")
	if code, out := tidemark(t, "backup", "--data", data, file); code != 0 || !strings.Contains(out, fmt.Sprintf("%d rows", len(rows))) {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	if after := contents(t, data); after != before {
		t.Errorf("the directory was\n%s\nand is\n%s", before, after)
	}
}

// contents are all files, with when they were written.
func contents(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(listing(t, dir))
	for _, stream := range []string{"LOG", "CHECKPOINT"} {
		for _, file := range append(blocks(t, dir, stream), filepath.Join(dir, "tidemark.json")) {
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&b, file, info.ModTime())
		}
	}
	return b.String()
}

// Whoever holds a row's sequence from after a first restore must not find it on another
// change after a second one of the same backup: "if" would let it overwrite what it never saw.
func TestABackupThatIsRestoredTwiceGivesNoSequenceToTwoChanges(t *testing.T) {
	data, _ := stored(t, false)
	file := filepath.Join(t.TempDir(), "b")
	if code, out := tidemark(t, "backup", "--data", data, file); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	var last feed.Seq
	for range 2 {
		addr, to := freePort(t), filepath.Join(t.TempDir(), "data")
		if code, out := tidemark(t, "restore", "--data", to, file); code != 0 {
			t.Fatalf("exit code %d:\n%s", code, out)
		}
		server := serve(t, addr, to, "--log-level", "warn")
		if _, err := post(t.Context(), "http://"+addr, []map[string]any{{"collection": "accounts", "op": "put", "key": "x", "value": map[string]any{}}}); err != nil {
			t.Fatal(err)
		}
		rows := snapshot(t, "http://"+addr, "accounts")
		for row := range rows.All("accounts") {
			if seq := feed.Seq(row.Seq); seq <= last {
				t.Errorf("the row is at %d, and one of before was at %d", seq, last)
			} else {
				last = seq
			}
		}
		if code := server.stop(t); code != 0 {
			t.Fatalf("exit code %d:\n%s", code, server.out)
		}
	}
}
