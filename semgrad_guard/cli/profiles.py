"""Commands about profiles: `calibrate`, `check-profile` and `sps`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from semgrad_guard.calibration.answers import answered, to_stderr
from semgrad_guard.calibration.drift import drift
from semgrad_guard.calibration.examples import calibrated_prompt, read_examples, read_paraphrases
from semgrad_guard.calibration.fit import check_method
from semgrad_guard.calibration.from_examples import Calibration, calibrated_profile, covering_profile
from semgrad_guard.calibration.labels import labeler, same
from semgrad_guard.calibration.paraphrases import written_paraphrases
from semgrad_guard.calibration.profile import Profile
from semgrad_guard.calibration.prompts import BARE
from semgrad_guard.calibration.search import Candidate
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
from semgrad_guard.demo.embedded import paraphrases as our_paraphrases
from semgrad_guard.errors import ConfigurationError, SemGradError
from semgrad_guard.evaluation.figures import draw_preservation
from semgrad_guard.langchain.passages import BM25Retriever
from semgrad_guard.langchain.routes import Retrieve, retry_with
from semgrad_guard.scoring.preservation import preservation
from semgrad_guard.scoring.registry import names_of
from semgrad_guard.scoring.scorer import SemGradScorer

_SHOWN = 8  # candidates in the table


@app.command()
def calibrate(
    data: Annotated[
        str,
        typer.Option(
            help='JSON lines or CSV: "query" and "truthful answer", or "answer", "correct"; or hub:owner/name:split.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="The profile to write.")],
    model: ModelOption = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    risk: Annotated[float, typer.Option(help="Largest share of wrong answers among those that pass.")] = 0.05,
    delta: Annotated[float, typer.Option(help="Probability that the promise does not hold.")] = 0.05,
    coverage: Annotated[
        float | None, typer.Option(help="Without labels: let this share of the answers pass, and promise nothing.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(help=f"Score that confidence is made from: {', '.join(['auto', 'fused', *names_of('alone')])}."),
    ] = "auto",
    labels: Annotated[
        str, typer.Option(help="How an answer is compared: match, contains, f1, or similar:FOLDER_OR_ID[@0.8].")
    ] = "match",
    search: Annotated[bool, typer.Option(help="Also try other prompt tokens and take what tells most.")] = True,
    paraphrases: Annotated[
        Path | None, typer.Option(help='Measure the preservation score on this: "query" and "paraphrases" a line.')
    ] = None,
    passages: Annotated[
        Path | None,
        typer.Option(help="Also calibrate second answers, given with passages of this file, one a line."),
    ] = None,
    prompt: PromptOption = None,
    system: SystemOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    token_position: TokenPositionOption = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Let a model answer questions with known answers, and write a profile whose threshold keeps a promise.

    Until that is done, a file beside it keeps the answers. A run that was interrupted, or that failed, goes on from
    them, with another method, risk or way to label too; answers to another prompt, or of another length, are made anew.
    """
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
        asked: dict[str, Any] = {"prompt": form or BARE, "journal": journal}
        with _journal_told(journal):
            answers = answered(scorer, examples, label, settings, **asked)
            name, chosen = model or "semgrad-guard embedded model", method
            if coverage is not None:
                found = covering_profile(
                    scorer,
                    answers,
                    model=name,
                    coverage=coverage,
                    prompt=form,
                    method=chosen,
                    preservation=preserved,
                )
            else:
                found = calibrated_profile(
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
                    retry=None if route is None else retry_with(route, scorer, label, settings, **asked),
                    seed=seed,
                )
            found.profile.save(out)
        journal.unlink()
    told = _told(found)
    if as_json:
        print(json.dumps(told))
        return
    console = Console()
    if found.candidates:
        table = Table("t*", "layers", "score", "AUROC in fitting")
        for candidate in found.candidates[:_SHOWN]:
            table.add_row(str(candidate.position), _range(candidate), candidate.name, f"{candidate.auroc:.3f}")
        console.print(table)
    console.print(f"{found.counts}")
    if found.again is not None:
        console.print(f"asked again with passages: {found.again}")
    for name, auroc in found.compared.items():
        console.print(f"{name}: AUROC {auroc:.3f} out of fold")
    console.print(f"{out}: {told['method']} at t* = {told['position']} (by {told['position_from']})")
    for kind in ("answer", "grounded"):
        if (section := told[kind]) is not None:
            console.print(f"{kind}: threshold {section['threshold']}\n{section['rule']}")
    if not found.profile.calibrated:
        console.print("confidence is only an ordering and no probability: it was set without labels")


def _told(found: Calibration) -> dict[str, Any]:
    profile = found.profile
    sections = {
        kind: None
        if section is None
        else {
            "threshold": section.threshold,
            "rule": section.threshold_rule,
            "guarantee": None
            if section.guarantee is None
            else section.guarantee.model_dump(exclude={"threshold", "seal"}),
        }
        for kind, section in (("answer", profile.answer), ("grounded", profile.grounded))
    }
    return {
        **asdict(found.counts),
        "scored": found.counts.scored,
        "asked_again": None if found.again is None else asdict(found.again),
        "prompt": None if profile.bound_to.prompt is None else profile.bound_to.prompt.fingerprint,
        "method": profile.method,
        "confidence_is": profile.confidence_is,
        "position": profile.bound_to.scoring.token_position,
        "position_from": profile.position_from,
        **sections,
        "compared": found.compared,
        "candidates": list(map(asdict, found.candidates)),
    }


@contextmanager
def _journal_told(journal: Path) -> Iterator[None]:
    """Say, of a run that ends early, that its answers are not lost."""
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
    profile: Annotated[Path, typer.Option(help="The profile to check.")],
    data: Annotated[str, typer.Option(help='Fresh questions, as for calibrate; only "query" is needed.')],
    model: ModelOption = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Tell whether fresh questions are answered as surely as those a profile was fitted on; exit code 1 if not."""
    with plain_errors():
        loaded, examples = Profile.load(profile), read_examples(data)
        scorer = bound_scorer(model_of(model, revision, dtype, quiet=as_json), loaded)
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
        answers = answered(scorer, examples, same, settings, prompt=loaded.bound_to.prompt or BARE)
        found = drift(loaded.answer, [item.score for item in answers.scored])
    if as_json:
        print(
            json.dumps(
                {
                    **asdict(found),
                    "drifted": found.drifted(),
                    "confidence_is": loaded.confidence_is,
                    "void": loaded.answer.void,
                }
            )
        )
    else:
        verdict = "drifted: calibrate again on questions like these" if found.drifted() else "no drift to be seen"
        print(
            f"{verdict}. {found.n} answers, median confidence {found.median:.3f} against {found.fitted_median:.3f} in "
            f"fitting, Kolmogorov-Smirnov statistic {found.statistic:.3f}, p = {found.p_value:.2g}"
        )
        if not loaded.calibrated:
            print("confidence is only an ordering and no probability: the profile was made without labels")
        if loaded.answer.void:
            print(f"the profile promises nothing: {loaded.answer.void}")
    raise typer.Exit(int(found.drifted()))


@app.command()
def sps(
    model: ModelOption = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    paraphrases: Annotated[
        Path | None, typer.Option(help='JSON lines with "query" and "paraphrases"; ours if not given.')
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="With --write: questions, as for calibrate, for the model to put in other words.")
    ] = None,
    write: Annotated[int, typer.Option(help="Let the model write so many wordings of every question in --data.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the wordings.")] = 0,
    last: Annotated[int, typer.Option(help="Prompt tokens from the end to look at.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="Draw a heatmap into this SVG file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure at which prompt token the meaning of a question gathers: the semantic preservation score."""
    with plain_errors():
        if (data is None) != (write < 1) or (data is not None and paraphrases is not None):
            raise ConfigurationError(
                f"data={data}, write={write}, paraphrases={paraphrases}: expected --data with --write of 1 or more, "
                "or --paraphrases, or none of them."
            )
        asked = [] if data is None else read_examples(data)
        groups = our_paraphrases() if paraphrases is None else read_paraphrases(paraphrases)
        source = model_of(model, revision, dtype, quiet=as_json)
        scorer = SemGradScorer(*source)
        if asked:
            groups = written_paraphrases(scorer, [example.query for example in asked], write, seed=seed)
        found = preservation(*source, groups, last=last)
        if plot is not None:
            draw_preservation(found, scorer.layers, plot)
    best = found.position(scorer.layers)
    if as_json:
        told = {"layers": scorer.layers, "position": best, "rule": scorer.token_position}
        print(json.dumps({**asdict(found), **told, **({"dropped": len(asked) - len(groups)} if asked else {})}))
        return
    if asked:
        print(f"{len(asked) - len(groups)} of {len(asked)} questions dropped: the model gave no other wording")
    table = Table("hidden state", *(f"{text!r}\n{place}" for place, text in enumerate(found.tokens, 1)))
    for layer, row in enumerate(found.scores):
        table.add_row(f"{layer}{' *' if layer in scorer.layers else ''}", *(f"{value:.3f}" for value in row))
    Console(width=220).print(table)
    rule = scorer.token_position
    print(f"highest over the layers (*): t = {best}, {found.tokens[best - 1]!r}; by the template's rule: {rule}")
