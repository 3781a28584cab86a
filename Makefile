# `make demo` and `make test` set everything up themselves: a virtual environment in .venv, then what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

EVALUATION := .cache/evaluation
# What tests/production can use of Debian's packages; without them its tests skip, and say why.
DEBIAN := postgresql chromium

.PHONY: demo test test-all test-newest mutants structure models world-facts real-evaluation lint audit faults bad-input queue-figures load bench benchmarks embedded-model examine evaluation clean

demo: $(READY)
	$(BIN)/semgrad-guard demo

test: $(READY)
	$(BIN)/pytest -m "not slow"

# The same, and all that needs a browser, PostgreSQL, Ray or a published model, or takes longer; installs Debian's packages
# where it may.
test-all: $(READY)
	@dpkg -s $(DEBIAN) > /dev/null 2>&1 || [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(DEBIAN); } || \
	    echo "$(DEBIAN) cannot be installed; what needs them is skipped" >&2
	$(BIN)/pytest -rs tests/unit_tests tests/integration_tests tests/production tests/real

# Bring the faults of the table about, send the service bad input, and work a queue off with many reviewers; write the pages about it.
faults: $(READY)
	$(BIN)/python tests/production/faults.py --page docs/faults.md

bad-input: $(READY)
	$(BIN)/python tests/production/bad_input.py --page docs/bad_input.md

queue-figures: $(READY)
	$(BIN)/python tests/production/queue_figures.py --items 10000 --reviewers 8 --page docs/queue.md

# Load the HTTP service, beside itself without scoring and without batches; takes a quarter of an hour.
load: $(READY)
	$(BIN)/python tests/production/load.py --page docs/load.md

# The built wheel with the newest version of everything and all that users can ask for, in an environment of its own.
NEWEST := .venv-newest
EXTRAS := agents,bench,gguf,hub,otel,plot,rag,ray,review,server,similarity
test-newest:
	rm -rf $(NEWEST) .cache/dist
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet torch==2.13.0 build
	$(NEWEST)/bin/python -m build --outdir .cache/dist .
	$(NEWEST)/bin/pip install --quiet "$$(ls .cache/dist/*.whl)[$(EXTRAS)]" --requirement tests/newest/requirements.txt
	cd tests/newest && ../../$(NEWEST)/bin/python -m pytest -q

# Make small mistakes in the code, one by one: some test must notice each (tests/mutants.md). Takes hours; ROOMS limits it.
# mutmut has an environment of its own, which reads the packages of the tests' environment.
MUTANTS := .venv-mutants
ROOMS ?= routing calibration scoring
mutants: $(READY)
	$(PYTHON) -m venv $(MUTANTS)
	$(MUTANTS)/bin/pip install --quiet --constraint constraints.txt mutmut==3.8.1
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
	    > "$$($(MUTANTS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/tests.pth"
	$(MUTANTS)/bin/python tools/mutants.py $(ROOMS)

# Draw the rooms, list the modules, and follow a few calls through them, for docs/how_it_is_built.md.
structure: $(READY)
	$(BIN)/python -m tools.structure --page docs/how_it_is_built.md

# Bring published weights into .cache/models: SmolLM2-135M-Instruct, or MODEL=gemma or MODEL=qwen, which are for measuring.
MODEL ?= smollm2
models:
	$(PYTHON) tools/fetch_models.py $(MODEL)

# Write questions about the world, with their right answers and a prompt to ask them with, into .cache/facts.
world-facts: $(READY)
	$(BIN)/python tools/world_facts.py --out .cache/facts

# Ask published models questions that nobody here made, and write the page about it; MODELS="smollm2 gemma qwen" and
# DATASETS=FOLDER add to it. An interrupted run goes on.
MODELS ?= smollm2
DATASETS ?=
real-evaluation: $(READY) world-facts
	$(BIN)/python -m tools.real_evaluation --models $(MODELS) $(if $(DATASETS),--datasets $(DATASETS)) \
	    --page docs/real_models.md --quote README.md

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Report what is known about holes in the pinned packages; a report, which fails nothing.
audit: $(READY)
	mkdir -p .cache
	-$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
	    > .cache/audit.txt 2> /dev/null
	@grep -v 'could not be audited' .cache/audit.txt || true
	@echo "$$(grep -c 'could not be audited' .cache/audit.txt) of $$(grep -c == constraints.txt) packages could not be looked up"

# Time scoring beside generation and beside other ways of scoring, and write the page about it; takes some minutes.
bench: $(READY)
	$(BIN)/semgrad-guard bench --plot docs/overhead.svg --page docs/overhead.md

# The same parts under pytest-benchmark, for work on the engine.
benchmarks: $(READY)
	$(BIN)/pytest --benchmark-enable tests/benchmarks

# Train the embedded model, fit its profile, measure it, and write the model card and every figure about it.
embedded-model: $(READY)
	$(BIN)/python -m tools.embedded.train
	$(BIN)/python -m tools.embedded.card --fit --readme README.md --out docs/model_card.md
	$(BIN)/python -m tools.embedded.rag_effect --out docs/rag.md

# Measure the embedded model with the profile that ships.
examine: $(READY)
	$(BIN)/python -m tools.embedded.card

# Compare the embedded model's confidence with other scores, and the same in a world without several-answer questions.
evaluation: $(READY)
	$(BIN)/python -m tools.embedded.question_files --out $(EVALUATION)/data
	$(BIN)/semgrad-guard calibrate --data $(EVALUATION)/data/calibration.jsonl --out $(EVALUATION)/looser.json \
	    --method fused --no-search --risk 0.1
	$(BIN)/semgrad-guard evaluate --data $(EVALUATION)/data/test.jsonl --out $(EVALUATION)/first --samples 10 \
	    --paraphrases $(EVALUATION)/data/paraphrases.jsonl \
	    --part "several-answer against unknown=several,several_reworded,withheld,invented"
	$(BIN)/python -m tools.embedded.question_files --out $(EVALUATION)/second-data --no-several
	$(BIN)/python -m tools.embedded.train --mix single-answers --steps 1200 --polish 100 \
	    --out .cache/second-world --checkpoint .cache/second-world.pt
	$(BIN)/semgrad-guard calibrate --data $(EVALUATION)/second-data/calibration.jsonl --model .cache/second-world \
	    --out $(EVALUATION)/second.json --method fused --no-search
	$(BIN)/semgrad-guard evaluate --data $(EVALUATION)/second-data/test.jsonl --model .cache/second-world \
	    --profile $(EVALUATION)/second.json --out $(EVALUATION)/second --samples 10
	$(BIN)/python -m tools.embedded.evaluation_page --first $(EVALUATION)/first --looser $(EVALUATION)/looser.json \
	    --second $(EVALUATION)/second --out docs/evaluation.md

# torch comes first and with pip: what depends on it must not choose a build of its own.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) $(MUTANTS) .cache
