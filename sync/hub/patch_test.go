package hub_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// merged is RFC 7396's own pseudocode.
func merged(target, patch any) any {
	members, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	object, ok := target.(map[string]any)
	if !ok {
		object = make(map[string]any)
	}
	for name, value := range members {
		if value == nil {
			delete(object, name)
		} else {
			object[name] = merged(object[name], value)
		}
	}
	return object
}

// value reads JSON with its numbers as they are written.
func value(t fataler, text string) (v any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%q can't be read: %v", text, err)
	}
	return v
}

func TestPatchesMergeAsTheRFCSays(t *testing.T) {
	for _, c := range []struct{ target, patch, want string }{
		// RFC 7396, appendix A.
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`["a","b"]`, `["c","d"]`, `["c","d"]`},
		{`{"a":"b"}`, `["c"]`, `["c"]`},
		{`{"a":"foo"}`, `null`, `null`},
		{`{"a":"foo"}`, `"bar"`, `"bar"`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		// Its section 3.
		{`{"title":"Goodbye!","author":{"givenName":"John","familyName":"Doe"},"tags":["example","sample"],"content":"This will be unchanged"}`,
			`{"title":"Hello!","phoneNumber":"+01-123-456-7890","author":{"familyName":null},"tags":["example"]}`,
			`{"title":"Hello!","author":{"givenName":"John"},"tags":["example"],"content":"This will be unchanged","phoneNumber":"+01-123-456-7890"}`},
		// What else may go wrong.
		{`{"a":1}`, `{}`, `{"a":1}`},
		{`{}`, `{}`, `{}`},
		{`{"a":{"b":1}}`, `{"a":{}}`, `{"a":{"b":1}}`},
		{`{"a":1}`, `{"a":{}}`, `{"a":{}}`},
		{`{"a":[null,{"b":null}]}`, `{"b":[null,{"c":null}]}`, `{"a":[null,{"b":null}],"b":[null,{"c":null}]}`},
		{`{"a":1,"b":2,"c":3}`, `{"c":null,"a":null,"b":null}`, `{}`},
		{`{"a":1,"b":2,"c":3}`, `{"d":4,"b":{"x":1},"a":null}`, `{"b":{"x":1},"c":3,"d":4}`},
		{`{"":1,"\"":2}`, `{"\"":3,"":{"":null}}`, `{"":{},"\"":3}`},
		{`{"__proto__":{"a":1}}`, `{"__proto__":{"b":2}}`, `{"__proto__":{"a":1,"b":2}}`},
		{`{"n":1.0}`, `{"m":1e400}`, `{"n":1.0,"m":1e400}`},
	} {
		if got, err := hub.MergePatch(c.target, c.patch); err != nil || got != c.want {
			t.Errorf("%s\n  with %s\n  is   %s, %v\n  want %s", c.target, c.patch, got, err, c.want)
		}
	}
}

func FuzzPatch(f *testing.F) {
	f.Add(`{"a":{"b":"c","d":[1,{}]},"e":null}`, `{"a":{"b":null,"x":{"y":null,"z":1}},"f":{"g":null}}`)
	f.Add(`{"\u0061":1}`, `{"a":{"a":2}}`)
	f.Add(`{"a":1,"b":2}`, `{"b":null,"a":[],"c":{}}`)
	f.Fuzz(func(t *testing.T, target, patch string) {
		target, err := hub.Compact([]byte(target))
		if err != nil {
			t.Skip()
		}
		if patch, err = hub.Compact([]byte(patch)); err != nil {
			t.Skip()
		}
		got, err := hub.MergePatch(target, patch)
		if err != nil {
			t.Fatal(err)
		}
		want := merged(value(t, target), value(t, patch))
		if !reflect.DeepEqual(value(t, got), want) {
			t.Fatalf("%s\n  with %s\n  is   %s", target, patch, got)
		}
		if again, err := hub.Compact([]byte(got)); err != nil || again != got {
			t.Fatalf("%s is not as a row must be: %s, %v", got, again, err)
		}
		if again, err := hub.MergePatch(got, patch); err != nil || again != got {
			t.Fatalf("%s\n  with %s once more\n  is   %s, %v", got, patch, again, err)
		}
	})
}

// shape is how deep a JSON text nests and how many elements it has, as a reader of
// tokens finds it; ok is false where it is no JSON at all.
func shape(text []byte) (depth, elements int, ok bool) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()  // some are too large for a float
	var open []int // elements in each container around
	deepest := 0
	for {
		token, err := d.Token()
		if err == io.EOF {
			return deepest, elements, len(open) == 0
		}
		if err != nil {
			return 0, 0, false
		}
		if delim, ok := token.(json.Delim); ok && (delim == '}' || delim == ']') {
			elements += max(0, open[len(open)-1]-1) // separators
			open = open[:len(open)-1]
			continue
		}
		if len(open) > 0 {
			open[len(open)-1]++
		}
		if _, ok := token.(json.Delim); ok {
			elements++
			open = append(open, 0)
			deepest = max(deepest, len(open))
		}
	}
}

// FuzzValue holds what is taken as a row's value, and what is not, against encoding/json.
func FuzzValue(f *testing.F) {
	for _, s := range []string{
		`{"title":"milk"}`, " {\n\"a\" : [1, 2.50, -0, 1e400],\t\"b\":{} } ", `{"a":1,"\u0061":2}`, `{"":1e700,"":{}}`, "{\"a\":\"\xff\"}", `{"a":"\ud800"}`, `{"a":"\ud83d\ude00\u2028\/\n"}`,
		`[]`, `{`, `{}{}`, `{"a":` + strings.Repeat("[", 63) + strings.Repeat("]", 63) + `}`, `{"a":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		got, err := hub.Compact(raw)
		if !bytes.Equal(raw, before) {
			t.Fatal("the caller's bytes were changed")
		}
		depth, elements, ok := shape(raw)
		bounds := depth <= hub.MaxDepth && elements <= hub.MaxElements
		if ok && (hub.CheckBounds(raw, hub.MaxDepth, hub.MaxElements) == nil) != bounds {
			t.Fatalf("%s: depth %d, elements %d: %v", raw, depth, elements, hub.CheckBounds(raw, hub.MaxDepth, hub.MaxElements))
		}
		if err != nil {
			var r *hub.Refusal
			if !errors.As(err, &r) || r.Detail == "" || !utf8.ValidString(r.Detail) {
				t.Fatalf("%q: %v", raw, err)
			}
			// Duplicate names and escapes that are half a character are the reasons that
			// encoding/json does not know of.
			if json.Valid(raw) && bounds && utf8.Valid(raw) && bytes.TrimLeft(raw, " \t\r\n")[0] == '{' && !bytes.Contains(raw, []byte(`\u`)) && !twice(raw) {
				t.Fatalf("%s: %v", raw, err)
			}
			return
		}
		if !json.Valid(raw) || !bounds || !utf8.Valid(raw) || twice(raw) || got[0] != '{' || strings.ContainsAny(got, "\r\n\t") || !utf8.ValidString(got) {
			t.Fatalf("%q was taken, as %q", raw, got)
		}
		if !reflect.DeepEqual(value(t, got), value(t, string(raw))) {
			t.Fatalf("%s became %s", raw, got)
		}
		if again, err := hub.Compact([]byte(got)); err != nil || again != got {
			t.Fatalf("%s became %s, %v the second time", got, again, err)
		}
	})
}

// twice tells whether an object in valid JSON has a name twice.
func twice(raw []byte) bool {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()               // some are too large for a float
	var names []map[string]bool // nil: an array
	name := false               // a name may come now
	for {
		token, err := d.Token()
		if err != nil {
			return false
		}
		in := len(names) > 0 && names[len(names)-1] != nil
		switch v := token.(type) {
		case json.Delim:
			switch v {
			case '{':
				names = append(names, make(map[string]bool))
			case '[':
				names = append(names, nil)
			default:
				names = names[:len(names)-1]
			}
			name = true
			continue
		case string:
			if in && name {
				if names[len(names)-1][v] {
					return true
				}
				names[len(names)-1][v] = true
				name = false
				continue
			}
		}
		name = true
	}
}

// The writer merges while all others wait, so a patch must not cost a pass over the row
// for each level that it goes down.
func TestADeepPatchOfALargeRowIsMergedInOnePass(t *testing.T) {
	const levels = 60
	row := strings.Repeat(`{"a":`, levels) + `{"v":"` + strings.Repeat("v", 900_000) + `"}` + strings.Repeat("}", levels)
	patch := strings.Repeat(`{"a":`, levels) + `{"w":1}` + strings.Repeat("}", levels)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := hub.MergePatch(row, patch); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 10<<20 {
		t.Errorf("a merge allocates %d MiB for a row of 1", n>>20)
	}
}
