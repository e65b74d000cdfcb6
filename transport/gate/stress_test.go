package gate_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/transport/gate"
)

// Slow ones send a byte of a header now and then, half-open ones send nothing.
func TestSlowHeadersHoldNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow, half, others = 200, 50, 20
		n := newNetwork()
		l, err := gate.Listen(n, gate.ListenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var seen atomic.Int64
		serveHTTP(t, l, checked(t, &seen))
		var wg sync.WaitGroup
		start := time.Now()
		for i := range slow + half {
			c := n.dial(address(i).String())
			wg.Go(func() {
				// net/http takes half a request line for one that is wrong.
				got, err := io.ReadAll(c)
				if err != nil || len(got) > 0 && (i >= slow || !strings.HasPrefix(string(got), "HTTP/1.1 400 ")) {
					t.Errorf("it is told %q, %v", got, err)
				}
				if took := time.Since(start); took != 10*time.Second {
					t.Errorf("it is closed after %v", took)
				}
				c.Close()
			})
			if i >= slow {
				continue
			}
			wg.Go(func() {
				const head = "GET / HTTP/1.1\r\nHost: example.com\r\nX: "
				for j := 0; ; j++ {
					b := byte('x')
					if j < len(head) {
						b = head[j]
					}
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(700 * time.Millisecond)
				}
			})
		}
		synctest.Wait()
		if s := l.Stats(); s.Open != slow+half {
			t.Errorf("%+v", s)
		}
		for i := range others {
			wg.Go(func() {
				transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
					return n.dial(address(1000 + i).String()), nil
				}, DisableKeepAlives: i%2 == 0}
				defer transport.CloseIdleConnections()
				client := &http.Client{Transport: transport}
				for time.Since(start) < 12*time.Second {
					asked := time.Now()
					res, err := client.Get("http://example.com/")
					if err != nil {
						t.Error(err)
						return
					}
					res.Body.Close()
					if took := time.Since(asked); res.StatusCode != 204 || took > 0 {
						t.Errorf("%s after %v", res.Status, took)
					}
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		time.Sleep(time.Second) // net/http lingers before it closes
		if s := l.Stats(); s.Open != 0 || s.Addresses != 0 || len(s.Refused) != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// BenchmarkOthersWhileManyAreSlow measures the requests of others without and with 2,000
// connections that send a byte of a header every 2 s and 500 that send nothing: in turn,
// in one run of about 20 s, on loopback. It reports the 99th percentiles and their ratio,
// which should be at most 1.5: for a connection that is kept, and for a new one each time.
func BenchmarkOthersWhileManyAreSlow(b *testing.B) {
	const (
		slow, half = 2000, 500
		rounds     = 10
		each       = 900 * time.Millisecond // without, and again with
		pause      = 2 * time.Millisecond   // between two requests
	)
	if _, limit := gate.Files(); limit > 0 && limit < 2*(slow+half)+500 {
		b.Skipf("it needs %d descriptors, and may have %d (ulimit -n)", 2*(slow+half)+500, limit)
	}
	for b.Loop() { // once: it takes longer than -benchtime by itself
		l := loopback(b, gate.ListenOptions{})
		var seen atomic.Int64
		serveHTTP(b, l, checked(b, &seen))
		url := "http://" + l.Addr().String()
		var took [2][2][]time.Duration // without and with; kept and new
		for range rounds {
			measure(b, url, each, pause, &took[0])
			end := attack(b, l, slow, half)
			measure(b, url, each, pause, &took[1])
			end()
		}
		b.ReportMetric(0, "ns/op")
		for i, name := range []string{"kept", "new"} {
			without, with := p99(took[0][i]), p99(took[1][i])
			b.ReportMetric(float64(without.Microseconds()), name+"-p99-µs-without")
			b.ReportMetric(float64(with.Microseconds()), name+"-p99-µs-with")
			b.ReportMetric(float64(with)/float64(without), name+"-p99-ratio")
		}
		b.Logf("%d and %d requests without, %d and %d with", len(took[0][0]), len(took[0][1]), len(took[1][0]), len(took[1][1]))
	}
}

// measure asks by turns over a kept connection and over a new one.
func measure(b *testing.B, url string, d, pause time.Duration, took *[2][]time.Duration) {
	clients := [2]*http.Client{{Transport: &http.Transport{}}, {Transport: &http.Transport{DisableKeepAlives: true}}}
	defer clients[0].CloseIdleConnections()
	for i, end := 0, time.Now().Add(d); time.Now().Before(end); i++ {
		start := time.Now()
		res, err := clients[i%2].Get(url)
		if err != nil {
			b.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 204 {
			b.Fatal(res.Status)
		}
		if i > 0 { // the first one connects
			took[i%2] = append(took[i%2], time.Since(start))
		}
		time.Sleep(pause)
	}
}

// attack opens slow and half-open connections, and keeps the slow ones busy until end.
func attack(b *testing.B, l *gate.Listener, slow, half int) (end func()) {
	conns := make([]net.Conn, slow+half)
	for i := range conns {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		conns[i] = c
		if i < slow {
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: example.com\r\nX: "); err != nil {
				b.Fatal(err)
			}
		}
	}
	until(b, func() bool { return l.Stats().Open >= slow+half })
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i = (i + 1) % slow {
			select {
			case <-done:
				return
			case <-time.After(2 * time.Second / time.Duration(slow)):
			}
			if _, err := conns[i].Write([]byte("x")); err != nil {
				b.Errorf("a slow one is closed early: %v", err)
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
		for _, c := range conns {
			_ = c.(*net.TCPConn).SetLinger(0) // none stays behind in TIME_WAIT
			c.Close()
		}
		until(b, func() bool { return l.Stats().Open == 0 })
	}
}

func until(b *testing.B, done func() bool) {
	for start := time.Now(); !done(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			b.Fatal("it takes too long")
		}
	}
}

func p99(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)*99/100]
}
