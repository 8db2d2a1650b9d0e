# Two commands do everything: `make run` and `make test`. `make help` lists the rest.

GO        ?= go
GOFUMPT   = $(GO) run mvdan.cc/gofumpt@v0.12.0
STATICCHECK = $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOTESTSUM = $(GO) run gotest.tools/gotestsum@v1.13.0
AGENT     = bin/agent
FUZZTIME  ?= 60s
N         ?= 20000
KEEP      ?= 0
CUTS      ?= 240
STEPS     ?= 20000
# the packages that take longest, which begin first: at the end they would run alone
# check vets; most of test waits, so that four at once take their time on two cores
TESTFLAGS = -json -vet=off -parallel 4
LONGEST   = ./test ./gitstore ./apply ./dtesn/engine
IMAGE     ?= dtesn-agent
IMAGE_VERSION  ?= $(shell $(AGENT) version | cut -d' ' -f2)
IMAGE_REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)

.PHONY: help run build image release test faults check fmt bench bench-long fuzz crash powercut soak schema docs screenshots clean FORCE

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: $(AGENT) ## Build the agent, static and stripped, as bin/agent
	@command -v agent >/dev/null || echo 'to have it in the PATH: sudo install $(AGENT) /usr/local/bin/agent' >&2

$(AGENT): FORCE
	@echo 'building $@$(if $(wildcard $@),, (the first time takes about two minutes))' >&2
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./cmd/agent

image: build ## Build the container image IMAGE (dtesn-agent) with buildah, podman or docker
	@for builder in buildah podman docker; do \
	  if command -v $$builder >/dev/null; then \
	    set -x; exec $$builder build -f Containerfile -t $(IMAGE) \
	      --build-arg VERSION=$(IMAGE_VERSION) --build-arg REVISION=$(IMAGE_REVISION) .; \
	  fi; \
	done; echo 'make image needs buildah, podman or docker' >&2; exit 1

release: ## Build the release VERSION (v0.1.0) of the commit into dist/, twice, and compare
	@.ci/release '$(VERSION)'

run: $(AGENT) ## Run the agent with its embedded engine on examples/config
	@exec $(AGENT) run --environment development --config examples/config --embedded-engine --state .run/state

test: ## Run every test, with the race detector; as root it installs what they need
	@if test/packages; then export DTESN_TEST_REQUIRE=1; fi; \
	echo 'building and running the tests (six to eight minutes on two idle cores, the first time longer)' >&2; \
	$(GOTESTSUM) --format standard-quiet --raw-command -- sh -c \
	  '$(GO) test $(TESTFLAGS) -race -timeout 15m $(LONGEST) ./... && $(GO) test $(TESTFLAGS) ./apply ./gitstore ./schema && \
	  $(GO) test $(TESTFLAGS) ./dtesn/engine' # these play in full what is slow with the race detector; the engine alone, for its strict figures

faults: ## Play the whole fault table of the transaction, of which test plays a part
	DTESN_TEST_FAULTS=all $(GO) test -timeout 30m ./apply -run '^TestFaultTable$$'

check: ## What must be clean before a commit: format, vet, staticcheck, imports, documents
	@test -z "$$($(GOFUMPT) -l . | tee /dev/stderr)" || { echo 'not formatted: run make fmt'; exit 1; }
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(STATICCHECK) ./...
	$(GO) test ./test ./cmd/agent/cli -run '^(TestImports|TestReadme|TestExamples)'

fmt: ## Format the code
	$(GOFUMPT) -w .

bench: build ## Measure the agent beside the floor of the same run; as root it installs what that needs
	@test/packages || true
	$(GO) run ./test/bench -agent $(AGENT)

bench-long: build ## Write a history of N (20000) records: the curve of time, bytes, files and memory
	$(GO) run ./test/bench -agent $(AGENT) -long $(N) -prune-history $(KEEP)

fuzz: ## Fuzz the loader, the trailers and the journal, FUZZTIME (60s) each
	$(GO) test ./schema -run '^$$' -fuzz '^FuzzLoad$$' -fuzztime $(FUZZTIME)
	$(GO) test ./schema -run '^$$' -fuzz '^FuzzParameters$$' -fuzztime $(FUZZTIME)
	$(GO) test ./gitstore -run '^$$' -fuzz '^FuzzMessage$$' -fuzztime $(FUZZTIME)
	$(GO) test ./gitstore -run '^$$' -fuzz '^FuzzSegment$$' -fuzztime $(FUZZTIME)

crash: build ## Kill the agent before and after each system call that writes, 2000 times at least
	$(GO) run ./test/crash -agent $(AGENT) -points 2000 -all

powercut: ## Cut the power of real disks CUTS (240) times, fill and break them; needs root (SEED repeats a run)
	$(GO) test ./test/powercut -count=1 -v -timeout 60m -args -cuts $(CUTS) -fills 96 $(if $(SEED),-seed $(SEED))

soak: ## Play STEPS (20000) random steps of everything that can go wrong against the model of the transaction
	$(GO) test ./apply -run '^TestModel$$' -count=1 -v -timeout 6h -args -model.steps=$(STEPS) -rapid.shrinktime=3m

schema: build ## Write the JSON Schema that editors use beside the examples
	$(AGENT) schema --format jsonschema > examples/config/dtesn.schema.json

docs: ## Write the generated tables of docs/reference.md
	$(GO) test ./cmd/agent/cli -run '^TestReadmeReference$$' -count=1 -args -update

screenshots: ## Take the images of the documents with Chromium, into docs/images
	$(GO) test ./test -run '^TestScreenshots$$' -count=1 -args -screenshots $(CURDIR)/docs/images

clean: ## Remove what was built and the state of make run
	rm -rf bin .run

FORCE:
