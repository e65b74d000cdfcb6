package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
)

// dial connects to a server for HTTP/1.1, until ctx ends.
func dial(ctx context.Context, base *url.URL) (c net.Conn, leave func(), err error) {
	var d net.Dialer
	host := base.Host
	if base.Port() == "" {
		host = net.JoinHostPort(host, map[string]string{"http": "80", "https": "443"}[base.Scheme])
	}
	if c, err = d.DialContext(ctx, "tcp", host); err != nil {
		return nil, nil, err
	}
	if base.Scheme == "https" {
		c = tls.Client(c, &tls.Config{ServerName: base.Hostname(), NextProtos: []string{"http/1.1"}})
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	return c, func() { stop(); c.Close() }, nil
}

// sender posts one request after another on one connection. http.Client hands each to two goroutines, and
// took more of the machine than the server that was measured.
type sender struct {
	base  *url.URL
	head  string   // of a request, up to its length
	conn  net.Conn // nil: none yet, or the server has closed it
	leave func()
	in    *bufio.Reader
	buf   []byte
}

func (x *run) sender() *sender {
	return &sender{base: x.base, head: "POST " + x.base.Path + "/v1/" + url.PathEscape(x.o.Tenant) + "/changes HTTP/1.1\r\nHost: " + x.base.Host +
		"\r\nContent-Type: application/json\r\n" + x.o.header + "Content-Length: "}
}

func (s *sender) close() {
	if s.conn != nil {
		s.leave()
	}
	s.conn = nil
}

// send posts a body, and returns the answer.
func (s *sender) send(ctx context.Context, body []byte) (res *http.Response, answer []byte, err error) {
	if s.conn == nil {
		if s.conn, s.leave, err = dial(ctx, s.base); err != nil {
			return nil, nil, err
		}
		s.in = bufio.NewReaderSize(s.conn, 4096)
	}
	s.buf = append(strconv.AppendInt(append(s.buf[:0], s.head...), int64(len(body)), 10), "\r\n\r\n"...)
	s.buf = append(s.buf, body...)
	if _, err := s.conn.Write(s.buf); err != nil {
		return nil, nil, err
	}
	if res, err = http.ReadResponse(s.in, nil); err != nil {
		return nil, nil, err
	}
	if answer, err = io.ReadAll(res.Body); res.Close {
		s.close()
	}
	return res, answer, err
}
