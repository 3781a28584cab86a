"""From a scored message to a judged answer: which standard applies to it, and which of its parts decides."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage

from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.records import AnswerKind, CallConfidence, Score
from semgrad_guard.routing.ladder import Answer


def judged(message: AIMessage, standard: Standard, *, grounded: bool) -> Answer:
    """Judge a message of `ChatSemGrad`; of several tool calls, and text beside them, the least sure speaks for all.

    Args:
        message: carries its scores.
        standard: what it must reach.
        grounded: it was given from passages, or from the results of tools.
    """
    record = message.response_metadata["semgrad"]
    kind: AnswerKind = "grounded" if grounded else "answer"
    calls = record["tool_calls"]
    whole = standard.judge(_score(record["scores"]), record["failure"], kind)
    verdicts = [standard.judge(_score(call["scores"]), "", "tool_call").about(call["name"]) for call in calls.values()]
    if not calls or message.content:
        verdicts.append(whole)
    verdict = whole if record["failure"] else min(verdicts, key=lambda found: (found.passed, found.confidence or 0.0))
    sure = {
        id_: CallConfidence(
            name=call["name"],
            confidence=standard.confidence(_score(call["scores"]), "tool_call"),
            arguments={
                name: standard.confidence(_score(plain), "argument") for name, plain in call["arguments"].items()
            },
        )
        for id_, call in calls.items()
    }
    return Answer(_shown(message), verdict, message, sure)


def watched_score(message: AIMessage, *, grounded: bool) -> Score | None:
    """Give the score of a first answer from memory, which may tell of drift; None of any other, or without one.

    Answers that failed are left out, as they were in fitting.
    """
    record = message.response_metadata["semgrad"]
    return None if grounded or record["failure"] or record["tool_calls"] else _score(record["scores"])


def _score(plain: dict[str, Any] | None) -> Score | None:
    return None if plain is None else Score.model_validate(plain)


def _shown(message: AIMessage) -> str:
    """Show a message in words: its text, and its tool calls as they would be written in code."""
    calls = [
        f"{call['name']}({', '.join(f'{name}={value!r}' for name, value in call['args'].items())})"
        for call in message.tool_calls
    ]
    return "\n".join([*([str(message.content)] if message.content else []), *calls])
