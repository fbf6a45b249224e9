# `make` alone lists the commands. Each makes .venv on first use, and again when the lock or pyproject.toml changes.
PYTHON ?= python3
ARGS ?=
RECIPE ?=

BIN := .venv/bin
INSTALLED := .venv/installed
CODE := $(wildcard src tests benchmarks)

# CIFAR-10 where a checkout of ours finds it. A value from the environment or the command line wins.
ifeq ($(origin ONECYCLE_DATA),undefined)
  SHARED_DATA := $(shell cd ../shared/cifar10 2>/dev/null && pwd)
  ifneq ($(SHARED_DATA),)
    export ONECYCLE_DATA := $(SHARED_DATA)
  endif
endif

.DEFAULT_GOAL := help
.PHONY: help train test lint notebook faults cluster-test

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' Makefile

train: $(INSTALLED) ## train on CIFAR-10 and write a report, e.g. make train RECIPE=quick ARGS="--seed 1"
	$(BIN)/onecycle train $(if $(filter --data% --resume% --config%,$(ARGS)),,--data auto)$(if $(RECIPE), --recipe $(RECIPE)) $(ARGS)

test: $(INSTALLED) ## run the tests, e.g. make test ARGS="-k scheduler"
	$(BIN)/pytest $(ARGS)

faults: $(INSTALLED) ## kill, fill and damage hundreds of runs, and write results/reliability.json (half an hour)
	$(BIN)/pytest tests/faults --whole $(ARGS)

cluster-test: $(INSTALLED) ## try docs/cluster.md on Slurm, Ray and machines made of network namespaces (root, Linux)
	$(BIN)/pytest tests/cluster --cluster $(ARGS)

lint: $(INSTALLED) ## check style, types and the floors of the house
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

notebook: $(INSTALLED) ## run every cell of S10.ipynb again, in place
	$(BIN)/jupyter-execute --inplace S10.ipynb

# The stamp is written last, so an install that broke is tried again. `pip check` fails when the lock lacks a dependency.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 11) and sys.exit("onecycle needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name a newer one: make PYTHON=python3.12" % v[:2])'
	@echo 'Installing into .venv (a few minutes at first, mostly torch)'
	@rm -f $@
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip check
	@touch $@
