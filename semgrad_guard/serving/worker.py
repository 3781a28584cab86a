"""The worker: does jobs with a guard, together where they come together. Synchronous, and one at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_messages

from semgrad_guard.errors import ConfigurationError, DataError, PromptTooLongError
from semgrad_guard.langchain.batching import until
from semgrad_guard.langchain.guard import SemGradGuard
from semgrad_guard.langchain.messages import offered, to_template
from semgrad_guard.langchain.metadata import get_decision
from semgrad_guard.langchain.streaming import joined
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.generate import context_length
from semgrad_guard.records import AnswerKind, Decision
from semgrad_guard.routing.attempts import as_routes
from semgrad_guard.routing.ladder import DEFAULT_ABSTENTION, Outcome, Route, Situation
from semgrad_guard.routing.routes import DEFAULT_PENDING, Abstain, HumanReview, Queue
from semgrad_guard.serving.judging import judgement, scored
from semgrad_guard.serving.work import (
    Called,
    ChatAnswer,
    ChatJob,
    Job,
    Limits,
    ModelCard,
    Policy,
    PolicyName,
    Result,
    ScoreJob,
    Usage,
)

logger = logging.getLogger(__name__)

_DEFAULT_TOKENS = 256  # of a response, where neither the job nor the model says
_KINDS: tuple[AnswerKind, ...] = ("answer", "grounded", "tool_call", "argument")


@dataclass(frozen=True)
class Caller:
    """Whoever waits for a job, in this process: `gone` once they do not; `show` gets the draft's text as it comes."""

    gone: Callable[[], bool] = lambda: False
    show: Callable[[str], None] | None = None


class Annotate:
    """Lets the draft out though it is not sure; where there is none, it does not settle."""

    decision: Literal["annotate"] = "annotate"
    below = None

    def attempt(self, situation: Situation) -> Outcome:
        """Settle with the draft as it is."""
        draft = situation.draft
        return Outcome(draft.message is not None, "annotated", draft.text, as_drafted=True)

    async def aattempt(self, situation: Situation) -> Outcome:
        """Settle with the draft as it is."""
        return self.attempt(situation)


class Worker:
    """Answers and scores with one model.

    It is to be called from one thread at a time, and never from an event loop: `run` computes until all is done.
    """

    def __init__(
        self,
        guard: SemGradGuard,
        *,
        name: str,
        first: Sequence[Route] = (),
        reviews: Queue | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Take what it works with.

        Args:
            guard: the model, and the standard of its answers; its routes are not used, each job has a policy.
            name: the id that the model is served by.
            first: routes tried before the policy decides, such as `Retrieve`.
            reviews: where answers wait for a human; None allows no policy "review".
            limits: what a job may take.
        """
        self._limits = limits or Limits()
        if guard.llm.batch_size != self._limits.batch_size:
            llm = type(guard.llm).from_llm(guard.llm, batch_size=self._limits.batch_size)
            guard = guard.model_copy(update={"llm": llm})
        self._guard, self._name, self._first, self._reviews = guard, name, as_routes(first), reviews

    @property
    def card(self) -> ModelCard:
        """The model that is served."""
        standard, profile = self._guard.standard(), self._guard.profile
        judged = [kind for kind in _KINDS if profile is not None and profile.section(kind) is not None]
        thresholds = [standard.threshold(kind) for kind in judged]
        known = [threshold for threshold in thresholds if threshold is not None]
        policies: tuple[PolicyName, ...] = ("abstain", "annotate") + (() if self._reviews is None else ("review",))
        return ModelCard(
            id=self._name,
            scored=self._guard.llm.scored,
            calibrated=profile is not None and profile.calibrated,
            method=standard.method,
            threshold=standard.threshold(),
            least_threshold=max(known) if known and len(known) == len(thresholds) else None,
            context=context_length(self._guard.llm.model),
            policies=policies,
            limits=self._limits,
        )

    def run(self, jobs: Sequence[Job], callers: Sequence[Caller] | None = None) -> list[Result | Exception]:
        """Do jobs, in one generation and one scoring pass as far as their settings allow.

        Gives for each its result, or what it failed with; one that fails does not take others with it.

        Args:
            jobs: any mixture.
            callers: who waits for each; nobody goes away and nobody looks on where they are left out.
        """
        waiting = [Caller()] * len(jobs) if callers is None else list(callers)
        chats = [(place, job) for place, job in enumerate(jobs) if isinstance(job, ChatJob)]
        scores = [(place, job) for place, job in enumerate(jobs) if isinstance(job, ScoreJob)]

        def row(index: int) -> ChatAnswer:
            place, job = chats[index]
            with until(waiting[place].gone):
                return self._answer(job, waiting[place].show)

        results: dict[int, Result | Exception] = {}
        answers = self._guard.llm.together(row, len(chats), return_exceptions=True)
        results |= zip((place for place, _ in chats), answers, strict=True)
        scored_ones = scored(self._guard, [job for _, job in scores], self._limits)
        results |= zip((place for place, _ in scores), scored_ones, strict=True)
        return [results[place] for place in range(len(jobs))]

    def _answer(self, job: ChatJob, show: Callable[[str], None] | None) -> ChatAnswer:
        messages = convert_to_messages(list(job.messages))
        tools = offered(job.tools, job.tool_choice) if job.tools else {}
        settings = tools | self._settings(job, messages, tools.get("tools", ()))
        guard = self._guarded(job.policy)
        if show is None:
            return self._result(guard.invoke(messages, **settings))
        return self._result(_streamed(guard.stream(messages, **settings), show))

    def _guarded(self, policy: Policy) -> SemGradGuard:
        """Give the guard that answers under a policy.

        Raises:
            ConfigurationError: the policy cannot be followed here.
        """
        if policy.threshold is not None and self._guard.profile is None:
            raise ConfigurationError("A threshold is on confidence, and this model is served without a profile.")
        if policy.name == "review" and self._reviews is None:
            raise ConfigurationError("The policy 'review' needs a queue, and the service was started without one.")
        routes: list[Route] = [*self._first, Abstain(policy.message or DEFAULT_ABSTENTION)]
        if not self._guard.llm.scored:
            routes = [Annotate()]
        elif policy.name == "annotate":
            routes = [*self._first, Annotate()]
        elif policy.name == "review":
            review = HumanReview(queue=self._reviews, pending_message=policy.message or DEFAULT_PENDING)
            routes = [*self._first, review, Abstain()]
        threshold = self._guard.threshold if policy.threshold is None else policy.threshold
        return self._guard.model_copy(update={"routes": routes, "stream_drafts": True, "threshold": threshold})

    def _settings(
        self, job: ChatJob, messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """Give the settings of the generation.

        Raises:
            PromptTooLongError: the prompt is longer than is allowed, or leaves no room for the answer.
        """
        wanted = job.sampling
        turns = to_template(self._guard.with_prompt(messages))
        prompt = len(encode_chat(self._guard.llm.tokenizer, turns, tools=tools))
        settings: dict[str, Any] = {"max_new_tokens": self._most(prompt, wanted.max_tokens)}
        if wanted.stop:
            settings["stop"] = list(wanted.stop)
        if wanted.temperature is not None or wanted.top_p is not None:
            heat = 1.0 if wanted.temperature is None else wanted.temperature
            whole = 1.0 if wanted.top_p is None else wanted.top_p
            # A share of 0 leaves the likeliest token alone.
            settings |= {"temperature": heat, "top_p": whole, "top_k": 0} if whole else {"temperature": 0.0}
        if wanted.seed is not None:
            settings["seed"] = wanted.seed
        if wanted.logprobs:
            settings |= {"logprobs": True, "top_logprobs": wanted.top_logprobs}
        return settings

    def _most(self, prompt: int, wanted: int | None) -> int:
        """Give the most tokens of a response."""
        limits, context = self._limits, context_length(self._guard.llm.model)
        if prompt > limits.prompt_tokens:
            raise PromptTooLongError(f"The prompt has {prompt} tokens; at most {limits.prompt_tokens} are allowed.")
        if wanted is not None and wanted > limits.response_tokens:
            raise ConfigurationError(f"max_tokens={wanted}: at most {limits.response_tokens} are allowed.")
        llm = self._guard.llm
        usual = (
            llm.generation_settings.get("max_new_tokens")
            or llm.model.generation_config.max_new_tokens
            or _DEFAULT_TOKENS
        )
        most = min(usual, limits.response_tokens) if wanted is None else wanted
        if wanted is None and context is not None:
            most = max(1, min(most, context - prompt))
        if context is not None and prompt + most > context:
            raise PromptTooLongError(
                f"The prompt has {prompt} tokens and up to {most} are to be generated; the model's context holds "
                f"{context}."
            )
        return most

    def _result(self, message: AIMessage) -> ChatAnswer:
        metadata, usage = message.response_metadata, message.usage_metadata
        logprobs = metadata.get("logprobs")
        calls = tuple(
            Called(id=str(call["id"]), name=call["name"], arguments=json.dumps(call["args"]))
            for call in message.tool_calls
        )
        return ChatAnswer(
            text=str(message.content),
            judgement=judgement(_decision(message), with_calls=bool(calls)),
            finish_reason="tool_calls" if calls else metadata.get("finish_reason", "stop"),
            reasoning=str(message.additional_kwargs.get("reasoning_content", "")),
            tool_calls=calls,
            logprobs=None if logprobs is None else tuple(logprobs["content"]),
            usage=Usage()
            if usage is None
            else Usage(
                prompt=usage["input_tokens"],
                completion=usage["output_tokens"],
                reasoning=usage.get("output_token_details", {}).get("reasoning", 0),
            ),
        )


def _decision(message: AIMessage) -> Decision:
    decision = get_decision(message)
    if decision is None:  # a guard gives none without; for the type checker
        raise DataError("The guard's message carries no decision.")
    return decision


def _streamed(chunks: Iterator[BaseMessage], show: Callable[[str], None]) -> AIMessage:
    """Show the text of all chunks but the last as they come, and join them."""
    pieces: list[AIMessageChunk] = []
    for chunk in chunks:
        if isinstance(chunk, AIMessageChunk):  # a stream has nothing else; for the type checker
            pieces.append(chunk)
            if chunk.chunk_position != "last" and chunk.content:
                show(str(chunk.content))
    return joined(pieces)
