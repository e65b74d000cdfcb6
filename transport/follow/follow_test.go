package follow_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/transport/follow"
)

var errEnough = errors.New("enough")

// problem answers a request with a refusal.
func problem(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"title":"no","status":%d,"code":%q}`, status, code)
}

func TestTransactionThatIsCutOffIsNeverShownHalf(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		var n counter
		bubble(t, func(w http.ResponseWriter, r *http.Request) {
			m := speak(t, w, r)
			switch n.next() {
			case 0:
				m.say(opened(), put(1, "todos", "a"), put(2, "todos", "b", true))
				m.say(put(3, "todos", "c", true))
				m.cut()
			default:
				if at := r.URL.Query().Get("cursor"); at != epoch+"-1" {
					t.Errorf("it comes back with the cursor %q", at)
				}
				// Meanwhile b has a newer state of its own.
				m.say(opened(), put(3, "todos", "c", true), put(4, "todos", "d"), put(7, "todos", "b"), live(9))
				m.hang()
			}
		}, func(t *testing.T, o follow.Options) {
			o.Transport = transport
			var got []string
			err := follow.Follow(t.Context(), o, func(s follow.Step) error {
				var keys string
				for _, f := range s.Frames {
					keys += f.Key
				}
				if keys != "" {
					got = append(got, keys)
				}
				if len(s.Frames) > 0 && s.Frames[0].Type == "live" {
					if at, _ := s.Cursors.One(); at != epoch+"-9" {
						t.Errorf("live, its cursor is %s", at)
					}
					return errEnough
				}
				return nil
			})
			if err != errEnough {
				t.Error(err)
			}
			if fmt.Sprint(got) != "[a cd b]" {
				t.Errorf("the steps are %v", got)
			}
		})
	})
}

func TestFeedContinuesOverAnotherTransportWithACursorForEachCollection(t *testing.T) {
	var asked []string
	var n counter
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		i := n.next()
		asked = append(asked, fmt.Sprintf("%s %s %s", q.Get("transport"), strings.Join(q["c"], ","), q.Get("cursor")))
		m := speak(t, w, r)
		switch i {
		case 0:
			m.say(opened(), put(3, "lists", "x"))
			m.cut()
		case 1:
			m.say(opened(), put(50, "lists", "x"), put(60, "todos", "a"), live(60))
			m.cut()
		case 2:
			m.say(opened(), reset("expired", "lists"), put(4, "lists", "y"))
			m.cut()
		default:
			m.say(opened(), live(70))
			m.hang()
		}
	}, func(t *testing.T, o follow.Options) {
		o.Collections = []follow.Collection{{Name: "todos", Cursor: epoch + "-42"}, {Name: "lists"}}
		o.Pick = func(n int) string { return follow.Transports[n%3] }
		var rows follow.Rows
		err := follow.Follow(t.Context(), o, func(s follow.Step) error {
			for _, f := range s.Frames {
				rows.Apply(f)
			}
			if at, _ := s.Cursors.One(); at == epoch+"-70" {
				return errEnough
			}
			return nil
		})
		if err != errEnough {
			t.Error(err)
		}
		want := []string{
			"sse todos@k3f9a1-42,lists ",
			"websocket todos@k3f9a1-42,lists@k3f9a1-3 ",
			"poll todos,lists k3f9a1-60",
			"poll todos@k3f9a1-60,lists@k3f9a1-4 ", // the sequence of polls goes on by itself
		}
		if !slices.Equal(asked, want) {
			t.Errorf("it asked\n%s", strings.Join(asked, "\n"))
		}
		if _, there := rows.Get("lists", "y"); !there || rows.Len("lists") != 1 || rows.Len("todos") != 1 {
			t.Error("the reset that outlived its connection is not what the rows show")
		}
	})
}

func TestLostClientsDoNotComeBackTogetherNorTooOften(t *testing.T) {
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(503)
	}, func(t *testing.T, o follow.Options) {
		var firsts []time.Duration
		var longest time.Duration
		for range 20 {
			window := 500 * time.Millisecond
			n := 0
			err := follow.Follow(t.Context(), o, func(s follow.Step) error {
				var p *follow.Problem
				if !errors.As(s.Lost, &p) || p.Status != 503 {
					t.Fatalf("lost: %v", s.Lost)
				}
				if s.Wait >= window {
					t.Errorf("try %d waits %v, of a window of %v", n, s.Wait, window)
				}
				if n == 0 {
					firsts = append(firsts, s.Wait)
				}
				longest = max(longest, s.Wait)
				window = min(2*window, 30*time.Second)
				if n++; n == 12 {
					return errEnough
				}
				return nil
			})
			if err != errEnough {
				t.Error(err)
			}
		}
		if slices.Max(firsts)-slices.Min(firsts) < 50*time.Millisecond {
			t.Errorf("twenty clients come back as one: %v", firsts)
		}
		if longest < 15*time.Second {
			t.Errorf("the longest wait of 240 is %v: it does not back off", longest)
		}
	})
}

func TestServerThatAsksForTimeGetsIt(t *testing.T) {
	for name, say := range map[string]func(m *mouth, w http.ResponseWriter){
		"end": func(m *mouth, _ http.ResponseWriter) {
			m.say(opened(), `{"type":"end","reason":"draining","retry":60000}`)
		},
		"Retry-After": nil,
	} {
		t.Run(name, func(t *testing.T) {
			var n counter
			var times []time.Time
			bubble(t, func(w http.ResponseWriter, r *http.Request) {
				times = append(times, time.Now())
				if n.next() > 0 {
					speak(t, w, r).say(opened(), live(1))
					return
				}
				if say != nil {
					say(speak(t, w, r), w)
					return
				}
				w.Header().Set("Retry-After", "60")
				problem(w, 503, "unavailable")
			}, func(t *testing.T, o follow.Options) {
				err := follow.Follow(t.Context(), o, func(s follow.Step) error {
					if s.Connection == 1 {
						return errEnough
					}
					return nil
				})
				if err != errEnough {
					t.Fatal(err)
				}
				if away := times[1].Sub(times[0]); away < time.Minute || away > 61*time.Second {
					t.Errorf("it came back after %v", away)
				}
			})
		})
	}
}

func TestConnectionThatDiesRightAfterLiveIsNotMadeInATightLoop(t *testing.T) {
	var n counter
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		n.next()
		m := speak(t, w, r)
		m.say(opened(), live(1))
		m.cut()
	}, func(t *testing.T, o follow.Options) {
		o.Transport = follow.WebSocket
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := follow.Follow(ctx, o, func(follow.Step) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if got := n.count(); got > 120 {
			t.Errorf("%d connections in ten minutes", got)
		}
	})
}

func TestFollowingEndsWhereGoingOnIsUseless(t *testing.T) {
	after := func(h http.HandlerFunc) func(*testing.T, int, http.ResponseWriter, *http.Request) {
		return func(t *testing.T, n int, w http.ResponseWriter, r *http.Request) {
			if n == 0 {
				m := speak(t, w, r)
				m.say(opened(), live(1))
				m.cut()
			}
			h(w, r)
		}
	}
	first := func(h http.HandlerFunc) func(*testing.T, int, http.ResponseWriter, *http.Request) {
		return func(_ *testing.T, _ int, w http.ResponseWriter, r *http.Request) { h(w, r) }
	}
	refuse := func(status int, code string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { problem(w, status, code) }
	}
	bare := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }
	}
	for _, x := range []struct {
		name   string
		answer func(*testing.T, int, http.ResponseWriter, *http.Request)
		end    bool
	}{
		{"forbidden", first(refuse(403, "forbidden")), true},
		{"forbidden later", after(refuse(403, "forbidden")), true},
		{"a wrong URL", first(bare(404)), true},
		{"a proxy without its upstream, later", after(bare(404)), false},
		{"too many", first(refuse(429, "too-many")), false},
		{"broken", first(refuse(500, "internal")), false},
		{"revoked", func(t *testing.T, n int, w http.ResponseWriter, r *http.Request) {
			speak(t, w, r).say(opened(), `{"type":"end","reason":"revoked"}`)
		}, true},
		{"failed, come back", func(t *testing.T, n int, w http.ResponseWriter, r *http.Request) {
			speak(t, w, r).say(opened(), `{"type":"end","reason":"failed","retry":0}`)
		}, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			var n counter
			bubble(t, func(w http.ResponseWriter, r *http.Request) {
				x.answer(t, n.next(), w, r)
			}, func(t *testing.T, o follow.Options) {
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Hour, errEnough)
				defer cancel()
				err := follow.Follow(ctx, o, func(follow.Step) error { return nil })
				if ended := err != errEnough; ended != x.end {
					t.Errorf("Follow returned %v", err)
				}
			})
		})
	}
}

func TestStepThatWasNotDoneWithComesAgain(t *testing.T) {
	var asked []string
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query().Get("cursor"))
		m := speak(t, w, r)
		m.say(opened(), put(1, "todos", "a"), put(2, "todos", "b"), live(2))
		m.hang()
	}, func(t *testing.T, o follow.Options) {
		var at follow.Cursors
		full := errors.New("the disk is full")
		err := follow.Follow(t.Context(), o, func(s follow.Step) error {
			if s.Frames[0].Key == "b" {
				return full
			}
			at = s.Cursors
			return nil
		})
		if err != full {
			t.Fatalf("Follow returned %v", err)
		}
		o.Collections = at.Collections()
		err = follow.Follow(t.Context(), o, func(s follow.Step) error { return errEnough })
		if err != errEnough || !slices.Equal(asked, []string{"", epoch + "-1"}) {
			t.Errorf("%v, asked %q", err, asked)
		}
	})
}

func TestIdleComesWhenNothingIsLeftToWrite(t *testing.T) {
	for _, end := range []string{"", "\n"} {
		bubble(t, func(w http.ResponseWriter, r *http.Request) {
			m := speak(t, w, r)
			m.raw(strings.Join([]string{opened(), put(1, "todos", "a"), put(2, "todos", "b"), live(2)}, "\n") + end)
			m.hang()
		}, func(t *testing.T, o follow.Options) {
			o.Transport = follow.WebSocket
			ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Second, errEnough)
			defer cancel()
			var idle []bool
			err := follow.Follow(ctx, o, func(s follow.Step) error {
				idle = append(idle, s.Idle)
				return nil
			})
			if err != errEnough || fmt.Sprint(idle) != "[false false false true]" {
				t.Errorf("%v, idle: %v", err, idle)
			}
		})
	}
}

func TestTransactionWithoutEndDoesNotFillTheMemory(t *testing.T) {
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		m := speak(t, w, r)
		m.say(opened())
		for i := 1; i < 200; i++ {
			m.say(put(i, "todos", "a", true))
		}
		m.hang()
	}, func(t *testing.T, o follow.Options) {
		o.MaxLine = 1000
		if err := follow.Follow(t.Context(), o, func(follow.Step) error { return nil }); !errors.Is(err, follow.ErrTooLarge) {
			t.Error(err)
		}
	})
}

func TestAnotherTransportIsTriedWhereUpgradesAreStripped(t *testing.T) {
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("transport") == follow.WebSocket {
			problem(w, 426, "upgrade-required")
			return
		}
		m := speak(t, w, r)
		m.say(opened(), live(1))
		m.hang()
	}, func(t *testing.T, o follow.Options) {
		o.Pick = func(n int) string { return []string{follow.WebSocket, follow.Poll}[n%2] }
		err := follow.Follow(t.Context(), o, func(s follow.Step) error {
			if s.Transport == follow.Poll {
				return errEnough
			}
			return nil
		})
		if err != errEnough {
			t.Error(err)
		}
	})
}

func TestAnswersToAClientsOwnRequestsComeBackToIt(t *testing.T) {
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		m := speak(t, w, r)
		m.say(opened(), live(1))
		_, msg, err := m.ws.Read(r.Context())
		if err != nil || string(msg) != `{"type":"write","id":"7","changes":[]}` {
			t.Errorf("the server reads %q, %v", msg, err)
		}
		m.say(`{"type":"written","id":"7","cursor":"k3f9a1-4","results":[{"id":"m","status":"duplicate","key":"a","seq":3,"value":{"n":1}},{"id":null,"status":"conflict","key":"b","seq":0,"value":null}]}`)
		m.say(`{"type":"error","id":"8","status":413,"code":"too-large","title":"Too large","detail":"write less","retry":2500}`)
		m.hang()
	}, func(t *testing.T, o follow.Options) {
		o.Transport, o.Collections = follow.WebSocket, nil // it only writes
		c, err := follow.Dial(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var got []follow.Frame
		for i := range 4 {
			f, err := c.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, f)
			if i == 1 {
				if err := c.Send(t.Context(), []byte(`{"type":"write","id":"7","changes":[]}`)); err != nil {
					t.Fatal(err)
				}
			}
		}
		w := got[2]
		if w.ID != "7" || w.Cursor != "k3f9a1-4" || len(w.Results) != 2 || !w.Results[0].OK() || w.Results[0].Seq != 3 ||
			string(w.Results[0].Value) != `{"n":1}` || w.Results[1].OK() || w.Results[1].Value != nil {
			t.Errorf("written is read as %+v", w)
		}
		if e := got[3]; e.ID != "8" || e.Problem == nil || e.Problem.Error() != "413 too-large: Too large: write less" || e.Problem.RetryAfter != 2500*time.Millisecond {
			t.Errorf("error is read as %+v", e)
		}
	})
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		m := speak(t, w, r)
		m.say(opened())
		m.hang()
	}, func(t *testing.T, o follow.Options) {
		c, err := follow.Dial(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Send(t.Context(), []byte(`{}`)); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Send over an event stream: %v", err)
		}
	})
}

func TestRefusedWriteTellsWhatStands(t *testing.T) {
	answers := map[string]struct {
		status     int
		kind, body string
		results    int
		want       string
	}{
		"done":        {200, "application/json", `{"cursor":"k3f9a1-4","results":[{"id":"m","status":"ok","key":"a","seq":3}]}`, 1, ""},
		"conflict":    {409, "application/json", `{"results":[{"id":"m","status":"conflict","key":"a","seq":3,"value":{}}]}`, 1, ""},
		"a problem":   {409, "application/problem+json", `{"title":"Conflict","status":409,"code":"conflict"}`, 0, "409 conflict: Conflict"},
		"unavailable": {503, "application/problem+json", `{"code":"unavailable"}`, 0, "503 unavailable: Service Unavailable"},
		"a page":      {200, "text/html", `<h1>`, 0, "can't be read"},
	}
	for name, x := range answers {
		bubble(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v1/demo/changes" || r.Header.Get("Authorization") != "Bearer t" {
				t.Errorf("%s %v", r.URL.Path, r.Header)
			}
			w.Header().Set("Content-Type", x.kind)
			w.WriteHeader(x.status)
			fmt.Fprint(w, x.body)
		}, func(t *testing.T, o follow.Options) {
			o.Header = http.Header{"Authorization": {"Bearer t"}}
			f, err := follow.Post(t.Context(), o, []byte(`{"changes":[]}`))
			if len(f.Results) != x.results || (err == nil) != (x.want == "") || (err != nil && !strings.Contains(err.Error(), x.want)) {
				t.Errorf("%s: %d results, %v", name, len(f.Results), err)
			}
		})
	}
}

func TestPollsOfOneFollowShareAConnection(t *testing.T) {
	var n counter
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		speak(t, w, r).say(opened(), put(n.next()+1, "todos", "a"), live(n.count()))
	}, func(t *testing.T, o follow.Options) {
		dials := 0
		tr := o.HTTP.Transport.(*http.Transport)
		dial := tr.DialContext
		tr.DialContext = func(ctx context.Context, a, b string) (net.Conn, error) {
			dials++
			return dial(ctx, a, b)
		}
		o.Transport = follow.Poll
		steps := 0
		err := follow.Follow(t.Context(), o, func(s follow.Step) error {
			if steps++; steps == 60 {
				return errEnough
			}
			return nil
		})
		synctest.Wait()
		if err != errEnough || dials != 1 {
			t.Errorf("%v; %d connections for %d polls", err, dials, n.count())
		}
	})
}
