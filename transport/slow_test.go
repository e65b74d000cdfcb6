package transport_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/transport"
)

// patient makes settings with another patience.
func patient(d time.Duration) settings {
	return settings{listen: func(l net.Listener) net.Listener { return transport.ListenFor(l, d) }}
}

// fill writes n rows of about size bytes each.
func (s *site) fill(prefix string, n, size int) {
	s.t.Helper()
	pad := strings.Repeat("x", size)
	for i := 0; i < n; {
		var list []string
		for ; i < n && len(list) < 500 && len(list)*size < 800_000; i++ {
			list = append(list, put(fmt.Sprint(prefix, i), `{"pad":"`+pad+`"}`))
		}
		s.write(`{"atomic":false,` + changes(list...)[1:])
	}
}

// request asks for a feed on a connection of its own and reads nothing.
func (s *site) request(tr, query string) *net.TCPConn {
	s.t.Helper()
	c, err := s.dial(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	tcp := c.(*net.TCPConn)
	s.t.Cleanup(func() { c.Close() })
	headers := map[string]string{sse: "Accept: text/event-stream\r\n", websocket: strings.ReplaceAll(upgrade, "\n", "\r\n"), poll: ""}[tr]
	if _, err := io.WriteString(c, "GET /v1/acme/feed?"+query+" HTTP/1.1\r\nHost: localhost\r\n"+headers+"\r\n"); err != nil {
		s.t.Fatal(err)
	}
	return tcp
}

func TestClientThatReadsNothingIsClosedWhileOthersStayCurrent(t *testing.T) {
	big := open(t, patient(500*time.Millisecond))
	big.fill("old", 20, 80_000) // more than all buffers between us
	for _, tr := range transports {
		t.Run(tr, func(t *testing.T) {
			s := big
			s.t = t
			c := s.request(tr, "c=todos&limit=10000")
			s.sessions(1)
			other := s.feed(sse, "c=todos&cursor="+s.put("now", `{}`).Cursor)
			other.until("live")
			start := time.Now()
			for i := 0; s.hub.Stats().Sessions > 1; i++ {
				if time.Since(start) > 20*time.Second {
					t.Fatal("it is never closed")
				}
				sent := time.Now()
				s.put("now", fmt.Sprintf(`{"n":%d}`, i))
				for f := other.next(); f.Key != "now"; f = other.next() {
				}
				if late := time.Since(sent); late > 2*time.Second {
					t.Errorf("another client is %v late", late)
				}
			}
			// It took what was under way, and then the end.
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if n, err := io.Copy(io.Discard, c); err == nil && n > 1_600_000 {
				t.Errorf("it could read %d bytes", n)
			}
			s.sessions(1)
		})
	}
}

// A peer that reads steadily must not look stalled because the kernel takes much of it
// at once and then nothing for long.
func TestClientThatReadsSlowlyIsNotClosed(t *testing.T) {
	s := open(t, patient(2*time.Second))
	s.fill("old", 40, 80_000)
	for _, tr := range transports {
		t.Run(tr, func(t *testing.T) {
			t.Parallel()
			c := s.request(tr, "c=todos&limit=10000")
			c.SetReadBuffer(128 << 10)
			buf := make([]byte, 64<<10)
			var all []byte
			start := time.Now()
			for !strings.Contains(string(all[max(0, len(all)-100_000):]), `"type":"live"`) {
				slow := time.Since(start) < 5*time.Second
				if slow {
					time.Sleep(10 * time.Millisecond) // 500 kB/s
					buf = buf[:5000]
				} else {
					buf = buf[:cap(buf)]
				}
				c.SetReadDeadline(time.Now().Add(20 * time.Second))
				n, err := c.Read(buf)
				if err != nil {
					t.Fatalf("after %d bytes and %v: %v", len(all), time.Since(start), err)
				}
				all = append(all, buf[:n]...)
			}
			if n := strings.Count(string(all), `"type":"change"`); n != 40 {
				t.Errorf("it got %d rows", n)
			}
		})
	}
}

// live is how much memory is in use, in bytes.
func live() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Neither does a client cost more for each change that it does not read.
func TestClientsThatReadNothingCostABoundedBuffer(t *testing.T) {
	s := open(t, settings{})
	s.fill("row", 20, 1000)
	for i := range 60 {
		s.request(transports[i%2], "c=todos")
	}
	s.sessions(60)
	before := live()
	written := 0
	for range 10 {
		s.fill("row", 20, 20_000)
		written += 20 * 20_000
	}
	// The log in memory holds all of it, once.
	if grown := live() - before - int64(written); grown > 60*500_000 {
		t.Errorf("60 clients that read nothing cost %d kB each of the %d kB that were written", grown/60_000, written/1000)
	} else {
		t.Logf("%d kB each of %d kB", grown/60_000, written/1000)
	}
	if s.hub.Stats().Sessions != 60 {
		t.Errorf("%d sessions", s.hub.Stats().Sessions)
	}
}

func TestPeerThatTakesNothingAnyMoreIsClosed(t *testing.T) {
	for _, tr := range []string{sse, websocket} {
		bubble(t, settings{}, func(t *testing.T, s *site) {
			st := s.feed(tr, "c=todos&heartbeat=5")
			time.Sleep(time.Second)
			st.now()
			st.pause()
			start := time.Now()
			for s.hub.Stats().Sessions > 0 {
				time.Sleep(time.Second)
				if time.Since(start) > time.Hour {
					t.Fatalf("%s: it is never closed", tr)
				}
			}
			if took := time.Since(start); took < transport.Stalled || took > transport.Stalled+12*time.Second {
				t.Errorf("%s: closed after %v", tr, took)
			}
		})
	}
}

func TestClientThatVanishesLeavesNothingInAnyPhase(t *testing.T) {
	s := open(t, settings{})
	s.fill("old", 30, 80_000)
	live := func(c net.Conn) { // reads until it is live
		var all []byte
		buf := make([]byte, 64<<10)
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		for !strings.Contains(string(all[max(0, len(all)-100_000):]), `"type":"live"`) {
			n, err := c.Read(buf)
			if err != nil {
				t.Error(err)
				return
			}
			all = append(all, buf[:n]...)
		}
	}
	phases := map[string]func(net.Conn){
		"asked":           func(net.Conn) {},
		"in the headers":  func(c net.Conn) { io.ReadFull(c, make([]byte, 20)) },
		"in the snapshot": func(c net.Conn) { io.ReadFull(c, make([]byte, 200_000)) },
		"live":            live,
	}
	for _, reset := range []bool{false, true} {
		for _, tr := range transports {
			for phase, fn := range phases {
				c := s.request(tr, "c=todos&limit=10000")
				fn(c)
				if reset {
					c.SetLinger(0)
				}
				c.Close()
				s.eventually(tr+" "+phase, func() bool { return s.hub.Stats().Sessions == 0 })
			}
		}
	}
	// In the middle of what a WebSocket sends.
	for _, part := range []string{"\x81", "\x81\xfe", "\x81\xfe\x00\xff\x00\x00\x00\x00half", "\x01\x80\x00\x00\x00\x00", "\x89\x80\x00\x00\x00\x00\x81"} {
		c := s.request(websocket, "c=none")
		live(c)
		io.WriteString(c, part)
		c.Close()
		s.sessions(0)
	}
	// Who has only ended its own half has left too: what it asked for can't be wanted.
	c := s.request(websocket, "c=none")
	live(c)
	c.CloseWrite()
	s.sessions(0)
}

func TestSocketThatBreaksTheProtocolIsClosed(t *testing.T) {
	s := open(t, settings{})
	for what, bytes := range map[string]string{
		"an unmasked frame":                      "\x81\x02{}",
		"reserved bits":                          "\xf1\x82\x00\x00\x00\x00{}",
		"an opcode that is none":                 "\x83\x80\x00\x00\x00\x00",
		"a ping in pieces":                       "\x09\x80\x00\x00\x00\x00",
		"a long ping":                            "\x89\xfe\x00\x80\x00\x00\x00\x00" + strings.Repeat("x", 128),
		"a continuation of nothing":              "\x80\x80\x00\x00\x00\x00",
		"a message in a message":                 "\x01\x80\x00\x00\x00\x00\x81\x80\x00\x00\x00\x00",
		"a length with its highest bit set":      "\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",
		"a close frame with half a code":         "\x88\x81\x00\x00\x00\x00\x03",
		"a close frame with a code that is none": "\x88\x82\x00\x00\x00\x00\x00\x01",
	} {
		c, _ := s.socket("c=none")
		c.conn.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := io.WriteString(c.conn, bytes); err != nil {
			t.Fatal(err)
		}
		code := ""
		for {
			op, payload, err := c.read()
			if err != nil {
				if e, ok := err.(net.Error); ok && e.Timeout() {
					t.Errorf("%s: it stays open", what)
				}
				break
			}
			if op == 8 {
				code = payload[:2]
				c.conn.Close()
				break
			}
		}
		if code != "\x03\xea" && code != "\x03\xf1" && what != "a length with its highest bit set" {
			t.Errorf("%s: closed with %q", what, code)
		}
		s.sessions(0)
	}
}

// On a connection that others share, a stream that takes nothing ends by itself; one
// that is merely quiet does not.
func TestSharedConnectionSurvivesAStreamThatStalls(t *testing.T) {
	bubble(t, settings{tls: true}, func(t *testing.T, s *site) {
		quiet := s.feed(sse, "c=quiet&heartbeat=30")
		stalls := s.feed(sse, "c=todos&heartbeat=30")
		time.Sleep(time.Second)
		quiet.now()
		stalls.now()
		stalls.pause()
		for i := range 10 { // more than a stream's window
			s.put(fmt.Sprint(i), fmt.Sprintf(`{"pad":%q}`, strings.Repeat("x", 60_000)))
		}
		time.Sleep(transport.Stalled + time.Second)
		synctest.Wait()
		if n := s.hub.Stats().Sessions; n != 1 {
			t.Errorf("%d sessions after a stream has stalled", n)
		}
		time.Sleep(5 * time.Minute)
		if got := quiet.now(); len(got) < 8 || got[len(got)-1].Type != "live" {
			t.Errorf("the quiet stream brings %v, %v", got, quiet.err)
		}
		s.put("quiet:a", `{}`)
		if got := types(quiet.now()); got != "change" {
			t.Errorf("after six minutes: %q, %v", got, quiet.err)
		}
	})
}

// Many clients ping by themselves, and leave if no pong comes. A message that takes its
// time must not cost them the connection.
func TestSlowReaderGetsItsPongs(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		for i := range 20 {
			s.put(fmt.Sprint(i), fmt.Sprintf(`{"pad":%q}`, strings.Repeat("x", 40_000)))
		}
		c, _ := s.socket("c=todos")
		c.open(t)
		early, _ := c.r.Peek(c.r.Buffered())
		c.r = bufio.NewReaderSize(slowly{io.MultiReader(bytes.NewReader(early), c.conn)}, 1000)
		go func() {
			for i := range 60 {
				if c.write(9, fmt.Sprint(i)) != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		}()
		changes, pongs, start := 0, 0, time.Now()
		var last time.Time
		for changes < 20 {
			op, b, err := c.read()
			if err != nil {
				t.Fatalf("after %v, %d changes: %v", time.Since(start), changes, err)
			}
			switch op {
			case 1:
				changes += strings.Count(b, `"type":"change"`)
			case 10:
				if pongs++; !last.IsZero() && time.Since(last) > time.Minute {
					t.Errorf("a pong comes %v after the one before", time.Since(last))
				}
				last = time.Now()
			}
		}
		if took := time.Since(start); pongs < int(took/time.Minute) || took < 5*time.Minute {
			t.Errorf("%d pongs in %v", pongs, took)
		}
		c.conn.Close()
		time.Sleep(15 * time.Minute) // until the pings end
	})
}

// slowly reads 1000 bytes in half a second.
type slowly struct{ io.Reader }

func (s slowly) Read(b []byte) (int, error) {
	time.Sleep(500 * time.Millisecond)
	return s.Reader.Read(b[:min(len(b), 1000)])
}

// TestFollowersThatWaitHoldNoGoroutine: else idle clients cost the server several times their memory.
func TestFollowersThatWaitHoldNoGoroutine(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("readable is for Linux")
	}
	s := open(t, settings{})
	before := runtime.NumGoroutine()
	var all []io.Closer
	const each = 30
	for range each {
		all = append(all, s.request(sse, "c=todos&heartbeat=30"))
	}
	sockets := make([]*rawSocket, each)
	for i := range sockets {
		sockets[i], _ = s.socket("c=todos&heartbeat=30")
		all = append(all, sockets[i].conn)
	}
	for range each {
		all = append(all, s.request(poll, "c=todos&wait=55"))
	}
	s.sessions(3 * each)
	const few = 12 // of the server: attendants, a reader of idle sockets, and what just ends
	idle := func() {
		t.Helper()
		s.eventually("no goroutines", func() bool { return runtime.NumGoroutine() <= before+few })
	}
	idle()
	for _, c := range sockets { // what browsers do about pings, and what proxies do
		if err := errors.Join(c.write(10, ""), c.write(10, "hello")); err != nil {
			t.Fatal(err)
		}
		if err := c.write(1, `{"type":"subscribe","id":"1","collections":[{"name":"notes"}]}`); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range sockets {
		for done := false; !done; {
			_, payload, err := c.read()
			if err != nil {
				t.Fatal(err)
			}
			done = strings.Contains(payload, `"type":"done"`)
		}
	}
	idle()
	for _, c := range all {
		c.Close()
	}
	s.sessions(0) // noticed at once, though nobody reads
}
