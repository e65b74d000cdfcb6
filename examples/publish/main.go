// Publish writes to a Tidemark server what changed somewhere else: here, the time and
// the memory of this very program, once a second. Copy it and put your own source in.
//
//	go run ./examples/publish -url http://127.0.0.1:7333 -tenant demo
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"time"
)

// change is one change, as POST /v1/{tenant}/changes takes it.
type change struct {
	ID         string `json:"id"` // makes sending it again harmless
	Collection string `json:"collection"`
	Op         string `json:"op"`
	Key        string `json:"key"`
	Value      any    `json:"value,omitempty"`
}

func main() {
	url := flag.String("url", "http://127.0.0.1:7333", "where the server is")
	tenant := flag.String("tenant", "demo", "whose data it is")
	count := flag.Int("count", 0, "stop after so many (0: go on until Ctrl-C)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	run := strconv.FormatInt(time.Now().UnixNano(), 36) // ids of two runs must differ
	for n := 1; ; n++ {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		// Two rows in one request are one transaction: nobody sees the one without the other.
		cursor, err := publish(ctx, *url+"/v1/"+*tenant+"/changes", []change{
			{run + "-time-" + strconv.Itoa(n), "status", "put", "time", map[string]any{"now": time.Now().Format(time.RFC3339), "n": n}},
			{run + "-memory-" + strconv.Itoa(n), "status", "put", "memory", map[string]any{"heap": m.HeapAlloc, "n": n}},
		})
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			log.Fatal(err)
		}
		fmt.Println("published", n, "at", cursor)
		if n == *count {
			return
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}

// publish sends changes until the server has taken or refused them. Since each has an
// id, sending the same again after a lost answer does nothing twice.
func publish(ctx context.Context, url string, changes []change) (cursor string, err error) {
	body, err := json.Marshal(map[string]any{"client": "publish-example", "changes": changes})
	if err != nil {
		return "", err
	}
	for pause := 500 * time.Millisecond; ; pause = min(2*pause, 30*time.Second) {
		cursor, again, err := post(ctx, url, body)
		if !again {
			return cursor, err
		}
		log.Printf("%v; trying again in %s", err, pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func post(ctx context.Context, url string, body []byte) (cursor string, again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return "", false, err
	}
	req.Header.Set("Content-Type", "application/json")
	if token := os.Getenv("TIDEMARK_TOKEN"); token != "" { // of a server with credentials
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", ctx.Err() == nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return "", ctx.Err() == nil, err
	}
	var answer struct{ Cursor, Detail string }
	if err := json.Unmarshal(b, &answer); err != nil {
		return "", false, fmt.Errorf("%s: %q", res.Status, b)
	}
	if res.StatusCode != http.StatusOK {
		busy := res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusTooManyRequests
		return "", busy, fmt.Errorf("%s: %s", res.Status, answer.Detail)
	}
	return answer.Cursor, false, nil
}
