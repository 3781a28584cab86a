"""What answers and their scores cost on a GPU: arithmetic from a model's shape, not a measurement.

`python -m tools.cost --page docs/scale.md` writes the table into that page. The operations are those
that `semgrad-guard bench` counts (a test compares them); how fast a GPU does them is assumed and given as an option.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

MARKS = ("<!-- cost -->", "<!-- /cost -->")
_SUFFIX = 3  # prompt tokens from t* to the end, as in most chat templates
_BYTES = 2  # of a number in bfloat16
_ATTENTION_BACK = 2  # the backward of attention does its two products twice
_SAMPLES = 10  # of semantic entropy
_MILLION = 1_000_000


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes, by the names of its configuration; `kv` is the width of keys, and of values."""

    layers: int
    hidden: int
    intermediate: int
    kv: int
    vocabulary: int

    @property
    def body(self) -> int:
        """The parameters that a token is multiplied with on its way up."""
        return self.layers * self.hidden * (2 * self.hidden + 2 * self.kv + 3 * self.intermediate)

    @property
    def head(self) -> int:
        """The parameters of the output head."""
        return self.vocabulary * self.hidden


@dataclass(frozen=True)
class Step:
    """Work that is done at once: floating point operations, and bytes that must be read for it."""

    operations: float
    read: float


@dataclass(frozen=True)
class Gpu:
    """What a GPU reaches: operations and bytes per second, and its price per hour in any currency."""

    flops: float
    bandwidth: float
    price: float

    def seconds(self, steps: Iterable[Step]) -> float:
        """Give the time of some steps, each as long as the slower of computing and reading takes."""
        return sum(max(step.operations / self.flops, step.read / self.bandwidth) for step in steps)

    def per_million(self, seconds: float) -> float:
        """Give the price of a million times so many seconds."""
        return seconds / 3600 * self.price * _MILLION


def reading(shape: Shape, prompt: int, batch: int = 1) -> list[Step]:
    """Read the prompts of a batch."""
    attention = 4 * shape.layers * shape.hidden * prompt**2
    return [Step(batch * (2 * shape.body * prompt + attention), _BYTES * shape.body)]


def writing(shape: Shape, prompt: int, response: int, batch: int = 1) -> list[Step]:
    """Write the responses of a batch, token by token, behind prompts that have been read."""

    def step(place: int) -> Step:
        seen = prompt + place
        body = (2 * shape.body + 4 * shape.layers * shape.hidden * seen) if place else 0  # the first is in the reading
        cache = 2 * shape.layers * shape.kv * seen
        return Step(
            batch * (body + 2 * shape.head),
            _BYTES * ((shape.body + batch * cache if place else 0) + shape.head),
        )

    return [step(place) for place in range(response)]


def scoring(
    shape: Shape, prompt: int, response: int, batch: int = 1, *, upper: bool = True, parameters: bool = True
) -> list[Step]:
    """Score the responses of a batch, on top of the generation's cache: the layers are the upper half.

    Args:
        shape: of the model.
        prompt: tokens.
        response: tokens.
        batch: rows.
        upper: on upper-half replay; otherwise the lower half is run as well.
        parameters: with ParaGrad and ExGrad, at two more products of the head's size.
    """
    tokens = _SUFFIX + response - 1
    attention = 4 * shape.layers * shape.hidden * tokens * (prompt + response)
    whole = 2 * shape.body * tokens + attention  # forward through all layers
    forward = whole / 2 if upper else whole
    back = shape.body * tokens + _ATTENTION_BACK * attention / 2
    products = 4 if parameters else 2
    read = shape.body * (0.5 if upper else 1.0)
    return [
        Step(batch * forward, _BYTES * read),
        Step(batch * 2 * products * shape.head * response, _BYTES * 2 * shape.head),
        Step(batch * back, _BYTES * shape.body / 2),
    ]


def scoring_ids(shape: Shape, prompt: int, response: int, batch: int = 1) -> list[Step]:
    """Score answers from elsewhere by their ids: the prompts are read once more, and there is no upper-half replay."""
    return [*reading(shape, prompt - _SUFFIX, batch), *scoring(shape, prompt, response, batch, upper=False)]


def table(shape: Shape, gpu: Gpu, lengths: Sequence[tuple[int, int]], batches: Sequence[int]) -> list[str]:
    """Render what a million answers cost, for every pair of lengths and every batch, as a Markdown table."""
    head = (
        *("prompt", "response", "batch", "answers/s", "a million answers", "+ SemGrad", "+ all scores", "overhead"),
        *("scored from ids", f"+ {_SAMPLES} samples"),
    )
    rows = [head, ("---",) * len(head)]
    for prompt, response in lengths:
        for batch in batches:
            read, written = reading(shape, prompt, batch), writing(shape, prompt, response, batch)
            generating = gpu.seconds([*read, *written]) / batch
            scores = gpu.seconds(scoring(shape, prompt, response, batch)) / batch
            semgrad = gpu.seconds(scoring(shape, prompt, response, batch, parameters=False)) / batch
            again = gpu.seconds(scoring_ids(shape, prompt, response, batch)) / batch
            samples = _SAMPLES * gpu.seconds(written) / batch
            rows.append(
                (
                    *map(str, (prompt, response, batch)),
                    f"{1 / (generating + scores):.1f}",
                    *(f"{gpu.per_million(seconds):.2f}" for seconds in (generating, semgrad, scores)),
                    f"{scores / generating:.1%}",
                    *(f"{gpu.per_million(seconds):.2f}" for seconds in (again, samples)),
                )
            )
    return [f"| {' | '.join(cells)} |" for cells in rows]


def main(
    page: Annotated[Path | None, typer.Option(help="Markdown file to write the table into, between its marks.")] = None,
    layers: Annotated[int, typer.Option()] = 32,
    hidden: Annotated[int, typer.Option()] = 4096,
    intermediate: Annotated[int, typer.Option()] = 14336,
    kv: Annotated[int, typer.Option(help="Width of the keys: key-value heads times head size.")] = 1024,
    vocabulary: Annotated[int, typer.Option()] = 128256,
    tflops: Annotated[float, typer.Option(help="What the GPU's data sheet says of dense bfloat16, in 10^12/s.")] = 400,
    utilisation: Annotated[float, typer.Option(help="The share of it that is reached.")] = 0.4,
    bandwidth: Annotated[float, typer.Option(help="Of its memory, in 10^12 bytes/s.")] = 2,
    price: Annotated[float, typer.Option(help="Per GPU and hour, in any currency.")] = 1,
    lengths: Annotated[str, typer.Option(help="Pairs prompt:response, in tokens.")] = "64:16,512:32,2048:128",
    batches: Annotated[str, typer.Option(help="Rows that are generated and scored together.")] = "1,16,64",
) -> None:
    """Work out what a million answers cost, with and without scores; the GPU's figures are yours to give."""
    shape = Shape(layers, hidden, intermediate, kv, vocabulary)
    gpu = Gpu(tflops * 1e12 * utilisation, bandwidth * 1e12, price)
    pairs = [tuple(map(int, pair.split(":"))) for pair in lengths.split(",")]
    lines = table(shape, gpu, [(prompt, response) for prompt, response in pairs], [int(b) for b in batches.split(",")])
    billions = (shape.body + shape.head) / 1e9
    assumed = (
        f"Worked out, not measured: {layers} layers, hidden {hidden}, intermediate {intermediate}, keys {kv}, "
        f"vocabulary {vocabulary} ({billions:.1f} billion parameters in products), in bfloat16; a GPU of {tflops:g} "
        f"TFLOP/s, of which {utilisation:.0%} are reached, that reads {bandwidth:g} TB/s and costs {price:g} an hour."
    )
    text = "\n".join([assumed, "", *lines])
    if page is None:
        print(text)
        return
    before = page.read_text(encoding="utf-8")
    marked = re.compile(f"{MARKS[0]}.*?{MARKS[1]}", re.DOTALL)
    if not marked.search(before):
        raise typer.BadParameter(f"{page} has no place for the table; expected {MARKS[0]} and {MARKS[1]}.")
    page.write_text(marked.sub(lambda _: f"{MARKS[0]}\n{text}\n{MARKS[1]}", before), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
