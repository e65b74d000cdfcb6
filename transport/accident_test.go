package transport_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// A client that applies what comes, and resumes by its cursor over any transport, has
// the server's rows, wherever its connections break and however long it is away.
func TestNoAccidentOfAConnectionLosesARow(t *testing.T) {
	for seed := range uint64(15) {
		bubble(t, settings{hub: hub.Options{Tombstones: time.Hour}}, func(t *testing.T, s *site) {
			r := rand.New(rand.NewPCG(seed, 7))
			names := []string{"todos", "lists", "lists/1"}
			act := func() {
				for range r.IntN(8) {
					var list []string
					for range 1 + r.IntN(12) {
						key := fmt.Sprintf("%s:k%d", names[r.IntN(3)], r.IntN(25))
						if r.IntN(4) == 0 {
							list = append(list, remove(key))
						} else {
							list = append(list, put(key, fmt.Sprintf(`{"n":%d}`, r.IntN(1000))))
						}
					}
					s.write(changes(list...))
				}
			}
			f := newFold(t)
			var what string
			for range 25 {
				tr := transports[r.IntN(3)]
				query := "c=todos&c=lists&c=lists/1&heartbeat=3"
				if tr == poll {
					query += fmt.Sprintf("&wait=%d&limit=%d", 1+r.IntN(3), 1+r.IntN(20)) // a wait of 0 would never rest
				}
				if f.cursor != "" {
					query += "&cursor=" + f.cursor
				}
				what = fmt.Sprintf("seed %d, %s from %q", seed, tr, f.cursor)
				act()
				st := s.follow(tr, query)
				synctest.Wait()
				if r.IntN(3) == 0 {
					st.pause()
				}
				act()
				switch r.IntN(3) {
				case 0: // it breaks wherever it is
					st.resume()
					frames := st.now()
					frames = frames[:r.IntN(len(frames)+1)]
					f.apply(frames...)
				default: // it comes to rest
					st.resume()
					time.Sleep(4 * time.Second)
					f.apply(st.now()...)
					if !f.live {
						t.Errorf("%s: not live", what)
					}
					for _, name := range names {
						f.check(s, name)
					}
				}
				st.close()
				if r.IntN(8) == 0 {
					time.Sleep(time.Duration(r.IntN(4)) * time.Hour)
				}
				if t.Failed() {
					t.Fatal(what)
				}
			}
		})
	}
}
