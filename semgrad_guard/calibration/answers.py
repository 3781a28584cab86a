"""Questions and what the model answered: scored, labelled, and with the ids to score them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from tqdm.auto import tqdm

from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.journal import Journal
from semgrad_guard.calibration.labels import Labeler
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.fingerprint import fingerprint, template_fingerprint
from semgrad_guard.records import Generation, Score
from semgrad_guard.scoring.scorer import SemGradScorer

_BATCH = 16


@dataclass(frozen=True)
class Answered:
    """An example with the answer that was scored; `correct` is None where there is no label."""

    example: Example
    text: str
    score: Score
    correct: bool | None
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def answered(
    scorer: SemGradScorer,
    examples: Sequence[Example],
    label: Labeler,
    generation: dict[str, Any],
    *,
    ask: Callable[[Example], str] = lambda example: example.query,
    journal: Path | None = None,
) -> list[Answered]:
    """Answer and score every question, or score the answer that comes with it.

    An answer that is empty, cut off at the token limit, or without a finite score is left out: the guard holds it back
    whatever the threshold, so that it can tell nothing about one.

    Args:
        scorer: generates and scores.
        examples: questions.
        label: says whether an answer is right.
        generation: keywords of `model.generate`.
        ask: words the question.
        journal: a file that remembers answers and scores, so that a run that was interrupted goes on. Labels are made
            anew.

    Raises:
        DataError: the journal is of a run with another model or other settings.
    """
    kept = None if journal is None else _journal(journal, scorer, generation)
    found = {
        example.query: replace(item, example=example, correct=_label(example, item.text, label))
        for example in examples
        if kept is not None
        and (item := kept.done.get(example.query)) is not None
        and (example.answer or item.text).strip() == item.text
    }
    missing = [example for example in examples if example.query not in found]
    for start in tqdm(range(0, len(missing), _BATCH), desc="answering"):
        for item in _answers(scorer, missing[start : start + _BATCH], label, generation, ask):
            found[item.example.query] = item
            if kept is not None:
                kept.add(item)
    return [found[example.query] for example in examples if example.query in found]


def _answers(
    scorer: SemGradScorer,
    batch: Sequence[Example],
    label: Labeler,
    generation: dict[str, Any],
    ask: Callable[[Example], str],
) -> list[Answered]:
    ours = [example for example in batch if example.answer is None]
    prompts = [encode_chat(scorer.tokenizer, [{"role": "user", "content": ask(example)}]) for example in ours]
    generations = dict(zip((example.query for example in ours), scorer.generate(prompts, **generation), strict=True))
    rows = [generations.get(example.query) or _given(scorer, example) for example in batch]
    usable = [
        (example, row)
        for example, row in zip(batch, rows, strict=True)
        if row.text.strip() and row.finish_reason == "stop"
    ]
    scores = scorer.score([row for _, row in usable])
    return [
        Answered(example, row.text.strip(), score, _label(example, row.text, label), row.prompt_ids, row.response_ids)
        for (example, row), score in zip(usable, scores, strict=True)
        if score.finite()
    ]


def _journal(path: Path, scorer: SemGradScorer, generation: dict[str, Any]) -> Journal[Answered]:
    setting = {
        "fingerprint": fingerprint(scorer.model),
        "template": template_fingerprint(scorer.tokenizer),
        "position": scorer.token_position,
        "span": scorer.span,
        "reduction": scorer.reduction,
        "norm": scorer.norm,
        "generation": {name: str(value) for name, value in sorted(generation.items())},
    }
    return Journal(path, setting, TypeAdapter(Answered), lambda item: item.example.query)


def rescored(scorer: SemGradScorer, answers: Sequence[Answered]) -> list[Answered]:
    """Score the same answers with another scorer."""
    found: list[Answered] = []
    for start in range(0, len(answers), _BATCH):
        batch = answers[start : start + _BATCH]
        scores = scorer.score_ids([item.prompt_ids for item in batch], [item.response_ids for item in batch])
        found += [replace(item, score=score) for item, score in zip(batch, scores, strict=True)]
    return found


def _given(scorer: SemGradScorer, example: Example) -> Generation:
    """Take an answer that came with its question as if the model had just given it, end of turn included."""
    prompt = encode_chat(scorer.tokenizer, [{"role": "user", "content": example.query}])
    text = example.answer or ""
    ids = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
    end = scorer.tokenizer.eos_token_id
    return Generation(tuple(prompt), tuple(ids if end is None else [*ids, end]), text, "stop")


def _label(example: Example, text: str, label: Labeler) -> bool | None:
    if example.correct is not None:
        return example.correct
    return label(example.query, text, example.answers) if example.answers is not None else None
