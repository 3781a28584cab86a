"""One offline HTML page about an evaluation: tables, curves, and the surest errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.evaluation.compare import compare, uncertainties
from semgrad_guard.evaluation.figures import histogram, reliability, risk_coverage_curves, roc_curves
from semgrad_guard.evaluation.run import Result
from semgrad_guard.records import TokenDoubt

_WORST = 10


@dataclass(frozen=True)
class Report:
    """The page, and the same figures for machines."""

    html: str
    metrics: dict[str, Any]


def surest_errors(results: Sequence[Result], profile: Profile | None) -> list[Result]:
    """List the wrong answers that the first method is surest of, the surest first."""
    wrong = [result for result in results if result.correct is False and result.score is not None]
    if not wrong:
        return []
    doubt = next(iter(uncertainties(wrong, profile).values()))
    return [wrong[place] for place in np.argsort(doubt, kind="stable")[:_WORST]]


def report(
    results: Sequence[Result],
    profile: Profile | None,
    *,
    title: str,
    setting: dict[str, Any],
    doubts: Mapping[str, Sequence[TokenDoubt]],
    repeats: int = 1000,
) -> Report:
    """Build the report.

    Args:
        results: what was answered.
        profile: gives confidence; None for raw scores alone.
        title: of the page.
        setting: how it was run, for the record.
        doubts: for the surest errors, by question, where the doubt sits.
        repeats: of the bootstrap.
    """
    strata = sorted({result.stratum for result in results if result.stratum})
    named = {"All questions": list(results)}
    if len(strata) > 1:
        named |= {name: [result for result in results if result.stratum == name] for name in strata}
    parts = [
        {
            "name": name,
            "summary": compare(members, profile, repeats=repeats),
            "figures": _figures(members, profile),
        }
        for name, members in named.items()
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))
    summary: Any = parts[0]["summary"]
    html = template.render(
        title=title,
        setting=setting,
        summary=summary,
        parts=parts,
        errors=[{"query": query, "tokens": _shaded(tokens)} for query, tokens in doubts.items()],
        first=next(iter(summary["methods"]), ""),
        repeats=repeats,
        percent=lambda value: "-" if value is None else f"{100 * value:.1f} %",
        number=lambda value: "-" if value is None else f"{value:.3f}",
    )
    metrics = {"setting": setting, "parts": {str(part["name"]): part["summary"] for part in parts}}
    return Report(html, metrics)


def _figures(results: Sequence[Result], profile: Profile | None) -> list[dict[str, Any]]:
    labelled = [result for result in results if result.correct is not None]
    correct = np.array([bool(result.correct) for result in labelled])
    if len(np.unique(correct)) < 2:
        return []
    doubts = uncertainties(labelled, profile)
    drawn = [
        (risk_coverage_curves(doubts, correct), "Share of wrong answers among the surest; lower is better."),
        (roc_curves(doubts, correct), "Wrong answers found against right ones suspected."),
        (histogram(doubts["SemGrad"], correct, "SemGrad"), "SemGrad of right and of wrong answers."),
        (histogram(doubts["mean entropy"], correct, "mean entropy"), "Mean entropy of right and of wrong answers."),
    ]
    if profile is not None:
        section = profile.answer
        confidence = np.array([0.0 if r.score is None else section.confidence(r.score) for r in labelled])
        drawn.append((reliability(confidence, correct), "Confidence against the share of right answers."))
    return [{"svg": Markup(svg), "caption": caption} for svg, caption in drawn]


def _shaded(tokens: Sequence[TokenDoubt]) -> list[dict[str, Any]]:
    most = max((token.share for token in tokens), default=0.0)
    return [
        {**token.model_dump(), "shade": max(0.0, 0.7 * token.share / most) if most > 0 else 0.0} for token in tokens
    ]
