"""A new score is one entry and its computation: thresholds, calibration and evaluation take it by its name."""

import math
import random
import re
from pathlib import Path

import pytest
import torch
from models import VOCABULARY
from scripted import MODEL, TOKENIZER, score, scripted

from semgrad_guard import ConfigurationError, Profile, ProfileError, SemGradGuard, SemGradScorer
from semgrad_guard.calibration.answers import Answered, Answers
from semgrad_guard.calibration.counts import Counts
from semgrad_guard.calibration.drift import RawWatch
from semgrad_guard.calibration.examples import Example
from semgrad_guard.calibration.fit import scalar_features
from semgrad_guard.calibration.from_examples import calibrated_profile
from semgrad_guard.calibration.methods import cover_section, methods
from semgrad_guard.calibration.section import feature_values
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.demo import embedded_model
from semgrad_guard.evaluation.compare import choose, compare
from semgrad_guard.evaluation.run import Result
from semgrad_guard.langchain.metadata import get_decision, get_scores
from semgrad_guard.records import Score
from semgrad_guard.scoring.registry import ScoreKind, known_score, known_scores, register_score, unregister_score

ROOT = Path(__file__).parents[2]
TOP_LAYER = ScoreKind("top_layer", "SemGrad at the topmost layer.", read=lambda score: score.layers[-1])
LEAST = ScoreKind(
    "least_probability",
    "The probability of the least probable token.",
    measure=lambda log_probs, entropies: log_probs.min().exp(),
    direction="certainty",
)


@pytest.fixture(params=[TOP_LAYER, LEAST], ids=["read from a Score", "measured in the pass"])
def kind(request):
    register_score(request.param)
    yield request.param
    unregister_score(request.param.name)


def scored(count, seed=0):
    """Score random responses to random prompts."""
    rng, scorer = random.Random(seed), SemGradScorer(MODEL, TOKENIZER, token_position=3)
    prompts = [[rng.randrange(5, VOCABULARY) for _ in range(8)] for _ in range(count)]
    responses = [[rng.randrange(5, VOCABULARY) for _ in range(3)] for _ in range(count)]
    return scorer, prompts, responses, scorer.score_ids(prompts, responses)


def test_a_guard_takes_a_threshold_on_it(kind):
    guard = SemGradGuard(embedded_model(), score_threshold=0.0, method=kind.name)
    passed = kind.direction == "certainty"  # where 0 is the least that passes
    message = guard.invoke("What is the capital of France?")
    value = kind.value(get_scores(message))
    assert value > 0
    assert (get_decision(message).decision == "pass") is passed
    standard = Standard(None, None, value, kind.name)
    given = score(layers=(1.0, value)) if kind is TOP_LAYER else score(more={kind.name: value})
    surer = value / 2 if kind is TOP_LAYER else value * 2
    for other, expected in ((value, True), (surer, True), (value**2 / surer, False)):
        changed = score(layers=(1.0, other)) if kind is TOP_LAYER else score(more={kind.name: other})
        assert standard.judge(changed, None).passed is expected
    assert f"{kind.name} of at {'least' if passed else 'most'}" in standard.judge(given, None).policy


def test_a_profile_is_calibrated_on_it_and_saved(kind, tmp_path):
    scorer, prompts, responses, scores = scored(240)
    middle = sorted(kind.uncertainty(one) for one in scores)[120]
    answers = [
        Answered(
            Example(query=str(index), answers=("x",)),
            "x",
            one,
            kind.uncertainty(one) < middle,
            tuple(prompts[index]),
            tuple(responses[index]),
        )
        for index, one in enumerate(scores)
    ]
    found = calibrated_profile(
        scorer,
        Answers(answers, Counts(questions=240)),
        model="m",
        labels="match",
        method=kind.name,
        risk=0.4,
        search=False,
    )
    found.profile.save(tmp_path / "p.json")
    profile = Profile.load(tmp_path / "p.json")
    assert (profile.method, profile.answer.features) == (kind.name, (kind.name,))
    assert profile.answer.guarantee is not None
    order = sorted(scores, key=kind.uncertainty)
    confidences = [profile.answer.confidence(one) for one in order]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] > 0.8 > 0.2 > confidences[-1]
    assert SemGradGuard((MODEL, TOKENIZER), profile=profile).profile == profile
    covering = cover_section(scores, coverage=0.5, method=kind.name)
    assert [covering.passes(one) for one in order] == [True] * 120 + [False] * 120
    unregister_score(kind.name)
    with pytest.raises(ProfileError, match=f"'{kind.name}' is no feature; .* register_score"):
        Profile.load(tmp_path / "p.json")


def test_an_evaluation_lists_it(kind):
    scores = scored(40)[-1]
    middle = sorted(kind.uncertainty(one) for one in scores)[20]
    results = [
        Result(
            query=str(index),
            about=str(index),
            stratum="",
            correct=kind.uncertainty(one) < middle,
            score=one,
            seconds={"generating": 1.0, "scoring": 1.0},
            failures={},
        )
        for index, one in enumerate(scores)
    ]
    chosen = choose([kind.option], None)
    assert list(chosen) == [kind.option]
    assert kind.option in choose([], None)
    rows = compare(results, list(chosen.values()), None, repeats=10)["methods"]
    assert rows[kind.title]["auroc"] == 1.0


def test_a_score_that_fails_passes_nothing(caplog):
    broken = ScoreKind("broken", "Fails.", read=lambda score: 1 / 0)
    bad = ScoreKind("bad", "Fails in the pass.", measure=lambda log_probs, entropies: float("nan"))
    for one in (broken, bad):
        register_score(one)
    try:
        score_of_pass = scored(1)[-1][0]
        assert score_of_pass.more == {"bad": None}
        assert score_of_pass.finite()  # answers that another score judges do not depend on it
        assert Score.model_validate_json(score_of_pass.model_dump_json()) == score_of_pass
        for one in (broken, bad):
            verdict = Standard(None, None, 1e9, one.name).judge(score_of_pass, None)
            assert not verdict.passed
            assert math.isnan(feature_values(score_of_pass, (one.name,))[0])
        assert "The score broken cannot be computed: ZeroDivisionError" in caplog.text
        with pytest.raises(ProfileError, match="'bad', which was not computed"):
            feature_values(score(), ("bad",))  # of a journal from before it was registered
    finally:
        for one in (broken, bad):
            unregister_score(one.name)


def test_the_watch_knows_the_direction(kind):
    watch = RawWatch()
    for _ in range(19):
        watch.see(0.9, 0.001, kind.name)
    with pytest.warns(UserWarning, match="none of them passes" if kind is TOP_LAYER else "all of them pass"):
        watch.see(0.9, 0.001, kind.name)


def test_names_are_checked():
    for name in ("Top", "", "layers.1", "1st"):
        with pytest.raises(ConfigurationError, match="expected small letters"):
            ScoreKind(name, "")
    with pytest.raises(ConfigurationError, match="read or measure, not both"):
        ScoreKind("both", "", read=lambda score: 1.0, measure=lambda log_probs, entropies: 1.0)
    with pytest.raises(ConfigurationError, match="expected read or measure, since"):
        register_score(ScoreKind("nothing", ""))
    for taken in ("nll", "fused", "auto", "confidence"):
        with pytest.raises(ConfigurationError, match="already"):
            register_score(ScoreKind(taken, "", read=lambda score: 1.0))
    with pytest.raises(ConfigurationError, match="already"):
        register_score(ScoreKind("another", "", read=lambda score: 1.0, option="g-nll"))
    with pytest.raises(ConfigurationError, match=r"method='magic': expected one of semgrad, .*max_entropy"):
        SemGradGuard(scripted(0.5), score_threshold=1.0, method="magic")
    with pytest.raises(ConfigurationError, match=r"method='length': expected one of auto, blend, core, fused, semgrad"):
        cover_section([score()], coverage=0.5, method="length")


def test_the_list_is_what_the_package_always_had():
    """Features in this order: profiles and fits stay what they were."""
    plain = ("nll", "mean_nll", "mean_entropy", "max_entropy", "first_entropy", "max_nll", "length")
    assert scalar_features() == (*plain, "paragrad", "exgrad")
    assert scalar_features(gradients=False) == plain
    alone = "semgrad hybridgrad paragrad exgrad combined nll mean_nll mean_entropy max_entropy sum_entropy"
    assert methods() == ("auto", "blend", "core", "fused", *alone.split(), "first_entropy", "max_nll", "rauq")
    assert [kind.name for kind in known_scores("core")] == ["nll", "mean_nll", "mean_entropy", "max_nll"]
    assert list(choose([], None)) == (
        "semgrad semgrad-upper hybridgrad paragrad exgrad combined g-nll ln-nll mean-entropy max-entropy sum-entropy "
        "first-entropy min-probability length".split()
    )
    assert all(kind.help.endswith(".") for kind in known_scores())


def test_the_readme_names_every_score():
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Scores")[1].split("```")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert {kind.name for kind in known_scores("alone")} <= named


def test_half_precision_measures_in_float64():
    seen = []
    register_score(ScoreKind("seen", "", measure=lambda *tensors: seen.append([one.dtype for one in tensors]) or 1.0))
    try:
        scored(1)
    finally:
        unregister_score("seen")
    assert seen == [[torch.float64, torch.float64]]


def test_combined_is_a_geometric_mean_and_needs_all_three():
    one = score(1.0, nll=4.0, mean_nll=1.0, max_nll=2.0)
    kind = known_score("combined")
    assert kind.value(one) == pytest.approx(2.0)
    assert kind.value(one.model_copy(update={"max_nll": None})) is None  # a record of an earlier version
    assert kind.value(score(1.0, nll=0.0, mean_nll=0.0, max_nll=0.0)) >= 0
