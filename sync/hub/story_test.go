package hub_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/feed/feedtest"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

var (
	rewriteStories = flag.Bool("rewrite", false, "write what the hub answers into the stories of testdata")
	madeKey        = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)
)

// TestStories plays testdata/*.txt, which say how they are to be read: see
// testdata/README.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories: ", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var told strings.Builder
			synctest.Test(t, func(t *testing.T) {
				s := &story{t: t, log: feedtest.NewMemory(), readers: make(map[string]*reader)}
				s.log.OnSave = func(feed.Position) error { s.saves++; return nil }
				s.clock.booted = time.Now()
				s.restart()
				for _, block := range strings.Split(strings.TrimRight(string(text), "\n"), "\n\n") {
					var notes, command []string
					for _, line := range strings.Split(block, "\n") {
						if line == "----" {
							break
						}
						if strings.HasPrefix(line, "#") {
							notes = append(notes, line)
						} else {
							command = append(command, line)
						}
					}
					if len(command) > 0 {
						block = strings.Join(append(append(append(notes, command...), "----"), s.play(command)...), "\n")
						synctest.Wait()
					}
					told.WriteString(block + "\n\n")
				}
				s.end()
			})
			got := strings.TrimRight(madeKey.ReplaceAllString(told.String(), "(a key of its own)"), "\n") + "\n"
			if got == string(text) {
				return
			}
			if *rewriteStories {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want := strings.Split(string(text), "\n")
			for i, line := range strings.Split(got, "\n") {
				if i >= len(want) || line != want[i] {
					t.Fatalf("%s:%d: the story says\n%s\nand the hub\n%s", file, i+1, strings.Join(want[min(i, len(want)):min(i+5, len(want))], "\n"), line)
				}
			}
		})
	}
}

type story struct {
	t       *testing.T
	log     *feedtest.Memory
	opts    hub.Options
	hub     *hub.Hub
	readers map[string]*reader
	saves   int
	clock   storyClock
}

// storyClock is a clock whose wall may be set wrong, in a machine that may boot.
type storyClock struct {
	skew   atomic.Int64
	boot   uint64 // set while no hub is open
	booted time.Time
}

func (c *storyClock) Wall() time.Time             { return time.Now().Add(time.Duration(c.skew.Load())) }
func (c *storyClock) Up() (uint64, time.Duration) { return c.boot, time.Since(c.booted) }

// reader is a session and the call of Next that it waits in, if any.
type reader struct {
	*hub.Session
	answer chan []string
	cancel func()
}

func (s *story) restart() {
	s.end()
	s.opts.Clock = &s.clock
	h, err := hub.Open(context.Background(), s.log, s.opts)
	if err != nil {
		s.t.Fatal(err)
	}
	s.hub = h
}

func (s *story) end() {
	for name := range s.readers {
		s.close(name)
	}
	if s.hub != nil {
		s.hub.Drain(context.Background())
	}
}

func (s *story) close(name string) {
	r := s.readers[name]
	delete(s.readers, name)
	if r.answer != nil {
		r.cancel()
		<-r.answer
	}
	r.Close()
}

// play does one command and returns what comes of it.
func (s *story) play(lines []string) []string {
	words := strings.Fields(lines[0])
	command, args := words[0], words[1:]
	options := make(map[string]string)
	var plain []string
	for _, a := range args {
		if name, value, ok := strings.Cut(a, "="); ok && !strings.HasPrefix(a, "{") {
			options[name] = value
		} else {
			plain = append(plain, a)
		}
	}
	d := func(name string) time.Duration {
		v, err := time.ParseDuration(options[name])
		if err != nil && options[name] != "" {
			s.t.Fatal(err)
		}
		return v
	}
	n := func(name string) int { v, _ := strconv.Atoi(options[name]); return v }
	fail := func(err error) []string {
		if err != nil {
			return []string{"refused: " + err.Error()}
		}
		return nil
	}
	switch command {
	case "hub":
		s.end()
		s.hub = nil
		s.opts = hub.Options{Tombstones: d("tombstones"), IDs: d("ids"), IDCount: n("count"), Log: int64(n("log"))}
		s.clock.boot = uint64(n("boot"))
		s.restart()
	case "restart":
		s.restart()
	case "down":
		s.end()
		s.hub = nil
		s.sleep(plain[0])
		if n("boot") > 0 {
			s.clock.boot, s.clock.booted = uint64(n("boot")), time.Now()
		}
		s.restart()
	case "set":
		skew, err := time.ParseDuration(plain[0])
		if err != nil {
			s.t.Fatal(err)
		}
		s.clock.skew.Store(int64(skew))
	case "wait":
		s.sleep(plain[0])
	case "checkpoint":
		before := s.saves
		for _, w := range []hub.Write{put("else", "x", `{"v":"`+strings.Repeat("v", 100_000)+`"}`), remove("else", "x")} {
			if _, err := s.hub.Write(context.Background(), hub.Everything, hub.Request{Tenant: "somebody", Writes: []hub.Write{w}}); err != nil {
				return fail(err)
			}
			synctest.Wait()
		}
		if s.saves != before+1 {
			s.t.Fatalf("%d checkpoints were saved", s.saves-before)
		}
	case "drain":
		return fail(s.hub.Drain(context.Background()))
	case "insert", "put", "modify", "replace", "remove":
		return s.write(true, lines, options)
	case "transaction":
		return s.write(true, lines[1:], options)
	case "each":
		return s.write(false, lines[1:], options)
	case "open":
		opts := hub.SessionOptions{Heartbeat: d("heartbeat"), Hold: d("hold"), Limit: n("limit"), Tick: options["tick"] == "yes"}
		tenant := "acme"
		if options["tenant"] != "" {
			tenant = options["tenant"]
		}
		session, err := s.hub.Open(hub.Everything, tenant, s.starts(plain[1:]), opts)
		if err == nil {
			if s.readers[plain[0]] != nil {
				s.close(plain[0])
			}
			s.readers[plain[0]] = &reader{Session: session}
		}
		return fail(err)
	case "subscribe":
		return fail(s.readers[plain[0]].Subscribe(s.starts(plain[1:]), options["reply"]))
	case "unsubscribe":
		s.readers[plain[0]].Unsubscribe(plain[1:], options["reply"])
	case "next":
		return s.next(plain[0])
	case "read":
		var all []string
		for {
			some := s.next(plain[0])
			if len(some) == 1 && some[0] == "waits" {
				return append(all, some...)
			}
			all = append(append(all, some...), "--")
			if strings.HasPrefix(some[0], "end") {
				return all[:len(all)-1]
			}
		}
	case "close":
		s.close(plain[0])
	case "rows":
		page, err := s.hub.Rows(hub.Everything, "acme", plain[0], strings.Replace(options["after"], "EPOCH", string(s.log.Epoch()), 1), max(1, n("limit")))
		out := fail(err)
		for _, c := range page.Rows {
			out = append(out, fmt.Sprintf("%d %s %s", c.Seq(), c.Key(), c.Value()))
		}
		if err == nil && page.Next != "" {
			out = append(out, "next "+strings.Replace(page.Next, string(s.log.Epoch()), "EPOCH", 1))
		}
		if err == nil {
			out = append(out, fmt.Sprint("cursor ", page.Cursor.Seq))
		}
		return out
	default:
		s.t.Fatalf("what is %q?", command)
	}
	return nil
}

func (s *story) sleep(text string) {
	v, err := time.ParseDuration(text)
	if err != nil {
		s.t.Fatal(err)
	}
	time.Sleep(v) // of the bubble
	synctest.Wait()
}

// starts reads collections with cursors: a number is one of this log.
func (s *story) starts(words []string) (starts []feed.Start) {
	for _, w := range words {
		name, cursor, ok := strings.Cut(w, "@")
		start := feed.Start{Collection: name}
		if ok {
			if _, err := strconv.Atoi(cursor); err == nil {
				cursor = string(s.log.Epoch()) + "-" + cursor
			}
			start.Cursors = []string{cursor}
		}
		starts = append(starts, start)
	}
	return starts
}

// write sends changes, a line each: op collection key [JSON] [id=] [if=] [ttl=].
func (s *story) write(atomic bool, lines []string, options map[string]string) (out []string) {
	r := hub.Request{Tenant: "acme", Client: options["by"], Atomic: atomic}
	if options["tenant"] != "" {
		r.Tenant = options["tenant"]
	}
	for _, line := range lines {
		words := strings.Fields(line)
		w := hub.Write{Op: words[0], Collection: words[1], Key: words[2]}
		if w.Key == "-" {
			w.Key = ""
		}
		for _, a := range words[3:] {
			name, value, _ := strings.Cut(a, "=")
			switch {
			case a[0] == '{' && w.Op == "modify":
				w.Patch = []byte(a)
			case a[0] == '{':
				w.Value = []byte(a)
			case name == "id":
				w.ID = value
			case name == "ttl":
				w.TTL, _ = time.ParseDuration(value)
			case name == "if":
				n, _ := strconv.Atoi(value)
				seq := feed.Seq(n)
				w.If = &seq
			}
		}
		if w.Op == "replace" {
			w.Op = "modify"
		}
		r.Writes = append(r.Writes, w)
	}
	result, err := s.hub.Write(context.Background(), hub.Everything, r)
	if err != nil {
		return []string{"refused: " + err.Error()}
	}
	for _, o := range result.Outcomes {
		out = append(out, strings.TrimRight(fmt.Sprintf("%s %s %d %s", o.Status, o.Key, o.Seq, o.Value), " "))
	}
	if result.Refused {
		return append(out, "refused")
	}
	return append(out, fmt.Sprint("cursor ", result.Cursor.Seq))
}

// next is the next batch of a session, or that it waits for one.
func (s *story) next(name string) []string {
	r := s.readers[name]
	if r == nil {
		s.t.Fatalf("there is no session %s", name)
	}
	if r.answer == nil {
		ctx, cancel := context.WithCancel(context.Background())
		r.answer, r.cancel = make(chan []string, 1), cancel
		answer := r.answer
		go func() {
			b, err := r.Next(ctx)
			answer <- tell(b, err)
		}()
	}
	synctest.Wait()
	select {
	case told := <-r.answer:
		r.cancel()
		r.answer = nil
		return told
	default:
		return []string{"waits"}
	}
}

// tell is a batch in words.
func tell(b *feed.Batch, err error) (out []string) {
	var ended *hub.Ended
	if errors.As(err, &ended) {
		when := "not to come back"
		if ended.Retry > 0 {
			when = "come back"
		}
		return []string{"end " + ended.Reason + ", " + when}
	}
	if err != nil {
		return []string{err.Error()}
	}
	for _, r := range b.Replies {
		out = append(out, "reply "+r)
	}
	for _, r := range b.Resets {
		out = append(out, fmt.Sprintf("reset %s %s", strings.Join(r.Collections, " "), r.Reason))
	}
	for _, i := range b.Items {
		w := wireOf(i)
		line := strings.TrimRight(fmt.Sprintf("%d %s %s %s %s", w.Seq, w.Op, w.Collection, w.Key, w.Value), " ")
		if i.More {
			line += " more"
		}
		out = append(out, line)
	}
	if b.Announce {
		out = append(out, fmt.Sprint("live ", b.Cursor.Seq))
	}
	if b.Tick {
		out = append(out, "tick")
	}
	if !b.Live {
		out = append(out, fmt.Sprint("there is more; cursor ", b.Cursor.Seq))
	}
	if !b.Resumes {
		out = append(out, "which can't be resumed from")
	}
	return out
}
