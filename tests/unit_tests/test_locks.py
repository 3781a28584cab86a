"""What threads share stays right when two of them are in the middle of it at once: each lock is needed."""

from functools import partial
from uuid import uuid4

import pytest
from langchain_core.messages import AIMessage
from lockstep import lockstep
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scripted import profile, request_of, score_of

from semgrad_guard import RateLimit
from semgrad_guard.calibration import drift
from semgrad_guard.calibration.drift import RawWatch, Watch
from semgrad_guard.langchain import batching
from semgrad_guard.langchain.drafts import in_metadata
from semgrad_guard.observability import tracing
from semgrad_guard.review import ReviewQueue
from semgrad_guard.review import queue as queues
from semgrad_guard.review.page import sessions
from semgrad_guard.routing import limits
from semgrad_guard.scoring import observers

AHEAD = range(0, 40, 3)


def test_a_watch_counts_every_answer_once():
    section = profile().answer.model_copy(
        update={"quantiles": tuple(index / 100 for index in range(101)), "spread_of": 1000}
    )
    watch = Watch(section, 1e-9)
    for _ in range(18):
        watch.see(score_of(0.3))
    assert lockstep(*[partial(watch.see, score_of(0.3))] * 2, drift) == [None, None]
    assert watch._seen == 20
    assert len(watch._bets["confidence"]._values) == 101 + 20


def test_a_watch_of_raw_scores_warns_once():
    watch = RawWatch()
    for _ in range(18):
        watch.see(1.0, 0.1, "semgrad")
    with pytest.warns(UserWarning, match="far above") as told:
        assert lockstep(*[partial(watch.see, 1.0, 0.1, "semgrad")] * 2, drift) == [None, None]
    assert len(told) == 1
    assert len(watch._values) == 20


def test_a_budget_for_one_more_call_allows_one():
    budget = RateLimit(1, per=60)
    assert sorted(lockstep(budget, budget, limits)) == [False, True]


@pytest.mark.parametrize("ahead", AHEAD)
def test_a_budget_forgets_each_old_call_once(monkeypatch, ahead):
    now = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    budget = RateLimit(1, per=60)
    assert budget()
    now[0] = 60.0
    assert sorted(lockstep(budget, budget, limits, ahead=ahead)) == [False, True]


def test_no_row_of_a_batch_waits_for_ever():
    answered = []

    def answers(requests):
        answered.append(len(requests))
        return [AIMessage(request) for request in requests]

    batcher = batching.Batcher(object(), 3, answers)

    def leave():
        with batcher.row():
            pass

    joined = partial(batcher.join, "first")
    future, left = lockstep(joined, leave, batching)
    assert left is None
    other = batcher.join("second")
    assert [future.result(10).content, other.result(10).content] == ["first", "second"]
    assert answered == [2]


def test_every_listener_to_scoring_hears():
    heard = []
    listeners = [observers.listening(lambda happened, name=name: heard.append(name)) for name in "ab"]
    assert lockstep(*(listener.__enter__ for listener in listeners), observers) == [None, None]
    observers._notify(None)
    assert sorted(heard) == ["a", "b"]
    leave = [partial(listener.__exit__, None, None, None) for listener in listeners]
    assert lockstep(*leave, observers) == [False, False]
    assert observers.listeners == ()


@pytest.mark.parametrize("ahead", AHEAD)
def test_every_address_may_try_though_others_are_forgotten(monkeypatch, ahead):
    monkeypatch.setattr(sessions, "_ADDRESSES", 1)
    known = sessions.Attempts()
    assert lockstep(partial(known.allow, "a"), partial(known.allow, "b"), sessions, ahead=ahead) == [True, True]
    assert len(known._known) == 1


@pytest.mark.parametrize("ahead", AHEAD)
def test_every_session_that_ends_has_ended(ahead):
    known, copies = sessions.Sessions(), []
    ending = [{}, {}]
    for session in ending:
        known.begin(session, "ann")
        copies.append(dict(session))
    assert lockstep(*(partial(known.end, session) for session in ending), sessions, ahead=ahead) == [None, None]
    assert [known.ended(copy) for copy in copies] == [True, True]


@pytest.mark.parametrize("ahead", range(0, 240, 12))
def test_steps_that_begin_at_once_share_the_span_above_them(ahead):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    handler, guard = tracing.Tracing(provider), uuid4()
    handler.on_chain_start({}, "q?", run_id=guard, name="SemGradGuard")
    steps = [uuid4(), uuid4()]
    above = {"parent_run_id": guard, "name": "score", "metadata": {in_metadata("grounded"): False}}
    begin = [partial(handler.on_chain_start, {}, {"grounded": False}, run_id=step, **above) for step in steps]
    assert lockstep(*begin, tracing, ahead=ahead, whole=True) == [None, None]
    for run in (*steps, guard):
        handler.on_chain_end({}, run_id=run)
    *scores, above = exporter.get_finished_spans()
    assert [span.name for span in (*scores, above)] == ["semgrad.score", "semgrad.score", "chat"]
    assert {span.parent.span_id for span in scores} == {above.context.span_id}


def test_reviewers_who_claim_at_once_get_different_reviews(tmp_path):
    queue = ReviewQueue(f"sqlite:///{tmp_path / 'reviews.db'}")
    asked = request_of(question="?", draft="", confidence=None, scores=None, reason="")
    ids = [queue.submit(asked, key=key) for key in "ab"]
    items = lockstep(partial(queue.claim, "ann"), partial(queue.claim, "bob"), queues)
    assert sorted(item.id for item in items) == sorted(ids)
    assert {item.reviewer for item in items} == {"ann", "bob"}
    queue.close()


def test_whoever_submits_the_same_at_once_gets_the_same_review(tmp_path):
    queue = ReviewQueue(f"sqlite:///{tmp_path / 'reviews.db'}")
    asked = request_of(question="?", draft="", confidence=None, scores=None, reason="")
    first, second = lockstep(*[partial(queue.submit, asked)] * 2, queues)
    assert first == second == queue.items()[0].id
    assert len(queue.items()) == 1
    queue.close()
