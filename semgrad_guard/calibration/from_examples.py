"""From questions to a profile: the model answers, its answers are scored and labelled, and a threshold is set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from semgrad_guard.calibration.calibrate import Labelled, Method, calibrate_section, cover_section
from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.labels import Labeler
from semgrad_guard.calibration.profile import Binding, Profile
from semgrad_guard.errors import DataError
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.load import fingerprint, template_fingerprint
from semgrad_guard.records import Generation, Score
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.version import VERSION

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
    scorer: SemGradScorer, examples: Sequence[Example], label: Labeler, generation: dict[str, Any]
) -> list[Answered]:
    """Answer and score every question, or score the answer that comes with it.

    An answer that is empty, cut off at the token limit, or without a finite score is left out: the guard holds it back
    whatever the threshold, so that it can tell nothing about one.

    Args:
        scorer: generates and scores.
        examples: questions.
        label: says whether an answer is right.
        generation: keywords of `model.generate`.
    """
    found: list[Answered] = []
    for start in tqdm(range(0, len(examples), _BATCH), desc="answering"):
        batch = examples[start : start + _BATCH]
        ours = [example for example in batch if example.answer is None]
        prompts = [encode_chat(scorer.tokenizer, [{"role": "user", "content": example.query}]) for example in ours]
        generations = dict(
            zip((example.query for example in ours), scorer.generate(prompts, **generation), strict=True)
        )
        rows = [generations.get(example.query) or _given(scorer, example) for example in batch]
        usable = [
            (example, row)
            for example, row in zip(batch, rows, strict=True)
            if row.text.strip() and row.finish_reason == "stop"
        ]
        scores = scorer.score([row for _, row in usable])
        found += [
            Answered(
                example, row.text.strip(), score, _label(example, row.text, label), row.prompt_ids, row.response_ids
            )
            for (example, row), score in zip(usable, scores, strict=True)
            if score.finite()
        ]
    return found


def calibrated_profile(
    scorer: SemGradScorer,
    answers: Sequence[Answered],
    *,
    model: str,
    labels: str,
    method: Method = "auto",
    risk: float = 0.05,
    delta: float = 0.05,
    coverage: float | None = None,
    seed: int = 0,
) -> Profile:
    """Build a profile whose threshold promises a risk or, with `coverage`, lets a share of the answers pass.

    Args:
        scorer: what the profile is bound to.
        answers: what `answered` gave.
        model: name of the model, for messages.
        labels: where the labels come from, for the record.
        method: the score that confidence is made from; "auto" takes the best out of fold.
        risk: largest share of wrong answers among those that pass.
        delta: probability that the promise does not hold.
        coverage: set the threshold by this share of answers instead, without labels.
        seed: of the split.

    Raises:
        DataError: there are too few labels, or all are alike.
    """
    if coverage is not None:
        single: Method = "semgrad" if method == "auto" else method
        chosen, section = str(single), cover_section([item.score for item in answers], coverage=coverage, method=single)
        labels = "none: confidence is only an ordering"
    else:
        labelled = [
            Labelled(item.example.about, item.score, item.correct) for item in answers if item.correct is not None
        ]
        if not labelled:
            raise DataError(
                'No question has a label. Give "truthful answer" or "correct" with each, or set a coverage instead.'
            )
        chosen, section = calibrate_section(labelled, method=method, risk=risk, delta=delta, seed=seed)
    return Profile(
        package=VERSION,
        method=chosen,
        bound_to=bind(scorer, model),
        answer=section,
        label_source=labels,
        seed=seed,
    )


def bind(scorer: SemGradScorer, model: str) -> Binding:
    """Describe what a profile of this scorer belongs to."""
    return Binding(
        model=model,
        fingerprint=fingerprint(scorer.model),
        template=template_fingerprint(scorer.tokenizer),
        token_position=scorer.token_position or 0,
        span=scorer.span,
        reduction=scorer.reduction,
        norm=scorer.norm,
    )


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
    return label(example.query, text, example.answers) if example.answers else None
