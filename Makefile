# `make train` and `make test` each do all the set-up they need; the second call finds it done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test lint bench bench-long tables lessons docs long

train: $(VENV)/ready
	$(BIN)/candid train

test: $(VENV)/ready
	$(BIN)/python -m pytest --numprocesses auto -m "not long"

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(VENV)/ready
	$(BIN)/python -m benchmarks.page

bench-long: $(VENV)/ready
	$(BIN)/python -m benchmarks.page --long

tables: $(VENV)/ready
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python -m benchmarks.recipes
	$(BIN)/python -m benchmarks.commands

lessons: $(VENV)/ready
	$(BIN)/python -m lessons.pages

docs: $(VENV)/ready
	$(BIN)/python -m zensical build --clean --strict

long: $(VENV)/ready
	$(BIN)/python -m pytest -m long -rP

$(VENV)/ready: pyproject.toml
	@echo "Installing candid into $(VENV); PyTorch is large, so this takes a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
