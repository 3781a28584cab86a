"""Commands about profiles: `calibrate`, `check-profile` and `sps`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from semgrad_guard.cli.answers import read_passages
from semgrad_guard.cli.app import (
    DtypeOption,
    JsonOption,
    ModelOption,
    PromptOption,
    RevisionOption,
    SystemOption,
    TokenPositionOption,
    app,
    bound_scorer,
    model_of,
    plain_errors,
    prompt_of,
)
from semgrad_guard.demo.embedded import paraphrases as embedded_paraphrases
from semgrad_guard.errors import ConfigurationError, SemGradError
from semgrad_guard.scoring.registry import names_of

if TYPE_CHECKING:
    from semgrad_guard.calibration.from_examples import Calibration
    from semgrad_guard.calibration.search import Candidate

_SHOWN = 8  # candidates in the table


@app.command()
def calibrate(
    data: Annotated[
        str,
        typer.Option(
            help='Labelled questions in JSON lines or CSV, with "query" and "truthful answer", or with "answer" and '
            '"correct"; or hub:owner/name:split.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="Profile to write, a JSON file.")],
    model: ModelOption = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    risk: Annotated[float, typer.Option(help="Largest share of wrong answers among those that pass.")] = 0.05,
    delta: Annotated[float, typer.Option(help="Largest probability that the promise does not hold.")] = 0.05,
    coverage: Annotated[
        float | None, typer.Option(help="Share of the answers that pass, without labels and without a promise.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help=f"Method of the confidence: {', '.join(['auto', 'blend', 'core', 'fused', *names_of('alone')])}."
        ),
    ] = "auto",
    labels: Annotated[
        str,
        typer.Option(
            help="Comparison of an answer with the right one: match, contains, either, f1, or similar:FOLDER[@0.8]."
        ),
    ] = "match",
    search: Annotated[
        bool,
        typer.Option(
            help="Try other prompt tokens and layers for semgrad and hybridgrad, and take those that tell right from "
            "wrong best."
        ),
    ] = True,
    paraphrases: Annotated[
        Path | None,
        typer.Option(help='File to measure the preservation score on, with "query" and "paraphrases" in each line.'),
    ] = None,
    passages: Annotated[
        Path | None,
        typer.Option(help="Text file of passages, one a line. Second answers, made with them, are calibrated too."),
    ] = None,
    prompt: PromptOption = None,
    system: SystemOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    token_position: TokenPositionOption = None,
    seed: Annotated[int, typer.Option(help="Random seed of the split.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Let a model answer questions with known answers, and write a profile whose threshold keeps a promise.

    A file beside the profile keeps the answers until then. A run that was interrupted or failed goes on from them, also
    with another method, risk or comparison; another prompt or length of answers begins anew.
    """
    from semgrad_guard.calibration.answers import answered
    from semgrad_guard.calibration.examples import calibrated_prompt, read_examples, read_paraphrases
    from semgrad_guard.calibration.from_examples import calibrated_profile, covering_profile, widened
    from semgrad_guard.calibration.labels import labeler
    from semgrad_guard.calibration.methods import check_method
    from semgrad_guard.calibration.prompts import BARE
    from semgrad_guard.langchain.passages import BM25Retriever
    from semgrad_guard.langchain.routes import Retrieve, retry_with
    from semgrad_guard.scoring.preservation import preservation
    from semgrad_guard.scoring.scorer import SemGradScorer

    with plain_errors():
        check_method(method)
        examples, label = read_examples(data), labeler(labels)
        form = calibrated_prompt(examples, prompt_of(prompt, system))
        source = model_of(model, revision, dtype, quiet=as_json)
        scorer = SemGradScorer(*source, token_position=token_position)
        preserved = None
        if paraphrases is not None:
            preserved = preservation(*source, read_paraphrases(paraphrases), messages=(form or BARE).messages)
        route = None if passages is None else Retrieve(BM25Retriever.from_texts(read_passages(passages)))
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
        journal = out.with_name(f"{out.name}.answers")
        wide, state_layers = widened(scorer, preserved)
        asking: dict[str, Any] = {"prompt": form or BARE, "journal": journal, "state_layers": state_layers}
        with _journal_noted(journal):
            answers = answered(wide, examples, label, settings, **asking)
            name, chosen = model or "semgrad-guard embedded model", method
            if coverage is not None:
                calibration = covering_profile(
                    scorer,
                    answers,
                    model=name,
                    coverage=coverage,
                    prompt=form,
                    method=chosen,
                    preservation=preserved,
                )
            else:
                calibration = calibrated_profile(
                    scorer,
                    answers,
                    model=name,
                    labels=labels,
                    prompt=form,
                    method=chosen,
                    risk=risk,
                    delta=delta,
                    preservation=preserved,
                    search=search,
                    position=token_position,
                    retry=None if route is None else retry_with(route, wide, label, settings, **asking),
                    seed=seed,
                )
            calibration.profile.save(out)
        journal.unlink()
    record = _record(calibration)
    if as_json:
        print(json.dumps(record))
        return
    console = Console()
    if calibration.candidates:
        table = Table("t*", "layers", "SemGrad, by", "AUROC in fitting")
        for candidate in calibration.candidates[:_SHOWN]:
            table.add_row(str(candidate.position), _range(candidate), candidate.reduction, f"{candidate.auroc:.3f}")
        console.print(table)
    console.print(f"{calibration.counts}")
    if calibration.again is not None:
        console.print(f"asked again with passages: {calibration.again}")
    _print_evidence(console, calibration)
    console.print(f"{out}: {record['method']} at t* = {record['position']} (by {record['position_from']})")
    for kind in ("answer", "grounded"):
        if (section := record[kind]) is not None:
            console.print(f"{kind}: threshold {section['threshold']}\n{section['rule']}")
    if not calibration.profile.calibrated:
        console.print("confidence is only an ordering and no probability: it was set without labels")


def _print_evidence(console: Console, calibration: Calibration) -> None:
    """Show how well answers are told apart, for kinds of questions that were fitted on, and for kinds that were not."""
    evidence = calibration.profile.answer.evidence
    table = Table("method", "AUROC, same kinds", "AUROC, unseen kinds")
    for name, (same, unseen) in calibration.compared.items():
        columns = [f"{same:.3f}", "cannot be told" if unseen is None else f"{unseen:.3f}"]
        if evidence is not None and name == calibration.profile.method:
            measured = (evidence.same, evidence.unseen)
            columns = [
                text if one is None or one.low is None else f"{text} [{one.low:.3f}, {one.high:.3f}]"
                for text, one in zip(columns, measured, strict=True)
            ]
        table.add_row(name, *columns)
    console.print(table)
    if evidence is None:
        return
    if evidence.unseen is None:
        console.print(
            "Unseen kinds cannot be told: no two kinds of questions have five right and five wrong answers each. Name "
            'kinds by "stratum" in the data.'
        )
    else:
        kinds = "strata of the data" if evidence.kinds_from == "strata" else "clusters of hidden states"
        console.print(
            f"unseen kinds: each of {evidence.kinds} {kinds} left out in turn; head's share {evidence.share:.1f}"
        )


def _record(calibration: Calibration) -> dict[str, Any]:
    profile = calibration.profile
    sections = {
        kind: None
        if section is None
        else {
            "threshold": section.threshold,
            "rule": section.threshold_rule,
            "evidence": None if section.evidence is None else section.evidence.model_dump(),
            "guarantee": None
            if section.guarantee is None
            else section.guarantee.model_dump(exclude={"threshold", "seal"}),
        }
        for kind, section in (("answer", profile.answer), ("grounded", profile.grounded))
    }
    return {
        **asdict(calibration.counts),
        "scored": calibration.counts.scored,
        "asked_again": None if calibration.again is None else asdict(calibration.again),
        "prompt": None if profile.bound_to.prompt is None else profile.bound_to.prompt.fingerprint,
        "method": profile.method,
        "confidence_is": profile.confidence_is,
        "position": profile.bound_to.scoring.token_position,
        "position_from": profile.position_from,
        **sections,
        "compared": calibration.compared,
        "candidates": list(map(asdict, calibration.candidates)),
    }


@contextmanager
def _journal_noted(journal: Path) -> Iterator[None]:
    """Tell the user, when a run ends early, that its answers are not lost."""
    from semgrad_guard.calibration.answers import to_stderr

    try:
        yield
    except (SemGradError, KeyboardInterrupt):
        if journal.exists():
            to_stderr(f"{journal} keeps the answers: the same command goes on from them.")
        raise


def _range(candidate: Candidate) -> str:
    return f"{candidate.layers[0]} to {candidate.layers[-1]}"


@app.command()
def check_profile(
    profile: Annotated[Path, typer.Option(help="Profile to check.")],
    data: Annotated[str, typer.Option(help='Fresh questions, in a file as for calibrate. Only "query" is needed.')],
    model: ModelOption = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Compare the confidence of answers to fresh questions with that in fitting; exit code 1 if it has drifted."""
    from semgrad_guard.calibration.answers import answered
    from semgrad_guard.calibration.drift import drift
    from semgrad_guard.calibration.examples import read_examples
    from semgrad_guard.calibration.labels import same
    from semgrad_guard.calibration.profile import Profile
    from semgrad_guard.calibration.prompts import BARE

    with plain_errors():
        loaded, examples = Profile.load(profile), read_examples(data)
        scorer = bound_scorer(model_of(model, revision, dtype, quiet=as_json), loaded)
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
        answers = answered(scorer, examples, same, settings, prompt=loaded.bound_to.prompt or BARE)
        change = drift(loaded.answer, [item.score for item in answers.scored])
    if as_json:
        print(
            json.dumps(
                {
                    **asdict(change),
                    "drifted": change.drifted(),
                    "confidence_is": loaded.confidence_is,
                    "void": loaded.answer.void,
                }
            )
        )
    else:
        verdict = "drifted: calibrate again on questions like these" if change.drifted() else "no drift to be seen"
        print(
            f"{verdict}. {change.n} answers, median confidence {change.median:.3f} against {change.fitted_median:.3f} "
            f"in fitting, Kolmogorov-Smirnov statistic {change.statistic:.3f}, p = {change.p_value:.2g}"
        )
        if not loaded.calibrated:
            print("confidence is only an ordering and no probability: the profile was made without labels")
        if loaded.answer.void:
            print(f"the profile promises nothing: {loaded.answer.void}")
    raise typer.Exit(int(change.drifted()))


@app.command()
def sps(
    model: ModelOption = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    paraphrases: Annotated[
        Path | None,
        typer.Option(
            help='Questions and paraphrases, JSON lines with "query" and "paraphrases". The package has some.'
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Questions that the model puts into other words, with --write; a file as for calibrate."),
    ] = None,
    write: Annotated[
        int, typer.Option(help="Number of wordings that the model writes of every question in --data.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Random seed of the wordings.")] = 0,
    last: Annotated[int, typer.Option(help="Number of prompt tokens to look at, from the end.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="SVG file to draw a heatmap into.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure at which prompt token the meaning of a question gathers: the semantic preservation score."""
    from semgrad_guard.calibration.examples import read_examples, read_paraphrases
    from semgrad_guard.calibration.paraphrases import written_paraphrases
    from semgrad_guard.evaluation.figures import draw_preservation
    from semgrad_guard.scoring.preservation import preservation
    from semgrad_guard.scoring.scorer import SemGradScorer

    with plain_errors():
        if (data is None) != (write < 1) or (data is not None and paraphrases is not None):
            raise ConfigurationError(
                f"data={data}, write={write}, paraphrases={paraphrases}: expected --data with --write of 1 or more, "
                "or --paraphrases, or none of them."
            )
        examples = [] if data is None else read_examples(data)
        groups = embedded_paraphrases() if paraphrases is None else read_paraphrases(paraphrases)
        source = model_of(model, revision, dtype, quiet=as_json)
        scorer = SemGradScorer(*source)
        if examples:
            groups = written_paraphrases(scorer, [example.query for example in examples], write, seed=seed)
        preserved = preservation(*source, groups, last=last)
        if plot is not None:
            draw_preservation(preserved, scorer.layers, plot)
    best = preserved.position(scorer.layers)
    if as_json:
        place = {"layers": scorer.layers, "position": best, "rule": scorer.token_position}
        dropped = {"dropped": len(examples) - len(groups)} if examples else {}
        print(json.dumps({**asdict(preserved), **place, **dropped}))
        return
    if examples:
        print(f"{len(examples) - len(groups)} of {len(examples)} questions dropped: the model gave no other wording")
    table = Table("hidden state", *(f"{text!r}\n{place}" for place, text in enumerate(preserved.tokens, 1)))
    for layer, row in enumerate(preserved.scores):
        table.add_row(f"{layer}{' *' if layer in scorer.layers else ''}", *(f"{value:.3f}" for value in row))
    Console(width=220).print(table)
    rule = scorer.token_position
    print(f"highest over the layers (*): t = {best}, {preserved.tokens[best - 1]!r}; by the template's rule: {rule}")
