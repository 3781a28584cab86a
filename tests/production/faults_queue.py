"""Faults of the review queue and of human review."""

from __future__ import annotations

import multiprocessing
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from faulty import NotRun, fault
from postgres import MISSING, private_server, programs
from scripted import request_of

from semgrad_guard import HumanReview, ReviewAnswer, ReviewRequest, SemGradGuard
from semgrad_guard.review import ReviewQueue

KILLED = 12  # processes, one after the other


def _asked(*routes: HumanReview, question: str = "Where?") -> str:
    """Let a guard answer that is not sure, and tell what came of it."""
    from scripted import profile, scripted

    guard = SemGradGuard(scripted(0.3), profile=profile(), routes=[*routes])
    message = guard.invoke(question)
    record = message.response_metadata["semgrad_decision"]
    if "draft" in message.text:
        return f"the draft went out: {record['decision']}"
    if record["decision"] == "abstain":
        return f"abstains: {record['steps'][-1]['reason']}"
    return "waits in the queue" if record["review_id"] else f"{record['decision']}: {message.text}"


def _url(folder: Path) -> str:
    return f"sqlite:///{folder / 'reviews.db'}"


@contextmanager
def _queue(url: str, **settings: Any) -> Iterator[ReviewQueue]:
    queue = ReviewQueue(url, **settings)
    try:
        yield queue
    finally:
        queue.close()


@contextmanager
def _postgres() -> Iterator[Any]:
    if programs() is None:
        raise NotRun(MISSING)
    with private_server() as server:
        yield server


_LOCKING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@fault(
    "another process keeps the database locked for longer than the queue waits",
    "abstains: ReviewError; 0 reviews; when it is free again: waits in the queue",
)
def locked(folder: Path) -> str:
    with _queue(_url(folder), busy_timeout=0.3) as queue:
        command = [sys.executable, "-c", _LOCKING, str(folder / "reviews.db")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            other.stdout.readline()
            while_locked = _asked(HumanReview(queue=queue))
            reviews = len(queue.items())
            other.stdin.close()
        return f"{while_locked}; {reviews} reviews; when it is free again: {_asked(HumanReview(queue=queue))}"


@fault(
    "another process keeps the database locked for a moment",
    "waits in the queue",
)
def locked_for_a_moment(folder: Path) -> str:
    with _queue(_url(folder)) as queue:
        command = [sys.executable, "-c", _LOCKING, str(folder / "reviews.db")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            other.stdout.readline()
            threading.Timer(1.0, other.stdin.close).start()
            return _asked(HumanReview(queue=queue))


@fault(
    "the disk is full",
    "abstains: ReviewError; of the reviews before none is missing, and one can be decided on; "
    "when there is room again: waits in the queue",
)
def disk_full(folder: Path) -> str:
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        raise NotRun("a small file system cannot be mounted here")
    try:
        with _queue(_url(disk)) as queue:
            ballast = disk / "ballast"
            ballast.write_bytes(b"x" * 1_000_000)
            put, outcome = 0, "waits in the queue"
            while outcome == "waits in the queue" and put < 10_000:
                outcome = _asked(HumanReview(queue=queue), question=f"{put}? {'long ' * 500}")
                put += outcome == "waits in the queue"
            missing = put - len(queue.items(limit=None))
            ballast.unlink()
            later = _asked(HumanReview(queue=queue))
            decided = queue.decide(queue.items()[0].id, "approve", "ann").status == "decided"
        return (
            f"{outcome}; of the reviews before "
            f"{missing or 'none'} is missing, and one can{'' if decided else 'not'} be decided on; "
            f"when there is room again: {later}"
        )
    finally:
        subprocess.run(["umount", disk], check=True)


@fault(
    "the database's file is deleted while the queue is open",
    "abstains: ReviewError; opened again: waits in the queue",
)
def deleted(folder: Path) -> str:
    with _queue(_url(folder)) as queue:
        _asked(HumanReview(queue=queue))
        for file in folder.glob("reviews.db*"):
            file.unlink()
        outcome = _asked(HumanReview(queue=queue))
    with _queue(_url(folder)) as again:
        return f"{outcome}; opened again: {_asked(HumanReview(queue=again))}"


@fault(
    "a queue fails, and another route comes after it",
    "review: asked somebody else",
)
def next_route(folder: Path) -> str:
    other = HumanReview(lambda request: ReviewAnswer(decision="respond", text="asked somebody else"))
    with _queue(_url(folder), busy_timeout=0.1) as queue:
        lock = sqlite3.connect(folder / "reviews.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        outcome = _asked(HumanReview(queue=queue), other)
        lock.close()
    return outcome


@fault(
    "the PostgreSQL server is stopped at once, and started again",
    "abstains: ReviewError; after the start 1 review is there, and the next: waits in the queue",
)
def postgres_stopped(folder: Path) -> str:
    with _postgres() as server, _queue(server.url) as queue:
        _asked(HumanReview(queue=queue))
        server.stop("immediate")
        outcome = _asked(HumanReview(queue=queue), question="Who?")
        server.start()
        there = len(queue.items())
        later = _asked(HumanReview(queue=queue), question="Who?")
        return f"{outcome}; after the start {there} review is there, and the next: {later}"


@fault(
    "the PostgreSQL server is stopped while a guard waits for a decision",
    "abstains: ReviewError; after the start 1 review is there, undecided",
)
def postgres_stopped_while_waiting(folder: Path) -> str:
    with _postgres() as server, _queue(server.url) as queue:
        stopping = threading.Timer(0.5, server.stop)
        stopping.start()
        outcome = _asked(HumanReview(queue=queue, wait_seconds=30))
        stopping.join()
        server.start()
        (item,) = queue.items()
        return f"{outcome}; after the start 1 review is there, {'undecided' if item.answer is None else 'decided'}"


@fault(
    "a callback takes longer than its timeout", "abstains: TimeoutError: no answer within 0.2 s; after less than 2 s"
)
def slow_callback(folder: Path) -> str:
    began = time.monotonic()
    outcome = _asked(HumanReview(lambda request: time.sleep(5) or "approve", timeout_seconds=0.2))
    return f"{outcome}; after {'less' if time.monotonic() - began < 2 else 'more'} than 2 s"


@fault("a callback raises", "abstains: ConnectionError")
def failing_callback(folder: Path) -> str:
    def callback(request: ReviewRequest) -> str:
        raise ConnectionError("nobody is there")

    return _asked(HumanReview(callback))


@fault("a callback answers what is no decision", "abstains: ValidationError")
def senseless_callback(folder: Path) -> str:
    return _asked(HumanReview(lambda request: "perhaps"))


_REVIEWERS_KILLED = (
    f"{KILLED} killed; 300 reviews, 300 decided once, 0 decisions of which the reviewer was told lost, "
    "0 trails that tell otherwise"
)
_GUARDS_KILLED = f"{KILLED} killed; 0 submissions of which the guard was told lost, 0 reviews without a trail, 0 twice"


@fault("reviewers are killed in the middle of deciding (SQLite)", _REVIEWERS_KILLED)
def reviewers_killed(folder: Path) -> str:
    return _kill_reviewers(_url(folder))


@fault("reviewers are killed in the middle of deciding (PostgreSQL)", _REVIEWERS_KILLED)
def reviewers_killed_on_postgres(folder: Path) -> str:
    with _postgres() as server:
        return _kill_reviewers(server.url)


@fault("guards are killed in the middle of submitting (SQLite)", _GUARDS_KILLED)
def guards_killed(folder: Path) -> str:
    return _kill_guards(_url(folder))


@fault("guards are killed in the middle of submitting (PostgreSQL)", _GUARDS_KILLED)
def guards_killed_on_postgres(folder: Path) -> str:
    with _postgres() as server:
        return _kill_guards(server.url)


def _kill_reviewers(url: str) -> str:
    with _queue(url) as queue:
        ids = {queue.submit(_request(number)) for number in range(300)}
        told: dict[str, ReviewAnswer] = {}
        killed = 0
        while killed < KILLED:
            for id_, answer in _killed(_decide_all, url, f"reviewer {killed}"):
                told[id_] = answer
            killed += 1
        if not 0 < len(told) < len(ids):
            return f"{len(told)} decisions were made before the last reviewer was killed"
        for id_, answer in _ended(_decide_all, url, "the last"):
            told[id_] = answer
        items = queue.items(limit=None)
        once = lost = otherwise = 0
        for item in items:
            decisions = [event for event in queue.trail(item.id) if event.action in _DECISIONS]
            once += len(decisions) == 1
            lost += item.id in told and told[item.id] != item.answer
            otherwise += item.answer is None or [(item.reviewer, item.answer.decision)] != [
                (event.who, event.action) for event in decisions
            ]
        lost += len(ids - {item.id for item in items})
        return (
            f"{killed} killed; {len(items)} reviews, {once} decided once, {lost} decisions of which the reviewer was "
            f"told lost, {otherwise} trails that tell otherwise"
        )


def _kill_guards(url: str) -> str:
    with _queue(url) as queue:
        told: list[tuple[int, str]] = []
        for number in range(KILLED):
            told += _killed(_submit_all, url, 1000 * number)
        if not told:
            return "no guard had submitted anything when it was killed"
        items = {item.id: [event.action for event in queue.trail(item.id)] for item in queue.items(limit=None)}
        lost = sum(id_ not in items for _, id_ in told)
        without = sum(actions != ["submitted"] for actions in items.values())
        again = sum(queue.submit(_request(number)) != id_ for number, id_ in told)
        return (
            f"{KILLED} killed; {lost} submissions of which the guard was told lost, {without} reviews without a trail, "
            f"{again} twice"
        )


_DECISIONS = ("approve", "edit", "reject", "respond")


def _request(number: int) -> ReviewRequest:
    return request_of(question=f"{number}?", draft="draft " * 200, confidence=0.3, scores=None, reason="unsure")


def _decide_all(url: str, reviewer: str, told: Connection) -> None:
    """Claim and decide, and tell of each decision that stands, until none is left undecided."""
    queue = ReviewQueue(url)
    told.send("ready")
    for number, decision in zip(count(), cycle(_DECISIONS), strict=False):
        while (item := queue.claim(reviewer, lease=1.0)) is None:
            counts = queue.statistics().counts
            if counts["pending"] + counts["claimed"] == 0:
                return
            time.sleep(0.05)
        answer = ReviewAnswer(decision=decision, text=None if decision == "approve" else f"{reviewer}, {number}")
        queue.decide(item.id, answer, reviewer)
        told.send((item.id, answer))


def _submit_all(url: str, first: int, told: Connection) -> None:
    queue = ReviewQueue(url)
    told.send("ready")
    for number in count(first):
        told.send((number, queue.submit(_request(number))))


def _started(work: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["semgrad_guard.review.queue"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*arguments, theirs))
    process.start()
    theirs.close()
    ours.recv()  # it is ready
    return process, ours


def _killed(work: Callable[..., None], *arguments: Any) -> list[Any]:
    """Let a process work for a moment and kill it; give what it has told."""
    process, told = _started(work, *arguments)
    time.sleep(random.uniform(0.0, 0.1))
    process.kill()
    said = _all_of(told)
    process.join()
    if process.exitcode != -signal.SIGKILL:
        raise AssertionError(f"the process was to be killed, and ended with {process.exitcode}")
    return said


def _ended(work: Callable[..., None], *arguments: Any) -> list[Any]:
    process, told = _started(work, *arguments)
    said = _all_of(told)
    process.join()
    return said


def _all_of(told: Connection) -> list[Any]:
    said = []
    while True:
        try:
            said.append(told.recv())
        except EOFError:
            return said
