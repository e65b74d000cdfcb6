package broker

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Linger is linger.
var Linger = linger

// SetTimeout changes how long a request may take: 1 ns makes every answer late.
func (l *Log) SetTimeout(d time.Duration) (restore func()) {
	was := l.nats.Load().timeout
	l.nats.Load().timeout = d
	return func() { l.nats.Load().timeout = was }
}

// WithMaxStore has no checkpoint taken while both streams together have so many bytes.
func (o Options) WithMaxStore(n int64) Options {
	o.maxStore = n
	return o
}

// PurgeCheckpoints removes the messages of the checkpoint stream before a sequence, as
// nothing but a fault would.
func (l *Log) PurgeCheckpoints(ctx context.Context, before uint64) error {
	return l.nats.Load().purge(ctx, checkpointStream, before)
}

// PurgeGroups does it in the log.
func (l *Log) PurgeGroups(ctx context.Context, before uint64) error {
	return l.nats.Load().purge(ctx, logStream, before)
}

// Foreign stores a message that is no frame behind the checkpoint's.
func (l *Log) Foreign(ctx context.Context, data []byte) error {
	info, err := l.nats.Load().info(ctx, checkpointStream)
	if err != nil {
		return err
	}
	return l.nats.Load().publish(ctx, checkpointStream, checkpointSubject, info.State.LastSeq, data)
}

// Consumers is how many consumers the streams have.
func (l *Log) Consumers(ctx context.Context) (n int, err error) {
	for _, stream := range []string{logStream, checkpointStream} {
		info, err := l.nats.Load().info(ctx, stream)
		if err != nil {
			return 0, err
		}
		n += info.State.Consumers
	}
	return n, nil
}

// Subscriptions is how many subscriptions the connection to the server has.
func (l *Log) Subscriptions() int { return l.nats.Load().nc.NumSubscriptions() }

// FailServer has the server say that it can't write.
func (l *Log) FailServer() { l.nats.Load().log.fail(errors.New("told to fail")) }

// CutConnection makes the server hang up.
func (l *Log) CutConnection() error { return l.nats.Load().nc.ForceReconnect() }

// GenesisRecord is the most that a new store's block files hold.
const GenesisRecord = genesisRecord

// LimitGroups changes the log's configuration, as only a hand from outside could.
func (l *Log) LimitGroups(ctx context.Context, n int64) error {
	config := streamConfigs(l.epoch)[0]
	config.MaxMsgs = n
	var resp server.JSApiStreamUpdateResponse
	return l.nats.Load().call(ctx, "STREAM.UPDATE."+config.Name, config, &resp)
}

// NewMark is the high-water mark of the log as it was made.
func (l *Log) NewMark() []byte {
	return newMark(l.epoch)
}
