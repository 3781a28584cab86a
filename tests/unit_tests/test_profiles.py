"""Profiles cannot lie: whatever is wrong with one is refused, and what was changed since its test promises nothing."""

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scripted import decided, profile, score, score_of, scripted
from scripted import record as record_of

from semgrad_guard import Abstain, ConfigurationError, Profile, ProfileError, SemGradGuard
from semgrad_guard.agents import confidence_gate, filter_tool_calls, low_confidence
from semgrad_guard.calibration.guarantee import Guarantee, guaranteed_threshold
from semgrad_guard.calibration.methods import cover_section
from semgrad_guard.calibration.profile import NO_LABELS, Section
from semgrad_guard.calibration.section import Section as SectionItself
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.demo import embedded_profile
from semgrad_guard.evaluation.compare import choose, promise_figures
from semgrad_guard.evaluation.report import parts_of, report
from semgrad_guard.evaluation.run import Result
from semgrad_guard.evaluation.study import Study
from semgrad_guard.langchain.metadata import with_record
from semgrad_guard.records import CallConfidence
from semgrad_guard.scoring.preservation import Preservation
from semgrad_guard.serving.work import ChatJob, ScoreJob
from semgrad_guard.serving.worker import Worker

FEATURES = ("semgrad", "mean_nll", "layers.1", "layers_unweighted.0:2", "later.1.0")
COUNT = len(FEATURES)


def rich():
    """A profile with everything in it: several features, steps, quantiles, a guarantee, a preservation score."""
    section = Section(
        features=FEATURES,
        lowest=(-9.0,) * COUNT,
        highest=(3.0,) * COUNT,
        center=(-1.0,) * COUNT,
        scale=(2.0,) * COUNT,
        coefficients=(-1.0, -0.5, -0.25, 0.125, 0.5),
        intercept=0.5,
        steps=((0.0, 0.01), (0.4, 0.3), (0.6, 0.3), (1.0, 0.99)),
        questions=500,
        threshold=0.75,
        threshold_rule="tested",
        guarantee=Guarantee(risk=0.05, delta=0.05, n=188, errors=2),
        quantiles=(0.1, 0.5, 0.9),
        spread_of=300,
    )
    plain = profile()
    scoring = plain.bound_to.scoring.changed(
        reduction="mean", norm="l2", tau=0.5, beta=2.0, unweighted=True, later=True, attention=True
    )
    bound = plain.bound_to.model_copy(update={"scoring": scoring})
    changes = {"bound_to": bound, "answer": section, "grounded": section, "label_source": "match"}
    table = Preservation(scores=((0.5, -1.5),), tokens=("a", "b"), questions=3, prompts=9)
    return plain.model_copy(update={**changes, "preservation": table, "position_from": "preservation"})


RICH = rich()
PLAIN = json.loads(RICH.model_dump_json())
# What a guarantee does not rest on.
BESIDE = set(
    "package label_source position_from preservation seed created model threshold_rule void questions quantiles "
    "spread_of confidence_is method evidence core_sample distance_sample".split()
)
SCORES = [
    score(
        value, layers=(value, value), layers_unweighted=(value, value), later=((value, value), (value, value)), **more
    )
    for value in (1e-300, 1e-9, 0.3, 1.0, 1e9, 1e300)
    for more in ({}, {"mean_nll": 1e-12}, {"mean_nll": 1e9})
]
DELETED = object()


def places(node, path=()):
    """Give the way to everything in a JSON document."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


PLACES = list(places(PLAIN))


def at(node, path):
    for key in path:
        node = node[key]
    return node


def changed(path, value, plain=PLAIN):
    """Give the document with another value at a place."""
    other = copy.deepcopy(plain)
    inner = at(other, path[:-1])
    if value is DELETED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return other


def loaded(tmp_path, plain):
    path = tmp_path / "profile.json"
    path.write_text(plain if isinstance(plain, str) else json.dumps(plain), encoding="utf-8")
    return Profile.load(path)


def survives(tmp_path, path, value):
    """Check what a change must lead to: a refusal, or confidences in [0, 1], and no guarantee where it rested on it."""
    plain = changed(path, value)
    try:
        found = loaded(tmp_path, plain)
    except ProfileError:
        return False
    for kind in ("answer", "grounded"):
        section = found.section(kind)
        assert all(0.0 <= section.confidence(one) <= 1.0 for one in SCORES)
        if section.guarantee is not None and getattr(found, kind) is not None:
            same_here = kind not in path and "bound_to" not in path
            same_value = at(PLAIN, path) == (None if value is DELETED else value)  # None is what may be left out
            beside = bool(BESIDE & set(path)) or path[-2:] == ("guarantee", "threshold")  # the section has it too
            assert same_here or same_value or beside, (path, value)
    return True


def test_the_document_itself_is_fine(tmp_path):
    found = loaded(tmp_path, PLAIN)
    assert found == RICH
    assert found.answer.guarantee.threshold == 0.75
    assert found.answer.guarantee.seal != found.grounded.guarantee.seal  # each was proved for its own kind of answer


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_no_number_can_be_anything_else(tmp_path, path):
    value = at(PLAIN, path)
    odd = [math.nan, math.inf, -math.inf, 10**400, "0.5", True, [], {}, None, DELETED]
    if isinstance(value, int | float) and not isinstance(value, bool):
        for other in odd[: 4 if path[0] == "preservation" else 8]:
            assert not survives(tmp_path, path, other), other
    for other in (*odd[7:], -1, "x", 0.5, 2):
        survives(tmp_path, path, other)
    if isinstance(value, list) and value and path[0] != "preservation" and "layers" not in path:
        for other in (value[:-1], [*value, value[-1]], [*value, None], value[::-1], value * 2):
            if other != value and survives(tmp_path, path, other):
                assert path[-1] in ("quantiles", "steps", "coefficients", "features") or "steps" in path


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(PLACES), JSON | st.floats(-2, 2))
def test_any_change_is_refused_or_promises_nothing(tmp_path_factory, path, value):
    survives(tmp_path_factory.getbasetemp(), path, value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("answer", "intercept"), math.nan, "answer.intercept: Input should be a finite number"),
        (("answer", "scale", 1), 0.0, "answer.scale.1: Input should be greater than 0"),
        (("answer", "lowest", 0), 4.0, "lowest 4.0 of 'semgrad' is above highest 3.0"),
        (("answer", "center"), [0.0], "center has 1 numbers; expected 5, one for each feature"),
        (("answer", "steps", 1), [0.4, 1.5], "answer.steps.1.1: Input should be less than or equal to 1"),
        (("answer", "steps", 2), [0.6, 0.2], r"\(0.4, 0.3\) is followed by \(0.6, 0.2\); expected rising steps"),
        (("answer", "steps", 2), [0.4, 0.3], "expected rising steps"),
        (("answer", "features", 0), "magic", "'magic' is no feature"),
        (("answer", "features", 0), "layers.-1", "'layers.-1' is no feature"),
        (("answer", "features", 0), "layers.1:1", "an empty range of layers"),
        (("answer", "features", 0), "mean_nll", "'mean_nll' stands there twice"),
        (("answer", "features", 0), "layers.7", "'layers.7' reaches beyond the 2 layers that are scored"),
        (("answer", "features", 0), "later.0.2", "'later.0.2' reaches beyond the 2 layers"),
        (("answer", "features", 0), "later.2.0", "needs more prompt tokens after t.* than the 2"),
        (("bound_to", "scoring", "unweighted"), False, "needs unweighted, which the profile does not bind"),
        (("bound_to", "scoring", "later"), False, "needs more prompt tokens after t.* than the 0"),
        (("bound_to", "scoring", "layers"), [3, 2], r"\[3, 2\]: expected layers in ascending order"),
        (("bound_to", "scoring", "layers"), [2, 2], "each once"),
        (("bound_to", "scoring", "layers"), [-1, 2], "bound_to.scoring.layers: expected .* layer indices from 0"),
        (("bound_to", "scoring", "layers"), "all", "layers 'all'; expected t. as a number, and the layers by index"),
        (("bound_to", "scoring", "layers"), DELETED, "layers 'upper-half'; expected"),
        (("bound_to", "scoring", "token_position"), 0, "bound_to.scoring.token_position: expected 1"),
        (("bound_to", "scoring", "token_position"), None, "token_position None, layers .*; expected t. as a number"),
        (("bound_to", "scoring", "tau"), 0.0, "bound_to.scoring.tau"),
        (("bound_to", "scoring", "beta"), -1.0, "bound_to.scoring.beta"),
        (("bound_to", "scoring", "norm"), "l3", "bound_to.scoring.norm"),
        (("method",), "semgrad", "method 'semgrad', but answer.features are semgrad, mean_nll"),
        (("method",), "magic", "method 'magic'"),
        (("answer", "quantiles"), [0.5, 0.1], "from least to greatest"),
        (("answer", "spread_of"), 0, "3 quantiles of 0 answers; expected both or neither"),
        (("answer", "questions"), 0, "answer.questions"),
        (("answer", "threshold"), 1.5, "answer.threshold"),
        (("answer", "guarantee", "risk"), 0.01, "2 errors among 188 answers do not show a risk of at most 0.01"),
        (("answer", "guarantee", "n"), 20, "do not show a risk"),
        (("answer", "guarantee", "errors"), 189, "189 errors among 188 answers; expected no more errors"),
        (("answer", "guarantee", "delta"), 1.0, "answer.guarantee.delta"),
        (("version",), 2, "version: 2: expected 1; another semgrad-guard wrote this file"),
        (("extra",), 1, "extra: Extra inputs are not permitted"),
        (("answer", "slope"), 1, "answer.slope: Extra inputs are not permitted"),
        (("preservation", "scores", 0, 0), 3.0, "preservation: scores: expected rows of 2 numbers from -2 to 2"),
        (("confidence_is",), "ordering", "confidence_is 'ordering', but label_source is 'match'"),
        (("label_source",), NO_LABELS, "confidence_is 'probability', but label_source is 'none"),
    ],
)
def test_what_is_wrong_and_where(tmp_path, path, value, message):
    with pytest.raises(ProfileError, match=f"not a profile of version 1: .*{message}.* Calibrate again to get one"):
        loaded(tmp_path, changed(path, value))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"[]", "expected a JSON object, and the file holds a list"),
        (b"null", "expected a JSON object, and the file holds a NoneType"),
        (b'{"a": 1,}', "line 1, column 9"),
        (b"\xef\xbb\xbf{}", "begins with a byte order mark"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice in one object"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        ("{}".encode("utf-16"), "is not UTF-8"),
        (b'{"\\ud800": 1}', "Calibrate again"),
        (b"{}", r"package: Field required \(and 6 more\)"),
    ],
)
def test_a_file_that_is_no_profile(tmp_path, raw, message):
    path = tmp_path / "p.json"
    path.write_bytes(raw)
    with pytest.raises(ProfileError, match=f"p.json is not a profile of version 1: .*{message}") as found:
        Profile.load(path)
    str(found.value).encode()  # it can be printed


def test_a_path_that_cannot_be_read_or_written(tmp_path):
    for path in (tmp_path, tmp_path / "none" / "p.json", "a\0b", None, 3):
        with pytest.raises(ProfileError, match="Cannot read the profile"):
            Profile.load(path)
    with pytest.raises(ProfileError, match="Cannot write the profile"):
        profile().save(tmp_path / "none" / "p.json")


def test_in_python_too_nothing_invalid_can_be_built():
    section = profile().answer
    for change in (
        {"intercept": math.nan},
        {"scale": (0.0,)},
        {"lowest": (60.0,)},
        {"coefficients": (1.0, 2.0)},
        {"threshold": "0.5"},
        {"slope": 1},
    ):
        with pytest.raises(ValidationError):
            Section(**{**dict(section), **change})
        with pytest.raises(ValidationError):
            section.model_copy(update=change)
    with pytest.raises(ValidationError):
        profile().model_copy(update={"method": "nll"})
    assert Section is SectionItself


# --- what a guarantee was proved for


def judged(found, confidence=0.9):
    return Standard(found, None, None, None).judge(score_of(confidence), "")


def promising():
    """The scripted profile, with a promise."""
    promise = Guarantee(risk=0.05, delta=0.1, n=80, errors=1)
    plain = profile()
    return plain.model_copy(update={"answer": plain.answer.model_copy(update={"guarantee": promise})})


def test_an_edited_threshold_promises_nothing_and_says_so(tmp_path):
    assert judged(promising()).guarantee == {"risk": 0.05, "delta": 0.1, "n": 80}
    plain = json.loads(promising().model_dump_json())
    in_file = loaded(tmp_path, changed(("answer", "threshold"), 0.5, plain))
    section = promising().answer.model_copy(update={"threshold": 0.5})
    in_python = promising().model_copy(update={"answer": section})
    void = "the threshold was changed from 0.8 to 0.5 after it was tested"
    for found in (in_file, in_python):
        verdict = judged(found, 0.6)
        assert (verdict.passed, verdict.guarantee, found.answer.guarantee) == (True, None, None)
        assert verdict.reason == f"confidence 0.600 reaches the threshold 0.500; nothing is promised: {void}"
        assert verdict.policy.endswith(f"nothing is promised of what passes: {void}")
        record = record_of(SemGradGuard(scripted(0.6), profile=found).invoke("q?"))
        assert (record["decision"], record["guarantee"]) == ("pass", None)
        assert void in record["reason"]
    in_file.save(tmp_path / "again.json")
    assert Profile.load(tmp_path / "again.json").answer.void == void
    back = changed(("answer", "threshold"), 0.8, json.loads(in_file.model_dump_json()))
    assert loaded(tmp_path, back).answer.guarantee is None  # what was dropped does not come back


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("answer", "coefficients", 0), -2.0),
        (("answer", "intercept"), 5.0),
        (("answer", "center", 0), 1.0),
        (("answer", "scale", 0), 2.0),
        (("answer", "lowest", 0), -40.0),
        (("answer", "highest", 0), 40.0),
        (("answer", "steps"), [[0.0, 0.5], [1.0, 1.0]]),
        (("answer", "guarantee", "n"), 8000),
        (("answer", "guarantee", "risk"), 0.2),
        (("answer", "guarantee", "delta"), 0.3),
        (("answer", "guarantee", "errors"), 0),
        (("answer", "guarantee", "seal"), "0" * 32),
        (("answer", "guarantee", "seal"), ""),
        (("answer", "guarantee", "seal"), DELETED),
        (("answer", "guarantee", "threshold"), 0.7),
        (("bound_to", "fingerprint"), "another"),
        (("bound_to", "template"), "another"),
        (("bound_to", "scoring", "token_position"), 2),
        (("bound_to", "scoring", "layers"), [1, 2, 3]),
        (("bound_to", "scoring", "reduction"), "mean"),
        (("bound_to", "scoring", "norm"), "l2"),
        (("bound_to", "scoring", "tau"), 2.0),
    ],
)
def test_whatever_the_test_rested_on_voids_the_guarantee_when_it_is_changed(tmp_path, path, value):
    plain = json.loads(promising().model_dump_json())
    found = loaded(tmp_path, changed(path, value, plain))
    assert found.answer.guarantee is None
    assert found.answer.void
    assert judged(found, 0.999).guarantee is None
    assert Profile.model_validate(changed(path, value, plain)).answer.guarantee is None


def test_a_guarantee_does_not_move_to_another_kind_of_answer(tmp_path):
    plain = json.loads(promising().model_dump_json())
    found = loaded(tmp_path, plain | {"tool_call": plain["answer"]})
    assert found.answer.guarantee is not None
    assert found.tool_call.guarantee is None
    moved = promising().model_copy(update={"tool_call": promising().answer})
    assert moved.tool_call.guarantee is None


def test_what_no_test_rests_on_may_change(tmp_path):
    plain = json.loads(promising().model_dump_json())
    for path, value in ((("package",), "9"), (("answer", "threshold_rule"), "words"), (("bound_to", "model"), "moved")):
        assert loaded(tmp_path, changed(path, value, plain)).answer.guarantee is not None


def test_a_file_from_before_seals_is_read_and_promises_nothing(tmp_path):
    plain = json.loads(promising().model_dump_json())
    del plain["confidence_is"], plain["answer"]["void"]
    plain["answer"]["guarantee"] = {"risk": 0.05, "delta": 0.1, "n": 80, "errors": 1}
    found = loaded(tmp_path, plain)
    assert found.answer.guarantee is None
    assert "does not say what its guarantee was proved for; calibrate again" in judged(found).reason
    assert judged(found).passed
    assert found.calibrated
    plain["answer"]["guarantee"], plain["label_source"] = None, NO_LABELS
    assert not loaded(tmp_path, plain).calibrated


def test_a_tested_threshold_that_is_changed_before_it_is_saved_promises_nothing():
    threshold, promise = guaranteed_threshold([0.9] * 80, [True] * 80, [0.8], risk=0.05, delta=0.1)
    section = profile().answer.model_copy(update={"guarantee": promise, "threshold": threshold})
    assert profile().model_copy(update={"answer": section}).answer.guarantee is not None
    lowered = section.model_copy(update={"threshold": 0.1})
    assert profile().model_copy(update={"answer": lowered}).answer.guarantee is None


def test_the_profile_that_ships_promises_what_was_tested():
    assert embedded_profile().answer.guarantee.threshold == embedded_profile().answer.threshold
    assert [section.void for section in (embedded_profile().answer, embedded_profile().grounded)] == ["", ""]
    assert embedded_profile().calibrated


# --- what cannot be computed is not sure


def broken(**values):
    """A profile whose section slipped past every check."""
    plain = profile(0.0)
    section = SectionItself.model_construct(**{**dict(plain.answer), **values})
    return Profile.model_construct(**{**dict(plain), "answer": section})


@pytest.mark.parametrize(
    "values",
    [
        {"intercept": math.nan},
        {"intercept": math.inf},
        {"coefficients": (math.nan,)},
        {"coefficients": (-math.inf,)},
        {"scale": (0.0,)},
        {"lowest": (math.nan,)},
        {"steps": ((0.0, 2.0), (1.0, 2.0))},
        {"steps": ((0.0, -2.0), (1.0, -2.0))},
        {"steps": ((0.0, math.nan), (1.0, math.nan))},
    ],
)
def test_a_number_that_is_not_finite_is_confidence_0_and_never_passes(values):
    for threshold in (None, 0.0, 0.5):
        verdict = Standard(broken(**values), threshold, None, None).judge(score_of(0.9), "")
        assert (verdict.passed, verdict.confidence) == (False, 0.0)
        assert verdict.reason.startswith("the confidence cannot be computed")
    assert not broken(**values).answer.passes(score_of(0.9))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_confidence_0(value):
    assert profile().answer.confidence(score(value)) == 0.0
    assert not Standard(profile(), 0.0, None, None).judge(score(value), "").passed
    assert not profile(0.0).answer.passes(score(value))


def test_numbers_too_large_to_compute_with_are_confidence_0():
    section = profile().answer.model_copy(update={"scale": (1e-300,), "coefficients": (-1e300,)})
    assert section.confidence(score(2.0)) == 0.0


def test_a_confidence_of_0_is_sure_nowhere():
    call = {"name": "a", "args": {}, "id": "1"}
    sure = CallConfidence(name="a", confidence=0.0, arguments={})
    message = scripted(0.9).invoke("q?").model_copy(update={"tool_calls": [call]})
    message = with_record(message, decided(confidence=0.0, tool_calls={"1": sure}))
    assert filter_tool_calls(message, 0.0).held
    assert confidence_gate(0.0)({"messages": [message]}) == "unsure"
    assert confidence_gate(0.0)({"messages": [message.model_copy(update={"tool_calls": []})]}) == "unsure"


# --- an ordering is no probability


def ordering():
    section = cover_section([score_of(place / 100) for place in range(1, 100)], coverage=0.9, method="semgrad")
    return profile().model_copy(
        update={"answer": section, "method": "semgrad", "label_source": NO_LABELS, "confidence_is": "ordering"}
    )


def test_an_ordering_is_called_one_in_every_record(tmp_path):
    path = tmp_path / "p.json"
    ordering().save(path)
    found = Profile.load(path)
    assert not found.calibrated
    for answer, decision in ((0.9, "pass"), (0.01, "abstain")):
        guard = SemGradGuard(scripted(answer), profile=found)
        record = record_of(guard.invoke("q?"))
        assert (record["decision"], record["calibrated"], record["guarantee"]) == (decision, False, None)
        assert "only an ordering and no probability" in record["reason"]
    assert "only an ordering and no probability; nothing is promised" in judged(found).policy
    record = record_of(SemGradGuard(scripted(0.9), profile=profile()).invoke("q?"))
    assert record["calibrated"]
    assert "ordering" not in record["reason"]


def test_an_ordering_is_not_served_as_calibrated():
    for found, calibrated in ((ordering(), False), (profile(), True), (None, False)):
        standard = {"score_threshold": 1.0} if found is None else {"profile": found}
        worker = Worker(SemGradGuard(scripted(0.9), **standard), name="m")
        assert worker.card.calibrated is calibrated
        jobs = [
            ChatJob(messages=({"role": "user", "content": "q?"},)),
            ScoreJob(prompt_ids=(2, 40, 41, 42, 43, 44), response_ids=(50, 51, 1)),
        ]
        assert [answer.judgement.verdict.calibrated for answer in worker.run(jobs)] == [calibrated] * 2


def test_an_evaluation_gives_an_ordering_no_calibration_error():
    answers = [(confidence / 100, confidence > 40) for confidence in range(5, 100, 5)]
    results = [
        Result(
            query=str(value),
            about=str(value),
            stratum="",
            correct=right,
            score=score_of(value),
            seconds={},
            failures={},
        )
        for value, right in answers
    ]
    for found, calibrated in ((ordering(), False), (promising(), True)):
        kept = promise_figures(results, found)
        assert kept["calibrated"] is calibrated
        assert all((kept[name] is not None) is calibrated for name in ("brier", "ece_15_bins", "smooth_ece"))
        methods = list(choose((), found).values())
        study = Study({"reason": "a test"}, {}, {"missing": "", "sets": {}}, None, None, None)
        page = report(parts_of(results, {}), methods, found, study, title="t", setting={}, repeats=5).html
        assert ("only an ordering and no probability" in page) is not calibrated
        assert ("Confidence against the share of right answers" in page) is calibrated


def test_an_ordering_promises_nothing(tmp_path):
    plain = json.loads(promising().model_dump_json()) | {"label_source": NO_LABELS, "confidence_is": "ordering"}
    with pytest.raises(ProfileError, match="there is a guarantee, which needs labels"):
        loaded(tmp_path, plain)


# --- thresholds


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -0.1, 1.1, True, "0.5", "high", [0.5], np.array(0.5), 1j, object()]
)
def test_a_threshold_is_a_number_from_0_to_1(value):
    with pytest.raises(ConfigurationError, match=r"threshold=.*expected a confidence in"):
        SemGradGuard(scripted(0.9), profile=profile(), threshold=value)
    with pytest.raises(ConfigurationError, match=r"threshold=.*expected a confidence in"):
        Standard(profile(), value, None, None)
    for taking in (low_confidence, confidence_gate):
        with pytest.raises(ConfigurationError, match=r"threshold=.*expected a confidence in"):
            taking(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, True, "0.5", [0.5], np.array(0.5)])
def test_a_raw_threshold_is_a_finite_number(value):
    with pytest.raises(ConfigurationError, match=r"score_threshold=.*expected a finite number >= 0"):
        SemGradGuard(scripted(0.9), score_threshold=value)
    with pytest.raises(ConfigurationError, match=r"score_threshold=.*expected a finite number >= 0"):
        Standard(None, None, value, None)


def test_numbers_of_numpy_are_numbers():
    for value in (np.float64(0.5), np.float32(0.5), 0.5):
        guard = SemGradGuard(scripted(0.6), profile=profile(), threshold=value, routes=[Abstain()])
        assert guard.invoke("q?").response_metadata["semgrad_decision"]["verdict"]["threshold"] == 0.5
    assert SemGradGuard(scripted(0.6), profile=profile(), threshold=np.int64(1)).threshold == 1.0


def test_a_file_from_before_1_0_is_the_same_profile_with_the_same_promise(tmp_path):
    """There the settings of scoring stand beside the fingerprints, and the layers as `span`."""
    plain = json.loads(embedded_profile().model_dump_json())
    scoring = plain["bound_to"].pop("scoring")
    plain["bound_to"] |= {"span": scoring.pop("layers"), **scoring}
    old = loaded(tmp_path, plain)
    assert old == embedded_profile()
    assert old.answer.guarantee is not None
    plain["bound_to"]["span"] = [0, 1, 2, 3, 4]
    with pytest.raises(ProfileError, match="reaches beyond the 5 layers"):
        loaded(tmp_path, plain)
