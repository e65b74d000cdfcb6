package broker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// format is the version of what a store directory holds. It changes when an older
// program would misread a store. Format 1 has groups, checkpoints and marks of their
// first versions, which are read, and no words for relaxed and moving.
const format = 2

const (
	lockName   = "LOCK"
	markerName = "tidemark.json"
	highName   = "high-water"
	natsName   = "nats"
	asideName  = "aside" // what was damaged, and replaced
	newName    = "new"   // a log that is to replace this one
)

// ErrInUse is returned by Open for a directory that another Log, mostly of another
// process, holds open.
var ErrInUse = errors.New("the store is in use: one process at a time may open it")

// locks are the files by which a store is locked.
type locks []*os.File

// Close unlocks it. A second Close does nothing.
func (l *locks) Close() error {
	var errs []error
	for _, f := range *l {
		errs = append(errs, f.Close())
	}
	*l = nil
	return errors.Join(errs...)
}

// marker says that a store was made, and which log it is. It is written last: where
// it is missing, Open has never returned.
type marker struct {
	Format  int        `json:"format"`
	Epoch   feed.Epoch `json:"epoch"`
	Created time.Time  `json:"created"`
	// Relaxed: the log was opened so that a crash can take back what was acknowledged, and
	// was not closed since.
	Relaxed bool `json:"relaxed,omitempty"`
	// Moving is where the log before goes: this one is in the directory new, or partly
	// moved from there.
	Moving string `json:"moving,omitempty"`
}

// readMarker reads the marker of dir; found is false where there is none.
func readMarker(dir string) (m marker, found bool, err error) {
	path := filepath.Join(dir, markerName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return marker{}, false, nil
	}
	if err != nil {
		return marker{}, false, fmt.Errorf("read the store's marker: %w", err)
	}
	// The format first: what else a newer one holds is not ours to judge.
	var head struct{ Format int }
	if err := json.Unmarshal(b, &head); err != nil {
		return marker{}, false, &feed.Damage{What: fmt.Sprintf("the marker %s can't be read: %v", path, err)}
	}
	if head.Format > format {
		return marker{}, false, fmt.Errorf("the store in %s has format %d, and this version reads up to %d: use a newer one", dir, head.Format, format)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields() // a word that is harmed would be passed over, and "relaxed" with it
	if err := d.Decode(&m); err != nil || d.InputOffset() != int64(len(bytes.TrimSpace(b))) || m.Format < 1 || !m.Epoch.Valid() {
		return marker{}, false, &feed.Damage{What: fmt.Sprintf("the marker %s names no format and epoch: %q", path, b)}
	}
	return m, true, nil
}

// writeMarker writes the marker whole or not at all, and durably.
func writeMarker(dir string, m marker) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode the store's marker: %w", err)
	}
	path := filepath.Join(dir, markerName)
	if err := writeSynced(path+".new", append(b, '\n')); err != nil {
		return fmt.Errorf("write the store's marker: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write the store's marker: %w", err)
	}
	return syncPath(dir)
}

// removeUnfinished prepares dir for a new store. What a creation that was cut short
// left behind goes; anything that may hold a group is *feed.Damage, and nothing is
// touched.
//
// A creation acknowledges no group and stores one message, so a high-water mark above 0,
// or more bytes in block files than the genesis message takes, are somebody's log.
func removeUnfinished(dir string) error {
	if b, err := os.ReadFile(filepath.Join(dir, highName)); err == nil {
		for len(b) >= slotSize {
			if pos := binary.BigEndian.Uint64(b); pos != 0 {
				return &feed.Damage{What: fmt.Sprintf("%s has no marker %s, but a high-water mark of %d: the marker is lost", dir, markerName, pos)}
			}
			b = b[min(slotGap, len(b)):]
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	root := filepath.Join(dir, natsName)
	streams := filepath.Join(root, "jetstream", "$G", "streams")
	// The directories on the way to the streams hold nothing else, and are no files.
	path := map[string]bool{root: true, filepath.Dir(filepath.Dir(streams)): true, filepath.Dir(streams): true, streams: true}
	var held int64
	err := filepath.WalkDir(root, func(at string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside := false
		for _, stream := range []string{logStream, checkpointStream} {
			of := filepath.Join(streams, stream)
			inside = inside || at == of || strings.HasPrefix(at, of+string(filepath.Separator))
		}
		if !inside && !(path[at] && entry.IsDir()) {
			return &feed.Damage{What: fmt.Sprintf("%s has no marker %s, but %s is there, which is of no new store", dir, markerName, at)}
		}
		if entry.Type().IsRegular() && strings.HasSuffix(at, ".blk") {
			info, err := entry.Info()
			if err != nil {
				return err
			}
			held += info.Size()
		}
		return nil
	})
	var damage *feed.Damage
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case errors.As(err, &damage):
		return damage
	case err != nil:
		return fmt.Errorf("look for leftovers: %w", err)
	}
	if held > genesisRecord {
		return &feed.Damage{What: fmt.Sprintf("%s has no marker %s, but %d bytes of messages: the marker is lost", dir, markerName, held)}
	}
	for _, name := range []string{natsName, highName} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove what an unfinished creation left: %w", err)
		}
	}
	return nil
}

// syncTree makes everything below root durable, directories too: JetStream syncs what
// it writes, but not each directory that it makes, and not what it finds at start.
func syncTree(root string) error {
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && (entry.IsDir() || entry.Type().IsRegular()) {
			err = syncPath(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the server removes files of its own as it goes: what is gone needs no sync
		}
		return err
	})
}

// syncPath makes a file's content, or a directory's entries, durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// writeSynced writes a new file durably; its directory entry is the caller's to sync.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
