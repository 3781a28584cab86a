"""`InterruptReview`: inside a LangGraph graph, a held-back answer interrupts the run until a human has decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from langchain_core.messages import message_to_dict, messages_from_dict
from langgraph.config import get_config
from langgraph.func import task
from langgraph.types import interrupt
from pydantic import Field
from pydantic_core import from_json, to_json

from semgrad_guard._compat import has_checkpointer
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.records import CallConfidence, Verdict
from semgrad_guard.routing.ladder import Answer, Outcome, Situation
from semgrad_guard.routing.routes import ReviewAnswer, ReviewRequest, review_outcome, review_request
from semgrad_guard.settings import Settings

_NO_GRAPH = (
    "InterruptReview works where a guard runs inside a node of a LangGraph graph that has a checkpointer: "
    "graph.compile(checkpointer=InMemorySaver()), or any other. Elsewhere use HumanReview(queue=...)."
)


class InterruptReview(Settings):
    """Interrupt the run with a `ReviewRequest` as a plain dict, and settle with what it is resumed with.

    That is `Command(resume={"decision": "approve"})`, or "edit", "respond" or "reject" with a "text". What does not fit
    is refused with a `ValidationError`, and the run can be resumed again. Without a checkpointer, an answer that is
    held back raises a `ConfigurationError`.

    LangGraph runs the whole node again when it resumes, so that the model answers again. The decision is about what was
    put before the human, which stands in the checkpoint, and that is what goes out, whatever the model says then. Only
    where the new answer is sure by itself is nobody's decision needed any more.
    """

    below: float | None = Field(default=None, ge=0, le=1)
    decision: Literal["review"] = "review"

    def attempt(self, situation: Situation) -> Outcome:
        """Interrupt the run; when it resumes, take the decision."""
        if not _can_resume():
            return Outcome(True, _NO_GRAPH, error=ConfigurationError(_NO_GRAPH))
        return _decided(situation, drafted_now(lambda: _plain(situation)).result())

    async def aattempt(self, situation: Situation) -> Outcome:
        """Async twin of `attempt`."""
        if not _can_resume():
            return Outcome(True, _NO_GRAPH, error=ConfigurationError(_NO_GRAPH))
        return _decided(situation, await drafted_now(lambda: _plain(situation)))


@task
def drafted_now(now: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Give what is held back now; in a run that resumes, LangGraph gives what was held back at first."""
    return now()


def _can_resume() -> bool:
    return has_checkpointer(get_config().get("configurable", {}))


def _decided(situation: Situation, held: dict[str, Any]) -> Outcome:
    """Ask about what was held back, and settle with it, not with what the model says now."""
    request = ReviewRequest.model_validate(held["request"])
    now = review_request(situation)
    if (request.question, request.conversation) != (now.question, now.conversation):
        return Outcome(False, "the node asks another question than when the run was interrupted")
    answer = interrupt(held["request"], response_schema=ReviewAnswer)
    draft = _answer(held)
    return replace(review_outcome(answer, replace(situation, draft=draft)), answer=draft)


def _plain(situation: Situation) -> dict[str, Any]:
    """Put what is held back, and what a human is asked about it, into what any checkpointer can keep."""
    draft, request = situation.draft, review_request(situation, situation.uncertainty()).model_dump()
    return {
        "request": from_json(to_json(request, inf_nan_mode="strings", fallback=str)),
        "verdict": draft.verdict.model_dump(mode="json"),
        "message": message_to_dict(draft.message),
    }


def _answer(held: dict[str, Any]) -> Answer:
    request = held["request"]
    (message,) = messages_from_dict([held["message"]])
    calls = {id_: CallConfidence.model_validate(call) for id_, call in request["tool_calls"].items()}
    return Answer(request["draft"], Verdict.model_validate(held["verdict"]), message, calls)
