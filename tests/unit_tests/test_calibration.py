"""Profiles: fitting, confidence, saving, and belonging to one model."""

import itertools
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import tiny_model, tiny_tokenizer
from scripted import MODEL, TOKENIZER, profile, score, score_of, scripted

from semgrad_guard import DataError, Profile, ProfileError, SemGradGuard
from semgrad_guard.calibration.fit import fit_section, later_features, layer_features, threshold_passing
from semgrad_guard.calibration.profile import feature_values
from semgrad_guard.calibration.verdict import Standard


def labelled(count=400, seed=0):
    """Scores of answers that are right the more often the smaller SemGrad is."""
    rng = random.Random(seed)
    scores = [score(math.exp(rng.gauss(0, 1))) for _ in range(count)]
    return scores, [rng.random() < 1 / (1 + item.semgrad**2) for item in scores]


@pytest.mark.parametrize("count", [999, 4000], ids=["Platt", "isotonic"])
def test_a_fit_recovers_the_probabilities(count):
    scores, correct = labelled(count)
    section = fit_section(scores, correct, ("semgrad",))
    errors = [abs(section.confidence(item) - 1 / (1 + item.semgrad**2)) for item in scores]
    assert sum(errors) / len(errors) < 0.03


def test_confidence_falls_as_a_single_score_rises():
    section = fit_section(*labelled(), ("semgrad",))
    values = [section.confidence(score(math.exp(power / 4))) for power in range(-12, 13)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False))
def test_confidence_is_a_probability_and_never_extrapolates(value):
    section = profile().answer.model_copy(update={"lowest": (-1.0,), "highest": (1.0,)})
    confidence = section.confidence(score(value))
    assert 1 / (1 + math.e) - 1e-9 <= confidence <= 1 / (1 + 1 / math.e) + 1e-9


def test_features_name_what_a_pass_gave():
    plain = score(0.5, layers=(0.25, 1.0), layers_unweighted=(2.0, 4.0), later=((8.0, 16.0), (32.0, 64.0)))
    assert layer_features(plain) == ("layers.0", "layers.1", "layers_unweighted.0", "layers_unweighted.1")
    assert later_features(plain) == ("later.0.0", "later.0.1", "later.1.0", "later.1.1")
    names = (*layer_features(plain), *later_features(plain), "layers.0:2")
    expected = [0.25, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 0.625]
    assert feature_values(plain, names) == pytest.approx([math.log(value) for value in expected])
    for missing in ("semgrad_unweighted", "later.0.0", "layers.7"):
        with pytest.raises(ProfileError, match=f"needs {missing!r}, which was not computed"):
            feature_values(score(), (missing,))


def test_many_labels_bring_isotonic_probabilities_that_keep_the_order():
    few, many = fit_section(*labelled(999), ("semgrad",)), fit_section(*labelled(1000), ("semgrad",))
    assert (few.steps, bool(many.steps)) == ((), True)
    values = [many.confidence(score(math.exp(power / 9))) for power in range(-18, 19)]
    assert all(one > other for one, other in itertools.pairwise(values))  # no ties, though the steps are flat
    assert 0 < values[-1] < values[0] < 1


def test_isotonic_probabilities_mend_what_a_straight_line_cannot():
    """Right answers lie in bands of a score: nearly all below 1, a half between 1 and 3, hardly any above."""
    rng = random.Random(3)
    scores = [score(math.exp(rng.gauss(0, 1))) for _ in range(2000)]
    truth = [0.95 if item.semgrad < 1 else 0.5 if item.semgrad < 3 else 0.02 for item in scores]
    section = fit_section(scores, [rng.random() < share for share in truth], ("semgrad",))

    def error(section):
        return sum(abs(section.confidence(item) - share) for item, share in zip(scores, truth, strict=True))

    assert error(section) < 0.5 * error(section.model_copy(update={"steps": ()}))


def test_one_kind_of_answer_cannot_be_fitted():
    with pytest.raises(DataError, match="3 right and 0 wrong answers; a profile needs at least 5 of each"):
        fit_section([score()] * 3, [True] * 3, ("semgrad",))


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0, 1))
def test_no_more_than_the_share_passes(confidences, share):
    threshold = threshold_passing(confidences, share)
    assert sum(value >= threshold for value in confidences) <= share * len(confidences) + 1e-9


def test_a_profile_survives_saving(tmp_path):
    path = tmp_path / "profile.json"
    profile().save(path)
    assert Profile.load(path) == profile()
    assert SemGradGuard(scripted(0.9), profile=str(path)).invoke("q?").content == "draft"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"version": 2}, "version"), ({"seed": "x"}, "seed"), ({"answer": None}, "answer")],
)
def test_a_malformed_profile_is_refused(tmp_path, change, message):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({**profile().model_dump(mode="json"), **change}))
    with pytest.raises(ProfileError, match=f"not a profile of version 1: {message}"):
        Profile.load(path)


def test_a_missing_or_unreadable_profile_is_refused(tmp_path):
    with pytest.raises(ProfileError, match="Cannot read the profile"):
        Profile.load(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ProfileError, match="not a profile"):
        Profile.load(tmp_path / "text.json")


def test_a_profile_of_another_model_or_template_is_refused():
    with pytest.raises(ProfileError, match="with weights"):
        SemGradGuard((tiny_model(seed=1), TOKENIZER), profile=profile())
    with pytest.raises(ProfileError, match="with chat template"):
        SemGradGuard((MODEL, tiny_tokenizer(TOKENIZER.chat_template + " ")), profile=profile())


def test_a_raised_threshold_never_lets_more_through():
    for threshold in (0.1, 0.5, 0.9):
        strict = Standard(profile(), threshold, None, None)
        assert strict.judge(score_of(threshold + 0.01), "").passed
        assert not strict.judge(score_of(threshold - 0.01), "").passed
