package gate

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Bounds of telling somebody that they are refused.
const (
	answerWithin = 2 * time.Second
	askWithin    = 1500 * time.Millisecond // of it; then what came of the request is answered
	answerHead   = HeaderBytes             // bytes of a request that are read for its end
	answerRest   = 64 << 10                // bytes that are read after the answer
)

// refuse closes c, and tells it why if there is room for that. It does not wait.
func (l *Listener) refuse(c net.Conn, why *Refusal) {
	l.mu.Lock()
	if l.closed || l.opts.TLS || len(l.answering) >= l.opts.Answers {
		l.untold++
		l.mu.Unlock()
		_ = c.Close()
		return
	}
	l.answering[c] = struct{}{}
	l.answers.Add(1)
	l.mu.Unlock()
	go func() {
		defer l.answers.Done()
		told := false
		defer func() {
			if v := recover(); v != nil { // of a listener that others made: it must not end the process
				l.opts.Logger.Error("panic while refusing a connection", "panic", v)
			}
			_ = c.Close()
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.answering, c)
			if !told {
				l.untold++
			}
		}()
		told = answer(c, why)
	}()
}

// answer reads a request, answers it, and reads on until the peer has gone: a client
// that is answered before it has asked takes that for an error, and who is closed with
// something unread is sent a reset, which may overtake the answer. Close ends it by
// closing c.
func answer(c net.Conn, why *Refusal) (told bool) {
	start := time.Now()
	_ = c.SetDeadline(start.Add(answerWithin))
	_ = c.SetReadDeadline(start.Add(askWithin))
	buf := make([]byte, 1024)
	came, line := 0, 1 // line: bytes of the current line, without its end
	for ended := false; !ended && came < answerHead; {
		n, err := c.Read(buf)
		for _, b := range buf[:n] {
			switch b {
			case '\n':
				ended = ended || line == 0
				line = 0
			case '\r':
			default:
				line++
			}
		}
		if came += n; err != nil {
			break
		}
	}
	if came == 0 {
		return false
	}
	if _, err := c.Write(why.response()); err != nil {
		return false
	}
	if half, ok := c.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = c.SetReadDeadline(start.Add(answerWithin))
		_, _ = io.Copy(io.Discard, io.LimitReader(c, answerRest))
	}
	return true
}

// response is the refusal as an answer of HTTP/1.1. Any page may read it, without
// credentials: there is nothing in it about anybody, and who can't read Retry-After
// comes back at once.
func (r *Refusal) response() []byte {
	body, err := json.Marshal(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Code   string `json:"code"`
	}{"urn:tidemark:problem:" + r.Code, http.StatusText(r.Status), r.Status, r.Detail, r.Code})
	if err != nil {
		panic(err) // strings and a number
	}
	body = append(body, '\n')
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\nRetry-After: %d\r\n"+
		"Cache-Control: no-store\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: Retry-After\r\nConnection: close\r\n\r\n%s",
		r.Status, http.StatusText(r.Status), len(body), r.seconds(), body)
}

// seconds is Retry as Retry-After says it.
func (r *Refusal) seconds() int64 { return max(1, int64((r.Retry+time.Second-1)/time.Second)) }
