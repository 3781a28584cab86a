"""From a scored message to a judged answer: which standard applies to it, and which of its parts decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage

from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.records import AnswerKind, CallConfidence, Score, Verdict
from semgrad_guard.routing.ladder import Answer


def judged(
    message: AIMessage, standard: Standard, *, grounded: bool, for_tool: Callable[[str], Standard] | None = None
) -> Answer:
    """Judge a message of `ChatSemGrad`; of several tool calls, and text beside them, the least sure speaks for all.

    Args:
        message: carries its scores.
        standard: what it must reach.
        grounded: it was given from passages, or from the results of tools.
        for_tool: gives what the calls of a tool must reach, by its name; the same standard where it is left out.
    """
    record = message.response_metadata["semgrad"]
    kind: AnswerKind = "grounded" if grounded else "answer"
    whole = standard.judge(_score(record["scores"]), record["failure"], kind)
    calls = call_verdicts(message, for_tool or (lambda tool: standard))
    verdicts = list(calls.values())
    if not calls or message.content:
        verdicts.append(whole)
    verdict = whole if record["failure"] else min(verdicts, key=lambda found: (found.passed, found.confidence or 0.0))
    sure = {
        id_: CallConfidence(
            name=call["name"],
            confidence=calls[id_].confidence,
            arguments={
                name: standard.confidence(_score(plain), "argument") for name, plain in call["arguments"].items()
            },
        )
        for id_, call in record["tool_calls"].items()
    }
    return Answer(_shown(message), verdict, message, sure)


def call_verdicts(message: AIMessage, for_tool: Callable[[str], Standard]) -> dict[str, Verdict]:
    """Judge each tool call of a message of `ChatSemGrad`, by its id; in a message that failed, none passes."""
    record = message.response_metadata["semgrad"]
    return {
        id_: for_tool(call["name"]).judge(_score(call["scores"]), record["failure"], "tool_call").about(call["name"])
        for id_, call in record["tool_calls"].items()
    }


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
