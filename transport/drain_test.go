package transport_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	ws "github.com/coder/websocket"
)

// stop is the order in which a program stops.
func (s *site) stop(ctx context.Context) error {
	s.server.NotReady("draining")
	if err := s.hub.Drain(ctx); err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	if err := s.http.Shutdown(ctx); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	if err := s.server.Wait(ctx); err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	return nil
}

func TestServerStopsAtOnceAndTellsEachClientWhenToComeBack(t *testing.T) {
	s := open(t, settings{})
	const each = 20
	var feeds []*stream
	for range each {
		feeds = append(feeds, s.feed(sse, "c=todos"), s.feed(websocket, "c=todos"))
	}
	var held []chan *stream
	for range each {
		held = append(held, s.feedLater(poll, "c=todos&wait=55"))
	}
	s.sessions(3 * each)
	for _, st := range feeds {
		st.until("tick")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	start := time.Now()
	if err := s.stop(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	for _, c := range held {
		feeds = append(feeds, <-c)
	}
	retries := make(map[int64]int)
	least, most := int64(1<<62), int64(0)
	for _, st := range feeds {
		all := st.rest()
		end := all[len(all)-1]
		if end.Type != "end" || end.Reason != "draining" || end.Retry == nil {
			t.Fatalf("%s: the last frame is %s", st.transport, end)
		}
		if st.transport == websocket && ws.CloseStatus(st.err) != 1012 {
			t.Errorf("a WebSocket is closed by %v", st.err)
		}
		retries[*end.Retry]++
		least, most = min(least, *end.Retry), max(most, *end.Retry)
	}
	if len(retries) < len(feeds)*3/4 || most-least < 500 || least < 1 {
		t.Errorf("%d clients are to come back at %d moments, from %d to %d ms", len(feeds), len(retries), least, most)
	}
	if n := s.hub.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions", n)
	}
}

// A peer that does not answer the close frame is given a few seconds, not more.
func TestSocketThatAnswersNoCloseFrameDoesNotKeepTheServerFromStopping(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		c, _ := s.socket("c=todos")
		c.open(t)
		go func() { // it reads, and says nothing
			for {
				if _, _, err := c.read(); err != nil {
					return
				}
			}
		}()
		half, _ := s.socket("c=todos") // it is in the middle of a message for ever
		half.open(t)
		go func() {
			for {
				if _, _, err := half.read(); err != nil {
					return
				}
			}
		}()
		half.conn.Write([]byte("\x81\xfe\x00\xff\x00\x00\x00\x00half"))
		time.Sleep(time.Second)
		start := time.Now()
		if err := s.stop(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 11*time.Second {
			t.Errorf("it took %v", took)
		}
		c.conn.Close()
		half.conn.Close()
	})
}

// A client that stops in the middle of a message which is too large must not stay for ever.
func TestSocketThatStopsInAMessageThatIsTooLargeIsLetGo(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		c, _ := s.socket("c=todos")
		c.open(t)
		go func() {
			for {
				if _, _, err := c.read(); err != nil {
					return
				}
			}
		}()
		c.conn.Write([]byte("\x81\xff\x00\x00\x00\x00\x00\xff\xff\xff\x00\x00\x00\x00"))
		c.conn.Write(make([]byte, 1<<20+1))
		time.Sleep(time.Minute)
		if n := s.hub.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions", n)
		}
		if err := s.server.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		c.conn.Close()
	})
}

func TestWaitIsOverWhenItsContextIs(t *testing.T) {
	bubble(t, settings{}, func(t *testing.T, s *site) {
		st := s.feed(websocket, "c=todos")
		st.now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.server.Wait(ctx); err != context.DeadlineExceeded {
			t.Errorf("%v", err)
		}
	})
}
