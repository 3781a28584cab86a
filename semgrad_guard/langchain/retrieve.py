"""The route that looks things up: ask again with retrieved passages, and settle only if the new answer is sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from langchain_core.documents import Document
from langchain_core.runnables import Runnable
from pydantic import BaseModel, ConfigDict, Field

from semgrad_guard.calibration.answers import Answered, answered
from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.from_examples import Retry
from semgrad_guard.calibration.labels import Labeler
from semgrad_guard.records import Source
from semgrad_guard.routing.grounding import grounded_question
from semgrad_guard.routing.ladder import Answer, Outcome, Situation
from semgrad_guard.routing.timeouts import await_within, call_within
from semgrad_guard.scoring.scorer import SemGradScorer


class Retrieve(BaseModel):
    """Ask the question again together with passages, score the new answer, and settle if it passes.

    A retriever that raises, times out or finds nothing does not settle; what it found is kept for the routes after it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    retriever: Runnable[str, Any]
    k: int = Field(default=3, ge=1)
    prompt: Callable[[str, Sequence[str]], str] = grounded_question
    below: float | None = Field(default=None, ge=0, le=1)
    timeout: float | None = Field(default=None, gt=0)
    decision: Literal["retrieve"] = "retrieve"

    def __init__(self, retriever: Runnable[str, Any], **settings: Any) -> None:
        """Set the retriever and how its passages are used.

        Args:
            retriever: a `BaseRetriever`, or any Runnable from a string to documents.
            settings: `k`, the most passages used; `prompt`, from question and passages to the prompt;
                `below`, the confidence under which the route applies (None: the guard's threshold); `timeout` of the
                retriever, in seconds.
        """
        super().__init__(retriever=retriever, **settings)

    def attempt(self, situation: Situation) -> Outcome:
        """Retrieve, ask again, judge."""
        sources = self.look_up(situation.question)
        if not sources:
            return _NOTHING
        return _outcome(situation.ask(self.worded(situation.question, sources)), sources)

    async def aattempt(self, situation: Situation) -> Outcome:
        """Retrieve, ask again, judge."""
        found = await await_within(self.timeout, self.retriever.ainvoke(situation.question))
        sources = self._sources(found)
        if not sources:
            return _NOTHING
        return _outcome(await situation.aask(self.worded(situation.question, sources)), sources)

    def look_up(self, question: str) -> tuple[Source, ...]:
        """Retrieve passages about a question.

        Raises:
            TimeoutError: the retriever did not answer in time.
        """
        return self._sources(call_within(self.timeout, lambda: self.retriever.invoke(question)))

    def worded(self, question: str, sources: Sequence[Source]) -> str:
        """Put question and passages into one prompt."""
        return self.prompt(question, [source.text for source in sources])

    def _sources(self, documents: Sequence[Document]) -> tuple[Source, ...]:
        return tuple(Source(text=found.page_content, metadata=found.metadata) for found in documents[: self.k])


_NOTHING = Outcome(False, "the retriever found nothing")


def _outcome(answer: Answer, sources: tuple[Source, ...]) -> Outcome:
    verdict = answer.verdict
    return Outcome(verdict.passed, verdict.reason, answer.text, answer, sources, as_drafted=True)


def retry_with(route: Retrieve, scorer: SemGradScorer, label: Labeler, generation: dict[str, Any]) -> Retry:
    """Ask questions again as the route does, for calibration; what it finds no passages for, it would not ask.

    Args:
        route: retrieves and words the question.
        scorer: generates and scores.
        label: says whether an answer is right.
        generation: keywords of `model.generate`.
    """

    def again(examples: Sequence[Example]) -> list[Answered]:
        # An answer that came with its question, and its label, say nothing about the one the model gives now.
        asked = {
            example.query: route.worded(example.query, sources)
            for example in examples
            if example.answers is not None and (sources := route.look_up(example.query))
        }
        own = [e.model_copy(update={"answer": None, "correct": None}) for e in examples if e.query in asked]
        return answered(scorer, own, label, generation, ask=lambda example: asked[example.query])

    return again
