# Everything goes into .venv; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test lint bench bench-wallclock

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

install: .venv/.installed

# torch first and by itself: a looser request may bring a build for hardware that is not there.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e .
	@touch $@

# What testing needs on top: every extra, the oracles, the linters.
.venv/.tested: .venv/.installed
	$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@

quickstart: install
	$(BIN)/moonlet quickstart

# The workers share the cores, so each test computes on one thread. One line a second thread could not shorten.
test: .venv/.tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# llama.cpp takes part in the second where `.venv/bin/pip install gguf llama-cpp-python` was run, which builds it.
bench: .venv/.tested
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/optimizer_cost.py

# Hours: three models, each at its best learning rate, three seeds of ten minutes. Started again, it goes on.
bench-wallclock: .venv/.tested
	$(BIN)/python benchmarks/wallclock.py --threads $$(nproc)
