package feed_test

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// wire is the frame change as a client in another language would read it.
type wire struct {
	Type       string          `json:"type"`
	Seq        uint64          `json:"seq"`
	Collection string          `json:"collection"`
	Op         string          `json:"op"`
	Key        string          `json:"key"`
	By         *by             `json:"by"`
	At         string          `json:"at"`
	Value      json.RawMessage `json:"value"`
	More       *bool           `json:"more"`
}

type by struct {
	Client *string `json:"client"`
	ID     *string `json:"id"`
}

func read(t *testing.T, frame []byte) (w wire) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(frame))
	d.DisallowUnknownFields()
	if err := d.Decode(&w); err != nil || d.InputOffset() != int64(len(frame)) {
		t.Fatalf("%q can't be read: %v", frame, err)
	}
	if bytes.ContainsAny(frame, "\r\n") {
		t.Fatalf("%q has more than one line", frame)
	}
	return w
}

// checkFrame holds the frame of a change, and its accessors, against its fields.
func checkFrame(t *testing.T, f feed.Fields) {
	t.Helper()
	c := feed.NewChange(f)
	w := read(t, []byte(c.Frame()))
	at := time.UnixMilli(f.At).UTC().Format("2006-01-02T15:04:05.000Z")
	if w.Type != "change" || w.Seq != uint64(f.Seq) || w.Collection != f.Collection || w.Op != f.Op.String() || w.Key != f.Key ||
		w.At != at || string(w.Value) != f.Value || w.More != nil {
		t.Errorf("%+v became %s", f, c.Frame())
	}
	client, id := "", ""
	if w.By != nil {
		if w.By.Client != nil {
			client = *w.By.Client
		}
		if w.By.ID != nil {
			id = *w.By.ID
		}
	}
	if client != f.Client || id != f.ID || (w.By == nil) != (f.Client == "" && f.ID == "") {
		t.Errorf("%+v is by %q %q in %s", f, client, id, c.Frame())
	}
	client, id = c.By()
	if c.Seq() != f.Seq || c.Op() != f.Op || c.Collection() != f.Collection || c.Key() != f.Key || c.Value() != f.Value || c.At() != f.At ||
		client != f.Client || id != f.ID || c.HasID() != (f.ID != "") || c.Tail() != f.Tail || c.Last() != f.Seq+feed.Seq(f.Tail) {
		t.Errorf("%+v is read back otherwise: %s", f, c.Frame())
	}
	item := feed.Item{Frame: c.Frame(), Seq: c.Seq(), More: true}
	more := item.Append([]byte("before "))
	m := read(t, more[len("before "):])
	if m.More == nil || !*m.More || len(more) != len("before ")+item.Size() {
		t.Errorf("more is not said in %s", more)
	}
	if m.More = nil; m.Seq != w.Seq || m.Key != w.Key || string(m.Value) != string(w.Value) || m.At != w.At {
		t.Errorf("with more, %s became %s", c.Frame(), more)
	}
	item.More = false
	if string(item.Append(nil)) != c.Frame() {
		t.Errorf("without more, %s became %s", c.Frame(), item.Append(nil))
	}
}

func TestAFrameSaysWhatTheChangeSays(t *testing.T) {
	for _, f := range []feed.Fields{
		{Seq: 1042, Collection: "todos", Op: feed.Insert, Key: "1", Value: `{"title":"milk"}`, At: 1760000000123},
		{Seq: 1, Collection: "a/b", Op: feed.Modify, Key: `say "hi" \ there`, Value: `{}`, Client: "c-81"},
		{Seq: feed.MaxSeq, Collection: "todos", Op: feed.Remove, Key: "ключ", ID: "m-7", Tail: feed.MaxChanges - 1},
		{Seq: 7, Collection: "todos", Op: feed.Noop, Key: "1", Client: `"`, ID: `\`},
		{Seq: 7, Collection: strings.Repeat("x", 64) + strings.Repeat("/"+strings.Repeat("y", 64), 7), Op: feed.Insert,
			Key: strings.Repeat(`"`, 256), Client: strings.Repeat(`\`, 256), ID: strings.Repeat(`"`, 256),
			Value: `{"v":"` + strings.Repeat("v", 1<<20) + `"}`, At: 253402300799999, Tail: 1},
		{Seq: 7, Collection: "todos", Op: feed.Insert, Key: "\u2028</script>", Value: "{\"a\":\"\u2029\"}", At: 999},
	} {
		checkFrame(t, f)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(uint64(1042), "todos", byte(1), "1", `{"title":"milk"}`, int64(1760000000123), "c-81", "m-7", uint16(0))
	f.Add(uint64(1), "a/b", byte(3), `"\`, ``, int64(0), `"`, "", uint16(499))
	f.Add(uint64(1), "a", byte(2), "\u2028", "{\"\u2028\":[1e9,{}]}", int64(-1), ``, "\\", uint16(3))
	f.Fuzz(func(t *testing.T, seq uint64, collection string, op byte, key, value string, at int64, client, id string, tail uint16) {
		fields := feed.Fields{Seq: feed.Seq(seq) & feed.MaxSeq, Collection: collection, Op: feed.Insert + feed.Op(op%4), Key: key,
			At: at & math.MaxInt64 % 253402300800000, Client: client, ID: id, Tail: tail % feed.MaxChanges}
		var compact bytes.Buffer
		if json.Compact(&compact, []byte(value)) != nil || compact.Bytes()[0] != '{' {
			compact.Reset()
			compact.WriteString("{}")
		}
		if fields.Op < feed.Remove {
			fields.Value = strings.ToValidUTF8(compact.String(), "?")
		}
		if feed.CheckCollection(collection) != nil || feed.CheckKey(key) != nil ||
			client != "" && feed.CheckClient(client) != nil || id != "" && feed.CheckID(id) != nil {
			t.Skip()
		}
		checkFrame(t, fields)
	})
}

// A row costs one of these. 32 bytes is a size class of the allocator; one byte more
// would cost 16.
func TestARowCostsNoMoreThanItMust(t *testing.T) {
	if n := unsafe.Sizeof(feed.Change{}); n > 32 {
		t.Errorf("a change has %d bytes beside its frame", n)
	}
	f := feed.Fields{Seq: 1042, Collection: "todos", Op: feed.Insert, Key: "1", Value: `{"title":"milk"}`}
	if n := testing.AllocsPerRun(100, func() { feed.NewChange(f) }); n > 2 {
		t.Errorf("encoding allocates %v times instead of once for the change and once for its frame", n)
	}
	c := feed.NewChange(f)
	if c.Size() != int64(len(c.Frame()))+32 {
		t.Errorf("%d bytes are counted for a frame of %d", c.Size(), len(c.Frame()))
	}
	if n := testing.AllocsPerRun(100, func() { _, _, _ = c.Key(), c.Value(), c.Collection() }); n > 0 {
		t.Errorf("reading a change allocates %v times", n)
	}
}

func BenchmarkEncode(b *testing.B) {
	f := feed.Fields{Seq: 1042, Collection: "todos", Op: feed.Insert, Key: "018f5c2e-0000-7000-8000-000000000001",
		Value: `{"title":"buy milk","done":false,"owner":"someone@example.com"}`, At: 1760000000123, Client: "c-81", ID: "m-7"}
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			feed.NewChange(f)
		}
	})
	b.Run("of-a-group", func(b *testing.B) {
		b.ReportAllocs()
		var e feed.Encoder
		for b.Loop() {
			e.Change(f)
		}
	})
}
