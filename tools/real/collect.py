"""Answers of published models, scored and labelled, in files of a batch each: an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from semgrad_guard.calibration.examples import Example
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.records import Score
from semgrad_guard.scoring.scorer import SemGradScorer
from tools.real.cells import Cell, loaded

_BATCH = 16
_DEPTHS = (0.5, 0.67, 0.83, 1.0)  # of the layers whose hidden states are kept


@dataclass(frozen=True, eq=False)
class Row:
    """One answer that can be used, its label, its score by the widest settings, and hidden states, [3, layers, D]."""

    query: str
    stratum: str
    answer: str
    correct: bool
    score: Score
    states: NDArray[np.float32]


def scorer_of(cell: Cell, models: Path) -> SemGradScorer:
    """Build a scorer that computes all that is compared."""
    return SemGradScorer(*loaded(cell.model, models), layers="all", later=True, attention=True, reduction="sum")


def state_layers(count: int) -> list[int]:
    """Give the hidden states that are kept, for a model of that many layers."""
    return [round(depth * count) for depth in _DEPTHS]


def collect(cell: Cell, root: Path, *, models: Path, facts: Path, datasets: Path | None) -> None:
    """Answer and score the questions of a cell, as far as that has not been done."""
    examples = cell.examples(facts, datasets)
    folder = cell.folder(root)
    batches = [examples[at : at + _BATCH] for at in range(0, len(examples), _BATCH)]
    missing = [number for number in range(len(batches)) if not (folder / f"{number:04}.json").exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    scorer, form = scorer_of(cell, models), cell.prompt(facts)
    layers = state_layers(len(scorer.layers))
    for number in tqdm(missing, desc=f"{cell.model}, {cell.data}"):
        batch = batches[number]
        prompts = [encode_chat(scorer.tokenizer, example.turns(form)) for example in batch]
        generations = scorer.generate(prompts, **cell.settings)
        spans = [(0, len(generation.response_ids)) for generation in generations]
        scores, states = scorer.score_with_states(generations, layers, spans=spans)
        lines = [
            {
                "query": example.query,
                "stratum": example.stratum,
                "answer": generation.text.strip(),
                "usable": generation.finish_reason == "stop" and bool(generation.text.strip()) and score.finite(),
                "score": score.model_dump(),
            }
            for example, generation, score in zip(batch, generations, scores, strict=True)
        ]
        np.save(folder / f"{number:04}.npy", states.astype(np.float16))
        part = folder / f"{number:04}.part"
        part.write_text(json.dumps(lines), encoding="utf-8")
        part.rename(folder / f"{number:04}.json")


def rows_of(cell: Cell, root: Path, *, facts: Path, datasets: Path | None) -> list[Row]:
    """Read the answers of a cell that can be used, labelled as they are labelled now."""
    examples = {example.query: example for example in cell.examples(facts, datasets)}
    rows: list[Row] = []
    for file in sorted(cell.folder(root).glob("*.json")):
        states = np.load(file.with_suffix(".npy")).astype(np.float32)
        for line, state in zip(json.loads(file.read_text(encoding="utf-8")), states, strict=True):
            if line["usable"] and line["query"] in examples:
                rows.append(_row(cell, examples[line["query"]], line["answer"], Score(**line["score"]), state))
    return rows


def _row(cell: Cell, example: Example, answer: str, score: Score, states: NDArray[np.float32]) -> Row:
    return Row(example.query, example.stratum, answer, cell.right(example, answer), score, states)


def of_cells(cells: Sequence[Cell], root: Path, *, facts: Path, datasets: Path | None) -> dict[Cell, list[Row]]:
    """Read the answers of the cells that there are."""
    every = {cell: rows_of(cell, root, facts=facts, datasets=datasets) for cell in cells}
    return {cell: rows for cell, rows in every.items() if rows}
