# Everything starts here; each target does the set-up it needs. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
unexport PYTHONDONTWRITEBYTECODE # what is imported is compiled once, when it is; not all of it when it is installed

.PHONY: help venv demo test test-slow test-faults check tiny-clip clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

venv: $(READY) ## set up .venv with the pinned versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "downloading and installing PyTorch and what else is needed, which takes minutes"
	$(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## ten clients fine-tune a CLIP together on real digits (about 3 minutes)
	$(BIN)/feddlp run

test: $(READY) ## the fast tests
	$(BIN)/python -m pytest

test-slow: $(READY) ## the slow tests
	$(BIN)/python -m pytest -m slow

test-faults: $(READY) ## the tests that kill processes of a federation over Flower (about 8 minutes)
	$(BIN)/python -c 'import ray' 2>/dev/null || $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt ray
	$(BIN)/python -m pytest -m "faults and not slow" -n 2

check: $(READY) ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

tiny-clip: $(READY) ## pre-train the embedded model again (about 15 minutes)
	$(BIN)/python tools/pretrain_tiny_clip.py

clean: ## remove the environment and caches, never your runs
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
