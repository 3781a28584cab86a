"""The guard's child runs: what callbacks and traces see of its steps, and what is kept from them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.runnables.config import ensure_config
from langsmith.run_helpers import tracing_context

from semgrad_guard._compat import streams, tracing_variables

T = TypeVar("T")


def step(name: str, shown: dict[str, Any], work: Callable[[], T], told: Callable[[T], dict[str, Any]]) -> T:
    """Do a piece of work as a child run; what it takes and gives is not shown, but `shown` and `told` of it are."""
    done: list[T] = []

    def run(_: dict[str, Any]) -> dict[str, Any]:
        done.append(work())
        return told(done[0])

    RunnableLambda(run, name=name).invoke(shown, _marked(shown))
    return done[0]


async def astep(
    name: str, shown: dict[str, Any], work: Callable[[], Awaitable[T]], told: Callable[[T], dict[str, Any]]
) -> T:
    """Async twin of `step`."""
    done: list[T] = []

    async def run(_: dict[str, Any]) -> dict[str, Any]:
        done.append(await work())
        return told(done[0])

    await RunnableLambda(run, name=name).ainvoke(shown, _marked(shown))
    return done[0]


def in_metadata(name: str) -> str:
    """Name the entry of a run's metadata that repeats what a step is shown to take."""
    return f"semgrad_{name}"


def without_streams(config: RunnableConfig | None = None) -> RunnableConfig:
    """Give the configuration of a child run that traces see, and streams to the consumer do not."""
    config = ensure_config(config)
    given = config.get("callbacks")
    if isinstance(given, list):
        return {**config, "callbacks": [handler for handler in given if not streams(handler)]}
    if given is None:
        return config
    manager: CallbackManager | AsyncCallbackManager = given.copy()  # type: ignore[assignment]  # its own type
    manager.handlers = [handler for handler in manager.handlers if not streams(handler)]
    manager.inheritable_handlers = [handler for handler in manager.inheritable_handlers if not streams(handler)]
    return {**config, "callbacks": manager}


@contextmanager
def unseen() -> Iterator[RunnableConfig]:
    """Give a configuration, and a context, in which neither the caller's callbacks nor tracers hear of what runs."""
    before = [(variable, variable.set(None)) for variable in tracing_variables()]
    try:
        with tracing_context(enabled=False):
            yield RunnableConfig(callbacks=[])
    finally:
        for variable, token in before:
            variable.reset(token)


def _marked(shown: dict[str, Any]) -> RunnableConfig:
    return RunnableConfig(metadata={in_metadata(name): value for name, value in shown.items()})
