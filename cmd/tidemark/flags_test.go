package main

import (
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/broker/history"
)

// TestHistoryFlagIsRead: history is kept for another time than the operator said.
func TestHistoryFlagIsRead(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]*history.Options{
		"off": nil, "forever": {}, "90d": {Keep: 90 * day}, "720h": {Keep: 720 * time.Hour}, "10GiB": {Bytes: 10 << 30},
		"90d,10GiB": {Keep: 90 * day, Bytes: 10 << 30}, "1MiB,1h": {Keep: time.Hour, Bytes: 1 << 20},
	} {
		var h History
		if err := h.UnmarshalText([]byte(text)); err != nil || (h.options == nil) != (want == nil) || want != nil && *h.options != *want {
			t.Errorf("%s is read as %+v, %v", text, h.options, err)
		}
	}
	for _, text := range []string{"", "0", "0d", "-1h", "0GiB", "90", "90d,90d", "1GiB,1GiB", "1h,", "for ever"} {
		if err := new(History).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
