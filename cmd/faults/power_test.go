package faults_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var powerRounds = flag.Int("rounds.power", 4, "how often the power is cut")

var errNotRoot = errors.New("only root may mount")

// imageSize is how large the disks are.
const imageSize = 32 << 20

// emptyImage is a fresh ext4 file system.
var emptyImage = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "tidemark-faults-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, make([]byte, imageSize), 0o600); err != nil {
		return nil, err
	}
	if _, err := run("mkfs.ext4", "-q", "-F", "-b", fmt.Sprint(blockSize), "-E", "lazy_itable_init=0,lazy_journal_init=0", path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// machine is a computer whose power can be cut: an ext4 file system on a disk that
// remembers what was flushed.
type machine struct {
	t     testing.TB
	dir   string // for mounts and files
	n     int    // of disks so far
	image []byte // what the next disk holds

	disk    *memDisk // nil: without FUSE
	backing string
	loop    string
	mnt     string // where the file system is mounted
	unfuse  func()
}

// newMachine returns a machine that is switched on; an error says why there can't be one.
func newMachine(t testing.TB) (*machine, error) {
	if os.Getuid() != 0 {
		return nil, errNotRoot
	}
	image, err := emptyImage()
	if err != nil {
		return nil, err
	}
	m := &machine{t: t, dir: t.TempDir(), image: append([]byte{}, image...)}
	t.Cleanup(m.off)
	return m, m.on()
}

// data is the server's directory.
func (m *machine) data() string { return filepath.Join(m.mnt, "data") }

// on makes a disk of the image and mounts it.
func (m *machine) on() error {
	m.n++
	m.mnt = filepath.Join(m.dir, "mnt") // the same each time: the server's data has one place
	if err := os.MkdirAll(m.mnt, 0o700); err != nil {
		return err
	}
	fuseDir := filepath.Join(m.dir, fmt.Sprintf("disk%d", m.n))
	if err := os.Mkdir(fuseDir, 0o700); err != nil {
		return err
	}
	m.disk = newMemDisk(m.image)
	unfuse, err := mountFuse(m.t, fuseDir, &diskRoot{disk: m.disk})
	if err == nil {
		m.unfuse, m.backing = unfuse, filepath.Join(fuseDir, "disk")
	} else {
		// The cache of a plain file forgets nothing: a cut is then what was written so far.
		m.disk, m.unfuse = nil, func() {}
		m.backing = filepath.Join(m.dir, fmt.Sprintf("image%d", m.n))
		if err := os.WriteFile(m.backing, m.image, 0o600); err != nil {
			return err
		}
	}
	out, err := run("losetup", "--find", "--show", m.backing)
	if err != nil {
		m.unfuse()
		return err
	}
	m.loop = strings.TrimSpace(out)
	if _, err := run("mount", "-t", "ext4", m.loop, m.mnt); err != nil {
		m.off()
		return err
	}
	return nil
}

// cut cuts the power at the n-th request to the disk from now, or after a while, and
// ends the server: at once, so that it says nothing more. What is left is checked as a
// boot does.
func (m *machine) cut(s *server, n int, rng *rand.Rand) error {
	if m.disk != nil {
		m.disk.arm(n, rng)
		select {
		case <-m.disk.cut:
		case <-time.After(2 * time.Second):
			_ = s.cmd.Process.Signal(syscall.SIGSTOP) // it may be gone already
			m.disk.powerOff(rng)
		}
		_ = s.cmd.Process.Kill()
		close(m.disk.release)
		<-s.exited
		m.image = m.disk.image
	} else {
		time.Sleep(time.Duration(n) * 5 * time.Millisecond)
		_ = s.cmd.Process.Signal(syscall.SIGSTOP)
		time.Sleep(10 * time.Millisecond)
		image, err := os.ReadFile(m.backing)
		if err != nil {
			return err
		}
		m.image = image
		s.kill()
	}
	m.off()
	return m.repair()
}

// repair replays the journal, as a boot does.
func (m *machine) repair() error {
	path := filepath.Join(m.dir, "checked")
	if err := os.WriteFile(path, m.image, 0o600); err != nil {
		return err
	}
	defer os.Remove(path)
	out, err := run("e2fsck", "-fy", path)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() < 4 {
		err = nil // it has repaired something
	}
	if err != nil {
		return fmt.Errorf("the file system itself is lost: %w\n%s", err, out)
	}
	m.image, err = os.ReadFile(path)
	return err
}

// off unmounts; it may be called again.
func (m *machine) off() {
	if m.disk != nil {
		select {
		case <-m.disk.release:
		default:
			m.disk.mu.Lock()
			m.disk.cutIn = 0
			m.disk.mu.Unlock()
		}
	}
	if m.loop != "" {
		for range 50 {
			if _, err := run("umount", m.mnt); err == nil {
				break
			}
			if !mounted(m.mnt) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if mounted(m.mnt) {
			_ = syscall.Unmount(m.mnt, syscall.MNT_DETACH)
		}
		if _, err := run("losetup", "-d", m.loop); err != nil {
			m.t.Error(err)
		}
		m.loop = ""
	}
	if m.unfuse != nil {
		m.unfuse()
		m.unfuse = nil
	}
	if m.disk == nil && m.backing != "" {
		os.Remove(m.backing)
	}
}

func mounted(dir string) bool {
	b, err := os.ReadFile("/proc/self/mounts")
	return err == nil && strings.Contains(string(b), " "+dir+" ")
}

// TestPowerCut: after a power cut an acknowledged write is gone, though the disk has all
// that it was asked to flush.
func TestPowerCut(t *testing.T) {
	powerCuts(t, "power", *powerRounds, fault{what: "a power cut"})
}

// TestPowerCutRelaxed: what was acknowledged last may be gone after a power cut, but then
// nobody is told so, or something is gone from the middle.
func TestPowerCutRelaxed(t *testing.T) {
	powerCuts(t, "power-relaxed", (*powerRounds+2)/3, fault{what: "a power cut, relaxed", mustEpoch: true, loss: true}, "--durability", "relaxed")
}

func powerCuts(t *testing.T, kind string, rounds int, f fault, flags ...string) {
	if testing.Short() {
		t.Skip("many restarts")
	}
	y := newTally(t, kind)
	rng, seed := seeded(t)
	for left := rounds; left > 0 && !t.Failed(); {
		campaign := min(left, 12)
		left -= campaign
		m, err := newMachine(t)
		if err != nil {
			y.skip("no file system on a disk of our own: %v", err)
		}
		if m.disk == nil {
			y.extra = " disk=a-plain-file"
		}
		r := newRecorder()
		s := newServer(t, r, m.data(), append([]string{"--log-size", "64KiB", "--disk-reserve", "1MiB"}, flags...)...)
		if err := s.start(fault{what: "the first start"}); err != nil {
			t.Fatal(err)
		}
		w := begin(t, r, s, seed+uint64(left), load{})
		for range campaign {
			y.rounds++
			on := time.Duration(20+rng.IntN(400)) * time.Millisecond
			if f.loss && rng.IntN(3) == 0 {
				on += 4 * time.Second // so that something stays
			}
			time.Sleep(on)
			f := f
			if f.loss {
				// "About a second", on a machine that has others to serve.
				f.since = max(r.now()-3*time.Second, 0)
			}
			if err := m.cut(s, 1+rng.IntN(80), rng); err != nil {
				t.Fatal(err)
			}
			if f.loss {
				w.pause() // until it was seen what is left
			}
			err := m.on()
			if err == nil {
				err = s.start(f)
			}
			if f.loss {
				w.resume()
			}
			if err != nil {
				break
			}
		}
		w.end()
		s.stop()
		y.add(r, w)
		m.off()
	}
}
