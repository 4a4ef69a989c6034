# `make train` and `make test` set themselves up; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
INSTALL := $(BIN)/uv pip install --python $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help setup train test test-fast bench gpu gpu-wheels chaos results docs lint audit format lock tensorboard clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(DEV) ## install the packages pinned in requirements-dev.lock into .venv

$(RUNTIME): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alexlab needs Python >= 3.11, got " + sys.version.split()[0])'
	@echo "installing $$(grep -c '^[a-z]' $<) packages into $(VENV): on Linux 3 GB to download, PyTorch with CUDA; 6 GB on disk"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<0.14'
	$(INSTALL) --require-hashes -r $<
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

$(DEV): requirements-dev.lock $(RUNTIME)
	$(INSTALL) --require-hashes -r $<
	touch $@

train: $(RUNTIME) ## train an AlexNet on handwritten digits: about a minute on 2 cores
	$(BIN)/python src/train.py

test: lint ## lint, then run all tests in three processes: 20 minutes on 2 cores
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-fast: $(DEV) ## run the tests that neither train nor start other programs: 2.5 minutes on 2 cores
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

bench: $(RUNTIME) ## measure speed and memory against baselines: 40 minutes on 2 cores
	$(BIN)/python src/benchmark.py $(ARGS)

gpu: ## check and measure everything that needs a CUDA device, on any Python with PyTorch: 9 minutes; OUT=FOLDER
	OUT="$(OUT)" .ci/gpu $(ARGS)

gpu-wheels: $(DEV) ## pack what a GPU machine without network lacks into .gpu/wheels
	$(BIN)/python .ci/pack_wheels.py

chaos: $(DEV) ## inject faults (kills, signals, full disks, lost ranks): 15 minutes on 2 cores
	PYTHONPATH=src:tests $(BIN)/python -m chaos $(SCENARIOS)

results: $(DEV) ## render docs/results.md, docs/benchmarks.md and the nets of docs/models.md from docs/data
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/lineage.py

docs: $(DEV) ## build the searchable documentation in build/docs
	rm -rf docs/api # pages of modules that no longer exist would be warnings
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs
	@echo "open build/docs/index.html"

lint: $(DEV) ## check rules and format with ruff, types with mypy
	$(BIN)/ruff check src tests .ci docs
	$(BIN)/ruff format --check src tests .ci docs
	$(BIN)/mypy

audit: $(DEV) ## look up every pinned package in an advisory database
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python .ci/audit.py

format: $(DEV) ## format the code with ruff
	$(BIN)/ruff check --fix src tests .ci docs
	$(BIN)/ruff format src tests .ci docs

lock: ## pin the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra dev \
		--output-file requirements-dev.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--constraint requirements-dev.lock --output-file requirements.lock pyproject.toml

tensorboard: $(RUNTIME) ## serve the curves of all runs in outputs/ to this machine
	$(BIN)/tensorboard --logdir outputs --host 127.0.0.1

clean: ## remove caches and .venv; keep data and outputs
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build docs/api src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
