"""The route that asks somebody bigger: another Runnable, within a budget."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import Field

from semgrad_guard.durations import SecondsOrNone
from semgrad_guard.langchain.child_runs import unseen, without_streams
from semgrad_guard.langchain.retrieve import runnable_of
from semgrad_guard.model.text_spans import is_blank
from semgrad_guard.records import Decision, Source, Verdict
from semgrad_guard.routing.ladder import Answer, Outcome, Situation
from semgrad_guard.routing.routes import ReviewRequest, review_request
from semgrad_guard.routing.timeouts import await_within, call_within
from semgrad_guard.settings import Settings


class Escalate(Settings):
    """Ask another Runnable, a larger model or a chain, and settle with its answer.

    A guard's own decision counts: where it abstains, this does not settle. The answer of anything else is taken as it
    is, and has no confidence. An empty answer, an error, a timeout or a budget that is used up do not settle. Nothing
    is promised of what settles: promises are about questions of all kinds, not about those that are left over here.
    """

    other: Runnable[Any, Any]
    prompt: Callable[[ReviewRequest], Any] | None = None
    allow: Callable[[], bool] | None = None
    below: float | None = Field(default=None, ge=0, le=1)
    timeout: SecondsOrNone = None
    decision: Literal["escalate"] = "escalate"

    def __init__(self, other: Runnable[Any, Any] | Callable[[Any], Any], **settings: Any) -> None:
        """Set who is asked, and within which budget.

        Args:
            other: a Runnable or function that takes messages, or what `prompt` gives, and answers with a message or a
                text.
            settings: `prompt`, from a `ReviewRequest` with the question, the draft, its confidence and its scores to
                the other's input (default: the messages the guard was given); since it may show the draft, callbacks
                and traces then see the other only with `record_drafts`. `allow`, asked before each call, such as
                `AtMost(10, per=3600)`; `below`, the confidence under which the route applies (None: the guard's
                threshold); `timeout` in seconds.

        Raises:
            ConfigurationError: a setting is unknown or wrong.
        """
        super().__init__(other=runnable_of(other, "Escalate", "a Runnable or a function that answers"), **settings)

    def attempt(self, situation: Situation) -> Outcome:
        """Ask the other, if the budget allows."""
        given = self._given(situation)
        if self.allow is not None and not self.allow():
            return _EXHAUSTED
        with self._heard_by(situation) as config:
            return _outcome(call_within(self.timeout, lambda: self.other.invoke(given, config)))

    async def aattempt(self, situation: Situation) -> Outcome:
        """Ask the other, if the budget allows."""
        given = self._given(situation)
        if self.allow is not None and not self.allow():
            return _EXHAUSTED
        with self._heard_by(situation) as config:
            return _outcome(await await_within(self.timeout, self.other.ainvoke(given, config)))

    def _given(self, situation: Situation) -> Any:
        return list(situation.conversation) if self.prompt is None else self.prompt(review_request(situation))

    def _heard_by(self, situation: Situation) -> AbstractContextManager[RunnableConfig]:
        """Keep the run from everybody where its input may show the draft, and from streams in any case."""
        if self.prompt is not None and not situation.record_drafts:
            return unseen()
        return nullcontext(without_streams())


_EXHAUSTED = Outcome(False, "the budget for escalating is used up")


def _outcome(given: object) -> Outcome:
    """Judge what came back by what it says of itself."""
    message = AIMessage(given) if isinstance(given, str) else given
    if not isinstance(message, AIMessage):
        return Outcome(False, f"the other gave a {type(given).__name__}; expected an AIMessage or a text")
    if is_blank(str(message.text)) and not message.tool_calls:
        return Outcome(False, "the other's answer is empty")
    record = message.response_metadata.get("semgrad") or {}
    if "decision" not in record:
        failure = record.get("failure", "")  # a ChatSemGrad without a guard knows when it failed
        verdict = Verdict(
            passed=not failure,
            confidence=None,
            scores=None,
            threshold=None,
            method="none",
            reason=f"escalated: {failure or 'answered, without a confidence'}",
        )
        return _settled_by(Answer(str(message.text), verdict, message), ())
    theirs = Decision.model_validate(record)
    verdict = Verdict(
        passed=theirs.decision != "abstain",
        confidence=theirs.confidence,
        calibrated=theirs.calibrated,
        scores=theirs.scores,
        threshold=theirs.threshold,
        method=theirs.method,
        reason=f"escalated: {theirs.decision}: {theirs.reason}",
    )
    answer = Answer(str(message.text), verdict, message, theirs.tool_calls)
    return replace(_settled_by(answer, theirs.sources), review_id=theirs.review_id)


def _settled_by(answer: Answer, sources: tuple[Source, ...]) -> Outcome:
    verdict = answer.verdict
    return Outcome(verdict.passed, verdict.reason, answer.text, answer, sources, as_drafted=True)
