"""The service on Ray Serve: the HTTP application in front, and a pool of replicas that grows and shrinks behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic import Field
from starlette.types import ASGIApp

from semgrad_guard.errors import SemGradError
from semgrad_guard.extras import needs
from semgrad_guard.serving.engine import BusyError, Engine, StoppingError
from semgrad_guard.serving.local import LocalEngine
from semgrad_guard.serving.ray_engine import RayEngine
from semgrad_guard.serving.setup import Setup
from semgrad_guard.serving.work import ChatAnswer, ChatJob, Job, ModelCard, Record, Result

with needs("ray", "Serving on Ray needs it"):
    from ray import serve
    from ray.serve.handle import DeploymentHandle

_GRACE = 30.0  # seconds in which a replica that is stopped ends what it has


class Scale(Record):
    """How many replicas there are, and what each holds.

    Args:
        replicas: how many there are at least.
        most: how many there may be under load; None for no more than `replicas`.
        cpus: of each.
        gpus: of each; 0.5 lets two share one.
        queue_size: jobs that may wait for a replica; more are refused.
    """

    replicas: int = Field(default=1, ge=1)
    most: int | None = Field(default=None, ge=1)
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    queue_size: int = Field(default=256, ge=1)


class Replica:
    """A model in a process of its own, with an engine of one process around it."""

    async def __init__(self, setup: Setup, most: int) -> None:  # type: ignore[misc]  # Serve awaits it
        """Load the model; at most `most` jobs will be there at a time."""
        self._engine = LocalEngine(await asyncio.to_thread(setup.worker), queue_size=most)
        await self._engine.start()

    async def card(self) -> ModelCard:
        """Tell what is served."""
        return self._engine.card

    async def answer(self, job: Job) -> Result | Exception:
        """Give the result of a job, or what it failed with."""
        try:
            result: Result = await self._engine.answer(job)
            return result
        except (SemGradError, BusyError, StoppingError) as error:
            return error

    async def stream(self, job: ChatJob) -> AsyncIterator[str | ChatAnswer | Exception]:
        """Yield the draft's text as it comes, and then the answer, or what it failed with."""
        try:
            async for piece in self._engine.stream(job):
                yield piece
        except (SemGradError, BusyError, StoppingError) as error:
            yield error


class Front:
    """The HTTP application, in a process of its own, with the pool as its engine."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, pool: DeploymentHandle[Any], build: Callable[[Engine], ASGIApp]
    ) -> None:
        """Wait for the first replica, and build the application around the pool."""
        self._app = build(RayEngine(pool, await pool.card.remote()))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app


def application(setup: Setup, build: Callable[[Engine], ASGIApp], scale: Scale) -> serve.Application:
    """Give the application to hand to `serve.run`, or to name in Serve's configuration.

    Args:
        setup: what each replica loads.
        build: builds the HTTP application around an engine; it is sent to the process that serves it.
        scale: how many replicas there are.
    """
    batch = setup.limits.batch_size
    ongoing = 2 * batch  # while one batch runs, the next gathers
    pool: Any = serve.deployment(
        Replica,
        name="replicas",
        autoscaling_config={
            "min_replicas": scale.replicas,
            "max_replicas": max(scale.replicas, scale.most or scale.replicas),
            "target_ongoing_requests": batch,
        },
        max_ongoing_requests=ongoing,
        max_queued_requests=scale.queue_size,
        graceful_shutdown_timeout_s=_GRACE,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
    )
    front: Any = serve.deployment(
        serve.ingress()(Front),
        name="front",
        max_ongoing_requests=10_000,  # the pool is what bounds them; who is refused is to hear it from the application
        graceful_shutdown_timeout_s=_GRACE,
        ray_actor_options={"num_cpus": 0},
    )
    bound: serve.Application = front.bind(pool.bind(setup, ongoing), build)
    return bound
