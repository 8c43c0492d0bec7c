# `make help` lists the targets. PYTHON chooses the interpreter .venv is made with (3.11 or newer).
PYTHON ?= python3
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
LOCKS := deploy/requirements
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

SECONDS ?= 600
SEED ?= 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install clients browser run test bench chaos lint format types check lock reference clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "  make %-8s %s\n", $$1, $$2 }'

install: $(VENV)/.installed ## create .venv with everything that developing needs, exactly as pinned

# .venv is made again whenever a pin changes, so that it never holds more than the pinned packages.
$(VENV)/.runtime: pyproject.toml $(wildcard $(LOCKS)/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"{sys.executable} is Python {sys.version.split()[0]}; 3.11 or newer is needed: make PYTHON=python3.13 ...")'
	@echo "Installing the runtime into $(VENV); this takes less than a minute ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes --requirement $(LOCKS)/run.txt --requirement $(LOCKS)/build.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed: $(VENV)/.runtime
	@echo "Installing what developing needs into $(VENV); this takes less than a minute ..."
	@$(PIP) install --require-hashes --requirement $(LOCKS)/dev.txt
	@$(PIP) install --no-deps --require-hashes --requirement $(LOCKS)/openjarvis.txt
	@touch $@

clients: install ## install the stock clients of the client suite, current and old (0.9 GB, about a minute)
	@$(MAKE) --no-print-directory --jobs 2 --directory tests/clients

browser: ## make sure that there is a Chromium for the tests of the page (as root on Debian: installs it)
	@command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -qq chromium; } || \
		{ echo "No Chromium is installed, and this cannot install it: please do, or the tests of the page are skipped." >&2; exit 1; }

run: $(VENV)/.runtime ## start a broker, two workers and a front end; ctrl-C ends them all
	@$(BIN)/agentstream up

test: install ## run the tests; they mostly wait for processes, so four at a time
	@$(BIN)/pytest --numprocesses 4 --dist loadfile

bench: install ## measure, beside the baselines, in about three minutes; writes the table of deploy/guides/performance.md (Linux)
	@$(BIN)/python -m tests.bench.main

chaos: install ## break everything at random for SECONDS (600) by SEED (1), and print what was lost
	@$(BIN)/python -m tests.faults.chaos --seconds $(SECONDS) --seed $(SEED) --verbose

lint: install ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: install ## mend what of that can be mended
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

types: install ## check types
	@$(BIN)/mypy

check: lint types test ## lint, types and tests: what CI runs, with the clients installed

# One resolution for all three: runtime and build are cut out of dev. Needs uv; installing does not.
COMPILE := $(UV) pip compile --quiet --no-config --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header
TESTED_EXTRAS := $(addprefix --extra ,embedded langgraph mcp openai openai-agents otel pydantic-ai)
IMAGE_EXTRAS := $(addprefix --extra ,openai otel)
RUN_EXTRAS := $(addprefix --extra ,embedded openai)
# Of OpenJarvis the tests need its agents and its bus alone, not the data sets, GPUs and channels it depends on.
OPENJARVIS := openjarvis>=1.0; python_version < '3.14'
lock: ## pin the newest allowed versions anew
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
	find service tests -name __pycache__ -type d -prune -exec rm -rf {} +
