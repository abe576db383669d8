# `make test` and `make compare` need nothing but Python 3.11+: each builds .venv first.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/compare

.PHONY: test compare lint clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest

compare: .venv/ready
	$(BIN)/gatelab compare --out $(OUT)

clean:
	rm -rf .venv runs
