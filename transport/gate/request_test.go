package gate_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/transport/gate"
)

func TestURLsAreBounded(t *testing.T) {
	for n, ok := range map[int]bool{1: true, gate.URLBytes: true, gate.URLBytes + 1: false, 1 << 20: false} {
		target := "/" + strings.Repeat("x", n-1)
		network, _ := http.NewRequest("GET", "http://example.com/", nil)
		network.RequestURI = target
		within, _ := http.NewRequest("GET", "http://example.com/", nil)
		within.URL = &url.URL{Path: target}
		for _, r := range []*http.Request{network, within} {
			err := gate.CheckRequest(r)
			if (err == nil) != ok {
				t.Errorf("%d bytes: %v", n, err)
			}
			if err != nil {
				if r := refusal(t, err); r.Status != 414 || r.Code != "too-large" || r.Short != gate.URL {
					t.Errorf("%+v", r)
				}
			}
		}
	}
	if err := gate.CheckRequest(&http.Request{}); err != nil {
		t.Errorf("a request of nothing: %v", err)
	}
}

func TestHeaderFieldsAreBounded(t *testing.T) {
	for name, fill := range map[string]func(h http.Header, i int){
		"different ones": func(h http.Header, i int) { h.Set(fmt.Sprint("X-", i), "") },
		"one name":       func(h http.Header, i int) { h.Add("X", "") },
		"two names":      func(h http.Header, i int) { h.Add(fmt.Sprint("X-", i%2), "") },
	} {
		for n, ok := range map[int]bool{0: true, gate.Fields: true, gate.Fields + 1: false, 5000: false} {
			r := httptest.NewRequest("GET", "/", nil)
			for i := range n {
				fill(r.Header, i)
			}
			err := gate.CheckRequest(r)
			if (err == nil) != ok {
				t.Errorf("%s, %d of them: %v", name, n, err)
			}
			if err != nil {
				if r := refusal(t, err); r.Status != 431 || r.Code != "too-many" || r.Short != gate.HeaderFields {
					t.Errorf("%+v", r)
				}
			}
		}
	}
}

// checked answers as the product's handlers do: 204, or 400 where the body can't be read.
func checked(t testing.TB, seen *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		if err := gate.CheckRequest(r); err != nil {
			w.WriteHeader(refusal(t, err).Status)
			return
		}
		for _, h := range []http.Header{r.Header, r.Trailer} {
			for name, values := range h {
				if strings.Contains(strings.ToLower(name), "injected") || strings.ContainsAny(name+strings.Join(values, ""), "\r\n\x00") {
					t.Errorf("%s: %q has come through", name, values)
				}
			}
		}
		if strings.Contains(r.URL.Path, "smuggled") {
			t.Errorf("%s %s has come through", r.Method, r.URL)
		}
		if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 1<<20)); err != nil {
			w.WriteHeader(400)
			return
		}
		w.WriteHeader(204)
	})
}

// wrong are requests that are wrong, or look so, as they come.
var wrong = func() []wrongRequest {
	const (
		get  = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
		post = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
		end  = "\r\n"
	)
	chunks := func(s string) string { return post + "Transfer-Encoding: chunked\r\n\r\n" + s }
	many := func(n int) string {
		var b strings.Builder
		for i := range n - 1 { // and Connection
			fmt.Fprintf(&b, "X-%d: x\r\n", i)
		}
		return b.String()
	}
	x := func(n int) string { return strings.Repeat("x", n) }
	is := func(name, send string, want ...int) wrongRequest {
		return wrongRequest{name: name, send: send, want: want}
	}
	cut := func(name, send string, want ...int) wrongRequest {
		return wrongRequest{name: name, send: send, want: want, cut: true}
	}
	return []wrongRequest{
		// The header.
		is("a space before the colon", get+"X : y\r\n"+end, 400),
		is("a tab before the colon", get+"X\t: y\r\n"+end, 400),
		is("no colon", get+"nonsense\r\n"+end, 400),
		is("no name", get+": y\r\n"+end, 400),
		is("a NUL in a name", get+"X\x00Y: y\r\n"+end, 400),
		is("a NUL in a value", get+"X: a\x00b\r\n"+end, 400),
		is("a CR in a name", get+"X\rInjected: y\r\n"+end, 400),
		is("a CR in a value", get+"X: a\rInjected: y\r\n"+end, 400),
		is("a CR before CRLF", get+"X: a\r\r\n"+end, 400),
		is("an ESC in a value", get+"X: \x1b[2J\r\n"+end, 400),
		is("a DEL in a value", get+"X: a\x7fb\r\n"+end, 400),
		is("a name that is no token", get+"X(Y): y\r\n"+end, 400),
		is("a name in UTF-8", get+"Ünï: y\r\n"+end, 400),
		is("a space before the first field", "GET / HTTP/1.1\r\n Host: a\r\n"+end, 400),
		is("a field that is folded", get+"X: a\r\n Injected: y\r\n"+end, 204), // is one value
		is("a value in Latin 1", get+"X: \xfc\r\n"+end, 204),
		is("lines that end in LF alone", "GET / HTTP/1.1\nHost: a\nConnection: close\n\n", 204),
		is("CR LF in the target, encoded", "GET /a%0d%0aInjected:%20y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+end, 204),
		is("CR LF in the query, encoded", "GET /?a=%0d%0aInjected:%20y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+end, 204),

		// How long it is.
		is("a header of 16 KiB", get+"X: "+x(gate.HeaderBytes-len(get)-7)+"\r\n"+end, 204),
		is("a header of a byte more", get+"X: "+x(gate.HeaderBytes-len(get)-6)+"\r\n"+end, 431),
		is("a header of 16 KiB and more", get+"X: "+x(17<<10)+"\r\n"+end, 431),
		is("a header of a megabyte", get+"X: "+x(1<<20)+"\r\n"+end, 431),
		is("a header of 16 KiB and more, of many fields", get+strings.Repeat("X: "+x(500)+"\r\n", 40)+end, 431),
		is("a name of 16 KiB and more", get+x(17<<10)+": x\r\n"+end, 431),
		is("100 header fields", get+many(100)+end, 204),
		is("101 header fields", get+many(101)+end, 431),
		is("101 header fields of one name", get+strings.Repeat("Cookie: a=b\r\n", 100)+end, 431),
		is("a URL of 8 KiB", "GET /"+x(8<<10-1)+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+end, 204),
		is("a URL of 9 KiB", "GET /"+x(9<<10-1)+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+end, 414),
		is("a query of 9 KiB", "GET /?"+x(9<<10)+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+end, 414),
		is("a URL of 17 KiB", "GET /"+x(17<<10)+" HTTP/1.1\r\nHost: a\r\n"+end, 431),
		is("a method of 17 KiB", x(17<<10)+" / HTTP/1.1\r\nHost: a\r\n"+end, 431),
		is("17 KiB of NUL", strings.Repeat("\x00", 17<<10), 431),

		// Where the body ends.
		is("two lengths", post+"Content-Length: 5\r\nContent-Length: 6\r\n"+end+"hello!", 400),
		is("two lengths on one line", post+"Content-Length: 5, 6\r\n"+end+"hello!", 400),
		is("a length twice on one line", post+"Content-Length: 5, 5\r\n"+end+"hello", 400),
		is("a length twice", post+"Content-Length: 5\r\nContent-Length: 5\r\n"+end+"hello", 204),
		is("a length below 0", post+"Content-Length: -1\r\n"+end, 400),
		is("a length with a plus", post+"Content-Length: +5\r\n"+end+"hello", 400),
		is("a length in hexadecimal", post+"Content-Length: 0x5\r\n"+end+"hello", 400),
		is("a length with a space", post+"Content-Length: 1 2\r\n"+end+"hello", 400),
		is("a length with a unit", post+"Content-Length: 5b\r\n"+end+"hello", 400),
		is("a length of nothing", post+"Content-Length:\r\n"+end, 400),
		is("a length beyond 64 bit", post+"Content-Length: 99999999999999999999\r\n"+end, 400),
		is("more than a body may have", post+"Content-Length: 2000000\r\n"+end+x(2_000_000), 400),
		is("a length, and chunks", post+"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"+end+"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", 204), // Connection: close
		is("a length that is none, and chunks", post+"Content-Length: x\r\nTransfer-Encoding: chunked\r\n"+end+"0\r\n\r\n", 400),
		is("two encodings", post+"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"+end+"0\r\n\r\n", 501),
		is("two encodings on one line", post+"Transfer-Encoding: gzip, chunked\r\n"+end+"0\r\n\r\n", 501),
		is("chunked twice", post+"Transfer-Encoding: chunked, chunked\r\n"+end+"0\r\n\r\n", 501),
		is("chunked, and identity", post+"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"+end+"0\r\n\r\n", 501),
		is("an encoding that is not known", post+"Transfer-Encoding: xchunked\r\n"+end+"0\r\n\r\n", 501),
		is("an encoding after a vertical tab", post+"Transfer-Encoding: \x0bchunked\r\n"+end+"0\r\n\r\n", 400),
		is("an encoding in quotes", post+"Transfer-Encoding: \"chunked\"\r\n"+end+"0\r\n\r\n", 501),
		is("an encoding of nothing", post+"Transfer-Encoding:\r\n"+end, 501),
		is("chunks in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.0\r\n\r\n", 204), // closed after it

		// Chunks.
		is("a chunk size that is none", chunks("zz\r\nhello\r\n0\r\n\r\n"), 400),
		is("a chunk size of nothing", chunks("\r\nhello\r\n0\r\n\r\n"), 400),
		is("a chunk size below 0", chunks("-5\r\nhello\r\n0\r\n\r\n"), 400),
		is("a chunk size with 0x", chunks("0x5\r\nhello\r\n0\r\n\r\n"), 400),
		is("a chunk size beyond 64 bit", chunks("fffffffffffffffff\r\nhello\r\n0\r\n\r\n"), 400),
		is("a chunk longer than it says", chunks("3\r\nhello\r\n0\r\n\r\n"), 400),
		is("a chunk size that ends in LF", chunks("5\nhello\r\n0\r\n\r\n"), 400),
		is("a chunk that ends in LF", chunks("5\r\nhello\n0\r\n\r\n"), 400),
		is("a CR in a chunk extension", chunks("5;a\rb\r\nhello\r\n0\r\n\r\n"), 400),
		is("a chunk extension of 5 KiB", chunks("5;"+x(5<<10)+"\r\nhello\r\n0\r\n\r\n"), 400),
		is("chunk extensions of much more than there is data", chunks(strings.Repeat("1;"+x(200)+"\r\nx\r\n", 500)+"0\r\n\r\n"), 400),
		is("a trailer without a colon", chunks("0\r\nnonsense\r\n\r\n"), 400),
		is("a NUL in a trailer", chunks("0\r\nX\x00: y\r\n\r\n"), 400),
		is("a trailer of 20 KiB", chunks("0\r\nX: "+x(20<<10)+"\r\n\r\n"), 400),
		is("a trailer that was not announced", chunks("0\r\nInjected: y\r\n\r\n"), 204), // left out
		is("a trailer that must be in the header", post+"Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\nContent-Length: 5\r\n\r\n", 400),

		// Host.
		is("no Host", "GET / HTTP/1.1\r\n\r\n", 400),
		is("two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
		is("the same Host twice", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
		is("a Host with a space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
		is("a Host with a NUL", "GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n", 400),
		is("a Host with markup", "GET / HTTP/1.1\r\nHost: <script>\r\n\r\n", 400),

		// The request line.
		is("an absolute target", "GET http://b/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 204), // RFC 9112, 3.2.2
		is("a target without a slash", "GET nonsense HTTP/1.1\r\nHost: a\r\n\r\n", 400),
		is("no target", "GET  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
		is("a space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
		is("a tab in the target", "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400),
		is("a NUL in the target", "GET /a\x00b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
		is("a percent sign with nothing", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
		is("the server as a whole", "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
		is("no method", " / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
		is("a method that is no token", "GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
		is("a NUL in the method", "G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
		is("an empty line before it", "\r\n"+get+end, 400),
		is("a tab for a space", "GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),

		// The protocol.
		is("HTTP/0.9", "GET /\r\n", 400),
		is("HTTP/2.0 in words", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
		is("HTTP/3.0", "GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
		is("HTTP/0.1", "GET / HTTP/0.1\r\nHost: a\r\n\r\n", 505),
		is("HTTP/1.10", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
		is("HTTP in small letters", "GET / http/1.1\r\nHost: a\r\n\r\n", 400),
		is("another protocol", "SSH-2.0-OpenSSH_9.9\r\n", 400),
		is("another protocol with a verb", "HELO example.com\r\n", 400),
		is("HTTP/2 in clear, known beforehand", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 204), // see TestHTTP2InClearStaysOff
		is("HTTP/2 in clear, asked for", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", 204),
		is("an expectation that is not known", get+"Expect: wonders\r\n"+end, 417),
		is("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x0a\x00\x0a", 400),

		// What ends before its end.
		cut("nothing", ""),
		cut("half a request line", "GET / HT", 400),
		cut("half a header", get+"X: y", 400),
		cut("a header without its end", get, 400),
		cut("half a body", post+"Content-Length: 10\r\n\r\nhello", 400),
		cut("half a chunk", chunks("a\r\nhello"), 400),
		cut("chunks without the last", chunks("5\r\nhello\r\n"), 400),
		cut("TLS, without a line", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),

		// A good one before it.
		is("nonsense after a good one", "GET / HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n", 204, 400),
		is("a body of a GET is no request", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 26\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"+get+end, 204, 204),
		is("chunks are no request", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1a\r\nGET /smuggled HTTP/1.1\r\n\r\n\r\n0\r\n\r\n"+get+end, 204, 204),
	}
}()

type wrongRequest struct {
	name string
	send string
	want []int // the statuses of the answers; then the connection is closed
	cut  bool  // the client then sends no more, which net/http would wait for
}

var statusLine = regexp.MustCompile(`HTTP/1\.[01] (\d{3}) `)

func TestMalformedRequestsAreRefusedByTheServer(t *testing.T) {
	var seen atomic.Int64
	l := loopback(t, gate.ListenOptions{})
	serveHTTP(t, l, checked(t, &seen))
	address := l.Addr().String()
	for _, c := range wrong {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second)) // 10 s would be the server's patience
			start := time.Now()
			_, _ = io.WriteString(conn, c.send) // the server may stop reading before its end
			if c.cut {
				_ = conn.(*net.TCPConn).CloseWrite()
			}
			answer, err := io.ReadAll(conn)
			if err != nil && len(answer) == 0 { // who sends more than is read may be reset after the answer
				t.Errorf("read: %v", err)
			}
			var got []int
			for _, m := range statusLine.FindAllSubmatch(answer, -1) {
				var status int
				fmt.Sscan(string(m[1]), &status)
				got = append(got, status)
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("it is answered %v, not %v: %.300q", got, c.want, answer)
			}
			if took := time.Since(start); took > 8*time.Second {
				t.Errorf("it was kept for %v", took)
			}
			good(t, address)
		})
	}
	if n := len(wrong); n < 40 {
		t.Errorf("only %d", n)
	}
}

// good asks for something that is right, on a new connection.
func good(t testing.TB, address string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, "GET /v1/t/feed?c=a HTTP/1.1\r\nHost: example.com\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != 204 {
		t.Fatalf("a good one is answered %v, %v", res, err)
	}
	res.Body.Close()
}

// net/http hands the preface to handlers, as PRI *; it must not lead to HTTP/2.
func TestHTTP2InClearStaysOff(t *testing.T) {
	l := loopback(t, gate.ListenOptions{})
	var seen atomic.Int64
	serveHTTP(t, l, checked(t, &seen))
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: &protocols}}
	defer client.CloseIdleConnections()
	if res, err := client.Get("http://" + l.Addr().String()); err == nil {
		t.Errorf("it is answered: %s %s", res.Proto, res.Status)
		res.Body.Close()
	}
	good(t, l.Addr().String())
}

func TestTLSOnThePlainPortIsRefused(t *testing.T) {
	l := loopback(t, gate.ListenOptions{})
	var seen atomic.Int64
	serveHTTP(t, l, checked(t, &seen))
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	if c, err := d.DialContext(ctx, "tcp", l.Addr().String()); err == nil {
		t.Error("there is TLS")
		c.Close()
	} else if ctx.Err() != nil {
		t.Errorf("it is kept waiting: %v", err)
	}
	if seen.Load() != 0 {
		t.Error("a handler has seen it")
	}
	good(t, l.Addr().String())
}
