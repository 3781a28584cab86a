"""`SemGradGuard`: a Runnable that answers when the model is sure, and does something better when it is not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from semgrad_guard.calibration.drift import RawWatch, Watch
from semgrad_guard.calibration.examples import Example, examples_of
from semgrad_guard.calibration.labels import Labeler
from semgrad_guard.calibration.methods import Method
from semgrad_guard.calibration.profile import Profile, agreed_prompt
from semgrad_guard.calibration.prompts import PromptForm
from semgrad_guard.calibration.verdict import Standard, checked_raw
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.langchain.answering import (
    Asking,
    Manner,
    Passages,
    aanswer,
    answer,
    asettle,
    chat_model_for,
    last_of_stream,
    profile_of,
    settle,
)
from semgrad_guard.langchain.chat_model import ChatSemGrad
from semgrad_guard.langchain.messages import (
    asked_with,
    labelled_example,
    last_question,
    offered,
    prompt_form,
)
from semgrad_guard.langchain.routes import Retrieve, retry_with
from semgrad_guard.langchain.source import NAMES, with_tokenizer
from semgrad_guard.records import checked_confidence
from semgrad_guard.routing.attempts import as_routes
from semgrad_guard.routing.ladder import Answer
from semgrad_guard.routing.routes import Abstain
from semgrad_guard.settings import checked, renamed, shown, unknown_name, warn_of_old

_ABSTAIN = (Abstain(),)


class SemGradGuard(RunnableSerializable[LanguageModelInput, AIMessage]):
    """Answers pass when the model is sure; otherwise routes are tried in order until one settles.

    Takes a text, a message, messages or a prompt value; gives an `AIMessage`. `get_decision(message)` reads what was
    decided and why, `get_confidence` and `get_scores` what that rests on. Streaming yields one message, after the
    decision, since a token that was shown cannot be taken back. Callbacks see child runs "generate", "score" and
    "route", without the texts of drafts, and the custom event "semgrad.decision".
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, strict=True, extra="forbid")

    llm: ChatSemGrad
    profile: Profile | None = None
    threshold: float | None = None
    score_threshold: float | None = None
    method: str | None = None
    watch: Watch | None = None
    routes: list[Any] = Field(default_factory=lambda: [Abstain()])
    passages: Passages = "optional"
    stream_drafts: bool = False
    record_drafts: bool = False
    prompt: PromptForm | None = None
    raw_watch: RawWatch | None = Field(default=None, exclude=True, repr=False)
    _standard: Standard | None = PrivateAttr(None)

    @field_validator("threshold", mode="before")
    @classmethod
    def _is_a_confidence(cls, threshold: Any) -> float | None:
        return checked_confidence("threshold", threshold)

    @field_validator("score_threshold", mode="before")
    @classmethod
    def _is_a_raw_score(cls, threshold: Any) -> float | None:
        return checked_raw(threshold)

    def __init__(
        self,
        llm: Any,
        tokenizer: Any = None,
        *,
        profile: Profile | str | Path | bytes | dict[str, Any] | None = None,
        threshold: float | None = None,
        score_threshold: float | None = None,
        method: str | None = None,
        routes: Any = _ABSTAIN,
        watch: bool | float | Watch | None = None,
        passages: Passages = "optional",
        stream_drafts: bool = False,
        record_drafts: bool = False,
        prompt: Any = None,
        raw_watch: RawWatch | None = None,
        name: str | None = None,
        **unknown: Any,
    ) -> None:
        """Set the model, the standard its answers must reach, and what happens to those that do not.

        Args:
            llm: a model id, a folder, a GGUF file, a `(model, tokenizer)` pair, a text-generation pipeline, a
                `HuggingFacePipeline`, a `ChatHuggingFace`, or a `ChatSemGrad`.
            tokenizer: the tokenizer, where `llm` is a model alone.
            profile: turns scores into confidence: a `Profile`, the path of its JSON, the JSON itself, or a dict of it.
            threshold: least confidence that passes, in [0, 1]; None for the profile's.
            score_threshold: without a profile, the largest raw score of `method` that passes, >= 0; for experts: raw
                scores differ from model to model, and the guard warns if its first answers all lie far on one side.
            method: the raw score that `score_threshold` is on; None for "semgrad".
            routes: what is tried in order where an answer does not pass; one route alone is a list of one.
            watch: look for drift with every first answer, over all copies of the guard, and log a warning of it; a
                number is the largest probability of ever a false alarm, True stands for 0.01; None: never.
            passages: "optional": a route may retrieve them; "in_prompt": they come with the question, so that first
                answers are judged as grounded; "required": a route must retrieve them before the model is asked at all.
            stream_drafts: stream first answers as they come, unjudged, and the decision at the end; else a stream gives
                one message, after the decision.
            record_drafts: let callbacks and traces, other than those that stream to the consumer, see drafts.
            prompt: put around the question: a prompt template, messages, or a text with `{query}`; None: nothing, also
                with a profile that was calibrated with a prompt, since the chain asks with that.
            raw_watch: counts the first answers of copies of a guard together; None for a count of its own.
            name: of the guard's runs.
            unknown: refused by name.

        Raises:
            ConfigurationError: a setting is unknown or has a wrong type or value; no threshold, or one of each kind; a
                `below`, or a `watch`, without a profile; another prompt than the profile was calibrated with.
            ProfileError: the profile is malformed, or belongs to another model.
            UnsupportedModelError: the model cannot be scored.
        """
        settings: dict[str, Any] = {"passages": passages, "stream_drafts": stream_drafts} | _renamed(unknown)
        for setting in unknown:
            raise ConfigurationError(_unknown(setting))
        loaded, form = profile_of(profile), prompt_form(prompt)
        agreed_prompt(loaded, form)
        if not (watch is None or isinstance(watch, Watch | bool | float | int)):
            raise ConfigurationError(
                f"SemGradGuard(watch={shown(watch)}): expected True, the probability of a false alarm, or None."
            )
        if isinstance(llm, SemGradGuard):
            raise ConfigurationError("SemGradGuard(guard): a guard cannot guard another; pass the model, guard.llm.")
        settings |= {
            "llm": chat_model_for(with_tokenizer(llm, tokenizer), loaded),
            "profile": loaded,
            "threshold": threshold,
            "score_threshold": score_threshold,
            "method": method,
            "routes": as_routes(routes),
            "watch": Watch.of(watch, loaded),
            "record_drafts": record_drafts,
            "prompt": form,
            "raw_watch": RawWatch() if raw_watch is None and loaded is None else raw_watch,
            "name": name,
        }
        with checked(SemGradGuard):
            super().__init__(**settings)
        self.standard()
        for route in self.routes:
            if loaded is None and (below := getattr(route, "below", None)) is not None:
                raise ConfigurationError(
                    f"{type(route).__name__}(below={below}): below is on confidence, which needs a profile."
                )

    def standard(self) -> Standard:
        """The standard in force; built anew where a setting has changed, as in a copy with another threshold."""
        settings = (self.profile, self.threshold, self.score_threshold, self.method)
        if self._standard is None or self._standard.settings != settings:
            self._standard = Standard(*settings)
        return self._standard

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Answer, or settle otherwise; `kwargs` are generation settings."""
        return self._call_with_config(self._guard, input, config, **kwargs)

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Async twin of `invoke`."""
        return await self._acall_with_config(self._aguard, input, config, **kwargs)

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessage]:
        """Yield one message, after the decision; or the first answer piece by piece, and then the decision.

        In the second case what was shown stays shown. Where another text stands in its place, the last chunk has it.
        """
        if not self.stream_drafts:
            yield from super().stream(input, config, **kwargs)
        else:
            yield from self._transform_stream_with_config(iter([input]), self._stream_guard, config, **kwargs)

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessage]:
        """Async twin of `stream`."""
        if not self.stream_drafts:
            async for message in super().astream(input, config, **kwargs):
                yield message
            return

        async def once() -> AsyncIterator[LanguageModelInput]:
            yield input

        async for chunk in self._atransform_stream_with_config(once(), self._astream_guard, config, **kwargs):
            yield chunk

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer inputs; what they ask the model, they ask it together, as rows of a batch of `ChatSemGrad`."""
        if len(inputs) < 2:
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return self.llm.map_together(self.invoke, inputs, config, return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Async twin of `batch`."""
        if len(inputs) < 2:
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return await self.llm.amap_together(self.ainvoke, inputs, config, return_exceptions, **kwargs)

    def calibrated(
        self,
        examples: Sequence[Example | dict[str, Any]],
        *,
        risk: float = 0.05,
        delta: float = 0.05,
        labels: str | Labeler = "match",
        method: Method = "auto",
        search: bool = True,
        retried: bool = False,
        prompt: Any = None,
        journal: str | Path | None = None,
        seed: int = 0,
    ) -> SemGradGuard:
        """Let the model answer labelled questions, and give a guard whose threshold keeps a promise.

        Args:
            examples: questions with their right answers, as `Example` or as a line of a data file; `messages` in them
                are the conversations that the chain would send.
            risk: largest share of wrong answers among those that pass.
            delta: probability that the promise does not hold.
            labels: how an answer is compared with the right ones: a name that `labeler` knows, or a function such as
                an `LLMJudge`; where that fails now and then, the answer has no label.
            method: the score that confidence is made from; "auto" takes the best out of fold.
            search: also try other prompt tokens and ways to compute SemGrad, and take what tells most.
            retried: also calibrate the answers of the guard's `Retrieve` route, on questions whose first answers do
                not pass. One half of the questions serves first answers then, the other second ones.
            prompt: how the chain puts a question to the guard: a prompt template with one variable, messages, or a text
                with `{query}`. The profile remembers it; the guard goes on to ask what it is given.
            journal: a file that remembers answers, so that another run, with other labels or another method too, does
                not ask again. It is left there.
            seed: of the split into questions to fit on and to test on.

        Raises:
            DataError: there are too few labels, all are alike, or labelling keeps failing.
            ConfigurationError: `retried`, but the guard does not retrieve; or a prompt beside one of the guard's own,
                or beside messages.
        """
        route = next((route for route in self.routes if isinstance(route, Retrieve)), None) if retried else None
        if retried and route is None:
            raise ConfigurationError("retried=True, but the guard has no Retrieve route to ask again with.")
        if self.prompt is not None and prompt is not None:
            raise ConfigurationError("The guard puts a prompt of its own around questions. Leave prompt=... out.")
        profile = Profile.fit(
            self.llm,
            examples_of(examples, read=labelled_example),
            risk=risk,
            delta=delta,
            labels=labels,
            method=method,
            search=search,
            prompt=self.prompt or prompt_form(prompt),
            journal=journal,
            retry=None if route is None else partial(retry_with, route),
            seed=seed,
        )
        return SemGradGuard(
            self.llm,
            profile=profile,
            routes=self.routes,
            watch=self.watch,
            passages=self.passages,
            stream_drafts=self.stream_drafts,
            record_drafts=self.record_drafts,
            prompt=self.prompt,
        )

    def calibrate(self, examples: Sequence[Example | dict[str, Any]], **settings: Any) -> SemGradGuard:
        """Give a calibrated guard: the old name of `calibrated`."""
        warn_of_old("SemGradGuard.calibrate", "SemGradGuard.calibrated")
        return self.calibrated(examples, **settings)

    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **settings: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model, as `ChatSemGrad.bind_tools` does; a call goes out when it is sure."""
        return self.bind(**offered(tools, tool_choice), **settings)

    def with_prompt(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Give the messages that the model is asked with: the guard's prompt, if it has one, around the question."""
        return list(messages) if self.prompt is None else asked_with(self.prompt, messages, *last_question(messages))

    def _manner(self, settings: dict[str, Any]) -> Manner:
        self.llm.check_settings(settings)  # else a route that asks again would break over them, and just not settle
        llm, standard = self.llm, self.standard()
        return Manner(llm, standard, self.watch, self.raw_watch, self.passages, self.record_drafts, self.prompt)

    def _guard(self, question: LanguageModelInput, **settings: Any) -> AIMessage:
        return answer(self._manner(settings), question, settings, self.routes)

    async def _aguard(self, question: LanguageModelInput, **settings: Any) -> AIMessage:
        return await aanswer(self._manner(settings), question, settings, self.routes)

    def _stream_guard(self, questions: Iterator[LanguageModelInput], **settings: Any) -> Iterator[AIMessage]:
        asking, shown = Asking(self._manner(settings), next(questions), settings), ""
        for part in asking.streamed():
            if isinstance(part, Answer):
                yield last_of_stream(settle(asking, part, self.routes), shown)
            elif part:
                shown += part
                yield AIMessageChunk(content=part)

    async def _astream_guard(
        self, questions: AsyncIterator[LanguageModelInput], **settings: Any
    ) -> AsyncIterator[AIMessage]:
        asking, shown = Asking(self._manner(settings), await anext(questions), settings), ""
        async for part in asking.astreamed():
            if isinstance(part, Answer):
                yield last_of_stream(await asettle(asking, part, self.routes), shown)
            elif part:
                shown += part
                yield AIMessageChunk(content=part)


# What settings with old names say.
_PASSAGES = {"none": "optional", "given": "in_prompt", "retrieved": "required"}
_STREAMING = {"buffered": False, "verdict": True}


def _renamed(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the settings with old names out, warn of each, and give them under their new names."""
    new = renamed(settings, "SemGradGuard", level=5, context="passages", streaming="stream_drafts")
    values: dict[str, dict[str, Any]] = {"passages": _PASSAGES, "stream_drafts": _STREAMING}
    return {name: values[name].get(value, value) if isinstance(value, str) else value for name, value in new.items()}


def _unknown(name: str) -> str:
    """Say of an unknown setting what was probably meant."""
    if name in NAMES and name not in SemGradGuard.model_fields:
        instead = f"SemGradGuard(ChatSemGrad.from_llm(llm, {name}=...))"
        return f"SemGradGuard has no setting {name!r}, which the model has: {instead}."
    return unknown_name("SemGradGuard", name, [name for name in SemGradGuard.model_fields if name != "name"])
