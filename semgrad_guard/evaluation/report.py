"""One offline HTML page about an evaluation: tables, curves, and the surest errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from tqdm.auto import tqdm

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.evaluation.compare import Method, compare, uncertainties
from semgrad_guard.evaluation.figures import heatmap, histogram, reliability, risk_coverage_curves, roc_curves, scatter
from semgrad_guard.evaluation.run import Result
from semgrad_guard.evaluation.study import Study
from semgrad_guard.records import TokenUncertainty

WHOLE = "All questions"


@dataclass(frozen=True)
class Report:
    """The page, and the same figures for machines."""

    html: str
    metrics: dict[str, Any]


def parts_of(results: Sequence[Result], unions: Mapping[str, Sequence[str]]) -> dict[str, list[Result]]:
    """Name the parts that a report looks at: everything, every stratum, and unions of strata.

    Raises:
        ConfigurationError: a union names a stratum that no question has.
    """
    strata = sorted({result.stratum for result in results if result.stratum})
    for name, members in unions.items():
        if unknown := set(members) - set(strata):
            raise ConfigurationError(
                f"The part {name!r} is to hold {', '.join(sorted(unknown))}; expected strata of the data: "
                f"{', '.join(strata) or 'there are none'}."
            )
    named = {WHOLE: strata, **unions} | ({stratum: [stratum] for stratum in strata} if len(strata) > 1 else {})
    return {
        name: [result for result in results if name == WHOLE or result.stratum in members]
        for name, members in named.items()
    }


def report(
    parts: Mapping[str, Sequence[Result]],
    methods: Sequence[Method],
    profile: Profile | None,
    study: Study,
    *,
    title: str,
    setting: dict[str, Any],
    repeats: int = 1000,
) -> Report:
    """Build the report.

    Args:
        parts: what `parts_of` gave.
        methods: what is compared.
        profile: whose confidence and threshold are checked; None for neither.
        study: what `study` looked into.
        title: title of the page.
        setting: how it was run, for the record.
        repeats: number of bootstrap samples.
    """
    summaries = {
        name: compare(members, methods, profile, repeats=repeats)
        for name, members in tqdm(parts.items(), desc="comparing methods")
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": _percent, "number": _number, "times": _times, "between": _between}
    template = environment.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))
    html = template.render(
        title=title,
        setting=setting,
        summary=summaries[WHOLE],
        parts=[
            {"name": name, "summary": summaries[name], "figures": _figures(members, methods, profile)}
            for name, members in parts.items()
        ],
        errors=[{"query": query, "tokens": _shaded(tokens)} for query, tokens in study.attributions.items()],
        first=methods[0].shown,
        ours=[method.shown for method in methods if method.ours],
        study=study,
        maps=_maps(study),
        repeats=repeats,
    )
    metrics = {
        "setting": setting,
        "memory": study.memory,
        "parts": summaries,
        "ablation": study.ablation,
        "placement": None if study.placement is None else asdict(study.placement),
        "preservation": None if study.preservation is None else asdict(study.preservation),
        "premise": study.premise,
    }
    return Report(html, metrics)


def _maps(study: Study) -> list[dict[str, Any]]:
    """Draw AUROC by layer and token, and beside it the preservation score there, and one against the other."""
    if study.placement is None:
        return []
    place, drawn = study.placement, []
    drawn.append((heatmap(place.by_state, place.tokens, "AUROC"), "AUROC of SemGrad by hidden state and token."))
    if study.preservation is not None:
        preserved = study.preservation
        states = preserved.scores[: len(place.by_state)]
        drawn.append((heatmap(states, preserved.tokens, "SPS"), "Semantic preservation score there."))
        pairs = [pair for rows in zip(states, place.by_state, strict=True) for pair in zip(*rows, strict=False)]
        caption = "One against the other: a point for each hidden state and token."
        drawn.append((scatter([sps for sps, _ in pairs], [auroc for _, auroc in pairs], "SPS", "AUROC"), caption))
    return [{"svg": Markup(svg), "caption": caption} for svg, caption in drawn]


def _figures(results: Sequence[Result], methods: Sequence[Method], profile: Profile | None) -> list[dict[str, Any]]:
    labelled = [result for result in results if result.correct is not None]
    correct = np.array([bool(result.correct) for result in labelled])
    if len(np.unique(correct)) < 2:
        return []
    by_method = uncertainties(labelled, methods)
    shown = {method.shown: by_method[method.shown] for method in methods if method.drawn} or by_method
    drawn = [
        (risk_coverage_curves(shown, correct), "Share of wrong answers among the surest; lower is better."),
        (roc_curves(shown, correct), "Wrong answers found against right ones suspected."),
    ]
    drawn += [
        (histogram(by_method[name], correct, name), f"{name[0].upper()}{name[1:]} of right and of wrong answers.")
        for name in ("SemGrad", "mean entropy")
        if name in by_method
    ]
    if profile is not None and profile.calibrated:
        section = profile.answer
        confidence = np.array([0.0 if r.score is None else section.confidence(r.score) for r in labelled])
        drawn.append((reliability(confidence, correct), "Confidence against the share of right answers."))
    return [{"svg": Markup(svg), "caption": caption} for svg, caption in drawn]


def _shaded(tokens: Sequence[TokenUncertainty]) -> list[dict[str, Any]]:
    most = max((token.share for token in tokens), default=0.0)
    return [
        {**token.model_dump(), "shade": max(0.0, 0.7 * token.share / most) if most > 0 else 0.0} for token in tokens
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _times(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['median']:.2f} ({value['p95']:.2f})"


def _between(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"
