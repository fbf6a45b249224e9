# `make` alone lists the commands. Each installs what it needs into .venv, at first and when the lock changes.
PYTHON ?= python3
ARGS ?=
RECIPE ?=

BIN := .venv/bin
# Stamps: what training needs, and what all other commands need as well.
TRAINING := .venv/installed
ALL := .venv/installed-dev
CODE := $(wildcard src tests benchmarks tools)

# If it is set, each of the hundreds of test processes compiles torch's Python code again.
unexport PYTHONDONTWRITEBYTECODE

# A shared copy of CIFAR-10 beside the checkout. A value from the environment or the command line wins.
ifeq ($(origin ONECYCLE_DATA),undefined)
  SHARED_DATA := $(shell cd ../shared/cifar10 2>/dev/null && pwd)
  ifneq ($(SHARED_DATA),)
    export ONECYCLE_DATA := $(SHARED_DATA)
  endif
endif

.DEFAULT_GOAL := help
.PHONY: help train test lint notebook faults fuzz cluster-test benchmarks-test lock newest-test

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' Makefile

train: $(TRAINING) ## train on CIFAR-10 and write a report, e.g. make train RECIPE=quick ARGS="--seed 1"
	$(BIN)/onecycle train $(if $(filter --data% --resume% --config%,$(ARGS)),,--data auto)$(if $(RECIPE), --recipe $(RECIPE)) $(ARGS)

test: $(ALL) ## run the tests without the long ones, e.g. make test ARGS="-k scheduler"
	$(BIN)/pytest --numprocesses 3 --dist worksteal $(ARGS)

# The long tests, whole, each set one after another: some measure, and some need the machine for themselves.
faults: $(ALL) ## kill and damage hundreds of runs, fill their disks, and write results/reliability.json
	$(BIN)/pytest -m "" --whole tests/faults tests/distributed tests/test_install.py $(ARGS)

fuzz: $(ALL) ## generate hostile files and requests, e.g. make fuzz ARGS="--minutes 5 -k images"
	$(BIN)/pytest -rP tests/fuzz $(ARGS)

cluster-test: $(ALL) ## try Ray, and docs/distributed.md on Slurm and machines made of network namespaces (root, Linux)
	$(BIN)/pytest -m "" --cluster tests/cluster tests/study/test_study_on_ray.py tests/predict/test_bulk_on_ray.py $(ARGS)

benchmarks-test: $(ALL) ## run benchmarks on little data, and the long tests of training, export and kernels
	$(BIN)/pytest -m "" tests/test_benchmarks.py tests/end_to_end tests/predict/test_onnx.py tests/predict/test_stream.py tests/compute $(ARGS)

lock: | $(BIN)/uv ## renew requirements.lock, e.g. make lock ARGS=--upgrade
	$(PYTHON) tools/lock.py $(ARGS)

newest-test: $(ALL) ## install onecycle as a package with the newest allowed versions, and try it
	$(BIN)/python tools/try_newest.py

lint: $(ALL) ## check style, types, and which package uses which
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

notebook: $(ALL) ## run every cell of S10.ipynb again, in place
	$(BIN)/jupyter-execute --inplace S10.ipynb

$(BIN)/uv:
	@$(PYTHON) tools/install.py --dev

$(TRAINING): requirements.lock pyproject.toml tools/install.py
	@$(PYTHON) tools/install.py

$(ALL): requirements.lock pyproject.toml tools/install.py
	@$(PYTHON) tools/install.py --dev
