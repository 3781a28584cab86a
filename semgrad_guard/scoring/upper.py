"""Upper-half replay, tried out before it is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from semgrad_guard.model.generate import generate
from semgrad_guard.records import Generation

if TYPE_CHECKING:
    from semgrad_guard.scoring.scorer import SemGradScorer

_TOKENS = 4
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-8}  # in half precision a batch of another shape rounds otherwise
_ROUGH = 0.05


def refusal(scorer: SemGradScorer) -> str:
    """Say why the layers below the span cannot be left out when this model is scored; empty if they can.

    A few tokens are generated and scored both ways.
    """
    keep = scorer.keep
    if keep is None:
        return "the span begins at the embeddings, or t* is not known beforehand: there is no layer to leave out"
    vocabulary = scorer.model.config.get_text_config(decoder=True).vocab_size
    prompts = [[1 + token % (vocabulary - 1) for token in range(length)] for length in (keep[1] + 2, keep[1] + 5)]
    settings: dict[str, Any] = {"max_new_tokens": _TOKENS, "min_new_tokens": _TOKENS, "do_sample": False}
    try:
        kept = generate(scorer.model, scorer.tokenizer, prompts, keep=keep, **settings)
        upper = scorer.score(kept)
    except Exception as error:  # a model built in a way that this was not made for
        return f"it fails on this model: {type(error).__name__}: {error}"
    if upper[0].path != "upper":
        return f"this model takes the path {upper[0].path!r}"
    plain = scorer.score(without_boundary(kept))
    tolerance = _TOLERANCES.get(scorer.model.dtype, _ROUGH)
    for one, other in zip(upper, plain, strict=True):
        for ours, theirs in zip(one.layers, other.layers, strict=True):
            if not abs(ours - theirs) <= tolerance * abs(theirs):
                return f"it gives other scores than the plain path: {ours:.6g} against {theirs:.6g}"
    return ""


def without_boundary(generations: Sequence[Generation]) -> list[Generation]:
    """Give the generations of one batch as if no hidden states had been kept."""
    batch = generations[0].batch
    bare = None if batch is None else replace(batch, boundary=None)
    return [replace(generation, batch=bare) for generation in generations]
