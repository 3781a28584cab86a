"""One question on its way through the guard: asked, judged, settled by a route, and the message that goes out."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import RunnableConfig

from semgrad_guard._compat import steers_a_graph
from semgrad_guard.calibration.drift import RawWatch, Watch
from semgrad_guard.calibration.profile import Profile
from semgrad_guard.calibration.prompts import PromptForm
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.errors import (
    ConfigurationError,
    LowConfidenceError,
    ProfileError,
    PromptTooLongError,
    described,
    named,
)
from semgrad_guard.langchain.chat_model import ChatSemGrad, chat_model
from semgrad_guard.langchain.drafts import Draft, astep, step, without_text
from semgrad_guard.langchain.messages import EMPTY_QUESTION, asked_with, question_in
from semgrad_guard.langchain.metadata import with_record
from semgrad_guard.langchain.scored_messages import judged, watched_score
from semgrad_guard.langchain.streaming import joined, last_chunk
from semgrad_guard.model.fingerprint import precision, template_fingerprint
from semgrad_guard.records import Decision, Failure, MessageScores, Score, Source, TokenUncertainty
from semgrad_guard.routing.attempts import aattempted, attempted
from semgrad_guard.routing.ladder import Answer, Outcome, Resolution, Route, Situation, climb
from semgrad_guard.routing.routes import Abstain, Raise
from semgrad_guard.settings import checked, shown

logger = logging.getLogger(__name__)

Passages = Literal["optional", "in_prompt", "required"]

# What may go wrong while answering and means "not sure" rather than a mistake of the caller: the prompt does not fit,
# or memory runs out, which torch reports as a RuntimeError.
_ANSWERING_FAILURES = (PromptTooLongError, MemoryError, RuntimeError)
_NOT_ASKED = Failure(kind="not_asked", text="not asked without passages")
_GENERATE = RunnableConfig(run_name="generate")


@dataclass(frozen=True)
class Manner:
    """How a guard asks: which model, against which standard, where passages come from, and whether traces see drafts.

    `prompt` is what it puts around the question; None for nothing.
    """

    llm: ChatSemGrad
    standard: Standard
    watch: Watch | None
    raw_watch: RawWatch | None
    passages: Passages
    record_drafts: bool
    prompt: PromptForm | None = None


def profile_of(profile: Any) -> Profile | None:
    """Give the profile of what a user passes: a `Profile`, the path of its JSON, the JSON itself, or a dict of it.

    Raises:
        ProfileError: it cannot be read, or is not a profile of this version.
        ConfigurationError: it is something else.
    """
    if profile is None or isinstance(profile, Profile):
        return profile
    with checked(Profile, ProfileError):
        if isinstance(profile, dict):
            return Profile.model_validate(profile)
        if isinstance(profile, bytes) or (isinstance(profile, str) and profile.lstrip().startswith("{")):
            return Profile.model_validate_json(profile)
    if isinstance(profile, str | Path):
        return Profile.load(profile)
    raise ConfigurationError(f"profile={shown(profile)}: expected a Profile, the path of its JSON, or a dict of it.")


def chat_model_for(llm: Any, profile: Profile | None) -> ChatSemGrad:
    """Wrap the model; with a profile, score exactly as the profile was fitted, and refuse another model."""
    if profile is None:
        return llm if isinstance(llm, ChatSemGrad) else chat_model(llm)
    scoring = profile.bound_to.scoring
    same = isinstance(llm, ChatSemGrad) and llm.scoring == scoring
    chat = llm if same else chat_model(llm, scoring=scoring)
    profile.check(chat.fingerprint, template_fingerprint(chat.tokenizer), precision(chat.model))
    return chat


class Asking:
    """One question on its way through the guard: how it is asked, first and again, and how answers are judged."""

    def __init__(self, manner: Manner, input: LanguageModelInput, settings: dict[str, Any]) -> None:
        """Take the question from the input of the guard; `settings` are those of the generation."""
        question = question_in(input)
        self._manner, self._messages, self._settings = manner, question.messages, settings
        self._index, self._question, self.blank = question.place, question.text, question.blank
        self._grounded = manner.passages == "in_prompt" or question.after_tools
        self._first = question.messages if manner.prompt is None else self._with_question(self._question)

    def situation(self, draft: Answer, sources: tuple[Source, ...]) -> Situation:
        """Give what a route may know and do."""
        return Situation(
            self._question,
            draft,
            sources,
            self._ask,
            self._aask,
            self._messages,
            self._manner.record_drafts,
            uncertainty=lambda: self._uncertainty(draft),
        )

    def first(self) -> Answer:
        """Give the first answer; there is none to a blank question, or where passages must be found first."""
        return self._unasked() or self._answer(self._first, grounded=self._grounded)

    async def afirst(self) -> Answer:
        """Async twin of `first`."""
        return self._unasked() or await self._aanswer(self._first, grounded=self._grounded)

    def streamed(self) -> Iterator[str | Answer]:
        """Yield the text of the first answer as it comes, for everybody to see, and then the answer."""
        if unasked := self._unasked():
            yield unasked
            return
        chunks: list[AIMessageChunk] = []
        try:
            for chunk in self._manner.llm.stream(self._first, _GENERATE, **self._settings):
                chunks.append(chunk)
                yield str(chunk.text)
        except _ANSWERING_FAILURES as error:
            yield self._failed(error)
        else:
            yield self._scored(joined(chunks), self._grounded)

    async def astreamed(self) -> AsyncIterator[str | Answer]:
        """Async twin of `streamed`."""
        if unasked := self._unasked():
            yield unasked
            return
        chunks: list[AIMessageChunk] = []
        try:
            async for chunk in self._manner.llm.astream(self._first, _GENERATE, **self._settings):
                chunks.append(chunk)
                yield str(chunk.text)
        except _ANSWERING_FAILURES as error:
            yield self._failed(error)
        else:
            yield await self._ascored(joined(chunks), self._grounded)

    def _unasked(self) -> Answer | None:
        if self.blank:
            return self._none(EMPTY_QUESTION)
        return self._none(_NOT_ASKED) if self._manner.passages == "required" else None

    def _ask(self, text: str) -> Answer:
        return self._answer(self._with_question(text), grounded=True)

    async def _aask(self, text: str) -> Answer:
        return await self._aanswer(self._with_question(text), grounded=True)

    def _answer(self, messages: Sequence[BaseMessage], *, grounded: bool) -> Answer:
        """Let the model answer, and judge; a failure to answer is an answer that does not pass."""
        try:
            message = self._draft().ask(messages, self._settings)
        except _ANSWERING_FAILURES as error:
            return self._failed(error)
        return self._scored(message, grounded)

    async def _aanswer(self, messages: Sequence[BaseMessage], *, grounded: bool) -> Answer:
        try:
            message = await self._draft().aask(messages, self._settings)
        except _ANSWERING_FAILURES as error:
            return self._failed(error)
        return await self._ascored(message, grounded)

    def _uncertainty(self, draft: Answer) -> tuple[TokenUncertainty, ...]:
        """Tell where the uncertainty of a draft sits; a reviewer who cannot be shown it must still get the draft."""
        if draft.message is None:
            return ()
        try:
            return self._manner.llm.token_uncertainty(draft.message, self._first, **self._settings)
        except Exception as error:
            logger.warning("Where the uncertainty of a draft sits cannot be told: %s", described(error))
            return ()

    def _draft(self) -> Draft:
        llm = self._manner.llm
        recorded = self._manner.record_drafts
        return Draft(llm=llm, recorded=recorded, callbacks=llm.callbacks, tags=llm.tags, metadata=llm.metadata)

    def _with_question(self, text: str) -> list[BaseMessage]:
        return asked_with(self._manner.prompt, self._messages, self._index, text)

    def _scored(self, message: AIMessage, grounded: bool) -> Answer:
        return step("score", {"grounded": grounded}, lambda: self._judged(message, grounded))

    async def _ascored(self, message: AIMessage, grounded: bool) -> Answer:
        async def judge() -> tuple[Answer, dict[str, Any]]:
            return self._judged(message, grounded)

        return await astep("score", {"grounded": grounded}, judge)

    def _judged(self, message: AIMessage, grounded: bool) -> tuple[Answer, dict[str, Any]]:
        """Judge an answer, and tell how sure it is, without its text."""
        score = watched_score(message, grounded=False)
        if self._manner.watch is not None and score is not None and not grounded:
            self._manner.watch.see(score)
        self._see_raw(score)
        answer = judged(message, self._manner.standard, grounded=grounded)
        return answer, _verdict(answer)

    def _see_raw(self, score: Score | None) -> None:
        standard, watch = self._manner.standard, self._manner.raw_watch
        if watch is None or standard.score_threshold is None or score is None or not score.finite():
            return
        if (value := standard.raw(score)) is not None:
            watch.see(value, standard.score_threshold, standard.method)

    def _failed(self, error: BaseException) -> Answer:
        logger.warning("No answer: %s", described(error))
        return self._none(Failure(kind="no_answer", text=f"no answer: {named(error)}"))

    def _none(self, failure: Failure) -> Answer:
        return Answer("", self._manner.standard.judge(None, failure))


def _verdict(answer: Answer) -> dict[str, Any]:
    """Tell of an answer how sure it is, without its text."""
    return answer.verdict.model_dump(
        mode="json", include={"passed", "cause", "confidence", "threshold", "method", "reason"}
    )


def message_of(resolution: Resolution) -> AIMessage:
    """Give the message of a resolution; where the model's answer is withheld, nothing of it is left but its usage.

    Raises:
        LowConfidenceError: the route that settled it wants that.
        Exception: whatever that route has given to be raised.
    """
    if resolution.error is not None:
        raise resolution.error
    if resolution.raises:
        raise LowConfidenceError(resolution.decision, resolution.text or None)
    message: AIMessage = resolution.answer.message or AIMessage("")
    if not resolution.as_drafted:
        verdict = resolution.decision.verdict
        failure = None if verdict.passed else Failure(kind=verdict.cause or "low_confidence", text=verdict.reason)
        scores = MessageScores(scores=verdict.scores, failure=failure)  # without the tokens, which tell the text
        message = with_record(without_text(message), scores).model_copy(update={"content": resolution.text})
    return with_record(message, resolution.decision)


def last_of_stream(message: AIMessage, shown: str) -> AIMessageChunk:
    """Give the last chunk of a stream that has shown a draft: the decision, and on lines of its own what settled it."""
    if shown and message.content != shown:
        message = message.model_copy(update={"content": f"{shown}\n\n{message.content}"})
    return last_chunk(message, shown)


DECIDED = "semgrad.decision"  # the event


def answer(
    manner: Manner, question: LanguageModelInput, settings: dict[str, Any], routes: Sequence[Route]
) -> AIMessage:
    """Let the model answer, and routes settle what is not sure enough; `settings` are those of the generation.

    Raises:
        LowConfidenceError: a route wants that.
    """
    asking = Asking(manner, question, settings)
    return settle(asking, asking.first(), routes)


async def aanswer(
    manner: Manner, question: LanguageModelInput, settings: dict[str, Any], routes: Sequence[Route]
) -> AIMessage:
    """Async twin of `answer`."""
    asking = Asking(manner, question, settings)
    return await asettle(asking, await asking.afirst(), routes)


def settle(asking: Asking, draft: Answer, routes: Sequence[Route]) -> AIMessage:
    """Let routes settle a draft that is not sure enough, announce the decision, and give the message that goes out.

    Raises:
        LowConfidenceError: a route wants that.
    """
    ladder = climb(draft, _applicable(asking, routes))
    try:
        route, sources = next(ladder)
        while True:
            attempt = partial(_attempt, route, asking.situation(draft, sources))
            try:
                outcome = step("route", {"route": route.decision}, attempt)
            except Exception as error:  # fail closed: a route that breaks does not settle
                outcome = _broken(route, error)
            route, sources = ladder.send(outcome)
    except StopIteration as end:
        resolution: Resolution = end.value
    dispatch_custom_event(DECIDED, _announced(resolution.decision))
    return message_of(resolution)


async def asettle(asking: Asking, draft: Answer, routes: Sequence[Route]) -> AIMessage:
    """Async twin of `settled`."""
    ladder = climb(draft, _applicable(asking, routes))
    try:
        route, sources = next(ladder)
        while True:
            attempt = partial(_aattempt, route, asking.situation(draft, sources))
            try:
                outcome = await astep("route", {"route": route.decision}, attempt)
            except Exception as error:  # fail closed: a route that breaks does not settle
                outcome = _broken(route, error)
            route, sources = ladder.send(outcome)
    except StopIteration as end:
        resolution: Resolution = end.value
    await adispatch_custom_event(DECIDED, _announced(resolution.decision))
    return message_of(resolution)


def _applicable(asking: Asking, routes: Sequence[Route]) -> Sequence[Route]:
    """Give the routes to try: where nothing was asked, there is nothing to look up, and nobody to bother with it."""
    return [route for route in routes if isinstance(route, Abstain | Raise)] if asking.blank else routes


def _broken(route: Route, error: Exception) -> Outcome:
    if steers_a_graph(error):
        return Outcome(True, "the run is interrupted", error=error)
    logger.warning("The route %s failed: %s", route.decision, described(error))
    return Outcome(False, named(error))


def _attempt(route: Route, situation: Situation) -> tuple[Outcome, dict[str, Any]]:
    """Try a route, and tell how that went, without its text."""
    outcome = attempted(route, situation)
    return outcome, {"settled": outcome.settled, "reason": outcome.reason}


async def _aattempt(route: Route, situation: Situation) -> tuple[Outcome, dict[str, Any]]:
    outcome = await aattempted(route, situation)
    return outcome, {"settled": outcome.settled, "reason": outcome.reason}


def _announced(decision: Decision) -> dict[str, Any]:
    """Give what the event tells: the decision, without scores, sources and steps."""
    return {
        **decision.model_dump(mode="json", include={"decision", "answered", "cause", "reason"}),
        **decision.verdict.model_dump(mode="json", include={"confidence", "threshold"}),
    }
