package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// A batch ends when it holds this much. Two are in memory at a time: one that is being
// handed out, and the next. The server builds a batch while appends wait, so it
// must not be large: 4 MiB take about 3 ms.
const (
	maxBatch      = 4 << 20
	maxBatchCount = 1024
)

// errMissing is returned for a message that should be there and can't be read.
var errMissing = errors.New("missing")

// Read calls fn with each group after the position given; see feed.Log. The log's
// end is that of the moment when Read is called. What fn returns is returned.
func (l *Log) Read(ctx context.Context, after feed.Position, fn func(feed.Position, []byte) error) error {
	if err := l.enter(); err != nil {
		return err
	}
	defer l.calls.Done()
	r := &reader{from: after + 1}
	l.mu.Lock()
	floor := l.floor
	l.readers[r] = struct{}{} // before the state is looked at, so that Trim can't come between
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.readers, r)
		l.mu.Unlock()
	}()
	state, err := l.state(ctx)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if last := position(state.LastSeq); after > last {
		return &feed.Damage{At: after, What: fmt.Sprintf("the log ends before it, at %d", last)}
	}
	if first := max(floor, position(state.FirstSeq)); after+1 < first {
		return &feed.Damage{At: after + 1, What: fmt.Sprintf("it was trimmed; the log begins at %d", first)}
	}
	var last uint64
	err = l.scan(ctx, logStream, sequence(after+1), state.LastSeq, func(seq uint64, b []byte) error {
		last = seq
		return fn(position(seq), b)
	})
	if errors.Is(err, errMissing) {
		at := position(max(last+1, sequence(after+1)))
		return &feed.Damage{At: at, What: fmt.Sprintf("the log reaches to %d, and this group is missing, or its bytes are not whole", position(state.LastSeq))}
	}
	return err
}

// scan calls fn with the messages from one sequence to another, each. The first that
// can't be read ends it with errMissing. It leaves nothing behind in the server.
func (l *Log) scan(ctx context.Context, stream string, from, to uint64, fn func(seq uint64, b []byte) error) error {
	if from > to {
		return nil
	}
	q, err := l.ask(stream)
	if err != nil {
		return err
	}
	defer q.sub.Unsubscribe()
	if err := q.request(from, to); err != nil {
		return err
	}
	for from <= to {
		batch, whole, err := q.collect(ctx)
		if err != nil {
			return err
		}
		var gap error
		if !whole {
			// Rare: something is missing, or the server did not get to the end of it. Ask for
			// each by its number, to know which.
			batch, gap = l.oneByOne(ctx, stream, from, to)
		}
		next := from + uint64(len(batch))
		if gap == nil && next <= to {
			if err := q.request(next, to); err != nil { // while fn is busy with this one
				return err
			}
		}
		for i, b := range batch {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(from+uint64(i), b); err != nil {
				return err
			}
		}
		if gap != nil {
			return gap
		}
		from = next
	}
	return nil
}

// query reads a stream in batches, by JetStream's direct get: there is no consumer to
// lose, to stall or to clean up. One batch is under way at a time.
type query struct {
	l      *Log
	stream string
	inbox  string
	sub    *nats.Subscription
	ch     chan *nats.Msg

	// The request under way.
	number int
	reply  string
	from   uint64
}

func (l *Log) ask(stream string) (*query, error) {
	// Room for a batch and its end, and as much again for one that came too late.
	q := &query{l: l, stream: stream, inbox: nats.NewInbox(), ch: make(chan *nats.Msg, 2*(maxBatchCount+1))}
	var err error
	if q.sub, err = l.nats.Load().nc.ChanSubscribe(q.inbox+".*", q.ch); err != nil {
		return nil, fmt.Errorf("read the stream %s: %w", stream, orClosed(err))
	}
	return q, nil
}

// request asks for the messages from one sequence on, as many as a batch takes.
func (q *query) request(from, to uint64) error {
	body, err := json.Marshal(server.JSApiMsgGetRequest{
		Seq:      from,
		Batch:    int(min(to-from+1, maxBatchCount)),
		MaxBytes: maxBatch,
		// The headers would double the cost, and say what the end of the batch says for all.
		NoHeaders: true,
	})
	if err != nil {
		return fmt.Errorf("encode a request: %w", err)
	}
	q.number++
	q.reply, q.from = q.inbox+"."+strconv.Itoa(q.number), from
	if err := q.l.nats.Load().nc.PublishRequest("$JS.API.DIRECT.GET."+q.stream, q.reply, body); err != nil {
		return fmt.Errorf("read the stream %s: %w", q.stream, orClosed(err))
	}
	return nil
}

// collect waits for the batch under way. It is whole if it holds, beginning with the first
// sequence asked for, one message for each sequence up to some other: the messages
// come in order, so that is so if they are as many as the last one's sequence says.
func (q *query) collect(ctx context.Context) (batch [][]byte, whole bool, err error) {
	timeout := time.NewTimer(q.l.opts.Timeout)
	defer timeout.Stop()
	for {
		var m *nats.Msg
		select {
		case m = <-q.ch:
		default:
			select {
			case m = <-q.ch:
			case <-timeout.C:
				return nil, false, nil
			case <-ctx.Done():
				return nil, false, ctx.Err()
			case <-q.l.done:
				return nil, false, ErrClosed
			}
		}
		if m.Subject != q.reply {
			continue // of a batch that was given up
		}
		if m.Header == nil {
			batch = append(batch, m.Data)
			continue
		}
		// The end, "204 EOB", or why there is none.
		last, err := strconv.ParseUint(m.Header.Get(server.JSLastSequence), 10, 64)
		whole = err == nil && len(batch) > 0 && last == q.from+uint64(len(batch))-1
		return batch, whole, nil
	}
}

// oneByOne reads a batch a message at a time, and stops with an error at the first
// that it can't read.
func (l *Log) oneByOne(ctx context.Context, stream string, from, to uint64) (batch [][]byte, err error) {
	for size := 0; from <= to && size < maxBatch && len(batch) < maxBatchCount; from++ {
		b, err := l.get(ctx, stream, from)
		if err != nil {
			return batch, err
		}
		batch = append(batch, b)
		size += len(b)
	}
	return batch, nil
}

// get reads one message; errMissing if there is none with that sequence.
func (l *Log) get(ctx context.Context, stream string, seq uint64) ([]byte, error) {
	body, err := json.Marshal(server.JSApiMsgGetRequest{Seq: seq})
	if err != nil {
		return nil, fmt.Errorf("encode a request: %w", err)
	}
	m, err := l.nats.Load().request(ctx, &nats.Msg{Subject: "$JS.API.DIRECT.GET." + stream, Data: body})
	if err != nil {
		return nil, fmt.Errorf("read the stream %s at %d: %w", stream, seq, err)
	}
	switch status := m.Header.Get("Status"); status {
	case "":
	case "404":
		return nil, errMissing
	default:
		return nil, fmt.Errorf("read the stream %s at %d: status %s %s", stream, seq, status, m.Header.Get("Description"))
	}
	if got := m.Header.Get(server.JSSequence); got != strconv.FormatUint(seq, 10) {
		return nil, errMissing
	}
	return m.Data, nil
}
