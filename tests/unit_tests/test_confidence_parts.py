"""Core and head: signs that hold, a share that kinds left out decide on, and one regression out of both."""

import math
import random

import numpy as np
import pytest
from scipy.special import expit
from scripted import score
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from semgrad_guard import DataError
from semgrad_guard.calibration.blend import (
    CAUTIOUS,
    SHARES,
    Parts,
    across_kinds,
    blended,
    chosen_share,
    fitted,
    joined,
    levelled,
    over_all,
)
from semgrad_guard.calibration.fit import blended_section, core_features, head_features, kinds_of
from semgrad_guard.calibration.methods import Labelled, calibrate_section
from semgrad_guard.calibration.section import feature_values

RNG = np.random.default_rng(0)


def parts(n=600, kinds=5, *, core=1.0, head=1.0, turns=False, seed=0):
    """Answers whose core and head features tell right from wrong to a degree; `turns`: in each kind another way."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, kinds, n)
    right = rng.random(n) < 0.5
    truth = np.where(right, 1.0, -1.0)
    sign = np.where(kind % 2 == 0, 1.0, -1.0) if turns else np.ones(n)
    one = rng.normal(size=(n, 2)) + core * truth[:, None]
    own = np.zeros((n, kinds))
    own[np.arange(n), kind] = head * truth * sign
    # With `turns` each kind has a column of its own that tells, and that is noise elsewhere.
    more = rng.normal(size=(n, kinds)) + (own if turns else head * truth[:, None] * np.ones((1, kinds)))
    return Parts(one, np.ones(2), np.concatenate([one, more], 1), right, list(map(str, range(n))), list(map(str, kind)))


def test_a_regression_is_that_of_scikit_learn():
    values = RNG.normal(size=(300, 3)) * [1.0, 5.0, 0.2] + [0.0, 2.0, -1.0]
    right = RNG.random(300) < expit(values @ [1.0, -0.3, 2.0])
    line = fitted(values, right, penalty=2.0)
    scaled = (values - values.mean(0)) / values.std(0)
    theirs = LogisticRegression(C=0.5, max_iter=5000, tol=1e-8).fit(scaled, right)
    assert line.coefficients == pytest.approx(theirs.coef_[0], abs=1e-3)
    assert line.intercept == pytest.approx(theirs.intercept_[0], abs=1e-3)
    assert line.logits(values) == pytest.approx(theirs.decision_function(scaled), abs=1e-2)


def test_a_coefficient_never_turns_round():
    """One feature speaks against its direction in these answers; it gets no say, and the other keeps its own."""
    right = RNG.random(500) < 0.5
    values = np.stack([np.where(right, 1.0, -1.0), np.where(right, -1.0, 1.0)], 1) + RNG.normal(size=(500, 2))
    line = fitted(values, right, penalty=1.0, signs=-np.ones(2))
    assert line.coefficients[0] == 0.0
    assert line.coefficients[1] < -0.5
    free = fitted(values, right, penalty=1.0)
    assert free.coefficients[0] > 0.5


def test_a_constant_feature_says_nothing():
    right = RNG.random(100) < 0.5
    line = fitted(np.full((100, 1), 3.0), right, penalty=1.0)
    assert line.coefficients[0] == pytest.approx(0.0, abs=1e-6)
    assert np.isfinite(line.logits(np.array([[3.0], [4.0]]))).all()


def test_the_head_has_a_share_where_it_helps_with_kinds_left_out():
    found = blended(parts(core=0.3, head=0.8))
    assert found.share >= 0.5
    mixed = found.mixed(found.unseen)
    assert across_kinds(mixed, parts(core=0.3, head=0.8)) > across_kinds(found.unseen[:, 0], parts(core=0.3, head=0.8))


def test_the_head_has_none_where_it_brings_nothing():
    assert blended(parts(core=1.0, head=0.0)).share == 0.0


def test_the_share_falls_to_0_where_kinds_left_out_lose_what_the_others_gain():
    n = 400
    right = np.arange(n) % 2 == 0
    truth, rng = np.where(right, 1.0, -1.0), np.random.default_rng(4)
    same = np.stack([truth + rng.normal(size=n) * 1.5, 2 * truth + rng.normal(size=n)], 1)
    empty = np.zeros((n, 0))
    kinds = [str(place // 2 % 4) for place in range(n)]
    given = Parts(empty, np.zeros(0), empty, right, kinds, kinds)
    good, useless, harmful = (
        np.stack([same[:, 0], slope * truth + rng.normal(size=n)], 1) for slope in (2.0, 0.0, -2.0)
    )
    assert chosen_share(given, same, good, SHARES) >= 0.7
    assert chosen_share(given, same, harmful, SHARES) == 0.0
    assert chosen_share(given, same[:, ::-1], useless, SHARES) == 0.0  # nothing gained where kinds were seen, either
    unknown = np.full_like(same, math.nan)
    assert 0 < chosen_share(given, same, unknown, SHARES) <= CAUTIOUS
    assert chosen_share(given, same[:, ::-1], unknown, SHARES) == 0.0


def test_fits_have_not_seen_the_group_or_the_kind_they_are_asked_about():
    """Noise tells nothing of groups that were left out, however many numbers a head may learn by heart."""
    rng = np.random.default_rng(5)
    n, groups = 300, [str(place % 30) for place in range(300)]
    right = np.array([int(group) % 2 == 0 for group in groups])
    by_heart = np.eye(30)[[int(group) for group in groups]]
    noise = rng.normal(size=(n, 1))
    given = Parts(noise, np.ones(1), np.concatenate([noise, by_heart], 1), right, groups, groups)
    found = blended(given, penalty=0.01)
    assert over_all(found.same[:, 1], given) < 0.7
    assert roc_auc_score(right, found.head.logits(given.head)) == 1.0


def test_core_and_head_are_one_regression():
    given = parts()
    found = blended(given, shares=(0.4,))
    names = [f"f{place}" for place in range(given.head.shape[1])]
    line = joined(found, names, names[:2], given.head)
    mixed = 0.6 * found.core.logits(given.core) + 0.4 * found.head.logits(given.head)
    assert line.logits(given.head) == pytest.approx(mixed, abs=1e-9)


def test_probabilities_have_the_level_of_answers_that_were_not_fitted_on():
    rng = np.random.default_rng(6)
    truth = rng.normal(size=4000)
    right = rng.random(4000) < expit(truth)
    line = fitted(4 * truth[:, None] + 2, right, penalty=1.0)  # out of fold it would be four times too sure
    levelled_line = levelled(line, 4 * truth, right)
    logits = levelled_line.logits(4 * truth[:, None] + 2)
    slope = fitted(logits[:, None], right, penalty=1e-6)
    assert slope.coefficients[0] / slope.scale[0] > 0


def answers(n, *, kinds=4, telling=1.0, seed=0):
    rng = random.Random(seed)
    found = []
    for place in range(n):
        right = rng.random() < 0.6
        doubt = math.exp(rng.gauss(-telling if right else telling, 1.0))
        states = tuple(rng.gauss(1.0 if right else -1.0, 2.0) for _ in range(6))
        one = score(
            doubt, nll=doubt, mean_nll=doubt, max_entropy=doubt, mean_entropy=doubt, states=states, distance=1.0
        )
        found.append(Labelled(str(place), one, right, str(place % kinds)))
    return found


@pytest.mark.parametrize(("labels", "method"), [(30, "combined"), (80, "core"), (400, "blend")])
def test_labels_decide_how_much_is_fitted(labels, method):
    found = calibrate_section(answers(labels), risk=0.3, delta=0.2)
    assert found.method == method
    evidence = found.section.evidence
    assert evidence.same.auroc > 0.6
    assert set(found.compared) >= {method, "combined", "semgrad", "nll"}
    assert (evidence.share > 0) == (method == "blend")
    if method == "blend":
        assert evidence.kinds == 4
        assert evidence.kinds_from == "strata"
        assert evidence.unseen.low < evidence.unseen.auroc < evidence.unseen.high


@pytest.mark.parametrize("method", ["core", "blend"])
def test_more_uncertain_is_never_more_confident_by_the_core(method):
    section = calibrate_section(answers(400), method="core", risk=0.3, delta=0.2).section
    assert section.features == core_features()
    assert all(coefficient <= 0 for coefficient in section.coefficients)
    doubts = [0.1, 0.5, 1.0, 5.0]
    confidences = [
        section.confidence(score(1.0, nll=doubt, mean_nll=doubt, max_nll=doubt, mean_entropy=doubt)) for doubt in doubts
    ]
    assert confidences == sorted(confidences, reverse=True)


def test_a_section_gives_what_its_parts_give():
    given = answers(300)
    section = blended_section(
        [item.score for item in given],
        [item.correct for item in given],
        groups=[item.about for item in given],
        kinds=[item.kind for item in given],
        kinds_from="strata",
    )
    right = [item.correct for item in given]
    assert roc_auc_score(right, [section.confidence(item.score) for item in given]) > section.evidence.core_same.auroc
    assert set(section.features) <= set(head_features(given[0].score))
    assert feature_values(given[0].score, ("states.3",)) == [given[0].score.states[3]]


def test_without_kinds_the_data_cannot_tell():
    given = [Labelled(item.about, item.score, item.correct) for item in answers(400)]
    found = calibrate_section(given, method="blend", risk=0.3, delta=0.2)
    assert found.section.evidence.unseen is None
    assert found.section.evidence.share <= CAUTIOUS
    assert found.compared["nll"][1] is None or found.section.evidence.kinds == 0


def test_kinds_are_strata_or_else_clusters():
    right = [place % 2 == 0 for place in range(200)]
    strata = [str(place // 2 % 3) for place in range(200)]
    assert kinds_of(strata, None, right, 0) == (strata, "strata")
    assert kinds_of([""] * 200, None, right, 0) == ([""] * 200, "none")
    places = np.repeat([[0.0], [10.0]], 100, axis=0) + RNG.normal(size=(200, 1)) * 0.1
    kinds, source = kinds_of([""] * 200, places, right, 0)
    assert source == "clusters"
    assert not set(kinds[:100]) & set(kinds[100:])


def test_too_few_answers_of_a_kind_are_refused():
    given = answers(20)
    with pytest.raises(DataError, match="at least 5 of each kind"):
        calibrate_section([item for item in given if item.correct][:12], method="blend", risk=0.3, delta=0.2)
