"""The engine of one process: a bounded queue, and a thread of its own in which a worker does what waits together."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Protocol

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.serving.work import BusyError, ChatAnswer, ChatJob, Job, ModelCard, Result, StoppingError
from semgrad_guard.serving.worker import Caller
from semgrad_guard.settings import check_seconds

logger = logging.getLogger(__name__)

_STOPPED = "The service is being stopped."
_ENDING = 5.0  # seconds for what runs to notice that nobody waits for it any more


class Works(Protocol):
    """What does the jobs; `Worker` is one."""

    @property
    def card(self) -> ModelCard:
        """The model that is served."""

    def run(self, jobs: Sequence[Job], callers: Sequence[Caller] | None = None) -> list[Result | Exception]:
        """Do jobs, and give for each its result or what it failed with."""


@dataclass(eq=False)
class _Waiting:
    """A job, whoever waits for it, and since when; `heard` gets the draft's text, and None at the end."""

    job: Job
    done: asyncio.Future[Result]
    heard: asyncio.Queue[str | None] | None = None
    since: float = field(default_factory=time.monotonic)
    gone: Event = field(default_factory=Event)

    def settle(self, outcome: Result | Exception) -> None:
        if not self.done.done():
            if isinstance(outcome, Exception):
                self.done.set_exception(outcome)
            else:
                self.done.set_result(outcome)


class LocalEngine:
    """Does jobs with one worker, up to `Limits.batch_size` of them at a time.

    A batch begins when it is full, or when its oldest job has waited for `max_wait` seconds; while one runs, the next
    gathers. Jobs beyond `queue_size` that wait are refused.
    """

    def __init__(
        self,
        worker: Works,
        *,
        queue_size: int = 256,
        max_wait: float = 0.005,
        batched: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Take a worker; `batched` is told the size of every batch, from another thread.

        Raises:
            ConfigurationError: `max_wait` is no number of seconds, >= 0, or the queue has no place.
        """
        check_seconds("max_wait", max_wait, zero=True)
        if not isinstance(queue_size, int) or queue_size < 1:
            raise ConfigurationError(f"queue_size={queue_size!r}: expected a whole number >= 1.")
        self._worker, self._card, self._batched = worker, worker.card, batched
        self._queue_size, self._max_wait = queue_size, max_wait
        self._waiting: deque[_Waiting] = deque()
        self._running: list[_Waiting] = []
        self._arrived, self._idle = asyncio.Event(), asyncio.Event()
        self._open = False
        self._loop: asyncio.Task[None] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pace = 0.1  # seconds that a batch takes, of late

    @property
    def card(self) -> ModelCard:
        """The model that is served."""
        return self._card

    def depth(self) -> int:
        """Count the jobs that wait."""
        return len(self._waiting)

    def age(self) -> float:
        """Tell for how many seconds the oldest job has waited; 0 where none does."""
        try:
            return time.monotonic() - self._waiting[0].since
        except IndexError:  # asked from another thread, it may have gone meanwhile
            return 0.0

    async def ready(self) -> bool:
        """Tell whether jobs are taken."""
        return self._open

    async def start(self) -> None:
        """Begin to take jobs."""
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="semgrad-worker")
        self._loop = asyncio.create_task(self._serve())
        self._open = True

    async def stop(self, grace: float) -> None:
        """Take no more jobs, let those that are accepted end for so many seconds, and end those that are left."""
        self._open = False
        await self._until_idle(grace)
        for entry in (*self._waiting, *self._running):
            entry.gone.set()
            entry.settle(StoppingError(_STOPPED))
        self._waiting.clear()
        await self._until_idle(_ENDING)
        if self._loop is not None:
            self._loop.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _until_idle(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while self._waiting or self._running:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            logger.warning("%d jobs had not ended after %g s.", len(self._waiting) + len(self._running), seconds)

    async def answer(self, job: Job) -> Any:
        """Give the result of a job; see `Engine`."""
        entry = self._enter(job)
        try:
            return await entry.done
        finally:
            self._leave(entry)

    async def stream(self, job: ChatJob) -> AsyncGenerator[str | ChatAnswer]:
        """Yield the draft's text as it comes, and then the answer; see `Engine`."""
        heard: asyncio.Queue[str | None] = asyncio.Queue()
        entry = self._enter(job, heard)
        entry.done.add_done_callback(lambda _: heard.put_nowait(None))
        try:
            while (text := await heard.get()) is not None:
                yield text
            answer = await entry.done
            if isinstance(answer, ChatAnswer):  # a ChatJob gives one; for the type checker
                yield answer
        finally:
            self._leave(entry)

    def _enter(self, job: Job, heard: asyncio.Queue[str | None] | None = None) -> _Waiting:
        if not self._open:
            raise StoppingError(_STOPPED)
        if len(self._waiting) >= self._queue_size:
            batches = len(self._waiting) / self._card.limits.batch_size
            raise BusyError(max(1, math.ceil(batches * self._pace)))
        entry = _Waiting(job, asyncio.get_running_loop().create_future(), heard)
        self._waiting.append(entry)
        self._arrived.set()
        return entry

    def _leave(self, entry: _Waiting) -> None:
        entry.gone.set()
        entry.done.cancel()
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._idle.set()

    async def _serve(self) -> None:
        """Do what waits, batch by batch, for ever."""
        while True:
            await self._gather()
            size = min(self._card.limits.batch_size, len(self._waiting))
            self._running = [self._waiting.popleft() for _ in range(size)]
            if self._running:
                began = time.monotonic()
                await asyncio.get_running_loop().run_in_executor(self._pool, self._run, self._running)
                self._pace += 0.2 * (time.monotonic() - began - self._pace)
                self._running = []
            self._idle.set()

    async def _gather(self) -> None:
        """Wait until a batch is full, or its oldest job has waited long enough."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        while self._waiting and len(self._waiting) < self._card.limits.batch_size:
            left = self._waiting[0].since + self._max_wait - time.monotonic()
            if left <= 0:
                return
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _run(self, entries: Sequence[_Waiting], again: bool = False) -> None:
        """Do jobs together in the worker's thread; where that fails as a whole, each by itself."""
        try:
            self._batched(len(entries))
            callers = [Caller(entry.gone.is_set, None if again else _shower(entry)) for entry in entries]
            outcomes = self._worker.run([entry.job for entry in entries], callers)
            results = list(zip(entries, outcomes, strict=True))
        except Exception as error:  # one of them must not take the others with it
            if len(entries) > 1:
                for entry in entries:
                    self._run([entry], again=True)  # silently: what was heard of it would be heard twice
                return
            results = [(entries[0], error)]
        for entry, outcome in results:
            entry.done.get_loop().call_soon_threadsafe(entry.settle, outcome)


def _shower(entry: _Waiting) -> Callable[[str], None] | None:
    heard, loop = entry.heard, entry.done.get_loop()

    def show(text: str) -> None:
        if heard is not None:
            loop.call_soon_threadsafe(heard.put_nowait, text)

    return None if heard is None else show
