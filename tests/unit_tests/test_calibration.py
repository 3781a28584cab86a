"""Profiles: fitting, confidence, saving, and belonging to one model."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import tiny_model, tiny_tokenizer
from scripted import MODEL, TOKENIZER, profile, score, score_of, scripted

from semgrad_guard import ConfigurationError, Profile, ProfileError, SemGradGuard
from semgrad_guard.calibration.fit import fit_section, fused_features, threshold_passing
from semgrad_guard.calibration.verdict import Standard


def labelled(count=400, seed=0):
    """Scores of answers that are right the more often the smaller SemGrad is."""
    rng = random.Random(seed)
    scores = [score(math.exp(rng.gauss(0, 1))) for _ in range(count)]
    return scores, [rng.random() < 1 / (1 + item.semgrad**2) for item in scores]


def test_a_fit_recovers_the_probabilities():
    scores, correct = labelled(4000)
    section = fit_section(scores, correct, ("semgrad",))
    for value in (0.3, 1.0, 3.0):
        assert section.confidence(score(value)) == pytest.approx(1 / (1 + value**2), abs=0.03)


def test_confidence_falls_as_a_single_score_rises():
    section = fit_section(*labelled(), ("semgrad",))
    values = [section.confidence(score(math.exp(power / 4))) for power in range(-12, 13)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


@given(st.floats(min_value=0, allow_infinity=False, allow_nan=False))
def test_confidence_is_a_probability_and_never_extrapolates(value):
    section = profile().answer.model_copy(update={"lowest": (-1.0,), "highest": (1.0,)})
    confidence = section.confidence(score(value))
    assert 1 / (1 + math.e) - 1e-9 <= confidence <= 1 / (1 + 1 / math.e) + 1e-9


def test_fused_features_are_the_scalars_and_the_layers():
    features = fused_features(2)
    assert features[-2:] == ("layers.0", "layers.1")
    section = fit_section(*labelled(), features)
    assert 0 < section.confidence(score(0.5)) < 1


def test_one_kind_of_answer_cannot_be_fitted():
    with pytest.raises(ConfigurationError, match="3 right and 0 wrong answers; a profile needs at least 5 of each"):
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
