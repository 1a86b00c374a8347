# `make demo` and `make test` set everything up themselves; nothing else needs to be installed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint types check clean

demo: $(READY)  ## train LDAdamW and AdamW on real text, then compare them
	$(BIN)/ldadam demo --out runs/demo

test: $(READY)  ## the whole test suite but the slow tests
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(READY)  ## the slow tests
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

check: lint types test

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
