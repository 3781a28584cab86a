"""Deadlines for other people's code: retrievers and reviewers that may never come back."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from semgrad_guard.errors import TimedOutError


def call_within(seconds: float | None, function: Callable[[], Any]) -> Any:
    """Call a function and give up waiting after some seconds; it may go on in its thread, unheeded.

    Raises:
        TimedOutError: it did not return in time.
    """
    if seconds is None:
        return function()
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:  # handed to the waiting thread, whatever it is
            failure.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(run), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimedOutError(f"no answer within {seconds:g} s")
    if failure:
        raise failure[0]
    return result[0]


async def await_within(seconds: float | None, awaitable: Awaitable[Any]) -> Any:
    """Await something and cancel it after some seconds.

    Raises:
        TimedOutError: it did not finish in time.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            return await awaitable
    except TimeoutError as error:
        if limit.expired():  # else it is an error of what was awaited
            raise TimedOutError(f"no answer within {seconds:g} s") from error
        raise
