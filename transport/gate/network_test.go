package gate_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/tidemark-sync/tidemark/transport/gate"
)

// network is a listener whose connections are pipes, from wherever a test says.
type network struct {
	came chan arrival
	done chan struct{}
	stop func()
}

type arrival struct {
	conn net.Conn
	err  error
}

func newNetwork() *network {
	done := make(chan struct{})
	return &network{came: make(chan arrival, 4096), done: done, stop: sync.OnceFunc(func() { close(done) })}
}

func (n *network) Accept() (net.Conn, error) {
	select {
	case a := <-n.came:
		return a.conn, a.err
	case <-n.done:
		return nil, net.ErrClosed
	}
}

func (n *network) Close() error {
	n.stop()
	return nil
}

func (n *network) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }

// end is one end of a pipe, with the address of the other.
type end struct {
	net.Conn
	remote net.Addr
	read   func(b []byte) (int, error) // nil: the pipe's
}

func (e *end) RemoteAddr() net.Addr { return e.remote }

func (e *end) Read(b []byte) (int, error) {
	if e.read != nil {
		return e.read(b)
	}
	return e.Conn.Read(b)
}

// dial connects from an address; "" is a Unix socket's.
func (n *network) dial(from string) net.Conn {
	mine, theirs := net.Pipe()
	n.came <- arrival{conn: &end{Conn: theirs, remote: remote(from)}}
	return mine
}

func remote(from string) net.Addr {
	if from == "" {
		return &net.UnixAddr{Name: "@", Net: "unix"}
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 50_000))
}

// fail makes the next Accept fail.
func (n *network) fail(err error) { n.came <- arrival{err: err} }

// listen makes a Listener that accepts until the test ends, or it is closed. in gets
// those that were let in.
func listen(t testing.TB, o gate.ListenOptions) (n *network, l *gate.Listener, in chan net.Conn) {
	t.Helper()
	n = newNetwork()
	l, err := gate.Listen(n, o)
	if err != nil {
		t.Fatal(err)
	}
	in = make(chan net.Conn, 4096)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			in <- c
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
		for len(in) > 0 {
			(<-in).Close()
		}
	})
	return n, l, in
}

// let is the connection that was let in; nil: nobody was.
func let(in chan net.Conn) net.Conn {
	synctest.Wait()
	select {
	case c := <-in:
		return c
	default:
		return nil
	}
}

// told asks over a connection that is refused, and is the answer.
func told(t testing.TB, c net.Conn) (detail string, retry int) {
	t.Helper()
	if _, err := io.WriteString(c, "GET /v1/t/feed?c=a HTTP/1.1\r\nHost: example.com\r\n\r\n"); err != nil {
		t.Fatalf("ask: %v", err)
	}
	return answered(t, c)
}

// answered reads the answer of who refuses, and that nothing comes after it.
func answered(t testing.TB, c net.Conn) (detail string, retry int) {
	t.Helper()
	b := bufio.NewReader(c)
	res, err := http.ReadResponse(b, nil)
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	defer res.Body.Close()
	detail, retry = refusedBy(t, res)
	if rest, err := io.ReadAll(b); len(rest) > 0 || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("then %q, %v", rest, err)
	}
	return detail, retry
}

// refusedBy checks that an answer is a problem of the protocol: 503, for everybody to read.
func refusedBy(t testing.TB, res *http.Response) (detail string, retry int) {
	t.Helper()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Errorf("read the body: %v", err)
	}
	var p struct {
		Type, Title, Detail, Code string
		Status                    int
	}
	if err := json.Unmarshal(body, &p); err != nil {
		t.Errorf("%q: %v", body, err)
	}
	if res.StatusCode != 503 || p.Status != 503 || p.Code != "unavailable" || p.Type != "urn:tidemark:problem:unavailable" || p.Title != "Service Unavailable" || p.Detail == "" {
		t.Errorf("%s with %s", res.Status, body)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/problem+json", "Cache-Control": "no-store",
		"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Retry-After",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: %q, not %q", name, got, want)
		}
	}
	if !res.Close {
		t.Error("it does not say that the connection ends")
	}
	if retry, err = strconv.Atoi(res.Header.Get("Retry-After")); err != nil || retry < 5 || retry > 15 {
		t.Errorf("Retry-After: %q", res.Header.Get("Retry-After"))
	}
	return p.Detail, retry
}

// cut reads from a connection that must end without a word.
func cut(t testing.TB, c net.Conn) {
	t.Helper()
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil {
		t.Errorf("it is told %q, %v", got, err)
	}
}
