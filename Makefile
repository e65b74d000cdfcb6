# Tidemark. `make help` lists the targets; `make run` and `make test` need nothing but
# Go, Node, npm, git and make: they install the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
TIDEMARK := bin/tidemark
HOSTILE := bin/hostile
NPM := npm --prefix clientjs --no-fund --no-audit
NODE_READY := clientjs/node_modules/.package-lock.json
# How long each fuzz target runs in `make fuzz`, and how much `make chaos` does.
FUZZTIME ?= 30s
ROUNDS ?= 50

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/tidemark
	go build -ldflags "-X main.buildVersion=$(VERSION)" -o $(TIDEMARK) ./cmd/tidemark

.PHONY: $(HOSTILE)
$(HOSTILE):
	go build -o $@ ./cmd/hostile

.PHONY: run
run: build ## start the server with its demo page, on http://127.0.0.1:7333
	$(TIDEMARK) dev

.PHONY: test
test: build test-go test-js test-browser ## run every test (race detector on)

.PHONY: test-go
test-go: ## run the Go tests
	@go test -race -run '^$$' ./... >/dev/null # build them all at once
	@# The faults mostly wait for servers that start. Of the server that they build no test cache knows.
	@go test -race -p 1 -count=1 ./cmd/faults/... & faults=$$!; status=0; \
	go test -race -p 2 ./broker/... ./sync/... || status=$$?; \
	wait $$faults || status=$$?; exit $$status
	go test -race -p 1 $$(go list ./... | grep -v '/tidemark/\(broker\|sync\|cmd/faults\)') # one at a time: some measure how long a peer stalls

.PHONY: test-js
test-js: $(NODE_READY) ## run the JavaScript tests
	$(NPM) test

# Chromium comes from Debian's packages where it is missing and can be installed; else
# the browser tests are skipped with a loud line, but never in CI.
.PHONY: test-browser
test-browser: build $(HOSTILE) $(NODE_READY) ## run the tests in headless Chromium
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null; then \
		if [ "$$(id -u)" = 0 ]; then root=; else root='sudo -n'; fi; \
		echo "installing Chromium from Debian's packages"; \
		{ $$root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$root apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || true; \
	fi
	@if command -v chromium >/dev/null; then \
		$(NPM) run test:browser; \
	elif [ "$${CI:-}" = true ]; then \
		echo "FAILED: no Chromium, and it could not be installed; CI never skips the browser tests" >&2; exit 1; \
	else \
		echo "***** SKIPPED: THE BROWSER TESTS, because there is no Chromium and it could not be installed *****" >&2; \
	fi

$(NODE_READY): clientjs/package.json clientjs/package-lock.json
	$(NPM) ci
	@touch $@

.PHONY: check
check: $(NODE_READY) ## gofmt, vet, staticcheck, govulncheck, floors, types, lint
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "gofmt these: $$unformatted" >&2; exit 1; fi
	go vet ./...
	go tool staticcheck ./...
	@if found=$$(go tool govulncheck ./... 2>&1); then echo "govulncheck: no known vulnerability is reached"; \
	elif grep -q 'fetching vulnerabilities' <<<"$$found"; then \
		echo "***** SKIPPED: govulncheck, because its database can't be had from here *****" >&2; \
	else echo "$$found" >&2; exit 1; fi
	go test -count=1 -run '^TestFloors' ./cmd/tidemark
	$(NPM) run check

.PHONY: bench
bench: ## run the benchmarks
	go test -run '^$$' -bench . -benchmem ./...

# WORKS=fanout,idle for some of the works; what the others came to is kept. Rivals come from Debian's
# packages, npm and the Go module proxy; Centrifugo is measured where it is on the PATH.
WORKS ?=
COMPARED ?= 5

.PHONY: bench-compare
bench-compare: build ## Tidemark and its rivals side by side; writes its tables into docs/performance.md
	@if ! { [ -x /usr/sbin/nginx ] && [ -e /usr/lib/nginx/modules/ngx_nchan_module.so ]; } && command -v apt-get >/dev/null; then \
		if [ "$$(id -u)" = 0 ]; then root=; else root='sudo -n'; fi; \
		echo "installing from Debian's packages: nginx libnginx-mod-nchan"; \
		$$root sh clientjs/proxies/install.sh nginx libnginx-mod-nchan || true; \
	fi
	npm --prefix cmd/rivals/node --no-fund --no-audit ci
	cd cmd/rivals/gosse && go build -o ../../../bin/gosse .
	go build -o bin/nats-server github.com/nats-io/nats-server/v2
	go build -o bin/rivals ./cmd/rivals
	bin/rivals -rounds $(COMPARED) -works "$(WORKS)" -table docs/performance.md

# How often each page is opened for the first time, and for how many seconds it is watched.
RUNS ?= 20
WATCH ?= 100

.PHONY: networks
networks: build $(HOSTILE) $(NODE_READY) ## the client behind every bad network, for long; writes docs/networks.md
	RUNS=$(RUNS) WATCH=$(WATCH) TABLE=$(abspath docs/networks.md) node --test clientjs/browser/networks.test.js

# nginx, haproxy and what they are tested with come from Debian's packages, as Chromium above.
.PHONY: proxies
proxies: build $(NODE_READY) ## the client behind real nginx and haproxy; writes its table into docs/proxies.md
	@export PATH="$$PATH:/usr/sbin"; \
	missing() { for command in nginx haproxy openssl chromium; do command -v $$command >/dev/null || echo $$command; done; }; \
	if [ -n "$$(missing)" ] && command -v apt-get >/dev/null; then \
		if [ "$$(id -u)" = 0 ]; then root=; else root='sudo -n'; fi; \
		echo "installing from Debian's packages:" $$(missing); \
		$$root sh clientjs/proxies/install.sh $$(missing) || true; \
	fi; \
	if [ -z "$$(missing)" ]; then \
		TABLE=$(abspath docs/proxies.md) node --test clientjs/proxies/*.test.js; \
	elif [ "$${CI:-}" = true ]; then \
		echo "FAILED: CI never skips the proxies, and these are missing and could not be installed:" $$(missing) >&2; exit 1; \
	else \
		echo "***** SKIPPED: THE PROXIES, because these are missing and could not be installed:" $$(missing) "*****" >&2; \
	fi

.PHONY: chaos
chaos: build ## kill, cut and restart for long (ROUNDS=50)
	TIDEMARK_ROUNDS=$(ROUNDS) go test -race -count=1 -timeout 60m -run 'Kill|MainJob' -v ./broker ./cmd/tidemark

# How often `make faults` does what; SEED=0 takes a new one.
KILLS ?= 500
CUTS ?= 200
DAMAGES ?= 300
ILLS ?= 100
JUMPS ?= 50
RETRIES ?= 220
SCRUBS ?= 60
SEED ?= 0
FAULTS_REPORT := bin/faults-report.txt

.PHONY: faults
faults: ## break the server on purpose, for long, and look what it lost (as root)
	@mkdir -p $(dir $(FAULTS_REPORT)); rm -f $(FAULTS_REPORT)
	@status=0; \
	go test -race -count=1 -timeout 6h ./cmd/faults/oracle && \
	go test -race -count=1 -timeout 6h -v ./cmd/faults -seed $(SEED) -report $(abspath $(FAULTS_REPORT)) \
		-rounds.kill $(KILLS) -rounds.power $(CUTS) -rounds.damage $(DAMAGES) -rounds.disk $(ILLS) -rounds.clock $(JUMPS) -rounds.retries $(RETRIES) -rounds.scrub $(SCRUBS) || status=$$?; \
	echo; cat $(FAULTS_REPORT) 2>/dev/null || true; exit $$status

.PHONY: fuzz
fuzz: ## run every fuzz target for a while (FUZZTIME=30s)
	@for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

.PHONY: fuzz-js
fuzz-js: $(NODE_READY) ## random cases for the JavaScript client, new ones each time (RUNS=20 times as many)
	RUNS=$(RUNS) node --test clientjs/test/feed.test.js clientjs/test/machine.test.js clientjs/test/schedules.test.js

.PHONY: clean
clean: ## remove what was built and installed here (not ./tidemark-data)
	rm -rf bin clientjs/node_modules clientjs/types
