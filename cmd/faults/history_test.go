package faults_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/cmd/faults/oracle"
)

// past is a change as the history tells it.
type past struct {
	Seq                        uint64
	Collection, Key, Op, Epoch string
	Value                      json.RawMessage
	By                         struct{ Client, ID string }
}

func (p past) String() string {
	return fmt.Sprintf("%d %s %s:%s %s by %s/%s in %s", p.Seq, p.Op, p.Collection, p.Key, p.Value, p.By.Client, p.By.ID, p.Epoch)
}

// span are sequences, both inclusive.
type span struct{ First, Last uint64 }

// chronicle is what a history says to one question.
type chronicle struct {
	changes []past
	begins  uint64
	missing []span // what it says that it does not have
}

var (
	lostPast  = regexp.MustCompile(`sequences (\d+) to (\d+) can't be read`)
	afterPast = regexp.MustCompile(`ask from=(\d+)`)
)

// history asks for all pages, and where something can't be read for what comes after it.
func (s *server) history(q url.Values) (*chronicle, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	x := &chronicle{}
	q.Set("limit", "151")
	for range 10_000 {
		res, err := client.Get(s.url() + "/v1/" + tenant + "/history?" + q.Encode())
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			return nil, err
		}
		var page struct {
			Changes      []past
			Begins       uint64
			Next         string
			Holes        []span
			Code, Detail string
		}
		if err := json.Unmarshal(b, &page); err != nil {
			return nil, fmt.Errorf("a page that can't be read: %w: %s", err, b)
		}
		if res.StatusCode != http.StatusOK {
			if lost := lostPast.FindStringSubmatch(page.Detail); lost != nil {
				first, _ := strconv.ParseUint(lost[1], 10, 64)
				last, _ := strconv.ParseUint(lost[2], 10, 64)
				x.missing = append(x.missing, span{first, last})
			}
			from := afterPast.FindStringSubmatch(page.Detail)
			if res.StatusCode != http.StatusInternalServerError || page.Code != "internal" || from == nil {
				return nil, fmt.Errorf("status %d: %s", res.StatusCode, b)
			}
			if q.Get("from") == from[1] && q.Get("after") == "" {
				return nil, fmt.Errorf("asked from %s on, it says to ask from there: %s", from[1], b)
			}
			q.Del("after")
			q.Set("from", from[1])
			continue
		}
		x.changes, x.missing = append(x.changes, page.Changes...), append(x.missing, page.Holes...)
		if x.begins == 0 {
			x.begins = page.Begins
		}
		if page.Next == "" {
			return x, nil
		}
		q.Set("after", page.Next)
	}
	return nil, fmt.Errorf("it has no end")
}

// against compares what a history says now with what it has to say.
func (x *chronicle) against(want []past) error {
	has := make(map[uint64]past)
	last := uint64(0)
	for _, p := range x.changes {
		if p.Seq <= last {
			return fmt.Errorf("%v comes after %d", p, last)
		}
		last, has[p.Seq] = p.Seq, p
	}
	for _, w := range want {
		p, ok := has[w.Seq]
		if delete(has, w.Seq); ok && p.String() != w.String() {
			return fmt.Errorf("it has %v, and that was %v", p, w)
		}
		for _, m := range x.missing {
			ok = ok || m.First <= w.Seq && w.Seq <= m.Last
		}
		if !ok {
			return fmt.Errorf("%v is missing without a word (it begins at %d and misses %v)", w, x.begins, x.missing)
		}
	}
	for _, p := range has {
		return fmt.Errorf("it has %v, which nobody wrote", p)
	}
	return nil
}

// checkHistory asks a store's history for all, for a part, and for some rows; whole tells
// whether all of it was there.
func (st *store) checkHistory(r *recorder, s *server, rng *rand.Rand, what string) (whole bool) {
	whole = true
	ask := func(q url.Values, keep func(past) bool) {
		text := q.Encode()
		x, err := s.history(q)
		if err == nil {
			var want []past
			for _, p := range st.past {
				if keep(p) {
					want = append(want, p)
				}
			}
			err = x.against(want)
			whole = whole && len(x.missing) == 0 && len(x.changes) == len(want)
		}
		if err != nil {
			whole = false
			r.problem("history", "after %s, asked for %q: %v", what, text, err)
		}
	}
	ask(url.Values{}, func(past) bool { return true })
	at := st.past[rng.IntN(len(st.past))].Seq
	ask(url.Values{"from": {fmt.Sprint(at)}}, func(p past) bool { return p.Seq >= at })
	for range 3 {
		row := st.past[rng.IntN(len(st.past))]
		ask(url.Values{"c": {row.Collection}, "key": {row.Key}}, func(p past) bool { return p.Collection == row.Collection && p.Key == row.Key })
	}
	return whole
}

// remember reads the history of a store that nobody has harmed yet: it must have all that
// was acknowledged.
func (st *store) remember(t testing.TB, s *server, writes []*oracle.Write) {
	x, err := s.history(url.Values{})
	if err != nil || len(x.missing) > 0 {
		t.Fatalf("the history of a whole store: %v, %+v", err, x)
	}
	has := make(map[uint64]past)
	for _, p := range x.changes {
		has[p.Seq] = p
	}
	for _, w := range writes {
		for _, a := range w.Attempts {
			for i, r := range a.Results {
				c := w.Changes[i]
				if r.Status != "ok" && r.Status != "duplicate" || c.Op == "remove" { // there may have been nothing to remove
					continue
				}
				if p := has[r.Seq]; p.Collection != c.Collection || p.Key != r.Key || string(p.Value) != r.Value || p.By.Client != w.Client || p.By.ID != c.ID {
					t.Errorf("VIOLATION history: %s/%s was answered %+v, and the history has %v", w.Client, c.ID, r, p)
				}
			}
		}
	}
	st.past = x.changes
}
