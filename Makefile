# Every target sets itself up: `make demo` needs Python 3.11 and make, nothing else. `make help` lists the targets.
# What is set up is remembered by stamp files in .venv and contracts/node_modules; changing a lock file redoes its part.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input --quiet
NODE_MODULES := contracts/node_modules/.stamp
PACKAGES := broker xln channel contracts rpc node devnet

# A Node of the machine, when it is new enough; else the one that requirements-node.lock puts into .venv/bin.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONDONTWRITEBYTECODE :=
# Recorded order flow for the demo: make demo FLOW=file.csv
FLOW ?= $(XLN_FLOW)

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do \
	  printf 'make %-10s %s\n' "$$name" "$$text"; done

# ---- what people run

.PHONY: demo
demo: $(VENV)/.stamp-run ## two brokers, XLN and a chain, from deposit to withdrawal (FLOW=file.csv ARGS=…)
	@$(VENV)/bin/xln-demo run $(if $(FLOW),--flow "$(FLOW)") $(ARGS)

.PHONY: test
test: $(VENV)/.stamp-dev $(NODE_MODULES) ## contract tests, then Python tests (PYTEST_ARGS=…)
	$(PY) contracts/tools/forge.py test
	$(VENV)/bin/pytest $(PYTEST_ARGS)

.PHONY: check
check: $(VENV)/.stamp-dev $(NODE_MODULES) ## lint, format, types, import rules, artifacts equal to sources
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PY) contracts/tools/build.py --check

.PHONY: format
format: $(VENV)/.stamp-dev ## put the Python sources into the house's format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

.PHONY: bench
bench: $(VENV)/.stamp-dev ## what this machine can do
	$(PY) -m bench $(ARGS)

.PHONY: contracts
contracts: $(VENV)/.stamp-dev $(NODE_MODULES) ## compile the contracts and write contracts/artifacts
	$(PY) contracts/tools/build.py

.PHONY: coverage
coverage: $(VENV)/.stamp-dev ## branch coverage of the pure modules, by the tests that need no process
	$(VENV)/bin/coverage run -m pytest -q tests/unit tests/vectors tests/stateful $(PYTEST_ARGS)
	$(VENV)/bin/coverage report --skip-covered

.PHONY: sim
sim: $(VENV)/.stamp-dev ## the state machines, for long
	XLN_HYPOTHESIS_PROFILE=long $(VENV)/bin/pytest --timeout=7200 tests/stateful $(PYTEST_ARGS)

.PHONY: security
security: .venv-slither/.stamp .venv-halmos/.stamp $(NODE_MODULES) $(VENV)/.stamp-dev ## slither and halmos on the contracts
	cd contracts && PATH="$(CURDIR)/.venv-slither/bin:$$PWD/node_modules/.bin:$$PATH" slither . \
	  --compile-force-framework foundry --filter-paths "node_modules|test" --fail-high
	cd contracts && PATH="$(CURDIR)/.venv-halmos/bin:$$PWD/node_modules/.bin:$$PATH" halmos --function check_ --loop 4

.PHONY: clean
clean: ## remove what tests and builds leave behind
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage htmlcov
	rm -rf contracts/out contracts/cache contracts/coverage demo-network
	find . -name __pycache__ -not -path './.venv*' -not -path './contracts/node_modules/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove the environments too, so that the next target sets itself up anew
	rm -rf .venv .venv-slither .venv-halmos contracts/node_modules

.PHONY: lock
lock: $(VENV)/.stamp-dev ## resolve the lock files again, after a change in pyproject.toml (needs uv)
	tools/lock

# ---- set-up

# Console scripts hold the path of their interpreter: when the checkout was moved, or that Python is gone, all is redone.
ifneq ($(wildcard $(VENV)/.stamp-venv),)
  ifneq ($(shell grep -qsF "$(CURDIR)/" $(VENV)/bin/pip && $(PY) -c "" 2>/dev/null && echo ok),ok)
    $(shell rm -f $(VENV)/.stamp-*)
  endif
endif

$(VENV)/.stamp-venv: tools/make-venv
	@tools/make-venv $(VENV)
	@touch $@

$(VENV)/.stamp-run: requirements.lock pyproject.toml tools/install-project $(VENV)/.stamp-venv
	@echo "installing the packages of requirements.lock into $(VENV)"
	@$(PIP) install --require-hashes -r requirements.lock
	@tools/install-project $(VENV)
	@touch $@

$(VENV)/.stamp-dev: requirements-dev.lock $(VENV)/.stamp-run
	@echo "installing the packages of requirements-dev.lock into $(VENV)"
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

$(NODE_MODULES): contracts/package-lock.json requirements-node.lock tools/node tools/contract-tools | $(VENV)/.stamp-venv
	@tools/node $(VENV)
	@tools/contract-tools
	@touch $@

.venv-slither/.stamp: Makefile
	@tools/make-venv .venv-slither
	@.venv-slither/bin/python -m pip --quiet --disable-pip-version-check install slither-analyzer==0.11.6
	@touch $@

.venv-halmos/.stamp: Makefile
	@tools/make-venv .venv-halmos
	@.venv-halmos/bin/python -m pip --quiet --disable-pip-version-check install halmos==0.3.3
	@touch $@
