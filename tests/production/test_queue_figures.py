"""A smaller version of the run that writes docs/queue.md, and a proof that it would notice."""

from datetime import UTC, datetime

import pytest
from queue_figures import Hold, Journal, held_against, measure, page, request, twice_held

from semgrad_guard import ReviewAnswer
from semgrad_guard.review import ReviewQueue


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_eight_reviewers_decide_everything_once(kind, tmp_path, request):
    url = f"sqlite:///{tmp_path / 'reviews.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_server").url
    figures = measure(url, items=400, reviewers=8)
    assert figures.problems == []
    assert figures.counts["decided"] == 400
    assert figures.counts["given back"] > 0
    assert figures.counts["kept past the lease"] > 0
    assert "| contradictions | 0 |" in page([figures], reviewers=8)


def test_a_review_in_two_hands_is_noticed():
    journals = [Journal("ann", holds=[Hold("1", "ann", 10, 20)]), Journal("bob", holds=[Hold("1", "bob", 19, 30)])]
    assert twice_held(journals) == [(journals[0].holds[0], journals[1].holds[0])]
    assert twice_held([journals[0], Journal("bob", holds=[Hold("1", "bob", 21, 30)])]) == []


def test_a_decision_that_is_lost_or_another_is_noticed(tmp_path):
    queue = ReviewQueue(f"sqlite:///{tmp_path / 'reviews.db'}", clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    id_ = queue.submit(request(1))
    queue.decide(id_, "approve", "ann")
    approved, rejected = ReviewAnswer(decision="approve"), ReviewAnswer(decision="reject")
    assert held_against(queue, {id_}, [Journal("ann", decided=[(id_, approved)])]) == []
    for wrong in (
        [Journal("ann", decided=[(id_, rejected)])],
        [Journal("bob", decided=[(id_, approved)])],
        [Journal("ann", decided=[(id_, approved)]), Journal("bob", decided=[(id_, approved)])],
        [Journal("ann", decided=[(id_, approved)], released=[id_])],
        [],
    ):
        assert held_against(queue, {id_}, wrong)
    assert held_against(queue, {id_, "another"}, [Journal("ann", decided=[(id_, approved)])])
    queue.close()
