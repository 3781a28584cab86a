# `make demo` and `make test` set everything up themselves: a virtual environment in .venv, then what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench benchmarks embedded-model examine clean

demo: $(READY)
	$(BIN)/semgrad-guard demo

test: $(READY)
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Time scoring beside generation and beside other ways of scoring, and write the page about it; takes some minutes.
bench: $(READY)
	$(BIN)/semgrad-guard bench --plot docs/overhead.svg --page docs/overhead.md

# The same parts under pytest-benchmark, for work on the engine.
benchmarks: $(READY)
	$(BIN)/pytest tests/benchmarks

# Train the embedded model, fit its profile, measure it, and write the model card and every figure about it.
embedded-model: $(READY)
	$(BIN)/python -m semgrad_guard.demo.train
	$(BIN)/python -m semgrad_guard.demo.card --fit --readme README.md --out docs/model_card.md

# Measure the embedded model with the profile that ships.
examine: $(READY)
	$(BIN)/python -m semgrad_guard.demo.card

# torch comes first and with pip: what depends on it must not choose a build of its own.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .cache
