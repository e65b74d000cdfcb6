package gate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/transport/gate"
)

func TestConnectionsAreBoundedInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l, in := listen(t, gate.ListenOptions{Most: 3})
		var first net.Conn
		for i := range 3 {
			defer n.dial(address(i).String()).Close()
			c := let(in)
			if c == nil {
				t.Fatalf("connection %d of 3 is refused", i)
			}
			if i == 0 {
				first = c
			} else {
				defer c.Close()
			}
		}
		c := n.dial(address(3).String())
		if let(in) != nil {
			t.Fatal("a fourth is let in")
		}
		if detail, _ := told(t, c); !strings.Contains(detail, "server has no room") {
			t.Errorf("told %q", detail)
		}
		c.Close()
		if s := l.Stats(); s.Open != 3 || s.Addresses != 3 || s.Refused[gate.Connections] != 1 || s.Untold != 0 {
			t.Errorf("%+v", s)
		}
		first.Close()
		first.Close() // again, it makes no more room
		defer n.dial(address(4).String()).Close()
		if c := let(in); c == nil {
			t.Error("there is no room after one has gone")
		} else {
			defer c.Close()
		}
		c = n.dial(address(5).String())
		defer c.Close()
		if let(in) != nil {
			t.Error("closing twice has made room twice")
		}
		if s := l.Stats(); s.Open != 3 || s.Addresses != 3 {
			t.Errorf("%+v", s)
		}
	})
}

func TestConnectionsAreBoundedPerAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l, in := listen(t, gate.ListenOptions{PerAddress: 2, Trusted: trusted(t, "10.0.0.0/8", "fd00::1")})
		dial := func(from string) bool {
			t.Helper()
			c := n.dial(from)
			t.Cleanup(func() { c.Close() })
			if in := let(in); in != nil {
				t.Cleanup(func() { in.Close() })
				return true
			}
			if detail, _ := told(t, c); !strings.Contains(detail, "your address has 2 connections") {
				t.Errorf("%s is told %q", from, detail)
			}
			return false
		}
		for _, c := range []struct {
			name string
			from []string // the first two are let in
			more bool     // and so are the others
		}{
			{"one address", []string{"203.0.113.7", "203.0.113.7", "203.0.113.7", "::ffff:203.0.113.7"}, false},
			{"another", []string{"203.0.113.8", "203.0.113.8", "203.0.113.8"}, false},
			{"one /64", []string{"2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:0:ffff:ffff:ffff:ffff"}, false},
			{"another /64", []string{"2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:1::1"}, false},
			{"a link", []string{"fe80::1%eth0", "fe80::1%eth0", "fe80::1%eth1"}, false},
			{"proxies", []string{"10.0.0.1", "10.0.0.1", "10.0.0.1", "::ffff:10.0.0.1"}, true},
			{"proxies over IPv6", []string{"fd00::1", "fd00::1", "fd00::1"}, true},
			{"who is next to a proxy", []string{"fd00::2", "fd00::3", "fd00::4"}, false},
			{"no IP address", []string{"", "", "", ""}, true},
		} {
			for i, from := range c.from {
				if ok := dial(from); ok != (i < 2 || c.more) {
					t.Errorf("%s: connection %d is let in: %t", c.name, i, ok)
				}
			}
		}
		if s := l.Stats(); s.Open != 6*2+4+3+4 || s.Addresses != 6 || s.Refused[gate.AddressConnections] != 8 || s.Refused[gate.Connections] != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestProxiesCountInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l, in := listen(t, gate.ListenOptions{Most: 2, PerAddress: 1, Trusted: trusted(t, "10.0.0.1")})
		for _, from := range []string{"10.0.0.1", ""} {
			defer n.dial(from).Close()
			if c := let(in); c == nil {
				t.Fatalf("%q is refused", from)
			} else {
				defer c.Close()
			}
		}
		for _, from := range []string{"10.0.0.1", "", "203.0.113.7"} {
			c := n.dial(from)
			if let(in) != nil {
				t.Errorf("%q is let in", from)
			}
			told(t, c)
			c.Close()
		}
		if s := l.Stats(); s.Open != 2 || s.Addresses != 0 || s.Refused[gate.Connections] != 3 {
			t.Errorf("%+v", s)
		}
	})
}

// By default one address has never all that there is.
func TestOneAddressCannotHaveAllConnections(t *testing.T) {
	few := func(limit int) *gate.Watch {
		w, err := gate.Readings(gate.WatchOptions{}, math.MaxInt64, func() (int, int) { return 3, limit }, func() (int64, int64) { return 1, 1 })
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	for _, c := range []struct {
		o    gate.ListenOptions
		want int
	}{
		{gate.ListenOptions{}, 2000},
		{gate.ListenOptions{Most: 256}, 128},
		{gate.ListenOptions{Most: 1}, 1},
		{gate.ListenOptions{Watch: few(20_000)}, 2000},
		{gate.ListenOptions{Watch: few(1000)}, 450},
		{gate.ListenOptions{Most: 256, Watch: few(1000)}, 128},
		{gate.ListenOptions{Watch: few(0)}, 2000},
		{gate.ListenOptions{Most: 256, PerAddress: 256}, 256}, // who wants it may have it
	} {
		synctest.Test(t, func(t *testing.T) {
			n, l, _ := listen(t, c.o)
			var mine []net.Conn
			for range c.want + 1 {
				mine = append(mine, n.dial("203.0.113.7"))
			}
			synctest.Wait()
			if s := l.Stats(); s.Open != c.want {
				t.Errorf("%+v: one address has %d, not %d", c.o, s.Open, c.want)
			}
			for _, c := range mine {
				c.Close()
			}
		})
	}
}

// A connection that is refused by a limit takes no descriptor from those that are not.
func TestRefusedConnectionsMakeNobodyElseShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p process
		p.limit.Store(1000)
		p.used.Store(500)
		n, l, in := listen(t, gate.ListenOptions{PerAddress: 1, Watch: p.watch(t, gate.WatchOptions{}, untoldMemory)})
		for range 2000 {
			defer n.dial("203.0.113.7").Close()
		}
		synctest.Wait()
		defer n.dial("203.0.113.8").Close()
		synctest.Wait()
		if s := l.Stats(); s.Open != 2 || len(in) != 2 || s.Refused[gate.Descriptors] != 0 || s.Refused[gate.AddressConnections] != 1999 {
			t.Errorf("%+v", s)
		}
	})
}

func TestWatchIsAskedForEachConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p process
		p.limit.Store(1000)
		n, l, in := listen(t, gate.ListenOptions{Watch: p.watch(t, gate.WatchOptions{Memory: 100}, untoldMemory)})
		for _, c := range []struct {
			used, needed int64
			want         gate.Short
		}{{10, 10, ""}, {950, 10, gate.Descriptors}, {10, 95, gate.Memory}, {10, 85, ""}} {
			p.used.Store(c.used)
			p.needed.Store(c.needed)
			time.Sleep(100 * time.Millisecond)
			mine := n.dial("203.0.113.7")
			before := l.Stats()
			theirs := let(in)
			if (theirs != nil) != (c.want == "") {
				t.Errorf("%+v: let in is %t", c, theirs != nil)
			}
			if theirs == nil {
				told(t, mine)
				if now := l.Stats(); now.Refused[c.want] != before.Refused[c.want]+1 {
					t.Errorf("%+v: %+v", c, now)
				}
			} else {
				theirs.Close()
			}
			mine.Close()
		}
		if s := l.Stats(); s.Open != 0 || s.Addresses != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// serveHTTP serves on l until the test ends.
func serveHTTP(t testing.TB, l net.Listener, handler http.Handler) {
	t.Helper()
	s := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: gate.MaxHeaderBytes,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		_ = s.Close()
		wg.Wait()
	})
}

// loopback is a Listener on TCP.
func loopback(t testing.TB, o gate.ListenOptions) *gate.Listener {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := gate.Listen(inner, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// byByte sends each byte by itself.
type byByte struct{ net.Conn }

func (c byByte) Write(b []byte) (n int, err error) {
	for i := range b {
		m, err := c.Conn.Write(b[i : i+1])
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// What is refused must be readable by what clients there are: http.Client takes an
// answer that comes before it has asked, or a reset, for an error.
func TestRefusedIsToldOverTCP(t *testing.T) {
	for name, c := range map[string]struct {
		o     gate.ListenOptions
		short gate.Short
	}{
		"in all":      {gate.ListenOptions{Most: 1}, gate.Connections},
		"per address": {gate.ListenOptions{PerAddress: 1}, gate.AddressConnections},
	} {
		t.Run(name, func(t *testing.T) {
			l := loopback(t, c.o)
			serveHTTP(t, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }))
			url := "http://" + l.Addr().String()
			first := &http.Client{Transport: &http.Transport{}}
			defer first.CloseIdleConnections()
			res, err := first.Get(url)
			if err != nil || res.StatusCode != 204 {
				t.Fatal(res, err)
			}
			res.Body.Close()
			slow := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := new(net.Dialer).DialContext(ctx, network, addr)
				return byByte{c}, err
			}}
			body := strings.Repeat("x", 32<<10)
			refused := uint64(0)
			for _, next := range []struct {
				name, method, body string
				transport          *http.Transport
				times              int
			}{
				{"a plain one", "GET", "", &http.Transport{}, 50},
				{"one with a body", "POST", body, &http.Transport{}, 50},
				{"one that sends byte by byte", "GET", "", slow, 10},
				{"one that sends a body byte by byte", "POST", body[:5000], slow, 2},
			} {
				client := &http.Client{Transport: next.transport}
				for range next.times {
					req, err := http.NewRequest(next.method, url+"/v1/t/feed?c=a", strings.NewReader(next.body))
					if err != nil {
						t.Fatal(err)
					}
					res, err := client.Do(req)
					if err != nil {
						t.Errorf("%s: %v", next.name, err)
						continue
					}
					refusedBy(t, res)
					res.Body.Close()
					refused++
				}
				client.CloseIdleConnections()
			}
			if s := l.Stats(); s.Refused[c.short] != refused || s.Open != 1 {
				t.Errorf("%+v after %d", s, refused)
			}
			// And who was in has noticed nothing.
			if res, err = first.Get(url); err != nil || res.StatusCode != 204 {
				t.Fatal(res, err)
			}
			res.Body.Close()
		})
	}
}

// full makes a Listener with a connection that is in, so that all others are refused.
func full(t testing.TB, o gate.ListenOptions) (n *network, l *gate.Listener) {
	t.Helper()
	o.Most = 1
	n, l, in := listen(t, o)
	c := n.dial("198.51.100.1")
	theirs := let(in)
	if theirs == nil {
		t.Fatal("the first is refused")
	}
	t.Cleanup(func() {
		c.Close()
		theirs.Close()
	})
	return n, l
}

func TestSlowOnesAreTold(t *testing.T) {
	const head = "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"
	for name, c := range map[string]struct {
		send   string
		pause  time.Duration
		within time.Duration // when it is answered
	}{
		"one that takes a second for its header": {head, time.Second / time.Duration(len(head)), time.Second},
		"one that never ends its header":         {"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 1000), 50 * time.Millisecond, 1500 * time.Millisecond},
		"one that sends one byte":                {"G", time.Minute, 1500 * time.Millisecond},
		"one that ends lines by LF alone":        {"GET / HTTP/1.1\nHost: example.com\n\n", 0, 0},
		"one whose header is very long":          {"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", gate.AnswerHead), 0, 0},
		"one that speaks another protocol":       {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, l := full(t, gate.ListenOptions{})
				mine := n.dial("203.0.113.7")
				defer mine.Close()
				start := time.Now()
				var sending sync.WaitGroup
				defer sending.Wait()
				sending.Go(func() {
					if c.pause == 0 {
						_, _ = io.WriteString(mine, c.send)
						return
					}
					for i := range len(c.send) {
						if _, err := io.WriteString(mine, c.send[i:i+1]); err != nil {
							return // it has heard
						}
						time.Sleep(c.pause)
					}
				})
				answered(t, mine)
				if took := time.Since(start); took > c.within {
					t.Errorf("told after %v", took)
				}
				if s := l.Stats(); s.Refused[gate.Connections] != 1 || s.Untold != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// Who is refused, and does not come to an end, is rid of after 2 s.
func TestRefusedDoNotStay(t *testing.T) {
	for name, fn := range map[string]func(c net.Conn){
		"says nothing": func(c net.Conn) {},
		"takes nothing": func(c net.Conn) {
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		},
		"takes one byte": func(c net.Conn) {
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
			_, _ = c.Read(make([]byte, 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, l := full(t, gate.ListenOptions{})
				c := n.dial("203.0.113.7")
				defer c.Close()
				fn(c)
				synctest.Wait()
				if s := l.Stats(); s.Untold != 0 {
					t.Errorf("at once: %+v", s)
				}
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if s := l.Stats(); s.Untold != 1 || s.Refused[gate.Connections] != 1 {
					t.Errorf("after 2 s: %+v", s)
				}
				if _, err := c.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("it is still there: %v", err)
				}
			})
		})
	}
}

func TestNotAllCanBeTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l := full(t, gate.ListenOptions{Answers: 2})
		var silent []net.Conn
		for range 2 {
			silent = append(silent, n.dial("203.0.113.7"))
		}
		for i := range 3 {
			c := n.dial("203.0.113.8")
			cut(t, c)
			if s := l.Stats(); s.Untold != uint64(i+1) {
				t.Errorf("%+v", s)
			}
			c.Close()
		}
		silent[0].Close()
		synctest.Wait()
		c := n.dial("203.0.113.8")
		told(t, c)
		c.Close()
		silent[1].Close()
		synctest.Wait()
		if s := l.Stats(); s.Untold != 5 || s.Refused[gate.Connections] != 6 {
			t.Errorf("%+v", s)
		}
	})
}

// Where few descriptors are kept, few of them are for those who are refused.
func TestAnswersAreBoundedByTheReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p process
		p.limit.Store(40) // half is kept
		n, l := full(t, gate.ListenOptions{Watch: p.watch(t, gate.WatchOptions{}, untoldMemory)})
		for range 15 {
			defer n.dial("203.0.113.7").Close()
		}
		synctest.Wait()
		if s := l.Stats(); s.Untold != 5 || s.Refused[gate.Connections] != 15 {
			t.Errorf("%+v", s)
		}
	})
}

func TestNobodyIsToldWhereTLSIsSpoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l := full(t, gate.ListenOptions{TLS: true})
		c := n.dial("203.0.113.7")
		defer c.Close()
		cut(t, c)
		if s := l.Stats(); s.Untold != 1 || s.Refused[gate.Connections] != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestCloseEndsThoseWhoAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l := full(t, gate.ListenOptions{})
		var silent []net.Conn
		for range 5 {
			silent = append(silent, n.dial("203.0.113.7"))
		}
		if _, err := io.WriteString(silent[0], "GET / HTTP/1.1\r\n"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		start := time.Now()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("it took %v", took)
		}
		if err := l.Close(); err != nil {
			t.Errorf("again: %v", err)
		}
		for _, c := range silent {
			cut(t, c)
			c.Close()
		}
		if s := l.Stats(); s.Open != 1 || s.Untold != 5 {
			t.Errorf("%+v", s)
		}
	})
}

func TestThoseWhoAreInStayAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l, in := listen(t, gate.ListenOptions{})
		mine := n.dial("203.0.113.7")
		defer mine.Close()
		theirs := let(in)
		l.Close()
		go func() { _, _ = io.WriteString(mine, "x") }()
		if _, err := io.ReadFull(theirs, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		theirs.Close()
		if s := l.Stats(); s.Open != 0 || s.Addresses != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// failed is an error as accept gives it.
func failed(errno syscall.Errno) error {
	return &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", errno)}
}

func TestAcceptSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l, in := listen(t, gate.ListenOptions{})
		errs := []error{
			failed(syscall.EMFILE), failed(syscall.ENFILE), failed(syscall.ECONNABORTED), failed(syscall.ECONNRESET), failed(syscall.ENOBUFS),
			failed(syscall.ENOMEM), failed(syscall.EINTR), failed(syscall.EAGAIN), failed(syscall.EPERM), failed(syscall.EPROTO),
			failed(syscall.ENETDOWN), failed(syscall.EHOSTUNREACH), syscall.EMFILE, os.ErrDeadlineExceeded, fmt.Errorf("wrapped: %w", failed(syscall.EMFILE)),
		}
		for i, err := range errs {
			if !gate.Passing(err) {
				t.Errorf("%v ends the server", err)
			}
			n.fail(err)
			defer n.dial("203.0.113.7").Close()
			time.Sleep(5 * time.Millisecond) // it begins anew after each success
			if c := let(in); c == nil {
				t.Fatalf("after %v nobody is let in", err)
			} else {
				defer c.Close()
			}
			if s := l.Stats(); s.Failures != uint64(i+1) {
				t.Errorf("%+v", s)
			}
		}
		for _, err := range []error{net.ErrClosed, io.EOF, failed(syscall.EBADF), failed(syscall.EINVAL), failed(syscall.ENOTSOCK), errors.New("no"), http.ErrServerClosed} {
			if gate.Passing(err) {
				t.Errorf("after %v it is tried again", err)
			}
		}
	})
}

func TestAcceptTriesEverMoreSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		n, l, in := listen(t, gate.ListenOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		start := time.Now()
		for range 130 {
			n.fail(failed(syscall.EMFILE))
		}
		defer n.dial("203.0.113.7").Close()
		c := <-in
		defer c.Close()
		// 5, 10, ..., 640 ms, then a second each time.
		if took, want := time.Since(start), 1275*time.Millisecond+122*time.Second; took != want {
			t.Errorf("it took %v, not %v", took, want)
		}
		if s := l.Stats(); s.Failures != 130 {
			t.Errorf("%+v", s)
		}
		if n := strings.Count(log.String(), "\n"); n != 3 || !strings.Contains(log.String(), "too many open files") {
			t.Errorf("%d lines in two minutes:\n%s", n, log.String())
		}
	})
}

func TestCloseEndsAnAcceptThatTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		l, err := gate.Listen(n, gate.ListenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			n.fail(failed(syscall.EMFILE))
		}
		got := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			got <- err
		}()
		time.Sleep(3 * time.Second)
		start := time.Now()
		l.Close()
		if err := <-got; !errors.Is(err, net.ErrClosed) || time.Since(start) > 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestAnErrorThatStaysIsReturned(t *testing.T) {
	n := newNetwork()
	l, err := gate.Listen(n, gate.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := failed(syscall.EINVAL)
	n.fail(want)
	if _, err := l.Accept(); !errors.Is(err, want) {
		t.Error(err)
	}
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestPanicWhileRefusingEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		n, l := full(t, gate.ListenOptions{Answers: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		mine, theirs := net.Pipe()
		n.came <- arrival{conn: &end{Conn: theirs, remote: remote("203.0.113.7"), read: func([]byte) (int, error) { panic("oh") }}}
		cut(t, mine)
		synctest.Wait()
		if s := l.Stats(); s.Untold != 1 || !strings.Contains(log.String(), "oh") {
			t.Errorf("%+v, %s", s, log.String())
		}
		c := n.dial("203.0.113.7") // it has given its place back
		told(t, c)
		c.Close()
	})
}

func TestManyComeAndGoAndAreCountedRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, each = 40, 15
		n := newNetwork()
		l, err := gate.Listen(n, gate.ListenOptions{Most: most, PerAddress: each, Answers: 8})
		if err != nil {
			t.Fatal(err)
		}
		var all, open, peak, dialled atomic.Int64
		var accepting, dialling sync.WaitGroup
		for range 4 {
			accepting.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					now := open.Add(1)
					for p := peak.Load(); now > p && !peak.CompareAndSwap(p, now); p = peak.Load() {
					}
					all.Add(1)
					accepting.Go(func() {
						_, _ = io.Copy(io.Discard, c)
						open.Add(-1)
						c.Close()
						c.Close()
					})
				}
			})
		}
		for i := range 60 {
			dialling.Go(func() {
				for j := range 40 {
					c := n.dial(address(i % 6).String())
					dialled.Add(1)
					time.Sleep(time.Duration(i*j%7) * time.Millisecond)
					c.Close()
				}
			})
		}
		dialling.Wait()
		synctest.Wait()
		s := l.Stats()
		if s.Open != 0 || s.Addresses != 0 || peak.Load() > most || uint64(dialled.Load()) != uint64(all.Load())+s.Refused[gate.Connections]+s.Refused[gate.AddressConnections] {
			t.Errorf("%+v; of %d came in %d, %d at a time", s, dialled.Load(), all.Load(), peak.Load())
		}
		l.Close()
		accepting.Wait()
	})
}

func TestConnectionGivesWhatIsWithin(t *testing.T) {
	l := loopback(t, gate.ListenOptions{})
	mine, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if within, ok := c.(interface{ NetConn() net.Conn }); !ok {
		t.Error("no NetConn")
	} else if _, ok := within.NetConn().(*net.TCPConn); !ok {
		t.Errorf("within is a %T", within.NetConn())
	}
	if raw, err := c.(syscall.Conn).SyscallConn(); err != nil || raw == nil {
		t.Error(raw, err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	cut(t, mine)

	synctest.Test(t, func(t *testing.T) {
		n, _, in := listen(t, gate.ListenOptions{})
		defer n.dial("203.0.113.7").Close()
		c := let(in)
		defer c.Close()
		if _, err := c.(syscall.Conn).SyscallConn(); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	})
}

func TestPeersAreTheirAddresses(t *testing.T) {
	for from, want := range map[net.Addr]string{
		remote("203.0.113.7"):        "203.0.113.7",
		remote("::ffff:203.0.113.7"): "203.0.113.7",
		remote("fe80::1%eth0"):       "fe80::1",
		remote(""):                   "invalid IP",
		(*net.TCPAddr)(nil):          "invalid IP",
		nil:                          "invalid IP",
		&net.IPAddr{IP: net.IPv4(203, 0, 113, 7)}:           "invalid IP", // without a port it is no peer of TCP
		&net.UDPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 5}: "203.0.113.7",
	} {
		if got := gate.PeerOf(&end{remote: from}); got.String() != want {
			t.Errorf("%v is %s, not %s", from, got, want)
		}
	}
}
