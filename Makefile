# Gridveil: everything starts here. `make demo` and `make test` need Python 3.11 or newer and make.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# The interpreter to build the environment with; empty: the first suitable one of the list.
PYTHON ?=
PYTHONS := python3.13 python3.12 python3.11 python3 python3.14

UV_VERSION := 0.13.9
TOOLS := .venv-tools
UV := $(TOOLS)/bin/uv
# Made once uv is in place: a new version has a new name, hence is installed.
UV_INSTALLED := $(TOOLS)/.uv-$(UV_VERSION)
VENV := .venv
BIN := $(VENV)/bin
# Its time is that of the last sync; anything that changes what is installed makes it stale.
SYNCED := $(VENV)/.synced

DEMO_ARGS ?=
PYTEST_ARGS ?=
# Processes that `make test` spreads the test files over, for two cores; 0: none, as for a debugger.
WORKERS ?= 2
BENCH_ARGS ?=
LOADTEST_ARGS ?= --meters 20000 --rate max --duration 60 --fail-if 'errors>0'
CRASHES ?= 1000
IMAGES ?= all
MUTATIONS ?= 100000
TORTURE_ARGS ?= --length $(or $(GRIDVEIL_TORTURE),short)
SIMULATED_SEEDS ?= 0-99
SIMULATED_DAYS ?= 18.25
MACHINE_RUNS ?= 5000

# The environment is always this one, whatever the caller has activated.
export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_PYTHON_DOWNLOADS := never
unexport VIRTUAL_ENV
# A city is several processes: what they import is compiled once, not by each of them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test check docs format proto proto-check vectors vectors-check bench images loadtest mutants mutants-list crashes mutations torture simulation clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: $(SYNCED) ## Create .venv with both packages, all extras and the development tools

demo: $(SYNCED) ## Run a whole city on this machine (DEMO_ARGS="...")
	$(BIN)/gridveil demo $(DEMO_ARGS)

test: $(SYNCED) ## Run the tests, two files at a time (WORKERS=2 PYTEST_ARGS="...")
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(SYNCED) ## Linters, types, architecture, and generated files against their sources
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_protos.py --check
	$(BIN)/python tests/vectors/generate.py --check

docs: $(SYNCED) ## Build the documentation site into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(SYNCED) ## Format the code and apply safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

proto: $(SYNCED) ## Regenerate the gRPC stubs from protos/
	$(BIN)/python scripts/generate_protos.py

proto-check: $(SYNCED) ## Compare the committed gRPC stubs with protos/
	$(BIN)/python scripts/generate_protos.py --check

vectors: $(SYNCED) ## Regenerate the test vectors
	$(BIN)/python tests/vectors/generate.py

vectors-check: $(SYNCED) ## Compare the committed test vectors with the code
	$(BIN)/python tests/vectors/generate.py --check

mutants: $(SYNCED) ## Break the build on purpose, many times, and show that tests notice
	$(BIN)/python -m pytest -v --no-header tests/adversary/test_mutants.py

mutants-list: $(SYNCED) ## The broken builds, a line each
	@$(BIN)/python -m tests.adversary

bench: $(SYNCED) ## Measure this machine (BENCH_ARGS="meter ingest release")
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

images: $(SYNCED) ## Install every target of deploy/Dockerfile by its own steps (IMAGES=one: the aggregator only)
	GRIDVEIL_IMAGES=$(IMAGES) $(BIN)/python -m pytest -q tests/integration/test_deploy_images.py $(PYTEST_ARGS)

loadtest: $(SYNCED) ## Put a load on a city on this machine (LOADTEST_ARGS="...")
	$(BIN)/gridveil loadtest $(LOADTEST_ARGS)

crashes: $(SYNCED) ## Kill the key-holder CRASHES times in the midst of releases
	GRIDVEIL_CRASHES=$(CRASHES) $(BIN)/python -m pytest -q --timeout 7200 \
	  tests/integration/test_failpoints_release.py $(PYTEST_ARGS)

mutations: $(SYNCED) ## Send every service MUTATIONS spoilt calls
	GRIDVEIL_MUTATIONS=$(MUTATIONS) $(BIN)/python -m pytest -q --timeout 14400 \
	  tests/integration/test_mutations.py tests/integration/test_mutations_witness.py $(PYTEST_ARGS)

torture: $(SYNCED) ## Inject faults in large numbers (TORTURE_ARGS="--length long --keep docs/reliability.json --report docs/reliability.md")
	$(BIN)/python -m tests.torture $(TORTURE_ARGS)

simulation: $(SYNCED) ## A cluster in simulated time: SIMULATED_DAYS for each of SIMULATED_SEEDS
	$(BIN)/python -m tests.simulation.cluster --seeds $(SIMULATED_SEEDS) --days $(SIMULATED_DAYS)
	GRIDVEIL_MACHINE_RUNS=$(MACHINE_RUNS) $(BIN)/python -m pytest -q --timeout 36000 \
	  tests/simulation/test_cluster_machine.py $(PYTEST_ARGS)

clean: ## Remove the environments and all caches
	rm -rf $(VENV) $(TOOLS) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find client services scripts tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# uv lives in an environment of its own: a sync of .venv removes what uv.lock does not name.
$(UV_INSTALLED):
	@set -eu; \
	for python in $(or $(PYTHON),$(PYTHONS)); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    found=$$python; break; \
	  fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "No Python 3.11 or newer found. Tried: $(or $(PYTHON),$(PYTHONS))" >&2; \
	  echo "Name one with: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	  echo "$$found cannot make virtual environments." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
	fi; \
	echo "Using $$("$$found" -c 'import sys; print(sys.executable, sys.version.split()[0])')"; \
	rm -rf $(TOOLS); \
	"$$found" -m venv $(TOOLS); \
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); \
	touch $@

$(SYNCED): $(UV_INSTALLED) uv.lock pyproject.toml client/pyproject.toml services/pyproject.toml
	$(UV) sync --quiet --locked --all-packages --all-extras --python $(TOOLS)/bin/python
	@touch $@
