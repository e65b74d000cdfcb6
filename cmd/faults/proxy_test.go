package faults_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy is a network between writers and a server that loses, doubles and delays.
type proxy struct {
	to     string
	addr   string
	server *http.Server
	client *http.Client
	calm   atomic.Bool // it carries everything once, and at once
	late   sync.WaitGroup

	mu  sync.Mutex
	rng *rand.Rand // guarded by mu

	cutBefore, cutAfter, cutAmid, doubled, delayed atomic.Int64
}

func newProxy(t testing.TB, to string, seed uint64) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{to: to, addr: l.Addr().String(), rng: rand.New(rand.NewPCG(seed, 77)), client: &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}}
	p.server = &http.Server{Handler: http.HandlerFunc(p.carry)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = p.server.Serve(l) // it ends with Close
	}()
	t.Cleanup(func() {
		p.server.Close()
		<-served
		p.late.Wait()
		p.client.CloseIdleConnections()
	})
	return p
}

func (p *proxy) chance(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rng.IntN(n)
}

// settle makes it calm, and returns when nothing is on its way any more.
func (p *proxy) settle() {
	p.calm.Store(true)
	p.late.Wait()
}

func (p *proxy) carry(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if p.calm.Load() {
		p.answer(w, r, body)
		return
	}
	switch p.chance(12) {
	case 0:
		p.cutBefore.Add(1)
		panic(http.ErrAbortHandler)
	case 1, 2:
		p.cutAfter.Add(1)
		if res, err := p.send(r, body); err == nil {
			res.Body.Close()
		}
		panic(http.ErrAbortHandler)
	case 3:
		p.cutAmid.Add(1)
		p.half(r, body)
		panic(http.ErrAbortHandler)
	case 4, 5: // twice, one right after the other; the answer is the second's
		p.doubled.Add(1)
		if res, err := p.send(r, body); err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	case 6: // twice at once
		p.doubled.Add(1)
		p.later(r, body, 0)
	case 7: // and once more when nobody expects it
		p.doubled.Add(1)
		p.later(r, body, time.Duration(p.chance(1500))*time.Millisecond)
	case 8: // late, and its sender has given up by then
		p.delayed.Add(1)
		p.later(r, body, time.Duration(p.chance(800))*time.Millisecond)
		panic(http.ErrAbortHandler)
	case 9:
		p.delayed.Add(1)
		time.Sleep(time.Duration(p.chance(300)) * time.Millisecond)
	}
	p.answer(w, r, body)
}

func (p *proxy) send(r *http.Request, body []byte) (*http.Response, error) {
	req, err := http.NewRequest(r.Method, "http://"+p.to+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = r.Header.Clone()
	return p.client.Do(req)
}

func (p *proxy) later(r *http.Request, body []byte, after time.Duration) {
	r = r.Clone(r.Context())
	p.late.Go(func() {
		time.Sleep(after)
		if res, err := p.send(r, body); err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	})
}

// half sends the beginning of a request and hangs up.
func (p *proxy) half(r *http.Request, body []byte) {
	c, err := net.DialTimeout("tcp", p.to, time.Second)
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n", r.Method, r.URL.RequestURI(), p.to, len(body))
	if len(body) > 0 {
		fmt.Fprintf(c, "\r\n%s", body[:p.chance(len(body))])
	}
}

func (p *proxy) answer(w http.ResponseWriter, r *http.Request, body []byte) {
	res, err := p.send(r, body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil && !errors.Is(err, io.EOF) {
		panic(http.ErrAbortHandler)
	}
	for name, values := range res.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(res.StatusCode)
	_, _ = w.Write(b) // whoever is gone has no answer
}
