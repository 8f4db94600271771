# `make help` lists the targets. All work on a fresh clone: they make .venv and install what is missing, once.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
ARGS ?=
# Printed by the first of several targets only where something is installed; the stamps are newer than what they were made from.
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.DEFAULT_GOAL := help
.PHONY: help train sample test test-slow fuzz lint types format notebooks benchmark gpu-check gpu-wheels clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

train: .venv/.base  ## train the embedded default and sample from it; ARGS="dataset=cifar10 schedule=cosine"
	$(BIN)/python train.py $(ARGS)

sample: .venv/.base  ## sample from a run; ARGS="ckpt=runs/NAME n=64"
	$(BIN)/python sample.py $(ARGS)

test: .venv/.dev lint types  ## lint, types and the fast tests (under 15 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadgroup $(ARGS)

test-slow: .venv/.dev  ## the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(WORKERS) --dist loadgroup $(ARGS)

fuzz: .venv/.dev  ## commands drawn by a seed, each of which must end well or in one sentence; ARGS="400 SEED [build] [say]"
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz $(or $(ARGS),400)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev  ## check the types
	$(BIN)/mypy

format: .venv/.dev  ## ruff, fixing what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: .venv/.dev  ## run every notebook
	cd notebooks && ../$(BIN)/jupytext --to ipynb *.py && ../$(BIN)/python -m pytest --nbmake *.ipynb

benchmark: .venv/.dev  ## ratios against peers on the same work (under 25 minutes on 2 idle cores); ARGS="--rows training"
	$(BIN)/python -m benchmarks $(ARGS)

gpu-check: .venv/.dev  ## what a machine with a GPU does, in four parts; ARGS="--part tests|bench|train|distance --minutes N --device cuda|cpu"
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

gpu-wheels: .venv/.dev  ## wheels of what a machine without network may lack; ARGS="FOLDER"
	$(BIN)/python -m benchmarks.gpu_check.wheels $(or $(ARGS),runs/gpu-wheels)

clean:  ## remove what the tools leave behind, not runs/ or data/
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.base: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (about 5 GB with torch's CUDA build; once)"
	$(INSTALL) .
	@touch $@

.venv/.dev: .venv/.base
	@echo "installing the test set-up into .venv (once)"
	$(INSTALL) ".[dev]"
	@touch $@
