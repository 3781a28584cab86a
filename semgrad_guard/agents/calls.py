"""Tool calls by their confidence, as it stands in a message's metadata: which run, and which are held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, ToolCall

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.langchain.messages import messages_in
from semgrad_guard.langchain.metadata import get_confidence, get_decision
from semgrad_guard.records import CallConfidence, checked_confidence

Gate = Literal["call", "answer", "unsure"]


@dataclass(frozen=True)
class HeldCall:
    """A tool call that is not sure enough: its confidence and those of its arguments, in [0, 1] or None if unknown."""

    call: ToolCall
    confidence: float | None
    threshold: float
    arguments: dict[str, float | None] = field(default_factory=dict)


class FilteredCalls(NamedTuple):
    """A message with its sure calls only, and the calls that were held, in their order."""

    message: AIMessage
    held: tuple[HeldCall, ...]


def low_confidence(threshold: float) -> Callable[[Any], bool]:
    """Give a predicate for the `when=` of LangChain's `HumanInTheLoopMiddleware`: is this call less sure than that?

    It reads the confidence that `ConfidenceMiddleware(profile, calls="annotate")` has put into the message, and so says
    the same again when the run resumes. A call without a confidence counts as low.

    Args:
        threshold: least confidence of a call that runs unseen, in [0, 1].

    Raises:
        ConfigurationError: the threshold is out of range.
    """
    _check(threshold)

    def low(request: Any) -> bool:
        id_ = request.tool_call["id"]
        for message in reversed(request.state["messages"]):
            if isinstance(message, AIMessage) and any(call["id"] == id_ for call in message.tool_calls):
                return not _sure(confidence_of(message, id_).confidence, threshold)
        return True

    return low


def filter_tool_calls(
    message: AIMessage, threshold: float, *, thresholds: Mapping[str, float] | None = None
) -> FilteredCalls:
    """Take the unsure calls out of a message, for agent loops written by hand.

    Args:
        message: carries the confidence of its calls, as messages from `model_node` do; a call without one is held.
        threshold: least confidence of a call that is left in, in [0, 1].
        thresholds: the same for single tools, by name.

    Raises:
        ConfigurationError: a threshold is out of range.
    """
    limits = thresholds or {}
    _check(threshold, *limits.values())
    sure, held = [], []
    for call in message.tool_calls:
        record, least = confidence_of(message, call["id"]), limits.get(call["name"], threshold)
        confidence = record.confidence
        if _sure(confidence, least):
            sure.append(call)
        else:
            held.append(HeldCall(call, confidence, least, record.arguments))
    return FilteredCalls(message.model_copy(update={"tool_calls": sure}), tuple(held))


def confidence_gate(threshold: float, *, thresholds: Mapping[str, float] | None = None) -> Callable[[Any], Gate]:
    """Give the condition of a LangGraph edge that follows a `model_node`.

    It says "call" if the last message has tool calls and all are sure, "answer" if it has none and is sure, and
    "unsure" otherwise: `add_conditional_edges("model", confidence_gate(0.8), {"call": "tools", "answer": END, ...})`.

    Args:
        threshold: least confidence of an answer, and of a call, in [0, 1].
        thresholds: the same for the calls of single tools, by name.

    Raises:
        ConfigurationError: a threshold is out of range.
    """
    _check(threshold, *(thresholds or {}).values())

    def gate(state: Any) -> Gate:
        messages = messages_in(state)
        if not messages or not isinstance(message := messages[-1], AIMessage):
            raise ConfigurationError("The state's last message is none of a model; put this edge behind a model_node.")
        if message.tool_calls:
            return "unsure" if filter_tool_calls(message, threshold, thresholds=thresholds).held else "call"
        return "answer" if _sure(get_confidence(message), threshold) else "unsure"

    return gate


def _check(*thresholds: float) -> None:
    for threshold in thresholds:
        if checked_confidence("threshold", threshold) is None:
            raise ConfigurationError("threshold=None: expected a confidence in [0, 1].")


def confidence_of(message: BaseMessage, id_: str | None) -> CallConfidence:
    """Give the confidence of a message's call and of its arguments; without one where the message does not say."""
    decision = get_decision(message)
    none = CallConfidence(name="", confidence=None, arguments={})
    return none if decision is None else decision.tool_calls.get(str(id_), none)


def _sure(confidence: float | None, threshold: float) -> bool:
    # NaN is not, and 0 stands for a confidence that could not be computed.
    return confidence is not None and confidence > 0 and confidence >= threshold
