# `make help` lists the targets. PYTHON is the interpreter for .venv (3.11 or newer).
PYTHON ?= python3
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
LOCKS := deploy/requirements
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

SECONDS ?= 600
SEED ?= 1
AGENTS ?= plain
BROKER ?= standalone

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install clients browser run test compose-test bench chaos lint format types check lock reference clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

install: $(VENV)/.installed ## create .venv with the pinned packages for development

# .venv is created again when a pin changes, so that it never holds other packages than the pinned ones.
$(VENV)/.runtime: pyproject.toml $(wildcard $(LOCKS)/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"{sys.executable} is Python {sys.version.split()[0]}; 3.11 or newer is needed: make PYTHON=python3.13 ...")'
	@echo "Installing the runtime into $(VENV); this takes less than a minute ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes --requirement $(LOCKS)/run.txt --requirement $(LOCKS)/build.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed: $(VENV)/.runtime
	@echo "Installing the packages for development into $(VENV); this takes less than a minute ..."
	@$(PIP) install --require-hashes --requirement $(LOCKS)/dev.txt
	@$(PIP) install --no-deps --require-hashes --requirement $(LOCKS)/openjarvis.txt
	@touch $@

clients: install ## install the stock clients for the client suite, current and old versions (0.9 GB, about a minute)
	@$(MAKE) --no-print-directory --jobs 2 --directory tests/clients

browser: ## check that Chromium is there for the tests of the page (as root on Debian: install it)
	@command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -qq chromium; } || \
		{ echo "Chromium is not installed, and this command cannot install it here. Install it, or the tests of the page are skipped." >&2; exit 1; }

run: $(VENV)/.runtime ## start a broker, two workers and a front end; ctrl-C stops them all
	@$(BIN)/agentstream up

test: install ## run the tests, four at a time, because they mostly wait for processes
	@$(BIN)/pytest --numprocesses 4 --dist loadfile

# CI sets COMPOSE_TEST to --if-possible. The checks use only the standard library of Python.
compose-test: ## run compose.yaml on a real Docker engine under load (ten minutes; as root on Debian: an engine of its own)
	@$(PYTHON) -m tests.compose $(COMPOSE_TEST)

bench: install ## run the benchmark (Linux, four minutes) and write its table to deploy/guides/performance.md
	@$(BIN)/python -m tests.bench.main

chaos: install ## inject random faults for SECONDS (600) with the seed SEED (1), with AGENTS (plain or resumable) and BROKER (standalone, sentinel or cluster)
	@$(BIN)/python -m tests.faults.chaos$(if $(filter resumable,$(AGENTS)),_resumable) --seconds $(SECONDS) --seed $(SEED) --broker $(BROKER) --verbose

lint: install ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: install ## format the code, and fix what ruff can fix
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

types: install ## check types
	@$(BIN)/mypy

check: lint types test ## run lint, types and test, as CI does (with the clients and Chromium installed)

# All files come from one resolution: the others are constrained by dev.txt. This needs uv; installing does not.
COMPILE := $(UV) pip compile --quiet --no-config --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header
TESTED_EXTRAS := $(addprefix --extra ,embedded langgraph mcp openai openai-agents otel pydantic-ai)
IMAGE_EXTRAS := $(addprefix --extra ,openai otel)
RUN_EXTRAS := $(addprefix --extra ,embedded openai)
# The tests need only the agents and the bus of OpenJarvis, so it is installed without its large dependencies.
OPENJARVIS := openjarvis>=1.0; python_version < '3.14'
lock: ## pin the newest allowed versions
	$(COMPILE) --output-file $(LOCKS)/dev.txt $(TESTED_EXTRAS) --group dev pyproject.toml
	$(COMPILE) --output-file $(LOCKS)/runtime.txt --constraints $(LOCKS)/dev.txt $(IMAGE_EXTRAS) pyproject.toml
	$(COMPILE) --output-file $(LOCKS)/run.txt --constraints $(LOCKS)/dev.txt $(RUN_EXTRAS) pyproject.toml
	$(COMPILE) --output-file $(LOCKS)/build.txt --constraints $(LOCKS)/dev.txt --group build
	echo "$(OPENJARVIS)" | $(COMPILE) --no-deps --output-file $(LOCKS)/openjarvis.txt -
	$(MAKE) --directory tests/clients lock UV=$(UV)

reference: install ## write the reference pages of the guides from the code
	@$(BIN)/python -m tests.reference

clean: ## remove .venv, the clients and every cache
	rm -rf $(VENV) .clients .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find service tests deploy -name __pycache__ -type d -prune -exec rm -rf {} +
