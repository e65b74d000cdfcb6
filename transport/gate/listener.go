package gate

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ListenOptions of a Listener. 0 is the default.
type ListenOptions struct {
	// Most is how many connections there are at a time. Default 65,536; where the process
	// may have fewer descriptors, see Watch.
	Most int
	// PerAddress is how many of them are of one address. Default 2,000, but at most half of
	// Most and of the descriptors that Watch leaves, and no limit of their own for loopback
	// addresses. A peer without an IP address counts in all only, and so do trusted proxies.
	PerAddress int
	// Trusted are proxies; see ParseTrusted. Default: none.
	Trusted []netip.Prefix
	// TLS says that it is spoken on these connections: who is refused is then told
	// nothing, since that would need a handshake.
	TLS bool
	// Answers is how many refused connections may be under way to be told. Beyond them
	// the refused are closed at once. Default 64, at most half of Watch's reserve.
	Answers int
	// Watch is asked for each connection. Default: nobody is.
	Watch *Watch
	// Logger gets errors of accept, one a minute at most. Default: nobody.
	Logger *slog.Logger
}

// Listener bounds the connections of another listener.
//
// Over a limit a connection is accepted and told, in plain HTTP, 503 with Retry-After;
// then it is closed. It has 2 s in all to send its request and to take the answer; what
// came of the request in 1.5 s is answered as if it were all. Nobody is waited for by
// Accept.
//
// An error of accept that may pass (no descriptor left, no memory, a network error of a
// connection that never came to be) is not returned: Accept tries again, after 5 ms at
// first and 1 s at last. net/http would end the server at some of them.
type Listener struct {
	// Static after construction.
	inner   net.Listener
	opts    ListenOptions
	chosen  bool          // PerAddress
	done    chan struct{} // closed by Close
	end     func()        // closes done
	answers sync.WaitGroup

	failures atomic.Uint64
	logged   atomic.Int64 // when an error of accept was logged last, Unix seconds

	mu        sync.Mutex
	closed    bool
	open      int
	addresses map[netip.Addr]int // no zeros: as many as there are connections, at most
	answering map[net.Conn]struct{}
	refused   map[Short]uint64
	untold    uint64
}

// ListenStats are counts of a Listener.
type ListenStats struct {
	Open      int              // connections now
	Addresses int              // that they are of
	Refused   map[Short]uint64 // connections so far, by what was short
	Untold    uint64           // of them, those that were closed without an answer
	Failures  uint64           // errors of accept so far
}

// Listen makes a Listener of l, which it owns from now on: Close closes l. What tunes
// connections by their type goes around it and asks NetConn, which they have like
// tls.Conn: transport.Listen(gate.Listen(l)).
func Listen(l net.Listener, o ListenOptions) (*Listener, error) {
	var err error
	if o.Most, err = setting("connections", o.Most, 1<<16); err != nil {
		return nil, err
	}
	room := o.Most
	if o.Watch != nil {
		if r := o.Watch.Reading(); r.DescriptorLimit > 0 {
			room = min(room, r.DescriptorLimit-r.DescriptorReserve)
		}
	}
	chosen := o.PerAddress > 0
	if o.PerAddress, err = setting("connections per address", o.PerAddress, max(1, min(2000, room/2))); err != nil {
		return nil, err
	}
	if o.Answers, err = setting("answers to refused connections", o.Answers, 64); err != nil {
		return nil, err
	}
	for _, p := range o.Trusted {
		if !p.IsValid() {
			return nil, errors.New("a prefix of trusted proxies is none: use ParseTrusted")
		}
	}
	if o.Watch != nil {
		if r := o.Watch.Reading(); r.DescriptorLimit > 0 {
			o.Answers = max(1, min(o.Answers, r.DescriptorReserve/2))
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	done := make(chan struct{})
	return &Listener{
		inner: l, opts: o, chosen: chosen, done: done, end: sync.OnceFunc(func() { close(done) }),
		addresses: map[netip.Addr]int{}, answering: map[net.Conn]struct{}{}, refused: map[Short]uint64{},
	}, nil
}

// Addr is the address of the listener within.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Close closes the listener within, and cuts off who is being told of a refusal.
// Connections that were accepted stay.
func (l *Listener) Close() error {
	l.end()
	err := l.inner.Close()
	l.mu.Lock()
	l.closed = true
	for c := range l.answering {
		_ = c.Close()
	}
	l.mu.Unlock()
	l.answers.Wait()
	return err
}

// Stats counts.
func (l *Listener) Stats() ListenStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return ListenStats{Open: l.open, Addresses: len(l.addresses), Refused: maps.Clone(l.refused), Untold: l.untold, Failures: l.failures.Load()}
}

// Accept waits for the next connection that is let in.
func (l *Listener) Accept() (net.Conn, error) {
	for pause := time.Duration(0); ; {
		c, err := l.inner.Accept()
		if err != nil {
			if !passing(err) {
				return nil, err
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			if err := l.wait(err, pause); err != nil {
				return nil, err
			}
			continue
		}
		pause = 0
		addr := peerOf(c)
		counted := addr.IsValid() && !contains(l.opts.Trusted, addr)
		if why := l.enter(addr, counted); why != nil {
			l.refuse(c, why)
			continue
		}
		return &conn{Conn: c, listener: l, addr: addr, counted: counted}, nil
	}
}

// wait waits after an error of accept, until the listener is closed.
func (l *Listener) wait(err error, pause time.Duration) error {
	l.failures.Add(1)
	now := time.Now().Unix()
	if last := l.logged.Load(); (last == 0 || now-last >= 60) && l.logged.CompareAndSwap(last, now) {
		l.opts.Logger.Warn("can't accept connections; trying again", "err", err, "failures", l.failures.Load())
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-l.done:
		return net.ErrClosed
	}
}

// passing tells whether accept may succeed after err. See accept(2), "Error handling".
func passing(err error) bool {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		switch errno {
		case syscall.ECONNABORTED, syscall.ECONNRESET, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR, syscall.EAGAIN, syscall.EPERM,
			syscall.EPROTO, syscall.ENOPROTOOPT, syscall.EOPNOTSUPP, syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ETIMEDOUT:
			return true
		}
	}
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// enter counts a connection, or refuses it. Watch is asked last: whom it lets in it
// counts, and who is over a limit here must not take what others may have.
func (l *Listener) enter(addr netip.Addr, counted bool) (why *Refusal) {
	if why = l.count(addr, counted); why == nil {
		err := l.opts.Watch.Admit(Connection)
		if !errors.As(err, &why) {
			return nil
		}
		l.leave(addr, counted)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused[why.Short]++
	return why
}

func (l *Listener) count(addr netip.Addr, counted bool) *Refusal {
	free := exempt(addr, l.chosen)
	addr = bounded(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.open >= l.opts.Most:
		return busy(Connections, "the server has no room for more connections: come back later")
	case counted && !free && l.addresses[addr] >= l.opts.PerAddress:
		return busy(AddressConnections, fmt.Sprintf("your address has %d connections; it may have no more: close one", l.opts.PerAddress))
	}
	l.open++
	if counted {
		l.addresses[addr]++
	}
	return nil
}

func busy(what Short, detail string) *Refusal {
	return &Refusal{
		Status: http.StatusServiceUnavailable, Code: codeUnavailable, Short: what, Retry: between(5*time.Second, 15*time.Second),
		Detail: detail,
	}
}

func (l *Listener) leave(addr netip.Addr, counted bool) {
	addr = bounded(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if counted {
		if l.addresses[addr]--; l.addresses[addr] == 0 {
			delete(l.addresses, addr)
		}
	}
}

// conn is a connection that was let in. It counts until it is closed.
type conn struct {
	net.Conn
	listener *Listener
	addr     netip.Addr
	counted  bool
	left     atomic.Bool
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	if !c.left.Swap(true) {
		c.listener.leave(c.addr, c.counted)
	}
	return err
}

// NetConn is the connection within: who tunes sockets needs it.
func (c *conn) NetConn() net.Conn { return c.Conn }

// CloseWrite lets net/http end an answer to somebody who is still sending without a
// reset, which would take the answer away from them.
func (c *conn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// SyscallConn gives the socket, where there is one.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return s.SyscallConn()
}
