package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/tidemark-sync/tidemark/sync/fault"
	"github.com/tidemark-sync/tidemark/sync/feed"
)

// The streams, each with its one subject.
const (
	logStream         = "LOG"
	logSubject        = "log"
	checkpointStream  = "CHECKPOINT"
	checkpointSubject = "checkpoint"
)

// epochKey names the log in a stream's metadata.
const epochKey = "tidemark.epoch"

// startWithin is how long the server may take until it takes connections. It has read
// its streams back before that clock starts.
const startWithin = time.Minute

// maxMessage is the largest message: a group or a framed part, and the headers.
const maxMessage = max(feed.MaxGroup, feed.MaxPart) + 64<<10

// syncEvery is how often a relaxed log is made durable.
const syncEvery = time.Second

// embedded is a JetStream server in this process, and the one connection to it, which
// is a pipe in memory; groups go past it. Its methods may be called concurrently.
type embedded struct {
	// Static after construction.
	srv     *server.Server
	nc      *nats.Conn
	dir     string        // below which its files are
	timeout time.Duration // of each request
	log     *serverLog
	groups  atomic.Pointer[groups] // nil before takeGroups
	stopped sync.Once
	// cut is closed once this server is stopped for good and what it had not acknowledged is
	// cut off the log: it certainly was not written.
	cut chan struct{}
}

// failing tells whether the server could not write, and so takes nothing any more.
func (e *embedded) failing() bool { return e.log.failing.Err() != nil }

// failure is why a server that is failing answers nobody.
func (e *embedded) failure() error {
	return fmt.Errorf("%w: %w", errFailing, context.Cause(e.log.failing))
}

// startServer starts a server on the files below dir and reads back what they hold.
func startServer(dir string, opts Options) (*embedded, error) {
	logger := &serverLog{to: opts.Logger}
	logger.failing, logger.fail = context.WithCancelCause(context.Background())
	srv, err := server.NewServer(&server.Options{
		ServerName: "tidemark",
		// No port is opened, and signals stay with the program.
		DontListen: true,
		NoSigs:     true,

		JetStream:              true,
		StoreDir:               filepath.Join(dir, natsName),
		SyncAlways:             !opts.Relaxed && !fault.Bug("ack-before-fsync"), // a write is acknowledged when it is durable
		SyncInterval:           syncEvery,                                       // where it is not
		JetStreamMaxMemory:     1,                                               // nothing is stored in memory; 0 would mean 3/4 of it
		JetStreamMaxStore:      opts.maxStore,
		DisableJetStreamBanner: true,

		MaxPayload: maxMessage,
		// The most that may wait on the pipe for us to read it; beyond, the server hangs
		// up. A batch of a read is below maxBatch plus one message.
		MaxPending: 256 << 20,
	})
	if err != nil {
		return nil, fmt.Errorf("configure the embedded NATS server: %w", err)
	}
	srv.SetLoggerV2(logger, false, false, false)
	e := &embedded{srv: srv, dir: dir, timeout: opts.Timeout, log: logger, cut: make(chan struct{})}
	srv.Start()
	if why := logger.fatal.Load(); why != nil {
		e.stop()
		return nil, fmt.Errorf("start the embedded NATS server: %s", *why)
	}
	if !srv.ReadyForConnections(startWithin) || !srv.JetStreamEnabled() {
		e.stop()
		return nil, fmt.Errorf("the embedded NATS server was not ready within %s", startWithin)
	}
	e.nc, err = nats.Connect("", nats.InProcessServer(srv), nats.Name("tidemark"),
		nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond),
		// What can't be sent now is not sent later: its caller has long been told.
		nats.ReconnectBufSize(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			opts.Logger.Warn("connection to the embedded NATS server", "err", err)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // nil: we closed it
				opts.Logger.Warn("lost the connection to the embedded NATS server", "err", err)
			}
		}))
	if err != nil {
		e.stop()
		return nil, fmt.Errorf("connect to the embedded NATS server: %w", err)
	}
	return e, nil
}

// hangUp ends what waits for an answer. It may be called again.
func (e *embedded) hangUp() {
	if e.nc != nil {
		e.nc.Close()
	}
	if g := e.groups.Load(); g != nil {
		g.close()
	}
}

// takeGroups lets groups be put, once the stream LOG is there.
func (e *embedded) takeGroups() error {
	g, err := newGroups(e.srv)
	if err == nil {
		e.groups.Store(g)
	}
	return err
}

// stop hangs up, stops the server, and waits for it. It may be called again.
func (e *embedded) stop() {
	e.stopped.Do(func() {
		e.hangUp()
		if g := e.groups.Load(); g != nil {
			<-g.ended
		}
		e.srv.Shutdown()
		e.srv.WaitForShutdown()
	})
}

// streamConfigs is what the streams are made with, all defaults written out, so that
// what the server says of a stream can be compared with it.
func streamConfigs(epoch feed.Epoch) []server.StreamConfig {
	log := server.StreamConfig{
		Name:         logStream,
		Subjects:     []string{logSubject},
		Metadata:     map[string]string{epochKey: string(epoch)},
		Storage:      server.FileStorage,
		Retention:    server.LimitsPolicy,
		Discard:      server.DiscardNew, // a full store refuses; it never forgets by itself
		Replicas:     1,
		MaxConsumers: -1,
		MaxMsgs:      -1,
		MaxBytes:     -1,
		MaxMsgsPer:   -1,
		MaxMsgSize:   -1,
		Compression:  server.NoCompression,
		Duplicates:   100 * time.Millisecond, // the least; not used, and a longer one is re-read at each start
		AllowDirect:  true,                   // for reads
		DenyDelete:   true,                   // trimming purges, which is another right
	}
	checkpoints := log
	checkpoints.Name, checkpoints.Subjects = checkpointStream, []string{checkpointSubject}
	return []server.StreamConfig{log, checkpoints}
}

// createStream makes a stream that is not there.
func (e *embedded) createStream(ctx context.Context, want server.StreamConfig) error {
	var resp server.JSApiStreamCreateResponse
	if err := e.call(ctx, "STREAM.CREATE."+want.Name, want, &resp); err != nil {
		return fmt.Errorf("make the stream %s: %w", want.Name, err)
	}
	return nil
}

// checkStream tells whether a stream is there and as createStream makes it.
func (e *embedded) checkStream(ctx context.Context, want server.StreamConfig) error {
	info, err := e.info(ctx, want.Name)
	if err != nil {
		var api *server.ApiError
		if errors.As(err, &api) {
			// Not found, or found in a form that can't be served: the server has said why in
			// its log.
			return &feed.Damage{What: fmt.Sprintf("the stream %s was not restored: %v", want.Name, err)}
		}
		return err
	}
	got := info.Config
	epoch := got.Metadata[epochKey]
	if wanted := want.Metadata[epochKey]; epoch != wanted {
		return &feed.Damage{What: fmt.Sprintf("the stream %s is of the log %q, the marker of %q", want.Name, epoch, wanted)}
	}
	got.Metadata, want.Metadata = nil, nil // the server adds what concerns only itself
	got.FirstSeq = 0                       // a log that was written anew begins where the one before ended
	if !reflect.DeepEqual(got, want) {
		return &feed.Damage{What: fmt.Sprintf("the stream %s is not configured as it was made: %+v", want.Name, got)}
	}
	return nil
}

// info asks for a stream's configuration and state.
func (e *embedded) info(ctx context.Context, stream string) (*server.StreamInfo, error) {
	var resp server.JSApiStreamInfoResponse
	if err := e.call(ctx, "STREAM.INFO."+stream, nil, &resp); err != nil {
		return nil, fmt.Errorf("ask for the state of the stream %s: %w", stream, err)
	}
	if resp.StreamInfo == nil {
		return nil, fmt.Errorf("ask for the state of the stream %s: an empty answer", stream)
	}
	return resp.StreamInfo, nil
}

// purge removes a stream's messages before the sequence given.
func (e *embedded) purge(ctx context.Context, stream string, before uint64) error {
	var resp server.JSApiStreamPurgeResponse
	if err := e.call(ctx, "STREAM.PURGE."+stream, server.JSApiStreamPurgeRequest{Sequence: before}, &resp); err != nil {
		return fmt.Errorf("purge the stream %s before %d: %w", stream, before, err)
	}
	return nil
}

// answer is what each response of JetStream's API can say.
type answer interface{ ToError() error }

// call makes one request to JetStream's API. A refusal is a *server.ApiError.
func (e *embedded) call(ctx context.Context, verb string, req any, resp answer) error {
	var body []byte
	if req != nil {
		var err error
		if body, err = json.Marshal(req); err != nil {
			return fmt.Errorf("encode a request: %w", err)
		}
	}
	m, err := e.request(ctx, &nats.Msg{Subject: "$JS.API." + verb, Data: body})
	if err != nil {
		return err
	}
	if err := json.Unmarshal(m.Data, resp); err != nil {
		return fmt.Errorf("decode an answer: %w", err)
	}
	return resp.ToError()
}

// request sends a message and waits for its answer. Where the time is over, the error
// says so; where ctx is done, it is ctx's; where the connection was closed, ErrClosed.
func (e *embedded) request(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	limited, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	// A server that could not write answers nobody any more.
	defer context.AfterFunc(e.log.failing, cancel)()
	answer, err := e.nc.RequestMsgWithContext(limited, m)
	switch {
	case err != nil && e.failing():
		err = e.failure()
	case err != nil && ctx.Err() == nil && limited.Err() != nil:
		err = fmt.Errorf("no answer within %s", e.timeout)
	}
	return answer, orClosed(err)
}

// orClosed is ErrClosed where the connection was closed.
func orClosed(err error) error {
	if errors.Is(err, nats.ErrConnectionClosed) {
		return ErrClosed
	}
	return err
}

// publish stores one message right after the sequence given. An error is
// feed.ErrFenced if the stream ends elsewhere, matches feed.ErrUnknown if the message
// may have been stored, and any other says that it was not.
func (e *embedded) publish(ctx context.Context, stream, subject string, after uint64, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m, err := e.request(ctx, &nats.Msg{Subject: subject, Data: data, Header: nats.Header{
		server.JSExpectedLastSeq: {strconv.FormatUint(after, 10)},
	}})
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("nothing was written: the stream %s is not served; restart, and look for the reason in the log", stream)
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("nothing was written: %d bytes are over the server's limit", len(data))
	case err != nil:
		return fmt.Errorf("%w: %w", feed.ErrUnknown, err)
	}
	var ack server.JSPubAckResponse
	if err := json.Unmarshal(m.Data, &ack); err != nil {
		return fmt.Errorf("%w: the answer can't be read: %w", feed.ErrUnknown, err)
	}
	if ack.Error != nil {
		return refused(ack.Error)
	}
	if ack.PubAck == nil || ack.Stream != stream || ack.Sequence != after+1 || ack.Duplicate {
		return &feed.Damage{What: fmt.Sprintf("a message for %s %d was acknowledged as %s", stream, after+1, m.Data)}
	}
	return nil
}

// refused says what a refused write means to its caller. All refusals are decided
// before the first byte is stored; a write that fails on its way to the disk gets no
// answer at all (nats-server, processJetStreamMsgWithBatch in server/stream.go).
func refused(e *server.ApiError) error {
	hint := "restart, and look for the reason in the log"
	switch server.ErrorIdentifier(e.ErrCode) {
	case server.JSStreamWrongLastSequenceErrF, server.JSStreamWrongLastSequenceConstantErr:
		return feed.ErrFenced
	case server.JSStreamStoreFailedF, server.JSAccountResourcesExceededErr, server.JSInsufficientResourcesErr,
		server.JSMemoryResourcesExceededErr, server.JSStorageResourcesExceededErr:
		hint = "the store is at its limit; give it room, then write again"
	case server.JSStreamMessageExceedsMaximumErr, server.JSStreamHeaderExceedsMaximumErr:
		hint = "it is too large"
	case server.JSClusterNotAvailErr, server.JSClusterNotLeaderErr, server.JSStreamTooManyRequests:
		hint = "try again"
	}
	return fmt.Errorf("nothing was written: %s: %w", hint, e)
}

// errFailing says that the server could not write to the disk. It takes nothing any more,
// with space again or without, until it is started anew.
var errFailing = errors.New("the embedded NATS server could not write to the disk")

// writeError is how the server's line begins when a stream has stopped taking messages
// (setWriteErr in server/filestore.go). It tells nobody else.
const writeError = "Critical write error"

// serverLog passes what the server says on to slog: its chatter as Debug. What tells
// that it can't write ends failing.
type serverLog struct {
	to      *slog.Logger
	fatal   atomic.Pointer[string] // what it could not live with
	failing context.Context
	fail    context.CancelCauseFunc
}

func (l *serverLog) Noticef(format string, v ...any) { l.log(slog.LevelDebug, format, v) }
func (l *serverLog) Debugf(format string, v ...any)  { l.log(slog.LevelDebug, format, v) }
func (l *serverLog) Tracef(format string, v ...any)  { l.log(slog.LevelDebug, format, v) }
func (l *serverLog) Warnf(format string, v ...any)   { l.log(slog.LevelWarn, format, v) }
func (l *serverLog) Errorf(format string, v ...any) {
	l.log(slog.LevelError, format, v)
	if strings.Contains(format, writeError) {
		l.fail(fmt.Errorf(format, v...))
	}
}

// Fatalf does not end the process, as the server expects of loggers on its own.
func (l *serverLog) Fatalf(format string, v ...any) {
	why := fmt.Sprintf(format, v...)
	l.fatal.CompareAndSwap(nil, &why)
	l.log(slog.LevelError, format, v)
}

func (l *serverLog) log(level slog.Level, format string, v []any) {
	if l.to.Enabled(context.Background(), level) {
		l.to.Log(context.Background(), level, "nats: "+fmt.Sprintf(format, v...))
	}
}
