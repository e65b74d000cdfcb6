package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"
	"gopkg.in/yaml.v3"
)

// configFile is a YAML file of flags: names of flags, and names of commands with the
// flags that count for them alone. It is a kong.Resolver.
type configFile struct {
	name string
	keys map[string]*yaml.Node // by the path of names: "url", "tail.url"
}

func readConfigFile(r io.Reader) (kong.Resolver, error) {
	c := &configFile{name: "the config file", keys: make(map[string]*yaml.Node)}
	if f, ok := r.(*os.File); ok {
		c.name = f.Name()
	}
	var doc, second yaml.Node
	from := yaml.NewDecoder(r)
	if err := from.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	switch err := from.Decode(&second); {
	case err == nil:
		return nil, c.errorf(&second, "a second document begins here (---), and there may be one: what it says would be ignored")
	case !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	for _, top := range doc.Content {
		if err := c.add("", top); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// add takes the members of a mapping, below prefix.
func (c *configFile) add(prefix string, node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return nil
	}
	if node.Kind != yaml.MappingNode {
		return c.errorf(node, "a list of names with values belongs here, like url: http://127.0.0.1:7333")
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		name := prefix + key.Value
		if c.keys[name] != nil {
			return c.errorf(key, "%q is there twice", name)
		}
		c.keys[name] = value
		if value.Kind == yaml.MappingNode && prefix == "" {
			if err := c.add(name+".", value); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *configFile) errorf(at *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s", c.name, at.Line, fmt.Sprintf(format, args...))
}

// Validate finds what no command knows.
func (c *configFile) Validate(app *kong.Application) error {
	known := make(map[string]bool)
	for _, command := range app.Children {
		known[command.Name] = true
		for _, flag := range command.Flags {
			known[flag.Name], known[command.Name+"."+flag.Name] = true, true
		}
	}
	// In the order of the file, so that the first mistake is named first.
	var first *yaml.Node
	var unknown string
	for name, value := range c.keys {
		if !known[name] && (first == nil || value.Line < first.Line) {
			first, unknown = value, name
		}
	}
	if first != nil {
		return c.errorf(first, "unknown key %q: it is neither a flag nor a command", unknown)
	}
	for _, command := range app.Children {
		if value := c.keys[command.Name]; value != nil && value.Kind != yaml.MappingNode {
			return c.errorf(value, "%q is a command: its flags go below it, further in", command.Name)
		}
	}
	return nil
}

// Resolve returns a flag's value as the command line would have it. kong asks for
// every flag that is not on the command line; those of the environment are left alone.
func (c *configFile) Resolve(_ *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	for _, env := range flag.Envs {
		if _, set := os.LookupEnv(env); set {
			return nil, nil
		}
	}
	value := c.keys[parent.Node().Name+"."+flag.Name]
	if value == nil || parent.Command == nil {
		value = c.keys[flag.Name]
	}
	switch {
	case value == nil || parent.Command == nil:
		return nil, nil
	case value.Kind == yaml.ScalarNode && value.Tag != "!!null":
		return value.Value, nil
	case value.Kind == yaml.SequenceNode:
		var list []string
		var whole []any
		for _, item := range value.Content {
			if item.Kind != yaml.ScalarNode {
				return nil, c.errorf(item, "%s: a list of plain values belongs here", flag.Name)
			}
			list, whole = append(list, item.Value), append(whole, item.Value)
		}
		if flag.Tag.Sep == -1 { // none: kong would take them for one
			return whole, nil
		}
		return kong.JoinEscaped(list, flag.Tag.Sep), nil
	}
	return nil, c.errorf(value, "%s: a plain value belongs here", flag.Name)
}
