package follow_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/transport/follow"
)

// server is a plain model of what stands behind a feed: every change ever made, of
// which a feed brings each key's last one.
type server struct {
	epoch feed.Epoch
	seq   feed.Seq
	log   []change
	floor feed.Seq // removes up to here are forgotten
}

type change struct {
	seq, last       feed.Seq // last: of its transaction
	collection, key string
	op, value       string
}

func (s *server) write(t *rapid.T) {
	n := rapid.IntRange(1, 4).Draw(t, "changes")
	last := s.seq + feed.Seq(n)
	for range n {
		s.seq++
		c := change{seq: s.seq, last: last,
			collection: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "collection"),
			key:        rapid.SampledFrom([]string{"k", "l", "m"}).Draw(t, "key"),
			op:         rapid.SampledFrom([]string{"insert", "modify", "remove"}).Draw(t, "op")}
		if c.op != "remove" {
			c.value = fmt.Sprintf(`{"n":%d}`, s.seq)
		}
		s.log = append(s.log, c)
	}
}

// newest returns each key's last change.
func (s *server) newest() map[[2]string]change {
	m := make(map[[2]string]change)
	for _, c := range s.log {
		m[[2]string{c.collection, c.key}] = c
	}
	return m
}

func (s *server) rows() map[[2]string]string {
	rows := make(map[[2]string]string)
	for k, c := range s.newest() {
		if c.op != "remove" {
			rows[k] = c.value
		}
	}
	return rows
}

// answer is what a feed from these cursors on sends, up to live. Sometimes it begins
// earlier than it must.
func (s *server) answer(t *rapid.T, at follow.Cursors) []follow.Frame {
	frames := []follow.Frame{{Type: "open", Epoch: s.epoch}}
	from := make(map[string]feed.Seq)
	again := make(map[string][]string)
	for _, x := range at.Collections() {
		var start feed.Start
		if x.Cursor != "" {
			start.Cursors = []string{x.Cursor}
		}
		seq, reason := start.Choose(s.epoch)
		if reason == "" && x.Cursor != "" && seq < s.floor {
			seq, reason = 0, "expired"
		}
		if reason != "" {
			again[string(reason)] = append(again[string(reason)], x.Name)
		} else if back := feed.Seq(rapid.IntRange(0, 3).Draw(t, "overlap")); seq > back {
			seq -= back
		}
		from[x.Name] = seq
	}
	for reason, names := range again {
		frames = append(frames, follow.Frame{Type: "reset", Collections: names, Reason: reason})
	}
	var changes []change
	for _, c := range s.newest() {
		if c.seq > from[c.collection] && (c.op != "remove" || c.seq > s.floor) {
			changes = append(changes, c)
		}
	}
	slices.SortFunc(changes, func(a, b change) int { return int(a.seq) - int(b.seq) })
	for i, c := range changes {
		more := i+1 < len(changes) && changes[i+1].last == c.last
		f := follow.Frame{Type: "change", Seq: c.seq, Collection: c.collection, Op: c.op, Key: c.key, More: more}
		if c.value != "" {
			f.Value = json.RawMessage(c.value)
		}
		frames = append(frames, f)
		if !more && rapid.IntRange(0, 5).Draw(t, "twice") == 0 {
			// The transaction once more, whole.
			first := len(frames) - 1
			for first > 0 && frames[first-1].Type == "change" && frames[first-1].More {
				first--
			}
			frames = append(frames, frames[first:]...)
		}
	}
	return append(frames, follow.Frame{Type: "live", Cursor: feed.Cursor{Epoch: s.epoch, Seq: s.seq}.String()})
}

// visible is all that somebody who looks at rows can see.
func visible(rows *follow.Rows) map[[2]string]follow.Row {
	m := make(map[[2]string]follow.Row)
	for _, c := range []string{"a", "b"} {
		for row := range rows.All(c) {
			m[[2]string{c, row.Key}] = row
		}
	}
	return m
}

func TestRowsAreTheServersAfterAnyWayOfDelivery(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &server{epoch: "aaaa"}
		var rows follow.Rows
		at := follow.NewCursors(follow.Collection{Name: "a"}, follow.Collection{Name: "b"})
		mirror := make(map[[2]string]string) // kept by nothing but the deltas
		resetting := make(map[string]bool)
		epochs := 0

		t.Repeat(map[string]func(*rapid.T){
			"write": s.write,
			"forget removes": func(t *rapid.T) {
				s.floor = feed.Seq(rapid.Uint64Range(uint64(s.floor), uint64(s.seq)).Draw(t, "floor"))
			},
			"lose the end of the log": func(t *rapid.T) {
				epochs++
				s.epoch = feed.Epoch(fmt.Sprintf("e%03d", epochs))
				s.log = s.log[:rapid.IntRange(0, len(s.log)).Draw(t, "kept")]
				for len(s.log) > 0 && s.log[len(s.log)-1].seq != s.log[len(s.log)-1].last {
					s.log = s.log[:len(s.log)-1]
				}
				s.seq, s.floor = 0, 0
				if n := len(s.log); n > 0 {
					s.seq = s.log[n-1].seq
				}
			},
			"connect": func(t *rapid.T) {
				frames := s.answer(t, at)
				cut := rapid.IntRange(1, 2*len(frames)).Draw(t, "cut") // half of them get through
				held := 0
				for i, f := range frames {
					if i >= cut {
						break
					}
					before := visible(&rows)
					deltas := rows.Apply(f)
					at = at.After(f)
					after := visible(&rows)
					for _, d := range deltas {
						k := [2]string{d.Collection, d.Key}
						if d.Removed {
							delete(mirror, k)
						} else {
							mirror[k] = string(d.Value)
						}
					}
					same := maps.EqualFunc(before, after, func(x, y follow.Row) bool {
						return x.Seq == y.Seq && string(x.Value) == string(y.Value)
					})
					switch f.Type {
					case "reset":
						for _, c := range f.Collections {
							resetting[c] = true
						}
						if !same {
							t.Fatal("a reset can be seen before it is live")
						}
					case "change":
						if f.More && (len(deltas) > 0 || !same) {
							t.Fatal("half a transaction can be seen")
						}
						held++
						for k, row := range before {
							if resetting[k[0]] && after[k].Seq != row.Seq {
								t.Fatal("half a reset can be seen")
							}
							if now, there := after[k]; there && now.Seq < row.Seq {
								t.Fatalf("%v goes back from %d to %d", k, row.Seq, now.Seq)
							}
						}
						for k, row := range after {
							if row.Seq > f.Seq && before[k].Seq != row.Seq {
								t.Fatalf("%v is of the future", k)
							}
						}
					case "live":
						clear(resetting)
						want, got := s.rows(), make(map[[2]string]string)
						for k, row := range after {
							got[k] = string(row.Value)
						}
						if !maps.Equal(got, want) {
							t.Fatalf("live, the rows are\n%v, and the server's\n%v", got, want)
						}
						if !rows.Live() {
							t.Fatal("live, and Rows does not know")
						}
					}
					seen := make(map[[2]string]string)
					for k, row := range after {
						seen[k] = string(row.Value)
					}
					if !maps.Equal(seen, mirror) {
						t.Fatalf("the deltas make\n%v, and the rows are\n%v", mirror, seen)
					}
				}
			},
		})
	})
}

func TestRowThatWasRemovedDoesNotComeBackWithALateCopyOfAnOldChange(t *testing.T) {
	var rows follow.Rows
	change := func(seq feed.Seq, op string) []follow.Delta {
		return rows.Apply(follow.Frame{Type: "change", Seq: seq, Collection: "a", Op: op, Key: "k", Value: json.RawMessage(`{}`)})
	}
	rows.Apply(follow.Frame{Type: "open", Epoch: "aaaa"})
	change(1, "insert")
	if d := change(2, "remove"); len(d) != 1 || !d[0].Removed {
		t.Errorf("the remove shows as %v", d)
	}
	if d := change(1, "insert"); d != nil || rows.Len("a") != 0 {
		t.Errorf("the row is back: %v", d)
	}
	if d := change(3, "remove"); d != nil {
		t.Errorf("a remove of nothing shows as %v", d)
	}
}

func TestCursorNeverStandsInsideATransactionNorGoesBack(t *testing.T) {
	at := follow.NewCursors(follow.Collection{Name: "a", Cursor: "aaaa-100"}, follow.Collection{Name: "b"})
	for i, x := range []struct {
		frame follow.Frame
		want  string
	}{
		{follow.Frame{Type: "open", Epoch: "aaaa"}, "[{a aaaa-100} {b }]"},
		{follow.Frame{Type: "change", Seq: 7, More: true}, "[{a aaaa-100} {b }]"},
		{follow.Frame{Type: "change", Seq: 8}, "[{a aaaa-100} {b aaaa-8}]"},
		{follow.Frame{Type: "change", Seq: 5}, "[{a aaaa-100} {b aaaa-8}]"},
		{follow.Frame{Type: "next", Cursor: "aaaa-50"}, "[{a aaaa-100} {b aaaa-50}]"},
		{follow.Frame{Type: "live", Cursor: "aaaa-200"}, "[{a aaaa-200} {b aaaa-200}]"},
		{follow.Frame{Type: "reset", Collections: []string{"b"}}, "[{a aaaa-200} {b }]"},
		{follow.Frame{Type: "change", Seq: 3}, "[{a aaaa-200} {b aaaa-3}]"},
		{follow.Frame{Type: "open", Epoch: "bbbb"}, "[{a aaaa-200} {b aaaa-3}]"},
		{follow.Frame{Type: "reset", Collections: []string{"a", "b"}}, "[{a } {b }]"},
		{follow.Frame{Type: "change", Seq: 1}, "[{a bbbb-1} {b bbbb-1}]"},
		{follow.Frame{Type: "tick"}, "[{a bbbb-1} {b bbbb-1}]"},
	} {
		if at = at.After(x.frame); fmt.Sprint(at.Collections()) != x.want {
			t.Fatalf("after frame %d the cursors are %v, want %s", i, at.Collections(), x.want)
		}
	}
}
