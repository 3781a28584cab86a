"""Faults of the HTTP service, each brought about behind a real socket, and of the review page's server."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx
import torch
from faulty import NotRun, fault
from langchain_core.runnables import RunnableLambda
from scripted import request_of

from semgrad_guard import HumanReview, Retrieve, SemGradGuard, SemGradScorer
from semgrad_guard.review import ReviewQueue
from semgrad_guard.serving.server import Setup
from semgrad_guard.serving.service import Terms
from semgrad_guard.serving.work import Limits
from semgrad_guard.serving.worker import Worker

KNOWN, INVENTED = "What is the capital of France?", "What is the capital of Zubrovia?"
_BATCH = 8
_TOKEN = "a-token-of-some-length"
_COMMAND = [sys.executable, "-c", "from semgrad_guard.cli import app; app()"]


def _body(question: str, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "semgrad": options}


@contextmanager
def _served(worker: Worker | None = None, terms: Terms | None = None, **settings: Any) -> Iterator[tuple[Any, str]]:
    """Serve a worker, or the embedded model."""
    from serving import served

    setup = Setup(limits=Limits(batch_size=_BATCH)) if worker is None else SimpleNamespace(worker=lambda: worker)
    with served(setup, terms, **settings) as found:
        yield found


def _scripted(*first: Any, **settings: Any) -> Worker:
    """Give a worker that is never sure of its answer, "draft"."""
    from scripted import profile, scripted

    return _kind(settings)(SemGradGuard(scripted(0.3), profile=profile()), name="tiny", first=first, **settings)


def _kind(settings: dict[str, Any]) -> type[Worker]:
    kind: type[Worker] = settings.pop("kind", Worker)
    return kind


async def _all(url: str, bodies: Sequence[dict[str, Any]]) -> list[httpx.Response]:
    """Ask all at the same time."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        posts = [client.post("/v1/chat/completions", json={"model": model, **body}) for body in bodies]
        return list(await asyncio.gather(*posts))


def _asked(url: str, *questions: str, **options: Any) -> str:
    """Tell what came of questions, and how often."""
    found = asyncio.run(_all(url, [_body(question, **options) for question in questions or ("Where?",)]))
    counts = Counter(_told(response) for response in found)
    return "; ".join(told if count == 1 else f"{count} times {told}" for told, count in sorted(counts.items()))


def _told(response: httpx.Response) -> str:
    if response.status_code != 200:
        return f"{response.status_code} {response.json()['error']['code']}"
    if "draft" in response.text:
        return "the draft went out"
    record = response.json()["choices"][0]["semgrad"]
    reason = re.sub(r"confidence [\d.]+ is below the threshold [\d.]+", "not sure", record["reason"])
    return record["decision"] if record["decision"] != "abstain" else f"abstains: {reason}"


def _scoring(replaced: Callable[..., Any]) -> Any:
    """Replace how answers are scored; the first argument is the true way."""
    true = SemGradScorer.score
    return patch.object(SemGradScorer, "score", lambda self, *args, **given: replaced(true, self, *args, **given))


@fault(
    "memory runs out whenever the service scores",
    "8 times abstains: scoring failed: OutOfMemoryError",
)
def no_memory(folder: Path) -> str:
    def full(*given: Any, **settings: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with _served(max_wait=0.2) as (_, url), _scoring(full):
        return _asked(url, *[KNOWN] * _BATCH)


@fault(
    "memory runs out for one answer of a batch",
    "abstains: scoring failed: OutOfMemoryError; 7 times pass",
)
def no_memory_for_one(folder: Path) -> str:
    def full_for_one(true: Any, self: Any, generations: Any, *args: Any, **settings: Any) -> Any:
        if any("Zubrovia" in self.tokenizer.decode(generation.prompt_ids) for generation in generations):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return true(self, generations, *args, **settings)

    with _served(max_wait=0.2) as (_, url), _scoring(full_for_one):
        return _asked(url, *[KNOWN] * (_BATCH - 1), INVENTED)


@fault("scores are not numbers", "8 times abstains: the score is not a finite number: semgrad is nan")
def not_a_number(folder: Path) -> str:
    def broken(true: Any, self: Any, *args: Any, **settings: Any) -> Any:
        found = true(self, *args, **settings)
        nan = {"semgrad": math.nan}
        return [
            [score.model_copy(update=nan) for score in one] if isinstance(one, list) else one.model_copy(update=nan)
            for one in found
        ]

    with _served(max_wait=0.2) as (_, url), _scoring(broken):
        return _asked(url, *[KNOWN] * _BATCH)


@fault("the service's retriever raises", "abstains: not sure")
def retriever_raises(folder: Path) -> str:
    def broken(query: str) -> Any:
        raise ConnectionError("no index")

    with _served(_scripted(Retrieve(RunnableLambda(broken)))) as (_, url):
        return _asked(url)


@fault("the service's retriever hangs", "abstains: not sure; after less than 3 s")
def retriever_hangs(folder: Path) -> str:
    retriever = RunnableLambda(lambda query: time.sleep(5) or [])
    with _served(_scripted(Retrieve(retriever, timeout_seconds=0.3))) as (_, url):
        return _timed(url)


@fault(
    "a callback that reviews in the service takes too long",
    "abstains: not sure; no review: TimeoutError; after less than 3 s",
)
def slow_callback(folder: Path) -> str:
    with _served(_scripted(HumanReview(lambda request: time.sleep(5) or "approve", timeout_seconds=0.3))) as (_, url):
        return _timed(url)


@fault("a callback that reviews in the service raises", "abstains: not sure; no review: ConnectionError")
def failing_callback(folder: Path) -> str:
    def broken(request: Any) -> str:
        raise ConnectionError("nobody is there")

    with _served(_scripted(HumanReview(broken))) as (_, url):
        return _asked(url)


def _timed(url: str) -> str:
    began = time.monotonic()
    told = _asked(url)
    return f"{told}; after {'less' if time.monotonic() - began < 3 else 'more'} than 3 s"


_NO_REVIEW = "4 times abstains: not sure; no review: ReviewError; later: 4 times review"
_FOUR = [f"Where is {place}?" for place in ("a", "b", "c", "d")]


@fault("the review database is locked while the service answers", _NO_REVIEW)
def review_locked(folder: Path) -> str:
    queue = ReviewQueue(f"sqlite:///{folder / 'reviews.db'}", busy_timeout=0.2)
    with _served(_scripted(reviews=queue)) as (_, url):
        lock = sqlite3.connect(folder / "reviews.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        told = _asked(url, *_FOUR, policy="review")
        lock.close()
        return f"{told}; later: {_asked(url, *_FOUR, policy='review')}"


@fault("the disk of the review database is full while the service answers", _NO_REVIEW)
def review_disk_full(folder: Path) -> str:
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        raise NotRun("a small file system cannot be mounted here")
    try:
        queue = ReviewQueue(f"sqlite:///{disk / 'reviews.db'}")
        with _served(_scripted(reviews=queue)) as (_, url):
            ballast = disk / "ballast"
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 1024)
            told = _asked(url, *_FOUR, policy="review")
            ballast.unlink()
            later = _asked(url, *_FOUR, policy="review")
        queue.close()
        return f"{told}; later: {later}"
    finally:
        subprocess.run(["umount", disk], check=True)


@fault("the review database is deleted while the service answers", "4 times abstains: not sure; no review: ReviewError")
def review_deleted(folder: Path) -> str:
    queue = ReviewQueue(f"sqlite:///{folder / 'reviews.db'}")
    with _served(_scripted(reviews=queue)) as (_, url):
        for file in folder.glob("reviews.db*"):
            file.unlink()
        return _asked(url, *_FOUR, policy="review")


class Slow(Worker):
    """Works until it is told to end, or nobody waits for it any more."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.go, self.begun = threading.Event(), list[str]()
        self.left = list[str]()

    def run(self, jobs: Any, callers: Any = None) -> Any:
        asked = [job.messages[-1]["content"] for job in jobs]
        self.begun += asked
        while not self.go.wait(0.01) and not all(caller.gone() for caller in callers):
            pass
        self.left += [text for text, caller in zip(asked, callers, strict=True) if caller.gone()]
        return super().run(jobs, callers)


def _until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.02)


@fault(
    "clients go while their requests run, and while they wait",
    "the one that ran ended; of those that waited, the one whose client went was not begun; 200",
)
def clients_go(folder: Path) -> str:
    worker = _scripted(kind=Slow, limits=Limits(batch_size=1))

    async def load(engine: Any, url: str) -> int:
        async with httpx.AsyncClient(timeout=30) as client:

            async def ask(question: str) -> int:
                body = {"model": "tiny", **_body(question)}
                return (await client.post(f"{url}/v1/chat/completions", json=body)).status_code

            tasks = []
            for place, question in enumerate(("runs", "goes", "stays")):
                tasks.append(asyncio.create_task(ask(question)))
                await asyncio.to_thread(_until, lambda place=place: len(worker.begun) + engine.depth() > place)
            tasks[1].cancel()
            await asyncio.to_thread(_until, lambda: engine.depth() == 1)
            tasks[0].cancel()
            await asyncio.to_thread(_until, lambda: worker.left)
            worker.go.set()
            return await tasks[2]

    with _served(worker) as (engine, url):
        status = asyncio.run(load(engine, url))
    if (worker.begun, worker.left) != (["runs", "stays"], ["runs"]):
        return f"begun: {worker.begun}, left: {worker.left}"
    return f"the one that ran ended; of those that waited, the one whose client went was not begun; {status}"


@fault("a request takes longer than the deadline", "504 deadline_exceeded; the row ends; the next: abstains: not sure")
def deadline(folder: Path) -> str:
    worker = _scripted(kind=Slow)
    with _served(worker, Terms(deadline=0.5)) as (_, url):
        told = _asked(url)
        _until(lambda: worker.left)
        worker.go.set()
        return f"{told}; the row ends; the next: {_asked(url)}"


@fault("many more requests than the queue holds", "only 200 and 429; every 429 says when to come back")
def flood(folder: Path) -> str:
    with _served(queue_size=16) as (_, url):
        found = asyncio.run(_all(url, [_body(KNOWN)] * 300))
    statuses = {response.status_code for response in found}
    refused = [response for response in found if response.status_code == 429]
    when = all(int(response.headers.get("Retry-After", 0)) >= 1 for response in refused)
    return (
        f"only {' and '.join(map(str, sorted(statuses)))}; "
        f"{'every' if when else 'not every'} 429 says when to come back"
    )


@contextmanager
def _process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a command that serves, in a process of its own; it is killed in the end if it is still there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*_COMMAND, *arguments, "--port", str(port)],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: _answers(url), 120)
        yield process, url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        httpx.get(url)
        return True
    return False


async def _load(url: str, bodies: Sequence[dict[str, Any]], interrupt: Callable[[int], None]) -> list[Any]:
    """Ask all at once, call `interrupt` with how many are done as they get done, and give answers or errors."""
    done = 0
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def ask(body: dict[str, Any]) -> httpx.Response:
            nonlocal done
            found = await client.post("/v1/chat/completions", json={"model": "demo", **body})
            done += 1
            interrupt(done)
            return found

        return list(await asyncio.gather(*map(ask, bodies), return_exceptions=True))


@fault(
    "the service is killed in the middle of load, and started again",
    "some were acknowledged before, some were not; of those acknowledged none is lost; asked again, each is there once",
)
def killed(folder: Path) -> str:
    database = f"sqlite:///{folder / 'reviews.db'}"
    arguments = ("serve", "--reviews", database, "--policy", "review", "--batch-size", "4")
    bodies = [_body(f"What is the capital of Zubrovia{number}?", threshold=1.0) for number in range(60)]

    def reviews(found: list[Any]) -> set[str]:
        records = [one.json()["choices"][0]["semgrad"] for one in found if isinstance(one, httpx.Response)]
        return {record["review_id"] for record in records}

    with _process(*arguments) as (process, url):
        before = asyncio.run(_load(url, bodies, lambda done: process.kill() if done == 20 else None))
    acknowledged = reviews(before)
    with _process(*arguments) as (_, url):
        after = reviews(asyncio.run(_load(url, bodies, lambda done: None)))
    queue = ReviewQueue(database)
    items = queue.items(limit=None)
    queue.close()
    lost = acknowledged - {item.id for item in items}
    asked = Counter(item.request.question for item in items)
    if not acknowledged or len(acknowledged) == len(bodies) or None in acknowledged | after:
        return f"{len(acknowledged)} of {len(bodies)} were acknowledged before"
    once = len(asked) == len(bodies) and set(asked.values()) == {1}
    return (
        f"some were acknowledged before, some were not; of those acknowledged {len(lost) or 'none'} is lost; "
        f"asked again, each is there {'once' if once else 'otherwise'}"
    )


@fault("the service is told to end in the middle of load", "some were answered before, all in the end")
def told_to_end(folder: Path) -> str:
    with _process("serve", "--batch-size", "4") as (process, url):
        bodies = [_body(KNOWN, threshold=0.5)] * 60
        open_then: list[int] = []

        def end(done: int) -> None:
            if done == 5:
                process.send_signal(signal.SIGTERM)
                open_then.append(len(bodies) - done)

        found = asyncio.run(_load(url, bodies, end))
        process.wait(30)
    answered = sum(isinstance(one, httpx.Response) and one.status_code == 200 for one in found)
    return f"{'some' if open_then else 'none'} were answered before, {'all' if answered == 60 else answered} in the end"


@fault(
    "the review page's server is killed in the middle of a review, and started again",
    "claimed by ann, still; the decision lands, and once when it is sent twice",
)
def page_killed(folder: Path) -> str:
    database = f"sqlite:///{folder / 'reviews.db'}"
    queue = ReviewQueue(database)
    _submit(queue)
    (item,) = queue.items()
    arguments, environment = ("review", "--queue", database), {"SEMGRAD_GUARD_REVIEW_TOKEN": _TOKEN}
    with httpx.Client(follow_redirects=True) as ann:

        def fill(url: str, path: str, **fields: str) -> httpx.Response:
            form = re.search(r'name="form_token" value="([^"]+)"', ann.get(f"{url}/login").text)
            return ann.post(url + path, data={"form_token": form[1] if form else "", **fields})

        with _process(*arguments, **environment) as (_, url):
            fill(url, "/login", name="ann", token=_TOKEN)
            fill(url, f"/reviews/{item.id}/claim")
        still = queue.get(item.id)
        with _process(*arguments, **environment) as (_, url):
            fields = {"decision": "edit", "text": "what she had typed"}
            statuses = [fill(url, f"/reviews/{item.id}/decision", **fields).status_code for _ in range(2)]
    decided, trail = queue.get(item.id), [event.action for event in queue.trail(item.id)]
    queue.close()
    landed = decided.answer is not None and decided.answer.text == "what she had typed"
    once = trail.count("edit") == 1 and max(statuses) < 500
    return (
        f"{still.status} by {still.reviewer}, still; the decision {'lands' if landed else 'is lost'}, "
        f"and {'once' if once else f'{trail}, {statuses}'} when it is sent twice"
    )


def _submit(queue: ReviewQueue) -> None:

    queue.submit(request_of(question="Where?", draft="draft", confidence=0.3, scores=None, reason="unsure"))
