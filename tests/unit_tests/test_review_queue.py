"""The review queue on SQLite: nothing is handed out twice, nothing is lost, and what is deleted is gone."""

import asyncio
import json
import math
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from clock import Clock
from scripted import request_of, score, score_of
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from semgrad_guard import ConfigurationError, ReviewAnswer, ReviewConflictError, ReviewError, Source
from semgrad_guard.calibration.examples import read_examples
from semgrad_guard.records import CallConfidence
from semgrad_guard.review import ReviewQueue
from semgrad_guard.review.database import Database
from semgrad_guard.review.tables import Base, Event, Review
from semgrad_guard.settings import check_seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'reviews.db'}"


@pytest.fixture
def queue(url, clock):
    opened = ReviewQueue(url, clock=clock)
    yield opened
    opened.close()


def request(question="Where?", draft="draft", **fields):
    values = {"question": question, "draft": draft, "confidence": 0.3, "scores": score_of(0.3), "reason": "unsure"}
    return request_of(**values | fields)


def test_what_was_submitted_is_what_comes_back(queue, clock):
    asked = request(
        "Où est Zoë? 🤔",
        sources=(Source(text="a passage", metadata={"page": 7}),),
        tool_calls={"call-1": CallConfidence(name="search", confidence=None, arguments={"query": 0.5})},
        conversation=("human: Hello", "ai: Hi"),
    )
    item = queue.get(queue.submit(asked))
    assert item.request == asked
    assert (item.status, item.created, item.answer, item.text) == ("pending", clock.now, None, None)


def test_scores_that_are_not_finite_are_kept(queue):
    item = queue.get(queue.submit(request(scores=score(math.nan, nll=math.inf), confidence=None)))
    assert math.isnan(item.request.verdict.scores.semgrad)
    assert item.request.verdict.scores.nll == math.inf


def test_the_same_request_is_the_same_review(queue):
    first = queue.submit(request())
    assert queue.submit(request(confidence=0.4)) == first
    assert queue.submit(request("Who?")) != first
    assert queue.submit(request(sources=(Source(text="another"),))) != first
    assert queue.submit(request(conversation=("human: Of whom?", "human: Where?"))) != first
    assert queue.submit(request(), key="order 7") != first
    assert queue.submit(request("Who?"), key="order 7") == queue.submit(request(), key="order 7")
    assert [event.action for event in queue.trail(first)] == ["submitted"]


def test_many_who_submit_the_same_at_once_make_one_review(queue):
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: queue.submit(request()), range(40)))) == 1
    assert len(queue.items()) == 1


def test_the_oldest_is_claimed_first_and_by_one_reviewer_only(queue, clock):
    ids = [queue.submit(request(f"{number}?")) for number in range(2)]
    item = queue.claim("ann", lease=60)
    assert (item.id, item.status, item.reviewer) == (ids[0], "claimed", "ann")
    assert item.lease_until == clock.now + timedelta(seconds=60)
    assert queue.claim("bob").id == ids[1]
    assert queue.claim("cem") is None


def test_a_lease_that_runs_out_makes_it_pending_again(queue, clock):
    id_ = queue.submit(request())
    queue.claim("ann", lease=60)
    clock.on(59.9)
    assert queue.claim("bob") is None
    clock.on(0.1)
    assert (queue.get(id_).status, queue.get(id_).reviewer) == ("pending", None)
    assert queue.claim("bob").id == id_
    with pytest.raises(ReviewConflictError, match="is with bob until 2026-01-01"):
        queue.decide(id_, "approve", "ann")
    assert [(event.who, event.action) for event in queue.trail(id_)] == [
        ("guard", "submitted"),
        ("ann", "claimed"),
        ("bob", "claimed"),
    ]


def test_a_lease_is_renewed_and_given_back_by_who_holds_it(queue, clock):
    id_ = queue.submit(request())
    with pytest.raises(ReviewConflictError, match="not claimed"):
        queue.renew(id_, "ann")
    queue.claim("ann", lease=60)
    clock.on(50)
    assert queue.renew(id_, "ann", lease=60).lease_until == clock.now + timedelta(seconds=60)
    clock.on(50)
    with pytest.raises(ReviewConflictError, match="is with ann"):
        queue.release(id_, "bob")
    assert queue.release(id_, "ann").status == "pending"
    assert queue.claim("bob").id == id_


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        ("approve", "draft"),
        (ReviewAnswer(decision="edit", text="better"), "better"),
        (ReviewAnswer(decision="respond", text="mine"), "mine"),
        ("reject", None),
    ],
)
def test_a_decision_is_kept(queue, clock, decision, text):
    id_ = queue.submit(request())
    queue.claim("ann")
    clock.on(5)
    assert queue.decide(id_, decision, "ann") == queue.get(id_)
    item = queue.get(id_)
    assert (item.status, item.reviewer, item.decided, item.text) == ("decided", "ann", clock.now, text)
    assert item.answer == ReviewAnswer.of(decision)
    assert queue.claim("bob") is None
    assert queue.trail(id_)[-1].action == item.answer.decision


def test_deciding_the_same_again_is_nothing_and_otherwise_a_conflict(queue, clock):
    id_ = queue.submit(request())
    first = queue.decide(id_, ReviewAnswer(decision="edit", text="better"), "ann")
    clock.on(1)
    assert queue.decide(id_, ReviewAnswer(decision="edit", text="better"), "bob") == first
    for other in ("approve", ReviewAnswer(decision="edit", text="worse")):
        with pytest.raises(ReviewConflictError, match="was decided by ann: edit"):
            queue.decide(id_, other, "bob")
    assert queue.get(id_) == first
    assert len(queue.trail(id_)) == 2


def test_one_of_many_decisions_at_once_stands(queue):
    id_ = queue.submit(request())

    def decide(number):
        try:
            queue.decide(id_, ReviewAnswer(decision="respond", text=str(number)), f"reviewer {number}")
        except ReviewConflictError:
            return None
        return number

    with ThreadPoolExecutor(8) as threads:
        (stands,) = [number for number in threads.map(decide, range(16)) if number is not None]
    assert queue.get(id_).text == str(stands)


def test_a_review_that_changed_since_it_was_read_is_not_written_over(queue):
    queue.submit(request())
    with Session(queue._database.engine) as session:
        review = session.query(Review).one()
        session.expunge(review)  # it keeps what was read
    queue.claim("bob")
    with Session(queue._database.engine) as session:
        review.reviewer = "ann"
        session.add(review)
        with pytest.raises(StaleDataError):
            session.commit()
    assert queue.items()[0].reviewer == "bob"


def test_a_decision_without_what_it_needs_is_refused(queue):
    id_ = queue.submit(request())
    for wrong in ("edit", "maybe"):
        with pytest.raises(ValueError, match="decision"):
            queue.decide(id_, wrong, "ann")
    with pytest.raises(ConfigurationError, match="a name of 1 to 200"):
        queue.decide(id_, "approve", " ")
    with pytest.raises(ConfigurationError, match="a name of 1 to 200"):
        queue.decide(id_, "approve", "a\0")
    with pytest.raises(ConfigurationError, match="lease=0"):
        queue.claim("ann", lease=0)
    with pytest.raises(ReviewError, match="no review 'nothing'"):
        queue.decide("nothing", "approve", "ann")
    assert queue.get(id_).status == "pending"


def test_a_review_nobody_decides_on_expires_and_starts_anew_when_asked_again(url, clock):
    queue = ReviewQueue(url, lifetime=100, clock=clock)
    id_ = queue.submit(request())
    queue.claim("ann", lease=500)
    clock.on(100)
    assert queue.get(id_).status == "expired"
    assert queue.claim("bob") is None
    assert queue.wait(id_, 60) is None  # at once
    with pytest.raises(ReviewConflictError, match="has expired"):
        queue.decide(id_, "approve", "ann")
    assert queue.submit(request()) == id_
    assert queue.get(id_).status == "claimed"
    assert queue.decide(id_, "approve", "ann").status == "decided"
    clock.on(1000)
    assert queue.get(id_).status == "decided"


def test_eight_reviewers_claim_everything_once(queue):
    ids = {queue.submit(request(f"{number}?")) for number in range(400)}
    assert len(ids) == 400
    together = threading.Barrier(8)

    def work(reviewer):
        together.wait()
        claimed = []
        while (item := queue.claim(reviewer)) is not None:
            queue.decide(item.id, "approve", reviewer)
            claimed.append(item.id)
        return claimed

    with ThreadPoolExecutor(8) as threads:
        shares = threads.map(work, (f"reviewer {number}" for number in range(8)))
        claimed = [id_ for share in shares for id_ in share]
    assert len(claimed) == 400
    assert set(claimed) == ids
    assert queue.statistics().decisions == {"approve": 400}


def test_two_queues_share_a_file_also_when_both_make_it(url):
    with ThreadPoolExecutor(8) as threads:
        queues = list(threads.map(lambda _: ReviewQueue(url), range(8)))
    id_ = queues[0].submit(request())
    assert queues[1].claim("ann").id == id_
    assert queues[2].claim("bob") is None
    queues[3].decide(id_, "approve", "ann")
    assert queues[4].wait(id_, 0).decision == "approve"


def test_a_database_that_is_locked_for_a_while_is_waited_for(queue, tmp_path):
    other = sqlite3.connect(tmp_path / "reviews.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    free = threading.Timer(0.5, other.execute, ["ROLLBACK"])
    free.start()
    id_ = queue.submit(request())
    free.join()
    other.close()
    assert queue.get(id_).status == "pending"


def test_a_database_that_stays_locked_is_an_error_without_any_text(queue, url, tmp_path):
    impatient = ReviewQueue(url, busy_timeout=0.1)
    other = sqlite3.connect(tmp_path / "reviews.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ReviewError, match="database is locked") as caught:
        impatient.submit(request("a secret"))
    assert "a secret" not in str(caught.value)
    assert "a secret" not in str(caught.value.__cause__)
    assert impatient.items() == []  # readers go on
    other.execute("ROLLBACK")
    other.close()
    assert impatient.submit(request("a secret"))


def test_a_full_disk_is_an_error_and_keeps_what_was_there(queue):
    id_ = queue.submit(request())
    with queue._database.engine.connect() as connection:  # the one that the queue goes on to use
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ReviewError, match="full"):
        queue.submit(request("Who?", "draft " * 10_000))
    assert [item.id for item in queue.items()] == [id_]
    assert queue.decide(id_, "approve", "ann").status == "decided"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_deleted_takes_nothing_more(queue, url, tmp_path, replaced):
    queue.submit(request())
    for file in tmp_path.glob("reviews.db*"):
        file.unlink()
    if replaced:
        ReviewQueue(url).close()
    with pytest.raises(ReviewError, match="deleted or replaced; open the queue again"):
        queue.submit(request("Who?"))
    with pytest.raises(ReviewError, match="deleted or replaced"):
        queue.items()
    again = ReviewQueue(url)
    again.submit(request("Who?"))
    assert [item.request.question for item in again.items()] == ["Who?"]


def test_a_url_may_be_relative_or_a_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative, uri = ReviewQueue("sqlite:///a.db"), ReviewQueue("sqlite:///file:b.db?cache=private&uri=true")
    monkeypatch.chdir("/")
    assert relative.submit(request())
    assert uri.submit(request())


_KILLED = """
import sys
from semgrad_guard import ReviewRequest, Verdict
from semgrad_guard.review import ReviewQueue

queue = ReviewQueue(sys.argv[1])
verdict = Verdict(passed=False, confidence=None, scores=None, threshold=None, method="fused", reason="")
print(queue.claim("ann", lease=3600).id, flush=True)
for number in range(10**6):
    asked = ReviewRequest(question=f"{number}?", draft="", verdict=verdict)
    print(queue.submit(asked), flush=True)
"""


def test_a_process_killed_in_the_middle_loses_nothing(queue, url, clock):
    clock.now = datetime.now(UTC)
    held = queue.submit(request())
    with subprocess.Popen([sys.executable, "-c", _KILLED, url], stdout=subprocess.PIPE, text=True) as process:
        told = [process.stdout.readline().strip() for _ in range(30)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.read().split("\n")[:-1]
    assert process.returncode == -signal.SIGKILL
    assert told[0] == held
    assert set(told) <= {item.id for item in queue.items(limit=None)}
    assert queue.get(held).status == "claimed"
    clock.on(3700)
    assert queue.claim("bob").id == held


def test_waiting_ends_with_the_decision_or_the_time(queue):
    id_ = queue.submit(request())
    assert queue.wait(id_, 0) is None
    assert queue.wait(id_, 0.1) is None
    decide = threading.Timer(0.2, queue.decide, [id_, "approve", "ann"])
    decide.start()
    assert queue.wait(id_, 30).decision == "approve"
    decide.join()
    with pytest.raises(ReviewError, match="no review"):
        queue.wait("nothing", 0)


async def test_waiting_takes_no_thread(queue):
    id_ = queue.submit(request())
    assert await queue.await_(id_, 0) is None
    decide = threading.Timer(0.2, queue.decide, [id_, "approve", "ann"])
    decide.start()
    assert (await queue.await_(id_, 30)).decision == "approve"
    decide.join()


def test_items_are_found_by_what_they_are(queue, clock):
    ids = [queue.submit(request(f"What is {place}?")) for place in ("100%", "Paris", "Rome", "Oslo")]
    queue.decide(ids[0], "approve", "ann")
    queue.decide(ids[1], "reject", "bob")
    assert queue.claim("ann").id == ids[2]

    def found(**filters):
        return [ids.index(item.id) for item in queue.items(**filters)]

    assert found() == [0, 1, 2, 3]
    assert found(status="decided") == [0, 1]
    assert found(status="claimed") == [2]
    assert found(status="pending") == [3]
    assert found(decision="reject") == [1]
    assert found(reviewer="ann") == [0, 2]
    assert found(contains="pARIS") == [1]
    assert found(contains="%") == [0]
    assert found(limit=2, offset=1) == [1, 2]
    with pytest.raises(ConfigurationError, match="status='lost'"):
        queue.items(status="lost")


def test_statistics(queue, clock):
    assert queue.statistics().model_dump() == {
        "counts": {"pending": 0, "claimed": 0, "decided": 0, "expired": 0},
        "decisions": {},
        "oldest": None,
        "approved": None,
    }
    ids = []
    for number in range(6):
        ids.append(queue.submit(request(f"{number}?")))
        clock.on(10)
    for id_, decision in zip(ids[:4], ("approve", "reject", "reject", "approve"), strict=True):
        queue.decide(id_, decision, "ann")
    queue.claim("ann")
    assert queue.statistics().model_dump() == {
        "counts": {"pending": 1, "claimed": 1, "decided": 4, "expired": 0},
        "decisions": {"approve": 2, "reject": 2},
        "oldest": 20.0,
        "approved": 0.5,
    }


def left(tmp_path, word):
    return [path.name for path in tmp_path.iterdir() if word.encode() in path.read_bytes()]


def test_what_is_deleted_or_purged_leaves_no_text_behind(queue, clock, tmp_path):
    def submit(word, number):
        text = f"{word} " * (number * 37 % 900)  # from less than a page to several
        id_ = queue.submit(request(f"{word} {number}", f"{text}.", reason=word, sources=(Source(text=f"{text}!"),)))
        queue.decide(id_, ReviewAnswer(decision="edit", text=f"{word} {number}"), "ann")
        return id_

    secret = [submit("SECRET", number) for number in range(60)]
    clock.on(100)
    kept = [submit("PUBLIC", number) for number in range(60)]
    single = submit("CANARY", 899)
    assert left(tmp_path, "SECRET")
    queue.delete(single, "dpo")
    assert left(tmp_path, "CANARY") == []
    assert queue.purge(50, "dpo") == 60
    assert left(tmp_path, "SECRET") == []
    assert [item.id for item in queue.items(limit=None)] == kept
    with pytest.raises(ReviewError, match="or no longer"):
        queue.get(secret[0])
    assert [(event.who, event.action) for event in queue.trail(secret[0])][-1] == ("dpo", "purged")
    assert [(event.who, event.action) for event in queue.trail(single)][-1] == ("dpo", "deleted")
    assert queue.purge(50, "dpo") == 0


def test_deleting_says_so_if_text_may_be_left(queue, url, tmp_path):
    id_ = queue.submit(request("SECRET"))
    impatient = ReviewQueue(url, busy_timeout=0.1)
    reader = sqlite3.connect(tmp_path / "reviews.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM reviews").fetchall()
    with pytest.raises(ReviewError, match="texts may be left in it"):
        impatient.delete(id_, "dpo")
    reader.execute("ROLLBACK")
    reader.close()
    impatient.purge(10**6, "dpo")
    assert left(tmp_path, "SECRET") == []


@pytest.mark.parametrize("change", ["UPDATE review_events SET who = 'nobody'", "DELETE FROM review_events"])
def test_the_trail_can_only_grow(queue, change):
    id_ = queue.submit(request())
    with pytest.raises(DBAPIError, match="can only grow"), queue._database.engine.begin() as connection:
        connection.exec_driver_sql(change)
    assert len(queue.trail(id_)) == 1


def test_decided_reviews_are_exported_as_examples(queue, tmp_path, clock):
    def decided(question, decision, text=None, draft="draft", **fields):
        clock.on(1)
        answer = ReviewAnswer(decision=decision, text=text)
        queue.decide(queue.submit(request(question, draft, **fields)), answer, "ann")

    decided("approved?", "approve")
    decided("edited?", "edit", "bet\u2028ter")
    decided("answered?", "respond", "mine")
    decided("rejected?", "reject", "No.")
    decided("edited to the same?", "edit", "draft ")
    decided("answered without a draft?", "respond", "mine", draft="")
    decided("rejected without a draft?", "reject", draft="")
    decided(" ", "approve")
    decided("a call?", "approve", tool_calls={"1": CallConfidence(name="f", confidence=0.1, arguments={})})
    decided("what about it?", "approve", conversation=("human: It rains.", "human: what about it?"))
    decided("again?", "approve", draft="first")
    decided("again?", "reject", draft="second")
    queue.submit(request("undecided?"))
    path = tmp_path / "reviewed.jsonl"
    assert queue.export(path) == 7
    found = {
        example.query: (example.answer, example.correct, example.answers and list(example.answers))
        for example in read_examples(path)
    }
    assert found == {
        "approved?": ("draft", True, None),
        "edited?": ("draft", False, ["bet\u2028ter"]),
        "answered?": ("draft", False, ["mine"]),
        "rejected?": ("draft", False, None),
        "edited to the same?": ("draft ".strip(), True, ["draft"]),
        "answered without a draft?": (None, None, ["mine"]),
        "again?": ("second", False, None),
    }
    assert json.loads(path.read_text().splitlines()[0]) == {"query": "approved?", "answer": "draft", "correct": True}


def test_the_migrations_make_what_the_models_say(queue):
    with queue._database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    assert {table.name for table in Base.metadata.sorted_tables} == {Review.__tablename__, Event.__tablename__}


def test_a_database_of_a_later_version_is_refused(queue, url):
    with queue._database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ReviewError, match="later version"):
        ReviewQueue(url)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "sqlite://"}, "in memory"),
        ({"url": "sqlite:///:memory:"}, "in memory"),
        ({"url": "reviews.db"}, "malformed"),
        ({"url": "mysql://host/name"}, "'mysql'; expected sqlite or postgresql"),
        ({"url": "sqlite:///file:x?mode=memory"}, "in memory"),
        ({"url": "sqlite:///file:x?mode=memory&cache=shared&uri=true"}, "in memory"),
        ({"url": "sqlite:///file::memory:?uri=true"}, "in memory"),
        ({"url": "sqlite:///file:/x?vfs=memdb&uri=true"}, "in memory"),
        ({"url": "sqlite:///file:?uri=true"}, "in memory"),
        ({"url": "sqlite://host/reviews.db"}, "names a host"),
        ({"url": "sqlite:///reviews.db?cache=private"}, "'cache', which needs 'uri=true'"),
        ({"url": "sqlite:///reviews.db?timeout=abc"}, "malformed"),
        ({"url": "sqlite:///a\0b.db"}, "malformed"),
        ({"url": "sqlite:///\ud800.db"}, "malformed"),
        ({"url": "sqlite+nosuch:///reviews.db"}, "not known"),
        ({"url": "sqlite+aiosqlite:///reviews.db"}, "asynchronous"),
        ({"url": "postgresql://ann:hidden@host:port/name"}, "malformed"),
        ({"url": "postgresql+nosuch://ann:hidden@host/name"}, "not known"),
        ({"url": None}, "malformed"),
        ({"url": 7}, "malformed"),
        ({"lifetime": 0}, "lifetime=0: expected seconds > 0"),
        ({"busy_timeout": 0}, "busy_timeout=0: expected seconds > 0, a finite number of at most 86,400"),
        ({"busy_timeout": 86_401.0}, "at most 86,400"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=message) as refused:
        ReviewQueue(**settings)
    assert "\n" not in str(refused.value)
    assert "hidden" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"no database, but a text", b"SQLite format 3\0" + bytes(50), None])
def test_a_file_that_is_no_database_is_an_error_of_one_line(content, tmp_path):
    place = tmp_path / "reviews.db"
    place.mkdir() if content is None else place.write_bytes(content)
    with pytest.raises(ReviewError, match=r"not a database|unable to open") as refused:
        ReviewQueue(f"sqlite:///{place}", busy_timeout=0.2)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "seconds", [math.inf, -math.inf, math.nan, 1e300, -1, True, "60", None, timedelta(seconds=60), 4e9, 10**400]
)
def test_lengths_of_time_are_finite_numbers_of_seconds(seconds, queue, url):
    id_ = queue.submit(request())
    queue.claim("ann", lease=60)
    for use in (
        lambda: queue.claim("bob", lease=seconds),
        lambda: queue.renew(id_, "ann", lease=seconds),
        lambda: queue.wait(id_, seconds),
        lambda: asyncio.run(queue.await_(id_, seconds)),
        lambda: queue.purge(seconds, "ann"),
        lambda: ReviewQueue(url, busy_timeout=seconds),
        lambda: ReviewQueue(url, lifetime=seconds) if seconds is not None else check_seconds("lifetime", None),
    ):
        with pytest.raises(ConfigurationError, match=r"^\w+=.{1,70}: expected seconds >=? ?0") as refused:
            use()
        assert "\n" not in str(refused.value)
    assert queue.get(id_).status == "claimed"


def test_what_no_database_can_hold_is_an_error_of_one_line(queue):
    id_ = queue.submit(request())
    for use in (
        lambda: queue.get("\ud800"),
        lambda: queue.claim("\ud800"),
        lambda: queue.trail("\ud800"),
        lambda: queue.items(limit=10**30),
        lambda: queue.items(contains="\ud800"),
    ):
        with pytest.raises(ReviewError, match="holds no half of a surrogate pair"):
            use()
    assert queue.get(id_).status == "pending"


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ReviewError, match="unable to open"):
        ReviewQueue(f"sqlite:///{tmp_path / 'nowhere' / 'reviews.db'}")


def test_the_password_is_not_shown(monkeypatch):
    monkeypatch.setattr(Database, "_upgrade", lambda self: None)
    monkeypatch.setattr("semgrad_guard.review.database.create_engine", lambda *args, **settings: None)
    assert repr(ReviewQueue("postgresql://ann:hidden@host/name")) == "ReviewQueue('postgresql://ann:***@host/name')"


def test_sqlite_writes_ahead_and_loses_nothing_when_the_power_fails(queue):
    with queue._database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


def test_without_the_extra_the_error_names_it(monkeypatch):
    import semgrad_guard.review as room

    monkeypatch.delitem(sys.modules, "semgrad_guard.review.queue")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    for module in ("archive", "database", "tables"):
        monkeypatch.delitem(sys.modules, f"semgrad_guard.review.{module}")
    with pytest.raises(ConfigurationError, match=r"semgrad-guard\[review\]"):
        room.__getattr__("ReviewQueue")
