"""Plots of measurements, as SVG; they need the extra `plot`."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semgrad_guard.errors import needs
from semgrad_guard.evaluation.metrics import Numbers, risk_coverage
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


def draw_preservation(measured: Preservation, layers: Sequence[int], path: Path) -> None:
    """Draw SPS as a heatmap, layers by prompt tokens, t* and the layers framed.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    count = len(measured.tokens)
    figure = new_figure(2.5 + 0.7 * count, 1.5 + 0.3 * len(measured.scores))
    axes = figure.subplots()
    image = axes.imshow([row[::-1] for row in measured.scores], origin="lower", aspect="auto", cmap="viridis")
    texts = [f"{text!r}\nt = {count - place}" for place, text in enumerate(reversed(measured.tokens))]
    axes.set_xticks(range(count), texts, rotation=60, ha="right")
    axes.set_yticks(range(len(measured.scores)))
    axes.set_xlabel("prompt token, from the end")
    axes.set_ylabel("hidden state")
    left = count - measured.position(layers) - 0.5
    axes.plot(
        [left, left + 1, left + 1, left, left],
        [min(layers) - 0.5, min(layers) - 0.5, max(layers) + 0.5, max(layers) + 0.5, min(layers) - 0.5],
        color="red",
    )
    figure.colorbar(image, label="SPS")
    figure.savefig(path, format="svg", metadata={"Date": None})


def new_figure(width: float, height: float) -> Any:
    """Make a matplotlib figure.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    with needs("plot", "Plots need matplotlib"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def risk_coverage_curves(by_method: Mapping[str, Numbers], correct: NDArray[np.bool_]) -> str:
    """Draw the share of wrong answers against coverage."""
    figure, axes = _axes("coverage", "wrong among them")
    for name, uncertainty in by_method.items():
        axes.plot(*risk_coverage(uncertainty, correct), label=name)
    axes.plot(*risk_coverage((~correct).astype(float), correct), color="grey", linestyle=":", label="best possible")
    axes.legend(fontsize="small")
    return _svg(figure)


def roc_curves(by_method: Mapping[str, Numbers], correct: NDArray[np.bool_]) -> str:
    """Draw wrong answers found against right answers suspected."""
    figure, axes = _axes("right answers suspected", "wrong answers found")
    for name, uncertainty in by_method.items():
        order = np.argsort(-uncertainty, kind="stable")
        wrong = (~correct)[order]
        ends = np.append(np.flatnonzero(np.diff(uncertainty[order])), len(order) - 1)
        hits, suspected = np.cumsum(wrong)[ends] / wrong.sum(), np.cumsum(~wrong)[ends] / (~wrong).sum()
        axes.plot([0.0, *suspected], [0.0, *hits], label=name)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.5)
    axes.legend(fontsize="small")
    return _svg(figure)


def reliability(confidence: Numbers, correct: NDArray[np.bool_], bins: int = 10) -> str:
    """Draw confidence against the share of right answers, in bins of equal count."""
    figure, axes = _axes("confidence", "right")
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(confidence)))
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.5)
    axes.plot([confidence[part].mean() for part in parts], [correct[part].mean() for part in parts], marker="o")
    return _svg(figure)


def histogram(uncertainty: Numbers, correct: NDArray[np.bool_], name: str) -> str:
    """Draw how a score is spread over right and over wrong answers, on a logarithmic scale."""
    figure, axes = _axes(name, "answers")
    values = np.log10(np.maximum(uncertainty[uncertainty < np.finfo(np.float64).max], 1e-12))
    edges = np.linspace(values.min(), values.max() + 1e-9, 31) if len(values) else np.linspace(0, 1, 31)
    for kind, label in ((correct, "right"), (~correct, "wrong")):
        part = uncertainty[kind & (uncertainty < np.finfo(np.float64).max)]
        axes.hist(np.log10(np.maximum(part, 1e-12)), bins=edges, alpha=0.6, label=label)
    axes.set_xlabel(f"log10 of {name}")
    axes.legend(fontsize="small")
    return _svg(figure)


def heatmap(values: Sequence[Sequence[float]], tokens: Sequence[str], label: str) -> str:
    """Draw a number by hidden state and prompt token, `values[l][t - 1]`, the last token on the right."""
    count = len(tokens)
    figure = new_figure(2.0 + 0.55 * count, 1.6 + 0.25 * len(values))
    axes = figure.subplots()
    image = axes.imshow([row[::-1] for row in values], origin="lower", aspect="auto", cmap="viridis")
    texts = [f"{text!r} {count - place}" for place, text in enumerate(reversed(tokens))]
    axes.set_xticks(range(count), texts, rotation=60, ha="right", fontsize="small")
    axes.set_yticks(range(len(values)))
    axes.set_xlabel("prompt token, from the end")
    axes.set_ylabel("hidden state")
    figure.colorbar(image, label=label)
    return _svg(figure)


def scatter(one: Sequence[float], other: Sequence[float], x: str, y: str) -> str:
    """Draw pairs of numbers as points."""
    figure, axes = _axes(x, y)
    axes.scatter(one, other, s=12, alpha=0.7)
    return _svg(figure)


def _axes(x: str, y: str) -> tuple[Any, Any]:
    figure = new_figure(5, 3.6)
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]
