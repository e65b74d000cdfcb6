package hub

import (
	"bytes"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

// Bounds of a row's value, so that no stranger's JSON is expensive to walk.
const (
	MaxValue    = 1 << 20 // bytes, compact
	MaxDepth    = 64      // objects and arrays in each other
	MaxElements = 100_000 // values and names in all
)

// compact checks a JSON object that a stranger sent and returns it on one line, with
// each string in its shortest form. Duplicate names, invalid UTF-8 and more than the
// bounds allow are errors that say so.
func compact(what string, raw []byte) (string, error) {
	raw = bytes.TrimLeft(raw, " \t\r\n")
	if len(raw) == 0 || raw[0] != '{' {
		return "", refuse(BadRequest, `%s must be a JSON object, like {"title":"milk"}`, what)
	}
	if err := CheckBounds(raw); err != nil {
		return "", refuse(BadRequest, "%s %s", what, err)
	}
	v := jsontext.Value(bytes.Clone(raw))
	if err := v.Format(); err != nil {
		return "", refuse(BadRequest, "%s is not valid JSON: %s", what, err)
	}
	if len(v) > MaxValue {
		return "", refuse(TooLarge, "%s has %d bytes; a row has at most %d: split it into several rows", what, len(v), MaxValue)
	}
	return string(v), nil
}

// CheckBounds returns an error if a JSON text nests deeper than MaxDepth or has more
// than MaxElements elements. It says nothing about whether the text is valid.
func CheckBounds(raw []byte) error {
	depth, elements, quoted := 0, 0, false
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if quoted {
			switch c {
			case '\\':
				i++
			case '"':
				quoted = false
			}
			continue
		}
		switch c {
		case '"':
			quoted = true
		case '{', '[':
			elements++
			if depth++; depth > MaxDepth {
				return fmt.Errorf("nests deeper than %d levels: flatten it", MaxDepth)
			}
		case '}', ']':
			depth--
		case ',', ':':
			elements++
		}
		if elements > MaxElements {
			return fmt.Errorf("has more than %d elements: split it", MaxElements)
		}
	}
	return nil
}

// mergePatch applies a merge patch (RFC 7396) to an object. Both are one line of
// valid JSON without duplicate names, as compact returns it. Members keep their
// order; new ones come last.
func mergePatch(target, patch string) (string, error) {
	b, err := appendMerged(make([]byte, 0, len(target)+len(patch)), target, patch)
	return string(b), err
}

func appendMerged(dst []byte, target, patch string) ([]byte, error) {
	if patch[0] != '{' {
		return append(dst, patch...), nil
	}
	patches, err := members(patch)
	if err != nil {
		return nil, err
	}
	var have []member
	if target != "" && target[0] == '{' {
		if have, err = members(target); err != nil {
			return nil, err
		}
	}
	byName := make(map[string]int, len(patches))
	for i, p := range patches {
		byName[p.name] = i
	}
	dst = append(dst, '{')
	first := true
	put := func(name, value, patch string) (err error) {
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(append(dst, name...), ':')
		if patch == "" {
			dst = append(dst, value...)
			return nil
		}
		dst, err = appendMerged(dst, value, patch)
		return err
	}
	for _, m := range have {
		patch := ""
		if i, ok := byName[m.name]; ok {
			delete(byName, m.name)
			if patch = patches[i].value; patch == "null" {
				continue
			}
		}
		if err := put(m.name, m.value, patch); err != nil {
			return nil, err
		}
	}
	for i, p := range patches {
		if at, ok := byName[p.name]; !ok || at != i || p.value == "null" {
			continue
		}
		if err := put(p.name, "", p.value); err != nil {
			return nil, err
		}
	}
	return append(dst, '}'), nil
}

// member is one name and value of an object, as they stand in the text: the name
// with its quotes. Since every string is in its shortest form, equal names have
// equal texts.
type member struct{ name, value string }

func members(object string) ([]member, error) {
	d := jsontext.NewDecoder(bytes.NewBufferString(object))
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	var all []member
	for d.PeekKind() == '"' {
		name, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		m := member{name: string(name)}
		value, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		m.value = string(value)
		all = append(all, m)
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	return all, nil
}
