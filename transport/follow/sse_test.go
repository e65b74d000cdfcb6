package follow_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/transport/follow"
)

func TestEventStreamIsReadAsTheStandardSays(t *testing.T) {
	for _, x := range []struct{ name, stream, want string }{
		{"an event", "event: live\ndata: {}\nid: k-1\n\n", `[{live k-1 {}}]`},
		{"two data lines", "data: a\ndata: b\n\n", "[{  a\nb}]"},
		{"one space goes", "data:  a\ndata:b\n\n", "[{   a\nb}]"},
		{"an empty data line", "data\n\n", `[{  }]`},
		{"no data, no event", "event: x\nid: 7\n\ndata: a\n\n", `[{ 7 a}]`},
		{"the id stays", "id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n", `[{ 1 a} { 1 b} {  c}]`},
		{"an id with NUL", "id: 1\nid: 2\x00\ndata: a\n\n", `[{ 1 a}]`},
		{"comments", ": hello\n:\ndata: a\n:x\n\n", `[{  a}]`},
		{"unknown fields", "foo: bar\nDATA: x\ndata: a\n\n", `[{  a}]`},
		{"CR", "data: a\rdata: b\r\r", "[{  a\nb}]"},
		{"CRLF", "data: a\r\ndata: b\r\n\r\n", "[{  a\nb}]"},
		{"mixed", "data: a\r\n\rdata: b\n\r\n", "[{  a} {  b}]"},
		{"cut off", "data: a\n\ndata: b\n", `[{  a}]`},
		{"byte order mark", "\uFEFFdata: a\n\n\uFEFFdata: b\n\n", `[{  a}]`},
	} {
		// Whole, and byte by byte.
		for _, size := range []int{len(x.stream), 1} {
			var p = follow.NewEventParser(1 << 20)
			var got []follow.Event
			for chunk := range slices.Chunk([]byte(x.stream), size) {
				if err := p.Feed(chunk, func(e follow.Event) { got = append(got, e) }); err != nil {
					t.Fatal(err)
				}
			}
			if s := printed(got); s != x.want {
				t.Errorf("%s, in chunks of %d: got %q, want %q", x.name, size, s, x.want)
			}
		}
	}
}

func printed(events []follow.Event) string {
	list := make([]string, len(events))
	for i, e := range events {
		name, id, data := e.Fields()
		list[i] = fmt.Sprintf("{%s %s %s}", name, id, data)
	}
	return "[" + strings.Join(list, " ") + "]"
}

func TestRetryIsTakenOnlyWhereItIsANumber(t *testing.T) {
	for stream, want := range map[string]string{
		"retry: 1000\n": "1s", "retry: 1000\nretry: 1.5\n": "1s", "retry: -1\n": "0s", "retry:\n": "0s",
		"retry: 99999999999999999999\n": "0s", "retry: 250\n": "250ms",
	} {
		p := follow.NewEventParser(100)
		if err := p.Feed([]byte(stream), func(follow.Event) {}); err != nil {
			t.Fatal(err)
		}
		if got := p.Retry().String(); got != want {
			t.Errorf("%q asks for %s, want %s", stream, got, want)
		}
	}
}

// plainEvents reads a whole stream in the plainest way.
func plainEvents(stream string) (list []follow.Event) {
	lines := regexp.MustCompile("\r\n|\r|\n").Split(strings.TrimPrefix(stream, "\uFEFF"), -1)
	var name, id string
	var data []string
	for _, line := range lines[:len(lines)-1] {
		if line == "" {
			if data != nil {
				list = append(list, follow.NewEvent(name, id, strings.Join(data, "\n")))
			}
			name, data = "", nil
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case field == "data":
			data = append(data, value)
		case field == "event":
			name = value
		case field == "id" && !strings.Contains(value, "\x00"):
			id = value
		}
	}
	return list
}

// FuzzSSE cuts a stream into chunks as a second string says: the events are those
// of the stream as a whole.
func FuzzSSE(f *testing.F) {
	f.Add("event: live\r\ndata: {}\r\nid: k-1\r\n\r\n", []byte{1, 2, 3})
	f.Add("\uFEFFdata\r\rdata: a\ndata: b\n\n: x\nretry: 5\n", []byte{1})
	f.Add("id: 1\x00\ndata:  x\r\n\n\r\r\n", []byte{200, 1})
	f.Fuzz(func(t *testing.T, stream string, cuts []byte) {
		want := printed(plainEvents(stream))
		p := follow.NewEventParser(1 << 20)
		var got []follow.Event
		rest := []byte(stream)
		for i := 0; len(rest) > 0; i++ {
			n := len(rest)
			if i < len(cuts) {
				n = min(n, int(cuts[i])) // 0 too: a read that brings nothing
			}
			if err := p.Feed(rest[:n], func(e follow.Event) { got = append(got, e) }); err != nil {
				t.Fatal(err)
			}
			clear(rest[:n]) // what was handed out is its own
			rest = rest[n:]
		}
		if s := printed(got); s != want {
			t.Errorf("got\n%q, want\n%q", s, want)
		}
		// A small bound is kept, and is the only error.
		p = follow.NewEventParser(8)
		for chunk := range slices.Chunk([]byte(stream), 3) {
			if err := p.Feed(chunk, func(e follow.Event) {
				if _, _, data := e.Fields(); len(data) > 8 {
					t.Errorf("an event of %d bytes", len(data))
				}
			}); err != nil {
				break
			}
		}
	})
}

// FuzzFrame: a frame's members are those that encoding/json sees, and no input
// makes the reader panic.
func FuzzFrame(f *testing.F) {
	f.Add([]byte(`{"type":"live","cursor":"k3f9a1-1"}`))
	f.Add([]byte(put(7, "todos", `a\"}{`, true)))
	f.Add([]byte(` { "a" : [ 1 , { "b" : "]" } ] , "a" : -1e5,"\u0074ype":true,"":null } `))
	f.Add([]byte(`{"type":"written","id":"1","results":[{"status":"ok","seq":1}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		follow.Decode(slices.Clone(raw))
		var want map[string]json.RawMessage
		wrong := json.Unmarshal(raw, &want) != nil || want == nil
		got := make(map[string]json.RawMessage)
		err := follow.Members(raw, func(name string, v []byte) error {
			got[name] = v
			return nil
		})
		if wrong != (err != nil) {
			t.Fatalf("%q: %v, where encoding/json has %v", raw, err, want)
		}
		if wrong {
			return
		}
		if len(got) != len(want) {
			t.Fatalf("%q has the members %q, want %q", raw, got, want)
		}
		for name, v := range want {
			if string(got[name]) != string(v) {
				t.Fatalf("%q: %q is %q, want %q", raw, name, got[name], v)
			}
		}
	})
}
