# Two commands: `make train` and `make test`. Each sets itself up; a second call installs nothing again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup train test bench chaos results docs lint audit format lock tensorboard clean

help: ## this page
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

setup: $(STAMP) ## .venv with what requirements.lock pins

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alexlab needs Python >= 3.11, got " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<0.14'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	touch $(STAMP)

train: $(STAMP) ## the default run: an AlexNet on handwritten digits, about a minute on 2 cores
	$(BIN)/python src/train.py

test: lint ## lint, then all tests
	$(BIN)/python -m pytest

bench: $(STAMP) ## how fast it is beside others: 40 minutes on 2 cores
	$(BIN)/python src/benchmark.py $(ARGS)

chaos: $(STAMP) ## how a run bears kills, signals, full disks and lost ranks, counted: 15 minutes on 2 cores
	PYTHONPATH=src:tests $(BIN)/python -m chaos $(FIGURES)

results: $(STAMP) ## docs/results.md and docs/benchmarks.md from the measurements in docs/data
	$(BIN)/python docs/generate.py

docs: $(STAMP) ## the documentation as a searchable site in build/docs
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs
	@echo "open build/docs/index.html"

lint: $(STAMP) ## ruff (rules and format) and mypy
	$(BIN)/ruff check src tests .ci docs
	$(BIN)/ruff format --check src tests .ci docs
	$(BIN)/mypy

audit: $(STAMP) ## look every pinned package up in an advisory database
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python .ci/audit.py

format: $(STAMP) ## let ruff write the code's form
	$(BIN)/ruff check --fix src tests .ci docs
	$(BIN)/ruff format src tests .ci docs

lock: ## pin the newest versions that pyproject.toml admits
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra dev \
		--output-file requirements.lock pyproject.toml

tensorboard: $(STAMP) ## curves of everything under outputs/, on this machine only
	$(BIN)/tensorboard --logdir outputs --host 127.0.0.1

clean: ## remove caches and the environment; data and outputs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build docs/api src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
