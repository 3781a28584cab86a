"""What the HTTP application knows of whatever answers, in this process or in others."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, overload

from semgrad_guard.serving.work import ChatAnswer, ChatJob, ModelCard, ScoreAnswer, ScoreJob


class BusyError(Exception):
    """No more jobs are taken for now; `retry_after` says in how many seconds it may be otherwise."""

    def __init__(self, retry_after: int) -> None:
        """Tell when to come back."""
        super().__init__(f"The service is busy; try again in {retry_after} s.")
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[BusyError], tuple[int]]:
        """Let it travel between processes."""
        return type(self), (self.retry_after,)


class StoppingError(Exception):
    """The service is being stopped, and takes or ends no more jobs."""


class Engine(Protocol):
    """Takes jobs and gives results.

    Whoever waits for one may be cancelled, because the client has gone or time is up: the job is dropped then, or ends
    at its next token. Of what it raises, `SemGradError`s are the job's own fault; anything else is the service's.
    """

    @property
    def card(self) -> ModelCard:
        """The model that is served."""

    @overload
    async def answer(self, job: ChatJob) -> ChatAnswer: ...

    @overload
    async def answer(self, job: ScoreJob) -> ScoreAnswer: ...

    async def answer(self, job: ChatJob | ScoreJob) -> ChatAnswer | ScoreAnswer:
        """Give the result of a job.

        Raises:
            BusyError: the queue is full.
            StoppingError: the service is being stopped.
            SemGradError: the job cannot be done as it was given.
        """

    def stream(self, job: ChatJob) -> AsyncGenerator[str | ChatAnswer]:
        """Yield the draft's text as it comes, and then the answer, whose text begins with all of it; raises alike."""

    async def ready(self) -> bool:
        """Tell whether jobs are taken."""

    async def start(self) -> None:
        """Begin to take jobs."""

    async def stop(self, grace: float) -> None:
        """Take no more jobs, let those that are accepted end for so many seconds, and end those that are left."""
