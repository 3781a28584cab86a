"""Calls of the model: single ones, and several that share a generation and a scoring pass."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from threading import Lock, Thread, Timer
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
    `streamer` hears the tokens as they come. Once `gone` gives True, the answer has no reader any more; by default
    it is what `until` has set.
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
        """Tell whether the answer has no reader any more."""
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
    """Give the settings of a generation for requests of one kind, with those of each row."""
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
    """Ends the rows whose answers have no reader any more."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        beams = len(input_ids) // len(self._requests)  # several beams of a row lie together
        ended = [request.abandoned for request in self._requests for _ in range(beams)]
        return torch.tensor(ended, device=input_ids.device)


class _Streamers(BaseStreamer):
    """Gives each row of a batch its own streamer."""

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


LONGEST_WAIT = 5.0  # seconds that a second answer waits for rows that are busy otherwise


class Batcher:
    """Answers together what the rows of a batch ask.

    A row is busy from the start, and again when it has its answer, until it leaves. When no row is busy, the requests
    that wait are answered together. From the second round on they wait for `LONGEST_WAIT` at most: a row may be busy
    for long by then, with a retriever or a human.
    """

    def __init__(self, owner: object, rows: int, answers: Answers) -> None:
        """Expect so many rows of a chat model's batch."""
        self.owner = owner
        self._answers = answers
        self._busy = rows
        self._waiting: list[tuple[Request, Future[AIMessage]]] = []
        self._first = True
        self._timer: Timer | None = None
        self._lock = Lock()

    @contextmanager
    def row(self) -> Iterator[None]:
        """Take part as a row, in a context of its own."""
        _BATCHER.set(self)
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                self._begin()

    def join(self, request: Request) -> Future[AIMessage]:
        """Put a request to the others; its answer comes with theirs."""
        future: Future[AIMessage] = Future()
        with self._lock:
            self._waiting.append((request, future))
            self._busy -= 1
            self._begin()
        return future

    def _begin(self, *, overdue: bool = False) -> None:
        """Answer what waits, if no row is busy or the wait is over; the lock is held."""
        if self._waiting and (self._busy <= 0 or overdue):
            batch, self._waiting = self._waiting, []
            self._busy += len(batch)
            self._first = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            Thread(target=self._answer, args=(batch,)).start()  # not the row's own: a task must not be held up
        elif self._waiting and not self._first and self._timer is None:
            self._timer = Timer(LONGEST_WAIT, self._end_wait)
            self._timer.daemon = True
            self._timer.start()

    def _end_wait(self) -> None:
        with self._lock:
            self._timer = None
            self._begin(overdue=True)

    def _answer(self, batch: Sequence[tuple[Request, Future[AIMessage]]]) -> None:
        wanted = [(request, future) for request, future in batch if future.set_running_or_notify_cancel()]
        answers: Sequence[AIMessage | BaseException]
        try:
            answers = self._answers([request for request, _ in wanted])
        except BaseException as error:  # no row may wait for ever
            answers = [error] * len(wanted)
        for (_, future), answer in zip(wanted, answers, strict=True):
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)


_BATCHER: ContextVar[Batcher | None] = ContextVar("semgrad_guard_batcher", default=None)


class BatchedChatModel(BaseChatModel):
    """A chat model whose batches are batches of the model itself: `batch`, `abatch`, `generate` and `agenerate`."""

    batch_size: int = Field(default=16, ge=1)

    @abstractmethod
    def _request(self, messages: list[BaseMessage], stop: list[str] | None, of_call: dict[str, Any]) -> Request:
        """Make a request of a call."""

    @abstractmethod
    def _answers(self, requests: Sequence[Request], settings: dict[str, Any]) -> list[AIMessage | BaseException]:
        """Answer requests of one kind in one batch; an abandoned one gets an `AbandonedError`.

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
        return self.map_together(self.invoke, inputs, config, return_exceptions, **kwargs)

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
        return await self.amap_together(self.ainvoke, inputs, config, return_exceptions, **kwargs)

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer conversations together; the other arguments are LangChain's."""
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
        request, batcher = self._request(messages, stop, kwargs), self._batcher()
        message: AIMessage | BaseException
        if batcher is None:
            (message,) = self._answers([request], joint_settings([request]))
        else:
            message = batcher.join(request).result()
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
        batcher = self._batcher()
        if batcher is None:
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        request = await run_in_executor(None, self._request, messages, stop, kwargs)
        message = await asyncio.wrap_future(batcher.join(request))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _batcher(self) -> Batcher | None:
        batcher = _BATCHER.get()  # a row may ask another model meanwhile, in a callback
        return batcher if batcher is not None and batcher.owner is self else None

    def _isolated(self, requests: Sequence[Request]) -> list[AIMessage | BaseException]:
        """Answer requests that belong together in one batch; where that fails, each by itself."""
        results: dict[int, AIMessage | BaseException] = {}
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(request.kind, []).append(index)
        for indices in groups.values():
            try:
                group = [requests[index] for index in indices]
                results |= zip(indices, self._answers(group, joint_settings(group)), strict=True)
            except Exception as error:
                alone = [error] if len(indices) == 1 else [self._again(requests[index]) for index in indices]
                results |= zip(indices, alone, strict=True)
        return [results[index] for index in range(len(requests))]

    def _again(self, request: Request) -> AIMessage | BaseException:
        return self._isolated([replace(request, streamer=None)])[0]  # else the stream would show it twice

    def _start(self, request: Request) -> Future[AIMessage]:
        """Begin to answer in another thread, with the other rows of a batch where there are any."""
        batcher = self._batcher() or Batcher(self, 1, self._isolated)
        return batcher.join(request)

    def map_together(
        self,
        call: Callable[..., T],
        inputs: Sequence[Any],
        config: RunnableConfig | list[RunnableConfig] | None,
        return_exceptions: bool,
        **kwargs: Any,
    ) -> list[T]:
        """Call with every input and its configuration, as `together` does; `call` is an `invoke` over this model."""
        configs = get_config_list(config, len(inputs))

        def row(index: int) -> T:
            return call(inputs[index], configs[index], **kwargs)

        return self.together(row, len(inputs), configs[0].get("max_concurrency"), return_exceptions)

    async def amap_together(
        self,
        call: Callable[..., Awaitable[T]],
        inputs: Sequence[Any],
        config: RunnableConfig | list[RunnableConfig] | None,
        return_exceptions: bool,
        **kwargs: Any,
    ) -> list[T]:
        """Async twin of `map_together`."""
        configs = get_config_list(config, len(inputs))

        async def row(index: int) -> T:
            return await call(inputs[index], configs[index], **kwargs)

        return await self.atogether(row, len(inputs), configs[0].get("max_concurrency"), return_exceptions)

    def together(
        self, row: Callable[[int], T], rows: int, most: int | None = None, return_exceptions: bool = False
    ) -> list[T]:
        """Call `row` with every index, each in its own thread; the model answers the rows together.

        `batch_size` rows at a time, or `most` if that is fewer.
        """
        done: list[T] = []
        for batch in self._batches(rows, most):
            batcher = Batcher(self, len(batch), self._isolated)

            def taking_part(index: int, batcher: Batcher = batcher) -> T:
                with batcher.row():
                    return row(index)

            with ContextThreadPoolExecutor(max_workers=len(batch)) as pool:
                futures = [pool.submit(taking_part, index) for index in batch]
            done += _returned([future.exception() or future.result() for future in futures], return_exceptions)
        return done

    async def atogether(
        self, row: Callable[[int], Awaitable[T]], rows: int, most: int | None = None, return_exceptions: bool = False
    ) -> list[T]:
        """Async twin of `together`."""
        done: list[T] = []
        for batch in self._batches(rows, most):
            batcher = Batcher(self, len(batch), self._isolated)

            async def taking_part(index: int, batcher: Batcher = batcher) -> T:
                with batcher.row():
                    return await row(index)

            results = await asyncio.gather(*map(taking_part, batch), return_exceptions=True)
            done += _returned(results, return_exceptions)
        return done

    def _batches(self, rows: int, most: int | None) -> list[range]:
        size = min(self.batch_size, most or self.batch_size)
        return [range(start, min(start + size, rows)) for start in range(0, rows, size)]

    def _joined(self, results: Sequence[LLMResult]) -> LLMResult:
        return LLMResult(
            generations=[generation for result in results for generation in result.generations],
            llm_output=self._combine_llm_outputs([result.llm_output for result in results]),
            run=[info for result in results for info in result.run or ()] or None,
        )


def _returned(results: Sequence[Any], return_exceptions: bool) -> list[Any]:
    """Raise the first failure, unless exceptions are to be given back like answers."""
    for outcome in results:
        if isinstance(outcome, BaseException) and not (return_exceptions and isinstance(outcome, Exception)):
            raise outcome
    return list(results)
