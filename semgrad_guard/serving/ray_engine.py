"""The engine of many processes: jobs go to a pool of replicas on Ray Serve; one that dies loses none of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from semgrad_guard.errors import needs
from semgrad_guard.serving.work import BusyError, ChatAnswer, ChatJob, Job, ModelCard, StoppingError

with needs("ray", "RayEngine needs Ray"):
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
    from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

logger = logging.getLogger(__name__)

_AGAIN = (RayActorError, ReplicaUnavailableError, StoppingError, BackPressureError)
_DEATHS = 3  # so many replicas may die of a job: after that it may be the job that kills them
_PAUSE = 0.2  # seconds before a job is tried again
_RETRY_AFTER = 1  # seconds, told to whom is refused

_Given = TypeVar("_Given")


class RayEngine:
    """Sends jobs to a pool of replicas, each of which gathers its own batches.

    A job whose replica dies or is stopped is tried on another one, for as long as somebody waits for it. Nothing that
    can be seen happens twice: one answer goes out, the same as before where it has a seed or is not drawn, and the
    review queue takes the same draft once.
    """

    def __init__(self, pool: DeploymentHandle[Any], card: ModelCard) -> None:
        """Take the handle of the replicas, and what they serve."""
        self._pool, self._card = pool, card
        self._open, self._accepted = False, 0

    @property
    def card(self) -> ModelCard:
        """The model that is served."""
        return self._card

    async def ready(self) -> bool:
        """Tell whether jobs are taken; that there are replicas is for Serve to see to."""
        return self._open

    async def start(self) -> None:
        """Begin to take jobs."""
        self._open = True

    async def stop(self, grace: float) -> None:
        """Take no more jobs, and let those that are accepted end for so many seconds."""
        self._open = False
        try:
            async with asyncio.timeout(grace):
                while self._accepted:
                    await asyncio.sleep(_PAUSE)
        except TimeoutError:
            logger.warning("%d jobs had not ended after %g s.", self._accepted, grace)

    async def answer(self, job: Job) -> Any:
        """Give the result of a job; see `Engine`."""
        with self._accept() as tries:
            while True:
                response = self._pool.answer.remote(job)
                try:
                    return _sound(await response)
                except _AGAIN as error:
                    await tries.again(error)
                except asyncio.CancelledError:
                    response.cancel()  # type: ignore[no-untyped-call]  # Ray has not annotated it
                    raise

    async def stream(self, job: ChatJob) -> AsyncGenerator[str | ChatAnswer]:
        """Yield the draft's text as it comes, and then the answer; see `Engine`.

        When a replica dies in between, the draft goes on where it was if the next one writes the same.

        Raises:
            RuntimeError: it did not.
        """
        shown = ""
        with self._accept() as tries:
            while True:
                # With `stream=True` it is this one of the two kinds of response.
                response = cast("DeploymentResponseGenerator[Any]", self._pool.options(stream=True).stream.remote(job))
                written = ""
                try:
                    async for piece in response:
                        if isinstance(_sound(piece), ChatAnswer):
                            _check_same(shown, piece.text[: len(shown)])
                            yield piece
                            return
                        written += piece
                        _check_same(shown[: len(written)], written[: len(shown)])
                        if len(written) > len(shown):
                            fresh, shown = written[len(shown) :], written
                            yield fresh
                except _AGAIN as error:
                    await tries.again(error)
                except (asyncio.CancelledError, GeneratorExit):
                    response.cancel()  # type: ignore[no-untyped-call]  # Ray has not annotated it
                    raise

    @contextmanager
    def _accept(self) -> Iterator[_Tries]:
        if not self._open:
            raise StoppingError("The service is being stopped.")
        self._accepted += 1
        try:
            yield _Tries()
        finally:
            self._accepted -= 1


class _Tries:
    """What one job has been through."""

    def __init__(self) -> None:
        self._taken, self._deaths = False, 0

    async def again(self, error: Exception) -> None:
        """Wait a little before the job is tried again.

        Raises:
            BusyError: the queue was full when it came; later, when a replica has been lost, it waits for its place.
            Exception: the error, where too many replicas have died of it.
        """
        if isinstance(error, BackPressureError):
            if not self._taken:
                raise BusyError(_RETRY_AFTER) from error
        else:
            self._taken = True
            self._deaths += isinstance(error, RayActorError)
            if self._deaths == _DEATHS:
                raise error
            logger.warning("A replica was lost (%s); its job goes to another one.", type(error).__name__)
        await asyncio.sleep(_PAUSE)


def _sound(result: _Given) -> _Given:
    """Give what a replica gave, or raise it: errors travel as values, since those raised there would come wrapped."""
    if isinstance(result, Exception):
        raise result
    return result


def _check_same(shown: str, written: str) -> None:
    if shown != written:
        raise RuntimeError("A replica died while its draft was shown, and another one has written another draft.")
