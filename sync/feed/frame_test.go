package feed_test

import (
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

func TestFramesAreAsTheProtocolSays(t *testing.T) {
	at := feed.Cursor{Epoch: "k3f9a1", Seq: 1042}
	for _, c := range []struct {
		got  []byte
		want string
	}{
		{feed.Open{Epoch: "k3f9a1", Session: "s1", Heartbeat: 15, Server: "1.0", Transports: []string{"sse", "poll"}, Network: "n"}.Append(nil),
			`{"type":"open","epoch":"k3f9a1","session":"s1","heartbeat":15,"server":"1.0","transports":["sse","poll"],"network":"n"}`},
		{feed.Open{Epoch: "k3f9a1", Server: `a "version"\`}.Append(nil),
			`{"type":"open","epoch":"k3f9a1","session":"","heartbeat":0,"server":"a \"version\"\\","transports":[],"network":""}`},
		{feed.Reset{Collections: []string{"todos", "a/b"}, Reason: feed.ResetExpired}.Append(nil),
			`{"type":"reset","collections":["todos","a/b"],"reason":"expired"}`},
		{feed.AppendLive(nil, at), `{"type":"live","cursor":"k3f9a1-1042"}`},
		{feed.AppendNext(nil, at), `{"type":"next","cursor":"k3f9a1-1042"}`},
		{feed.AppendEnd(nil, "draining", "", 1234567*time.Microsecond), `{"type":"end","reason":"draining","retry":1234}`},
		{feed.AppendEnd(nil, "revoked", "", 0), `{"type":"end","reason":"revoked"}`},
		{feed.AppendEnd(nil, "evicted", `tenant "a" was forgotten`, time.Second), `{"type":"end","reason":"evicted","detail":"tenant \"a\" was forgotten","retry":1000}`},
		{feed.AppendDone(nil, `q"1`), `{"type":"done","id":"q\"1"}`},
		{[]byte(feed.TickFrame), `{"type":"tick"}`},
		{feed.AppendLive([]byte("before "), at), `before {"type":"live","cursor":"k3f9a1-1042"}`},
	} {
		if string(c.got) != c.want {
			t.Errorf("got  %s\nwant %s", c.got, c.want)
		}
	}
}
