"""What messages carry of us, in two keys of their `response_metadata`, and the typed readers of both.

`semgrad` holds the scores that `ChatSemGrad` gave (`MessageScores`), `semgrad_decision` what a guard decided
(`Decision`). Nothing else reads or writes them, so that their layout stands in one place.
"""

from __future__ import annotations

from typing import TypeVar

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel, ValidationError

from semgrad_guard.errors import DataError
from semgrad_guard.records import Decision, MessageScores, Score
from semgrad_guard.settings import first_fault

SCORES, DECISION = "semgrad", "semgrad_decision"
R = TypeVar("R", bound=BaseModel)
D = TypeVar("D", bound=Decision)


def get_scores(message: BaseMessage) -> Score | None:
    """Give the scores of a message's answer, *higher = more uncertain*; None where there are none.

    Raises:
        DataError: the metadata hold something else than scores.
    """
    record = get_message_scores(message)
    return None if record is None else record.scores


def get_decision(message: BaseMessage) -> Decision | None:
    """Give what a guard decided about a message; None where no guard did.

    Raises:
        DataError: the metadata hold something else than a decision.
    """
    return read_decision(message, Decision)


def read_decision(message: BaseMessage, kind: type[D]) -> D | None:
    """Give what was decided about a message as a decision of that kind, which may tell more; None where nothing was.

    Raises:
        DataError: the metadata hold something else.
    """
    return _read(message, DECISION, kind)


def get_confidence(message: BaseMessage) -> float | None:
    """Give the confidence of a guarded message, in [0, 1]; None where there is none.

    It is the probability that the answer is right where the verdict's `calibrated` is true. From a profile that was
    made without labels (`calibrate --coverage`) it only orders answers, the more certain higher.

    Raises:
        DataError: the metadata hold something else than a decision.
    """
    decision = get_decision(message)
    return None if decision is None else decision.verdict.confidence


def get_message_scores(message: BaseMessage) -> MessageScores | None:
    """Give all that a scored message tells of itself: scores of answer and tool calls, failure, tokens.

    Raises:
        DataError: the metadata hold something else than scores.
    """
    return _read(message, SCORES, MessageScores)


def with_record(message: AIMessage, record: Decision | MessageScores) -> AIMessage:
    """Give the message with a record in its metadata, in the place of one of the same kind."""
    key = DECISION if isinstance(record, Decision) else SCORES
    metadata = message.response_metadata | {key: record.model_dump(mode="json")}
    return message.model_copy(update={"response_metadata": metadata})


def _read(message: BaseMessage, key: str, kind: type[R]) -> R | None:
    plain = message.response_metadata.get(key)
    if plain is None:
        return None
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        fault = first_fault(error, kind)
        raise DataError(f"response_metadata[{key!r}] of the message is not what this package writes: {fault}") from None
