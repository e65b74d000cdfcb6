// Package feedtest has a log in memory, with faults to order, and the suite that
// every feed.Log must pass.
package feedtest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// Memory is a feed.Log in memory. Its methods may be called concurrently. A copy of
// what it holds survives in it: a test "restarts" by opening a second hub on it.
type Memory struct {
	// Static after construction. Each hook, where there is one, is called without
	// a lock held, before the method does its work; what it returns is returned instead.
	OnAppend func(after feed.Position, group []byte) error
	OnSave   func(at feed.Position) error
	OnReady  func() error

	epoch feed.Epoch

	mu         sync.Mutex
	groups     [][]byte      // guarded by mu; the first is at position trimmed+1
	trimmed    feed.Position // guarded by mu
	checkpoint [][]byte      // guarded by mu
	at         feed.Position // guarded by mu; the checkpoint's
	appends    int           // guarded by mu
}

// NewMemory returns an empty log with an epoch of its own.
func NewMemory() *Memory { return &Memory{epoch: feed.NewEpoch()} }

// Found returns a log as it might be found: with a checkpoint, and the groups from its
// own on.
func Found(epoch feed.Epoch, at feed.Position, checkpoint, groups [][]byte) *Memory {
	return &Memory{epoch: epoch, groups: groups, trimmed: at - 1, checkpoint: checkpoint, at: at}
}

// Epoch is the log's epoch.
func (m *Memory) Epoch() feed.Epoch { return m.epoch }

// Append adds a group; see feed.Log.
func (m *Memory) Append(ctx context.Context, after feed.Position, group []byte) (feed.Position, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	var hook error
	if m.OnAppend != nil {
		hook = m.OnAppend(after, group)
	}
	if hook != nil && !errors.Is(hook, ErrStored) {
		return 0, hook
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(group) > feed.MaxGroup {
		return 0, fmt.Errorf("a group of %d bytes is over the limit of %d", len(group), feed.MaxGroup)
	}
	if after != m.trimmed+feed.Position(len(m.groups)) {
		return 0, feed.ErrFenced
	}
	m.groups = append(m.groups, append([]byte(nil), group...))
	m.appends++
	if hook != nil {
		return 0, feed.ErrUnknown
	}
	return after + 1, nil
}

// ErrStored, returned by OnAppend, stores the group and says feed.ErrUnknown: the
// reply that got lost on its way.
var ErrStored = errors.New("stored, but the reply is lost")

// Appends is how many groups were ever appended.
func (m *Memory) Appends() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.appends
}

// Held is how many groups the log holds now.
func (m *Memory) Held() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.groups)
}

// Harm lets fn change the groups that are held, for tests of damage.
func (m *Memory) Harm(fn func(groups [][]byte) [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.groups = fn(m.groups)
}

// HarmCheckpoint lets fn change the parts of the checkpoint.
func (m *Memory) HarmCheckpoint(fn func(parts [][]byte) [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.checkpoint = fn(m.checkpoint)
}

// Read calls fn with the groups after the position given; see feed.Log.
func (m *Memory) Read(ctx context.Context, after feed.Position, fn func(feed.Position, []byte) error) error {
	m.mu.Lock()
	groups, trimmed := m.groups, m.trimmed
	m.mu.Unlock()
	if after < trimmed {
		return &feed.Damage{At: after + 1, What: "it was trimmed"}
	}
	if after > trimmed+feed.Position(len(groups)) {
		return &feed.Damage{At: after, What: "the log ends before it"}
	}
	for i := int(after - trimmed); i < len(groups); i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(trimmed+feed.Position(i)+1, groups[i]); err != nil {
			return err
		}
	}
	return nil
}

// SaveCheckpoint replaces the checkpoint; see feed.Log.
func (m *Memory) SaveCheckpoint(ctx context.Context, at feed.Position, parts iter.Seq2[[]byte, error]) error {
	if m.OnSave != nil {
		if err := m.OnSave(at); err != nil {
			return err
		}
	}
	var saved [][]byte
	for part, err := range parts {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && len(part) > feed.MaxPart {
			err = fmt.Errorf("a part of %d bytes is over the limit of %d", len(part), feed.MaxPart)
		}
		if err != nil {
			return err
		}
		saved = append(saved, append([]byte(nil), part...))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.checkpoint, m.at = saved, at
	return nil
}

// LoadCheckpoint calls fn with the parts of the checkpoint; see feed.Log.
func (m *Memory) LoadCheckpoint(ctx context.Context, fn func([]byte) error) (feed.Position, error) {
	m.mu.Lock()
	parts, at := m.checkpoint, m.at
	m.mu.Unlock()
	for _, part := range parts {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := fn(part); err != nil {
			return 0, err
		}
	}
	return at, nil
}

// Ready is what OnReady says; see feed.Log.
func (m *Memory) Ready() error {
	if m.OnReady != nil {
		return m.OnReady()
	}
	return nil
}

// Trim forgets groups; see feed.Log.
func (m *Memory) Trim(ctx context.Context, before feed.Position) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if before > m.at {
		return fmt.Errorf("position %d is beyond the checkpoint at %d", before, m.at)
	}
	if before > m.trimmed+1 {
		n := min(int(before-m.trimmed-1), len(m.groups))
		m.groups = m.groups[n:]
		m.trimmed += feed.Position(n)
	}
	return nil
}
