package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/units"

	"github.com/tidemark-sync/tidemark/broker/history"
)

// History is the flag that says how much of it is kept.
type History struct {
	options *history.Options // nil: none
}

// UnmarshalText reads off, forever, a time, a size, or a time and a size.
func (h *History) UnmarshalText(text []byte) error {
	h.options = nil
	switch string(text) {
	case "off":
		return nil
	case "forever":
		h.options = &history.Options{}
		return nil
	}
	var o history.Options
	for _, word := range strings.Split(string(text), ",") {
		if keep, ok := timeOf(word); ok && o.Keep == 0 {
			o.Keep = keep
			continue
		}
		n, err := units.ParseBase2Bytes(word)
		if err != nil || n <= 0 || o.Bytes != 0 {
			return fmt.Errorf("%q is neither off, forever, a time like 90d or 720h, a size like 10GiB, nor a time and a size with a comma between", text)
		}
		o.Bytes = int64(n)
	}
	h.options = &o
	return nil
}

// timeOf reads a time above 0, which may be in days.
func timeOf(word string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(word, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err == nil && n > 0
	}
	d, err := time.ParseDuration(word)
	return d, err == nil && d > 0
}
