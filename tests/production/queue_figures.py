"""Reviewers in processes of their own work a queue off; what each of them noted is then held against the database.

    python tests/production/queue_figures.py --items 10000 --reviewers 8 --page docs/queue.md

Exit code 1 where a review was held by two at once, was decided other than once, or other than its reviewer noted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from postgres import MISSING, private_server, programs
from scripted import request_of
from sqlalchemy import make_url

from semgrad_guard import ReviewAnswer, ReviewConflictError, ReviewRequest, Score, Source
from semgrad_guard.review import ReviewItem, ReviewQueue

HAND = 3  # reviews that a reviewer has at a time
LEASE, SHORT_LEASE = 60.0, 0.5  # seconds
RELEASED, OVERDUE = 20, 30  # of so many claims one is given back, one is kept until its lease is over
DECISIONS = cycle(("approve", "edit", "reject", "respond"))
_barrier: Any = None


@dataclass(frozen=True)
class Hold:
    """A review in somebody's hands: from when the claim came back, until the lease ended or the next call began."""

    id: str
    reviewer: str
    since: float
    until: float


@dataclass
class Journal:
    """What one reviewer did, as that reviewer saw it; times are the wall clock's, in seconds."""

    reviewer: str
    began: float = 0.0
    ended: float = 0.0
    holds: list[Hold] = field(default_factory=list)
    decided: list[tuple[str, ReviewAnswer]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    overdue: int = 0
    too_late: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Figures:
    """What came of one run; `problems` is empty if nothing was lost, and nothing held or decided twice."""

    database: str
    items: int
    submitted_per_second: float
    decided_per_second: float
    slowest: float
    counts: dict[str, int]
    problems: list[str]
    load: float


def request(number: int) -> ReviewRequest:
    """Give a request of about the size that a guard's are."""
    names = ("semgrad", "nll", "mean_nll", "mean_entropy", "max_entropy", "paragrad", "exgrad", "hybridgrad")
    scores = dict.fromkeys(names, (number % 70) / 10)
    return request_of(
        question=f"What is number {number}?",
        draft=f"It is the one after {number - 1}. " * 5,
        confidence=(number % 80) / 100,
        scores=Score(**scores, length=30, path="cache", layer_indices=(2, 3), layers=(0.1, 0.2)),
        reason="the confidence is below the threshold",
        sources=(Source(text="A passage about numbers. " * 10, metadata={"page": number}),),
    )


def submit(url: str, numbers: Sequence[int]) -> tuple[float, float, dict[int, str]]:
    """Submit requests as a guard does; give when it began and ended, and the reviews' ids."""
    queue = ReviewQueue(url)
    _barrier.wait()
    began = time.time()
    ids = {number: queue.submit(request(number)) for number in numbers}
    ended = time.time()
    queue.close()
    return began, ended, ids


def review(url: str, reviewer: str) -> Journal:
    """Claim and decide until no review is left undecided."""
    queue, journal = ReviewQueue(url), Journal(reviewer)
    hand: deque[tuple[ReviewItem, float]] = deque()  # with the time of the claim
    overdue: deque[Hold] = deque()
    claims = 0
    _barrier.wait()
    journal.began = time.time()
    while True:
        if overdue and time.time() > overdue[0].until:
            late = overdue.popleft()
            if late.id not in [item.id for item, _ in hand]:  # else it was claimed by the same reviewer again
                _decide(queue, journal, late.id, "respond")
        claims += 1
        item = queue.claim(reviewer, lease=SHORT_LEASE if claims % OVERDUE == 0 else LEASE)
        now = time.time()
        if item is not None and claims % OVERDUE == 0:
            overdue.append(Hold(item.id, reviewer, now, item.lease_until.timestamp()))
            journal.holds.append(overdue[-1])
            journal.overdue += 1
        elif item is not None:
            hand.append((item, now))
        if hand and (item is None or len(hand) == HAND):
            _put_down(queue, journal, *hand.popleft())
        elif item is None and not overdue and _all_decided(queue):
            break
        elif item is None:
            time.sleep(0.05)
    journal.ended = time.time()
    queue.close()
    return journal


def _put_down(queue: ReviewQueue, journal: Journal, item: ReviewItem, since: float) -> None:
    journal.holds.append(Hold(item.id, journal.reviewer, since, time.time()))
    if len(journal.holds) % RELEASED == 0:
        queue.release(item.id, journal.reviewer)
        journal.released.append(item.id)
    else:
        began = time.perf_counter()
        _decide(queue, journal, item.id, next(DECISIONS))
        journal.seconds.append(time.perf_counter() - began)


def _decide(queue: ReviewQueue, journal: Journal, id_: str, decision: str) -> None:
    text = None if decision == "approve" else f"by {journal.reviewer}, number {len(journal.decided)}"
    answer = ReviewAnswer(decision=decision, text=text)
    try:
        queue.decide(id_, answer, journal.reviewer)
    except ReviewConflictError:
        journal.too_late += 1
    else:
        journal.decided.append((id_, answer))


def _all_decided(queue: ReviewQueue) -> bool:
    counts = queue.statistics().counts
    return counts["pending"] + counts["claimed"] == 0


def measure(url: str, *, items: int, reviewers: int) -> Figures:
    """Submit so many requests, each twice and by two processes, and let reviewers work them off."""
    load = os.getloadavg()[0]
    shares = [range(number, items, reviewers) for number in range(reviewers)]
    with _processes(reviewers) as pool:
        submitted = list(pool(submit, [(url, [*own, *other]) for own, other in pairwise([*shares, shares[0]])]))
    ids: dict[int, set[str]] = defaultdict(set)
    for _, _, given in submitted:
        for number, id_ in given.items():
            ids[number].add(id_)
    with _processes(reviewers) as pool:
        journals = list(pool(review, [(url, f"reviewer {number}") for number in range(reviewers)]))
    queue = ReviewQueue(url)
    problems = [f"request {number} became {len(found)} reviews" for number, found in ids.items() if len(found) > 1]
    problems += held_against(queue, {id_ for found in ids.values() for id_ in found}, journals)
    queue.close()
    took = max(ended for _, ended, _ in submitted) - min(began for began, _, _ in submitted)
    worked = max(journal.ended for journal in journals) - min(journal.began for journal in journals)
    counts = {
        "claims": sum(len(journal.holds) for journal in journals),
        "given back": sum(len(journal.released) for journal in journals),
        "kept past the lease": sum(journal.overdue for journal in journals),
        "of these decided too late": sum(journal.too_late for journal in journals),
        "held by two at once": len(twice_held(journals)),
        "decided": sum(len(journal.decided) for journal in journals),
    }
    slowest = max(second for journal in journals for second in journal.seconds)
    return Figures(_named(url), items, 2 * items / took, items / worked, slowest, counts, problems, load)


def held_against(queue: ReviewQueue, ids: set[str], journals: Sequence[Journal]) -> list[str]:
    """Hold what reviewers noted against the database, and give what does not fit."""
    items = {item.id: item for item in queue.items(limit=None)}
    found = [f"{len(ids ^ set(items))} reviews are missing, or were never submitted"] if ids != set(items) else []
    noted: dict[str, list[tuple[str, ReviewAnswer]]] = defaultdict(list)
    events: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for journal in journals:
        for id_, answer in journal.decided:
            noted[id_].append((journal.reviewer, answer))
            events[id_][journal.reviewer, answer.decision] += 1
        for hold in journal.holds:
            events[hold.id][journal.reviewer, "claimed"] += 1
        for id_ in journal.released:
            events[id_][journal.reviewer, "released"] += 1
    for id_, item in items.items():
        if noted[id_] != [(item.reviewer, item.answer)]:
            found.append(f"{id_}: noted {noted[id_]}, in the database {item.reviewer}: {item.answer}")
        trail = [(event.who, event.action) for event in queue.trail(id_)]
        if trail[0] != ("guard", "submitted") or Counter(trail[1:]) != events[id_] or trail[-1][0] != item.reviewer:
            found.append(f"{id_}: noted {dict(events[id_])}, in the trail {trail}")
    return found + [f"{first} and {second} overlap" for first, second in twice_held(journals)]


def twice_held(journals: Sequence[Journal]) -> list[tuple[Hold, Hold]]:
    """Find holds of the same review that overlap in time."""
    by_id: dict[str, list[Hold]] = defaultdict(list)
    for journal in journals:
        for hold in journal.holds:
            by_id[hold.id].append(hold)
    return [
        (first, second)
        for holds in by_id.values()
        for first, second in pairwise(sorted(holds, key=lambda hold: hold.since))
        if first.until > second.since
    ]


@contextmanager
def _processes(count: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Give a map over processes, one call each, in which all begin together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["semgrad_guard.review.queue"])
    together = context.Barrier(count)
    with ProcessPoolExecutor(count, mp_context=context, initializer=_meet, initargs=(together,)) as pool:
        yield lambda function, calls: (done.result() for done in [pool.submit(function, *given) for given in calls])


def _meet(together: Any) -> None:
    global _barrier
    _barrier = together


def _named(url: str) -> str:
    """Name the database and its version."""
    if make_url(url).get_backend_name() == "sqlite":
        return f"SQLite {sqlite3.sqlite_version}"
    queue = ReviewQueue(url)
    with queue._database.engine.connect() as connection:
        shown = connection.exec_driver_sql("SHOW server_version").scalar()
    queue.close()
    return f"PostgreSQL {str(shown).split()[0]}"


_PAGE = """\
# The review queue under load

Written by `python tests/production/queue_figures.py --items {items} --reviewers {reviewers} --page docs/queue.md`,
which fails if anything below is not so.

{reviewers} processes submit {items:,} requests, each request twice and by two of them; then {reviewers} processes, each
a reviewer, work them off at once, as fast as they can. A reviewer has {hand} reviews at a time, and decides with
approve, edit, reject and respond in turn. One review in {released} is given back undecided; one in {overdue} is kept
until its lease of {short} s is over, and decided on only then, which is refused if somebody else has had it meanwhile.
Every reviewer notes what was claimed, when, what was decided, and what the queue answered. Afterwards these notes are
held against the database and its trail:

- every request became one review, however often it was submitted;
- every review is decided, exactly once, and as the one reviewer noted who was told that the decision stands;
- nobody was handed a review while somebody else had it: by the reviewers' clocks no two holds of a review overlap;
- the trail of each review has these claims, returns and decisions, and no others.

| | {databases} |
|---|{rule}
{rows}

Run on {cores} cores, {machine}, Python {python}, SQLAlchemy {sqlalchemy}. The databases have their default settings:
each step is on the disk before it counts. PostgreSQL ran on the same machine, over a socket.
"""


def page(found: Sequence[Figures], *, reviewers: int) -> str:
    """Write the page."""
    rows = {
        "requests submitted per second": [f"{each.submitted_per_second:.0f}" for each in found],
        "reviews claimed and decided per second": [f"{each.decided_per_second:.0f}" for each in found],
        "load average of the machine before": [f"{each.load:.1f}" for each in found],
        "slowest decision, s": [f"{each.slowest:.2f}" for each in found],
        **{name: [f"{each.counts[name]:,}" for each in found] for name in found[0].counts},
        "contradictions": [str(len(each.problems)) for each in found],
    }
    return _PAGE.format(
        items=found[0].items,
        reviewers=reviewers,
        hand=HAND,
        released=RELEASED,
        overdue=OVERDUE,
        short=SHORT_LEASE,
        databases=" | ".join(each.database for each in found),
        rule="---|" * len(found),
        rows="\n".join(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
        cores=os.cpu_count(),
        machine=platform.machine(),
        python=platform.python_version(),
        sqlalchemy=version("sqlalchemy"),
    )


def main() -> int:
    """Measure, write, and tell whether all is well."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--items", type=int, default=10_000)
    options.add_argument("--reviewers", type=int, default=8)
    options.add_argument("--url", action="append", help="an empty database; default: SQLite, and a PostgreSQL server")
    options.add_argument("--page", type=Path, help="where to write the page; default: print it")
    given = options.parse_args()
    found = []
    if given.url:
        found += [measure(url, items=given.items, reviewers=given.reviewers) for url in given.url]
    else:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(f"sqlite:///{folder}/reviews.db", items=given.items, reviewers=given.reviewers))
        if programs() is None:
            print(f"PostgreSQL is left out: {MISSING}", file=sys.stderr)
        else:
            with private_server() as server:
                found.append(measure(server.url, items=given.items, reviewers=given.reviewers))
    written = page(found, reviewers=given.reviewers)
    if given.page is None:
        print(written)
    else:
        given.page.write_text(written, encoding="utf-8")
    problems = [f"{each.database}: {problem}" for each in found for problem in each.problems]
    print(*problems[:20], sep="\n", end="", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
