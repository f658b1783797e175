# make demo and make test set everything up by themselves; nothing is downloaded when it is done already.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast check measures bench bench-table bench-gpu gpu-check setup-cuda-dry test-cuda-dry snapshot-cuda-dry soak clean
SHELL := /bin/bash

COMMA := ,
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An NVIDIA GPU takes the CUDA build of vLLM, any other machine the CPU build; what is exported as
# FLAVOUR (cpu or cuda) holds instead.
ifndef FLAVOUR
FLAVOUR := $(or $(shell $(PYTHON) tools/driver.py --flavour),cpu)
endif
# A package of the CUDA lock has no build for Python 3.13.
NEWEST := $(if $(filter cuda,$(FLAVOUR)),(3$(COMMA) 12),(3$(COMMA) 13))
PYTHONS := $(if $(filter cuda,$(FLAVOUR)),3.11 or 3.12,3.11 to 3.13)
LOCK := requirements/$(FLAVOUR).txt
INSTALLED := $(VENV)/.installed-$(FLAVOUR)
TORCH_CPU := torch==2.13.0+cpu
# Tests of one file stay in one process, for they share engines. On a GPU they run one by one.
WORKERS := $(if $(filter cuda,$(FLAVOUR)),0,2)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(INSTALLED)  ## make .venv with the locked packages (CPU or CUDA, by what this machine has)

$(INSTALLED): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= $(NEWEST))' || \
		{ echo "Python $(PYTHONS) is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
ifeq ($(FLAVOUR)-$(DRIVER),cuda-)
	@# Before gigabytes are fetched that the driver or the card cannot run.
	@$(PYTHON) tools/driver.py
endif
	@echo "setting up $(VENV) for $(FLAVOUR) (a few minutes, once)"
	@# Cleared: packages of the other flavour would be taken for this one's.
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --require-hashes -r $(LOCK)
ifeq ($(FLAVOUR),cpu)
	@# Where the CPU build is not at hand, it comes from PyTorch's own index.
	@$(PIP) $(TORCH_CPU) 2>/dev/null || $(PIP) --index-url https://download.pytorch.org/whl/cpu $(TORCH_CPU)
endif
	@$(PIP) --no-build-isolation --editable .
ifeq ($(FLAVOUR),cuda)
	@$(BIN)/python -m pip check || echo "set up all the same: the packages above do not suit each other"
endif
	@touch $@

demo: setup  ## run the whole job once, on the embedded model
	@$(BIN)/traitmill demo

test: check  ## all tests, real vLLM included
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 40

test-fast: setup  ## the tests that take less than a second each
	@$(BIN)/python -m pytest -m "not slow and not gpu"

check: setup  ## lint, format, types and import directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

measures: setup  ## how long and how dense the engine's code is
	@$(BIN)/python tools/measures.py engine cli

bench: setup  ## every benchmark, tables and plots in docs/benchmarks.md
	@$(BIN)/python -m benchmarks.all

bench-table: setup  ## the guide's batch-size table on this machine
	@$(BIN)/python -m benchmarks.batch_size

gpu-check: setup  ## the first ten minutes on an NVIDIA GPU: each step timed, cut off and stored
	@$(BIN)/python -m benchmarks.gpu_check

setup-cuda-dry: .venv-cuda/.installed  ## vLLM's CUDA build with a stand-in for the driver (8.9 GB; no GPU needed)

.venv-cuda/.installed: requirements/cuda.txt tests/gpu/dry/stub_libcuda.c
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "Python 3.11 or 3.12 is needed: make setup-cuda-dry PYTHON=python3.12"; exit 2; }
	@echo "setting up .venv-cuda (8.9 GB, once)"
	@$(PYTHON) -m venv .venv-cuda
	@.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/cuda.txt
	@mkdir -p .venv-cuda/stub
	@$(CC) -shared -fPIC -w -o .venv-cuda/stub/libcuda.so.1 tests/gpu/dry/stub_libcuda.c
	@touch $@

DRY := LD_LIBRARY_PATH=.venv-cuda/stub CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 .venv-cuda/bin/python

test-cuda-dry: setup-cuda-dry  ## what the CUDA build makes of our arguments, for seven cards, against the snapshot
	@time $(DRY) -m pytest -n0 tests/gpu/dry

snapshot-cuda-dry: setup-cuda-dry  ## write that snapshot anew: read the difference before it is committed
	@$(DRY) -m tests.gpu.dry.resolve tests/gpu/dry/snapshot.json
	@$(DRY) -m tests.gpu.dry.page

bench-gpu: setup  ## fill the GPU tables of docs/benchmarks.md (NVIDIA GPU, up to 10 minutes each)
	@$(BIN)/python -m benchmarks.all --gpu

soak: setup  ## kill runs at random moments and check that nothing is lost
	@$(BIN)/python -m benchmarks.soak

clean:  ## remove the environment and caches
	@rm -rf $(VENV) .venv-cuda .pytest_cache .mypy_cache .ruff_cache *.egg-info
