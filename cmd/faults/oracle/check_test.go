package oracle_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/cmd/faults/oracle"
)

// story makes a history by hand: one client c, one follower f, the collections a and b.
type story struct {
	oracle.History
	now time.Duration
}

func (s *story) tick() time.Duration {
	s.now += time.Millisecond
	return s.now
}

func (s *story) start(epoch string) *oracle.Start {
	x := &oracle.Start{Began: s.tick(), Ready: s.tick(), Fault: "a fault", Epoch: epoch}
	s.Starts = append(s.Starts, x)
	return x
}

// put is the change that puts n into a row called collection:key. Its id is what it says.
func put(row string, n int) oracle.Change {
	collection, key, _ := strings.Cut(row, ":")
	return oracle.Change{ID: fmt.Sprintf("put-%s-%d", row, n), Collection: collection, Op: "put", Key: key, Value: fmt.Sprintf(`{"n":%d}`, n)}
}

func remove(row string, n int) oracle.Change {
	c := put(row, n)
	c.ID, c.Op, c.Value = fmt.Sprintf("remove-%s-%d", row, n), "remove", ""
	return c
}

// write is a request that was taken: its changes got seq and what follows.
func (s *story) write(epoch string, seq uint64, changes ...oracle.Change) *oracle.Write {
	w := &oracle.Write{Client: "c", Atomic: true, Changes: changes}
	s.Writes = append(s.Writes, w)
	s.attempt(w, epoch, seq, "ok")
	return w
}

func (s *story) attempt(w *oracle.Write, epoch string, seq uint64, status string) {
	a := oracle.Attempt{Sent: s.tick(), Answered: s.tick(), Status: 200, Cursor: fmt.Sprintf("%s-%d", epoch, seq+uint64(len(w.Changes))-1)}
	for i, c := range w.Changes {
		a.Results = append(a.Results, oracle.Result{ID: c.ID, Status: status, Key: c.Key, Seq: seq + uint64(i), Value: c.Value})
	}
	w.Attempts = append(w.Attempts, a)
}

// unknown is an attempt without an answer.
func (s *story) unknown(w *oracle.Write) {
	w.Attempts = append(w.Attempts, oracle.Attempt{Sent: s.tick(), Answered: s.tick()})
}

// refused is an attempt that was refused, as the row is not there.
func (s *story) refused(w *oracle.Write, status string) { s.shown(w, status, 0, "") }

// shown is an attempt that was refused and shown a row.
func (s *story) shown(w *oracle.Write, status string, seq uint64, value string) {
	a := oracle.Attempt{Sent: s.tick(), Answered: s.tick(), Status: 409}
	for _, c := range w.Changes {
		a.Results = append(a.Results, oracle.Result{ID: c.ID, Status: status, Key: c.Key, Seq: seq, Value: value})
	}
	w.Attempts = append(w.Attempts, a)
}

// ask is a request that was not sent yet.
func (s *story) ask(c oracle.Change) *oracle.Write {
	w := &oracle.Write{Client: "c", Atomic: true, Changes: []oracle.Change{c}}
	s.Writes = append(s.Writes, w)
	return w
}

func insert(row string, n int) oracle.Change {
	c := put(row, n)
	c.Op = "insert"
	return c
}

func modify(row string, n int) oracle.Change {
	c := put(row, n)
	c.ID, c.Op = fmt.Sprintf("modify-%s-%d", row, n), "modify"
	return c
}

// when is a change under the condition that the row is at seq.
func when(c oracle.Change, seq uint64) oracle.Change {
	c.If = &seq
	return c
}

// mortal is a change whose row lives for a second.
func mortal(c oracle.Change) oracle.Change {
	c.TTL = time.Second
	return c
}

// stream is a connection of f to both collections.
func (s *story) stream(life int, cursor string, frames ...oracle.Frame) *oracle.Stream {
	x := &oracle.Stream{Follower: "f", Life: life, Transport: "sse", Asked: s.tick(), From: []oracle.Place{{"a", cursor}, {"b", cursor}}}
	for _, f := range frames {
		f.At = s.tick()
		x.Frames = append(x.Frames, f)
	}
	s.Streams = append(s.Streams, x)
	return x
}

func open(epoch string) oracle.Frame  { return oracle.Frame{Type: "open", Epoch: epoch} }
func live(cursor string) oracle.Frame { return oracle.Frame{Type: "live", Cursor: cursor} }
func reset(reason string) oracle.Frame {
	return oracle.Frame{Type: "reset", Collections: []string{"a", "b"}, Reason: reason}
}
func more(f oracle.Frame) oracle.Frame { f.More = true; return f }
func frame(seq uint64, c oracle.Change) oracle.Frame {
	op := "modify"
	if c.Op == "remove" {
		op = "remove"
	}
	return oracle.Frame{Type: "change", Seq: seq, Collection: c.Collection, Op: op, Key: c.Key, Value: c.Value, Client: "c", ID: c.ID}
}

func rows(cursor string, rows ...oracle.Row) *oracle.Snapshot {
	return &oracle.Snapshot{Cursor: cursor, Rows: rows}
}

func row(seq uint64, c oracle.Change) oracle.Row {
	return oracle.Row{Collection: c.Collection, Key: c.Key, Seq: seq, Value: c.Value}
}

func (s *story) final(x *oracle.Snapshot) {
	x.Taken = s.tick()
	s.Final = x
}

// told are stories in pairs: one that breaks a rule, and nothing else, and one beside it
// that does not.
var told = []struct {
	rule      string
	name      string
	bad, good func(s *story)
}{
	{"gap", "a row is gone that only a refused remove names", func(s *story) { gone(s, false) }, func(s *story) { gone(s, true) }},
	{"order", "sequences go back on a connection", func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), put("a:2", 2)
		s.write("eeee", 1, x)
		s.write("eeee", 2, y)
		s.stream(1, "", open("eeee"), frame(2, y), frame(1, x))
	}, func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), put("a:2", 2)
		s.write("eeee", 1, x)
		s.write("eeee", 2, y)
		s.stream(1, "", open("eeee"), frame(1, x), frame(2, y), live("eeee-2"))
	}},
	{"doubled", "a change comes twice on a connection", func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		s.write("eeee", 1, x)
		s.stream(1, "", open("eeee"), frame(1, x), frame(1, x), live("eeee-1"))
	}, func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		s.write("eeee", 1, x)
		s.stream(1, "", open("eeee"), frame(1, x))
		s.stream(2, "", open("eeee"), frame(1, x), live("eeee-1"))
	}},
	{"doubled", "a change comes again to who resumes after it", func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		s.write("eeee", 1, x)
		s.stream(1, "", open("eeee"), frame(1, x), live("eeee-1"))
		s.stream(1, "eeee-1", open("eeee"), frame(1, x), live("eeee-1"))
	}, func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), put("a:1", 2)
		s.write("eeee", 1, x)
		s.stream(1, "", open("eeee"), frame(1, x), live("eeee-1"))
		s.write("eeee", 2, y)
		s.stream(1, "eeee-1", open("eeee"), frame(2, y), live("eeee-2"))
	}},
	{"gap", "live without a row", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.stream(1, "", open("eeee"), live("eeee-1"))
	}, func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), put("a:1", 2)
		s.write("eeee", 1, x)
		s.write("eeee", 2, y)
		s.stream(1, "", open("eeee"), frame(2, y), live("eeee-2")) // 1 was overtaken
	}},
	{"gap", "the cursor passes a change, and the connection ends", func(s *story) {
		s.start("eeee")
		x, y, z := put("a:1", 1), put("a:2", 2), put("a:1", 3)
		s.write("eeee", 1, x)
		s.write("eeee", 2, y)
		s.stream(1, "", open("eeee"), frame(2, y))
		s.write("eeee", 3, z) // too late to be why 1 was left out
	}, func(s *story) {
		s.start("eeee")
		x, y, z := put("a:1", 1), put("a:2", 2), put("a:1", 3)
		s.write("eeee", 1, x)
		s.write("eeee", 2, y)
		s.write("eeee", 3, z)
		s.stream(1, "", open("eeee"), frame(2, y))
	}},
	{"lost", "an acknowledged write is not among the final rows", func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		s.write("eeee", 1, x)
		s.write("eeee", 2, put("a:2", 2))
		s.final(rows("eeee-2", row(1, x)))
	}, func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), put("a:2", 2)
		s.write("eeee", 1, x)
		s.write("eeee", 2, y)
		s.final(rows("eeee-2", row(1, x), row(2, y)))
	}},
	{"lost", "a restart loses the end, and no fault allowed it", func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		s.write("eeee", 1, x)
		s.write("eeee", 2, put("a:2", 2))
		n := s.start("ffff")
		n.NewEpoch, n.Base = true, rows("ffff-1", row(1, x))
	}, func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		s.write("eeee", 1, x)
		s.write("eeee", 2, put("a:2", 2))
		n := s.start("ffff")
		n.NewEpoch, n.Loss, n.Base = true, true, rows("ffff-1", row(1, x))
		s.final(rows("ffff-1", row(1, x)))
	}},
	{"lost", "a fault may take the end, and takes the middle", func(s *story) {
		s.start("eeee")
		y := put("a:2", 2)
		s.write("eeee", 1, put("a:1", 1))
		s.write("eeee", 2, y)
		n := s.start("ffff")
		n.NewEpoch, n.Loss, n.Base = true, true, rows("ffff-2", row(2, y))
	}, func(s *story) {
		s.start("eeee")
		y := put("a:2", 2)
		s.write("eeee", 1, put("a:1", 1))
		s.write("eeee", 2, y)
		n := s.start("ffff") // of damage anything may be left
		n.NewEpoch, n.Loss, n.Holes, n.Base = true, true, true, rows("ffff-2", row(2, y))
	}},
	{"lost", "a fault may take the last second, and takes more", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		n := s.start("ffff")
		n.NewEpoch, n.Loss, n.Since, n.Base = true, true, s.now, rows("ffff-0")
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		n := s.start("ffff")
		n.NewEpoch, n.Loss, n.Since, n.Base = true, true, 1, rows("ffff-0")
	}},
	{"effect", "what left no row behind is lost with an epoch", func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		w := s.write("eeee", 1, x)
		n := s.start("ffff")
		n.NewEpoch, n.Loss, n.Base = true, true, rows("ffff-9", row(1, x))
		s.attempt(w, "ffff", 10, "ok")
	}, func(s *story) {
		s.start("eeee")
		w := s.write("eeee", 1, remove("a:1", 1))
		n := s.start("ffff")
		n.NewEpoch, n.Loss, n.Base = true, true, rows("ffff-9")
		s.attempt(w, "ffff", 10, "ok")
	}},
	{"lost", "a new epoch begins within a transaction", func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), put("b:1", 1)
		s.write("eeee", 1, x, y)
		n := s.start("ffff")
		n.NewEpoch, n.Loss, n.Base = true, true, rows("ffff-1", row(1, x))
	}, func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), put("b:1", 1)
		s.write("eeee", 1, x, y)
		n := s.start("ffff")
		n.NewEpoch, n.Loss, n.Base = true, true, rows("ffff-2", row(1, x), row(2, y))
	}},
	{"part", "a transaction ends before its last change", func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), put("b:1", 1)
		s.write("eeee", 1, x, y)
		s.stream(1, "", open("eeee"), frame(1, x), frame(2, y), live("eeee-2"))
	}, func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), put("b:1", 1)
		s.write("eeee", 1, x, y)
		s.stream(1, "", open("eeee"), more(frame(1, x)), frame(2, y), live("eeee-2"))
	}},
	{"part", "live within a transaction", func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), put("b:1", 1)
		s.write("eeee", 1, x, y)
		s.stream(1, "", open("eeee"), more(frame(2, y)), live("eeee-2")).From = []oracle.Place{{"b", ""}}
	}, func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), put("b:1", 1)
		s.write("eeee", 1, x, y)
		s.stream(1, "", open("eeee"), frame(2, y), live("eeee-2")).From = []oracle.Place{{"b", ""}}
	}},
	{"undeleted", "a removed row is there at live", func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), remove("a:1", 2)
		s.write("eeee", 1, x)
		s.stream(1, "", open("eeee"), frame(1, x), live("eeee-1"))
		s.write("eeee", 2, y)
		s.stream(1, "eeee-1", open("eeee"), live("eeee-2"))
	}, func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), remove("a:1", 2)
		s.write("eeee", 1, x)
		s.stream(1, "", open("eeee"), frame(1, x), live("eeee-1"))
		s.write("eeee", 2, y)
		s.stream(1, "eeee-1", open("eeee"), frame(2, y), live("eeee-2"))
		s.stream(2, "", open("eeee"), live("eeee-2")) // who begins needs no remove
	}},
	{"stranger", "a change that nobody asked for", func(s *story) {
		s.start("eeee")
		s.stream(1, "", open("eeee"), frame(1, put("a:1", 1)))
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.stream(1, "", open("eeee"), frame(1, put("a:1", 1)))
	}},
	{"stranger", "a row goes by itself", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		gone := frame(2, remove("a:1", 2))
		gone.Client, gone.ID = "", ""
		s.stream(1, "", open("eeee"), frame(1, put("a:1", 1)), gone, live("eeee-2"))
	}, func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		x.TTL = time.Second
		s.write("eeee", 1, x)
		gone := frame(2, remove("a:1", 2))
		gone.Client, gone.ID = "", ""
		s.now += time.Second
		s.stream(1, "", open("eeee"), frame(1, x), gone, live("eeee-2"))
	}},
	{"early", "a row goes before its time", func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		x.TTL = time.Second
		s.write("eeee", 1, x)
		gone := frame(2, remove("a:1", 2))
		gone.Client, gone.ID = "", ""
		s.stream(1, "", open("eeee"), frame(1, x), gone, live("eeee-2"))
	}, func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		x.TTL = time.Second
		s.write("eeee", 1, x)
		s.stream(1, "", open("eeee"), frame(1, x), live("eeee-1"))
	}},
	{"effect", "a change takes effect twice", func(s *story) {
		s.start("eeee")
		w := s.write("eeee", 1, put("a:1", 1))
		s.attempt(w, "eeee", 2, "ok")
		s.Writes[0].Attempts[1].Status = 200
	}, func(s *story) {
		s.start("eeee")
		w := s.write("eeee", 1, put("a:1", 1))
		s.attempt(w, "eeee", 1, "duplicate")
	}},
	{"effect", "a refused change takes effect", func(s *story) {
		refusedOnce(s, false)
	}, func(s *story) {
		refusedOnce(s, true) // what was refused is not remembered
	}},
	{"effect", "what was lost with an epoch is written again, and so is what was not", func(s *story) {
		lossy(s, 1)
	}, func(s *story) {
		lossy(s, 2)
	}},
	{"answer", "a repetition is answered with another value", func(s *story) {
		s.start("eeee")
		w := s.write("eeee", 1, remove("a:1", 1))
		s.attempt(w, "eeee", 1, "duplicate")
		w.Attempts[1].Results[0].Key = "2"
		w.Attempts[1].Results[0].Key = "1"
		w.Attempts[1].Results[0].ID = "another"
	}, func(s *story) {
		s.start("eeee")
		w := s.write("eeee", 1, remove("a:1", 1))
		s.attempt(w, "eeee", 1, "duplicate")
	}},
	{"answer", "a duplicate of nothing", func(s *story) {
		s.start("eeee")
		w := &oracle.Write{Client: "c", Atomic: true, Changes: []oracle.Change{put("a:1", 1)}}
		s.Writes = append(s.Writes, w)
		s.attempt(w, "eeee", 1, "duplicate")
	}, func(s *story) {
		s.start("eeee")
		w := &oracle.Write{Client: "c", Atomic: true, Changes: []oracle.Change{put("a:1", 1)}}
		s.Writes = append(s.Writes, w)
		s.unknown(w)
		s.attempt(w, "eeee", 1, "duplicate")
	}},
	{"answer", "what had happened is refused when it is sent again", func(s *story) {
		s.start("eeee")
		w := &oracle.Write{Client: "c", Atomic: true, Changes: []oracle.Change{put("a:1", 1)}}
		s.Writes = append(s.Writes, w)
		s.unknown(w)
		s.stream(1, "", open("eeee"), frame(1, put("a:1", 1)))
		s.refused(w, "exists")
	}, func(s *story) {
		s.start("eeee")
		w := &oracle.Write{Client: "c", Atomic: true, Changes: []oracle.Change{put("a:1", 1)}}
		s.Writes = append(s.Writes, w)
		s.unknown(w)
		s.refused(w, "exists")
	}},
	{"refusal", "missing, and it was there all the time", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.refused(s.ask(modify("a:1", 2)), "missing")
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		w, gone := s.ask(modify("a:1", 2)), s.ask(remove("a:1", 3)) // at the same time
		s.attempt(gone, "eeee", 2, "ok")
		s.refused(w, "missing")
		w.Attempts[0].Sent = gone.Attempts[0].Sent
	}},
	{"refusal", "exists, and it was removed before", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.write("eeee", 2, remove("a:1", 2))
		s.shown(s.ask(insert("a:1", 3)), "exists", 1, `{"n":1}`)
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.shown(s.ask(insert("a:1", 3)), "exists", 1, `{"n":1}`)
		s.write("eeee", 2, remove("a:1", 2))
	}},
	{"refusal", "a conflict, and the row is as it had to be", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.shown(s.ask(when(put("a:1", 2), 1)), "conflict", 1, `{"n":1}`)
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.write("eeee", 2, put("a:1", 2))
		s.shown(s.ask(when(put("a:1", 3), 1)), "conflict", 2, `{"n":2}`)
	}},
	{"refusal", "a conflict without a condition", func(s *story) {
		s.start("eeee")
		s.refused(s.ask(put("a:1", 1)), "conflict")
	}, func(s *story) {
		s.start("eeee")
		s.refused(s.ask(when(put("a:1", 1), 7)), "conflict")
	}},
	{"refusal", "the row that is shown is old", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.write("eeee", 2, put("a:1", 2))
		s.shown(s.ask(insert("a:1", 3)), "exists", 1, `{"n":1}`)
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.write("eeee", 2, put("a:1", 2))
		s.shown(s.ask(insert("a:1", 3)), "exists", 2, `{"n":2}`)
	}},
	{"refusal", "the row that is shown has another value", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.shown(s.ask(insert("a:1", 3)), "exists", 1, `{"n":2}`)
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		w := s.ask(insert("a:1", 3)) // what may have met itself proves nothing
		s.unknown(w)
		s.shown(w, "exists", 1, `{"n":2}`)
	}},
	{"refusal", "a row that was never there, and no loss explains it", func(s *story) {
		s.start("eeee")
		s.shown(s.ask(insert("a:1", 1)), "exists", 1, `{"n":2}`)
	}, func(s *story) {
		s.start("eeee")
		s.shown(s.ask(insert("a:1", 1)), "exists", 1, `{"n":2}`)
		n := s.start("ffff") // with it went the row that was shown
		n.NewEpoch, n.Loss, n.Base = true, true, rows("ffff-0")
	}},
	{"refusal", "missing before its time to live is over", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, mortal(put("a:1", 1)))
		s.refused(s.ask(modify("a:1", 2)), "missing")
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, mortal(put("a:1", 1)))
		s.now += time.Second
		s.refused(s.ask(modify("a:1", 2)), "missing")
	}},
	{"refusal", "aborted by nothing", func(s *story) {
		s.start("eeee")
		s.refused(s.ask(put("a:1", 1)), "aborted")
	}, func(s *story) {
		s.start("eeee")
		w := s.ask(put("a:1", 1))
		w.Changes = append(w.Changes, modify("a:2", 2))
		s.refused(w, "missing")
		w.Attempts[0].Results[0].Status = "aborted"
	}},
	{"answer", "a single row that is missing is a conflict", func(s *story) {
		s.start("eeee")
		w := s.ask(modify("a:1", 1))
		w.Row = true
		s.refused(w, "missing")
	}, func(s *story) {
		s.start("eeee")
		w := s.ask(modify("a:1", 1))
		w.Row = true
		s.refused(w, "missing")
		w.Attempts[0].Status = 404
	}},
	{"answer", "an id that was used, and was not", func(s *story) {
		s.start("eeee")
		s.refused(s.ask(modify("a:1", 1)), "id-reused")
	}, func(s *story) {
		s.start("eeee")
		s.refused(s.ask(modify("a:1", 1)), "missing")
	}},
	{"late", "a row is held long after its time", func(s *story) {
		s.start("eeee")
		x := mortal(put("a:1", 1))
		s.write("eeee", 1, x)
		s.now += 7 * time.Second
		s.stream(1, "", open("eeee"), frame(1, x), live("eeee-1"))
	}, func(s *story) {
		s.start("eeee")
		x, y := mortal(put("a:1", 1)), put("a:1", 2)
		s.write("eeee", 1, x)
		s.write("eeee", 2, y) // it stays
		s.now += 7 * time.Second
		s.stream(1, "", open("eeee"), frame(2, y), live("eeee-2"))
	}},
	{"late", "a row outlives a restart", func(s *story) {
		outlived(s, 3*time.Second)
	}, func(s *story) {
		outlived(s, 0) // it was down until now
	}},
	{"late", "the final rows have one whose time is over", func(s *story) {
		s.start("eeee")
		x := mortal(put("a:1", 1))
		s.write("eeee", 1, x)
		s.now += 7 * time.Second
		s.final(rows("eeee-1", row(1, x)))
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, mortal(put("a:1", 1)))
		s.now += 7 * time.Second
		s.final(rows("eeee-1")) // it went, and nobody was told
	}},
	{"decision", "an insert of a row that is there", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		x := put("a:1", 2)
		x.Op = "insert"
		s.write("eeee", 2, x)
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.write("eeee", 2, remove("a:1", 1))
		x := put("a:1", 2)
		x.Op = "insert"
		s.write("eeee", 3, x)
	}},
	{"decision", "a condition that does not hold", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		x, at := put("a:1", 2), uint64(0)
		x.If = &at
		s.write("eeee", 2, x)
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		x, at := put("a:1", 2), uint64(1)
		x.If = &at
		s.write("eeee", 2, x)
	}},
	{"decision", "a patch that is not merged", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		w := s.write("eeee", 2, oracle.Change{ID: "p", Collection: "a", Key: "1", Op: "modify", Patch: `{"n":null,"m":{"x":1}}`})
		w.Attempts[0].Results[0].Value = `{"n":1,"m":{"x":1}}`
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		w := s.write("eeee", 2, oracle.Change{ID: "p", Collection: "a", Key: "1", Op: "modify", Patch: `{"n":null,"m":{"x":1}}`})
		w.Attempts[0].Results[0].Value = `{"m":{"x":1}}`
	}},
	{"function", "a sequence that means two things", func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		s.write("eeee", 1, x)
		other := frame(1, x)
		other.Value = `{"n":2}`
		s.stream(1, "", open("eeee"), other)
	}, func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		s.write("eeee", 1, x)
		s.stream(1, "", open("eeee"), frame(1, x))
	}},
	{"back", "a sequence below what was acknowledged before", func(s *story) {
		s.start("eeee")
		s.write("eeee", 5, put("a:1", 1))
		s.write("eeee", 4, put("a:2", 2))
	}, func(s *story) {
		s.start("eeee")
		s.write("eeee", 5, put("a:1", 1))
		s.write("eeee", 9, put("a:2", 2))
	}},
	{"live", "live below what was acknowledged before it was asked", func(s *story) {
		s.start("eeee")
		s.write("eeee", 1, put("a:1", 1))
		s.stream(1, "", open("eeee"), live("eeee-0"))
	}, func(s *story) {
		s.start("eeee")
		s.stream(1, "", open("eeee"), live("eeee-0"))
		s.write("eeee", 1, put("a:1", 1))
	}},
	{"reset", "a reset for an epoch that is still there", func(s *story) {
		s.start("eeee")
		s.stream(1, "eeee-0", open("eeee"), reset("epoch"), live("eeee-0"))
	}, func(s *story) {
		s.start("eeee")
		s.stream(1, "dddd-7", open("eeee"), reset("epoch"), live("eeee-0"))
	}},
	{"reset", "no reset for an epoch that is gone", func(s *story) {
		s.start("eeee")
		s.stream(1, "dddd-7", open("eeee"), live("eeee-0")).From = []oracle.Place{{"a", "dddd-7"}}
	}, func(s *story) {
		s.start("eeee")
		s.stream(1, "", open("eeee"), live("eeee-0"))
	}},
	{"reset", "expired before the window is over", func(s *story) {
		expired(s, time.Millisecond)
	}, func(s *story) {
		expired(s, time.Second)
	}},
	{"reset", "ahead of a log that lost nothing", func(s *story) {
		s.start("eeee")
		r := reset("ahead")
		r.Collections = []string{"a"}
		s.stream(1, "eeee-9", open("eeee"), r, live("eeee-0")).From = []oracle.Place{{"a", "eeee-9"}}
	}, func(s *story) {
		s.start("eeee")
		s.stream(1, "eeee-9", open("eeee"), live("eeee-9"))
	}},
	{"epoch", "a new epoch for no reason", func(s *story) {
		s.start("eeee")
		s.start("ffff").Base = rows("ffff-0")
	}, func(s *story) {
		s.start("eeee")
		n := s.start("ffff")
		n.NewEpoch, n.Base = true, rows("ffff-0")
	}},
	{"epoch", "the epoch stays though it must not", func(s *story) {
		s.start("eeee")
		s.start("eeee").MustEpoch = true
	}, func(s *story) {
		s.start("eeee")
		n := s.start("ffff")
		n.MustEpoch, n.Base = true, rows("ffff-0")
	}},
	{"converge", "a follower does not come to the end", func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		s.stream(1, "", open("eeee"), live("eeee-0"))
		s.write("eeee", 1, x)
		s.final(rows("eeee-1", row(1, x)))
		s.Settle = []string{"f"}
	}, func(s *story) {
		s.start("eeee")
		x := put("a:1", 1)
		s.write("eeee", 1, x)
		s.stream(1, "", open("eeee"), frame(1, x), live("eeee-1"))
		s.final(rows("eeee-1", row(1, x)))
		s.Settle = []string{"f"}
	}},
	{"converge", "a follower does not come to the end, where a row goes by itself after it", func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), mortal(put("a:2", 2))
		s.write("eeee", 1, x)
		s.stream(1, "", open("eeee"), frame(1, x), live("eeee-1"))
		s.write("eeee", 2, y)
		s.final(rows("eeee-2", row(1, x), row(2, y)))
		s.Settle = []string{"f"}
	}, func(s *story) {
		s.start("eeee")
		x, y := put("a:1", 1), mortal(put("a:2", 2))
		s.write("eeee", 1, x)
		s.write("eeee", 2, y)
		s.final(rows("eeee-2", row(1, x), row(2, y)))
		s.now += 2 * time.Second
		s.stream(1, "", open("eeee"), frame(1, x), oracle.Frame{Type: "change", Seq: 3, Collection: "a", Op: "remove", Key: "2"}, live("eeee-3"))
		s.Settle = []string{"f"}
	}},
	{"start", "a server that does not start", func(s *story) {
		s.start("eeee")
		s.start("eeee").Ready = 0
	}, func(s *story) {
		s.start("eeee")
		s.start("eeee")
	}},
	{"unanswered", "a write that is never answered", func(s *story) {
		s.start("eeee")
		w := &oracle.Write{Client: "c", Atomic: true, Changes: []oracle.Change{put("a:1", 1)}}
		s.Writes = append(s.Writes, w)
		s.unknown(w)
		s.final(rows("eeee-0"))
	}, func(s *story) {
		s.start("eeee")
		w := &oracle.Write{Client: "c", Atomic: true, Changes: []oracle.Change{put("a:1", 1)}}
		s.Writes = append(s.Writes, w)
		s.unknown(w)
		s.refused(w, "conflict")
		s.final(rows("eeee-0"))
	}},
}

// gone has a row go without a word after a remove that was refused; where the remove may
// have been delivered twice, the second one may have been taken.
func gone(s *story, twice bool) {
	s.start("eeee")
	x, y := put("a:1", 1), put("a:2", 2)
	s.write("eeee", 1, x)
	w := s.ask(when(remove("a:1", 2), 9))
	s.shown(w, "conflict", 1, x.Value)
	w.Attempts[0].Twice = twice
	s.write("eeee", 3, y)
	s.stream(1, "", open("eeee"), frame(3, y), live("eeee-3"))
}

// refusedOnce has an insert refused, the row go, and the insert in the log all the same;
// it may have been sent again.
func refusedOnce(s *story, again bool) {
	s.start("eeee")
	s.write("eeee", 1, put("a:1", 1))
	x := insert("a:1", 2)
	w := s.ask(x)
	s.shown(w, "exists", 1, `{"n":1}`)
	s.write("eeee", 2, remove("a:1", 3))
	if again {
		s.attempt(w, "eeee", 3, "ok")
	}
	s.stream(1, "", open("eeee"), frame(3, x))
}

// outlived modifies a row, which leaves it its time, and looks at it a while after a
// restart long after that.
func outlived(s *story, after time.Duration) {
	s.start("eeee")
	y := modify("a:1", 2)
	s.write("eeee", 1, mortal(put("a:1", 1)))
	s.write("eeee", 2, y)
	s.now += 7 * time.Second
	s.start("eeee")
	s.now += after
	s.stream(1, "", open("eeee"), frame(2, y), live("eeee-2"))
}

// lossy loses sequence 2 with an epoch; the n-th write is written again in the new one.
func lossy(s *story, n int) {
	s.start("eeee")
	x := put("a:1", 1)
	both := []*oracle.Write{s.write("eeee", 1, x), s.write("eeee", 2, put("a:2", 2))}
	b := s.start("ffff")
	b.NewEpoch, b.Loss, b.Base = true, true, rows("ffff-1", row(1, x))
	s.attempt(both[n-1], "ffff", 2, "ok")
}

// expired resets a follower whose cursor is older than a remove, after a while.
func expired(s *story, after time.Duration) {
	s.Tombstones = 500 * time.Millisecond
	s.start("eeee")
	x := put("a:1", 1)
	s.write("eeee", 1, x)
	s.stream(1, "", open("eeee"), frame(1, x), live("eeee-1"))
	s.write("eeee", 2, remove("a:1", 2))
	s.now += after
	r := reset("expired")
	r.Collections = []string{"a"}
	s.stream(1, "eeee-1", open("eeee"), r, live("eeee-2"))
}

// TestRules: the oracle does not see what a server did wrong, or accuses an honest one.
func TestRules(t *testing.T) {
	for _, x := range told {
		t.Run(x.rule+"/"+x.name, func(t *testing.T) {
			var bad, good story
			x.bad(&bad)
			rules := make(map[string]bool)
			report := oracle.Check(&bad.History)
			for _, v := range report.Violations {
				rules[v.Rule] = true
			}
			if got := slices.Sorted(maps.Keys(rules)); !slices.Equal(got, []string{x.rule}) {
				t.Errorf("the bad story breaks %v: %v", got, report.Violations)
			}
			x.good(&good)
			if report := oracle.Check(&good.History); report.Found > 0 {
				t.Errorf("the good story: %v", report.Violations)
			}
		})
	}
}

// TestLargeHistory: a long round can't be decided before its machine is needed again.
func TestLargeHistory(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	var s story
	s.start("eeee")
	const n = 40_000
	frames := []oracle.Frame{open("eeee")}
	for i := range n {
		c := put(fmt.Sprintf("a:%d", i%500), i)
		s.write("eeee", uint64(i+1), c)
		frames = append(frames, frame(uint64(i+1), c), live(fmt.Sprintf("eeee-%d", i+1)))
	}
	for i := range 5 {
		x := s.stream(1, "", frames...)
		x.Follower, x.Asked = fmt.Sprint(i), 0
	}
	began := time.Now()
	if report := oracle.Check(&s.History); report.Found > 0 || report.Lives != 5*n {
		t.Fatal(report)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("%v for %d changes and %d frames", took, n, 5*len(frames))
	}
}
