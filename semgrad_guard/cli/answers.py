"""Commands that answer: `demo` and `ask`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.prompt import Prompt
from rich.text import Text

from semgrad_guard.cli.app import (
    DtypeOption,
    JsonOption,
    LongestOption,
    ModelOption,
    PromptOption,
    RevisionOption,
    SystemOption,
    TokenPositionOption,
    app,
    model_of,
    plain_errors,
    prompt_of,
)
from semgrad_guard.demo.embedded import PROFILE
from semgrad_guard.demo.embedded import corpus as embedded_corpus
from semgrad_guard.errors import ConfigurationError

if TYPE_CHECKING:
    from semgrad_guard.records import MessageScores
    from semgrad_guard.routing.routes import ReviewAnswer, ReviewRequest


@app.command()
def demo() -> None:
    """Walk through what the guard does, on the embedded model, offline."""
    from semgrad_guard.demo.walkthrough import walk_through

    walk_through(Console(), _ask_human if sys.stdin.isatty() else None)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="Question to answer.")],
    model: ModelOption = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    profile: Annotated[
        Path | None, typer.Option(help="Profile of the model, a JSON file. The embedded model has one.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest confidence that passes, in [0, 1]. The default is the profile's.")
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            help="Largest raw SemGrad score that passes, for experts without a profile. It differs from model to "
            "model; calibrate --coverage chooses a threshold without labels."
        ),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="Text file of passages to retrieve from, one a line.")] = None,
    prompt: PromptOption = None,
    system: SystemOption = None,
    max_new_tokens: LongestOption = None,
    token_position: TokenPositionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question if the model is sure; else look it up, ask a human in a terminal, or abstain.

    A model without a profile answers too, and its answer is shown as not judged.
    """
    from langchain_core.messages import HumanMessage

    from semgrad_guard.calibration.profile import Profile, agreed_prompt, agreed_scoring
    from semgrad_guard.demo.walkthrough import ladder
    from semgrad_guard.langchain.chat_model import ChatSemGrad
    from semgrad_guard.langchain.guard import SemGradGuard
    from semgrad_guard.langchain.messages import asked_with
    from semgrad_guard.langchain.metadata import get_decision, get_message_scores
    from semgrad_guard.model.responses import is_blank

    with plain_errors():
        if is_blank(question):
            raise ConfigurationError("The question is empty; expected some text.")
        human = None if as_json or not sys.stdin.isatty() else _ask_human
        if model is None and profile is None and score_threshold is None:
            profile = PROFILE
        loaded = None if profile is None else Profile.load(profile)
        form, scoring = agreed_prompt(loaded, prompt_of(prompt, system)), agreed_scoring(loaded, token_position)
        generation = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        source = model_of(model, revision, dtype, quiet=as_json)
        llm = ChatSemGrad.from_model(*source, generation=generation, scoring=scoring)
        embedded = embedded_corpus() if model is None else ()
        passages = embedded if corpus is None else read_passages(corpus)
        if loaded is None and threshold is None and score_threshold is None:
            message = llm.invoke(asked_with(form, [HumanMessage(question)], 0, question))
            decision, record = None, _unjudged(get_message_scores(message))
        else:
            guard = SemGradGuard(
                llm,
                profile=loaded,
                threshold=threshold,
                score_threshold=score_threshold,
                prompt=form,
                routes=ladder(passages, human),
            )
            message = guard.invoke(question)
            decision = get_decision(message)
            record = {} if decision is None else decision.model_dump(mode="json")
    if as_json:
        print(json.dumps({"answer": message.content} | record))
        return
    console = Console()
    # As texts, since reading markup takes a time that grows with the square of a text of backslashes.
    console.print(Text(str(message.content), style="bold"))
    console.print(Text(f"{record['decision'] or 'not judged'}: {record['reason']}"))
    if decision is not None and decision.decision == "retrieve":
        for passage in decision.sources:
            console.print(Text(f"source: {passage.text}"))


def _unjudged(record: MessageScores | None) -> dict[str, Any]:
    """Make the record of an answer without a profile or a threshold: nothing has decided whether it passes."""
    from semgrad_guard.records import Decision, Verdict

    failure = None if record is None else record.failure
    reason = (
        failure.text
        if failure
        else (
            "there is no profile for this model, so nothing says how sure is sure enough: semgrad-guard calibrate "
            "makes one, with --coverage also without labels"
        )
    )
    verdict = Verdict(
        passed=False,
        cause=failure.kind if failure else "no_threshold",
        confidence=None,
        scores=None if record is None else record.scores,
        threshold=None,
        method="semgrad",
        reason=reason,
    )
    decision = Decision(decision="not judged", answered=True, cause=None, reason=reason, verdict=verdict, steps=())
    return decision.model_dump(mode="json") | {"decision": None}


def read_passages(path: Path) -> list[str]:
    """Read passages to retrieve from, one a line.

    Raises:
        ConfigurationError: the file cannot be read, or has no text.
    """
    try:
        passages = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Cannot read the corpus {path}: {error}") from error
    if not passages:
        raise ConfigurationError(f"The corpus {path} has no text; expected one passage a line.")
    return passages


def _ask_human(request: ReviewRequest) -> ReviewAnswer:
    from semgrad_guard.routing.routes import ReviewAnswer

    console = Console()
    console.print(
        Text.assemble("\n", (request.question, "bold"), f"\ndraft: {request.draft}\n{request.verdict.reason}")
    )
    decision = Prompt.ask("Your decision", choices=["approve", "edit", "reject", "respond"], default="reject")
    text = Prompt.ask("Text") if decision in ("edit", "respond") else None
    return ReviewAnswer.model_validate({"decision": decision, "text": text})
