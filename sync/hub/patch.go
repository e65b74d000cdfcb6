package hub

import (
	"bytes"
	"fmt"
	"unsafe"

	"github.com/go-json-experiment/json/jsontext"
)

// Bounds of a row's value, so that no stranger's JSON is expensive to walk.
const (
	MaxValue    = 1 << 20 // bytes, compact
	MaxDepth    = 64      // objects and arrays in each other
	MaxElements = 100_000 // values and names in all
)

// compact checks a JSON object that a stranger sent and returns it on one line, with
// each string in its shortest form, at the end of the request's texts. Duplicate names, invalid UTF-8 and more than the
// bounds allow are errors that say so.
func (p *Pending) compact(what string, raw []byte) (string, error) {
	if len(raw) > 0 && raw[0] != '{' {
		raw = bytes.TrimLeft(raw, " \t\r\n")
	}
	if len(raw) == 0 || raw[0] != '{' {
		return "", refuse(BadRequest, `%s must be a JSON object, like {"title":"milk"}`, what)
	}
	if err := CheckBounds(raw, MaxDepth, MaxElements); err != nil {
		return "", refuse(BadRequest, "%s %s", what, err)
	}
	from := len(p.texts)
	texts, err := jsontext.AppendFormat(p.texts, raw)
	if err != nil {
		return "", refuse(BadRequest, "%s is not valid JSON: %s", what, err)
	}
	text := texts[from:]
	if len(text) > MaxValue {
		return "", refuse(TooLarge, "%s has %d bytes; a row has at most %d: split it into several rows", what, len(text), MaxValue)
	}
	p.texts = texts
	return unsafe.String(unsafe.SliceData(text), len(text)), nil
}

// CheckBounds returns an error if a JSON text nests deeper than mostDepth or has more
// than mostElements elements. It says nothing about whether the text is valid, and is done
// before it is parsed, so that depth costs no stack.
func CheckBounds(raw []byte, mostDepth, mostElements int) error {
	if len(raw) <= mostElements && bytes.Count(raw, []byte("{"))+bytes.Count(raw, []byte("[")) <= mostDepth {
		return nil // as nearly always, and told many bytes at a time
	}
	depth, elements := 0, 0
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			i += quoted(raw[i+1:]) + 1
		case '{', '[':
			elements++
			if depth++; depth > mostDepth {
				return fmt.Errorf("nests deeper than %d levels: flatten it", mostDepth)
			}
		case '}', ']':
			depth--
		case ',', ':':
			elements++
		}
		if elements > mostElements {
			return fmt.Errorf("has more than %d elements: split it", mostElements)
		}
	}
	return nil
}

// quoted is how long the string is that b begins with, up to the quote that ends it. The two
// searches look at many bytes at once, and each at none twice.
func quoted(b []byte) int {
	end := -1
	for from := 0; ; {
		if end < from {
			next := bytes.IndexByte(b[from:], '"')
			if next < 0 {
				return len(b)
			}
			end = from + next
		}
		escape := bytes.IndexByte(b[from:end], '\\')
		if escape < 0 {
			return end
		}
		from += escape + 2
	}
}

// mergePatch applies a merge patch (RFC 7396) to an object. Both are one line of
// valid JSON without duplicate names, as compact returns it. Members keep their
// order; new ones come last. It takes one pass over each, however deep they are: the
// writer does it while all others wait.
func mergePatch(target, text string) (string, error) {
	p, err := nextPatch(newDecoder(text))
	if err != nil {
		return "", err
	}
	b, err := p.appendMerged(make([]byte, 0, len(target)+len(text)), newDecoder(target))
	return string(b), err
}

// newDecoder reads what compact has checked, so names are not looked at twice.
func newDecoder(text string) *jsontext.Decoder {
	return jsontext.NewDecoder(bytes.NewBufferString(text), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

// patch is a value of a merge patch.
type patch struct {
	text    string // what replaces the target; "null" removes it. Empty: members says more
	members []patchMember
	byName  map[string]int // of members
}

// patchMember's name has its quotes. Since every string is in its shortest form, equal
// names have equal texts.
type patchMember struct {
	name string
	patch
}

func nextPatch(d *jsontext.Decoder) (patch, error) {
	if d.PeekKind() != '{' {
		v, err := d.ReadValue()
		return patch{text: string(v)}, err
	}
	p := patch{byName: make(map[string]int)}
	if _, err := d.ReadToken(); err != nil {
		return p, err
	}
	for d.PeekKind() == '"' {
		name, err := d.ReadValue()
		if err != nil {
			return p, err
		}
		m := patchMember{name: string(name)}
		if m.patch, err = nextPatch(d); err != nil {
			return p, err
		}
		p.byName[m.name] = len(p.members)
		p.members = append(p.members, m)
	}
	_, err := d.ReadToken()
	return p, err
}

// appendMerged patches the next value of d.
func (p *patch) appendMerged(dst []byte, d *jsontext.Decoder) ([]byte, error) {
	if p.byName == nil || d.PeekKind() != '{' {
		if err := d.SkipValue(); err != nil {
			return nil, err
		}
		return p.append(dst), nil
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	dst = append(dst, '{')
	from := len(dst)
	used := make([]bool, len(p.members))
	for d.PeekKind() == '"' {
		name, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		i, patched := p.byName[string(name)]
		if patched {
			if used[i] = true; p.members[i].text == "null" {
				if err := d.SkipValue(); err != nil {
					return nil, err
				}
				continue
			}
		}
		dst = appendName(dst, from, name)
		if patched {
			if dst, err = p.members[i].appendMerged(dst, d); err != nil {
				return nil, err
			}
			continue
		}
		value, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		dst = append(dst, value...)
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	for i := range p.members {
		if m := &p.members[i]; !used[i] && m.text != "null" {
			dst = m.append(appendName(dst, from, m.name))
		}
	}
	return append(dst, '}'), nil
}

// append appends what the patch makes of nothing.
func (p *patch) append(dst []byte) []byte {
	if p.byName == nil {
		return append(dst, p.text...)
	}
	dst = append(dst, '{')
	from := len(dst)
	for i := range p.members {
		if m := &p.members[i]; m.text != "null" {
			dst = m.append(appendName(dst, from, m.name))
		}
	}
	return append(dst, '}')
}

// appendName begins a member of the object whose members begin at from.
func appendName[S ~string | ~[]byte](dst []byte, from int, name S) []byte {
	if len(dst) > from {
		dst = append(dst, ',')
	}
	return append(append(dst, name...), ':')
}
