"""The service on Ray Serve: the HTTP application in front, and a pool of replicas that grows and shrinks behind it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field
from starlette.types import ASGIApp

from semgrad_guard.cluster import connected
from semgrad_guard.errors import SemGradError, needs
from semgrad_guard.observability.logs import configure_logging
from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.serving.app import OPEN_PATHS, application
from semgrad_guard.serving.local import LocalEngine
from semgrad_guard.serving.ray_engine import RayEngine
from semgrad_guard.serving.server import Setup
from semgrad_guard.serving.service import Terms
from semgrad_guard.serving.work import BusyError, ChatAnswer, ChatJob, Job, ModelCard, Record, Result, StoppingError
from semgrad_guard.web.keys import LOCAL_HOSTS, ApiKeys, check_address
from semgrad_guard.web.shelter import logged, sheltered

with needs("ray", "Serving on Ray needs it"):
    from ray import serve
    from ray.serve.handle import DeploymentHandle

_NAME = "semgrad-guard"  # of the application, in Serve
_FRONT = 10_000  # requests at the HTTP application: the pool is what bounds them, so that it can say 429 itself
_QUIET = {"log_level": "WARNING", "enable_access_log": False}


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

    def pool(self, batch_size: int, grace: float) -> dict[str, Any]:
        """Give Serve's options of the pool: a replica has twice a batch, since one gathers while one runs."""
        return {
            "autoscaling_config": {
                "min_replicas": self.replicas,
                "max_replicas": max(self.replicas, self.most or self.replicas),
                "target_ongoing_requests": batch_size,
            },
            "max_ongoing_requests": 2 * batch_size,
            "max_queued_requests": self.queue_size,
            "graceful_shutdown_timeout_s": grace,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
        }


class Site(Record):
    """All that a service on Ray is made of; files that it names must be there on every machine.

    Args:
        setup: what each replica loads.
        terms: what requests may have.
        scale: how many replicas there are.
        hosts: names that requests may use, beside this machine's.
        json_logs: whether the processes log a JSON object a line.
    """

    setup: Setup = Setup()
    terms: Terms = Terms()
    scale: Scale = Scale()
    hosts: tuple[str, ...] = ()
    json_logs: bool = False


class Replica:
    """A model in a process of its own, with the engine of one process around it."""

    async def __init__(self, setup: Setup, json_logs: bool) -> None:  # type: ignore[misc]  # Serve awaits it
        """Load the model."""
        configure_logging(json=json_logs)
        worker = await asyncio.to_thread(setup.worker)
        self._engine = LocalEngine(worker, queue_size=2 * setup.limits.batch_size)
        await self._engine.start()

    async def card(self) -> ModelCard:
        """Tell what is served."""
        return self._engine.card

    async def answer(self, job: Job) -> Result | Exception:
        """Give the result of a job, or what it failed with."""
        try:
            result: Result = await self._engine.answer(job)
        except (SemGradError, BusyError, StoppingError) as error:
            return error
        except Exception as error:  # raised, Ray would log its text, which may hold what was asked
            return RuntimeError(f"A replica failed; its log has more under {logged(error)}.")
        return result

    async def stream(self, job: ChatJob) -> AsyncIterator[str | ChatAnswer | Exception]:
        """Yield the draft's text as it comes, and then the answer, or what it failed with."""
        try:
            async for piece in self._engine.stream(job):
                yield piece
        except (SemGradError, BusyError, StoppingError) as error:
            yield error
        except Exception as error:  # raised, Ray would log its text, which may hold what was asked
            yield RuntimeError(f"A replica failed; its log has more under {logged(error)}.")


class Front:
    """The HTTP application behind its shelter, in a process of its own, with the pool as its engine."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, pool: DeploymentHandle[Any], site: Site, keys: ApiKeys
    ) -> None:
        """Wait for the first replica, and build the application around the pool."""
        configure_logging(json=site.json_logs)
        app = application(RayEngine(pool, await pool.card.remote()), site.terms, Metrics())
        self._app = sheltered(app, hosts=[*LOCAL_HOSTS, *site.hosts], keys=keys, open_paths=OPEN_PATHS)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Give the application to Serve."""
        return self._app


def deployed(site: Site, keys: ApiKeys) -> serve.Application:
    """Give the application that Serve is to run."""
    grace = site.terms.grace
    pool: Any = serve.deployment(Replica, name="replicas", **site.scale.pool(site.setup.limits.batch_size, grace))
    front: Any = serve.deployment(
        serve.ingress()(Front),
        name="front",
        max_ongoing_requests=_FRONT,
        graceful_shutdown_timeout_s=grace,
        ray_actor_options={"num_cpus": 0},
    )
    bound: serve.Application = front.bind(pool.bind(site.setup, site.json_logs), site, keys)
    return bound


def from_config(settings: dict[str, Any]) -> serve.Application:
    """Build the application from the `args` of Serve's configuration file; the API keys come from the environment.

    Raises:
        ConfigurationError: there are no API keys; who can reach the port is not known here.
        ValidationError: the settings are not those of a `Site`.
    """
    keys = ApiKeys.read()
    check_address("0.0.0.0", keys)
    return deployed(Site.model_validate(settings), keys)


@contextmanager
def running(site: Site, keys: ApiKeys, *, host: str, port: int) -> Iterator[None]:
    """Serve until the block is left, then end what is accepted; on the cluster at RAY_ADDRESS, or on one started here.

    Args:
        site: what is served.
        keys: who gets in.
        host: address that Serve listens to.
        port: to listen to.

    Raises:
        ConfigurationError: others could reach it, and it has no keys.
    """
    check_address(host, keys)
    scale = site.scale
    with connected(cpus=math.ceil(scale.cpus * max(scale.replicas, scale.most or 0))):
        serve.start(http_options={"host": host, "port": port}, logging_config=_QUIET)
        serve.run(deployed(site, keys), name=_NAME, logging_config=_QUIET)
        try:
            yield
        finally:
            serve.delete(_NAME)
