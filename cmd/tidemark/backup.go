package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/alecthomas/units"

	"github.com/tidemark-sync/tidemark/broker"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// BackupCmd writes a backup of a store.
type BackupCmd struct {
	File string `arg:"" placeholder:"FILE" help:"Where to; - is standard output."`
	Data string `required:"" placeholder:"DIR" type:"path" help:"The server's data directory."`
}

// Help teaches.
func (BackupCmd) Help() string {
	return `Writes all rows, tombstones and remembered ids as they are at one moment into one file that proves itself, while the server goes on. It asks the running server over a socket in its data directory; where no server runs, it reads the directory itself. A file is there whole or not at all. History is not part of it: copy the files of DIR/history.

    $ tidemark backup --data /var/lib/tidemark tidemark-$(date +%F).backup
    $ tidemark backup --data /var/lib/tidemark - | ssh elsewhere 'cat >tidemark.backup'`
}

// Run writes one.
func (b *BackupCmd) Run(ctx context.Context, std stdio) (err error) {
	out := std.out
	if b.File != "-" {
		f, err := os.CreateTemp(filepath.Dir(b.File), filepath.Base(b.File)+".*.tmp")
		if err != nil {
			return fmt.Errorf("write the backup: %w", err)
		}
		defer os.Remove(f.Name()) // once it has its name, there is nothing to remove
		defer f.Close()
		out = f
	}
	p := &meter{w: std.err, what: "backup"}
	header, err := b.write(ctx, out, p)
	if err != nil {
		return err
	}
	if f, ok := out.(*os.File); ok && b.File != "-" {
		err := f.Sync()
		if err == nil {
			err = f.Close()
		}
		if err == nil {
			err = os.Rename(f.Name(), b.File)
		}
		if err == nil {
			err = syncDir(filepath.Dir(b.File))
		}
		if err != nil {
			return fmt.Errorf("write the backup: %w", err)
		}
	}
	p.end("%d rows up to sequence %d of epoch %s", header.Rows, header.Seq, header.Epoch)
	return nil
}

// write takes the backup from the server, or from the files where there is none, and
// checks it on its way.
func (b *BackupCmd) write(ctx context.Context, out io.Writer, p *meter) (hub.BackupHeader, error) {
	if _, err := os.Stat(filepath.Join(b.Data, "tidemark.json")); errors.Is(err, fs.ErrNotExist) {
		return hub.BackupHeader{}, fmt.Errorf("there is no store in %s", b.Data)
	}
	res, err := adminGet(ctx, b.Data, "/backup")
	if err == nil {
		defer res.Body.Close()
		return hub.CheckBackup(io.TeeReader(p.reader(res.Body), out), p.began, nil)
	}
	if !errors.Is(err, errNoServer) {
		return hub.BackupHeader{}, err
	}
	s, serr := survey(ctx, b.Data, false)
	if serr != nil {
		if errors.Is(serr, broker.ErrInUse) {
			return hub.BackupHeader{}, fmt.Errorf("%w, and it does not answer: where it starts or stops, try again in a moment", serr)
		}
		return hub.BackupHeader{}, serr
	}
	defer s.remains.Close()
	if s.remains.Relaxed {
		return hub.BackupHeader{}, fmt.Errorf("%w: start the server once", broker.ErrUnclean)
	}
	if !s.whole() {
		return hub.BackupHeader{}, fmt.Errorf("%w: \"tidemark verify --data %s\" tells what is wrong", errDamaged, b.Data)
	}
	pipe, in := io.Pipe()
	go func() {
		_, err := s.rebuilt.Backup(ctx, in, time.Now())
		in.CloseWithError(err)
	}()
	header, err := hub.CheckBackup(io.TeeReader(p.reader(pipe), out), p.began, nil)
	pipe.CloseWithError(errors.New("nobody reads any more"))
	return header, err
}

// RestoreCmd makes a store of a backup.
type RestoreCmd struct {
	File string `arg:"" placeholder:"FILE" help:"The backup; - is standard input."`
	Data string `required:"" placeholder:"DIR" type:"path" help:"The data directory to make. It must hold no store."`
}

// Help teaches.
func (RestoreCmd) Help() string {
	return `Makes a data directory of a backup, under a new epoch, so that every client that knew the old one starts anew. The backup is checked whole before anything counts, and what was made of it is verified after.

    $ tidemark restore --data /var/lib/tidemark tidemark-2026-03-01.backup
    $ tidemark serve --data /var/lib/tidemark`
}

// Run makes it.
func (r *RestoreCmd) Run(ctx context.Context, std stdio) error {
	for _, name := range []string{"tidemark.json", "high-water", "nats"} {
		if _, err := os.Lstat(filepath.Join(r.Data, name)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s holds a store already: name another directory, or move that one away", r.Data)
		}
	}
	in := std.in
	if r.File != "-" {
		f, err := os.Open(r.File)
		if err != nil {
			return fmt.Errorf("read the backup: %w", err)
		}
		defer f.Close()
		in = f
	}
	p := &meter{w: std.err, what: "restore"}
	rebuilt, header, err := hub.ReadBackup(p.reader(in), p.began)
	if err != nil {
		return fmt.Errorf("read the backup: %w", err)
	}
	if err := os.MkdirAll(r.Data, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	if _, err := broker.Replace(ctx, broker.Options{Dir: r.Data}, func(log *broker.Log) error { return rebuilt.Save(ctx, log) }); err != nil {
		return err
	}
	s, err := survey(ctx, r.Data, false)
	if err != nil {
		return fmt.Errorf("verify what was restored: %w", err)
	}
	defer s.remains.Close()
	if !s.whole() || s.rebuilt.Rows != header.Rows {
		return fmt.Errorf("what was restored is not what was backed up: %d rows instead of %d; %v", s.rebuilt.Rows, header.Rows, s.lines())
	}
	p.end("%d rows of epoch %s, now of epoch %s; verified", header.Rows, header.Epoch, s.remains.Epoch)
	return nil
}

// meter tells now and then how far something has come.
type meter struct {
	w     io.Writer
	what  string
	total int64 // bytes, about
	done  int64
	told  time.Time
}

func (p *meter) began(h hub.BackupHeader) {
	p.total, p.told = h.Bytes, time.Now()
	fmt.Fprintf(p.w, "%s: %d rows, about %s, of %s\n", p.what, h.Rows, size(h.Bytes), h.Created.Format(time.RFC3339))
}

func (p *meter) reader(r io.Reader) io.Reader { return &meterReader{r, p} }

type meterReader struct {
	io.Reader
	p *meter
}

func (r *meterReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	p := r.p
	if p.done += int64(n); p.total > 0 && time.Since(p.told) >= time.Second {
		p.told = time.Now()
		fmt.Fprintf(p.w, "%s: %s, about %d %%\n", p.what, size(p.done), min(99, 100*p.done/p.total))
	}
	return n, err
}

func (p *meter) end(format string, args ...any) {
	fmt.Fprintf(p.w, "%s: done, %s: %s\n", p.what, size(p.done), fmt.Sprintf(format, args...))
}

func size(n int64) string { return units.Base2Bytes(n).Round(1).String() }
