"""The review queue on PostgreSQL: on a server of its own, or in the database that SEMGRAD_GUARD_POSTGRES names."""

import math
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from scripted import request_of, score
from sqlalchemy.exc import DBAPIError

from semgrad_guard import ReviewAnswer, ReviewConflictError
from semgrad_guard.records import CallConfidence
from semgrad_guard.review import ReviewQueue
from semgrad_guard.review.items import ReviewFilter
from semgrad_guard.review.tables import Base

REVIEWERS = 8


@pytest.fixture(scope="module")
def queues(postgres_url):
    """One queue for each reviewer, opened at once, so that all want to make the tables."""
    with ThreadPoolExecutor(REVIEWERS) as threads:
        opened = list(threads.map(lambda _: ReviewQueue(postgres_url), range(REVIEWERS)))
    yield opened
    opened[0].purge(0, "the test")
    for queue in opened:
        queue.close()


def request(question, **fields):
    return request_of(**{"question": question, "draft": "draft", "confidence": 0.3, "reason": "unsure"} | fields)


def test_reviewers_claim_everything_once(queues):
    questions = [f"{uuid4()}?" for _ in range(200)]
    with ThreadPoolExecutor(REVIEWERS) as threads:  # each twice, by different queues
        twice = list(threads.map(lambda n: queues[n % 7].submit(request(questions[n // 2])), range(400)))
    assert len(set(twice)) == 200

    def work(number):
        claimed = []
        while (item := queues[number].claim(f"reviewer {number}")) is not None:
            queues[number].decide(item.id, "approve", f"reviewer {number}")
            claimed.append(item.id)
        return claimed

    with ThreadPoolExecutor(REVIEWERS) as threads:
        claimed = [id_ for share in threads.map(work, range(REVIEWERS)) for id_ in share]
    assert len(claimed) == 200
    assert set(claimed) == set(twice)


def test_one_of_many_decisions_at_once_stands(queues):
    def decide(number):
        try:
            queues[number].decide(id_, ReviewAnswer(decision="respond", text=str(number)), f"reviewer {number}")
        except ReviewConflictError:
            return None
        return number

    for _ in range(10):
        id_ = queues[0].submit(request(f"{uuid4()}?"))
        with ThreadPoolExecutor(REVIEWERS) as threads:
            (stands,) = [number for number in threads.map(decide, range(REVIEWERS)) if number is not None]
        assert queues[0].get(id_).text == str(stands)
        assert [event.action for event in queues[0].trail(id_)] == ["submitted", "respond"]


def test_numbers_that_are_not_finite_and_texts_with_nul_are_kept(queues):
    asked = request("a\0b", draft="c\0", scores=score(math.nan, nll=math.inf), reason="r\0")
    id_ = queues[0].submit(asked)
    assert queues[0].submit(asked) == id_
    kept = queues[1].get(id_).request
    assert (kept.question, kept.draft) == ("a\N{REPLACEMENT CHARACTER}b", "c\N{REPLACEMENT CHARACTER}")
    assert math.isnan(kept.verdict.scores.semgrad)
    assert (kept.verdict.scores.nll, kept.verdict.reason) == (math.inf, "r\N{REPLACEMENT CHARACTER}")
    for _ in range(2):
        decided = queues[0].decide(id_, ReviewAnswer(decision="edit", text="d\0"), "ann")
    assert decided.text == "d\N{REPLACEMENT CHARACTER}"
    assert [event.action for event in queues[0].trail(id_)] == ["submitted", "edit"]


@pytest.mark.parametrize("change", ["UPDATE review_events SET who = 'nobody'", "DELETE FROM review_events"])
def test_the_trail_can_only_grow(queues, change):
    with pytest.raises(DBAPIError, match="can only grow"), queues[0]._database.engine.begin() as connection:
        connection.exec_driver_sql(change)


def test_the_migrations_make_what_the_models_say(queues):
    with queues[0]._database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_what_the_review_page_asks_is_the_same_as_on_sqlite(queues, tmp_path):
    word = str(uuid4())
    sqlite = ReviewQueue(f"sqlite:///{tmp_path / 'reviews.db'}")
    call = {"call": CallConfidence(name="f", confidence=0.1, arguments={})}
    found = []
    for queue in (queues[0], sqlite):
        for number, confidence in enumerate((0.5, None, 0.1, 0.9)):
            calls = call if number == 2 else {}
            queue.submit(request(f"{word} {number}", confidence=confidence, tool_calls=calls))
        ids = [item.id for item in queue.items(contains=word)]
        queue.claim("ann", id_=ids[3])
        queue.decide(ids[3], "approve", "ann")
        filters = [ReviewFilter(contains=word, **more) for more in _FILTERS]
        found.append(
            [
                [[ids.index(item.id) for item in queue.items(only=only, order=order)] for only in filters]
                for order in ("oldest", "least confident")
            ]
            + [[queue.count(only) for only in filters], queue.neighbours(ids[1]) == (ids[0], ids[2])]
            + [[verdict.claimed is not None for verdict in queue.verdicts() if verdict.id == ids[3]]]
        )
    assert found[0] == found[1]
    assert found[0][1][0] == [1, 2, 0, 3]
    assert found[0][2] == [4, 3, 1, 1, 3, 2, 1]
    sqlite.close()


_FILTERS = (
    {},
    {"status": "pending"},
    {"status": "decided"},
    {"tool_calls": True},
    {"tool_calls": False},
    {"least": 0.5},
    {"most": 0.2},
)
