"""Answer, score and label questions, one line of a file each; an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm.auto import tqdm

from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.labels import Labeler
from semgrad_guard.errors import DataError, SemGradError
from semgrad_guard.evaluation.sampling import p_true
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.records import Score
from semgrad_guard.scoring.scorer import SemGradScorer

_PAPER = "Please directly answer the following question with one or few words:\n{query}"
PROMPTS = {"plain": "{query}", "paper": _PAPER}


class Result(BaseModel):
    """A question as it was answered; `score` is None, with a `failure`, where the answer could not be scored.

    `correct` is None without a label; `samples` are further answers drawn at temperature 1, if asked for; `p_true` is
    the model's own probability that its answer is true; seconds are of generating and of scoring.
    """

    model_config = ConfigDict(frozen=True)

    query: str
    about: str
    stratum: str
    answer: str
    correct: bool | None
    score: Score | None
    failure: str
    samples: tuple[str, ...] = ()
    p_true: float | None = None
    generating: float
    scoring: float


def evaluate(
    scorer: SemGradScorer,
    examples: Sequence[Example],
    label: Labeler,
    *,
    out: Path,
    prompt: str = "plain",
    max_new_tokens: int = 64,
    samples: int = 0,
    seed: int = 0,
    setting: dict[str, Any] | None = None,
) -> list[Result]:
    """Answer every question that has no line in `out` yet, and give all results.

    Args:
        scorer: generates and scores.
        examples: questions.
        label: says whether an answer is right.
        out: JSON lines; the first holds the setting, each other a result.
        prompt: "plain", the question alone, or "paper", as the paper asks.
        max_new_tokens: longest answer.
        samples: further answers to draw for the baselines that need them; 0 for none.
        seed: of sampling; each question has its own.
        setting: whatever else must be the same for a run to go on.

    Raises:
        DataError: `out` holds results of another setting, or is damaged.
    """
    wanted = {"prompt": prompt, "max_new_tokens": max_new_tokens, "samples": samples, "seed": seed, **(setting or {})}
    done = _done(out, wanted)
    missing = [example for example in examples if example.query not in done]
    with out.open("a", encoding="utf-8") as file:
        if not done and out.stat().st_size == 0:
            file.write(json.dumps({"setting": wanted}) + "\n")
        for example in tqdm(missing, desc="evaluating", initial=len(done), total=len(done) + len(missing)):
            result = _answered(scorer, example, label, PROMPTS[prompt], max_new_tokens, samples, seed)
            file.write(result.model_dump_json() + "\n")
            file.flush()
            done[example.query] = result
    return [done[example.query] for example in examples]


def _done(out: Path, wanted: dict[str, Any]) -> dict[str, Result]:
    """Read what a run before has left; a last line that was cut off is dropped."""
    if not out.exists() or not out.read_text(encoding="utf-8").strip():
        return {}
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
    if not lines[-1].endswith("\n"):
        out.write_text("".join(lines[:-1]), encoding="utf-8")
        lines.pop()
    try:
        found = json.loads(lines[0])["setting"]
        results = [Result.model_validate_json(line) for line in lines[1:]]
    except (json.JSONDecodeError, KeyError, IndexError, ValidationError) as error:
        raise DataError(f"{out} does not hold results of this version: {error}. Move it away to begin anew.") from error
    if found != json.loads(json.dumps(wanted)):
        raise DataError(f"{out} was written with {found}; now it is {wanted}. Choose another folder, or move it away.")
    return {result.query: result for result in results}


def _answered(
    scorer: SemGradScorer, example: Example, label: Labeler, prompt: str, most: int, samples: int, seed: int
) -> Result:
    ids = encode_chat(scorer.tokenizer, [{"role": "user", "content": prompt.format(query=example.query)}])
    begun = time.perf_counter()
    (generation,) = scorer.generate([ids], max_new_tokens=most, do_sample=False)
    generated = time.perf_counter()
    text, score, failure = generation.text.strip(), None, ""
    try:
        (score,) = scorer.score([generation])
    except SemGradError as error:
        failure = f"{type(error).__name__}: {error}"
    if score is not None and not score.finite():
        score, failure = None, "the score is not a finite number"
    scored = time.perf_counter()
    drawn: list[str] = []
    if samples:
        torch.manual_seed(seed)
        rows = scorer.generate(
            [ids] * samples, max_new_tokens=most, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
        )
        drawn = [row.text.strip() for row in rows]
    return Result(
        query=example.query,
        about=example.about,
        stratum=example.stratum,
        answer=text,
        correct=label(example.query, text, example.answers) if example.answers else None,
        score=score,
        failure=failure,
        samples=tuple(drawn),
        p_true=p_true(scorer, example.query, text) if samples else None,
        generating=generated - begun,
        scoring=scored - generated,
    )
