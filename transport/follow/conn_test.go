package follow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/transport/follow"
)

// all reads frames until the error that ends the connection.
func all(c *follow.Conn) (raw []string, err error) {
	for {
		f, err := c.Next(context.Background())
		if err != nil {
			return raw, err
		}
		raw = append(raw, string(f.Raw))
	}
}

func TestEveryTransportBringsTheSameFrames(t *testing.T) {
	frames := []string{
		opened(),
		reset("expired", "todos"),
		`{"type":"change","seq":7,"collection":"todos","op":"modify","key":"a\u00e9\"","at":"2026-03-01T10:00:00.123Z","by":{"client":"c-81","id":"m-7"},"value":{"Type":"x","deep":[{"}":"\\\""}]},"more":true}`,
		remove(9, "todos", "b"),
		live(12),
		`{"type":"invented","later":1}`,
		`{"type":"end","reason":"draining","retry":1500}`,
	}
	each(t, func(t *testing.T, transport string) {
		bubble(t, func(w http.ResponseWriter, r *http.Request) {
			m := speak(t, w, r)
			m.say(frames[0])
			m.say(frames[1:]...)
			m.finish()
		}, func(t *testing.T, o follow.Options) {
			o.Transport = transport
			c, err := follow.Dial(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var got []follow.Frame
			for range frames {
				f, err := c.Next(t.Context())
				if err != nil {
					t.Fatalf("after %d frames: %v", len(got), err)
				}
				if want := frames[len(got)]; string(f.Raw) != want {
					t.Fatalf("frame %d is\n%s, want\n%s", len(got), f.Raw, want)
				}
				got = append(got, f)
			}
			if f := got[0]; f.Epoch != epoch || f.Heartbeat != 10*time.Second || f.Session != "s1" || len(f.Transports) != 3 {
				t.Errorf("open is read as %+v", f)
			}
			if f := got[1]; f.Reason != "expired" || len(f.Collections) != 1 {
				t.Errorf("reset is read as %+v", f)
			}
			f := got[2]
			if f.Seq != 7 || f.Op != "modify" || f.Key != `aé"` || f.By != (follow.By{Client: "c-81", ID: "m-7"}) || !f.More ||
				string(f.Value) != `{"Type":"x","deep":[{"}":"\\\""}]}` || f.At.UnixMilli() != 1772359200123 {
				t.Errorf("change is read as %+v", f)
			}
			if f := got[3]; f.Op != "remove" || f.Value != nil || f.More {
				t.Errorf("remove is read as %+v", f)
			}
			_, err = c.Next(t.Context())
			var end *follow.Ended
			if !errors.As(err, &end) || end.Reason != "draining" || end.Retry != 1500*time.Millisecond || !end.Again {
				t.Errorf("after end comes %v", err)
			}
			if at, _ := c.Cursors().One(); at != epoch+"-12" {
				t.Errorf("the cursor is %s", at)
			}
		})
	})
}

func TestRefusalSaysWhatToDoAndWhen(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		bubble(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(429)
			fmt.Fprint(w, `{"type":"about:blank","title":"Too many","status":429,"code":"too-many","detail":"come back later"}`)
		}, func(t *testing.T, o follow.Options) {
			o.Transport = transport
			_, err := follow.Dial(t.Context(), o)
			var p *follow.Problem
			if !errors.As(err, &p) {
				t.Fatalf("the error is %v", err)
			}
			if *p != (follow.Problem{Status: 429, Code: "too-many", Title: "Too many", Detail: "come back later", RetryAfter: 7 * time.Second}) {
				t.Errorf("the refusal is read as %+v", p)
			}
		})
	})
}

func TestPortalPageIsNoFeed(t *testing.T) {
	for _, transport := range []string{follow.SSE, follow.Poll} {
		bubble(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprint(w, "<h1>Welcome to the hotel</h1>")
		}, func(t *testing.T, o follow.Options) {
			o.Transport = transport
			if _, err := follow.Dial(t.Context(), o); err == nil || !strings.Contains(err.Error(), "text/html") {
				t.Errorf("over %s the error is %v", transport, err)
			}
		})
	}
}

func TestPollThatIsCutOffLosesNothingAndRepeatsLittle(t *testing.T) {
	var n counter
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		m := speak(t, w, r)
		at := r.URL.Query().Get("cursor")
		switch n.next() {
		case 0:
			m.say(opened(), put(1, "todos", "a"), put(2, "todos", "b"))
			m.raw(put(3, "todos", "c")[:40])
			m.cut()
		case 1:
			if at != epoch+"-2" {
				t.Errorf("after the cut it is asked from %q", at)
			}
			m.say(opened(), put(3, "todos", "c"), `{"type":"next","cursor":"`+epoch+`-3"}`)
		case 2:
			if at != epoch+"-3" {
				t.Errorf("after next it is asked from %q", at)
			}
			m.say(opened(), put(4, "todos", "d"))
			m.raw(live(4)) // without a line end, but whole, and the body ends in order
		default:
			m.cut()
		}
	}, func(t *testing.T, o follow.Options) {
		o.Transport = follow.Poll
		c, err := follow.Dial(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw, err := all(c)
		want := []string{opened(), put(1, "todos", "a"), put(2, "todos", "b"), opened(), put(3, "todos", "c"),
			`{"type":"next","cursor":"` + epoch + `-3"}`, opened(), put(4, "todos", "d"), live(4)}
		if strings.Join(raw, "\n") != strings.Join(want, "\n") {
			t.Errorf("got\n%s", strings.Join(raw, "\n"))
		}
		if err == nil {
			t.Error("answers that bring nothing go on for ever")
		}
	})
}

func TestOldPollAnswerOutOfACacheIsNotFetchedInATightLoop(t *testing.T) {
	var n counter
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		n.next()
		speak(t, w, r).say(opened(), live(5))
	}, func(t *testing.T, o follow.Options) {
		o.Transport = follow.Poll
		c, err := follow.Dial(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for {
			if _, err := c.Next(ctx); err != nil {
				break
			}
		}
		if got := n.count(); got < 50 || got > 62 {
			t.Errorf("%d requests in a minute", got)
		}
	})
}

func TestPollIsHeldAndAskedAgainAtOnce(t *testing.T) {
	var waits []string
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		waits = append(waits, r.URL.Query().Get("wait"))
		m := speak(t, w, r)
		if r.URL.Query().Get("wait") == "0" {
			m.say(opened(), live(5))
			return
		}
		time.Sleep(40 * time.Second)
		m.say(opened(), live(5))
	}, func(t *testing.T, o follow.Options) {
		o.Transport, o.Wait = follow.Poll, 40*time.Second
		c, err := follow.Dial(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		for range 6 {
			if _, err := c.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != 80*time.Second {
			t.Errorf("two held polls took %v", took)
		}
		if got := strings.Join(waits, " "); got != "0 40 40" {
			t.Errorf("it waits %s", got)
		}
	})
}

func TestSilentConnectionIsNotTakenForAQuietFeed(t *testing.T) {
	for _, transport := range []string{follow.SSE, follow.WebSocket} {
		for _, comments := range []bool{false, true} {
			if comments && transport != follow.SSE {
				continue
			}
			t.Run(fmt.Sprintf("%s, comments: %v", transport, comments), func(t *testing.T) {
				bubble(t, func(w http.ResponseWriter, r *http.Request) {
					m := speak(t, w, r)
					m.say(opened(), live(1))
					time.Sleep(9 * time.Second)
					m.say(live(1))
					for comments && r.Context().Err() == nil {
						time.Sleep(3 * time.Second)
						m.raw(": a box in between\n\n")
					}
					m.hang()
				}, func(t *testing.T, o follow.Options) {
					o.Transport = transport
					c, err := follow.Dial(t.Context(), o)
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					began := time.Now()
					raw, err := all(c)
					if len(raw) != 3 || !errors.Is(err, follow.ErrSilent) {
						t.Errorf("%d frames, then %v", len(raw), err)
					}
					if took := time.Since(began); took != 34*time.Second { // 9 s, then 2.5 heartbeats of 10
						t.Errorf("given up after %v", took)
					}
				})
			})
		}
	}
}

func TestSlowReaderIsNotTakenForASilentServer(t *testing.T) {
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		m := speak(t, w, r)
		m.say(opened())
		m.say(put(1, "todos", "a"))
		m.hang()
	}, func(t *testing.T, o follow.Options) {
		c, err := follow.Dial(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 2 {
			if _, err := c.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Minute)
		}
	})
}

func TestLongFrameOnABadLinkIsWaitedFor(t *testing.T) {
	for _, transport := range []string{follow.SSE, follow.Poll} {
		bubble(t, func(w http.ResponseWriter, r *http.Request) {
			m := speak(t, w, r)
			m.say(opened())
			frame := put(1, "todos", strings.Repeat("k", 200))
			if transport == follow.SSE {
				frame = "data: " + frame + "\n"
			}
			for i := range len(frame) { // 300 bytes, one in 5 s
				m.raw(frame[i : i+1])
				time.Sleep(5 * time.Second)
			}
			m.raw("\n")
			m.say(live(1))
			m.cut()
		}, func(t *testing.T, o follow.Options) {
			o.Transport = transport
			c, err := follow.Dial(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for range 3 {
				if _, err := c.Next(t.Context()); err != nil {
					t.Fatalf("over %s: %v", transport, err)
				}
			}
		})
	}
}

func TestEndlessLineDoesNotFillTheMemory(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		bubble(t, func(w http.ResponseWriter, r *http.Request) {
			m := speak(t, w, r)
			m.say(opened())
			head := `{"type":"change","key":"`
			if transport == follow.SSE {
				head = "data: " + head
			}
			m.raw(head + strings.Repeat("x", 5000))
			m.raw(strings.Repeat("x", 5000))
			m.hang()
		}, func(t *testing.T, o follow.Options) {
			o.Transport, o.MaxLine = transport, 2000
			c, err := follow.Dial(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			raw, err := all(c)
			if len(raw) != 1 || !errors.Is(err, follow.ErrTooLarge) {
				t.Errorf("%d frames, then %v", len(raw), err)
			}
		})
	})
}

func TestCloseAndCancelEndAWaitingNext(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		bubble(t, func(w http.ResponseWriter, r *http.Request) {
			m := speak(t, w, r)
			m.say(opened(), live(1))
			m.hang()
		}, func(t *testing.T, o follow.Options) {
			o.Transport = transport
			for _, how := range []string{"close", "cancel"} {
				c, err := follow.Dial(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancelCause(t.Context())
				gone := errors.New("gone home")
				result := make(chan error)
				go func() {
					_, err := c.Next(ctx)
					for err == nil {
						_, err = c.Next(ctx)
					}
					result <- err
				}()
				synctest.Wait()
				if how == "close" {
					c.Close()
				} else {
					cancel(gone)
				}
				err = <-result
				if how == "close" && !errors.Is(err, follow.ErrClosed) && !errors.Is(err, follow.ErrCut) {
					t.Errorf("after Close, Next returns %v", err)
				}
				if how == "cancel" && err != gone {
					t.Errorf("after the context's end, Next returns %v", err)
				}
				cancel(nil)
				c.Close()
			}
		})
	})
}

func TestDialGivesUpWithItsContext(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		bubble(t, func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		}, func(t *testing.T, o follow.Options) {
			o.Transport = transport
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			if _, err := follow.Dial(ctx, o); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the error is %v", err)
			}
		})
	})
}

func TestFrameThatCannotBeReadIsNotSkipped(t *testing.T) {
	for name, frame := range map[string]string{
		"no object":            `["type"]`,
		"no type":              `{"seq":1}`,
		"a type of other case": `{"Type":"live","cursor":"k3f9a1-1"}`,
		"sequence 0":           strings.Replace(put(1, "todos", "a"), `"seq":1`, `"seq":0`, 1),
		"sequence 2^53":        strings.Replace(put(1, "todos", "a"), `"seq":1`, `"seq":9007199254740992`, 1),
		"sequence 1.5":         strings.Replace(put(1, "todos", "a"), `"seq":1`, `"seq":1.5`, 1),
		"a bad collection":     put(1, "to dos", "a"),
		"no key":               put(1, "todos", ""),
		"an unknown op":        strings.Replace(put(1, "todos", "a"), "insert", "upsert", 1),
		"a value of no object": strings.Replace(put(1, "todos", "a"), `{"n":1}`, `[1]`, 1),
		"no value":             strings.Replace(put(1, "todos", "a"), `{"n":1}`, `null`, 1),
		"a bad cursor":         `{"type":"live","cursor":"1042"}`,
		"a bad epoch":          `{"type":"open","epoch":"X"}`,
		"an empty reset":       `{"type":"reset","collections":[],"reason":"epoch"}`,
		"half an object":       `{"type":"live","cursor":"k3f9a1-1"`,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(w http.ResponseWriter, r *http.Request) {
				m := speak(t, w, r)
				m.say(opened())
				m.raw("data: " + frame + "\n\n")
				m.say(live(2))
			}, func(t *testing.T, o follow.Options) {
				c, err := follow.Dial(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				raw, err := all(c)
				if len(raw) != 1 || !errors.Is(err, follow.ErrFrame) {
					t.Errorf("%d frames, then %v", len(raw), err)
				}
			})
		})
	}
}

func TestWebSocketCloseCodesAreNotJustACut(t *testing.T) {
	for code, want := range map[int]string{
		4401: "401 unauthenticated", 4403: "403 forbidden", 4400: "400 bad-request", 1009: "413 too-large", 1013: "503 unavailable",
		1012: "draining", 1011: "failed", 4408: "slow", 4409: "evicted", 1000: "1000",
	} {
		bubble(t, func(w http.ResponseWriter, r *http.Request) {
			m := speak(t, w, r)
			m.say(opened())
			m.closeWith(code)
		}, func(t *testing.T, o follow.Options) {
			o.Transport = follow.WebSocket
			c, err := follow.Dial(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := all(c); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("close code %d is %v, want %s", code, err, want)
			}
		})
	}
}

// answers is an http.RoundTripper of one answer.
type answers func(*http.Request) *http.Response

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) { return a(r), nil }

func TestLastWordCountsThoughTheStreamEndsWithIt(t *testing.T) {
	c, err := follow.Dial(t.Context(), follow.Options{
		URL: "http://tidemark.test", Tenant: "demo", Collections: []follow.Collection{{Name: "todos"}},
		HTTP: &http.Client{Transport: answers(func(r *http.Request) *http.Response {
			stream := "data: " + opened() + "\n\ndata: {\"type\":\"end\",\"reason\":\"revoked\"}\n\n"
			return &http.Response{StatusCode: 200, Request: r, Header: http.Header{"Content-Type": {"text/event-stream"}},
				Body: io.NopCloser(iotest.DataErrReader(strings.NewReader(stream)))} // bytes and EOF in one read
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := all(c)
	var end *follow.Ended
	if len(raw) != 2 || !errors.As(err, &end) || end.Again {
		t.Errorf("%d frames, then %v", len(raw), err)
	}
}

func TestOptionsThatCannotWorkFailBeforeAnythingIsSent(t *testing.T) {
	good := follow.Options{URL: "http://127.0.0.1:1", Tenant: "demo", Collections: []follow.Collection{{Name: "todos"}}}
	for name, spoil := range map[string]func(*follow.Options){
		"no scheme":         func(o *follow.Options) { o.URL = "127.0.0.1:7333" },
		"a scheme of files": func(o *follow.Options) { o.URL = "file:///tmp" },
		"a query":           func(o *follow.Options) { o.URL += "?a=b" },
		"no tenant":         func(o *follow.Options) { o.Tenant = "" },
		"a tenant's slash":  func(o *follow.Options) { o.Tenant = "a/b" },
		"no collection":     func(o *follow.Options) { o.Collections = nil },
		"a bad collection":  func(o *follow.Options) { o.Collections[0].Name = "a@b" },
		"one twice":         func(o *follow.Options) { o.Collections = append(o.Collections, o.Collections[0]) },
		"a transport":       func(o *follow.Options) { o.Transport = "pigeon" },
	} {
		o := good
		o.Collections = []follow.Collection{{Name: "todos"}}
		spoil(&o)
		_, err := follow.Dial(t.Context(), o)
		if err == nil || strings.Contains(err.Error(), "refused") {
			t.Errorf("with %s the error is %v", name, err)
		}
		if err := follow.Follow(t.Context(), o, nil); err == nil {
			t.Errorf("with %s Follow starts", name)
		}
	}
}
