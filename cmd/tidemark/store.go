package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// openStore opens the log and reads it back. What is damaged is named, and refused, or
// with --accept-data-loss left aside: what can be read goes on as a new log under an epoch
// of its own, so that every client starts anew. So does a log that was relaxed and that
// nobody closed, unasked: that is what relaxed means.
func openStore(ctx context.Context, c Config, opts broker.Options, hubOpts hub.Options) (*broker.Log, *hub.Hub, error) {
	for again := false; ; again = true {
		log, h, err := tryOpen(ctx, opts, hubOpts)
		unclean := errors.Is(err, broker.ErrUnclean)
		if err == nil || again || !unclean && !errors.Is(err, feed.ErrDamaged) {
			return log, h, err
		}
		s, serr := survey(ctx, opts.Dir, unclean)
		relaxed := serr == nil && unclean && s.suffixOnly()
		if serr == nil && unclean && !relaxed {
			// Its checkpoint is damaged: there is no state that it had, only what can be read.
			if serr = s.remains.Close(); serr == nil {
				s, serr = survey(ctx, opts.Dir, false)
			}
		}
		if serr != nil {
			return nil, nil, errors.Join(err, fmt.Errorf("look for what is left: %w", serr))
		}
		if relaxed {
			if !s.whole() {
				s.log(ctx, c.Logger, slog.LevelWarn)
			}
			c.Logger.Warn("the log was relaxed and was not closed: what it took last may be lost; every client starts anew under a new epoch")
		} else {
			level := slog.LevelError
			if c.AcceptLoss {
				level = slog.LevelWarn
			}
			s.log(ctx, c.Logger, level)
			if !c.AcceptLoss {
				s.remains.Close()
				return nil, nil, fmt.Errorf("%w\nNothing was changed. \"tidemark verify --data %s\" tells what is damaged. Put the files back as they were, or \"tidemark restore\" a backup, or start with --accept-data-loss to go on without what is lost", err, opts.Dir)
			}
		}
		if err := replace(ctx, c, opts, s, relaxed && s.whole()); err != nil {
			return nil, nil, err
		}
	}
}

func tryOpen(ctx context.Context, opts broker.Options, hubOpts hub.Options) (*broker.Log, *hub.Hub, error) {
	log, err := broker.Open(ctx, opts)
	if err != nil {
		return nil, nil, err
	}
	h, err := hub.Open(ctx, log, hubOpts)
	if err != nil {
		return nil, nil, errors.Join(err, log.Close())
	}
	return log, h, nil
}

// replace puts the log that was rebuilt in the place of what it was rebuilt from, which is
// kept unless it was whole.
func replace(ctx context.Context, c Config, opts broker.Options, s *findings, whole bool) error {
	err := s.remains.Archive(ctx, opts, s.rebuilt.Last)
	if err = errors.Join(err, s.remains.Close()); err != nil {
		return err
	}
	var epoch feed.Epoch
	aside, err := broker.Replace(ctx, opts, func(log *broker.Log) error {
		epoch = log.Epoch()
		return s.rebuilt.Save(ctx, log)
	})
	if err != nil {
		return err
	}
	if whole {
		// Relaxed, and nothing is damaged: there is nothing to look at.
		if err := os.RemoveAll(aside); err != nil {
			return fmt.Errorf("remove the log that was replaced: %w", err)
		}
		aside = ""
	}
	c.Logger.Warn("a new log goes on with what could be read", "epoch", epoch, "before", s.rebuilt.Epoch, "rows", s.rebuilt.Rows, "seq", s.rebuilt.Seq, "aside", aside)
	return nil
}

// findings are what an inspection of a store came to. The remains are to be closed.
type findings struct {
	remains *broker.Remains
	rebuilt *hub.Rebuilt
}

// survey inspects a store that no process has open, and rebuilds its state in memory.
func survey(ctx context.Context, dir string, prefix bool) (*findings, error) {
	r, err := broker.Inspect(ctx, dir)
	if err != nil {
		return nil, err
	}
	rebuilt, err := hub.Rebuild(ctx, r, hub.RebuildOptions{Epoch: r.Epoch, Prefix: prefix, Damages: r.Damages})
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &findings{r, rebuilt}, nil
}

// whole tells whether nothing is damaged.
func (s *findings) whole() bool { return len(s.remains.Damages) == 0 && len(s.rebuilt.Losses) == 0 }

// suffixOnly tells whether what was rebuilt is a state that the log had: its checkpoint is
// whole, and the groups after it up to some point.
func (s *findings) suffixOnly() bool {
	r := s.remains
	return r.Format > 0 && (r.At > 0 || r.First <= 1) && s.rebuilt.CheckpointWhole
}

// lines tells what is damaged, and what is lost by it, a line each.
func (s *findings) lines() (lines []string) {
	for _, d := range s.remains.Damages {
		lines = append(lines, strings.TrimPrefix(d.Error(), "the log is "))
	}
	for _, l := range s.rebuilt.Losses {
		lines = append(lines, "lost: "+l.String())
	}
	return lines
}

// mostLines is how many lines of a damage go to the log; verify tells all.
const mostLines = 20

func (s *findings) log(ctx context.Context, logger *slog.Logger, level slog.Level) {
	lines := s.lines()
	for _, line := range lines[:min(len(lines), mostLines)] {
		logger.Log(ctx, level, line)
	}
	if more := len(lines) - mostLines; more > 0 {
		logger.Log(ctx, level, fmt.Sprintf("and %d more: see tidemark verify", more))
	}
}
