"""The engine in front of replicas on Ray Serve: what is tried again, what is not, and what is given up."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError
from scripted import judgement_of

from semgrad_guard.errors import PromptTooLongError
from semgrad_guard.serving import ray_engine
from semgrad_guard.serving.ray_engine import RayEngine
from semgrad_guard.serving.work import BusyError, ChatAnswer, ChatJob, StoppingError

JOB = ChatJob(messages=({"role": "user", "content": "?"},))
JUDGED = judgement_of(0.1)
ANSWER = ChatAnswer(text="Paris.", judgement=JUDGED)
DIED, FULL = ActorDiedError(), BackPressureError(num_queued_requests=4, max_queued_requests=4)
FOREVER = object()


class Response:
    """A response of Serve's: its script is what comes of it, piece by piece."""

    def __init__(self, script):
        self.script, self.cancelled = script, False

    def cancel(self):
        self.cancelled = True

    async def _next(self, piece):
        await asyncio.sleep(0)
        if piece is FOREVER:
            await asyncio.Event().wait()
        if isinstance(piece, Exception) and not isinstance(piece, (PromptTooLongError, StoppingError)):
            raise piece  # the others travel as values
        return piece

    def __await__(self):
        return self._next(self.script[0]).__await__()

    async def __aiter__(self):
        for piece in self.script:
            yield await self._next(piece)


class Pool:
    """A deployment's handle: every call gets the next script."""

    def __init__(self, *scripts):
        self.scripts, self.responses = list(scripts), []

    def remote(self, job):
        assert job == JOB
        self.responses.append(Response(self.scripts.pop(0)))
        return self.responses[-1]

    def options(self, stream):
        assert stream
        return self

    @property
    def answer(self):
        return self

    stream = answer


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(ray_engine, "_PAUSE", 0.001)


async def engine_of(*scripts):
    engine = RayEngine(Pool(*scripts), card=None)
    await engine.start()
    return engine


async def heard(engine):
    return [piece async for piece in engine.stream(JOB)]


@pytest.mark.parametrize("lost", [DIED, ActorUnavailableError("gone", None), StoppingError("stopped")])
async def test_a_job_whose_replica_is_lost_goes_to_another_one(lost):
    engine = await engine_of([lost], [lost], [ANSWER])
    assert await engine.answer(JOB) == ANSWER


async def test_an_accepted_job_waits_for_its_place_again_and_a_new_one_is_refused():
    engine = await engine_of([DIED], [FULL], [FULL], [ANSWER])
    assert await engine.answer(JOB) == ANSWER
    with pytest.raises(BusyError, match="try again in 1 s"):
        await (await engine_of([FULL])).answer(JOB)
    with pytest.raises(BusyError):
        await heard(await engine_of([FULL]))


async def test_a_job_that_kills_replica_after_replica_is_given_up():
    engine = await engine_of([DIED], [DIED], [DIED])
    with pytest.raises(ActorDiedError):
        await engine.answer(JOB)


async def test_what_is_the_jobs_own_fault_is_not_tried_again():
    engine = await engine_of([PromptTooLongError("too long")])
    with pytest.raises(PromptTooLongError, match="too long"):
        await engine.answer(JOB)


async def test_whoever_leaves_takes_the_call_along():
    engine = await engine_of([FOREVER])
    waiting = asyncio.create_task(engine.answer(JOB))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert engine._pool.responses[0].cancelled
    streaming = await engine_of(["Pa", FOREVER])
    pieces = streaming.stream(JOB)
    assert await anext(pieces) == "Pa"
    await pieces.aclose()
    assert streaming._pool.responses[0].cancelled


async def test_a_stream_goes_on_where_it_was():
    engine = await engine_of(["Pa", "ri", DIED], ["P", DIED], ["Paris", ".", ANSWER])
    assert await heard(engine) == ["Pa", "ri", "s", ".", ANSWER]


@pytest.mark.parametrize("other", [["Lo"], ["P", "oo"], [ANSWER.model_copy(update={"text": "London."})]])
async def test_another_draft_does_not_go_on_with_the_first(other):
    engine = await engine_of(["Pa", DIED], other)
    with pytest.raises(RuntimeError, match="another draft"):
        await heard(engine)


async def test_stopping_lets_what_is_accepted_end_and_takes_no_more():
    engine = await engine_of([ANSWER], [FOREVER])
    assert await engine.ready()
    first = asyncio.create_task(engine.answer(JOB))
    await asyncio.sleep(0)
    await engine.stop(grace=5)
    assert await first == ANSWER
    assert not await engine.ready()
    with pytest.raises(StoppingError):
        await engine.answer(JOB)
