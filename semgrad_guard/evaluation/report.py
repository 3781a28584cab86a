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
from semgrad_guard.evaluation.methods import Method
from semgrad_guard.evaluation.run import Result
from semgrad_guard.records import TokenDoubt

_WORST = 10


@dataclass(frozen=True)
class Report:
    """The page, and the same figures for machines."""

    html: str
    metrics: dict[str, Any]


def surest_errors(results: Sequence[Result], method: Method) -> list[Result]:
    """List the wrong answers that a method is surest of, the surest first."""
    wrong = [result for result in results if result.correct is False and result.score is not None]
    if not wrong:
        return []
    doubt = uncertainties(wrong, [method])[method.shown]
    return [wrong[place] for place in np.argsort(doubt, kind="stable")[:_WORST]]


def report(
    results: Sequence[Result],
    methods: Sequence[Method],
    profile: Profile | None,
    *,
    title: str,
    setting: dict[str, Any],
    doubts: Mapping[str, Sequence[TokenDoubt]],
    memory: Mapping[str, Any],
    repeats: int = 1000,
) -> Report:
    """Build the report.

    Args:
        results: what was answered.
        methods: what is compared.
        profile: whose confidence and threshold are checked; None for neither.
        title: of the page.
        setting: how it was run, for the record.
        doubts: for the surest errors, by question, where the doubt sits.
        memory: what `evaluation.run.peak_memory` found.
        repeats: of the bootstrap.
    """
    strata = sorted({result.stratum for result in results if result.stratum})
    named = {"All questions": list(results)}
    if len(strata) > 1:
        named |= {name: [result for result in results if result.stratum == name] for name in strata}
    parts = [
        {
            "name": name,
            "summary": compare(members, methods, profile, repeats=repeats),
            "figures": _figures(members, methods, profile),
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
        first=methods[0].shown,
        memory=memory,
        repeats=repeats,
        percent=lambda value: "-" if value is None else f"{100 * value:.1f} %",
        number=lambda value: "-" if value is None else f"{value:.3f}",
        times=lambda value: "-" if value is None else f"{value['median']:.2f} ({value['p95']:.2f})",
    )
    metrics = {"setting": setting, "memory": memory, "parts": {str(part["name"]): part["summary"] for part in parts}}
    return Report(html, metrics)


def _figures(results: Sequence[Result], methods: Sequence[Method], profile: Profile | None) -> list[dict[str, Any]]:
    labelled = [result for result in results if result.correct is not None]
    correct = np.array([bool(result.correct) for result in labelled])
    if len(np.unique(correct)) < 2:
        return []
    doubts = uncertainties(labelled, methods)
    drawn = [
        (risk_coverage_curves(doubts, correct), "Share of wrong answers among the surest; lower is better."),
        (roc_curves(doubts, correct), "Wrong answers found against right ones suspected."),
    ]
    drawn += [
        (histogram(doubts[name], correct, name), f"{name} of right and of wrong answers.")
        for name in ("SemGrad", "mean entropy")
        if name in doubts
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
