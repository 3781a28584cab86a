"""What a score costs on top of generation: everything timed side by side in one process, as ratios.

Each repeat times every contender once, one after the other, so that a machine that slows down slows all of them; the
median of the ratios within a repeat is what counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from semgrad_guard.evaluation.baselines import competent, official_style
from semgrad_guard.scoring.scorer import SemGradScorer

_POSITION = 3


@dataclass(frozen=True)
class Overhead:
    """One row: prompt and response length, and medians over the repeats.

    `plain_seconds` is `model.generate` alone. `ours` is what generating and scoring with everything costs on top of it,
    as a share; `official_ratio` and `competent_ratio` are those baselines' scoring time over ours.
    """

    prompt: int
    response: int
    repeats: int
    plain_seconds: float
    ours: float
    ours_all_layers: float
    official_ratio: float
    competent_ratio: float


def random_llama(hidden: int, layers: int, vocabulary: int, *, seed: int = 0) -> PreTrainedModel:
    """Build a random Llama whose cost is that of a real one of its size."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=int(hidden * 8 / 3),
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return cast(PreTrainedModel, LlamaForCausalLM(config).eval())


def measure_overhead(
    model: PreTrainedModel, tokenizer: Any, prompt: int, response: int, *, repeats: int = 5, seed: int = 0
) -> Overhead:
    """Time plain generation, ours, and the baselines on random prompts of one length."""
    half = SemGradScorer(model, tokenizer, token_position=_POSITION)
    every = SemGradScorer(model, tokenizer, token_position=_POSITION, span="all")
    draw = torch.Generator().manual_seed(seed)
    settings = {"max_new_tokens": response, "min_new_tokens": response, "do_sample": False}
    rows = []
    for repeat in range(repeats + 1):
        ids = torch.randint(1, model.config.vocab_size, (prompt,), generator=draw).tolist()
        inputs = torch.tensor([ids], device=model.device)
        mask = torch.ones_like(inputs)
        (generation,) = half.generate([ids], **settings)
        plain = _seconds(model, partial(cast(Any, model).generate, inputs, attention_mask=mask, **settings))
        ours = _seconds(model, partial(half.score, [generation]))
        ours_all = _seconds(model, partial(every.score, [generation]))
        official = _seconds(model, partial(official_style, model, generation, _POSITION, half.span))
        direct = _seconds(model, partial(competent, model, generation, _POSITION, half.span))
        if repeat:  # the first warms up
            rows.append((plain, ours / plain, ours_all / plain, official / ours, direct / ours))
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    return Overhead(prompt, response, repeats, *medians)


def as_table(rows: list[Overhead]) -> list[str]:
    """Render rows as a Markdown table."""
    lines = [
        "| prompt | response | plain, s | + scores | + scores, all layers | official style, ours | re-forward, ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.prompt} | {row.response} | {row.plain_seconds:.2f} | {row.ours:.1%} | {row.ours_all_layers:.1%} | "
            f"{row.official_ratio:.1f}x | {row.competent_ratio:.1f}x |"
        )
    return lines


def _seconds(model: PreTrainedModel, work: Callable[[], Any]) -> float:
    _wait(model)
    start = time.perf_counter()
    work()
    _wait(model)
    return time.perf_counter() - start


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
