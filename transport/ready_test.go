package transport_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// A browser's EventSource that is answered anything but a stream, once, never comes back.
func TestEventSourceSurvivesAServerThatStartsOrStops(t *testing.T) {
	bubble(t, settings{unready: true}, func(t *testing.T, s *site) {
		started := make(chan int)
		go func() {
			req, err := http.NewRequest(http.MethodGet, s.url+"/v1/acme/feed?c=todos", nil)
			if err != nil {
				t.Error(err)
			}
			req.Header.Set("Accept", "text/event-stream")
			res, err := s.client.Do(req)
			if err != nil {
				t.Error(err)
				started <- 0
				return
			}
			res.Body.Close()
			started <- res.StatusCode
		}()
		time.Sleep(5 * time.Second) // the log is long
		s.server.Serve(s.hub)
		if status := <-started; status != http.StatusOK {
			t.Errorf("while it starts: %d", status)
		}
		synctest.Wait()
		s.server.NotReady("draining")
		if r, err := s.try("GET", "/v1/acme/feed?c=todos", "", "Accept", "text/event-stream"); err == nil {
			t.Errorf("while it stops: %d %s", r.status, r.body)
		}
	})
	// It does not wait for ever either.
	bubble(t, settings{unready: true}, func(t *testing.T, s *site) {
		if r := s.do("GET", "/v1/acme/feed?c=todos", "", "Accept", "text/event-stream"); r.status != http.StatusServiceUnavailable {
			t.Errorf("a server that does not get ready: %d %s", r.status, r.body)
		}
	})
}
