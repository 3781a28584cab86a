"""Timings of the parts, for work on the engine: `make benchmarks`. What counts are ratios within one run."""

from functools import partial

import pytest
import torch

from semgrad_guard import SemGradScorer
from semgrad_guard.evaluation.overhead import numbered_tokenizer, random_llama
from semgrad_guard.evaluation.sampling import competent, official_style

SIZES = [(32, 32), (512, 8), (512, 32), (2048, 32)]
POSITION = 3


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return random_llama(512, 12, 32_000)


def work_of(name, model, prompt, response):
    """Build the work of a contender on a response that has just been generated."""
    half = SemGradScorer(model, numbered_tokenizer(32_000), token_position=POSITION)
    ids = torch.randint(1, 32_000, (1, prompt), generator=torch.Generator().manual_seed(0)).tolist()
    generate = partial(half.generate, ids, max_new_tokens=response, min_new_tokens=response, do_sample=False)
    if name == "generate":
        return generate
    (row,) = generate()
    every = SemGradScorer(model, numbered_tokenizer(32_000), token_position=POSITION, layers="all")
    return {
        "semgrad": partial(half.score, [row], parameters=False),
        "all scores": partial(half.score, [row]),
        "all layers": partial(every.score, [row]),
        "official style": partial(official_style, model, row, POSITION, half.layers),
        "re-forward": partial(competent, model, row, POSITION, half.layers),
    }[name]


@pytest.mark.parametrize(("prompt", "response"), SIZES)
@pytest.mark.parametrize("name", ["generate", "semgrad", "all scores", "all layers", "official style", "re-forward"])
def test_time(benchmark, model, name, prompt, response):
    benchmark.group = f"P {prompt}, T {response}"
    benchmark.pedantic(work_of(name, model, prompt, response), rounds=3, warmup_rounds=1)
