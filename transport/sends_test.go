package transport_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/transport"
)

// needsRings skips where many sockets can't be written to at once: what is tested then is what others test.
func needsRings(t *testing.T) {
	if !transport.IOUring() {
		t.Skip("***** SKIPPED: the kernel gives no io_uring here *****")
	}
}

// pairs are n connections over loopback.
func pairs(t *testing.T, n int) (servers, clients []*net.TCPConn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range n {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); s.Close() })
		s.(*net.TCPConn).SetWriteBuffer(32 << 10)
		c.(*net.TCPConn).SetReadBuffer(32 << 10)
		servers, clients = append(servers, s.(*net.TCPConn)), append(clients, c.(*net.TCPConn))
	}
	return servers, clients
}

// Whoever has sent must know to the byte what was taken: a byte less is a hole in somebody's stream, a byte more is told
// twice. Sockets are full, closed by either side, or read now and then.
func TestOfWhatIsSentTogetherNoByteIsLostOrSentTwice(t *testing.T) {
	needsRings(t)
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(rt, "sockets")
		servers, clients := pairs(t, n)
		sent, got := make([]bytes.Buffer, n), make([]bytes.Buffer, n)
		over := make([]bool, n)
		read := func(i, most int, within time.Duration) {
			clients[i].SetReadDeadline(time.Now().Add(within))
			_, err := io.CopyN(&got[i], clients[i], int64(most))
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, io.EOF) && !over[i] {
				rt.Fatal(err)
			}
		}
		s := new(transport.Sends)
		for range rapid.IntRange(1, 6).Draw(rt, "rounds") {
			told := 0
			some := rapid.SliceOfNDistinct(rapid.IntRange(0, n-1), 0, n, rapid.ID).Draw(rt, "some")
			for _, i := range some {
				b := bytes.Repeat([]byte{byte('a' + i%26)}, rapid.SampledFrom([]int{1, 200, 4000, 20_000, 300_000}).Draw(rt, "bytes"))
				for j := range b {
					b[j] += byte(j % 31) // what is cut out in between shows
				}
				s.Add(servers[i], b, func(left []byte) {
					told++
					if !bytes.HasSuffix(b, left) {
						rt.Errorf("socket %d: what is left is not the end of it", i)
					}
					sent[i].Write(b[:len(b)-len(left)])
				})
				if rapid.IntRange(0, 9).Draw(rt, "close") == 0 {
					over[i] = true
					servers[i].Close() // though it waits
				}
			}
			s.Flush()
			if waiting, held := s.Waiting(); told != len(some) || waiting != 0 || held > 4<<20 {
				rt.Fatalf("of %d senders %d were told; %d wait, and %d bytes are held", len(some), told, waiting, held)
			}
			for i := range n {
				switch rapid.IntRange(0, 3).Draw(rt, "reads") {
				case 0:
					read(i, 100_000, time.Millisecond)
				case 1:
					if rapid.IntRange(0, 9).Draw(rt, "leave") == 0 {
						over[i] = true
						clients[i].Close()
					}
				}
			}
		}
		for i := range n {
			servers[i].CloseWrite()
			if read(i, 10<<20, 10*time.Second); over[i] {
				if !bytes.HasPrefix(sent[i].Bytes(), got[i].Bytes()) {
					rt.Errorf("socket %d: what came is not what was sent", i)
				}
			} else if !bytes.Equal(sent[i].Bytes(), got[i].Bytes()) {
				rt.Errorf("socket %d: %d bytes were taken, %d came", i, sent[i].Len(), got[i].Len())
			}
		}
		for i := range n {
			servers[i].Close()
			clients[i].Close()
		}
	})
}

// More than go out in one call, and more than is held meanwhile: nobody may get what was meant for another.
func TestOfManyThatAreWrittenToTogetherEachGetsItsOwn(t *testing.T) {
	needsRings(t)
	const n = 900
	servers, clients := pairs(t, n)
	s := new(transport.Sends)
	var b []byte
	want := func(i, round int) string {
		return strings.Repeat(fmt.Sprintf("%d of %d;", round, i), 1+i*7919%(10+round*300+i/10))
	}
	for round := range 2 {
		for i := range n {
			b = append(b[:0], want(i, round)...) // over what was added before
			s.Add(servers[i], b, func(left []byte) {
				if len(left) > 0 {
					t.Errorf("socket %d did not take %d bytes", i, len(left))
				}
			})
		}
		s.Flush()
		for i := range n {
			got := make([]byte, len(want(i, round)))
			clients[i].SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.ReadFull(clients[i], got); err != nil || string(got) != want(i, round) {
				t.Fatalf("socket %d got %.40q, %v", i, got, err)
			}
		}
	}
}

var seqOf = regexp.MustCompile(`"type":"change","seq":(\d+)`)

// Of followers that are written to together some stop reading, and go on much later; each has all rows, in order, in frames
// that are whole, and those who read are not held up.
func TestFollowersThatAreWrittenToTogetherGetAllHoweverSlowlySomeRead(t *testing.T) {
	for name, o := range map[string]settings{"together": {}, "one by one": {options: transport.Options{OneByOne: true}}} {
		t.Run(name, func(t *testing.T) {
			if name == "together" {
				needsRings(t)
			}
			s := open(t, o)
			const rows, each = 120, 24
			s.write(changes(put("todos:0", `{}`), put("lists:0", `{}`)))
			var quick, all sync.WaitGroup
			goOn := make(chan struct{})
			for i := range each {
				tr := transports[i%2]
				collection := i / 2 % 2
				c := s.request(tr, "c="+[]string{"todos", "lists"}[collection])
				c.SetReadBuffer(64 << 10)
				slow := i%3 == 0
				all.Add(1)
				if !slow {
					quick.Add(1)
				}
				go func() {
					defer all.Done()
					if slow {
						<-goOn
					} else {
						defer quick.Done()
					}
					c.SetReadDeadline(time.Now().Add(10 * time.Second)) // within a heartbeat
					var got []string
					err := lines(bufio.NewReader(c), tr, func(line string) (more bool) {
						if m := seqOf.FindStringSubmatch(line); m != nil {
							got = append(got, m[1])
						}
						return len(got) < rows
					})
					var want []string
					for i := range rows {
						want = append(want, strconv.Itoa(2*i+collection+1))
					}
					if err != nil || !slices.Equal(got, want) {
						t.Errorf("follower %d by %s got %d of %d rows: %v, %v", i, tr, len(got), rows, got, err)
					}
				}()
			}
			s.sessions(each)
			pad := strings.Repeat("x", 20_000) // all of it is more than the buffers between us
			for i := 1; i < rows; i++ {
				row := func(n int) string { return fmt.Sprintf(`{"pad":%q}`, pad[:1+n*7919%len(pad)]) }
				s.write(changes(put(fmt.Sprint("todos:", i), row(i)), put(fmt.Sprint("lists:", i), row(2*i))))
			}
			quick.Wait()
			close(goOn)
			all.Wait()
		})
	}
}

// lines calls fn with each line of an answer, as long as it wants more.
func lines(r *bufio.Reader, tr string, fn func(line string) bool) error {
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	if tr == sse {
		body := bufio.NewReader(res.Body)
		for {
			line, err := body.ReadString('\n')
			if err != nil {
				return err
			}
			if data, ok := strings.CutPrefix(line, "data: "); ok && !fn(data) {
				return nil
			}
		}
	}
	for c := (&rawSocket{r: r}); ; {
		op, payload, err := c.read()
		switch {
		case err != nil:
			return err
		case op == 1: // text
			for line := range strings.SplitSeq(payload, "\n") {
				if !fn(line) {
					return nil
				}
			}
		case op != 9: // ping
			return fmt.Errorf("a frame has the opcode %x", op)
		}
	}
}

// Frames are kept for those who need the same: of many large transactions, one at most.
func TestFramesThatAreKeptForOthersTakeNoMoreMemoryThanOneTransaction(t *testing.T) {
	if held := transport.ShelfHolds(100, 4<<20); held != 4<<20 {
		t.Errorf("of transactions of 4 MiB it holds %d bytes", held)
	}
	if held := transport.ShelfHolds(100, 32<<10); held > 1<<20 || held < 2*(32<<10) {
		t.Errorf("of batches of 32 KiB it holds %d bytes", held)
	}
}
