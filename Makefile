# `make demo` and `make test` set everything up themselves: a virtual environment in .venv, then what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint embedded-model examine clean

demo: $(READY)
	$(BIN)/semgrad-guard demo

test: $(READY)
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Train the embedded model, fit its profile, print what passes and write it into the README.
embedded-model: $(READY)
	$(BIN)/python -m semgrad_guard.demo.train
	$(BIN)/python -m semgrad_guard.demo.examine --fit --readme README.md

# Measure the embedded model with the profile that ships.
examine: $(READY)
	$(BIN)/python -m semgrad_guard.demo.examine

# torch comes first and with pip: what depends on it must not choose a build of its own.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .cache
