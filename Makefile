# Everything installs into .venv; nothing is needed but CPython 3.11, gcc/g++, make, cmake and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --progress-bar off
SAY := $(PYTHON) tools/announce.py
NATIVE := CMakeLists.txt pyproject.toml $(shell find native -type f 2>/dev/null)
CXX_FILES = $(shell git ls-files '*.cc' '*.cpp' '*.h' '*.hpp')
CODE := src tests tools bench

.PHONY: demo test test-all test-asan test-tsan fuzz lint format bench bench-peers clean

demo: $(VENV)/.installed
	$(VENV)/bin/deepmnn demo

# Two processes; a file's tests stay together, for they share what they built.
test: $(VENV)/.test
	$(PY) -m pytest -m "not slow" -n 2 --dist loadfile

test-all: $(VENV)/.test
	$(PY) -m pytest

test-asan: $(VENV)/.test
	tools/test_sanitized.sh address,undefined $(PY)

test-tsan: $(VENV)/.test
	tools/test_sanitized.sh thread $(PY)

# TARGET: a reader, or core or program; ARGS: flags, as tests/fuzz/__main__.py explains them.
fuzz: $(VENV)/.test
	cd tests && ../$(PY) -m fuzz $(TARGET) $(ARGS)

lint: $(VENV)/.test $(VENV)/.lint  # mypy reads the packages that tests need
	$(VENV)/bin/ruff check $(CODE)
	$(VENV)/bin/ruff format --check $(CODE)
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.lint
	$(VENV)/bin/ruff check --fix $(CODE)
	$(VENV)/bin/ruff format $(CODE)
	$(VENV)/bin/clang-format -i $(CXX_FILES)

bench: $(VENV)/.installed
	$(VENV)/bin/deepmnn bench

# ARGS: flags, as bench/README.md explains them.
bench-peers: $(VENV)/.installed
	$(PY) -m bench.peers $(ARGS)

clean:
	rm -rf build $(VENV)

# An editable install: Python sources are used in place, the core is rebuilt when native/ changes.
$(VENV)/bin/python:
	@$(SAY) "Making a virtual environment in $(VENV)" -- $(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python $(NATIVE)
	@$(SAY) "1 of 2: installing the build tools" -- \
		$(PIP) "scikit-build-core>=0.10" "nanobind>=2.4" ninja
	@$(SAY) "2 of 2: compiling the C++ engine and installing deepmnn (about two minutes)" -- \
		$(PIP) -v --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	@$(SAY) "Installing PyTorch, which the tests compare with (a large download)" -- \
		$(PIP) torch==2.13.0
	@$(SAY) "Installing MNN, transformers, gguf and pytest, and compiling what has changed" -- \
		$(PIP) -v --no-build-isolation --editable ".[mnn,torch,gguf,serve,test,fuzz]"
	@touch $@

$(VENV)/.lint: $(VENV)/.installed
	@$(SAY) "Installing ruff, mypy and clang-format" -- \
		$(PIP) -v --no-build-isolation --editable ".[lint]"
	@touch $@
