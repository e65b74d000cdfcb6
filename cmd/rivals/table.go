//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// writeTables writes what was measured, as Markdown.
func writeTables(out io.Writer, all map[string]*measured) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s.\n", machine())
	versions := make(map[string]string)
	for _, w := range works() {
		m := all[w.name]
		if m == nil {
			continue
		}
		for name, version := range m.Versions {
			versions[name] = version
		}
		fmt.Fprintf(&b, "\n### %s\n\n%s %s, %d rounds (`make bench-compare WORKS=%s`).\n\n", w.title, w.about, m.Date, m.Rounds, w.name)
		b.WriteString("| over | |")
		for _, f := range w.figures {
			fmt.Fprintf(&b, " %s | ÷ ours |", f.head())
		}
		b.WriteString(" |\n|---|---|" + strings.Repeat("---|---|", len(w.figures)) + "---|\n")
		for _, transport := range w.over {
			for _, c := range contenders() {
				if rows := m.of(c.name, transport); len(rows) > 0 {
					m.row(&b, w, c, transport, rows)
				}
			}
		}
	}
	b.WriteString("\nEach was set up as its documentation has it for production:\n\n")
	for _, c := range contenders() {
		if version, ok := versions[c.name]; ok {
			fmt.Fprintf(&b, "- **%s** (%s): %s.\n", c.name, version, c.about)
		} else {
			fmt.Fprintf(&b, "- **%s** was not here.\n", c.name)
		}
	}
	_, err := out.Write(b.Bytes())
	return err
}

func (f figure) head() string {
	if f.unit == "" {
		return f.title
	}
	return f.title + ", " + f.unit
}

// of is what a contender came to over a transport, by round.
func (m *measured) of(contender, transport string) (rows []result) {
	for _, r := range m.Results {
		if r.Contender == contender && r.Transport == transport {
			rows = append(rows, r)
		}
	}
	return rows
}

// row has the median of each figure and its extremes, and of the rounds' ratios.
func (m *measured) row(b *bytes.Buffer, w *work, c *contender, transport string, rows []result) {
	fmt.Fprintf(b, "| %s | %s |", transport, c.name)
	ours := m.of(contenders()[0].name, transport)
	for _, f := range w.figures {
		var values, ratios []float64
		for _, r := range rows {
			v, ok := r.Values[f.key]
			if !ok {
				continue
			}
			values = append(values, v)
			for _, o := range ours {
				if base, ok := o.Values[f.key]; ok && o.Round == r.Round && base > 0 {
					ratios = append(ratios, v/base)
				}
			}
		}
		if c.name == contenders()[0].name {
			ratios = nil
		}
		fmt.Fprintf(b, " %s | %s |", spreadOf(values), spreadOf(ratios))
	}
	var sum faults
	var failed []string
	for _, r := range rows {
		sum.add(r.Faults)
		if r.Failed != "" {
			failed = append(failed, r.Failed)
		}
	}
	said := sum.words()
	if len(failed) > 0 {
		why, _, _ := strings.Cut(failed[0], "\n")
		said = append(said, fmt.Sprintf("failed in %d of %d: %s", len(failed), len(rows), strings.ReplaceAll(why, "|", "\\|")))
	}
	fmt.Fprintf(b, " %s |\n", strings.Join(said, ", "))
}

// words says what is not as it should be.
func (f faults) words() (said []string) {
	for _, x := range []struct {
		n    int
		what string
	}{{f.Lost, "lost"}, {f.Doubles, "doubled"}, {f.Disorder, "out of order"}, {f.Strays, "astray"}, {f.Gone, "connections ended"}} {
		if x.n > 0 {
			said = append(said, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	return said
}

// spreadOf is a median, and the extremes.
func spreadOf(values []float64) string {
	if len(values) == 0 {
		return ""
	}
	slices.Sort(values)
	median := (values[len(values)/2] + values[(len(values)-1)/2]) / 2
	return fmt.Sprintf("%s (%s to %s)", short(median), short(values[0]), short(values[len(values)-1]))
}

// short has three digits that say something.
func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// machine is what this was measured on.
func machine() string {
	model := "processors"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if name := lastOf(text, "model name\t:", "\n"); name != "" {
			model = name
		}
	}
	var info syscall.Sysinfo_t
	memory := ""
	if syscall.Sysinfo(&info) == nil {
		memory = fmt.Sprintf(", %d GB", (uint64(info.Totalram)*uint64(info.Unit)+1<<29)>>30)
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d cores (%s)%s, Linux %s, %s", runtime.NumCPU(), model, memory, strings.TrimSpace(string(kernel)), runtime.Version())
}
