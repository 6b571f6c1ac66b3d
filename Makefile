# "make demo" shows a measured launch; "make test" runs every check.
BIN   := .cache/bin
GO    := go
TOOLS := $(GO) tool -modfile=scripts/tools/go.mod
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
.PHONY: help build setup qemu-matrix tsm-module demo demo-snp demo-tdx demo-disk quick test lint fuzz bench man deb release clean mutate cover prose oracle needed

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

PROGRAMS := vmlatch latchkey swtee $(if $(filter amd64,$(shell $(GO) env GOARCH)),latchguest latchguest-tpm)
build: ## build the programs into .cache/bin
	@mkdir -p $(BIN)
	VERSION=$(VERSION) scripts/program $(BIN) $(PROGRAMS)

setup: ## install and fetch what demo and test need; safe to repeat
	@scripts/setup --test

qemu-matrix: ## fetch QEMU 7.2, 10.0 and 11.1, and a guest for SEV-SNP and TDX; safe to repeat
	@scripts/qemu-matrix
	@scripts/coco-guest

tsm-module: qemu-matrix ## build the module by which tests compare configfs-tsm with the kernel's own
	@scripts/tsm-module

demo: ## a measured launch from beginning to end, emulated
	@scripts/setup
	@$(MAKE) --no-print-directory build >/dev/null
	@scripts/demo

demo-snp: demo-disk ## an appliance that proves itself by SEV-SNP and gets its disk's key, emulated
	@scripts/demo-broker sev-snp

demo-tdx: demo-disk ## the same by TDX
	@scripts/demo-broker tdx

demo-disk: setup qemu-matrix
	@$(MAKE) --no-print-directory deb >/dev/null
	@$(GO) build -o $(OWN)/ ./integration/relay
	@scripts/disk-guest

# Unit tests that need Go and nothing else, and seconds. A test that needs more (firmware, QEMU, files
# that may not be distributed, minutes of a processor) stands under integration/, or in a file that
# begins with "//go:build !quick". No test may be skipped.
quick: tool-testlog ## unit tests that need only Go: no setup, no skips, seconds
	@$(OWN)/testlog $(GO) test -tags quick -vet=off -json $$($(GO) list ./... | grep -v /integration)

test: ## vet, staticcheck, unit tests and real QEMU, with -race
	@$(MAKE) --no-print-directory -j 2 --output-sync=recurse needed lint
	@scripts/disk-guest --fetch & # meanwhile: the tests that need it come last
	$(OWN)/testlog -skips .ci/skips $(GO) test -race -vet=off -timeout 40m -parallel 3 -json ./... # lint has vetted
	@$(MAKE) --no-print-directory oracle

needed: tool-testlog # what the network takes its time for, while lint has the processors
	@$(MAKE) --no-print-directory setup
	@$(MAKE) --no-print-directory tsm-module

oracle: ## compare judgements on evidence with those of other libraries, which no program links
	$(GO) test -C integration/oracle ./...

# Packages that guard secrets and measurements. N mutants of each, or MUTATE=-all.
MUTATED ?= $(shell $(GO) list -f '{{if .TestGoFiles}}{{.Dir}}{{else if .XTestGoFiles}}{{.Dir}}{{end}}' \
  ./launcher/... ./firmware/sev/... ./firmware/ovmf ./firmware/tdx ./firmware/igvm ./qmp ./keyring)
MUTATE ?= -n 20
mutate: tool-mutate ## how many changes of the code the unit tests notice, package by package
	@$(OWN)/mutate -equivalent scripts/tools/mutate/equivalent.txt $(MUTATE) $(patsubst $(CURDIR)/%,%,$(MUTATED))

# Programs of the integration tests are built with -cover if VMLATCH_COVERDIR names a
# directory. COVER_PROGRAMS= leaves them out, which takes minutes less.
COVER := $(CURDIR)/.cache/cover
COVER_PROGRAMS ?= ./integration
cover: setup qemu-matrix tool-covertable ## statements that unit tests and programs reach, by package, against goals
	@rm -rf $(COVER) && mkdir -p -m 777 $(COVER)/programs
	@$(GO) test -coverprofile=$(COVER)/unit.txt ./launcher/... ./firmware/... ./qmp/... ./keyring/... >$(COVER)/unit.log || \
	  { cat $(COVER)/unit.log; exit 1; }
	@if [ -n "$(COVER_PROGRAMS)" ]; then \
	  VMLATCH_COVERDIR=$(COVER)/programs $(GO) test -timeout 20m $(COVER_PROGRAMS) && \
	  $(GO) tool covdata textfmt -i=$(COVER)/programs -o $(COVER)/programs.txt; fi
	@$(OWN)/covertable -unit $(COVER)/unit.txt $(if $(COVER_PROGRAMS),-programs $(COVER)/programs.txt)

# Checkers of this project, in a module of their own.
OWN := .cache/tools
tool-%:
	@mkdir -p $(OWN)
	@$(GO) build -C scripts/tools -o $(CURDIR)/$(OWN)/ ./$*

SOURCES := cmd firmware integration keyring launcher qmp scripts/tools
# What "make prose" reads. The linter's own sources are full of what it looks for.
PROSE ?= $(filter-out scripts/tools,$(SOURCES)) docs examples $(wildcard *.md) \
  $(filter-out scripts/tools/proselint scripts/tools/go%,$(wildcard scripts/tools/*))
# With -race, what the compiler does for the checks it has done for the tests, too.
lint: prose tool-elsewhere ## vet, staticcheck, gofumpt, dead code, and the wording and width of lines
	$(GO) vet -race ./...
	$(GO) vet -tags cgroups,apparmor,inhost ./launcher/cgroup ./launcher/confine ./integration/inhost
	$(GO) vet -race -tags quick $$(grep -rl --include='*.go' '^//go:build !quick' $(SOURCES) | xargs dirname | sort -u | sed 's,^,./,')
	@set -e; for platform in $(ELSEWHERE); do echo "types for $$platform"; \
	  case $$platform in linux/*) what="./cmd/latchkey ./cmd/vmlatch";; freebsd/*) what=;; *) what=./cmd/latchkey;; esac; \
	  $(OWN)/elsewhere $$platform ./keyring $$what; done
	$(GO) vet -C scripts/tools ./...
	$(GO) test -C scripts/tools ./...
	$(GO) vet -C integration/oracle ./...
	@$(GO) build -modfile=scripts/tools/go.mod -o $(OWN)/ honnef.co/go/tools/cmd/staticcheck
	GOFLAGS=-race $(OWN)/staticcheck ./...
	@out=$$($(TOOLS) gofumpt -l $(SOURCES)); \
	if [ -n "$$out" ]; then echo "not formatted (gofumpt -w):"; echo "$$out"; exit 1; fi
	@out=$$($(TOOLS) deadcode -test ./...) || exit 1; \
	out=$$(echo "$$out" | grep -v ': Example'); \
	if [ -n "$$out" ]; then echo "not even a test reaches:"; echo "$$out"; exit 1; fi

# Where latchkey runs, and on Linux vmlatch, besides this machine. A release builds and vets them.
# Package keyring says everywhere that it has no keys.
ELSEWHERE := darwin/arm64 windows/amd64 linux/arm64 freebsd/amd64

prose: tool-proselint ## width and wording of comments, messages, help and documents
	@$(OWN)/proselint $(PROSE)

# A number of runs (…x): with a time, go test may report its own deadline as a failure.
FUZZTIME ?= 50000x
fuzz: ## run every fuzz target FUZZTIME times
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz || true); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; done

bench: setup build ## ratios of time and size to floors measured in the same run; STEP=many for one
	@$(GO) run ./integration/bench -bin $(BIN) $(if $(STEP),-only $(STEP))

man: build ## man pages, generated from commands and topics, into .cache/man
	@mkdir -p .cache/man
	@set -e; for p in vmlatch latchkey swtee; do $(BIN)/$$p __man > .cache/man/$$p.1; done
	@cp cmd/latchguest/latchguest.8 cmd/latchguest-tpm/latchguest-tpm.8 .cache/man/
	@set -e; for p in vmlatch.toml.5 vmlatch-host.toml.5 vmlatch-ps.json.5; do \
	  $(BIN)/vmlatch __man $$p > .cache/man/$$p; done
	@set -e; for p in latchkey-policy.toml.5 latchkey-verdict.json.5; do \
	  $(BIN)/latchkey __man $$p > .cache/man/$$p; done; ls .cache/man

deb: build man ## Debian packages, into .cache/deb
	@scripts/deb/build

release: ## reproducible archives of the programs for all their platforms, into .cache/release
	@VERSION=$(VERSION) scripts/release

clean: ## remove everything that was built or fetched
	rm -rf .cache
	find examples -type l -delete
	rm -f examples/*/*.godh examples/*/*.session examples/*/*.id-block examples/*/*.id-auth
