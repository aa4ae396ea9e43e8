# Everything a developer or a build machine runs. A fresh clone needs python3 (3.10 or later, with venv) and `make test`.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test

PYTHON ?= python3
JOBS ?= 2
SEEDS ?= 5000
FIRST ?= 0
FACTOR ?= 10
RERUNS ?= 3
SECONDS ?= 60
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A module's tests stay on one worker, so what a module starts (a real MLflow server, mostly) is started once.
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadscope

# Without byte code every subprocess of the crash and e2e tests compiles mlflow's imports anew (seconds each).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: site screens dist zipapp deb lock dist-matrix test setup lint format unit house docs crash e2e oracle fuzz corpus simulate chaos soak long bench performance demo clean tools

# A test that meets a hiccup of the machine is run once more, and the summary shows how it failed: that is a defect, too, of the
# test or worse. More than RERUNS of them a worker are none of the machine's; RERUNS=0 allows none.
test: lint tools  ## lint and the whole test suite, but for variations that take long
	@$(PYTEST) -m "not long and not release" --reruns 1 --max-suite-reruns $(RERUNS) --rerun-show-tracebacks

setup: $(STAMP)  ## .venv with mlferry (editable) and everything its tests need

$(STAMP): pyproject.toml hatch_build.py spool/mlferry_spool/_appender.c spool/mlferry_spool/_frame.h
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "mlferry needs Python 3.10 or later; name one: make PYTHON=python3.12 test")'
	@echo "setting up $(VENV) (minutes the first time: mlflow and torch are large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

# What tests need of the machine: $(1) succeeds where it is there, $(2) are Debian's packages of it, $(3) is skipped without.
define need
	@{ $(1); } >/dev/null 2>&1 \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq \
	       && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2); } >/dev/null 2>&1 </dev/null \
	  || echo "could not install: $(2). Skipped: $(3)"
endef

tools:
	$(call need,command -v strace && command -v mkfs.btrfs,strace btrfs-progs,tests that count system calls or store without copying)
	$(call need,command -v systemd-analyze && command -v systemd-sysusers,systemd,tests that check and boot the units)
	$(call need,ldconfig -p | grep libfuse,libfuse3-3,tests of files that are seen late)
	$(call need,command -v valgrind,valgrind,the test that counts the instructions of a logging call)
	$(call need,command -v chromium,chromium,tests that look at pages in a browser)
	$(call need,command -v rsync,rsync,a test that copies a spool)
	$(call need,test -x /usr/sbin/nginx && command -v openssl,nginx-light openssl,tests that deliver through nginx)
	$(call need,test -x /usr/sbin/slurmctld && test -x /usr/sbin/munged,slurm-wlm munge,tests on a Slurm cluster)
	$(call need,command -v age && command -v minisign,age minisign,tests that their own commands understand bundles)
	$(call need,test -x /usr/sbin/sshd,openssh-server,a test of bundles that cross by SSH)
	$(call need,ls /usr/lib/postgresql/*/bin/initdb,postgresql,tests of a server on PostgreSQL)
# promtool alone: its package would start a server.
	@command -v promtool >/dev/null || test -x $(BIN)/promtool \
	  || { to=$$(mktemp -d) && cd "$$to" && { [ "$$(id -u)" != 0 ] || apt-get update -qq; } && apt-get download -qq prometheus \
	       && dpkg-deb -x prometheus_*.deb . && install -D usr/bin/promtool "$(CURDIR)/$(BIN)/promtool" && rm -r "$$to"; } \
	     >/dev/null 2>&1 </dev/null \
	  || echo "could not have Debian's promtool (prometheus). Skipped: tests of the alert rules"

lint: $(STAMP)  ## ruff, mypy --strict, the import contracts
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { $(BIN)/ruff format --check . || true; echo "run: make format"; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

format: $(STAMP)  ## rewrite the code the way ruff wants it
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format .

unit: $(STAMP)  ## pure and fast: no server, no killed process
	@$(PYTEST) tests/unit

house: $(STAMP)  ## structure, documents, wheel, units
	@$(PYTEST) tests/house

docs: $(STAMP)  ## what repeats the code: errors, limits, commands
	@$(BIN)/python -m tests.house.tables
	@$(BIN)/python -m tests.house.commands

crash: $(STAMP) tools  ## processes that are killed at bad moments
	@$(PYTEST) $(wildcard tests/crash/test_*.py) tests/e2e/test_kills.py

e2e: $(STAMP)  ## against real MLflow servers
	@$(PYTEST) tests/e2e

oracle: $(STAMP)  ## scripts executed online and offline: what they leave on the server is compared field by field
	@$(PYTEST) tests/oracle

fuzz: $(STAMP)  ## the tests that draw their examples, with new ones each time and more: make fuzz FACTOR=50
	@FUZZ_FACTOR=$(FACTOR) $(PYTEST) -m hypothesis --timeout 3600

simulate: $(STAMP)  ## days of agent, server, files and clocks under one seed each: make simulate SEEDS=10000 FIRST=0
	@$(BIN)/python -m tests.simulation $(SEEDS) --first $(FIRST) --jobs $(JOBS)

CHAOS = $(BIN)/python -m tests.chaos --keep $(if $(SEED),--seed $(SEED))

chaos: $(STAMP) tools  ## every kind of fault, then the check that nothing is lost or doubled; SEED= repeats a plan
	@$(CHAOS); $(BIN)/python -m tests.house.tables

soak: $(STAMP) tools  ## kills alone, at least a thousand; KILLS= or MINUTES= for more or fewer
	@$(CHAOS) --soak $(if $(KILLS),--kills $(KILLS)) $(if $(MINUTES),--minutes $(MINUTES)); $(BIN)/python -m tests.house.tables

corpus: $(STAMP)  ## look for inputs that reach code which none of tests/fuzz/corpus reaches: make corpus SECONDS=600
	@$(BIN)/python -m tests.fuzz.grow $(SECONDS)

long: $(STAMP) tools  ## the variations that `make test` leaves out
	@$(PYTEST) -m "long and not release"

# Not measured by `make bench`: parts, the report, and the comparison with other systems, which installs them (gigabytes).
NO_BENCH := results report quiet peers

bench: $(STAMP)  ## every benchmark, one after the other, on an otherwise quiet machine
	@for bench in $(filter-out $(NO_BENCH:%=benchmarks/%.py),$(wildcard benchmarks/*.py)); do echo "== $$bench"; $(BIN)/python "$$bench"; done

site: $(STAMP)  ## the documentation as a site, in build/site; it can be read from the disk
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

screens: $(STAMP) tools  ## docs/screens: pictures of a terminal in which the real commands run
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[docs]'
	@$(BIN)/python docs/site/screens.py

performance: $(STAMP)  ## docs/performance.md and its plots, of what the benchmarks left in benchmarks/results
	@$(BIN)/python benchmarks/report.py

# Names of what a release consists of; wheels are built from the sdist, so that this is whole. What has no hot path, or is for
# several machines, gets the wheel that is Python alone.
RELEASE_STAMP := $(VENV)/.release
WHEEL = $(wildcard dist/mlferry-*-none-any.whl)

$(RELEASE_STAMP): $(STAMP)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[release]'
	@touch $@

dist: $(RELEASE_STAMP)  ## sdist, compiled wheel (this architecture, glibc) and Python wheel in dist/, checked as an index does
	@rm -rf dist/mlferry-*.tar.gz dist/mlferry-*.whl build/wheels
	@{ MLFERRY_PURE_PYTHON=1 $(BIN)/python -m build --no-isolation --outdir dist . \
	   && $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir build/wheels dist/mlferry-*.tar.gz \
	   && PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheels/mlferry-*.whl; \
	 } >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@$(BIN)/twine --no-color check --strict dist/mlferry-*.tar.gz dist/mlferry-*.whl
	@! grep -q 'git.example.org' pyproject.toml || echo "before it is published: the project's address in pyproject.toml is an example"

zipapp: dist $(RELEASE_STAMP)  ## dist/mlferry.pyz for nodes without pip; ARCH=aarch64, PYTHONS="3.11" for less
	@$(BIN)/python packages/build.py zipapp --wheel $(WHEEL) $(if $(ARCH),--arch $(ARCH)) $(PYTHONS:%=--python %)

deb: dist $(RELEASE_STAMP)  ## dist/mlferry_*.deb for Debian 12 and later, Ubuntu 22.04 and later; ARCH=aarch64
	@$(BIN)/python packages/build.py deb --wheel $(WHEEL) $(if $(ARCH),--arch $(ARCH))

lock: $(RELEASE_STAMP)  ## packages/requirements.txt anew: the versions that zipapp and deb hold
	@$(BIN)/python packages/build.py lock

dist-matrix: $(RELEASE_STAMP)  ## the wheel under every Python, the zipapp and the package, for real (minutes; needs an index)
	@$(BIN)/python -m pytest -q -m release --timeout 1800

demo: $(STAMP)  ## train offline, then deliver to an MLflow server of its own
	@$(BIN)/mlferry demo

clean:  ## what tools leave behind; the .venv stays
	@rm -rf build dist .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
