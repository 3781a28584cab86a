"""What Prometheus is told: the figures, and no word of anybody's."""

import math
import sys
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from scripted import MODEL, TOKENIZER, decided, score

from semgrad_guard.errors import BudgetError, ConfigurationError, ReviewError
from semgrad_guard.observability.metrics import OTHER, Metrics
from semgrad_guard.records import Cause
from semgrad_guard.review import ReviewStatistics
from semgrad_guard.scoring import observers
from semgrad_guard.scoring.budget import Budget
from semgrad_guard.scoring.scorer import SemGradScorer

STATISTICS = ReviewStatistics(
    counts={"pending": 3, "claimed": 1, "decided": 5, "expired": 0}, decisions={}, oldest=90.0, approved=0.4
)
LABELS = {
    "decision": {"pass", "annotate", "retrieve", "escalate", "review", "abstain", "raise", OTHER},
    "cause": set(get_args(Cause)),
    "kind": {"scoring", "out_of_memory", "overloaded", "deadline", "cancelled", "error"},
    "status": {"pending", "claimed", "decided", "expired"},
}


def families(metrics):
    body, kind = metrics.text()
    assert kind.startswith("text/plain")
    return list(text_string_to_metric_families(body.decode()))


def samples(metrics):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(metrics)
        for sample in family.samples
    }


def record(decision="pass", confidence=0.9, semgrad=0.01):
    return decided(decision, confidence, scores=score(semgrad))


def test_answers_are_counted_by_decision_confidence_score_and_time():
    metrics = Metrics()
    metrics.answered(record(), 0.2)
    metrics.answered(record("abstain", 0.1, 0.5), 0.4)
    found = samples(metrics)
    assert found["semgrad_decisions_total", "pass"] == found["semgrad_decisions_total", "abstain"] == 1
    assert found["semgrad_decisions_total", "review"] == 0
    assert found["semgrad_confidence_bucket", "0.1"] == 1
    assert found["semgrad_confidence_bucket", "0.9"] == found["semgrad_confidence_count",] == 2
    assert found["semgrad_score_sum",] == pytest.approx(0.51)
    assert found["semgrad_answer_seconds_sum",] == pytest.approx(0.6)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_missing_is_not_measured(odd):
    metrics = Metrics()
    metrics.answered(decided("abstain", odd, scores=score(odd)), 0.1)
    metrics.answered(decided("abstain", None), 0.1)
    metrics.answered(None, 0.1)
    found = samples(metrics)
    assert found["semgrad_confidence_count",] == found["semgrad_score_count",] == 0
    assert found["semgrad_decisions_total", "abstain"] == 2
    assert found["semgrad_decisions_total", OTHER] == 1


@given(st.one_of(st.text(), st.none(), st.integers(), st.lists(st.text())))
def test_no_label_comes_from_input(text):
    metrics = Metrics()
    metrics.answered(record(text) if text and isinstance(text, str) else None, 0.1)
    metrics.failed(text)
    metrics.watch_reviews(lambda: STATISTICS.model_copy(update={"counts": {str(text): 1}}))
    for family in families(metrics):
        for sample in family.samples:
            for name, value in sample.labels.items():
                assert name == "le" or value in LABELS[name]


def test_names_units_and_help():
    metrics = Metrics(CollectorRegistry())
    metrics.watch_queue(lambda: 0, lambda: 0.0)
    metrics.watch_reviews(lambda: STATISTICS)
    for family in families(metrics):
        assert family.name.startswith("semgrad_")
        assert family.documentation.endswith(".")
        if {"Time", "long", "Age"} & set(family.documentation.split()):
            assert family.name.removesuffix("_created").endswith("_seconds")


def test_a_registry_of_one_s_own_also_tells_of_the_process():
    assert ("process_resident_memory_bytes",) in samples(Metrics())
    assert ("process_resident_memory_bytes",) not in samples(Metrics(CollectorRegistry()))


def test_queues():
    metrics, waiting = Metrics(), [4]
    metrics.watch_queue(lambda: waiting[0], lambda: 1 / 0)
    metrics.batch(8)
    found = samples(metrics)
    assert found["semgrad_queue_depth",] == 4
    assert math.isnan(found["semgrad_queue_age_seconds",])
    assert found["semgrad_batch_rows_sum",] == 8


def test_reviews():
    metrics = Metrics()
    metrics.watch_reviews(lambda: STATISTICS)
    found = samples(metrics)
    assert found["semgrad_reviews_up",] == 1
    assert found["semgrad_reviews", "pending"] == 3
    assert found["semgrad_review_age_seconds",] == 90


def test_a_database_out_of_reach_does_not_break_the_scrape():
    def unreachable():
        raise ReviewError("gone")

    metrics = Metrics()
    metrics.watch_reviews(unreachable)
    metrics.answered(record(), 0.1)
    found = samples(metrics)
    assert found["semgrad_reviews_up",] == 0
    assert ("semgrad_reviews", "pending") not in found
    assert found["semgrad_decisions_total", "pass"] == 1


def test_scoring_passes_are_heard_while_listening():
    scorer, metrics = SemGradScorer(MODEL, TOKENIZER, token_position=3), Metrics()
    with metrics.listen():
        scorer.score_ids([[1, 2, 3, 4], [1, 2, 3, 5]], [[6, 7], [8]])
    scorer.score_ids([[1, 2, 3, 4]], [[6, 7]])
    found = samples(metrics)
    assert found["semgrad_backward_seconds_count",] == 1
    assert found["semgrad_scored_rows_total",] == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), "out_of_memory"),
        (BudgetError("too much"), "scoring"),
        (RuntimeError("shapes"), "scoring"),
    ],
)
def test_failed_passes_are_failures(monkeypatch, error, kind):
    def fail(*given):
        raise error

    scorer, metrics = SemGradScorer(MODEL, TOKENIZER, token_position=3, budget=Budget()), Metrics()
    monkeypatch.setattr(Budget, "check", fail)
    with metrics.listen(), pytest.raises(type(error)):
        scorer.score_ids([[1, 2, 3, 4]], [[6, 7]])
    found = samples(metrics)
    assert found["semgrad_failures_total", kind] == 1
    assert found["semgrad_backward_seconds_count",] == 0


def test_a_failing_listener_does_not_break_scoring(caplog):
    def fail(happened):
        raise ValueError("secret")

    heard = []
    scorer = SemGradScorer(MODEL, TOKENIZER, token_position=3)
    with observers.listening(fail), observers.listening(heard.append):
        scorer.score_ids([[1, 2, 3, 4]], [[6, 7]])
    (happened,) = heard
    assert (happened.rows, happened.tokens, happened.path, happened.failure) == (1, 2, "prefix", None)
    assert happened.seconds > 0
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_without_listeners_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(observers, "perf_counter", lambda: pytest.fail("timed"))
    assert SemGradScorer(MODEL, TOKENIZER, token_position=3).score_ids([[1, 2, 3, 4]], [[6, 7]])


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "semgrad_guard.observability.metrics")
    with pytest.raises(ConfigurationError, match=r"semgrad-guard\[server\]"):
        import semgrad_guard.observability.metrics  # noqa: F401  (it is the import that fails)
