"""`SemGradGuard`: a Runnable that answers when the model is sure, and does something better when it is not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import patch_config
from pydantic import ConfigDict, Field

from semgrad_guard.calibration.calibrate import Method
from semgrad_guard.calibration.drift import Watch
from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.from_examples import answered, calibrated_profile
from semgrad_guard.calibration.labels import Labeler, labeler, tolerant
from semgrad_guard.calibration.profile import Profile
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.errors import ConfigurationError, PromptTooLongError
from semgrad_guard.langchain.chat_model import ChatSemGrad
from semgrad_guard.langchain.judged import judged, watched_score
from semgrad_guard.langchain.messages import last_question, reads_tool_results, to_messages
from semgrad_guard.langchain.tools import offered
from semgrad_guard.model.load import template_fingerprint
from semgrad_guard.records import Source
from semgrad_guard.routing.ladder import Answer, Outcome, Resolution, Route, Situation, climb
from semgrad_guard.routing.routes import Abstain

logger = logging.getLogger(__name__)

# What may go wrong while answering and means "not sure" rather than a mistake of the caller: the prompt does not fit,
# or memory runs out, which torch reports as a RuntimeError.
_ANSWERING_FAILURES = (PromptTooLongError, MemoryError, RuntimeError)


class SemGradGuard(RunnableSerializable[LanguageModelInput, AIMessage]):
    """Answers pass when the model is sure; otherwise routes are tried in order until one settles.

    Takes a string, messages or a prompt value; gives an `AIMessage` whose `response_metadata["semgrad"]` holds
    `decision`, `confidence`, `scores`, `threshold`, `method`, `reason`, `steps` and `sources`. Streaming yields one
    message, after the decision: a token that was shown cannot be taken back.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    llm: ChatSemGrad
    profile: Profile | None = None
    threshold: float | None = None
    score_threshold: float | None = None
    method: str | None = None
    watch: Watch | None = None
    routes: list[Any] = Field(default_factory=lambda: [Abstain()])

    def __init__(self, llm: Any, *, profile: Profile | str | Path | None = None, **settings: Any) -> None:
        """Set the model, the standard its answers must reach, and what happens to those that do not.

        Args:
            llm: a model id or folder, a `(model, tokenizer)` pair, a `HuggingFacePipeline`, a `ChatHuggingFace`, or a
                `ChatSemGrad`.
            profile: turns scores into confidence; a `Profile` or the path of its JSON.
            settings: `threshold`, the least confidence that passes (default: the profile's); without a profile
                `score_threshold`, the largest raw score of `method` (default "semgrad") that passes;
                `routes`, tried in order (default: `[Abstain()]`); `watch`, first answers after which to look for drift
                and warn of it, again and again (default: never). Copies of the guard count together.

        Raises:
            ConfigurationError: no threshold, or one of each kind; a `below`, or a `watch`, without a profile.
            ProfileError: the profile belongs to another model.
            UnsupportedModelError: the model cannot be scored.
        """
        loaded = Profile.load(profile) if isinstance(profile, str | Path) else profile
        settings["watch"] = Watch.of(settings.get("watch"), loaded)
        super().__init__(**{"llm": _chat_model(llm, loaded), "profile": loaded, **settings})
        self.standard()
        for route in self.routes:
            if not isinstance(route, Route):
                raise ConfigurationError(f"{route!r} is not a route; expected Abstain, Retrieve, HumanReview or alike.")
            if loaded is None and route.below is not None:
                raise ConfigurationError(
                    f"{type(route).__name__}(below={route.below}): below is on confidence, which needs a profile."
                )

    def standard(self) -> Standard:
        """The standard in force; built on use, so that a threshold configured at run time counts."""
        return Standard(self.profile, self.threshold, self.score_threshold, self.method)

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Answer, or settle otherwise; `kwargs` are generation settings."""
        return self._call_with_config(self._guard, input, config, **kwargs)

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Async twin of `invoke`."""
        return await self._acall_with_config(self._aguard, input, config, **kwargs)

    def calibrate(
        self,
        examples: Sequence[Example | dict[str, Any]],
        *,
        risk: float = 0.05,
        delta: float = 0.05,
        labels: str | Labeler = "match",
        method: Method = "auto",
        seed: int = 0,
    ) -> SemGradGuard:
        """Let the model answer labelled questions, and give a guard whose threshold keeps a promise.

        Args:
            examples: questions with their right answers, as `Example` or as a line of a data file.
            risk: largest share of wrong answers among those that pass.
            delta: probability that the promise does not hold.
            labels: how an answer is compared with the right ones: a name that `labeler` knows, or a function such as
                `judged_by` gives; where that fails now and then, the answer is left without a label.
            method: the score that confidence is made from; "auto" takes the best out of fold.
            seed: of the split into questions to fit on and to test on.

        Raises:
            DataError: there are too few labels, all are alike, or labelling keeps failing.
        """
        given = [Example.model_validate(example) for example in examples]
        label = labeler(labels) if isinstance(labels, str) else tolerant(labels)
        scorer = self.llm.scorer
        profile = calibrated_profile(
            scorer,
            answered(scorer, given, label, self.llm.generation),
            model=str(self.llm.model.config.name_or_path),
            labels=labels if isinstance(labels, str) else "a function of the caller's",
            method=method,
            risk=risk,
            delta=delta,
            seed=seed,
        )
        return SemGradGuard(self.llm, profile=profile, routes=self.routes, watch=self.watch)

    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **settings: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model, as `ChatSemGrad.bind_tools` does; a call goes out when it is sure."""
        return self.bind(**offered(tools, tool_choice), **settings)

    def _guard(
        self, given: LanguageModelInput, run_manager: CallbackManagerForChainRun, config: RunnableConfig, **kwargs: Any
    ) -> AIMessage:
        run = _Run(self, to_messages(given), run_manager, config, kwargs)
        draft = run.answer(run.messages)
        ladder = climb(draft, self.routes)
        try:
            route, sources = next(ladder)
            while True:
                try:
                    outcome = route.attempt(run.situation(draft, sources))
                except Exception as error:  # fail closed: a route that breaks does not settle
                    outcome = _broken(route, error)
                route, sources = ladder.send(outcome)
        except StopIteration as end:
            return _message(end.value)

    async def _aguard(
        self,
        given: LanguageModelInput,
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AIMessage:
        run = _Run(self, to_messages(given), run_manager, config, kwargs)
        draft = await run.aanswer(run.messages)
        ladder = climb(draft, self.routes)
        try:
            route, sources = next(ladder)
            while True:
                try:
                    outcome = await route.aattempt(run.situation(draft, sources))
                except Exception as error:  # fail closed: a route that breaks does not settle
                    outcome = _broken(route, error)
                route, sources = ladder.send(outcome)
        except StopIteration as end:
            return _message(end.value)


class _Run:
    """One question on its way through the guard: how it is asked, first and again, and how answers are judged."""

    def __init__(
        self,
        guard: SemGradGuard,
        messages: list[BaseMessage],
        run_manager: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        settings: dict[str, Any],
    ) -> None:
        self.messages = messages
        self._index, self._question = last_question(messages)
        # A token that was shown cannot be taken back: whoever listens to the run gets no draft piece by piece.
        self._llm = guard.llm.model_copy(update={"disable_streaming": True})
        self._standard, self._watch = guard.standard(), guard.watch
        self._run_manager, self._config, self._settings = run_manager, config, settings

    def situation(self, draft: Answer, sources: tuple[Source, ...]) -> Situation:
        return Situation(self._question, draft, sources, self._ask, self._aask)

    def answer(self, messages: Sequence[BaseMessage], *, retry: bool = False) -> Answer:
        try:
            message = self._llm.invoke(messages, self._child(retry), **self._settings)
        except _ANSWERING_FAILURES as error:
            return self._failed(error)
        return self._judged(message, retry)

    async def aanswer(self, messages: Sequence[BaseMessage], *, retry: bool = False) -> Answer:
        try:
            message = await self._llm.ainvoke(messages, self._child(retry), **self._settings)
        except _ANSWERING_FAILURES as error:
            return self._failed(error)
        return self._judged(message, retry)

    def _ask(self, text: str) -> Answer:
        return self.answer(self._with_question(text), retry=True)

    async def _aask(self, text: str) -> Answer:
        return await self.aanswer(self._with_question(text), retry=True)

    def _with_question(self, text: str) -> list[BaseMessage]:
        messages = list(self.messages)
        messages[self._index] = messages[self._index].model_copy(update={"content": text})
        return messages

    def _child(self, retry: bool) -> RunnableConfig:
        return patch_config(self._config, callbacks=self._run_manager.get_child("retry" if retry else "generate"))

    def _judged(self, message: AIMessage, retry: bool) -> Answer:
        grounded = retry or reads_tool_results(self.messages)
        seen = watched_score(message, grounded=grounded)
        if self._watch is not None and seen is not None:
            self._watch.see(seen)
        return judged(message, self._standard, grounded=grounded)

    def _failed(self, error: BaseException) -> Answer:
        logger.warning("No answer: %s", error)
        return Answer("", self._standard.judge(None, f"no answer: {type(error).__name__}: {error}"))


def _chat_model(llm: Any, profile: Profile | None) -> ChatSemGrad:
    """Wrap the model; with a profile, score exactly as the profile was fitted, and refuse another model."""
    if profile is None:
        return llm if isinstance(llm, ChatSemGrad) else ChatSemGrad.of(llm)
    bound = profile.bound_to
    settings = {name: getattr(bound, name) for name in ("token_position", "span", "reduction", "norm")}
    if isinstance(llm, ChatSemGrad) and all(getattr(llm, name) == value for name, value in settings.items()):
        chat = llm
    else:
        chat = ChatSemGrad.of(llm, **settings)
    profile.check(chat.fingerprint, template_fingerprint(chat.tokenizer))
    return chat


def _broken(route: Route, error: Exception) -> Outcome:
    logger.warning("The route %s failed: %s", route.decision, error)
    return Outcome(False, f"{type(error).__name__}: {error}")


def _message(resolution: Resolution) -> AIMessage:
    """Put the resolution into an AIMessage, the model's own where there is one; tool calls go out as drafted or not."""
    message = resolution.answer.message or AIMessage("")
    metadata = message.response_metadata | {"semgrad": resolution.decision.model_dump(mode="json")}
    if resolution.as_drafted:
        return message.model_copy(update={"response_metadata": metadata})
    update: dict[str, Any] = {
        "content": resolution.text,
        "tool_calls": [],
        "invalid_tool_calls": [],
        "response_metadata": metadata,
    }
    return message.model_copy(update=update)


def get_confidence(message: BaseMessage) -> float | None:
    """Read the confidence off a guarded message, in [0, 1]; None where there is none."""
    record = message.response_metadata.get("semgrad") or {}
    confidence: float | None = record.get("confidence")
    return confidence
