"""Write down what the embedded model can do: `python -m tools.embedded.card`."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import jinja2
import typer
from rich.console import Console
from rich.markdown import Markdown

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.demo.embedded import PROFILE, WEIGHTS, embedded_model, embedded_profile
from semgrad_guard.scoring.scorer import SemGradScorer
from tools.embedded.examine import Stratum, calls_at, fit_profile, guessing, measure, reporting_side
from tools.embedded.facts import relations
from tools.embedded.questions import TOOLS
from tools.embedded.train import CORE_STEPS, POLISH_STEPS

_COMMAND = "make embedded-model"
_MARKS = ("<!-- report -->", "<!-- /report -->")
_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)

# What was aimed at before training: stratum, quantity, and the bound.
_TARGETS = (
    ("known", "right", ">=", 0.97),
    ("known", "passing", ">=", 0.90),
    ("known_reworded", "right", ">=", 0.85),
    ("known_reworded", "passing", ">=", 0.75),
    ("several", "right", ">=", 0.97),
    ("several", "passing", ">=", 0.85),
    ("withheld", "wrong_passing", "<=", 0.15),
    ("invented", "passing", "<=", 0.08),
    ("reading_one", "right", ">=", 0.92),
    ("reading_one", "passing", ">=", 0.80),
    ("reading_three", "right", ">=", 0.80),
    ("reading_three", "passing", ">=", 0.65),
    ("unhelpful", "passing", "<=", 0.10),
    ("calls", "right", ">=", 0.95),
    ("calls", "passing", ">=", 0.85),
    ("calls_reworded", "right", ">=", 0.95),
    ("calls_reworded", "passing", ">=", 0.85),
    ("calls_lacking", "passing", "<=", 0.15),
    ("calls_unlisted", "passing", "<=", 0.15),
)
_WORDS = {"right": "right", "passing": "pass", "wrong_passing": "of the wrong ones pass"}


def strata_table(rows: Sequence[Stratum]) -> list[str]:
    """Render the report as a Markdown table."""
    head = ("stratum", "n", "right", "pass", "of the wrong ones pass", "wrong among those that pass")
    body = [
        (
            row.name,
            str(row.n),
            _with_interval(row.right, row.right_interval),
            _with_interval(row.passing, row.passing_interval),
            _percent(row.wrong_passing),
            _percent(row.wrong_among_passing),
        )
        for row in rows
    ]
    return _table(head, body)


def targets_table(rows: Sequence[Stratum], guessed: dict[str, float]) -> list[str]:
    """Hold the report against what was aimed at."""
    by_stratum = {row.name: asdict(row) for row in rows}
    body = []
    for name, quantity, sign, bound in _TARGETS:
        value = by_stratum[name][quantity]
        met = value is not None and (value >= bound if sign == ">=" else value <= bound)
        body.append((name, f"{_WORDS[quantity]} {sign} {bound:.0%}", _percent(value), "met" if met else "**missed**"))
    bound = max(guessed.values()) + 0.03
    right = by_stratum["withheld"]["right"]
    met = right is not None and right <= bound
    aim = f"right <= {_percent(bound)}, the better guesser and 3 points"
    body.append(("withheld", aim, _percent(right), "met" if met else "**missed**"))
    return _table(("stratum", "target", "measured", ""), body)


def calls_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Render what thresholds do to tool calls."""
    head = ("confidence >=", f"of {rows[0]['right']} right calls held", f"of {rows[0]['wrong']} wrong calls stopped")
    body = [(f"{row['threshold']:.4g}", _percent(row["right held"]), _percent(row["wrong stopped"])) for row in rows]
    return _table(head, body)


def threshold_lines(profile: Profile) -> list[str]:
    """Say what an answer of each kind must reach, and why."""
    kinds = {
        "answer": "Answers from memory",
        "grounded": "Answers from passages and tool results",
        "tool_call": "Tool calls",
        "argument": "Single arguments",
    }
    sections = ((words, getattr(profile, kind)) for kind, words in kinds.items())
    return [
        f"- {words} pass at confidence >= {section.threshold:.4f}: on the fitting side, {section.threshold_rule}."
        for words, section in sections
        if section is not None
    ]


def write_between_marks(readme: Path, lines: Sequence[str]) -> None:
    """Put the report between the marks of a README."""
    before, rest = readme.read_text(encoding="utf-8").split(_MARKS[0])
    _, after = rest.split(_MARKS[1])
    readme.write_text("\n".join([before + _MARKS[0], *lines, _MARKS[1] + after]), encoding="utf-8")


def card(scorer: SemGradScorer, profile: Profile, rows: Sequence[Stratum], calls: Sequence[dict[str, Any]]) -> str:
    """Write the model card."""
    guessed, known = guessing(), [(relation, fact) for relation in relations() for fact in relation.facts]
    plan = files(__package__).joinpath("strata.toml").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)
    template = environment.from_string(files(__package__).joinpath("card.md.jinja").read_text(encoding="utf-8"))
    config = scorer.model.config
    return template.render(
        command=_COMMAND,
        parameters=sum(parameter.numel() for parameter in scorer.model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        megabytes=sum(path.stat().st_size for path in WEIGHTS.iterdir()) / 1e6,
        steps=f"{CORE_STEPS:,} + {POLISH_STEPS:,}",
        seed=profile.seed,
        facts=sum(not relation.several for relation, _ in known),
        withheld=sum(fact.withheld for _, fact in known),
        relations=sum(not relation.several for relation in relations()),
        several=sum(relation.several for relation, _ in known),
        table=strata_table(rows),
        thresholds=threshold_lines(profile),
        guessing=guessed,
        targets=targets_table(rows, guessed),
        calls=calls_table(calls),
        strata=dict(re.findall(r"^(\w+) = \d+ +# (.+)$", plan, re.MULTILINE)),
        percent=_percent,
    )


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return _percent(value)
    return f"{_percent(value)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def main(
    fit: Annotated[bool, typer.Option("--fit", help="Fit the profile anew and write it before measuring.")] = False,
    readme: Annotated[Path | None, typer.Option(help="Write the table between the marks of this file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the model card to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measurements as JSON.")] = False,
) -> None:
    """Measure, per stratum, how often the embedded model is right and how often its answers pass."""
    scorer = SemGradScorer(*embedded_model(), layers="all", later=True)
    if fit:
        fit_profile(scorer).save(PROFILE)
    profile = embedded_profile()
    examined, standard = reporting_side(scorer), Standard(profile, None, None, None)
    rows = [measure(name, items, standard) for name, items in examined.items()]
    tool_items = [item for name in TOOLS for item in examined[name]]
    calls = calls_at(
        tool_items, profile, sorted({*_THRESHOLDS, *([profile.tool_call.threshold] if profile.tool_call else ())})
    )
    if readme is not None:
        write_between_marks(readme, [*strata_table(rows), "", *threshold_lines(profile)])
    if out is not None:
        out.write_text(card(scorer, profile, rows, calls), encoding="utf-8")
    if as_json:
        print(json.dumps({"seed": profile.seed, "strata": [asdict(row) for row in rows], "calls": calls}))
    else:
        tables = (strata_table(rows), targets_table(rows, guessing()), calls_table(calls))
        Console().print(Markdown("\n".join(line for table in tables for line in (*table, ""))))


if __name__ == "__main__":
    typer.run(main)
