"""Other people's code with a deadline runs as if it were called directly."""

import asyncio
import contextvars
import threading

import pytest

from semgrad_guard.routing.limits import await_within, call_within

USER = contextvars.ContextVar("user", default="nobody")


@pytest.mark.parametrize("seconds", [None, 10])
def test_a_call_with_a_deadline_sees_the_context_of_its_caller(seconds):
    token = USER.set("ann")
    try:
        assert call_within(seconds, USER.get) == "ann"
    finally:
        USER.reset(token)
    assert call_within(seconds, USER.get) == "nobody"


def test_a_call_with_a_deadline_leaves_the_context_of_its_caller_alone():
    call_within(10, lambda: USER.set("bob"))
    assert USER.get() == "nobody"


@pytest.mark.parametrize("seconds", [None, 10])
def test_what_a_call_raises_is_raised(seconds):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_within(seconds, interrupted)


def test_a_call_that_takes_too_long_does_not_keep_the_process():
    assert call_within(10, lambda: threading.current_thread().daemon)


def test_a_call_that_takes_too_long_is_left_alone():
    free = threading.Event()
    try:
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            call_within(0.05, free.wait)
    finally:
        free.set()


async def test_what_is_awaited_for_too_long_is_cancelled():
    ended = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(USER.get())

    token = USER.set("ann")
    try:
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            await await_within(0.05, work())
    finally:
        USER.reset(token)
    assert ended == ["ann"]
