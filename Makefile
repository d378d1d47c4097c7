# make demo     the app on the bundled student       make lint     ruff, mypy, import-linter
# make test     the tests                            make bench    the benchmarks
# make test-browser, test-network, test-milvus,      make fuzz     200,000 mutants of checkpoints
#      test-all                                      make hostile  3,000 hostile pictures, over HTTP too
#                                                    make clean    remove .venv

PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_ARGS ?=
export ORT_DISABLE_TELEMETRY := 1

.PHONY: demo test lint bench bench-retrieval fuzz hostile test-browser test-network test-milvus test-all clean

demo: $(VENV)/.serve
	$(BIN)/simclr app $(DEMO_ARGS)

# a test file to each core, at most four: some tests need two gigabytes
test: $(VENV)/.test
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/student.py
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/inference.py

# beside faiss, usearch and Milvus Lite; half an hour
bench-retrieval: $(VENV)/.bench
	$(BIN)/python benchmarks/retrieval.py

fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzz_checkpoint.py --mutants 200000

# some 3,000 hostile pictures and 20,000 mutants, in one process and over HTTP
hostile: $(VENV)/.test
	$(BIN)/python tests/hostile.py --mutants 20000
	$(BIN)/python tests/hostile.py --http

# needs Debian's chromium (apt-get install chromium fonts-dejavu-core) and node's npm
test-browser: $(VENV)/.browser
	$(BIN)/python -m pytest -m browser

# asks the authors' bucket
test-network: $(VENV)/.test
	$(BIN)/python -m pytest -m network

# against Milvus Lite on loopback and, where its package installs, a real server, which listens on all interfaces
test-milvus: $(VENV)/.milvus
	$(BIN)/python -m pytest -m milvus -rs

test-all: $(VENV)/.browser
	$(BIN)/python -m pytest -m "not gpu and not network and not milvus"

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	@touch $@

# enough to serve: no torch
$(VENV)/.serve: $(VENV)/.pip pyproject.toml
	$(PIP) install --quiet --group serve
	$(PIP) install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	$(PIP) install --quiet --group test
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) install --quiet --group lint
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) install --quiet --group bench
	@touch $@

$(VENV)/.browser: $(VENV)/.test
	$(PIP) install --quiet --group browser
	@touch $@

# the real server wants an old setuptools, so it lives apart; its tests are skipped where it does not install
$(VENV)/.milvus: $(VENV)/.test
	$(PIP) install --quiet --group milvus
	-$(PYTHON) -m venv .venv-milvus && .venv-milvus/bin/pip install --quiet 'milvus==2.3.5' 'setuptools<81'
	@touch $@

clean:
	rm -rf $(VENV) .venv-milvus
