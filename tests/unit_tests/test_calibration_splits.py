"""No part of the answers sees another: what is fitted, chosen and tested on, and what drift is measured against."""

import math
import random

import numpy as np
import pytest
from scipy.stats import ks_2samp
from scripted import MODEL, TOKENIZER, profile, score, score_of
from sklearn.metrics import roc_auc_score

from semgrad_guard import SemGradScorer
from semgrad_guard.calibration import from_examples
from semgrad_guard.calibration.answers import Answered, Answers
from semgrad_guard.calibration.counts import Counts
from semgrad_guard.calibration.drift import drift
from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.fit import (
    fit_section,
    out_of_fold,
    part_of,
    scalar_features,
    with_quantiles,
)
from semgrad_guard.calibration.from_examples import calibrated_profile
from semgrad_guard.calibration.guarantee import thresholds_to_try
from semgrad_guard.calibration.methods import Labelled, calibrate_section


def answers(count, *, seed=0):
    """Answers about one thing each, more often right the smaller SemGrad is."""
    rng = random.Random(seed)
    found = []
    for index in range(count):
        semgrad = math.exp(rng.gauss(-1, 1.5))
        found.append(Labelled(str(index), score(semgrad), rng.random() < 1 / (1 + semgrad)))
    return found


def parts(labelled, seed=0):
    """The parts of the answers: to fit on, to choose thresholds from, to test them on."""
    part = part_of(((item.about, item.correct) for item in labelled), seed)
    return [[item for item in labelled if part[item.about] == index] for index in range(3)]


def test_thresholds_are_chosen_from_answers_that_they_are_not_tested_on():
    labelled = answers(900)
    section = calibrate_section(labelled, method="semgrad", risk=0.3, delta=0.1).section
    fitting, choosing, testing = parts(labelled)
    confidences = [[section.confidence(item.score) for item in part] for part in (fitting, choosing, testing)]
    assert section.threshold in thresholds_to_try(confidences[1])
    assert section.threshold not in [*thresholds_to_try(confidences[0]), *thresholds_to_try(confidences[2])]
    passing = [item for item, value in zip(testing, confidences[2], strict=True) if value >= section.threshold]
    assert (section.guarantee.n, section.guarantee.errors) == (
        len(passing),
        sum(not item.correct for item in passing),
    )


def test_the_confidence_is_fitted_on_answers_that_no_threshold_is_chosen_from_or_tested_on():
    labelled = answers(900)
    section = calibrate_section(labelled, method="semgrad", risk=0.3, delta=0.1).section
    fitting, *_ = parts(labelled)
    scores, correct, groups = zip(*((item.score, item.correct, item.about) for item in fitting), strict=True)
    alone = fit_section(scores, correct, ("semgrad",), groups=groups)
    assert section.questions == len(fitting)
    assert section.confidence(score(0.5)) == pytest.approx(alone.confidence(score(0.5)), rel=1e-9)


def test_drift_is_measured_against_answers_that_nothing_was_fitted_on():
    labelled = answers(900)
    section = calibrate_section(labelled, method="semgrad", risk=0.3, delta=0.1).section
    _, choosing, testing = parts(labelled)
    fresh = [item.score for item in (*choosing, *testing)]
    assert section.spread_of == len(fresh) == 450
    assert section.quantiles == with_quantiles(section, fresh).quantiles


@pytest.mark.parametrize("size", [100, 1000, 10_000])
def test_the_probability_of_a_drift_counts_both_samples(size):
    """As in the test of two samples: calibration on few answers makes the same difference less certain."""
    rng = np.random.default_rng(3)
    calibrated, fresh = rng.uniform(0, 1, size), rng.uniform(0.15, 1, 100)
    section = with_quantiles(profile().answer, [score_of(value) for value in calibrated])
    found = drift(section, [score_of(value) for value in fresh])
    theirs = ks_2samp(calibrated, fresh, method="asymp")
    assert found.p_value == pytest.approx(theirs.pvalue, rel=0.5)


NAMES = ("paragrad", "exgrad", "nll", "mean_nll", "mean_entropy", "max_entropy", "first_entropy", "max_nll")


def grouped(count, seed, things):
    """Answers about a few things, all right or all wrong about each; scores tell the thing, and nothing else."""
    rng = random.Random(seed)
    traits = [{name: math.exp(rng.gauss(0, 1)) for name in NAMES} for _ in range(things)]
    found = []
    for index in range(count):
        thing = index % things
        fields = {name: value * math.exp(rng.gauss(0, 0.01)) for name, value in traits[thing].items()}
        found.append(Labelled(str(thing), score(math.exp(rng.gauss(0, 1)), **fields), thing % 2 == 0))
    return found


def test_what_is_known_of_a_thing_does_not_flatter_other_answers_about_it():
    """Within their own thing the scores would tell right from wrong without a mistake."""
    labelled = grouped(720, seed=1, things=24)
    fitting, *_ = parts(labelled)
    scores, correct = [item.score for item in fitting], [item.correct for item in fitting]
    mixed = out_of_fold(scores, correct, scalar_features(), [str(index) for index in range(len(fitting))])
    apart = out_of_fold(scores, correct, scalar_features(), [item.about for item in fitting])
    assert roc_auc_score(correct, mixed) > 0.99
    assert roc_auc_score(correct, apart) < 0.7
    for method in ("auto", "fused"):
        found = calibrate_section(labelled, method=method, risk=0.3, delta=0.1)
        assert found.compared[found.method][0] < 0.7


def test_the_steps_of_a_confidence_come_from_folds_that_keep_things_together():
    labelled = grouped(1200, seed=3, things=12)
    scores, correct = [item.score for item in labelled], [item.correct for item in labelled]
    mixed = fit_section(scores, correct, scalar_features())
    apart = fit_section(scores, correct, scalar_features(), groups=[item.about for item in labelled])
    surest = [max(section.confidence(one) for one in scores) for section in (mixed, apart)]
    assert surest[0] > 0.95
    assert surest[1] < 0.7


def test_second_answers_are_calibrated_on_questions_whose_first_do_not_pass(monkeypatch):
    monkeypatch.setattr(from_examples, "rescored", lambda scorer, answers, layers: list(answers))

    def counted(found):
        scored = list(found)
        return Answers(scored, Counts.of(item.correct for item in scored))

    def answered(labelled):
        return [
            Answered(Example(query=item.about, group=item.about), "text", item.score, item.correct, (1, 2, 3), (4,))
            for item in labelled
        ]

    first, asked = answered(answers(1600)), []

    def retry(examples):
        asked.extend(examples)
        again = dict(zip((example.query for example in examples), answers(len(examples), seed=1), strict=True))
        return counted(
            Answered(example, "text", again[example.query].score, again[example.query].correct, (1, 2, 3), (4,))
            for example in examples
        )

    scorer = SemGradScorer(MODEL, TOKENIZER, token_position=3)
    profile = calibrated_profile(
        scorer,
        counted(first),
        model="m",
        labels="match",
        method="semgrad",
        risk=0.3,
        delta=0.1,
        search=False,
        retry=retry,
    ).profile
    score_of_question = {item.example.query: item.score for item in first}
    assert len(asked) > 100
    assert not any(profile.answer.passes(score_of_question[example.query]) for example in asked)
    assert profile.answer.questions == 400  # one half of the half that serves first answers
    assert profile.grounded.questions == round(len(asked) / 2)
    served = {item.example.query for item in first if profile.answer.passes(item.score)}
    assert len(served) > 100
    assert not served & {example.query for example in asked}
