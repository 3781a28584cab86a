"""The promise of a calibrated threshold holds as often as it says, and says so when none can be made."""

import math
import random
import warnings
from functools import cache

import numpy as np
import pytest
from mapie.risk_control import BinaryClassificationController
from scripted import profile, score, score_of

from semgrad_guard import ConfigurationError, DataError
from semgrad_guard.calibration.examples import Example, read_examples
from semgrad_guard.calibration.fit import part_of
from semgrad_guard.calibration.guarantee import Guarantee, guaranteed_threshold, labels_needed, thresholds_to_try
from semgrad_guard.calibration.labels import contains, labeler, same, token_f1, words
from semgrad_guard.calibration.methods import Labelled, calibrate_section, cover_section
from semgrad_guard.calibration.verdict import Standard


def world(rng, n):
    """Confidences and labels with a base accuracy of about 0.65, better where confidence is higher."""
    confidences = rng.beta(1.3, 1.0, n)
    return confidences, rng.random(n) < 0.25 + 0.72 * confidences


@cache
def large_sample():
    confidences, correct = world(np.random.default_rng(123), 400_000)
    order = np.argsort(-confidences)
    return -confidences[order], np.cumsum(~correct[order])


def risk_of(threshold):
    """The true share of errors among answers that pass, from a large sample."""
    confidences, errors = large_sample()
    passing = int(np.searchsorted(confidences, -threshold, side="right"))
    return errors[passing - 1] / passing


@pytest.mark.parametrize(("risk", "n"), [(0.2, 200), (0.2, 500), (0.1, 500)])
def test_the_promise_is_broken_no_more_often_than_it_says(risk, n):
    delta, repeats, rng = 0.1, 400, np.random.default_rng(7)
    broken, found, coverages = 0, 0, []
    confidences, _ = world(np.random.default_rng(123), 400_000)
    for _ in range(repeats):
        tried = thresholds_to_try(world(rng, n // 2)[0])
        result = guaranteed_threshold(*world(rng, n), tried, risk=risk, delta=delta)
        if result is not None:
            found += 1
            broken += risk_of(result[0]) > risk
            coverages.append((confidences >= result[0]).mean())
    # 400 draws of a share of at most 0.1: above 0.1 + 3.3 standard errors once in two thousand tests.
    assert broken / repeats <= delta + 3.3 * math.sqrt(delta * (1 - delta) / repeats)
    if (risk, n) == (0.2, 500):
        oracle = max((confidences >= threshold).mean() for threshold in np.linspace(0, 1, 201)[:-1]
                     if risk_of(threshold) <= risk)  # fmt: skip
        assert found > 0.9 * repeats
        assert np.mean(coverages) > 0.7 * oracle


def accepted(rng, n, risk, delta, parts):
    """Draw n labelled answers, split them, and calibrate; give the threshold found, and whether a loose one passes."""
    confidences, correct = world(rng, n)
    part = parts([(str(index), bool(right)) for index, right in enumerate(correct)])
    index = np.array([part[str(place)] for place in range(n)])
    tested = confidences[index == 2], correct[index == 2]
    found = guaranteed_threshold(*tested, thresholds_to_try(confidences[index == 1]), risk=risk, delta=delta)
    return found, guaranteed_threshold(*tested, [TOO_LOOSE[risk]], risk=risk, delta=delta) is not None


# The strictest thresholds that break the promise, if barely: 0.25 + 0.72 c is the probability of being right.
TOO_LOOSE = {0.2: 0.510, 0.1: 0.801}


@pytest.mark.parametrize(
    ("risk", "n"),
    [(0.2, 300), pytest.param(0.2, 1000, marks=pytest.mark.slow), pytest.param(0.1, 1000, marks=pytest.mark.slow)],
)
def test_the_promise_holds_when_the_split_is_stratified_by_label(risk, n):
    """Stratifying fixes how many wrong answers are tested; errors vary less, so that luck is rarer, not commoner."""
    delta, repeats, rng = 0.1, 400, np.random.default_rng(11)
    assert risk < risk_of(TOO_LOOSE[risk]) < risk + 0.003
    broken = loose = drawn = 0
    for repeat in range(repeats):
        found, passed = accepted(rng, n, risk, delta, lambda labels, seed=repeat: part_of(labels, seed))
        broken += found is not None and risk_of(found[0]) > risk
        loose += passed
        drawn += accepted(rng, n, risk, delta, lambda labels, seed=repeat: by_chance(labels, seed))[1]
    most = delta + 3.3 * math.sqrt(delta * (1 - delta) / repeats)
    assert broken / repeats <= most
    assert loose / repeats <= most
    assert loose <= drawn + 3.3 * math.sqrt(2 * repeats * delta * (1 - delta))


def by_chance(labels, seed):
    """Split without a look at the labels: half, 15 % and 35 %."""
    places = list(range(len(labels)))
    random.Random(seed).shuffle(places)
    ends = 0.5 * len(labels), 0.65 * len(labels)
    return {labels[place][0]: sum(rank >= end for end in ends) for rank, place in enumerate(places)}


def test_a_single_threshold_agrees_with_the_exact_test():
    """59 answers without an error are just enough for 5 % at 95 %, 58 are not; with five errors it takes 208."""
    assert (labels_needed(0.05, 0.05), labels_needed(0.05, 0.05, 5)) == (59, 208)
    assert (labels_needed(0.1, 0.05), labels_needed(0.1, 0.05, 5)) == (29, 103)
    for n, kept in ((59, True), (58, False)):
        found = guaranteed_threshold([0.9] * n, [True] * n, [0.5], risk=0.05, delta=0.05)
        assert (found is not None) is kept
    threshold, promise = guaranteed_threshold(
        [0.9] * 59 + [0.3], [True] * 59 + [False], [0.5, 0.2], risk=0.05, delta=0.05
    )
    assert (threshold, promise.n, promise.errors) == (0.5, 59, 0)


def test_the_sequence_ends_at_the_first_that_fails():
    confidences = [0.9] * 40 + [0.5] * 400
    correct = [True] * 40 + [True] * 400
    assert guaranteed_threshold(confidences, correct, [0.9, 0.5], risk=0.05, delta=0.05) is None
    assert guaranteed_threshold(confidences, correct, [0.5], risk=0.05, delta=0.05) is not None
    assert guaranteed_threshold([], [], [0.5], risk=0.05, delta=0.05) is None
    with pytest.raises(ConfigurationError, match="risk=5"):
        guaranteed_threshold([0.9], [True], [0.5], risk=5, delta=0.05)


def answers(n, seed=0, groups=None):
    """Answers whose SemGrad tells right from wrong, with some noise."""
    rng = random.Random(seed)
    found = []
    for index in range(n):
        correct = rng.random() < 0.7
        doubt = math.exp(rng.gauss(-2 if correct else 1, 1.0))
        about = str(index if groups is None else index % groups)
        found.append(Labelled(about, score(doubt, nll=math.exp(rng.gauss(0, 1)), layers=(doubt, doubt)), correct))
    return found


def test_calibration_finds_a_threshold_that_keeps_its_promise_on_fresh_answers():
    found = calibrate_section(answers(1500), risk=0.05, delta=0.05)
    section = found.section
    assert found.method == "blend"
    assert found.compared["blend"][0] > found.compared["core"][0]
    assert found.compared["blend"][0] > found.compared["semgrad"][0] - 0.01
    assert section.guarantee.risk == 0.05
    fresh = answers(4000, seed=9)
    passing = [item for item in fresh if section.passes(item.score)]
    assert len(passing) > 0.6 * len(fresh)
    assert sum(not item.correct for item in passing) / len(passing) <= 0.05
    assert "at most 0.05 are wrong" in section.threshold_rule


def test_one_answer_of_each_group_counts():
    section = calibrate_section(answers(2000, groups=300), method="semgrad", risk=0.2, delta=0.1).section
    assert section.guarantee.n <= 0.35 * 300 + 1


def test_few_labels_mean_few_features():
    assert calibrate_section(answers(100), method="fused", risk=0.3, delta=0.2).section.features == ("semgrad",)
    assert len(calibrate_section(answers(1200), method="fused", risk=0.2, delta=0.1).section.features) > 1
    assert calibrate_section(answers(300), method="paragrad", risk=0.4, delta=0.2).method == "paragrad"


def test_what_cannot_be_promised_lets_nothing_pass_and_says_what_is_missing():
    section = calibrate_section(answers(80), method="semgrad", risk=0.01, delta=0.01).section
    assert section.threshold is None
    assert section.guarantee is None
    assert f"at least {labels_needed(0.01, 0.01)} must pass" in section.threshold_rule
    assert not section.passes(score(1e-9))
    empty = profile().model_copy(update={"answer": section})
    verdict = Standard(empty, None, None, None).judge(score(1e-9), "")
    assert not verdict.passed
    assert "no threshold that keeps" in verdict.reason


def test_labels_that_are_all_alike_or_too_few_are_refused():
    alike = [Labelled(item.about, item.score, True) for item in answers(100)]
    with pytest.raises(DataError, match="0 wrong answers"):
        calibrate_section(alike, method="semgrad", risk=0.1, delta=0.1)
    with pytest.raises(DataError, match="leave none to"):
        calibrate_section(answers(1), risk=0.1, delta=0.1)


def test_the_promise_travels_with_an_answer_that_passes():
    section = profile().answer
    promise = Guarantee(risk=0.05, delta=0.1, n=80, errors=1)
    given = profile().model_copy(update={"answer": section.model_copy(update={"guarantee": promise})})
    passing = Standard(given, None, None, None).judge(score_of(0.9), "")
    assert passing.guarantee == {"risk": 0.05, "delta": 0.1, "n": 80}
    assert Standard(given, None, None, None).judge(score_of(0.1), "").guarantee is None
    assert Standard(given, 0.5, None, None).judge(score_of(0.9), "").guarantee is None  # the caller's own threshold
    assert (
        Standard(given, None, None, None).judge(score_of(0.9), "", "grounded").guarantee is None
    )  # not what was tested


def test_coverage_without_labels():
    scores = [item.score for item in answers(500)]
    section = cover_section(scores, coverage=0.9)
    assert sum(section.passes(one) for one in scores) == 450
    assert section.guarantee is None
    assert "nothing is promised" in section.threshold_rule
    with pytest.raises(ConfigurationError, match="needs labels"):
        cover_section(scores, coverage=0.9, method="fused")
    with pytest.raises(ConfigurationError, match="coverage=0"):
        cover_section(scores, coverage=0)
    with pytest.raises(DataError):
        cover_section([], coverage=0.5)


@pytest.mark.parametrize(
    ("answer", "right", "is_same", "is_in"),
    [
        ("The Eiffel Tower.", "eiffel tower", True, True),
        ("It is Paris, of course.", "Paris", False, True),
        ("1,000 metres", "1000 metres", True, True),
        ("Seven", "7", True, True),
        ("Parisian", "Paris", False, False),
        ("", "Paris", False, False),
        ("The The", "the", False, True),
        ("S\u00e3o Paulo", "Sa\u0303o Paulo", True, True),
    ],
)
def test_right_answers_are_recognised(answer, right, is_same, is_in):
    assert same("q?", answer, [right]) is is_same
    assert contains("q?", answer, ["something else", right]) is is_in


def test_labels_by_shared_words():
    assert token_f1("the big red house", ["red house", "blue"]) == pytest.approx(0.8)
    assert token_f1("nothing", ["else"]) == 0
    assert labeler("f1")("q?", "big red house", ["red house"])


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("California", True),
        ("It was in California.", True),
        ("Fortune cookies originated in California", True),
        ("San Francisco", True),
        ("China", False),
        ("not California", False),
        ("Fortune cookies", False),  # nothing but the question's own words
        ("They originated.", False),
        ("in", False),
        ("", False),
    ],
)
def test_a_brief_answer_may_say_what_a_right_one_says_at_length(answer, right):
    references = ["Fortune cookies originated in San Francisco", "Fortune cookies originated in California"]
    assert labeler("either")("Where did fortune cookies originate?", answer, references) is right
    assert words("A") == ["a"]
    with pytest.raises(ConfigurationError, match="labels='exact'"):
        labeler("exact")


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_examples_are_read(tmp_path):
    first = '{"query": "a?", "truthful answer": ["x", "y"]}'
    lines = first + '\n\n{"query": "b?", "answer": "z", "correct": false, "group": "g"}\n'
    first, second = read_examples(write(tmp_path / "d.jsonl", lines))
    assert (first.answers, first.about, first.labelled) == (("x", "y"), "a?", True)
    assert (second.correct, second.about) == (False, "g")
    table = "query,truthful answer,stratum\na?,x|y,hard\nb?,z,\n"
    first, second = read_examples(write(tmp_path / "d.csv", table))
    assert (first.answers, first.stratum, second.answers) == (("x", "y"), "hard", ("z",))
    assert not Example(query="q?").labelled
    (none,) = read_examples(write(tmp_path / "n.jsonl", '{"query": "a?", "truthful answer": []}'))
    assert none.labelled
    assert not same("a?", "x", none.answers)
    (some,) = read_examples(write(tmp_path / "s.jsonl", '{"query": "a?", "truthful answer": ["x", ""]}'))
    assert (same("a?", "x", some.answers), same("a?", "", some.answers)) == (True, False)  # as in published files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"query": "a?"}\n{"query": 3}', "line 2: query"),
        ('{"query": " "}', "line 1: Value error, the query is empty"),
        ('{"query": "a?", "correct": true}', 'there is no "answer"'),
        ('{"query": "a?", "truthful answer": ["", " "]}', "the right answers are empty; expected some text"),
        ('{"query": "a?"}\n{"query": "a?"}', "line 2: the question of line 1 again"),
        ("", "holds no questions"),
    ],
)
def test_malformed_examples_are_named_by_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_examples(write(tmp_path / "d.jsonl", text))
    with pytest.raises(DataError, match="Cannot read"):
        read_examples(tmp_path / "nowhere.jsonl")


def test_mapie_promises_no_more_than_we_do():
    """MAPIE's controller, on the same thresholds in the same order, with a looser bound, is never ahead of ours."""
    rng, found, alike = np.random.default_rng(5), 0, 0
    for _ in range(60):
        tried = thresholds_to_try(world(rng, 250)[0])
        confidences, correct = world(rng, 500)
        ours = guaranteed_threshold(confidences, correct, tried, risk=0.2, delta=0.1)
        controller = BinaryClassificationController(
            lambda rows: np.column_stack([1 - rows[:, 0], rows[:, 0]]),
            risk="precision",
            target_level=0.8,
            confidence_level=0.9,
            list_predict_params=np.array(tried),
            fwer_method="fixed_sequence",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where it finds nothing
            controller.calibrate(confidences[:, None], correct.astype(int))
        theirs = list(np.ravel(controller.valid_predict_params))
        if theirs:
            found += 1
            assert ours is not None
            assert ours[0] <= min(theirs) + 1e-12
            alike += np.mean(confidences >= ours[0]) - np.mean(confidences >= min(theirs)) < 0.1
    assert found > 30
    assert alike > 0.8 * found


@pytest.mark.parametrize("name", ["risk", "delta"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1.5, -0.1, math.nan])
def test_chances_at_or_beyond_the_edges_are_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=f"^{name}={value}: expected a number between 0 and 1"):
        guaranteed_threshold([0.9], [True], [0.5], **{"risk": 0.1, "delta": 0.1} | {name: value})


def test_what_is_shown_exactly_is_shown():
    """One right answer has a chance of exactly one half where half of all answers are wrong."""
    assert labels_needed(0.5, 0.5) == 1
    threshold, guarantee = guaranteed_threshold([0.9], [True], [0.5], risk=0.5, delta=0.5)
    assert (threshold, guarantee.threshold, guarantee.n, guarantee.errors) == (0.5, 0.5, 1, 0)


def test_thresholds_are_tried_in_steps_of_one_in_a_hundred_answers():
    tried = thresholds_to_try([place / 1000 for place in range(1001)])
    assert len(tried) == 81
    assert (tried[0], tried[1], tried[-1]) == (pytest.approx(0.8), pytest.approx(0.79), 0.0)
