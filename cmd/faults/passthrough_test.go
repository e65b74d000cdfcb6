package faults_test

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// ailment is what is wrong with a disk.
type ailment int32

const (
	healthy ailment = iota
	writeEIO
	syncEIO
	writeENOSPC
	shortWrites
	slowSync
)

func (a ailment) String() string {
	return []string{"nothing", "EIO on write", "EIO on fsync", "ENOSPC", "short writes", "an fsync that takes 5 s"}[a]
}

// passthrough is a file system on top of another that has an ailment.
type passthrough struct{ has atomic.Int32 }

func (p *passthrough) set(a ailment) { p.has.Store(int32(a)) }
func (p *passthrough) get() ailment  { return ailment(p.has.Load()) }

// root is the file system over a directory.
func (p *passthrough) root(dir string) (fs.InodeEmbedder, error) {
	root, err := fs.NewLoopbackRoot(dir)
	if err != nil {
		return nil, err
	}
	node := &sickNode{root.(*fs.LoopbackNode), p}
	node.RootData.RootNode = node
	return node, nil
}

type sickNode struct {
	*fs.LoopbackNode
	p *passthrough
}

var (
	_ fs.NodeWrapChilder = (*sickNode)(nil)
	_ fs.NodeOpener      = (*sickNode)(nil)
	_ fs.NodeCreater     = (*sickNode)(nil)
)

func (n *sickNode) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &sickNode{ops.(*fs.LoopbackNode), n.p}
}

func (n *sickNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, f, errno := n.LoopbackNode.Open(ctx, flags)
	return n.sick(h), f, errno
}

func (n *sickNode) Create(ctx context.Context, name string, flags uint32, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	switch n.p.get() {
	case writeEIO:
		return nil, nil, 0, syscall.EIO
	case writeENOSPC:
		return nil, nil, 0, syscall.ENOSPC
	}
	inode, h, f, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return inode, n.sick(h), f, errno
}

func (n *sickNode) sick(h fs.FileHandle) fs.FileHandle {
	if file, ok := h.(*fs.LoopbackFile); ok {
		return &sickFile{file, n.p}
	}
	return h
}

type sickFile struct {
	*fs.LoopbackFile
	p *passthrough
}

// PassthroughFd would let the kernel go around us.
func (f *sickFile) PassthroughFd() (int, bool) { return 0, false }

func (f *sickFile) Write(ctx context.Context, b []byte, at int64) (uint32, syscall.Errno) {
	switch f.p.get() {
	case writeEIO:
		return 0, syscall.EIO
	case writeENOSPC:
		return 0, syscall.ENOSPC
	case shortWrites:
		if rand.IntN(3) == 0 {
			return 0, syscall.ENOSPC
		}
		b = b[:(len(b)+1)/2]
	}
	return f.LoopbackFile.Write(ctx, b, at)
}

func (f *sickFile) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	switch f.p.get() {
	case syncEIO:
		return syscall.EIO
	case slowSync:
		time.Sleep(5 * time.Second)
	}
	return f.LoopbackFile.Fsync(ctx, flags)
}
