# `make train` and `make test` work on a machine that has Python 3.11 to 3.13 with venv, gcc and make.
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
JOBS   ?= 6

BIN    := $(VENV)/bin
EXTRAS := test,mpi,oneccl
# What depends on torch, and needs none of the extras, which that environment lacks.
OLDEST := tests/kernels tests/quant $(addprefix tests/model/test_,dlrm.py activations.py) \
    $(addprefix tests/train/test_,step.py resume.py checkpoint.py evaluator.py optimizers.py)
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install train test test-long test-all test-quick explore faults test-ipex test-oldest test-executorch lint clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: $(STAMP) ## Make .venv and install the package into it, pinned

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

train: $(STAMP) ## Train the demo model; more options through ARGS="--quant.scale-period 200"
	$(BIN)/dqrm-cpu train --preset demo $(ARGS)

# Ranks and other programs share the cores in tests: OpenMP's threads should sleep soon instead of spinning for each other.
test test-long test-quick explore test-ipex test-oldest test-executorch: export GOMP_SPINCOUNT ?= 1000
# Python keeps what it compiles of the packages and of the tests: each of many processes would compile it anew.
test test-long test-quick explore test-ipex test-oldest test-executorch: export PYTHONDONTWRITEBYTECODE :=

test: $(STAMP) ## Run the tests of every feature, JOBS files of them side by side
	$(BIN)/pytest -q -m 'not long' -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=60 --durations-min=5 $(ARGS)

test-long: $(STAMP) ## Run the others: virtual clusters, chaos, lost ranks
	$(BIN)/pytest -q -m long --durations=60 --durations-min=5 $(ARGS)

test-all: test test-long ## Run both

test-quick: $(STAMP) ## Run the tests that take less than ten seconds each
	$(BIN)/pytest -q -m 'not slow and not long' -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

explore: $(STAMP) ## Run the property tests with examples never tried before
	$(BIN)/pytest -q -m 'not long and hypothesis' --hypothesis-profile=explore -n $(JOBS) --dist loadfile $(ARGS)

faults: $(STAMP) ## Inject thousands of faults (an hour on two cores; docs/reliability.md)
	$(BIN)/python tests/faults/campaign.py --jobs 2 --out faults.json $(ARGS)

test-ipex: .venv-ipex/.installed ## Run the tests of --kernels ipex in .venv-ipex (6 GB; docs/ipex.md)
	.venv-ipex/bin/pytest -q tests/ipex $(ARGS)
	ATEN_CPU_CAPABILITY=avx2 .venv-ipex/bin/pytest -q tests/ipex/test_ipex_update.py $(ARGS)

test-oldest: .venv-ipex/.installed ## Run quick tests with the oldest torch that is supported, IPEX's
	.venv-ipex/bin/pytest -q -m 'not slow and not long' $(OLDEST) $(ARGS)

test-executorch: .venv-executorch/.installed ## Run the tests of `export --format pte` in .venv-executorch (2 GB; docs/serving.md)
	.venv-executorch/bin/pytest -q tests/phone $(ARGS)

.venv-executorch/.installed: setup.cfg requirements-executorch.txt
	test -x .venv-executorch/bin/python || $(PYTHON) -m venv .venv-executorch
	grep -v '^#' requirements-executorch.txt | xargs .venv-executorch/bin/python -m pip install --quiet --no-deps
	.venv-executorch/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

.venv-ipex/.installed: setup.cfg requirements-ipex.txt
	test -x .venv-ipex/bin/python || $(PYTHON) -m venv .venv-ipex
	# A few at a time and kept nowhere else: the disk never holds all the archives beside what they hold.
	grep -v '^#' requirements-ipex.txt | xargs -n 4 .venv-ipex/bin/python -m pip install --quiet --no-deps --no-cache-dir
	.venv-ipex/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

lint: $(STAMP) ## ruff, mypy, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x .ci/run $(wildcard scripts/slurm/*.sh tests/slurm/*.sh)

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .venv-ipex .venv-executorch .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
