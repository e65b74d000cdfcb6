package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTailPrintsWhatChanges(t *testing.T) {
	for _, transport := range []string{"sse", "websocket", "poll"} {
		m := newModel(t)
		m.put("todos", "1", `{"title":"milk"}`)
		m.put("lists", "a b", `{}`)
		m.put("others", "x", `{}`)
		m.remove("todos", "gone")
		code, out, errs := command(t.Context(), "", "tail", "--url", m.srv.URL, "--transport", transport, "--once", "todos", "lists")
		want := `       1  todos  insert  1  {"title":"milk"}
       2  lists  insert  "a b"  {}
       4  todos  remove  gone
`
		if code != 0 || out != want {
			t.Errorf("over %s: exit code %d\n%s\n%s", transport, code, out, errs)
		}
		if !strings.Contains(errs, "live   k3f9a1-4\n") || !strings.Contains(errs, "over "+transport) {
			t.Errorf("over %s it says\n%s", transport, errs)
		}
	}
}

func TestTailPrintsFramesAsTheyAreForPrograms(t *testing.T) {
	m := newModel(t)
	m.put("todos", "1", `{"title":"<milk>",  "n":1.50}`)
	code, out, _ := command(t.Context(), "", "tail", "--url", m.srv.URL, "--json", "--once", "todos")
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if code != 0 || len(lines) != 3 || !strings.HasPrefix(lines[0], `{"type":"open"`) ||
		lines[1] != `{"type":"change","seq":1,"collection":"todos","op":"insert","key":"1","at":"2026-03-01T10:00:00.000Z","value":{"title":"<milk>",  "n":1.50}}` ||
		lines[2] != `{"type":"live","cursor":"k3f9a1-1"}` {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

func TestTailOfRowsShowsOnlyWhatIsThere(t *testing.T) {
	m := newModel(t)
	m.put("todos", "b", `{"n":1}`)
	m.put("todos", "a", `{"n":2}`)
	m.put("todos", "b", `{"n":3}`)
	m.put("todos", "c", `{"n":4}`)
	m.remove("todos", "c")
	args := []string{"tail", "--url", m.srv.URL, "--rows", "todos"}
	code, out, _ := command(t.Context(), "", append(args, "--once")...)
	if want := "       2  todos  put     a  {\"n\":2}\n       3  todos  put     b  {\"n\":3}\n"; code != 0 || out != want {
		t.Errorf("exit code %d\n%s", code, out)
	}
	// Then what becomes of them.
	ctx, cancel := context.WithCancel(t.Context())
	var o, e output
	done := make(chan int)
	go func() { done <- execute(ctx, append(args, "--json"), stdio{strings.NewReader(""), &o, &e}) }()
	eventually(t, "the rows", func() bool { return strings.Count(o.String(), "\n") == 2 })
	m.remove("todos", "a")
	m.put("todos", "d", `{"n":"<"}`)
	eventually(t, "two more", func() bool { return strings.Count(o.String(), "\n") == 4 })
	cancel()
	want := `{"collection":"todos","op":"put","key":"a","seq":2,"value":{"n":2}}
{"collection":"todos","op":"put","key":"b","seq":3,"value":{"n":3}}
{"collection":"todos","op":"remove","key":"a","seq":6}
{"collection":"todos","op":"put","key":"d","seq":7,"value":{"n":"<"}}
`
	if code := <-done; code != 0 || o.String() != want {
		t.Errorf("exit code %d\n%s\n%s", code, o.String(), e.String())
	}
}

func TestCursorFileMakesTheNextTailGoOnWithoutGapOrRepetition(t *testing.T) {
	m := newModel(t)
	file := filepath.Join(t.TempDir(), "cursors")
	tail := func(args ...string) (int, string, string) {
		return command(t.Context(), "", append([]string{"tail", "--url", m.srv.URL, "--once", "--cursor-file", file}, args...)...)
	}
	m.put("todos", "1", `{}`)
	m.put("lists", "1", `{}`)
	if code, out, errs := tail("todos"); code != 0 || strings.Count(out, "\n") != 1 {
		t.Fatalf("exit code %d\n%s%s", code, out, errs)
	}
	m.put("todos", "2", `{}`)
	// A collection that is new here begins at its beginning, the others go on.
	if code, out, errs := tail("todos", "lists"); code != 0 || out != "       2  lists  insert  1  {}\n       3  todos  insert  2  {}\n" {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	m.put("lists", "2", `{}`)
	if code, out, _ := tail("todos"); code != 0 || out != "" {
		t.Errorf("exit code %d\n%s", code, out)
	}
	// Who was not followed has kept his place.
	if code, out, _ := tail("lists"); code != 0 || out != "       4  lists  insert  2  {}\n" {
		t.Errorf("exit code %d\n%s", code, out)
	}
	// Another tenant's place in the log is no place to begin.
	if code, out, errs := tail("--tenant", "acme", "todos"); code != exitUsage || out != "" || !strings.Contains(errs, `"demo"`) {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	if err := os.WriteFile(file, []byte("k3f9a1-4"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := tail("todos"); code != exitFailed || out != "" || !strings.Contains(errs, file) {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
}

// fullDisk takes n bytes.
type fullDisk struct{ n int }

func (d *fullDisk) Write(b []byte) (int, error) {
	if d.n -= len(b); d.n < 0 {
		return 0, errors.New("no space left on device")
	}
	return len(b), nil
}

func TestChangeThatCouldNotBePrintedIsNotSkippedNextTime(t *testing.T) {
	m := newModel(t)
	file := filepath.Join(t.TempDir(), "cursors")
	m.put("todos", "1", `{}`)
	args := []string{"tail", "--url", m.srv.URL, "--once", "--cursor-file", file, "todos"}
	if code, _, _ := command(t.Context(), "", args...); code != 0 {
		t.Fatal("exit code", code)
	}
	m.put("todos", "2", `{}`)
	var e output
	if code := execute(t.Context(), args, stdio{strings.NewReader(""), &fullDisk{3}, &e}); code != exitFailed || !strings.Contains(e.String(), "no space left") {
		t.Errorf("exit code %d\n%s", code, e.String())
	}
	if code, out, _ := command(t.Context(), "", args...); code != 0 || !strings.Contains(out, "insert  2") {
		t.Errorf("exit code %d, the change is not printed again: %s", code, out)
	}
}

func TestInterruptedTailSaysALineWithWhichItGoesOn(t *testing.T) {
	m := newModel(t)
	m.put("todos", "1", `{}`)
	ctx, cancel := context.WithCancel(t.Context())
	var o, e output
	done := make(chan int)
	go func() {
		done <- execute(ctx, []string{"tail", "--url", m.srv.URL, "--transport", "poll", "todos", "lists"}, stdio{strings.NewReader(""), &o, &e})
	}()
	eventually(t, "live", func() bool { return strings.Contains(e.String(), "live ") })
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
	errs := strings.TrimSpace(e.String())
	last := errs[strings.LastIndex(errs, "\n")+1:]
	if want := "tidemark tail --url " + m.srv.URL + " --transport poll --cursor k3f9a1-1 todos lists"; strings.TrimSpace(last) != want {
		t.Fatalf("it says %q, want %q", last, want)
	}
	m.put("lists", "2", `{}`)
	if code, out, _ := command(t.Context(), "", append(strings.Fields(last)[1:], "--once")...); code != 0 || out != "       2  lists  insert  2  {}\n" {
		t.Errorf("the line it says brings exit code %d\n%s", code, out)
	}
}

func TestCursorsThatCouldNotBeKeptAreSaid(t *testing.T) {
	m := newModel(t)
	m.put("todos", "1", `{}`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var o, e output
	done := make(chan int)
	go func() {
		done <- execute(ctx, []string{"tail", "--url", m.srv.URL, "--cursor-file", filepath.Join(t.TempDir(), "gone", "cursors"), "todos"}, stdio{strings.NewReader(""), &o, &e})
	}()
	eventually(t, "live", func() bool { return strings.Contains(e.String(), "live ") })
	cancel()
	if code := <-done; code != exitFailed || !strings.Contains(e.String(), "--cursor k3f9a1-1") || strings.Contains(e.String(), "goes on from here, by") {
		t.Errorf("exit code %d\n%s", code, e.String())
	}
}

func TestResetIsSaidAloud(t *testing.T) {
	m := newModel(t)
	m.put("todos", "1", `{}`)
	code, out, errs := command(t.Context(), "", "tail", "--url", m.srv.URL, "--once", "--cursor", "zzzzzz-9", "todos")
	if code != 0 || !strings.Contains(out, "insert  1") || !strings.Contains(errs, "reset  todos: every row comes again (the cursor is of another log)") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
}

func TestRowCannotTakeOverTheTerminal(t *testing.T) {
	m := newModel(t)
	m.put("todos", "k\u202ey", "{\"a\":\"\u009b2J\u200b\",\"b\":\"é世\"}")
	code, out, _ := command(t.Context(), "", "tail", "--url", m.srv.URL, "--once", "todos")
	if code != 0 || strings.ContainsAny(out, "\u202e\u009b\u200b") || !strings.Contains(out, `"b":"é世"`) || !strings.Contains(out, `"k\u202ey"`) {
		t.Errorf("exit code %d\n%q", code, out)
	}
}

func TestLineIsCutToTheTerminal(t *testing.T) {
	for _, x := range []struct {
		text  string
		width int
		want  string
	}{
		{"abcdef", 0, "abcdef"},
		{"abcdef", 6, "abcdef"},
		{"abcdef", 5, "abcd…"},
		{"世界世界", 8, "世界世界"},
		{"世界世界", 7, "世界世…"},
		{"世界世界", 6, "世界…"},
		{"éééééé", 6, "éééééé"},
		{"e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"},
		{"abcdef", 1, "…"},
	} {
		if got := cut(x.text, x.width); got != x.want {
			t.Errorf("%q cut to %d is %q, want %q", x.text, x.width, got, x.want)
		}
	}
}

func TestWordsOfTheResumeLineSurviveTheShell(t *testing.T) {
	for in, want := range map[string]string{"k3f9a1-1": "k3f9a1-1", "http://h:1/x": "http://h:1/x", "a b": "'a b'", "it's": `'it'\''s'`, "": "''", "$HOME": "'$HOME'", "ö": "'ö'"} {
		if got := quoted(in); got != want {
			t.Errorf("%q is quoted as %s", in, got)
		}
	}
}

func TestKeptFileIsWholeOrTheOneBefore(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := keep(path, cursorFile{"a", nil}); err != nil {
		t.Fatal(err)
	}
	if err := keep(path, func() {}); err == nil { // no JSON
		t.Error("a function was kept")
	}
	if err := keep(filepath.Join(dir, "nowhere", "f"), 1); err == nil {
		t.Error("kept in a directory that is not there")
	}
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := keep(filepath.Join(dir, "taken"), 1); err == nil {
		t.Error("kept in the place of a directory")
	}
	var f cursorFile
	if there, err := kept(path, &f); !there || err != nil || f.Tenant != "a" {
		t.Errorf("%v %v %+v", there, err, f)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 2 {
		t.Errorf("beside the file and the directory there is something: %v", list)
	}
	if there, err := kept(filepath.Join(dir, "g"), &f); there || err != nil {
		t.Errorf("%v %v", there, err)
	}
}
