"""Metrics for Prometheus: what is decided, how sure answers are, how long they take, and what waits. Extra `server`.

No label tells of users, prompts or texts: each takes its values from a fixed list, and what is not on it counts as
"other" or, of failures, as "error".
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Literal, get_args

from semgrad_guard.errors import described, needs
from semgrad_guard.records import DECISIONS as OURS
from semgrad_guard.records import Cause, Decision
from semgrad_guard.review.items import ReviewStatistics, Status
from semgrad_guard.scoring.observers import ScoringPass, listening

with needs("server", "Metrics needs prometheus-client"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

Failure = Literal["scoring", "out_of_memory", "overloaded", "deadline", "cancelled", "error"]

OTHER = "other"
DECISIONS = (*OURS, OTHER)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_CONFIDENCE = tuple(step / 20 for step in range(1, 21))
_SCORE = tuple(mantissa * 10.0**exponent for exponent in range(-6, 2) for mantissa in (1, 3))  # scores span decades
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one service. Every method may be called from any thread, and none raises over a record."""

    def __init__(self, registry: CollectorRegistry | None = None, *, decisions: Iterable[str] = ()) -> None:
        """Register the metrics.

        Args:
            registry: where; None for one of its own, which also tells of the process: memory, time, open files.
            decisions: those of your own routes, to be counted by their names and not as "other".
        """
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
        self.registry = registry
        self._decisions = Counter(
            "semgrad_decisions", "Answers by what was decided about them.", ["decision"], registry=registry
        )
        self._causes = Counter(
            "semgrad_withheld",
            "Answers in whose place something else went out, by cause.",
            ["cause"],
            registry=registry,
        )
        self._failures = Counter(
            "semgrad_failures", "Scoring passes and requests that failed, by kind.", ["kind"], registry=registry
        )
        self._confidence = Histogram(
            "semgrad_confidence", "Confidence of answers, 0 to 1.", buckets=_CONFIDENCE, registry=registry
        )
        self._score = Histogram(
            "semgrad_score", "SemGrad of answers; higher is less certain.", buckets=_SCORE, registry=registry
        )
        self._latency = Histogram(
            "semgrad_answer_seconds", "Time from question to answer.", buckets=_SECONDS, registry=registry
        )
        self._backward = Histogram(
            "semgrad_backward_seconds",
            "Time of a scoring pass, its forward included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._scored = Counter("semgrad_scored_rows", "Rows of scoring passes.", registry=registry)
        self._batch = Histogram("semgrad_batch_rows", "Answers generated together.", buckets=_ROWS, registry=registry)
        self._names = (*DECISIONS, *decisions)
        for decision in self._names:  # a rate needs a zero to begin with
            self._decisions.labels(decision)
        for cause in get_args(Cause):
            self._causes.labels(cause)
        for kind in get_args(Failure):
            self._failures.labels(kind)

    def answered(self, decision: Decision | None, seconds: float) -> None:
        """Count an answer.

        Args:
            decision: what `get_decision` reads off it; None, of a chat model alone, counts as other.
            seconds: how long it took.
        """
        name = None if decision is None else decision.decision
        self._decisions.labels(name if name in self._names else OTHER).inc()
        self._latency.observe(seconds)
        if decision is None:
            return
        if decision.cause is not None:
            self._causes.labels(decision.cause).inc()
        _observe(self._confidence, decision.confidence)
        _observe(self._score, None if decision.scores is None else decision.scores.semgrad)

    def failed(self, kind: Failure) -> None:
        """Count a failure. Failed scoring passes count themselves while `listen` is on."""
        self._failures.labels(kind if kind in get_args(Failure) else "error").inc()

    def backward(self, seconds: float, rows: int) -> None:
        """Count a scoring pass over so many rows."""
        self._backward.observe(seconds)
        self._scored.inc(rows)

    def batch(self, rows: int) -> None:
        """Count a batch of answers generated together."""
        self._batch.observe(rows)

    def listen(self) -> AbstractContextManager[None]:
        """Count every scoring pass in this process, failed ones as failures, until the context is left."""
        return listening(self._heard)

    def watch_queue(self, depth: Callable[[], int], age: Callable[[], float]) -> None:
        """Tell at every scrape how many requests wait, and for how many seconds the oldest has."""
        _gauge("semgrad_queue_depth", "Requests that wait.", depth, self.registry)
        _gauge("semgrad_queue_age_seconds", "How long the oldest request has waited.", age, self.registry)

    def watch_reviews(self, statistics: Callable[[], ReviewStatistics]) -> None:
        """Tell at every scrape how the review queue stands, which `ReviewQueue.statistics` asks its database.

        A database out of reach leaves these out, with `semgrad_reviews_up` 0. It may take its time, so let `text` run
        in a thread where others must not wait.
        """
        self.registry.register(_Reviews(statistics))

    def text(self) -> tuple[bytes, str]:
        """Give the body and content type of a scrape."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _heard(self, happened: ScoringPass) -> None:
        if happened.failure is None:
            self.backward(happened.seconds, happened.rows)
        else:
            self.failed(happened.failure)


class _Reviews(Collector):
    """Asks the review queue once per scrape."""

    def __init__(self, statistics: Callable[[], ReviewStatistics]) -> None:
        self._statistics = statistics

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Name the metrics without asking the database."""
        return _review_metrics()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give the metrics."""
        up, reviews, oldest = _review_metrics()
        try:
            statistics = self._statistics()
        except Exception as error:  # whatever the database may raise; the other metrics are wanted all the more
            logger.warning("The review queue cannot be asked: %s", described(error))
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        for status in get_args(Status):
            reviews.add_metric([status], statistics.counts.get(status, 0))
        oldest.add_metric([], statistics.oldest or 0.0)
        yield from (up, reviews, oldest)


def _review_metrics() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("semgrad_reviews_up", "1 if the review queue could be asked."),
        GaugeMetricFamily("semgrad_reviews", "Reviews by status.", labels=["status"]),
        GaugeMetricFamily("semgrad_review_age_seconds", "Age of the oldest review without a decision; 0 without any."),
    )


def _gauge(name: str, about: str, value: Callable[[], float], registry: CollectorRegistry) -> None:
    def safely() -> float:
        try:
            return value()
        except Exception as error:  # one gauge must not break the scrape
            logger.warning("%s cannot be told: %s", name, described(error))
            return math.nan

    Gauge(name, about, registry=registry).set_function(safely)


def _observe(histogram: Histogram, value: object) -> None:
    if isinstance(value, int | float) and math.isfinite(value):
        histogram.observe(value)
