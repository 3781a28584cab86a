"""The routes that call LangChain's parts: asking again with retrieved passages, and asking somebody bigger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, cast

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import coerce_to_runnable
from langchain_core.vectorstores import VectorStore
from pydantic import Field, field_validator

from semgrad_guard.calibration.answers import Answers, answered
from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.from_examples import Retry
from semgrad_guard.calibration.labels import Labeler
from semgrad_guard.errors import ConfigurationError, RetrievalError
from semgrad_guard.langchain.drafts import unseen, without_streams
from semgrad_guard.langchain.metadata import get_decision, get_message_scores
from semgrad_guard.langchain.passages import query_from, sources_from
from semgrad_guard.model.responses import is_blank
from semgrad_guard.records import Source, Verdict
from semgrad_guard.routing.grounding import grounded_question, passages_used
from semgrad_guard.routing.ladder import Answer, Outcome, Situation
from semgrad_guard.routing.limits import await_within, call_within
from semgrad_guard.routing.routes import ReviewRequest, review_request
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.settings import SecondsOrNone, Settings, renamed, shown

_RETRIEVER = "a retriever, a vector store, or a function that finds passages"


class Search(TypedDict):
    """What a `rewrite` gets: the question, and the queries and passages of earlier rounds."""

    question: str
    queries: list[str]
    passages: list[str]


class Retrieve(Settings):
    """Ask the question again together with passages, score the new answer, and settle if it passes.

    A retriever that raises, times out or finds nothing does not settle. The routes after this one get its passages.
    `metadata["used"]` of a passage tells whether the answer stands in it, word by word.
    """

    retriever: Runnable[str, Any]
    k: int = Field(default=3, ge=1)
    prompt: Callable[[str, Sequence[str]], str] = grounded_question
    rewrite: Any = None
    rounds: int = Field(default=1, ge=1)
    max_length: int | None = Field(default=None, ge=1)
    length_function: Callable[[str], int] = len
    below: float | None = Field(default=None, ge=0, le=1)
    timeout_seconds: SecondsOrNone = None
    decision: Literal["retrieve"] = "retrieve"

    def __init__(
        self,
        retriever: Runnable[str, Any] | VectorStore | Callable[[str], Any],
        *,
        k: int = 3,
        prompt: Callable[[str, Sequence[str]], str] = grounded_question,
        rewrite: Any = None,
        rounds: int = 1,
        max_length: int | None = None,
        length_function: Callable[[str], int] = len,
        below: float | None = None,
        timeout_seconds: float | None = None,
        **unknown: Any,
    ) -> None:
        """Set the retriever and how its passages are used.

        Args:
            retriever: a `BaseRetriever`, any Runnable or function from a string to documents or texts, alone or each in
                a pair with its score, or a `VectorStore`, which is asked for the `k` nearest.
            k: the most passages used in a round.
            prompt: makes the prompt from the question and the passages.
            rewrite: a function or Runnable from a `Search` to the query; None: the question is the query.
            rounds: the most searches, each with a query of its own.
            max_length: how long the passages of a round may be together; those that do not fit are left out.
            length_function: measures a passage for `max_length`; by default it counts characters.
            below: confidence under which the route applies; None for the guard's threshold.
            timeout_seconds: limit of each search and of each rewriting; None for as long as it takes.
            unknown: refused by name.

        Raises:
            ConfigurationError: several rounds, but nothing that rewrites the query; a setting is unknown or wrong.
        """
        settings: dict[str, Any] = {
            "k": k,
            "prompt": prompt,
            "rewrite": rewrite,
            "rounds": rounds,
            "max_length": max_length,
            "length_function": length_function,
            "below": below,
            "timeout_seconds": timeout_seconds,
        }
        settings |= renamed(unknown, "Retrieve", timeout="timeout_seconds")
        if isinstance(retriever, VectorStore):
            retriever = retriever.as_retriever(search_kwargs={"k": k})
        super().__init__(retriever=runnable_of(retriever, "Retrieve", _RETRIEVER), **settings, **unknown)
        if self.rounds > 1 and self.rewrite is None:
            raise ConfigurationError(
                f"Retrieve(rounds={self.rounds}) without rewrite=... would search for the same again."
            )

    @field_validator("rewrite")
    @classmethod
    def _runnable(cls, rewrite: Any) -> Runnable[Any, Any] | None:
        return None if rewrite is None else runnable_of(rewrite, "Retrieve", "rewrite= a function or a Runnable")

    def attempt(self, situation: Situation) -> Outcome:
        """Retrieve, ask again, judge; round by round."""
        rounds = self._rounds(situation.question)
        try:
            step = next(rounds)
            while True:
                if isinstance(step, _Prompt):
                    step = rounds.send(situation.ask(step.text))
                else:
                    step = rounds.send(self._called(step))
        except StopIteration as end:
            return cast(Outcome, end.value)

    async def aattempt(self, situation: Situation) -> Outcome:
        """Retrieve, ask again, judge; round by round."""
        rounds = self._rounds(situation.question)
        try:
            step = next(rounds)
            while True:
                if isinstance(step, _Prompt):
                    step = rounds.send(await situation.aask(step.text))
                else:
                    step = rounds.send(await await_within(self.timeout_seconds, self._acalled(step)))
        except StopIteration as end:
            return cast(Outcome, end.value)

    def look_up(self, question: str) -> tuple[Source, ...]:
        """Retrieve passages about a question, as in the first round.

        Raises:
            TimedOutError: the retriever, or what rewrites the question, did not answer in time.
            RetrievalError: one of them gave something else than texts.
        """
        query = question
        if self.rewrite is not None:
            query = self._called(self._rewriting(question, [], []))
        return self._fitting(self._called(self._retrieving(query)))

    def worded(self, question: str, sources: Sequence[Source]) -> str:
        """Put question and passages into one prompt.

        Raises:
            RetrievalError: `prompt` gave something else than a text.
        """
        worded = self.prompt(question, [source.text for source in sources])
        if not isinstance(worded, str):
            raise RetrievalError(f"prompt gave a {type(worded).__name__}; expected a text.")
        return worded

    def _retrieving(self, query: str) -> _Call:
        return _Call(self.retriever, query, lambda result: sources_from(result, self.k))

    def _rewriting(self, question: str, queries: Sequence[str], sources: Sequence[Source]) -> _Call:
        return _Call(self.rewrite, _search(question, queries, sources), lambda text: query_from(text, question))

    def _called(self, call: _Call) -> Any:
        return call_within(self.timeout_seconds, lambda: call.read(call.runnable.invoke(call.argument)))

    async def _acalled(self, call: _Call) -> Any:
        result = await call.runnable.ainvoke(call.argument)
        if isinstance(result, Iterator):  # what it gives may take its time
            return await asyncio.to_thread(call.read, result)
        return call.read(result)

    def _rounds(self, question: str) -> Generator[_Call | _Prompt, Any, Outcome]:
        """Go through the rounds; yields what to call or to ask, and expects what comes of it to be sent."""
        queries: list[str] = []
        sources: list[Source] = []
        answer, reason = None, ""
        for _ in range(self.rounds):
            query = question
            if self.rewrite is not None:
                query = yield self._rewriting(question, queries, sources)
            if query in queries:
                break  # nothing new to search for
            queries.append(query)
            passages = self._fitting((yield self._retrieving(query)))
            sources += [source for source in passages if source not in sources]
            if not passages:
                reason = "the retriever found nothing" + ("" if self.max_length is None else " that fits")
                continue
            answer = yield _Prompt(self.worded(question, passages))
            reason = answer.verdict.reason
            if answer.verdict.passed:
                earlier = [source for source in sources if source not in passages]
                marked = _marked(question, answer, passages)
                return Outcome(True, reason, answer.text, answer, (*marked, *earlier), as_drafted=True)
        return Outcome(False, reason, answer=answer, sources=tuple(sources))

    def _fitting(self, sources: Sequence[Source]) -> tuple[Source, ...]:
        fitting, length = [], 0
        for source in sources:
            longer = length + self.length_function(source.text)
            if self.max_length is None or longer <= self.max_length:
                fitting.append(source)
                length = longer
        return tuple(fitting)


def runnable_of(value: Any, owner: str, expected: str) -> Runnable[Any, Any]:
    """Give a Runnable, or make one of a function.

    Raises:
        ConfigurationError: it is neither.
    """
    if isinstance(value, Runnable):
        return value
    if callable(value) and not isinstance(value, type):
        runnable: Runnable[Any, Any] = coerce_to_runnable(value)
        return runnable
    hint = " Make one of texts with BM25Retriever.from_texts(texts)." if isinstance(value, list | tuple) else ""
    raise ConfigurationError(f"{owner}({shown(value)}): expected {expected}.{hint}")


@dataclass(frozen=True)
class _Call:
    """A Runnable to call, and how what it gives is read."""

    runnable: Runnable[Any, Any]
    argument: Any
    read: Callable[[Any], Any]


@dataclass(frozen=True)
class _Prompt:
    """A prompt to ask the model."""

    text: str


def _search(question: str, queries: Sequence[str], sources: Sequence[Source]) -> Search:
    return Search(question=question, queries=[*queries], passages=[source.text for source in sources])


def _marked(question: str, answer: Answer, sources: Sequence[Source]) -> list[Source]:
    used = passages_used(question, answer.text, [source.text for source in sources])
    return [
        source.model_copy(update={"metadata": source.metadata | {"used": stands}})
        for source, stands in zip(sources, used, strict=True)
    ]


def retry_with(
    route: Retrieve, scorer: SemGradScorer, label: Labeler, generation: dict[str, Any], **settings: Any
) -> Retry:
    """Ask questions again as the route does, for calibration; what it finds no passages for, it would not ask.

    Args:
        route: retrieves and words the question.
        scorer: generates and scores.
        label: says whether an answer is right.
        generation: keywords of `model.generate`.
        settings: further keywords of `answered`: the prompt, where to stop, the journal.
    """

    def again(examples: Sequence[Example]) -> Answers:
        # An answer that came with its question, and its label, say nothing about the one the model gives now.
        prompts = {
            example.key: route.worded(example.query, sources)
            for example in examples
            if example.answers is not None and (sources := route.look_up(example.query))
        }
        unanswered = [e.model_copy(update={"answer": None, "correct": None}) for e in examples if e.key in prompts]
        return answered(scorer, unanswered, label, generation, ask=lambda example: prompts[example.key], **settings)

    return again


class Escalate(Settings):
    """Ask another Runnable, a larger model or a chain, and settle with its answer.

    A guard's own decision counts: where it abstains, this does not settle. The answer of anything else is taken as it
    is, and has no confidence. An empty answer, an error, a timeout or a budget that is used up do not settle. Nothing
    is promised of what settles: promises are about questions of all kinds, not about those that are left over here.
    """

    to: Runnable[Any, Any]
    prompt: Callable[[ReviewRequest], Any] | None = None
    budget: Callable[[], bool] | None = None
    below: float | None = Field(default=None, ge=0, le=1)
    timeout_seconds: SecondsOrNone = None
    decision: Literal["escalate"] = "escalate"

    def __init__(
        self,
        to: Runnable[Any, Any] | Callable[[Any], Any] | None = None,
        *,
        prompt: Callable[[ReviewRequest], Any] | None = None,
        budget: Callable[[], bool] | None = None,
        below: float | None = None,
        timeout_seconds: float | None = None,
        **unknown: Any,
    ) -> None:
        """Set who answers, and within which budget.

        Args:
            to: a Runnable or function that takes messages, or what `prompt` gives, and answers with a message or a
                text.
            prompt: makes its input from a `ReviewRequest` with the question, the draft, its confidence and its scores;
                None: the messages that the guard was given. Since a prompt may show the draft, callbacks and traces
                then see the run only with `record_drafts`.
            budget: tells before each call whether it may be made, such as `RateLimit(10, per=3600)`; None: always.
            below: confidence under which the route applies; None for the guard's threshold.
            timeout_seconds: limit of each call; None for as long as it takes.
            unknown: refused by name.

        Raises:
            ConfigurationError: a setting is unknown or wrong.
        """
        settings: dict[str, Any] = {
            "to": to,
            "prompt": prompt,
            "budget": budget,
            "below": below,
            "timeout_seconds": timeout_seconds,
        }
        settings |= renamed(unknown, "Escalate", other="to", allow="budget", timeout="timeout_seconds")
        settings["to"] = runnable_of(settings["to"], "Escalate", "a Runnable or a function that answers")
        super().__init__(**settings, **unknown)

    def attempt(self, situation: Situation) -> Outcome:
        """Ask the other, if the budget allows."""
        argument = self._argument(situation)
        if self.budget is not None and not self.budget():
            return _EXHAUSTED
        with self._config_for(situation) as config:
            return _outcome(call_within(self.timeout_seconds, lambda: self.to.invoke(argument, config)))

    async def aattempt(self, situation: Situation) -> Outcome:
        """Ask the other, if the budget allows."""
        argument = self._argument(situation)
        if self.budget is not None and not self.budget():
            return _EXHAUSTED
        with self._config_for(situation) as config:
            return _outcome(await await_within(self.timeout_seconds, self.to.ainvoke(argument, config)))

    def _argument(self, situation: Situation) -> Any:
        return list(situation.conversation) if self.prompt is None else self.prompt(review_request(situation))

    def _config_for(self, situation: Situation) -> AbstractContextManager[RunnableConfig]:
        """Keep the run from everybody where its input may show the draft, and from streams in any case."""
        if self.prompt is not None and not situation.record_drafts:
            return unseen()
        return nullcontext(without_streams())


_EXHAUSTED = Outcome(False, "the budget for escalating is used up")


def _outcome(reply: object) -> Outcome:
    """Judge what came back by what it says of itself."""
    message = AIMessage(reply) if isinstance(reply, str) else reply
    if not isinstance(message, AIMessage):
        return Outcome(False, f"the other gave a {type(reply).__name__}; expected an AIMessage or a text")
    if is_blank(str(message.text)) and not message.tool_calls:
        return Outcome(False, "the other's answer is empty")
    theirs = get_decision(message)
    if theirs is None:
        scores = get_message_scores(message)  # a ChatSemGrad without a guard knows when it failed
        failure = None if scores is None else scores.failure
        verdict = Verdict(
            passed=failure is None,
            cause=None if failure is None else failure.kind,
            confidence=None,
            scores=None,
            threshold=None,
            method="none",
            reason=f"escalated: {'answered, without a confidence' if failure is None else failure.text}",
        )
        return _settled_by(Answer(str(message.text), verdict, message), ())
    settles = theirs.answered or theirs.decision not in ("abstain", "raise")
    reason = f"escalated: {theirs.decision}: {theirs.reason}"
    verdict = theirs.verdict.model_copy(update={"passed": settles, "guarantee": None, "policy": "", "reason": reason})
    answer = Answer(str(message.text), verdict, message, theirs.tool_calls)
    outcome = _settled_by(answer, theirs.sources)
    return replace(outcome, as_drafted=theirs.answered, review_id=theirs.review_id)


def _settled_by(answer: Answer, sources: tuple[Source, ...]) -> Outcome:
    verdict = answer.verdict
    return Outcome(verdict.passed, verdict.reason, answer.text, answer, sources, as_drafted=True)
