"""What an evaluation looks into beside the comparison: costs, errors, ablations, and the premise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semgrad_guard.calibration.prompts import PromptForm
from semgrad_guard.evaluation.ablation import ablation
from semgrad_guard.evaluation.compare import surest_errors
from semgrad_guard.evaluation.methods import Method
from semgrad_guard.evaluation.placement import LAST, Placement, placement
from semgrad_guard.evaluation.premise import premise
from semgrad_guard.evaluation.run import Result, peak_memory, prompt_form, prompt_ids, token_doubts
from semgrad_guard.records import TokenDoubt
from semgrad_guard.scoring.preservation import Preservation, preservation
from semgrad_guard.scoring.scorer import SemGradScorer

_GROUPS = 200  # questions that the preservation score is measured on


@dataclass(frozen=True)
class Study:
    """What was found: `doubts` by question, of the surest errors; None what could not be looked into."""

    memory: Mapping[str, Any]
    doubts: Mapping[str, Sequence[TokenDoubt]]
    ablation: Mapping[str, Any]
    placement: Placement | None
    preservation: Preservation | None
    premise: Mapping[str, Any] | None


def study(
    scorer: SemGradScorer,
    results: Sequence[Result],
    methods: Sequence[Method],
    parts: Mapping[str, Sequence[Result]],
    *,
    prompt: str | PromptForm,
    max_new_tokens: int,
    paraphrases: Sequence[Sequence[str]] = (),
) -> Study:
    """Look into the results of one run.

    Args:
        scorer: has given them.
        results: all of them.
        methods: that are compared; the surest errors are the first one's.
        parts: of the results, by name.
        prompt: how the questions were asked.
        max_new_tokens: longest answer.
        paraphrases: groups of questions that mean the same; the first of a group is the one that was asked.
    """
    usable = [group for group in paraphrases if len(set(group)) > 1]
    asked = usable[:_GROUPS]
    others = {first: tuple(dict.fromkeys(rest)) for first, *rest in usable}
    preserved = None
    if len(asked) > 1:
        last, form = _last(scorer, asked, prompt), prompt_form(prompt)
        preserved = preservation(scorer.model, scorer.tokenizer, asked, last=last, messages=form.messages)
    return Study(
        memory=peak_memory(scorer, [result.query for result in results], prompt, max_new_tokens),
        doubts=token_doubts(scorer, surest_errors(results, methods[0]), prompt),
        ablation=ablation(results, parts),
        placement=placement(scorer, results, prompt, preserved),
        preservation=preserved,
        premise=premise(scorer, results, others, methods, prompt) if others else None,
    )


def _last(scorer: SemGradScorer, asked: Sequence[Sequence[str]], prompt: str | PromptForm) -> int:
    """Give how many prompt tokens from the end every prompt has, ten at most."""
    return min(LAST, *(len(prompt_ids(scorer, text, prompt)) for texts in asked for text in texts))
