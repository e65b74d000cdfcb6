package load

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
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

// sender posts one request after another on one connection, and keeps its memory. http.Client hands each to two
// goroutines, and took more of the machine than the server that was measured; to make and read each with the
// standard library's encoders took as much as it.
type sender struct {
	base  *url.URL
	head  string   // of a request, up to its length
	conn  net.Conn // nil: none yet, or the server has closed it
	leave func()
	used  time.Time // when it was used last
	in    *bufio.Reader
	buf   []byte

	body   []byte   // of the request, for whoever makes it
	answer []byte   // to it
	seqs   []uint64 // that were in that, for whoever reads it
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

// idle is how long a connection may rest and be used again: a server, or a proxy, may be about to close it later.
const idle = 5 * time.Second

// answerWithin is how long a write may take.
const answerWithin = 30 * time.Second

// send posts a body, and returns the answer, which is valid until the next.
func (s *sender) send(ctx context.Context, body []byte) (status int, answer []byte, err error) {
	if s.conn != nil && time.Since(s.used) > idle {
		s.close()
	}
	if s.conn == nil {
		if s.conn, s.leave, err = dial(ctx, s.base); err != nil {
			return 0, nil, err
		}
		s.in = bufio.NewReaderSize(s.conn, 4096)
	}
	s.buf = append(strconv.AppendInt(append(s.buf[:0], s.head...), int64(len(body)), 10), "\r\n\r\n"...)
	s.buf = append(s.buf, body...)
	_ = s.conn.SetDeadline(time.Now().Add(answerWithin))
	if _, err := s.conn.Write(s.buf); err != nil {
		return 0, nil, err
	}
	defer func() { s.used = time.Now() }()
	return s.read()
}

// read reads an answer: one that is as the server's are without a map of its headers, and any other with net/http.
func (s *sender) read() (status int, answer []byte, err error) {
	if _, err := s.in.Peek(1); err != nil {
		return 0, nil, err
	}
	text, _ := s.in.Peek(s.in.Buffered())
	if status, size, length, plain := plainHead(text); plain {
		_, _ = s.in.Discard(length) // which is there
		s.answer = append(s.answer[:0], make([]byte, size)...)
		_, err = io.ReadFull(s.in, s.answer)
		return status, s.answer, err
	}
	res, err := http.ReadResponse(s.in, nil)
	if err != nil {
		return 0, nil, err
	}
	if answer, err = io.ReadAll(res.Body); res.Close {
		s.close()
	}
	return res.StatusCode, answer, err
}

// plainHead reads the head of an answer that is all there, that has a body of a length, and after which the
// connection goes on.
func plainHead(b []byte) (status, size, length int, plain bool) {
	head, _, whole := bytes.Cut(b, []byte("\r\n\r\n"))
	rest, is := bytes.CutPrefix(head, []byte("HTTP/1.1 "))
	if !whole || !is {
		return 0, 0, 0, false
	}
	size = -1
	for line := range bytes.SplitSeq(rest, []byte("\r\n")) {
		if status == 0 {
			status = int(digits(line))
			continue
		}
		switch name, value, _ := bytes.Cut(line, []byte(":")); {
		case bytes.EqualFold(name, []byte("Content-Length")):
			size = int(digits(bytes.TrimSpace(value)))
		case bytes.EqualFold(name, []byte("Transfer-Encoding")), bytes.EqualFold(name, []byte("Connection")):
			return 0, 0, 0, false
		}
	}
	return status, size, len(head) + 4, status >= 200 && 0 <= size && size <= 64<<20
}

var seqMark = []byte(`"seq":`)

// sequences appends those of the results of an answer. The values in it are this package's, and have no such name.
func sequences(dst []uint64, answer []byte) []uint64 {
	for {
		_, rest, is := bytes.Cut(answer, seqMark)
		if !is {
			return dst
		}
		dst, answer = append(dst, digits(rest)), rest
	}
}
