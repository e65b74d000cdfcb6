//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// inPieces hands b on in pieces that are cut anywhere.
func inPieces(t *rapid.T, b []byte, take func([]byte) error) {
	for len(b) > 0 {
		n := rapid.IntRange(1, min(len(b), 300)).Draw(t, "piece")
		if err := take(slices.Clone(b[:n])); err != nil {
			t.Fatal(err)
		}
		b = b[n:]
	}
}

func TestNoMessageIsMissedWhereverTheNetworkCutsIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) record {
			return record{
				rapid.IntRange(0, 99_999).Draw(t, "channel"),
				rapid.Uint64Range(1, 9_999_999_999).Draw(t, "seq"),
				time.Duration(rapid.Int64Range(0, 1<<62).Draw(t, "at")),
			}
		}), 0, 20).Draw(t, "records")
		noise := rapid.SampledFrom([]string{"", "@", "@@", "data: x\n\n", "@@00001@", "\x1e2"})
		body := func(r record) []byte {
			return append(r.message([]byte(noise.Draw(t, "before")), messageSize), noise.Draw(t, "after")...)
		}
		var got []record
		found := func(r record) { got = append(got, r) }
		var s scanner
		data := func(b []byte) { s.scan(b, found) }

		var stream []byte
		var take func([]byte) error
		if rapid.Bool().Draw(t, "websocket") {
			f := frames{onData: func(b []byte, _ bool) { data(b) }, onControl: func(byte, []byte) error { return nil }}
			a := answer{
				onHead: func(head) (bool, error) { return true, nil },
				onBody: func(b []byte) {
					if err := f.feed(b); err != nil {
						t.Fatal(err)
					}
				},
			}
			take = a.feed
			stream = []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
			for _, r := range want {
				if rapid.Bool().Draw(t, "ping") {
					stream = append(stream, 0x80|opPing, 1, 'x')
				}
				b := body(r)
				stream = append(binary.BigEndian.AppendUint16(append(stream, 0x80|opText, 126), uint16(len(b))), b...)
			}
		} else {
			a := answer{onHead: func(head) (bool, error) { return false, nil }, onBody: data, onEnd: func() error { return nil }}
			take = a.feed
			for _, r := range want {
				b := body(r)
				if rapid.Bool().Draw(t, "chunked") {
					at := rapid.IntRange(1, len(b)-1).Draw(t, "cut")
					stream = fmt.Appendf(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", at, b[:at], len(b)-at, b[at:])
				} else {
					stream = fmt.Appendf(stream, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
				}
			}
		}
		inPieces(t, stream, take)
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func TestNoAnswerIsMissedWhereverTheNetworkCutsIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		yes := []byte(`{"type":"written"`)
		n := rapid.IntRange(0, 20).Draw(t, "answers")
		var b []byte
		for range n {
			b = append(append(b, yes...), rapid.SampledFrom([]string{`}`, `,"id":"{"}`, `{"type":`}).Draw(t, "rest")...)
		}
		p, got := phrase{text: yes}, int64(0)
		inPieces(t, b, func(piece []byte) error {
			got += p.in(piece)
			return nil
		})
		if got != int64(n) {
			t.Fatalf("%d of %d answers were seen", got, n)
		}
	})
}

func TestALostOrDoubledMessageIsCounted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		came := rapid.SliceOfN(rapid.Uint64Range(1, 20), 1, 40).Draw(t, "came")
		last := rapid.Uint64Range(1, 25).Draw(t, "last")
		var got tally
		seen := make(map[uint64]bool)
		fresh, again := 0, 0
		for _, seq := range came {
			is := got.saw(seq)
			if want := seq >= came[0] && !seen[seq]; is != want {
				t.Fatalf("%d of %v counts as new: %t, want %t", seq, came, is, want)
			}
			if is {
				fresh++
			} else if seq >= came[0] {
				again++
			}
			seen[seq] = true
		}
		lost := 0
		for seq := came[0]; seq <= last; seq++ {
			if !seen[seq] {
				lost++
			}
		}
		if got.Doubles != again || got.lost(last) != lost {
			t.Fatalf("of %v up to %d: %d doubled and %d lost, want %d and %d", came, last, got.Doubles, got.lost(last), again, lost)
		}
	})
}

// TestWhatAServerDoesWrongIsReported follows a server that loses one message, sends one twice
// and one of another channel, and ends a connection.
func TestWhatAServerDoesWrongIsReported(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.Read(make([]byte, 1024)); err != nil {
				return err
			}
			var b bytes.Buffer
			b.WriteString("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
			for _, r := range []record{{0, 1, 0}, {0, 2, 0}, {0, 2, 0}, {7, 3, 0}, {0, 4, 0}} {
				b.WriteString("data: ")
				b.Write(r.message(nil, messageSize))
				b.WriteString("\n\n")
			}
			_, err = c.Write(b.Bytes())
			return err
		}()
	}()
	c, err := newCrowd(netip.MustParseAddrPort(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.leave()
	w := &way{transport: sse, request: func(int, string) []byte { return get("/", acceptEvents) }}
	if err := c.join(newFollower(c, w, 0, "")); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	for c.gone.Load() == 0 {
		if err := sleep(t.Context(), time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.example(); err == nil {
		t.Error("nothing says why a follower is gone")
	}
	got, want := c.judge([]uint64{5}), faults{Lost: 2, Doubles: 1, Strays: 1, Gone: 1}
	if got != want {
		t.Errorf("reported %+v, want %+v", got, want)
	}
}

func TestTablesHoldEachRivalAgainstOursOfTheSameRound(t *testing.T) {
	m := &measured{Date: "2026-11-27", Rounds: 3}
	for round, v := range [][2]float64{{10, 20}, {20, 20}, {10, 40}} {
		m.Results = append(m.Results,
			result{Contender: "Tidemark", Transport: sse, Round: round, Values: map[string]float64{"held": v[0]}},
			result{Contender: "Nchan", Transport: sse, Round: round, Values: map[string]float64{"held": v[1]}, Faults: faults{Lost: 1}})
	}
	m.Results = append(m.Results, result{Contender: "go-sse", Transport: sse, Failed: "it fell | over\nand more"})
	var b bytes.Buffer
	if err := writeTables(&b, map[string]*measured{"idle": m}); err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		"| sse | Tidemark | 10.0 (10.0 to 20.0) |  |  |",
		"| sse | Nchan | 20.0 (20.0 to 40.0) | 2.00 (1.00 to 4.00) | 3 lost |",
		`| sse | go-sse |  |  | failed in 1 of 1: it fell \| over |`,
	} {
		if !bytes.Contains(b.Bytes(), []byte(row+"\n")) {
			t.Errorf("no row %q in\n%s", row, b.Bytes())
		}
	}
}
