# `make test` and `make compare` need nothing but Python 3.11+: each builds .venv first.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/compare
# torch's CUDA build insists on a Triton of its own, its CPU build has none: so constraints.txt cannot name one.
TRITON := 3.9.0

.PHONY: gpu-check test test-browser test-triton compare lint docs clean

.venv/ready: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gatelab needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet 'triton==$(TRITON); sys_platform == "linux"'
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Two processes with one thread each beat one with two: most tests are too small to split.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The pages in headless Chromium, which `make test` does not need.
test-browser: .venv/ready
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		{ test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; } || \
		{ echo "Chromium is missing; on Debian: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest -m browser tests/bench

# Every kernel, interpreted and compiled, on each Triton: that package alone is exchanged, ahead of .venv's on the path.
TRITONS := 3.6.0 3.7.1 3.8.0 3.9.0

test-triton: $(TRITONS:%=.venv/triton-%/ready)
	for version in $(TRITONS); do \
		export PYTHONPATH=$(CURDIR)/.venv/triton-$$version OMP_NUM_THREADS=1; \
		$(BIN)/python -c "import triton; assert triton.__version__ == '$$version'; print('Triton $$version')" && \
		$(BIN)/python -m pytest -n 2 tests/kernels/triton || exit 1; \
	done

.venv/triton-%/ready: .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) triton==$*
	touch $@

# On a machine with an NVIDIA GPU: its tests, then its tables, into runs/gpu. Takes the Python at hand, which has torch
# with CUDA and Triton, and installs nothing.
gpu-check:
	@PYTHONPATH=. $(PYTHON) gatelab/bench/speed/gpu_check.py

compare: .venv/ready
	$(BIN)/gatelab compare --out $(OUT)

# Tables made from the code: the guarantees in the README, and docs/published-models.md.
docs: .venv/ready
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/published_models.py

clean:
	rm -rf .venv runs
