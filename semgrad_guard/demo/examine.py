"""Fit the embedded model's profile, and report what passes: `python -m semgrad_guard.demo.examine`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from scipy.stats import binomtest
from tqdm.auto import tqdm

from semgrad_guard.calibration.fit import fit_section, fused_features, threshold_passing
from semgrad_guard.calibration.profile import Binding, Profile, Section
from semgrad_guard.demo.embedded import PROFILE, embedded_model, embedded_profile
from semgrad_guard.demo.facts import strata
from semgrad_guard.demo.questions import CLOSED_BOOK, GROUNDED, Question, questions
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.load import fingerprint, template_fingerprint
from semgrad_guard.records import Score
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.version import VERSION

_MARKS = ("<!-- report -->", "<!-- /report -->")
_BATCH = 64
_LONGEST_ANSWER = 24


@dataclass(frozen=True)
class Examined:
    """A question, the score of the model's answer, and whether that was right."""

    question: Question
    score: Score
    correct: bool


@dataclass(frozen=True)
class Stratum:
    """One row of the report; intervals are exact 95 % binomial ones."""

    name: str
    n: int
    accuracy: float | None
    passing: float
    passing_interval: tuple[float, float]
    wrong_among_passing: float | None


def examine(scorer: SemGradScorer, asked: list[Question]) -> list[Examined]:
    """Ask, answer greedily, score."""
    found = []
    for start in tqdm(range(0, len(asked), _BATCH), desc="asking", leave=False):
        batch = asked[start : start + _BATCH]
        prompts = [encode_chat(scorer.tokenizer, [{"role": "user", "content": item.prompt}]) for item in batch]
        generations = scorer.generate(prompts, max_new_tokens=_LONGEST_ANSWER, do_sample=False)
        for item, generation, score in zip(batch, generations, scorer.score(generations), strict=True):
            found.append(Examined(item, score, item.correct(generation.text)))
    return found


def fit_profile(scorer: SemGradScorer) -> Profile:
    """Fit the profile on the fitting side: one section for answers from memory, one for answers from passages."""
    features = fused_features(len(scorer.span))

    def section(members: tuple[str, ...], hopeless: str) -> Section:
        examined = examine(scorer, [item for stratum in members for item in questions(stratum, "fit")])
        scores, correct = [item.score for item in examined], [item.correct for item in examined]
        fitted = fit_section(scores, correct, features, groups=[item.question.about for item in examined])
        share = strata()["passing"][hopeless]
        confidences = [fitted.confidence(item.score) for item in examined if item.question.stratum == hopeless]
        rule = f"at most {share:.0%} of {len(confidences)} questions of the stratum {hopeless!r} pass"
        threshold = round(threshold_passing(confidences, share), 4)
        return fitted.model_copy(update={"threshold": threshold, "threshold_rule": rule})

    return Profile(
        package=VERSION,
        method="fused",
        bound_to=Binding(
            model="semgrad-guard embedded model",
            fingerprint=fingerprint(scorer.model),
            template=template_fingerprint(scorer.tokenizer),
            token_position=scorer.token_position or 0,
            span=scorer.span,
            reduction=scorer.reduction,
            norm=scorer.norm,
        ),
        label_source="exact match, case and full stop aside",
        seed=strata()["seed"],
        answer=section(CLOSED_BOOK, "invented"),
        grounded=section(GROUNDED, "unhelpful"),
    )


def report(scorer: SemGradScorer, profile: Profile) -> list[Stratum]:
    """Measure every stratum on the reporting side."""
    rows = []
    for name in (*CLOSED_BOOK, *GROUNDED):
        section = profile.section(grounded=name in GROUNDED)
        examined = examine(scorer, questions(name, "report"))
        passing = [item for item in examined if section.passes(item.score)]
        right = sum(item.correct for item in examined)
        interval = binomtest(len(passing), len(examined)).proportion_ci()
        rows.append(
            Stratum(
                name,
                len(examined),
                right / len(examined) if any(item.question.answers for item in examined) else None,
                len(passing) / len(examined),
                (interval.low, interval.high),
                sum(not item.correct for item in passing) / len(passing) if passing else None,
            )
        )
    return rows


def table(rows: list[Stratum]) -> list[str]:
    """Render the report as a Markdown table."""
    lines = [
        "| stratum | questions | right | pass | 95 % interval | wrong among those that pass |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row.passing_interval
        cells = (
            row.name,
            str(row.n),
            _percent(row.accuracy),
            _percent(row.passing),
            f"{100 * low:.1f} to {100 * high:.1f}",
            _percent(row.wrong_among_passing),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_into(readme: Path, profile: Profile, rows: list[Stratum]) -> None:
    """Put the report between the marks of a README."""
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(_MARKS[0])
    _, after = rest.split(_MARKS[1])
    caption = "\n".join(
        f"Answers {source} pass at confidence >= {section.threshold}: {section.threshold_rule}, on the fitting side."
        for source, section in (("from memory", profile.answer), ("from passages", profile.section(grounded=True)))
    )
    report_text = "\n".join([_MARKS[0], caption, "", *table(rows), _MARKS[1]])
    readme.write_text(before + report_text + after, encoding="utf-8")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def main(
    fit: Annotated[bool, typer.Option("--fit", help="Fit the profile anew and write it before reporting.")] = False,
    readme: Annotated[Path | None, typer.Option(help="Write the report between the marks of this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report, per stratum, how often the embedded model is right and how often its answers pass."""
    scorer = SemGradScorer(*embedded_model(), span="all")
    if fit:
        fit_profile(scorer).save(PROFILE)
    profile = embedded_profile()
    rows = report(scorer, profile)
    if readme is not None:
        write_into(readme, profile, rows)
    if as_json:
        print(json.dumps({"seed": profile.seed, "strata": [vars(row) for row in rows]}))
    else:
        Console().print(Markdown("\n".join(table(rows))))


if __name__ == "__main__":
    typer.run(main)
