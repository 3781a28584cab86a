"""The cost of a score on top of generation: everything timed side by side in one process, as ratios.

Each repeat times every contender once, one after the other, so that a machine that slows down slows all of them. The
median of the ratios within a repeat counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from semgrad_guard.evaluation.metrics import operations, peak_bytes, time_in_products
from semgrad_guard.evaluation.sampling import competent, official_style
from semgrad_guard.records import Generation
from semgrad_guard.scoring.scorer import SemGradScorer, without_boundary

_POSITION = 3
_SAMPLES = 10  # of semantic entropy


@dataclass(frozen=True)
class Overhead:
    """One row: lengths, batch, the model's depth and vocabulary, and medians over the repeats.

    `plain_seconds` is `model.generate` alone, and shares of it are, on top: `semgrad` alone and all `scores` on the
    plain path; the same on upper-half replay, `upper_semgrad` and `upper_scores`; `all_layers`, all scores with every
    layer; `samples`, drawing 10 more answers. `official` and `competent` are the times of those baselines over that of
    `upper_semgrad`. `operations` are those of `upper_scores` over those of generation: the overhead, if every operation
    took as long; `products` is the share of its time in matrix products and attention. `memory` is the peak of
    `scores` over that of the official style, beside model and cache.
    """

    prompt: int
    response: int
    batch: int
    layers: int
    vocabulary: int
    repeats: int
    plain_seconds: float
    semgrad: float
    scores: float
    upper_semgrad: float
    upper_scores: float
    all_layers: float
    samples: float
    official: float
    competent: float
    operations: float
    products: float
    memory: float


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


def numbered_tokenizer(vocabulary: int) -> PreTrainedTokenizerBase:
    """Build a tokenizer for a random model: as many tokens as it has, each written as its number."""
    words = {str(number): number for number in range(vocabulary)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), pad_token="0")


def measure_overhead(
    model: PreTrainedModel,
    tokenizer: Any,
    prompt: int,
    response: int,
    *,
    batch: int = 1,
    repeats: int = 5,
    seed: int = 0,
) -> Overhead:
    """Time plain generation, ours, and the baselines on random prompts of one length."""
    half = SemGradScorer(model, tokenizer, token_position=_POSITION, upper_replay=True)
    every = SemGradScorer(model, tokenizer, token_position=_POSITION, layers="all")
    draw = torch.Generator().manual_seed(seed)
    settings = {"max_new_tokens": response, "min_new_tokens": response}

    def prompts() -> list[list[int]]:
        return torch.randint(1, model.config.vocab_size, (batch, prompt), generator=draw).tolist()

    def plain(ids: list[list[int]], **more: Any) -> Any:
        inputs = torch.tensor(ids, device=model.device)
        mask = torch.ones_like(inputs)
        return cast(Any, model).generate(inputs, attention_mask=mask, **{"do_sample": False, **settings, **more})

    def contenders(generations: list[Generation]) -> dict[str, Callable[[], Any]]:
        plainly = without_boundary(generations)
        return {
            "semgrad": partial(half.score, plainly, parameters=False),
            "scores": partial(half.score, plainly),
            "upper_semgrad": partial(half.score, generations, parameters=False),
            "upper_scores": partial(half.score, generations),
            "all_layers": partial(every.score, plainly),
            "official": lambda: [official_style(model, row, _POSITION, half.layers) for row in generations],
            "competent": lambda: [competent(model, row, _POSITION, half.layers) for row in generations],
        }

    timed: list[dict[str, float]] = []
    for repeat in range(repeats + 1):
        ids = prompts()
        generations = half.generate(ids, do_sample=False, **settings)
        seconds = {"plain": _seconds(model, partial(plain, ids))}
        seconds |= {name: _seconds(model, work) for name, work in contenders(generations).items()}
        if repeat:  # the first warms up
            timed.append(seconds)

    def ratio(name: str, to: str) -> float:
        return statistics.median(seconds[name] / seconds[to] for seconds in timed)

    work = contenders(generations)
    base = statistics.median(seconds["plain"] for seconds in timed)
    sampling = _seconds(model, partial(plain, ids, do_sample=True, num_return_sequences=_SAMPLES))
    ours = ("semgrad", "scores", "upper_semgrad", "upper_scores", "all_layers")
    return Overhead(
        prompt=prompt,
        response=response,
        batch=batch,
        layers=model.config.num_hidden_layers,
        vocabulary=model.config.vocab_size,
        repeats=repeats,
        plain_seconds=base,
        **{name: ratio(name, "plain") for name in ours},
        samples=sampling / base,
        **{name: ratio(name, "upper_semgrad") for name in ("official", "competent")},
        operations=operations(work["upper_scores"]) / operations(partial(plain, ids)),
        products=time_in_products(work["upper_scores"]),
        memory=peak_bytes(model.device, work["scores"]) / peak_bytes(model.device, work["official"]),
    )


def _seconds(model: PreTrainedModel, work: Callable[[], Any]) -> float:
    _wait(model)
    start = time.perf_counter()
    work()
    _wait(model)
    return time.perf_counter() - start


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


_PAGE = """\
# What a score costs

Written by `semgrad-guard bench`: a random Llama, every contender timed in the same run, medians of the ratios within a
repeat. {setting}.

{picture}{table}

Columns with a plus are shares of plain generation, on top of it. *SemGrad* computes SemGrad alone, *all scores* also
ParaGrad, ExGrad and HybridGrad; *upper* is upper-half replay, *all layers* takes gradients at every layer. *Official*
differentiates everything, as the paper describes it; *re-forward* reads the whole sequence again and takes one backward
to the same layers; both are over SemGrad on upper-half replay. *Operations* are those of all scores (upper) over those
of generation: what the overhead would be if every operation took as long. *In products* is the share of the time of
all scores (upper) in matrix products and attention, which no other way of writing the rest would save. *Memory* is the
peak of all scores (plain path), beside the model and the generation's cache.
"""


def as_table(rows: Sequence[Overhead]) -> list[str]:
    """Render rows as a Markdown table."""
    head = (
        *("P", "T", "batch", "layers", "V", "generate, s", "+ SemGrad", "+ all scores"),
        *("+ SemGrad, upper", "+ all scores, upper", "+ all layers", "+ 10 samples"),
        *("official / ours", "re-forward / ours", "operations", "in products", "memory, ours / official"),
    )
    body = [
        (
            *map(str, (row.prompt, row.response, row.batch, row.layers, row.vocabulary)),
            f"{row.plain_seconds:.2f}",
            *(
                f"{share:.1%}"
                for share in (row.semgrad, row.scores, row.upper_semgrad, row.upper_scores, row.all_layers)
            ),
            f"{row.samples:.0%}",
            *(f"{ratio:.1f}x" for ratio in (row.official, row.competent)),
            *(f"{share:.1%}" for share in (row.operations, row.products, row.memory)),
        )
        for row in rows
    ]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def as_page(rows: Sequence[Overhead], setting: str, plot: Path | None) -> str:
    """Render rows as a page of documentation."""
    picture = "" if plot is None else f"![What scoring costs on top of generation]({plot.name})\n\n"
    return _PAGE.format(setting=setting, picture=picture, table="\n".join(as_table(rows)))
