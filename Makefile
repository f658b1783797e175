# make demo and make test set everything up by themselves; nothing is downloaded when it is done already.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast check measures bench bench-table bench-gpu gpu-check soak clean
SHELL := /bin/bash

COMMA := ,
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An NVIDIA GPU that answers takes the CUDA build of vLLM, any other machine the CPU build; what is
# exported as FLAVOUR (cpu or cuda) holds instead.
ifndef FLAVOUR
FLAVOUR := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo cuda || echo cpu)
endif
# A package of the CUDA lock has no build for Python 3.13.
NEWEST := $(if $(filter cuda,$(FLAVOUR)),(3$(COMMA) 12),(3$(COMMA) 13))
PYTHONS := $(if $(filter cuda,$(FLAVOUR)),3.11 or 3.12,3.11 to 3.13)
LOCK := requirements/$(FLAVOUR).txt
INSTALLED := $(VENV)/.installed-$(FLAVOUR)
TORCH_CPU := torch==2.13.0+cpu
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
	@$(BIN)/python -m pytest

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

gpu-check: setup  ## the tests that need an NVIDIA GPU
	@$(BIN)/python -m pytest -n0 -m gpu tests/gpu

bench-gpu: setup  ## fill the GPU tables of docs/benchmarks.md (NVIDIA GPU, up to 10 minutes each)
	@$(BIN)/python -m benchmarks.all --gpu

soak: setup  ## kill runs at random moments and check that nothing is lost
	@$(BIN)/python -m benchmarks.soak

clean:  ## remove the environment and caches
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
