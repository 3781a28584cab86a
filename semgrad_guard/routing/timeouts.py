"""Deadlines for other people's code: retrievers and reviewers that may never come back."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any


def call_within(seconds: float | None, function: Callable[[], Any]) -> Any:
    """Call a function and give up waiting after some seconds; it may go on in its thread, unheeded.

    Raises:
        TimeoutError: it did not return in time.
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
        raise TimeoutError(f"no answer within {seconds:g} s")
    if failure:
        raise failure[0]
    return result[0]


async def await_within(seconds: float | None, awaitable: Awaitable[Any]) -> Any:
    """Await something and cancel it after some seconds.

    Raises:
        TimeoutError: it did not finish in time.
    """
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s" if seconds is not None else str(error)) from error
