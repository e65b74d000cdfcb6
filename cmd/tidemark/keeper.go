package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// keeper acts on what is found wrong with the files while the server runs.
type keeper struct {
	logger *slog.Logger
	hub    chan *hub.Hub // room for one: given once the log is read back
	log    *broker.Log   // set before hub is given
}

// damaged is told of damage, by one of the log's own goroutines; ctx ends when the log is
// closed. The rows in memory are whole: written down anew, they take the place of the
// files that are damaged. Where that does not help, the server serves no more.
func (k *keeper) damaged(ctx context.Context, err error) {
	var h *hub.Hub
	select {
	case h = <-k.hub:
		k.hub <- h
	case <-ctx.Done():
		return // the log was not read back: whoever opened it finds out
	}
	healed := h.Renew(ctx, k.log.Rewrite)
	if healed == nil {
		healed = k.log.Scrub(ctx)
	}
	if ctx.Err() != nil {
		return // it stops; the next start finds it
	}
	if healed == nil {
		k.logger.Warn("the damaged files were replaced by what is in memory: nothing is lost", "damage", err)
		return
	}
	k.logger.Error("the damage could not be mended: the server serves no more", "damage", err, "err", healed)
	if ferr := h.Fail(ctx, err); ferr != nil {
		k.logger.Error("stop serving", "err", ferr)
	}
}

// forget forgets a tenant: what is in memory, what the log's files hold, and what the history
// does. Who asked may leave: it is seen through.
func (k *keeper) forget(ctx context.Context, g hub.Grant, tenant string) (any, error) {
	h := <-k.hub
	k.hub <- h
	ctx = context.WithoutCancel(ctx)
	began := time.Now()
	gone, err := h.Forget(ctx, g, tenant, k.log.Purge)
	if err == nil {
		err = k.log.ForgetHistory(ctx, tenant, gone.Seq)
	}
	if err == nil {
		k.logger.Info("a tenant was forgotten", "rows", gone.Rows, "took", time.Since(began).Round(time.Millisecond))
	}
	return gone, err
}
