"""The engine of one process: batches, a bounded queue, and what happens when clients go and when it stops."""

import asyncio
import threading
import time

import pytest
from scripted import judgement_of

from semgrad_guard.serving.local import LocalEngine
from semgrad_guard.serving.work import BusyError, ChatAnswer, ChatJob, Limits, ModelCard, StoppingError

CARD = ModelCard(
    id="fake",
    scored=True,
    calibrated=True,
    method="fused",
    threshold=0.8,
    least_threshold=0.8,
    context=None,
    policies=("abstain",),
    limits=Limits(batch_size=4),
)
SURE = judgement_of(1.0)


def job(text="Why?"):
    return ChatJob(messages=({"role": "user", "content": text},))


class Works:
    """Echoes questions; it waits for `go` in every batch, and shows each draft letter by letter."""

    def __init__(self, fails=()):
        self.card, self.batches, self.fails = CARD, [], fails
        self.go, self.busy, self.gone = threading.Event(), threading.Event(), []
        self.go.set()

    def run(self, jobs, callers=None):
        texts = [job.messages[0]["content"] for job in jobs]
        self.batches.append(texts)
        self.busy.set()
        while not self.go.wait(0.005):
            self.gone = [caller.gone() for caller in callers]
            if all(self.gone):
                break
        if "kill" in texts:
            raise RuntimeError("the batch is lost")
        for text, caller in zip(texts, callers, strict=True):
            for letter in text if caller.show else ():
                caller.show(letter)
        return [ValueError("no") if text in self.fails else ChatAnswer(text=text, judgement=SURE) for text in texts]


class Running:
    """An engine from start to stop."""

    def __init__(self, worker, **settings):
        self.engine = LocalEngine(worker, **settings)

    async def __aenter__(self):
        await self.engine.start()
        return self.engine

    async def __aexit__(self, *error):
        await self.engine.stop(1.0)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def asked(engine, *texts):
    """Ask, and give tasks that have all come to the queue."""
    tasks = [asyncio.create_task(engine.answer(job(text))) for text in texts]
    await asyncio.sleep(0)
    return tasks


async def test_jobs_that_come_together_are_done_together():
    worker, rows = Works(), []
    async with Running(worker, max_wait=0.2, batched=rows.append) as engine:
        answers = await asyncio.gather(*await asked(engine, *"abcdef"))
    assert [answer.text for answer in answers] == list("abcdef")
    assert worker.batches == [list("abcd"), list("ef")]
    assert rows == [4, 2]


async def test_a_job_alone_waits_no_longer_than_it_must():
    async with Running(Works(), max_wait=0.05) as engine:
        began = time.monotonic()
        await engine.answer(job())
        assert 0.04 < time.monotonic() - began < 1


async def test_what_gathers_while_a_batch_runs_is_the_next_one():
    worker = Works()
    worker.go.clear()
    async with Running(worker, max_wait=0.0) as engine:
        first = await asked(engine, "a")
        await until(worker.busy.is_set)
        others = await asked(engine, "b", "c")
        assert (engine.depth(), engine.age() > 0) == (2, True)
        worker.go.set()
        await asyncio.gather(*first, *others)
        assert (engine.depth(), engine.age()) == (0, 0.0)
    assert worker.batches == [["a"], ["b", "c"]]


async def test_a_full_queue_refuses_and_says_when_to_come_back():
    worker = Works()
    worker.go.clear()
    async with Running(worker, queue_size=2, max_wait=0.0) as engine:
        tasks = await asked(engine, "a")
        await until(worker.busy.is_set)
        tasks += await asked(engine, "b", "c")
        with pytest.raises(BusyError) as busy:
            await engine.answer(job("d"))
        assert busy.value.retry_after >= 1
        worker.go.set()
        assert [answer.text for answer in await asyncio.gather(*tasks)] == ["a", "b", "c"]


async def test_a_job_that_nobody_waits_for_leaves_the_queue_and_its_place_is_free():
    worker = Works()
    worker.go.clear()
    async with Running(worker, queue_size=1, max_wait=0.0) as engine:
        (first,) = await asked(engine, "a")
        await until(worker.busy.is_set)
        (second,) = await asked(engine, "b")
        second.cancel()
        await asyncio.sleep(0)
        (third,) = await asked(engine, "c")
        worker.go.set()
        assert [(await task).text for task in (first, third)] == ["a", "c"]
    assert worker.batches == [["a"], ["c"]]


async def test_a_running_row_that_nobody_waits_for_is_told_and_the_others_go_on():
    worker = Works()
    worker.go.clear()
    async with Running(worker, max_wait=0.05) as engine:
        first, second = await asked(engine, "a", "b")
        await until(worker.busy.is_set)
        first.cancel()
        await until(lambda: worker.gone == [True, False])
        worker.go.set()
        assert (await second).text == "b"


async def test_a_job_that_fails_fails_alone():
    async with Running(Works(fails=["b"]), max_wait=0.05) as engine:
        found = await asyncio.gather(*await asked(engine, "a", "b", "c"), return_exceptions=True)
    assert [getattr(one, "text", one) for one in (found[0], found[2])] == ["a", "c"]
    assert isinstance(found[1], ValueError)


async def test_a_job_that_kills_the_batch_does_not_take_others_with_it():
    worker = Works()
    async with Running(worker, max_wait=0.05) as engine:
        found = await asyncio.gather(*await asked(engine, "a", "kill", "c"), return_exceptions=True)
        assert [type(one) for one in found] == [ChatAnswer, RuntimeError, ChatAnswer]
        assert (await engine.answer(job("d"))).text == "d"


async def test_streams_show_the_draft_and_end_with_the_answer():
    async with Running(Works(), max_wait=0.0) as engine:
        *pieces, answer = [piece async for piece in engine.stream(job("abc"))]
    assert (pieces, answer.text) == (["a", "b", "c"], "abc")


async def test_when_a_batch_is_lost_in_the_middle_of_a_stream_nothing_is_shown_twice():
    class Breaks(Works):
        def run(self, jobs, callers=None):
            found = super().run(jobs, callers)
            if len(jobs) > 1:
                raise RuntimeError("the batch is lost")
            return found

    worker = Breaks()
    async with Running(worker, max_wait=0.05) as engine:

        async def pieces():
            return [piece async for piece in engine.stream(job("abc"))]

        (*shown, answer), other = await asyncio.gather(pieces(), engine.answer(job("d")))
    assert worker.batches == [["abc", "d"], ["abc"], ["d"]]
    assert (shown, answer.text, other.text) == (["a", "b", "c"], "abc", "d")


async def test_a_stream_that_is_left_is_told_to_the_worker():
    worker = Works()
    worker.go.clear()
    async with Running(worker, max_wait=0.0) as engine:
        pieces = engine.stream(job("abc"))
        waiting = asyncio.create_task(anext(pieces))
        await until(worker.busy.is_set)
        waiting.cancel()
        await until(lambda: worker.gone == [True])


async def test_a_stream_that_fails_raises():
    async with Running(Works(fails=["b"]), max_wait=0.0) as engine:
        with pytest.raises(ValueError, match="no"):
            _ = [piece async for piece in engine.stream(job("b"))]


async def test_before_the_end_accepted_jobs_are_done_and_new_ones_refused():
    worker = Works()
    worker.go.clear()
    engine = LocalEngine(worker, max_wait=0.0)
    await engine.start()
    assert await engine.ready()
    tasks = await asked(engine, "a")
    await until(worker.busy.is_set)
    tasks += await asked(engine, "b")
    ending = asyncio.create_task(engine.stop(5.0))
    await asyncio.sleep(0)
    assert not await engine.ready()
    with pytest.raises(StoppingError):
        await engine.answer(job("c"))
    worker.go.set()
    assert [answer.text for answer in await asyncio.gather(*tasks)] == ["a", "b"]
    await ending


async def test_what_is_left_after_the_grace_is_ended():
    worker = Works()
    worker.go.clear()
    engine = LocalEngine(worker, max_wait=0.0)
    await engine.start()
    tasks = await asked(engine, "a")
    await until(worker.busy.is_set)
    tasks += await asked(engine, "b")
    began = time.monotonic()
    await engine.stop(0.1)
    assert time.monotonic() - began < 2
    assert worker.gone == [True]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [StoppingError, StoppingError]


def test_errors_travel_between_processes():
    import pickle

    assert pickle.loads(pickle.dumps(BusyError(3))).retry_after == 3
    sent = pickle.loads(pickle.dumps((job("a"), ChatAnswer(text="a", judgement=SURE), StoppingError("over"))))
    assert sent[:2] == (job("a"), ChatAnswer(text="a", judgement=SURE))
