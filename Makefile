# GGnet's only list of commands. `make help` shows them; CI and the README call the same ones.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export CARGO_TERM_COLOR ?= auto
IF ?=
TIME ?= 60
FUZZ ?= 2
PARTS ?=
AGAINST ?=

PREFIX ?= /usr
DESTDIR ?=
SYSCONFDIR ?= /etc
# Where the built binaries are.
BIN_DIR ?= $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: help toolchain demo run run-lan check test test-long conformance e2e-native bench bench-iscsi fuzz install uninstall

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

toolchain: ## Check that Rust is there and new enough
	@tests/parts/toolchain

demo: toolchain ## Boot two virtual PCs from one image, without root: the show
	@tests/install-deps demo
	cargo build --quiet -p ggnet-server -p ggnet-cli -p ggnet-tests --bins
	@# Not by `cargo run`: for one package alone it would build the dependencies once more, with fewer features.
	@$${CARGO_TARGET_DIR:-target}/debug/ggnet-demo

run: toolchain ## Run the server with its defaults on this machine (Ctrl-C stops it)
	@tests/install-deps run
	cargo run --release -p ggnet-server

run-lan: toolchain ## Serve a real network: make run-lan IF=eth0
	@[ -n "$(IF)" ] || { echo 'which interface? make run-lan IF=eth0; these exist:'; ls /sys/class/net; exit 2; }
	@tests/install-deps run
	cargo build --release -p ggnet-server -p ggnet-cli
	@tests/parts/run-lan "$(IF)"

check: toolchain ## The quick ones, for every few minutes: format, lints, unit tests
	@tests/parts/check

test: toolchain ## The quick tier: every claim, each part's time beside its budget; installs the Debian packages it lacks when it may
	@tests/parts/all

test-long: toolchain ## The long tier: whole suites, kills, fuzzing; [PARTS="rooms kills"] [FUZZ=2] (minutes for each fuzz target)
	@FUZZ_MINUTES=$(FUZZ) tests/parts/long $(PARTS)

conformance: toolchain ## libiscsi's suite against the built-in iSCSI target; ends with the count
	@tests/install-deps all
	@tests/parts/conformance

e2e-native: toolchain ## Boot machines from a virtual Debian server: kernel target, dnsmasq or ISC's dhcpd, tftpd-hpa, make install
	@tests/install-deps all
	cargo build --quiet --workspace --all-features --bins
	cargo test --workspace --all-features --test native -- a_room_ --nocapture

bench: toolchain ## The benchmarks: reported, never asserted
	@tests/install-deps all
	cargo bench -p ggnet-benches

bench-iscsi: toolchain ## The built-in iSCSI target beside tgtd and the floor, in rounds of one run: [PARTS=…] [ONLY=text] [ROUNDS=n]; [AGAINST=file]: beside another bench-target of ours
	@tests/install-deps all
	cargo bench --quiet -p ggnet-benches --bench iscsi -- $(if $(ROUNDS),--rounds "$(ROUNDS)") $(if $(ONLY),--only "$(ONLY)") $(if $(AGAINST),--against "$(AGAINST)") $(PARTS)

fuzz: toolchain ## Fuzz every parser of network input: make fuzz TIME=60 (seconds for each target)
	@tests/parts/fuzz "$(TIME)"

# Nothing is built here: first, as yourself, `cargo build --release -p ggnet-server -p ggnet-cli`.
install: ## Install binaries, units and their folders' descriptions: [PREFIX=/usr] [DESTDIR=] [BIN_DIR=target/release]
	@infra/install install "$(BIN_DIR)" "$(DESTDIR)" "$(PREFIX)" "$(SYSCONFDIR)"

uninstall: ## Remove what install put there; configuration and data stay
	@infra/install uninstall "$(BIN_DIR)" "$(DESTDIR)" "$(PREFIX)" "$(SYSCONFDIR)"
