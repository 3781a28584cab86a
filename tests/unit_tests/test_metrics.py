"""Metrics against their definitions, by hand and by brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semgrad_guard.evaluation import metrics

RIGHT = np.array([True, True, False, True, False])
DOUBT = np.array([0.1, 0.2, 0.3, 0.4, 0.5])


def test_by_hand():
    assert metrics.auroc(DOUBT, RIGHT) == pytest.approx(5 / 6)
    coverage, risk = metrics.risk_coverage(DOUBT, RIGHT)
    assert coverage == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert risk == pytest.approx([0, 0, 1 / 3, 1 / 4, 2 / 5])
    assert metrics.aurc(DOUBT, RIGHT) == pytest.approx((1 / 3 + 1 / 4 + 2 / 5) / 5)
    best = (0 + 0 + 0 + 1 / 4 + 2 / 5) / 5
    assert metrics.excess_aurc(DOUBT, RIGHT) == pytest.approx((1 / 3) / 5)
    assert metrics.prr(DOUBT, RIGHT) == pytest.approx((0.4 - metrics.aurc(DOUBT, RIGHT)) / (0.4 - best))
    assert metrics.selective_accuracy(DOUBT, RIGHT, 0.6) == pytest.approx(2 / 3)
    assert metrics.auc_pr(DOUBT, RIGHT) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.brier(np.array([1.0, 0.5]), np.array([True, False])) == pytest.approx(0.125)


def test_ties_do_not_depend_on_the_order():
    doubt = np.array([0.1, 0.5, 0.5, 0.5, 0.9])
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert metrics.aurc(doubt[order], RIGHT[order]) == pytest.approx(metrics.aurc(doubt, RIGHT))
    constant = np.zeros(5)
    assert metrics.aurc(constant, RIGHT) == pytest.approx(0.4)
    assert metrics.prr(constant, RIGHT) == pytest.approx(0)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=4, max_size=30).filter(
    lambda rows: len({right for _, right in rows}) == 2))  # fmt: skip
def test_ranks_alone_count(rows):
    doubt, right = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    ranks = np.unique(doubt, return_inverse=True)[1].astype(float)
    for metric in (metrics.auroc, metrics.aurc, metrics.prr, metrics.auc_pr, metrics.excess_aurc):
        assert metric(ranks, right) == pytest.approx(metric(doubt, right))
    perfect = (~right).astype(float)
    assert metrics.auroc(perfect, right) == metrics.prr(perfect, right) == 1
    assert metrics.excess_aurc(doubt, right) >= -1e-12
    pairs = [(d > e) + 0.5 * (d == e) for d, r in rows if not r for e, s in rows if s]
    assert metrics.auroc(doubt, right) == pytest.approx(np.mean(pairs))


def test_calibration_errors_see_what_is_wrong():
    rng = np.random.default_rng(0)
    for error, count in ((metrics.calibration_error, 20_000), (metrics.smooth_calibration_error, 5_000)):
        confidence = rng.random(count)
        honest = rng.random(count) < confidence
        boastful = rng.random(count) < confidence**2
        assert error(confidence, honest) < 0.02
        assert error(confidence, boastful) == pytest.approx(1 / 2 - 1 / 3, abs=0.02)


def test_the_bootstrap_resamples_groups():
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.6
    doubt = rng.normal(size=400) + ~right
    alone = metrics.bootstrap(metrics.auroc, doubt, right, groups=[str(i) for i in range(400)], repeats=300)
    assert alone[0] < metrics.auroc(doubt, right) < alone[1]
    fourfold = np.tile(doubt, 4), np.tile(right, 4)
    together = metrics.bootstrap(metrics.auroc, *fourfold, groups=[str(i % 400) for i in range(1600)], repeats=300)
    apart = metrics.bootstrap(metrics.auroc, *fourfold, groups=[str(i) for i in range(1600)], repeats=300)
    assert together[1] - together[0] > 1.5 * (apart[1] - apart[0])  # copies are no evidence
    assert np.isnan(metrics.bootstrap(metrics.auroc, doubt[:3], np.ones(3, bool), groups=["a", "b", "c"])[0])
