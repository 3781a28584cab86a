"""Calls of the model: one as it is asked for, and several made as one batch."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from threading import Lock, Thread
from typing import Any, TypeVar

import torch
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ContextThreadPoolExecutor, get_config_list, run_in_executor
from pydantic import Field
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from semgrad_guard.model.forcing import RowByRow

Gone = Callable[[], bool]
_GONE: ContextVar[Gone | None] = ContextVar("semgrad_guard_gone", default=None)


@dataclass(frozen=True)
class Request:
    """Prompt ids, texts to stop before, schemas of the tools on offer, and settings of the generation.

    The rest belongs to the row, and may differ within a batch: `forced` writes a tool call for the model, and
    `streamer` hears the tokens as they come. Once `gone` gives True, nobody waits for the answer any more; it is what
    `until` has set where the request is made.
    """

    prompt: list[int]
    stop: tuple[str, ...]
    tools: list[dict[str, Any]]
    settings: dict[str, Any]
    forced: LogitsProcessor | None = None
    streamer: BaseStreamer | None = None
    gone: Gone | None = field(default_factory=_GONE.get)

    @property
    def kind(self) -> str:
        """What requests of one batch agree in."""
        seeded = self.settings.get("seed") is not None  # beside others it would draw other tokens
        return repr((self.stop, self.tools, self.settings, id(self) if seeded else None))

    @property
    def abandoned(self) -> bool:
        """Tell whether nobody waits for the answer any more."""
        return self.gone is not None and self.gone()


@contextmanager
def until(gone: Gone) -> Iterator[None]:
    """Within it, what this thread or task asks a `ChatSemGrad` ends at its next token once `gone` gives True.

    What ends so raises an `AbandonedError`, and is neither scored nor cached.
    """
    token = _GONE.set(gone)
    try:
        yield
    finally:
        _GONE.reset(token)


def joint_settings(requests: Sequence[Request]) -> dict[str, Any]:
    """Give the settings of a generation for requests of one kind, each with what belongs to its own row."""
    settings = dict(requests[0].settings)
    if any(request.forced is not None for request in requests):
        forced = RowByRow([request.forced for request in requests], [len(request.prompt) for request in requests])
        settings["logits_processor"] = LogitsProcessorList([*settings.get("logits_processor", ()), forced])
    if any(request.gone is not None for request in requests):
        settings["stopping_criteria"] = StoppingCriteriaList(
            [*settings.get("stopping_criteria", ()), _Abandoned(requests)]
        )
    if any(request.streamer is not None for request in requests):
        settings["streamer"] = _Streamers([request.streamer for request in requests])
    return settings


class _Abandoned(StoppingCriteria):
    """Ends the rows that nobody waits for any more."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        beams = len(input_ids) // len(self._requests)  # several beams of a row lie together
        ended = [request.abandoned for request in self._requests for _ in range(beams)]
        return torch.tensor(ended, device=input_ids.device)


class _Streamers(BaseStreamer):
    """Lets each row of a batch be heard by a streamer of its own."""

    def __init__(self, streamers: Sequence[BaseStreamer | None]) -> None:
        self._streamers = streamers
        self._reading = True  # what is put first is the prompt

    def put(self, value: torch.Tensor) -> None:
        for row, streamer in enumerate(self._streamers):
            if streamer is not None and not self._reading:
                streamer.put(value[row : row + 1])
        self._reading = False

    def end(self) -> None:
        for streamer in self._streamers:
            if streamer is not None:
                streamer.end()


T = TypeVar("T")
Answers = Callable[[Sequence[Request]], list[AIMessage | BaseException]]


class Meeting:
    """Where the rows of a batch wait for each other.

    A row is on its way from the start, and again when it has its answer, until it leaves. Whenever none is on its way,
    those that wait are answered together.
    """

    def __init__(self, owner: object, rows: int, answers: Answers) -> None:
        """Expect so many rows of a chat model's batch."""
        self.owner = owner
        self._answers = answers
        self._on_their_way = rows
        self._waiting: list[tuple[Request, Future[AIMessage]]] = []
        self._lock = Lock()

    @contextmanager
    def row(self) -> Iterator[None]:
        """Take part, in a context of one's own."""
        _MEETING.set(self)
        try:
            yield
        finally:
            with self._lock:
                self._on_their_way -= 1
                self._begin_if_complete()

    def join(self, request: Request) -> Future[AIMessage]:
        """Ask for an answer; it comes when every other row has asked, or left."""
        future: Future[AIMessage] = Future()
        with self._lock:
            self._waiting.append((request, future))
            self._on_their_way -= 1
            self._begin_if_complete()
        return future

    def _begin_if_complete(self) -> None:
        if self._on_their_way <= 0 and self._waiting:
            together, self._waiting = self._waiting, []
            self._on_their_way += len(together)
            Thread(target=self._answer, args=(together,)).start()  # not the row's own: a task must not be held up

    def _answer(self, together: Sequence[tuple[Request, Future[AIMessage]]]) -> None:
        wanted = [(request, future) for request, future in together if future.set_running_or_notify_cancel()]
        answers: Sequence[AIMessage | BaseException]
        try:
            answers = self._answers([request for request, _ in wanted])
        except BaseException as error:  # whatever happens, nobody waits for ever
            answers = [error] * len(wanted)
        for (_, future), answer in zip(wanted, answers, strict=True):
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)


_MEETING: ContextVar[Meeting | None] = ContextVar("semgrad_guard_meeting", default=None)


class BatchedChatModel(BaseChatModel):
    """A chat model whose batches are batches of the model itself: `batch`, `abatch`, `generate` and `agenerate`."""

    batch_size: int = Field(default=16, ge=1)

    @abstractmethod
    def _request(self, messages: list[BaseMessage], stop: list[str] | None, given: dict[str, Any]) -> Request:
        """Make a request of what a call was given."""

    @abstractmethod
    def _answers(self, requests: Sequence[Request], settings: dict[str, Any]) -> list[AIMessage | BaseException]:
        """Answer requests of one kind in one batch; of those that nobody waits for any more, say so.

        `settings` are those of the generation for all of them together.
        """

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer inputs together, `batch_size` or the configuration's `max_concurrency` at a time.

        Each has its own configuration and run. One that fails does not take the others of its batch with it; without
        `return_exceptions` the first failure is raised when they have ended, and no further batch is begun.
        """
        if len(inputs) < 2:
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        configs = get_config_list(config, len(inputs))

        def row(index: int) -> AIMessage:
            return self.invoke(inputs[index], configs[index], **kwargs)

        return self.together(row, len(inputs), configs[0].get("max_concurrency"), return_exceptions)

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
        configs = get_config_list(config, len(inputs))

        async def row(index: int) -> AIMessage:
            return await self.ainvoke(inputs[index], configs[index], **kwargs)

        return await self.atogether(row, len(inputs), configs[0].get("max_concurrency"), return_exceptions)

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer conversations together; what is given beside them is LangChain's."""
        one, first = super().generate, kwargs.pop("run_id", None)
        if len(messages) < 2:
            return one(messages, stop, callbacks, run_id=first, **kwargs)

        def row(index: int) -> LLMResult:
            return one([messages[index]], stop, callbacks, run_id=None if index else first, **kwargs)

        return self._joined(self.together(row, len(messages)))

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Async twin of `generate`."""
        one, first = super().agenerate, kwargs.pop("run_id", None)
        if len(messages) < 2:
            return await one(messages, stop, callbacks, run_id=first, **kwargs)

        async def row(index: int) -> LLMResult:
            return await one([messages[index]], stop, callbacks, run_id=None if index else first, **kwargs)

        return self._joined(await self.atogether(row, len(messages)))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request, meeting = self._request(messages, stop, kwargs), self._meeting()
        message: AIMessage | BaseException
        if meeting is None:
            (message,) = self._answers([request], joint_settings([request]))
        else:
            message = meeting.join(request).result()
        if isinstance(message, BaseException):
            raise message
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        meeting = self._meeting()
        if meeting is None:
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        request = await run_in_executor(None, self._request, messages, stop, kwargs)
        message = await asyncio.wrap_future(meeting.join(request))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _meeting(self) -> Meeting | None:
        meeting = _MEETING.get()  # a row may ask another model on its way, in a callback
        return meeting if meeting is not None and meeting.owner is self else None

    def _isolated(self, requests: Sequence[Request]) -> list[AIMessage | BaseException]:
        """Answer requests that belong together in one batch; where that fails, each by itself."""
        found: dict[int, AIMessage | BaseException] = {}
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(request.kind, []).append(index)
        for indices in groups.values():
            try:
                group = [requests[index] for index in indices]
                found |= zip(indices, self._answers(group, joint_settings(group)), strict=True)
            except Exception as error:
                alone = [error] if len(indices) == 1 else [self._again(requests[index]) for index in indices]
                found |= zip(indices, alone, strict=True)
        return [found[index] for index in range(len(requests))]

    def _again(self, request: Request) -> AIMessage | BaseException:
        return self._isolated([replace(request, streamer=None)])[0]  # what was heard of it would be heard twice

    def _begun(self, request: Request) -> Future[AIMessage]:
        """Begin to answer in another thread, with the other rows of a batch where there are any."""
        meeting = self._meeting() or Meeting(self, 1, self._isolated)
        return meeting.join(request)

    def together(
        self, row: Callable[[int], T], rows: int, most: int | None = None, return_exceptions: bool = False
    ) -> list[T]:
        """Call `row` with every index in a thread of its own; what the rows ask this model, they ask it together.

        `batch_size` rows at a time, or `most` if that is fewer. Whatever a row does beside asking, the others wait for.
        """
        done: list[T] = []
        for batch in self._batches(rows, most):
            meeting = Meeting(self, len(batch), self._isolated)

            def taking_part(index: int, meeting: Meeting = meeting) -> T:
                with meeting.row():
                    return row(index)

            with ContextThreadPoolExecutor(max_workers=len(batch)) as pool:
                futures = [pool.submit(taking_part, index) for index in batch]
            done += _settled([future.exception() or future.result() for future in futures], return_exceptions)
        return done

    async def atogether(
        self, row: Callable[[int], Awaitable[T]], rows: int, most: int | None = None, return_exceptions: bool = False
    ) -> list[T]:
        """Async twin of `together`."""
        done: list[T] = []
        for batch in self._batches(rows, most):
            meeting = Meeting(self, len(batch), self._isolated)

            async def taking_part(index: int, meeting: Meeting = meeting) -> T:
                with meeting.row():
                    return await row(index)

            found = await asyncio.gather(*map(taking_part, batch), return_exceptions=True)
            done += _settled(found, return_exceptions)
        return done

    def _batches(self, rows: int, most: int | None) -> list[range]:
        size = min(self.batch_size, most or self.batch_size)
        return [range(start, min(start + size, rows)) for start in range(0, rows, size)]

    def _joined(self, results: Sequence[LLMResult]) -> LLMResult:
        return LLMResult(
            generations=[own for result in results for own in result.generations],
            llm_output=self._combine_llm_outputs([result.llm_output for result in results]),
            run=[info for result in results for info in result.run or ()] or None,
        )


def _settled(found: Sequence[Any], return_exceptions: bool) -> list[Any]:
    """Raise the first failure, unless exceptions are to be given back like answers."""
    for outcome in found:
        if isinstance(outcome, BaseException) and not (return_exceptions and isinstance(outcome, Exception)):
            raise outcome
    return list(found)
