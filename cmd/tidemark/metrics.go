package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
	"github.com/tidemark-sync/tidemark/transport/gate"
)

// metrics are read when somebody asks for them. No label holds what a client chose (a
// tenant's, collection's or subject's name): who may read metrics may not for that know who
// the users are, and a stranger could make up names without end.
type metrics struct {
	hub   *hub.Hub
	front *transport.Server
	gate  transport.Gate
	main  *gate.Listener
}

var (
	descSessions   = describe("tidemark_sessions", "Feeds that are open.")
	descRows       = describe("tidemark_rows", "Rows that are there; a revocation is one, too.")
	descState      = describe("tidemark_state_bytes", "What rows, tombstones and ids hold of memory.")
	descMemory     = describe("tidemark_state_limit_bytes", "What they may hold; writes beyond it are refused.")
	descSeq        = describe("tidemark_seq", "The last sequence that can be seen.")
	descEncoded    = describe("tidemark_frames_encoded_total", "Changes that were encoded, once each, however many follow.")
	descOpen       = describe("tidemark_connections", "Connections that are open.")
	descAddresses  = describe("tidemark_connection_addresses", "Addresses that have a connection.")
	descRefused    = describe("tidemark_connections_refused_total", "Connections that were refused, by what was short.", "short")
	descUntold     = describe("tidemark_connections_untold_total", "Of these, those that were closed without an answer.")
	descAccept     = describe("tidemark_accept_failures_total", "Errors of accept.")
	descProblems   = describe("tidemark_problems_total", "Requests, over a WebSocket too, that were answered with a problem, by its code.", "code")
	descLimited    = describe("tidemark_tenant_refusals_total", "What tenants were refused, all together and those that were forgotten too, by limit.", "limit")
	descFiles      = describe("tidemark_descriptors", "File descriptors in use; 0 where that is not known.")
	descFilesLimit = describe("tidemark_descriptors_limit", "File descriptors that the process may have.")
	descNeeded     = describe("tidemark_memory_needed_bytes", "Memory that can't be given back.")
	descLimit      = describe("tidemark_memory_limit_bytes", "Memory that the process may use.")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe is prometheus.Collector's.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect is prometheus.Collector's.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	stats := m.hub.Stats()
	gauge(descSessions, float64(stats.Sessions))
	gauge(descRows, float64(stats.Rows))
	gauge(descState, float64(stats.Bytes))
	gauge(descMemory, float64(stats.Memory))
	gauge(descSeq, float64(stats.Head))
	count(descEncoded, float64(stats.Encoded))
	listen := m.main.Stats()
	gauge(descOpen, float64(listen.Open))
	gauge(descAddresses, float64(listen.Addresses))
	// Also what has not happened yet: where a series begins with its first count, no rate shows it.
	for _, short := range [...]gate.Short{gate.Connections, gate.AddressConnections, gate.Descriptors, gate.Memory} {
		count(descRefused, float64(listen.Refused[short]), string(short))
	}
	count(descUntold, float64(listen.Untold))
	count(descAccept, float64(listen.Failures))
	for code, n := range m.front.Problems() {
		count(descProblems, float64(n), string(code))
	}
	for _, limit := range hub.AllLimits {
		count(descLimited, float64(stats.Refused[limit]), string(limit))
	}
	reading := m.gate.Watch.Reading()
	gauge(descFiles, float64(reading.Descriptors))
	gauge(descFilesLimit, float64(reading.DescriptorLimit))
	gauge(descNeeded, float64(reading.Needed))
	gauge(descLimit, float64(reading.MemoryLimit))
}

// handler answers GET /metrics.
func (m *metrics) handler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}
