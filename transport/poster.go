package transport

import (
	"bytes"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// poster is a client that posts changes over and over on one connection, which was taken over from net/http: there
// a request of one change, by one of 64 connections, cost 40 µs of CPU instead of 18.
//
// No head is parsed here. One that is, but for the number in Content-Length, byte for byte that of
// the request that net/http read before on this connection was let in as that one was. Anything else goes back to
// net/http with its bytes. The body is read as everywhere, and so are the answers made.
type poster struct {
	guest

	// Static after construction.
	before, after string // what stands around the length in the head that is known; "": none is
	call          call   // what its sender may
	then          func(hub.Result, error)

	// Owned by whoever serves the request under way.
	in       []byte    // what has come of a request that is not whole
	began    time.Time // when the first of it came
	answered bool      // the request is, by what follows
	result   hub.Result
	err      error
}

const (
	// mostRead is how much of a request is read at a time.
	mostRead = 16 << 10
	// mostLearned is the most bytes of a body that is waited for though nobody has let it in: so that net/http
	// gets the request whole, and its head can be known from then on.
	mostLearned = 64 << 10
)

// wholeWithin is how long a request may take to come; then net/http gets what there is of it. Tests set it.
var wholeWithin = stalled

// post answers a request of changes on a connection that it takes over. false: nothing was done.
func (s *Server) post(w http.ResponseWriter, r *http.Request, c call, result hub.Result) bool {
	if !s.steady(c.grant) || r.ContentLength <= 0 || r.Close {
		return false
	}
	p := &poster{call: c, answered: true, result: result}
	came, ok := p.takeOver(s, w, r, p)
	if !ok {
		return false
	}
	if l, ok := lengthIn(came); ok && len(came) == l.head+l.n && int64(l.n) == r.ContentLength {
		p.before, p.after = string(came[:l.from]), string(came[l.to:l.head])
	}
	p.then = p.outcome
	p.watch()
	p.work(&sends{plain: true})
	return true
}

// next is a host's.
func (p *poster) next() { p.server.crew.add(p) }

// called is a host's: no request is held.
func (p *poster) called() {}

// tired is a host's. Who has sent half of a request is told so by net/http.
func (p *poster) tired() {
	if len(p.in) > 0 {
		p.giveBack(p.in)
	} else {
		p.close()
	}
}

// ended is a host's.
func (p *poster) ended() {}

// work does what is to be done now, without waiting. Answers go out with others.
func (p *poster) work(out *sends) {
	defer p.recover()
	_ = withBuffer(func(b []byte) ([]byte, error) {
		if p.answered {
			return p.reply(b, out), nil
		}
		b = slices.Grow(b, mostRead)[:mostRead]
		for p.read(b) {
		}
		return b, nil
	})
}

// recover makes a panic cost the connection, not the process.
func (p *poster) recover() {
	if v := recover(); v != nil {
		p.server.opts.Logger.Error("panic in a write", "panic", v)
		p.close()
	}
}

// read reads what has come, and begins what it asks for. It tells whether there may be more.
func (p *poster) read(b []byte) (more bool) {
	n, over := arrived(p.raw, b, false)
	if over {
		p.close()
		return false
	}
	request := b[:n]
	if p.in != nil {
		p.in = append(p.in, request...)
		request = p.in
	}
	known, total, ok := p.size(request)
	switch {
	case n == 0:
	case !ok || total > 0 && len(request) > total:
		p.refer(request)
		return false
	case total > 0 && len(request) == total:
		if n == len(b) { // there may be more, which nobody is told of
			p.mu.Lock()
			p.again()
			p.mu.Unlock()
		}
		whole := p.in
		if p.in = nil; known == 0 || p.server.changed(p.call.hub) {
			p.refer(request)
		} else {
			p.begin(request[known:])
		}
		if whole != nil {
			keep(&whole)
		}
		return false
	case p.in == nil:
		// Not all at once: that it is to be long costs its sender nothing.
		p.in, p.began = append(room(max(min(total, mostRead), n)), request...), time.Now()
	}
	if n == len(b) {
		return true
	}
	if p.in == nil {
		p.await(p.patience)
	} else {
		p.await(wholeWithin - time.Since(p.began))
	}
	return false
}

// room is an empty buffer for n bytes.
func room(n int) []byte {
	p := buffers.Get().(*[]byte)
	if cap(*p) >= n {
		return (*p)[:0]
	}
	buffers.Put(p)
	return make([]byte, 0, n)
}

// refer gives a request to net/http.
func (p *poster) refer(request []byte) {
	p.in = nil
	go p.giveBack(slices.Clone(request)) // it may have to wait
}

// size is how many bytes a request has, which has come so far: total 0 where that is not known yet, known those of the
// head if it is known. Not ok: it is not one to be answered here.
func (p *poster) size(request []byte) (known, total int, ok bool) {
	if head, n, same := p.same(request); same {
		if head == 0 {
			return 0, 0, true
		}
		return head, head + n, int64(n) <= p.server.opts.Body
	}
	const method = "POST "
	if !bytes.HasPrefix(request, []byte(method)) && !bytes.HasPrefix([]byte(method), request) {
		return 0, 0, false
	}
	if !bytes.Contains(request, []byte("\r\n\r\n")) {
		return 0, 0, len(request) < mostAsked
	}
	l, ok := lengthIn(request)
	return 0, l.head + l.n, ok && l.n <= mostLearned
}

// same tells whether a request has the head that is known, as far as it has come; head 0: not all of that has.
func (p *poster) same(request []byte) (head, n int, same bool) {
	if p.before == "" {
		return 0, 0, false
	}
	if len(request) < len(p.before) {
		return 0, 0, string(request) == p.before[:len(request)]
	}
	if string(request[:len(p.before)]) != p.before {
		return 0, 0, false
	}
	rest := request[len(p.before):]
	digits := digitsOf(rest)
	if len(digits) == len(rest) {
		return 0, 0, len(digits) <= mostDigits
	}
	n, ok := number10(digits)
	rest = rest[len(digits):]
	if !ok || string(rest[:min(len(rest), len(p.after))]) != p.after[:min(len(rest), len(p.after))] {
		return 0, 0, false
	}
	if len(rest) < len(p.after) {
		return 0, 0, true
	}
	return len(p.before) + len(digits) + len(p.after), n, true
}

// begin begins what a body asks for.
func (p *poster) begin(raw []byte) {
	if len(p.call.grant.Filters) == 0 {
		p.enter(raw)
		return
	}
	own := slices.Clone(raw)
	go func() { // they may take their time, and others wait for who serves this
		defer p.recover()
		p.enter(own)
	}()
}

// enter puts it in line.
func (p *poster) enter(raw []byte) {
	p.strikes = max(0, p.strikes-1) // so that one who asks other things every few writes stays with net/http in the end
	b, err := readBody(raw)
	if err == nil {
		var req hub.Request
		if req, err = b.request(p.call.tenant); err == nil {
			err = p.call.hub.BeginThen(p.call.grant, req, p.then)
		}
	}
	if err != nil {
		p.outcome(hub.Result{}, err)
	}
}

// outcome is called when a request is durable, or refused.
func (p *poster) outcome(r hub.Result, err error) {
	p.result, p.err, p.answered = r, err, true
	p.server.crew.add(p)
}

// reply answers the request under way.
func (p *poster) reply(b []byte, out *sends) []byte {
	result, err := p.result, p.err
	p.result, p.err, p.answered = hub.Result{}, nil, false
	if err == nil && result.Refused {
		err = refused(result)
	}
	_ = withBuffer(func(body []byte) ([]byte, error) {
		if err == nil {
			body = append(appendAnswer(append(body, '{'), result), '\n')
			b = append(b, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"...)
		} else {
			w := recorder{header: http.Header{}}
			p.server.failed(err, http.MethodPost, "/v1/{tenant}/changes", nil).write(&w)
			body = append(body, w.body...)
			b = w.appendHead(b)
		}
		b = append(strconv.AppendInt(append(p.appendCommon(b, p.vary), "Content-Length: "...), int64(len(body)), 10), "\r\n\r\n"...)
		b = append(b, body...)
		return body, nil
	})
	left, waits := b, false
	if p.raw != nil {
		left, waits = out.copied(p.raw, b, p)
	}
	if !waits {
		p.sent(left)
	}
	return b
}

// sent is a sender's: of an answer.
func (p *poster) sent(left []byte) {
	if len(left) == 0 {
		p.goOn()
		return
	}
	rest := slices.Clone(left)
	go func() {
		if _, err := p.conn.Write(rest); err != nil {
			p.close()
			return
		}
		p.goOn()
	}()
}

// length is where a head says how long the body is.
type length struct {
	from, to int // of the number
	n        int // the number
	head     int // bytes of the head
}

// mostDigits is how many digits of a length are read here.
const mostDigits = 9

// lengthIn finds the length in a request. Not ok: the head is not whole, has none, or says other things as well
// of what follows it.
func lengthIn(request []byte) (l length, ok bool) {
	end := bytes.Index(request, []byte("\r\n\r\n"))
	if end < 0 {
		return l, false
	}
	l.head = end + 4
	// A line may end with \n alone, to net/http: not here, where the head could be a shorter one to it.
	if bytes.Count(request[:l.head], []byte("\n")) != bytes.Count(request[:l.head], []byte("\r\n")) {
		return l, false
	}
	for at := bytes.Index(request, []byte("\r\n")) + 2; at < end+2; {
		line := request[at : at+bytes.Index(request[at:], []byte("\r\n"))]
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if l.to > 0 {
				return l, false
			}
			l.to = at + len(bytes.TrimRight(line, " \t"))
			number := bytes.Trim(value, " \t")
			l.from = l.to - len(number)
			if l.n, ok = number10(number); !ok {
				return l, false
			}
		case len(line) == 0 || line[0] == ' ' || line[0] == '\t' || slices.ContainsFunc(speaksOfBody, func(s string) bool { return bytes.EqualFold(name, []byte(s)) }):
			return l, false
		}
		at += len(line) + 2
	}
	return l, ok
}

// digitsOf is the digits that a text begins with.
func digitsOf(text []byte) []byte {
	n := 0
	for n < len(text) && text[n] >= '0' && text[n] <= '9' {
		n++
	}
	return text[:n]
}

// number10 reads a whole number as net/http does, but for those that are too large or begin with a 0.
func number10(digits []byte) (n int, ok bool) {
	if len(digits) == 0 || len(digits) > mostDigits || digits[0] == '0' && len(digits) > 1 {
		return 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

// recorder keeps an answer.
type recorder struct {
	header http.Header
	status int
	body   []byte
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) { r.status = status }

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	r.body = append(r.body, b...)
	return len(b), nil
}

// appendHead appends the status line and the header fields.
func (r *recorder) appendHead(dst []byte) []byte {
	dst = append(strconv.AppendInt(append(dst, "HTTP/1.1 "...), int64(r.status), 10), ' ')
	return appendFields(append(append(dst, http.StatusText(r.status)...), "\r\n"...), r.header)
}

// crew does what posters have to do, on as few goroutines as keep up with it: none is woken for each request, and
// each answer.
type crew struct {
	plain bool // see sends

	mu    sync.Mutex
	jobs  []*poster // guarded by mu
	from  int       // guarded by mu: the first that nobody has taken
	hands int       // guarded by mu
	desks []*sends  // guarded by mu: those that no hand uses
}

// atATime is how many jobs one goroutine takes before others may help.
const atATime = 16

func (c *crew) add(p *poster) {
	c.mu.Lock()
	c.jobs = append(c.jobs, p)
	help := c.hands == 0 || len(c.jobs)-c.from > atATime*c.hands && c.hands < runtime.GOMAXPROCS(0)
	var out *sends
	if help {
		c.hands++
		if n := len(c.desks); n > 0 {
			out, c.desks = c.desks[n-1], c.desks[:n-1]
		}
	}
	c.mu.Unlock()
	if help {
		if out == nil {
			out = &sends{plain: c.plain}
		}
		go c.run(out)
	}
}

func (c *crew) run(out *sends) {
	deepen()
	var mine [atATime]*poster
	for {
		c.mu.Lock()
		n := copy(mine[:], c.jobs[c.from:])
		clear(c.jobs[c.from : c.from+n])
		if c.from += n; c.from == len(c.jobs) {
			c.jobs, c.from = c.jobs[:0], 0
		}
		idle := n == 0 && len(out.all) == 0
		if idle {
			c.hands--
			c.desks = append(c.desks, out)
		}
		c.mu.Unlock()
		if idle {
			return
		}
		for _, p := range mine[:n] {
			p.work(out)
		}
		if n < atATime { // what comes next may take its time
			out.flush()
		}
	}
}
