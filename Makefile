# `make` alone lists the commands. Each installs what it needs into .venv, at first and when the lock changes.
PYTHON ?= python3
ARGS ?=
RECIPE ?=

BIN := .venv/bin
# Stamps: what training needs, and what all other commands need as well.
TRAINING := .venv/installed
ALL := .venv/installed-dev
CODE := $(wildcard src tests benchmarks tools)

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

train: $(TRAINING) ## train on CIFAR-10 and write a report, e.g. make train RECIPE=quick ARGS="--seed 1"
	$(BIN)/onecycle train $(if $(filter --data% --resume% --config%,$(ARGS)),,--data auto)$(if $(RECIPE), --recipe $(RECIPE)) $(ARGS)

test: $(ALL) ## run the tests, e.g. make test ARGS="-k scheduler"
	$(BIN)/pytest $(ARGS)

faults: $(ALL) ## kill, fill and damage hundreds of runs, and write results/reliability.json (half an hour)
	$(BIN)/pytest tests/faults --whole $(ARGS)

cluster-test: $(ALL) ## try docs/cluster.md on Slurm, Ray and machines made of network namespaces (root, Linux)
	$(BIN)/pytest tests/cluster --cluster $(ARGS)

lint: $(ALL) ## check style, types and the floors of the house
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

notebook: $(ALL) ## run every cell of S10.ipynb again, in place
	$(BIN)/jupyter-execute --inplace S10.ipynb

$(TRAINING): requirements.lock pyproject.toml tools/install.py
	@$(PYTHON) tools/install.py

$(ALL): requirements.lock pyproject.toml tools/install.py
	@$(PYTHON) tools/install.py --dev
