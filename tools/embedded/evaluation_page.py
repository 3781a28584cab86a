"""Write what `make evaluation` found down: `python -m tools.embedded.evaluation_page`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import jinja2
import typer

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.demo.embedded import PROFILE
from semgrad_guard.evaluation.compare import promise_figures
from semgrad_guard.evaluation.report import WHOLE
from semgrad_guard.evaluation.run import read_results

HARD = "several-answer against unknown"
_FUSED = "confidence (fused)"


@dataclass(frozen=True)
class Target:
    """An aim from before the measurements, and the figure that was reached; at least `bound`, or at most it."""

    aim: str
    reached: float
    bound: float
    at_least: bool = True
    interval: Sequence[float] | None = None

    @property
    def met(self) -> bool:
        """Tell whether the figure reaches the bound; the interval does not count."""
        return self.reached >= self.bound if self.at_least else self.reached <= self.bound


def targets(metrics: dict[str, Any], promises: Iterable[dict[str, Any]]) -> list[Target]:
    """Hold the figures against what was aimed at."""
    whole, hard = metrics["parts"][WHOLE], metrics["parts"][HARD]

    def auroc(part: dict[str, Any], name: str, bound: float, where: str) -> Target:
        row = part["methods"][name]
        return Target(f"AUROC of {name}, {where}", row["auroc"], bound, interval=row["auroc_interval"])

    def above(part: dict[str, Any], other: str, bound: float, where: str) -> Target:
        (row,) = (row for row in part["differences"] if (row["ours"], row["other"]) == ("SemGrad", other))
        return Target(f"SemGrad above {other}, {where}", row["auroc"], bound, interval=row["interval"])

    sampled = ("G-NLL", "self-consistency (same words)", "semantic entropy (same words)")
    plain = metrics["ablation"]["sets"]["without gradients"][HARD]
    listed = [
        auroc(whole, "SemGrad", 0.88, "all"),
        *(above(whole, other, 0.06, "all") for other in sampled),
        above(whole, "mean entropy", 0.03, "all"),
        auroc(whole, _FUSED, 0.94, "all"),
        *(above(hard, other, 0.15, HARD) for other in (*sampled, "mean entropy")),
        auroc(hard, _FUSED, 0.91, HARD),
        Target(f"fused above the same without gradients, {HARD}", plain["loss"], 0.1, interval=plain["loss_interval"]),
    ]
    for promise in promises:
        risk = promise["guarantee"]["risk"]
        share = promise["coverage"] / promise["best_coverage"]
        listed += [
            Target(f"smooth calibration error, profile for a risk of {risk:.0%}", promise["smooth_ece"], 0.05, False),
            Target(f"wrong among those that pass, promised {risk:.0%}", promise["risk"], risk, False),
            Target(f"coverage as a share of the best possible at {risk:.0%}", share, 0.85),
        ]
    return listed


def main(
    first: Annotated[Path, typer.Option(help="Folder of the evaluation of the embedded model.")],
    looser: Annotated[Path, typer.Option(help="Its profile for a risk of 10 %.")],
    second: Annotated[Path, typer.Option(help="Folder of the evaluation of the second world.")],
    out: Annotated[Path, typer.Option(help="The page to write.")],
) -> None:
    """Write the page about both evaluations."""
    metrics, other = (json.loads((folder / "metrics.json").read_text("utf-8")) for folder in (first, second))
    results = read_results(first / "results.jsonl")
    promises = [promise_figures(results, Profile.load(path)) for path in (PROFILE, looser)]
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)
    template = environment.from_string(files(__package__).joinpath("evaluation.md.jinja").read_text("utf-8"))
    page = template.render(
        metrics=metrics,
        parts={name: metrics["parts"][name] for name in (WHOLE, HARD)},
        second=other,
        whole=WHOLE,
        targets=targets(metrics, promises),
        promises=promises,
    )
    out.write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
