package main

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// personality is one habit of a network. The zero value passes everything on.
type personality struct {
	Name string
	What string // for whoever reads a table: one sentence

	upgrades upgradeRule         // what becomes of requests to upgrade
	feed     func(*http.Request) // changes requests for the feed before they go on
	upgraded fate                // what befalls a connection after its 101
	events   fate                // what befalls an event stream after its headers
	hold     holdRule            // what is kept of an event stream until it is over
	body     int64               // the most bytes of body in one answer of the API; 0: any
	cache    time.Duration       // how long answers to GET are replayed; 0: never
	idle     time.Duration       // how long a connection may be silent; 0: for ever
	delay    time.Duration       // how long bytes are on their way, in each direction
	alone    bool                // one exchange at a time for each client host
}

type upgradeRule int

const (
	passUpgrades upgradeRule = iota
	stripUpgrades
	refuseUpgrades
	hangUpgrades
)

type holdRule int

const (
	holdNothing holdRule = iota
	holdBody
	holdAll // headers too
)

// fate is what happens to a stream some time after it began.
type fate struct {
	after  time.Duration
	ending ending
}

type ending int

const (
	lives    ending = iota
	muteDown        // nothing more comes to the client, not even the end
	muteUp          // nothing more comes to the server
	muteBoth
	cut   // the connection is closed
	reset // the connection is reset
)

// personalities are all that there are.
var personalities = []personality{
	{
		Name: "plain",
		What: "Passes everything, as a network should.",
	}, {
		Name:     "upgrade-stripped",
		What:     "Removes Upgrade and Connection, so that the request for a WebSocket arrives as a plain GET.",
		upgrades: stripUpgrades,
	}, {
		Name:     "upgrade-403",
		What:     "Answers every request to upgrade with 403 itself.",
		upgrades: refuseUpgrades,
	}, {
		Name:     "upgrade-hangs",
		What:     "Never answers a request to upgrade, and keeps its connection open.",
		upgrades: hangUpgrades,
	}, {
		Name:     "websocket-killed-100",
		What:     "Resets a WebSocket 100 ms after its 101.",
		upgraded: fate{100 * time.Millisecond, reset},
	}, {
		Name:     "websocket-killed-200",
		What:     "Resets a WebSocket 200 ms after its 101.",
		upgraded: fate{200 * time.Millisecond, reset},
	}, {
		Name:     "websocket-killed-450",
		What:     "Resets a WebSocket 450 ms after its 101.",
		upgraded: fate{450 * time.Millisecond, reset},
	}, {
		Name:     "websocket-mute-down",
		What:     "Passes the 101 of a WebSocket, and nothing that the server says after it.",
		upgraded: fate{0, muteDown},
	}, {
		Name:     "websocket-mute-up",
		What:     "Passes the 101 of a WebSocket, and nothing that the client says after it.",
		upgraded: fate{0, muteUp},
	}, {
		Name:     "sse-held",
		What:     "Strips upgrades, and keeps an event stream back, headers and all, until the server has ended it.",
		upgrades: stripUpgrades,
		hold:     holdAll,
	}, {
		Name:     "sse-held-headers",
		What:     "Strips upgrades, passes the headers of an event stream at once, and keeps its body back until the server has ended it.",
		upgrades: stripUpgrades,
		hold:     holdBody,
	}, {
		Name:     "sse-cut-3s",
		What:     "Strips upgrades, and closes an event stream 3 s after it began, in the middle.",
		upgrades: stripUpgrades,
		events:   fate{3 * time.Second, cut},
	}, {
		Name:     "sse-reset-16s",
		What:     "Strips upgrades, and resets an event stream 16 s after it began.",
		upgrades: stripUpgrades,
		events:   fate{16 * time.Second, reset},
	}, {
		Name: "idle-killed-5s",
		What: "Closes every connection, upgraded or not, over which nothing went for 5 s.",
		idle: 5 * time.Second,
	}, {
		Name:     "dies-after-900-bytes",
		What:     "Refuses upgrades with 403, and resets a connection once an answer of the API has brought 900 bytes of body.",
		upgrades: refuseUpgrades,
		body:     900,
	}, {
		Name:     "cache",
		What:     "Strips upgrades, and replays every whole answer to a GET for 10 s to whoever asks for the same URL, whatever Cache-Control says; event streams pass.",
		upgrades: stripUpgrades,
		cache:    10 * time.Second,
	}, {
		Name: "query-stripped",
		What: "Removes the query and Last-Event-ID from every request for the feed.",
		feed: func(r *http.Request) {
			r.URL.RawQuery, r.URL.ForceQuery = "", false
			r.Header.Del("Last-Event-ID")
		},
	}, {
		Name: "last-event-id-stripped",
		What: "Removes Last-Event-ID, and last_event_id and cursor from the query, of every request for the feed; c=NAME@CURSOR passes.",
		feed: func(r *http.Request) {
			r.URL.RawQuery = without(r.URL.RawQuery, "last_event_id", "cursor")
			r.Header.Del("Last-Event-ID")
		},
	}, {
		Name:  "one-connection",
		What:  "Lets one exchange of each client host through at a time, a WebSocket for as long as it lives; the others wait in line.",
		alone: true,
	}, {
		Name:  "latency-300",
		What:  "Delays every byte by 150 ms in each direction, so that a round trip takes 300 ms more, and a new connection one round trip more.",
		delay: 150 * time.Millisecond,
	}, {
		Name:     "black-hole",
		What:     "Passes WebSockets and event streams for 2 s, and then nothing more in either direction while their connections stay open; polls pass.",
		upgraded: fate{2 * time.Second, muteBoth},
		events:   fate{2 * time.Second, muteBoth},
	},
}

// without removes parameters from a query, and leaves the others exactly as they are.
func without(query string, names ...string) string {
	pairs := strings.Split(query, "&")
	return strings.Join(slices.DeleteFunc(pairs, func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		if plain, err := url.QueryUnescape(name); err == nil {
			name = plain
		}
		return slices.Contains(names, name)
	}), "&")
}
