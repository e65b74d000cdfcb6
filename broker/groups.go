package broker

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// groups stores groups in the stream LOG: by the stream's own store, past the connection. It
// does what the server does with a message that is published to a stream (from
// processJetStreamMsgWithBatch in server/stream.go of nats-server 2.15), less what is for clients. On the
// way there and back through a connection a group is handed on by some ten goroutines; where
// changes come one by one, 2,000 a second with five followers each, that was a quarter of all CPU.
//
// The stream's own idea of its last sequence stays behind. Nothing asks it: the server
// tells the state of a stream by its store, and purges by it too. What is read, trimmed and
// checkpointed goes through the connection as before.
type groups struct {
	// Static after construction.
	store server.StreamStore
	turn  chan struct{} // room for one: a group is under way
	todo  chan *storing
	over  chan struct{} // closed by close
	ended chan struct{} // closed when no group is stored any more

	closing sync.Once

	header, body []byte // of the message under way; owned by whoever has the turn
}

// storing is a group under way.
type storing struct {
	after uint64
	done  chan error // room for one
}

// newGroups takes the store of a stream that is there.
func newGroups(srv *server.Server) (*groups, error) {
	store, err := storeOf(srv, logStream)
	if err != nil {
		return nil, err
	}
	g := &groups{
		store: store, turn: make(chan struct{}, 1), todo: make(chan *storing),
		over: make(chan struct{}), ended: make(chan struct{}),
	}
	go g.run()
	return g, nil
}

// close ends who waits in put. A group may be under way until ended is closed. The store is the server's to close.
func (g *groups) close() { g.closing.Do(func() { close(g.over) }) }

// run stores what is put. It is a goroutine of its own because a disk may take as long as it
// likes, and who puts may not wait for that.
func (g *groups) run() {
	defer close(g.ended)
	for {
		select {
		case s := <-g.todo:
			err := g.write(s.after)
			if cap(g.body) > 2*feed.GroupSize {
				g.body = nil
			}
			<-g.turn
			s.done <- err
		case <-g.over:
			return
		}
	}
}

// write stores the message under way right after the sequence given.
func (g *groups) write(after uint64) error {
	var state server.StreamState
	g.store.FastState(&state)
	if state.LastSeq != after {
		return feed.ErrFenced // nobody else writes, so it ends there when the message comes, too
	}
	switch seq, _, err := g.store.StoreMsg(logSubject, g.header, g.body, 0); {
	case err != nil:
		return fmt.Errorf("%w: %w", feed.ErrUnknown, err)
	case seq != after+1:
		return &feed.Damage{What: fmt.Sprintf("a message for %s %d was stored as %d", logStream, after+1, seq)}
	}
	return nil
}

// put stores a group right after the sequence given; errors are as publish's. Where the time is over
// first, or ctx, or the server fails, the outcome is unknown, and whoever puts next waits until it is settled.
func (e *embedded) put(ctx context.Context, after uint64, group []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g, failing := e.groups.Load(), e.log.failing
	timer := time.NewTimer(e.timeout)
	defer timer.Stop()
	late := func() error {
		select {
		case <-g.over:
			return ErrClosed
		case <-failing.Done():
			return e.failure()
		case <-ctx.Done():
			return ctx.Err()
		default:
			return fmt.Errorf("no answer within %s", e.timeout)
		}
	}
	unknown := func() error { return fmt.Errorf("%w: %w", feed.ErrUnknown, late()) }
	if failing.Err() != nil {
		return unknown()
	}
	select {
	case g.turn <- struct{}{}:
	default:
		select {
		case g.turn <- struct{}{}:
		case <-failing.Done():
			return unknown()
		case <-g.over:
			return fmt.Errorf("nothing was written: %w", late())
		case <-ctx.Done():
			return fmt.Errorf("nothing was written: %w", late())
		case <-timer.C:
			return fmt.Errorf("nothing was written, and what became of the group before is not known: %w", late())
		}
	}
	g.header = strconv.AppendUint(append(g.header[:0], "NATS/1.0\r\n"+server.JSExpectedLastSeq+": "...), after, 10)
	g.header = append(g.header, "\r\n\r\n"...)
	g.body = append(g.body[:0], group...)
	s := &storing{after, make(chan error, 1)}
	select {
	case g.todo <- s:
	case <-g.over:
		<-g.turn
		return fmt.Errorf("nothing was written: %w", late())
	}
	select {
	case err := <-s.done:
		return err
	case <-g.over:
	case <-failing.Done():
	case <-ctx.Done():
	case <-timer.C:
	}
	select {
	case err := <-s.done: // that as well
		return err
	default:
		return unknown()
	}
}

// storeOf is the store of a stream of the server's only account. The server shows it to
// nobody, so it is read out of the server's memory, with the locks that guard it; where a server of another version
// keeps it elsewhere, that is an error.
func storeOf(srv *server.Server, stream string) (store server.StreamStore, err error) {
	defer func() {
		if v := recover(); v != nil { // of reflect, for what is missing, or of another type
			err = fmt.Errorf("this version of the NATS server keeps its streams in a way that is not known here: %v", v)
		}
	}()
	field := func(of reflect.Value, name string) reflect.Value {
		f := of.Elem().FieldByName(name)
		return reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())) // what is not exported can't be used else
	}
	locked := func(of reflect.Value) *sync.RWMutex {
		mu := field(of, "mu").Interface().(*sync.RWMutex)
		mu.RLock()
		return mu
	}
	account := reflect.ValueOf(srv.GlobalAccount())
	mu := locked(account)
	ours := field(account, "js").Elem()
	mu.RUnlock()
	defer locked(ours).RUnlock()
	found := field(ours, "streams").Elem().MapIndex(reflect.ValueOf(stream))
	if !found.IsValid() {
		return nil, errors.New("the stream " + stream + " is not there")
	}
	return found.Interface().(interface{ Store() server.StreamStore }).Store(), nil
}
