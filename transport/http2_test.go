package transport_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/transport"
)

// plainHTTP2 has a site spoken to in HTTP/2 without TLS, on the connection that talk gets.
func plainHTTP2(t *testing.T, s *site, talk func(c net.Conn)) {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: s.server, Protocols: &p}
	l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(l) }()
	c, err := l.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	talk(c)
	c.Close()
	server.Close()
	<-done
}

// h2frame is a frame of HTTP/2 (RFC 9113, 4.1).
func h2frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	return append(binary.BigEndian.AppendUint32(append(b, flags), stream), payload...)
}

// h2fields are header fields without any index (RFC 7541, 6.2.2).
func h2fields(fields ...string) (b []byte) {
	for i, s := range fields {
		if i%2 == 0 {
			b = append(b, 0)
		}
		b = append(append(b, byte(len(s))), s...)
	}
	return b
}

func TestBodyOfNoBytesThatNeverEndsIsGivenUpOverHTTP2(t *testing.T) {
	for _, length := range []string{"0", "none", "7"} {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			plainHTTP2(t, s, func(c net.Conn) {
				began := time.Now()
				go func() {
					io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
					c.Write(h2frame(4, 0, 0, nil))
					c.Write(h2frame(1, 4, 1, h2fields(":method", "POST", ":scheme", "http", ":authority", "localhost", ":path", "/v1/acme/changes", "content-length", length)))
				}()
				c.SetReadDeadline(began.Add(time.Hour))
				for {
					var head [9]byte
					if _, err := io.ReadFull(c, head[:]); err != nil {
						t.Errorf("length %s: no answer: %v after %v", length, err, time.Since(began))
						break
					}
					io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[:])>>8))
					if head[3] == 1 {
						break // answered
					}
				}
				if took := time.Since(began); took > transport.Stalled {
					t.Errorf("length %s: answered after %v", length, took)
				}
			})
		})
	}
}

// TestSlowReaderOverHTTP2IsNotCutOffWhileItTakesSomething: on a connection of its own it would not be.
func TestSlowReaderOverHTTP2IsNotCutOffWhileItTakesSomething(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		for i := range 8 {
			s.put(string(rune('a'+i)), `{"pad":"`+strings.Repeat("x", 4000)+`"}`)
		}
		plainHTTP2(t, s, func(c net.Conn) {
			over := make(chan struct{})
			go func() {
				io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
				c.Write(h2frame(4, 0, 0, []byte{0, 4, 0, 0, 0, 200})) // INITIAL_WINDOW_SIZE
				c.Write(h2frame(1, 5, 1, h2fields(":method", "GET", ":scheme", "http", ":authority", "localhost", ":path", "/v1/acme/feed?c=todos", "accept", "text/event-stream")))
				for {
					select {
					case <-over:
						return
					case <-time.After(time.Second):
					}
					c.Write(h2frame(8, 0, 1, []byte{0, 0, 0, 200})) // WINDOW_UPDATE
				}
			}()
			got := 0
			for got < 30_000 {
				var head [9]byte
				if _, err := io.ReadFull(c, head[:]); err != nil {
					t.Fatal(err)
				}
				n := int64(binary.BigEndian.Uint32(head[:]) >> 8)
				io.CopyN(io.Discard, c, n)
				if head[3] == 0 {
					got += int(n)
				}
				if head[3] == 3 { // RST_STREAM
					t.Errorf("cut off after %d bytes", got)
					break
				}
			}
			close(over)
		})
	})
}
