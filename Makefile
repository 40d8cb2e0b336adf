# Everything a developer types. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ONLY ?=
LONG ?=
ARGS ?=
SEED ?=
JSON ?=
# Three for two cores: some tests wait for processes they have started.
PARALLEL ?= -n 3 --dist loadscope

export LITELLM_LOCAL_MODEL_COST_MAP := True
# Where it is set, every process of a stack and of the tests compiles all of our modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# The environment is remade whenever the pins or the packages' metadata change.
$(VENV)/.ready: requirements.lock pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Cogni needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ...")'
	@echo "Installing Cogni into $(VENV) (about a minute the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

.PHONY: install
install: $(VENV)/.ready ## Install everything into .venv.

.PHONY: demo
demo: install ## Run the main job end to end on this machine while you watch.
	@$(BIN)/python -m services.standalone demo $(ARGS)

.PHONY: up
up: install ## Start the whole stack and leave it running; Ctrl-C stops it.
	@$(BIN)/python -m services.standalone up $(ARGS)

.PHONY: test
test: install ## Run every test that needs no outside service.
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

.PHONY: check
check: install ## Lint, types, contract, generated code, import law.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/buf breaking --against proto/baseline.json
	@$(BIN)/python tools/generate.py --check
	@$(BIN)/python -m pytest -q tests/test_import_law.py

.PHONY: format
format: install ## Format code and protos.
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/buf format -w

.PHONY: proto
proto: install ## Generate the Python stubs from the protos.
	@$(BIN)/python tools/generate.py

.PHONY: lock
lock: install ## Resolve requirements.lock again from the two pyproject files.
	@$(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/python -m pip install --quiet uv
	@$(VENV)-lock/bin/uv pip compile requirements.in --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate --no-emit-package cogni --no-emit-package cogni-services -o requirements.lock

.PHONY: test-peers
test-peers: install ## Run against software no one here wrote (ONLY=executor|scheduler|connections|ledger|stack).
	@$(BIN)/python -m pytest -o timeout=900 tests/peers$(if $(ONLY),/test_$(ONLY)*.py) $(ARGS)

.PHONY: chaos
chaos: install ## Kill, stop and lose things, then check the invariants (ONLY=part, LONG=1, SEED=n).
	@LONG=$(LONG) SEED=$(SEED) $(BIN)/python -m pytest -o timeout=0 tests/chaos$(if $(ONLY),/test_$(ONLY)*.py) $(ARGS)

.PHONY: bench
bench: install ## Our figures beside the peers' (ONLY=part, LONG=1, JSON=path).
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(if $(LONG),--long) $(if $(JSON),--json $(JSON)) $(ARGS)

.PHONY: baseline
baseline: install ## Freeze today's contract as what `buf breaking` compares with.
	@$(BIN)/buf build --exclude-source-info -o proto/baseline.json

.PHONY: clean
clean: ## Remove the environment and the caches; data directories stay.
	@rm -rf $(VENV) $(VENV)-lock .pytest_cache .mypy_cache .ruff_cache .hypothesis
