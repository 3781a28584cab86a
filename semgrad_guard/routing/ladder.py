"""The ladder of routes: what is tried, in which order, when an answer is not sure enough. Pure policy, no I/O.

The ladder is written once as a generator: it yields the route to try next and is sent the outcome. Whoever drives it
does the waiting, so that sync and async callers share every rule.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from semgrad_guard.errors import RouteError
from semgrad_guard.records import CallConfidence, Decision, Source, Step, TokenUncertainty, Verdict

DEFAULT_ABSTENTION = "I am not sure enough to answer that."


@dataclass(frozen=True)
class Answer:
    """An answer of the model with its verdict; `message` is whatever the caller needs to hand it on.

    `text` shows the answer to people, tool calls included; `tool_calls` tells how sure each call is, by its id.
    """

    text: str
    verdict: Verdict
    message: Any = None
    tool_calls: dict[str, CallConfidence] = field(default_factory=dict)


@dataclass(frozen=True)
class Situation:
    """What a route gets to see: the question, the draft held back, and what routes before it have found.

    `ask` puts another wording in the question's place and judges the new answer as one given from passages; `aask` is
    its async twin. `conversation` is what the guard was given; `record_drafts` tells whether traces may see drafts.
    `uncertainty` finds out on which tokens of the draft it sits, which takes about as long as another answer.
    """

    question: str
    draft: Answer
    sources: tuple[Source, ...]
    ask: Callable[[str], Answer]
    aask: Callable[[str], Awaitable[Answer]]
    conversation: Sequence[Any] = ()
    record_drafts: bool = False
    uncertainty: Callable[[], tuple[TokenUncertainty, ...]] = tuple


@dataclass(frozen=True)
class Outcome:
    """What came of a route: a text if it settled the question, and a reason either way.

    `answer` is the model's new answer where the route got one; `sources` are passages it found. `as_drafted` sends the
    answer out as the model gave it, tool calls included; with `raises`, the caller gets an error instead, and `text`
    is what it may know of the draft. `review_id` names the review in a queue, if the route put one there. `error` is
    raised as it is in the place of any answer, such as what interrupts a graph.

    Raises:
        RouteError: a field has a wrong type.
    """

    settled: bool
    reason: str
    text: str = ""
    answer: Answer | None = None
    sources: tuple[Source, ...] = ()
    as_drafted: bool = False
    raises: bool = False
    review_id: str | None = None
    error: Exception | None = None

    def __post_init__(self) -> None:
        """Check the types: a route of a user's own may put in anything."""
        if isinstance(self.sources, list):
            object.__setattr__(self, "sources", tuple(self.sources))
        kinds: dict[str, Any] = dict.fromkeys(("settled", "as_drafted", "raises"), bool)
        kinds |= {"reason": str, "text": str, "answer": Answer | None, "review_id": str | None, "sources": tuple}
        for name, kind in kinds.items():
            if not isinstance(value := getattr(self, name), kind):
                expected = getattr(kind, "__name__", str(kind))
                raise RouteError(f"Outcome({name}=...) has a {type(value).__name__}; expected {expected}.")
        for source in self.sources:
            if not isinstance(source, Source):
                raise RouteError(f"Outcome(sources=...) has a {type(source).__name__}; expected Source(text=...).")


@runtime_checkable
class Route(Protocol):
    """A way to settle a question whose answer is held back.

    A class of a user's own is a route if it has `decision` and `attempt`; it need not inherit from this one. `decision`
    is the name the guard reports when the route settles: any text but "pass". `below` is the confidence under which it
    applies, in [0, 1]; None, the default, stands for the guard's threshold.
    """

    @property
    def decision(self) -> str:
        """Name of the decision when this route settles."""

    @property
    def below(self) -> float | None:
        """Confidence under which the route applies."""
        return None

    def attempt(self, situation: Situation) -> Outcome:
        """Try to settle the question; an exception counts as not settled."""

    async def aattempt(self, situation: Situation) -> Outcome:
        """Async twin of `attempt`; by default that runs in a thread."""
        return await asyncio.to_thread(self.attempt, situation)


@dataclass(frozen=True)
class Resolution:
    """How it ended: the text to return, the model's answer it is about, and the decision to record.

    `as_drafted` tells that the answer goes out as the model gave it; else nothing of it does but `text`. With `raises`,
    or an `error`, nothing goes out.
    """

    text: str
    answer: Answer
    decision: Decision
    as_drafted: bool
    raises: bool
    error: Exception | None


def climb(draft: Answer, routes: Sequence[Route]) -> Generator[tuple[Route, tuple[Source, ...]], Outcome, Resolution]:
    """Judge a draft, and try the routes that apply in order until one settles; if none does, abstain.

    Yields each route to try with the sources found so far, and expects its outcome to be sent.
    """
    first = draft.verdict
    steps = [Step(name="answer", settled=first.passed, confidence=first.confidence, reason=first.reason)]
    if first.passed:
        return _resolve("pass", Outcome(True, "", draft.text, as_drafted=True), draft, steps, ())
    sources: tuple[Source, ...] = ()
    for route in routes:
        if not _applies(route, first):
            continue
        outcome = yield route, sources
        sources += outcome.sources
        confidence = None if outcome.answer is None else outcome.answer.verdict.confidence
        step = Step(name=route.decision, settled=outcome.settled, confidence=confidence, reason=outcome.reason)
        steps.append(step)
        if outcome.settled:
            return _resolve(route.decision, outcome, draft, steps, sources)
    return _resolve("abstain", Outcome(True, "", DEFAULT_ABSTENTION), draft, steps, sources)


def _applies(route: Route, verdict: Verdict) -> bool:
    """Tell whether a held-back answer is in the route's band; one that could not be judged is in every band."""
    below = getattr(route, "below", None)
    return below is None or verdict.confidence is None or not verdict.confidence >= below


def _resolve(
    name: str, outcome: Outcome, draft: Answer, steps: Sequence[Step], sources: tuple[Source, ...]
) -> Resolution:
    answer, answered = outcome.answer or draft, outcome.as_drafted
    verdict = answer.verdict if answered else answer.verdict.model_copy(update={"guarantee": None})
    decision = Decision(
        decision=name,
        answered=answered,
        cause=None if answered else verdict.cause or "low_confidence",
        reason=verdict.reason if name != "review" else f"{verdict.reason}; {outcome.reason}",
        verdict=verdict,
        steps=tuple(steps),
        sources=sources,
        tool_calls=answer.tool_calls,
        review_id=outcome.review_id,
    )
    return Resolution(outcome.text, answer, decision, outcome.as_drafted, outcome.raises, outcome.error)
