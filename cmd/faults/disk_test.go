package faults_test

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// memDisk is a disk with a cache that forgets: a file in memory that knows what was
// flushed. The kernel's loop driver writes to it, and asks for a flush where a file
// system asks its disk for one.
type memDisk struct {
	mu      sync.Mutex
	now     []byte             // guarded by mu: what reads see
	durable []byte             // guarded by mu: as of the last flush
	pending map[int64][][]byte // guarded by mu: what was written to a block since, in order
	cutIn   int                // guarded by mu: requests until the power goes; 0: it stays
	cutWith *rand.Rand         // guarded by mu; nil: nothing stays but what was flushed
	image   []byte             // guarded by mu: what was left when the power went

	cut     chan struct{} // closed when the power goes
	release chan struct{} // closed: what waits since then goes on, to no avail
}

const blockSize = 4096

func newMemDisk(image []byte) *memDisk {
	return &memDisk{now: image, durable: append([]byte{}, image...), pending: make(map[int64][][]byte),
		cut: make(chan struct{}), release: make(chan struct{})}
}

// arm lets the power go at the n-th request from now.
func (d *memDisk) arm(n int, rng *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutIn, d.cutWith = n, rng
}

// request counts a request; it waits once the power is gone.
func (d *memDisk) request() {
	d.mu.Lock()
	if d.cutIn > 0 {
		if d.cutIn--; d.cutIn == 0 {
			d.off()
		}
	}
	gone := d.image != nil
	d.mu.Unlock()
	if gone {
		<-d.release
	}
}

// off needs mu. What was flushed stays; of what was written since, any part may.
func (d *memDisk) off() {
	if d.image != nil {
		return
	}
	image := append([]byte{}, d.durable...)
	// All, most, few or none of it: the extremes are worth more than the middle.
	share := 0
	if d.cutWith != nil {
		share = []int{0, 10, 50, 90, 100}[d.cutWith.IntN(5)]
	}
	for block := range int64(len(image) / blockSize) {
		if versions := d.pending[block]; len(versions) > 0 && share > 0 && d.cutWith.IntN(100) < share {
			copy(image[block*blockSize:], versions[d.cutWith.IntN(len(versions))])
		}
	}
	d.image = image
	close(d.cut)
}

// powerOff cuts the power now, if it is not gone.
func (d *memDisk) powerOff(rng *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutWith = rng
	d.off()
}

func (d *memDisk) write(b []byte, at int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.now[at:], b)
	if d.image != nil {
		return // nobody will read it
	}
	for block := at / blockSize; block*blockSize < at+int64(len(b)); block++ {
		d.pending[block] = append(d.pending[block], append([]byte{}, d.now[block*blockSize:(block+1)*blockSize]...))
	}
}

func (d *memDisk) flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for block := range d.pending {
		copy(d.durable[block*blockSize:(block+1)*blockSize], d.now[block*blockSize:])
	}
	clear(d.pending)
}

// diskRoot is a file system of one file, the disk.
type diskRoot struct {
	fs.Inode
	disk *memDisk
}

func (r *diskRoot) OnAdd(ctx context.Context) {
	r.AddChild("disk", r.NewPersistentInode(ctx, &diskFile{disk: r.disk}, fs.StableAttr{Mode: syscall.S_IFREG}), true)
}

type diskFile struct {
	fs.Inode
	disk *memDisk
}

var (
	_ fs.NodeOnAdder   = (*diskRoot)(nil)
	_ fs.NodeOpener    = (*diskFile)(nil)
	_ fs.NodeGetattrer = (*diskFile)(nil)
	_ fs.NodeSetattrer = (*diskFile)(nil)
	_ fs.NodeReader    = (*diskFile)(nil)
	_ fs.NodeWriter    = (*diskFile)(nil)
	_ fs.NodeFsyncer   = (*diskFile)(nil)
	_ fs.NodeFlusher   = (*diskFile)(nil)
)

func (f *diskFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (f *diskFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = syscall.S_IFREG|0o600, uint64(len(f.disk.now))
	return 0
}

func (f *diskFile) Setattr(ctx context.Context, h fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return f.Getattr(ctx, h, out)
}

func (f *diskFile) Read(_ context.Context, _ fs.FileHandle, b []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if at >= int64(len(f.disk.now)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(b[:copy(b, f.disk.now[at:])]), 0
}

func (f *diskFile) Write(_ context.Context, _ fs.FileHandle, b []byte, at int64) (uint32, syscall.Errno) {
	if at+int64(len(b)) > int64(len(f.disk.now)) {
		return 0, syscall.ENOSPC
	}
	f.disk.request()
	f.disk.write(b, at)
	return uint32(len(b)), 0
}

func (f *diskFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.disk.request()
	f.disk.flush()
	return 0
}

// Flush is called by close, which promises nothing.
func (f *diskFile) Flush(context.Context, fs.FileHandle) syscall.Errno { return 0 }

// mountFuse serves a file system on a directory until unmount is called, which the
// caller must do: after everything that lies on it is unmounted.
func mountFuse(t testing.TB, dir string, root fs.InodeEmbedder) (unmount func(), err error) {
	second := time.Second
	server, err := fs.Mount(dir, root, &fs.Options{
		EntryTimeout: &second, AttrTimeout: &second,
		MountOptions: fuse.MountOptions{DirectMountStrict: true, AllowOther: true, FsName: "tidemark-faults", Name: "tidemark-faults", MaxWrite: 128 << 10},
	})
	if err != nil {
		return nil, err
	}
	closeOnExec("/dev/fuse")
	var once sync.Once
	return func() {
		once.Do(func() {
			if err := server.Unmount(); err != nil {
				_ = syscall.Unmount(dir, syscall.MNT_DETACH) // whoever is left in there has no say
			}
			if !within(5*time.Second, server.Wait) {
				t.Errorf("%s can't be unmounted", dir)
			}
		})
	}, nil
}

// closeOnExec keeps the descriptors of a file from those that are started after: a server
// that inherits a FUSE connection keeps it alive when the test that answers it is gone, and
// whoever touches the file system then waits for ever.
func closeOnExec(path string) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err != nil || target != path {
			continue
		}
		if n, err := strconv.Atoi(fd.Name()); err == nil {
			syscall.CloseOnExec(n)
		}
	}
}
