package transport_test

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/transport"
	"github.com/tidemark-sync/tidemark/transport/gate"
)

// pair is a connection over loopback: the server's end through a listener of ours, and
// the client's.
func pair(t *testing.T, patience time.Duration) (server, client net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	bounded, err := gate.Listen(l, gate.ListenOptions{}) // as the program does it
	if err != nil {
		t.Fatal(err)
	}
	server, err = transport.ListenFor(bounded, patience).Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close(); client.Close() })
	return server, client
}

// What the kernel has taken can't be replaced by newer state any more.
func TestSlowPeerGetsLittleThatIsOld(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("a kernel without a bound")
	}
	server, client := pair(t, 300*time.Millisecond)
	client.(*net.TCPConn).SetReadBuffer(16 << 10)
	n, err := server.Write(make([]byte, 16<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a peer that takes nothing: %v", err)
	}
	if n > 600_000 {
		t.Errorf("%d kB were taken for a peer that reads nothing", n/1000)
	}
}

// The kernel must not take megabytes at once and then nothing for longer than the
// patience: its peer reads all the while.
func TestPeerThatReadsSlowlyButSteadilyIsNotStalled(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("a kernel without a bound")
	}
	server, client := pair(t, 2*time.Second)
	go func() {
		buf := make([]byte, 5000)
		for { // 500 kB/s
			if _, err := client.Read(buf); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	piece := make([]byte, 16<<10)
	total := 0
	for start := time.Now(); time.Since(start) < 6*time.Second; {
		n, err := server.Write(piece)
		total += n
		if err != nil {
			t.Fatalf("after %v and %d kB: %v", time.Since(start), total/1000, err)
		}
	}
	server.Close()
	client.Close()
}

func TestConnectionCanEndItsOwnHalf(t *testing.T) {
	server, client := pair(t, time.Second)
	if err := server.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client reads %v", err)
	}
	if _, err := client.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if n, err := server.Read(make([]byte, 1)); n != 1 {
		t.Errorf("the server reads %v", err)
	}
}
