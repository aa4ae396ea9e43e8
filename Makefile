# Everything a developer or a build machine runs. A fresh clone needs python3 (3.10 or later, with venv) and `make test`.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A module's tests stay on one worker, so what a module starts (a real MLflow server, mostly) is started once.
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadscope

# Without byte code every subprocess of the crash and e2e tests compiles mlflow's imports anew (seconds each).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test setup lint format unit house docs crash e2e bench demo clean tools

test: lint tools  ## lint and the whole test suite
	@$(PYTEST)

setup: $(STAMP)  ## .venv with mlferry (editable) and everything its tests need

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "mlferry needs Python 3.10 or later; name one: make PYTHON=python3.12 test")'
	@echo "setting up $(VENV) (minutes the first time: mlflow and torch are large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

# Some crash tests count system calls. Where strace cannot be had they are skipped and say so.
tools:
	@command -v strace >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq strace; } \
	     >/dev/null 2>&1 </dev/null \
	  || echo "strace is missing and could not be installed: the tests that need it are skipped"

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

docs: $(STAMP)  ## the tables that repeat the code: errors, limits
	@$(BIN)/python -m tests.house.tables

crash: $(STAMP) tools  ## processes that are killed at bad moments
	@$(PYTEST) $(wildcard tests/crash/test_*.py) tests/e2e/test_kills.py

e2e: $(STAMP)  ## against real MLflow servers
	@$(PYTEST) tests/e2e

bench: $(STAMP)  ## every benchmark, one after the other, on an otherwise quiet machine
	@for bench in benchmarks/*.py; do echo "== $$bench"; $(BIN)/python "$$bench"; done

demo: $(STAMP)  ## train offline, then deliver to an MLflow server of its own
	@$(BIN)/mlferry demo

clean:  ## what tools leave behind; the .venv stays
	@rm -rf build dist .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
