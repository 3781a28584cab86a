"""Asking a human about held tool calls, in the shapes of LangChain's human-in-the-loop middleware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from langchain.agents.middleware.human_in_the_loop import (
    ActionRequest,
    Decision,
    DecisionType,
    HITLRequest,
    ReviewConfig,
)
from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage
from langgraph.types import interrupt
from pydantic import Discriminator, Field, create_model

from semgrad_guard.agents.calls import confidence_of
from semgrad_guard.agents.judging import agent_decision
from semgrad_guard.langchain.metadata import with_record
from semgrad_guard.records import Step

_ALLOWED: tuple[DecisionType, ...] = ("approve", "edit", "reject", "respond")
_Decision = Annotated[Decision, Discriminator("type")]


def review_request(message: AIMessage, held: Mapping[str | None, str]) -> HITLRequest:
    """Ask about the held calls of a message, in their order, and show how sure the model is of each argument."""
    calls = [call for call in message.tool_calls if call["id"] in held]
    return HITLRequest(
        action_requests=[
            ActionRequest(name=call["name"], args=call["args"], description=_description(message, call, held))
            for call in calls
        ],
        review_configs=[ReviewConfig(action_name=call["name"], allowed_decisions=list(_ALLOWED)) for call in calls],
    )


def decisions_on(message: AIMessage, held: Mapping[str | None, str]) -> list[Decision]:
    """Interrupt the run until a human has decided on the held calls; LangGraph keeps no answer that does not fit them.

    Raises:
        ValidationError: (of pydantic) when the run resumes with more or fewer decisions, or one that is malformed.
    """
    fitting = Annotated[list[_Decision], Field(min_length=len(held), max_length=len(held))]
    review: Any = interrupt(
        review_request(message, held), response_schema=create_model("Review", decisions=(fitting, ...))
    )
    decisions: list[Decision] = review.decisions
    return decisions


def reviewed(message: AIMessage, held: Mapping[str | None, str], decisions: Sequence[Decision]) -> list[BaseMessage]:
    """Give the message as it was decided on, and the answers to calls that are not to run.

    An edited call takes the place of the model's own; every decision is a step of the record, and stands in its
    `decided` by the call's id.

    Args:
        message: has the calls.
        held: why each held call was held, by its id.
        decisions: one for each of them, in the order of the calls.
    """
    waiting = iter(decisions)
    calls: list[ToolCall] = []
    answers: list[BaseMessage] = []
    steps: list[Step] = []
    decided: dict[str, str] = {}
    for call in message.tool_calls:
        if call["id"] not in held:
            calls.append(call)
            continue
        decision = next(waiting)
        edited = decision["edited_action"] if decision["type"] == "edit" else call
        calls.append(ToolCall(name=edited["name"], args=edited["args"], id=call["id"], type="tool_call"))
        answers += _answer(call, decision)
        steps.append(Step(name="review", settled=True, reason=f"{call['name']}: {decision['type']}"))
        decided[str(call["id"])] = decision["type"]
    message = message.model_copy(update={"tool_calls": calls})
    record = agent_decision(message)
    if record is not None:
        update = {"steps": (*record.steps, *steps), "decided": record.decided | decided}
        message = with_record(message, record.model_copy(update=update))
    return [message, *answers]


def _answer(call: ToolCall, decision: Decision) -> list[ToolMessage]:
    """Answer a call in its tool's place, if it is not to run."""
    if decision["type"] == "respond":
        return [ToolMessage(decision["message"], name=call["name"], tool_call_id=call["id"])]
    if decision["type"] == "reject":
        why = f" with reason: {decision['message']}" if decision.get("message") else ""
        text = f"User rejected the tool call for `{call['name']}`{why}. It was not run; do not make it again unasked."
        return [ToolMessage(text, name=call["name"], tool_call_id=call["id"], status="error")]
    return []


def _description(message: AIMessage, call: ToolCall, held: Mapping[str | None, str]) -> str:
    sure = confidence_of(message, call["id"]).arguments
    arguments = [f"  {name} = {value!r} (confidence {_number(sure.get(name))})" for name, value in call["args"].items()]
    return "\n".join([f"Tool: {call['name']}", "Arguments:", *arguments, f"Held because {held[call['id']]}"])


def _number(confidence: float | None) -> str:
    return "unknown" if confidence is None else f"{confidence:.2f}"
