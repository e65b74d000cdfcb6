package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"
)

// requestsMost is how many requests are listed; all are counted.
const requestsMost = 1000

// record is what came through a hop. It may be used concurrently.
type record struct {
	start time.Time

	mu   sync.Mutex
	told told // guarded by mu
}

// told is what GET /_hop answers.
type told struct {
	Name        string         `json:"name"`
	What        string         `json:"what"`
	Counts      map[string]int `json:"counts"` // requests by transport
	Connections struct {
		Open int `json:"open"` // now
		Most int `json:"most"` // at once
	} `json:"connections"`
	Requests []*request `json:"requests"` // the first of them, in the order in which they came
}

// request is one request. Its status is 0 as long as it has no answer.
type request struct {
	T         int64  `json:"t"` // milliseconds since the hop was made
	Transport string `json:"transport"`
	Status    int    `json:"status"`
}

func newRecord(p personality) *record {
	r := &record{start: time.Now(), told: told{Name: p.Name, What: p.What}}
	r.forget()
	return r
}

// forget begins to count anew. What is open stays open.
func (r *record) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told.Counts = map[string]int{"websocket": 0, "sse": 0, "poll": 0, "post": 0, "other": 0}
	r.told.Connections.Most = r.told.Connections.Open
	r.told.Requests = []*request{}
}

func (r *record) opened() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told.Connections.Open++
	r.told.Connections.Most = max(r.told.Connections.Most, r.told.Connections.Open)
}

func (r *record) closed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told.Connections.Open--
}

// came notes a request, and returns what notes its status.
func (r *record) came(transport string) (answered func(status int)) {
	one := &request{T: time.Since(r.start).Milliseconds(), Transport: transport}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told.Counts[transport]++
	if len(r.told.Requests) < requestsMost {
		r.told.Requests = append(r.told.Requests, one)
	}
	return func(status int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		one.Status = status
	}
}

// ServeHTTP tells what came, or forgets it.
func (r *record) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch req.Method {
	case http.MethodGet:
		r.mu.Lock()
		b, err := json.Marshal(r.told)
		r.mu.Unlock()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(append(b, '\n')) // whoever is gone has no answer
	case http.MethodPost:
		r.forget()
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "GET tells what came through, POST forgets it", http.StatusMethodNotAllowed)
	}
}

// transportOf is what the client asked for, whatever the network makes of it.
func transportOf(r *http.Request) string {
	switch {
	case upgradeOf(r.Header) != "":
		return "websocket"
	case r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodOptions:
		return "post"
	case r.Method != http.MethodGet || !isFeed(r.URL.Path):
		return "other"
	}
	switch named := r.URL.Query().Get("transport"); named {
	case "sse", "poll":
		return named
	}
	if strings.Contains(strings.ToLower(strings.Join(r.Header["Accept"], ",")), "text/event-stream") {
		return "sse"
	}
	return "poll"
}

// isFeed tells whether a path is /v1/{tenant}/feed.
func isFeed(path string) bool {
	tenant, ok := strings.CutPrefix(path, "/v1/")
	tenant, feed := strings.CutSuffix(tenant, "/feed")
	return ok && feed && tenant != "" && !strings.Contains(tenant, "/")
}
