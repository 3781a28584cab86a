"""Plots of measurements, as SVG; they need the extra `plot`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from semgrad_guard.evaluation.figures import new_figure
from semgrad_guard.evaluation.overhead import Overhead
from semgrad_guard.scoring.preservation import Preservation

_BARS: dict[str, Callable[[Overhead], float]] = {
    "SemGrad": lambda row: row.upper_semgrad,
    "all scores": lambda row: row.upper_scores,
    "re-forward": lambda row: row.competent * row.upper_semgrad,
    "official style": lambda row: row.official * row.upper_semgrad,
    "10 samples": lambda row: row.samples,
}


def draw_overhead(rows: Sequence[Overhead], path: Path) -> None:
    """Draw what each way of scoring costs on top of generation, on a logarithmic scale.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    figure = new_figure(2 + 1.6 * len(rows), 4)
    axes = figure.subplots()
    width = 0.8 / len(_BARS)
    for place, (name, value) in enumerate(_BARS.items()):
        positions = [index + (place - (len(_BARS) - 1) / 2) * width for index in range(len(rows))]
        axes.bar(positions, [100 * value(row) for row in rows], width, label=name)
    axes.set_xticks(range(len(rows)), [f"P {row.prompt}, T {row.response}\nbatch {row.batch}" for row in rows])
    axes.set_yscale("log")
    axes.set_ylabel("cost on top of generation, %")
    axes.axhline(10, color="grey", linewidth=0.5)
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(path, format="svg", metadata={"Date": None})


def draw_preservation(found: Preservation, span: Sequence[int], path: Path) -> None:
    """Draw SPS as a heatmap, layers by prompt tokens, t* and the span framed.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    count = len(found.tokens)
    figure = new_figure(2.5 + 0.7 * count, 1.5 + 0.3 * len(found.scores))
    axes = figure.subplots()
    image = axes.imshow([row[::-1] for row in found.scores], origin="lower", aspect="auto", cmap="viridis")
    texts = [f"{text!r}\nt = {count - place}" for place, text in enumerate(reversed(found.tokens))]
    axes.set_xticks(range(count), texts, rotation=60, ha="right")
    axes.set_yticks(range(len(found.scores)))
    axes.set_xlabel("prompt token, from the end")
    axes.set_ylabel("hidden state")
    left = count - found.position(span) - 0.5
    axes.plot(
        [left, left + 1, left + 1, left, left],
        [min(span) - 0.5, min(span) - 0.5, max(span) + 0.5, max(span) + 0.5, min(span) - 0.5],
        color="red",
    )
    figure.colorbar(image, label="SPS")
    figure.savefig(path, format="svg", metadata={"Date": None})
