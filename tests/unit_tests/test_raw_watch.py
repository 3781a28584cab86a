"""A threshold on a raw score that does not fit the model is told of, once, where everybody sees it."""

import copy
import pickle
import threading
import warnings

import pytest
from langchain_core.runnables import ConfigurableField
from scripted import calling, score, scripted

from semgrad_guard import SemGradGuard
from semgrad_guard.calibration.drift import RawWatch


def guard(*values, threshold=0.02, **settings):
    return SemGradGuard(
        scripted(*[("draft", score(value), "") for value in values]), score_threshold=threshold, **settings
    )


def heard(watching, count):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(count):
            watching.invoke("q?")
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.3, "far above score_threshold=0.02, and none of them passes"), (0.001, "far below .*, and all of them pass")],
)
def test_twenty_answers_far_on_one_side_are_told_of_once(value, words):
    watching = guard(value)
    assert heard(watching, 19) == []
    with pytest.warns(UserWarning, match=words) as found:
        watching.invoke("q?")
    assert len(found) == 1
    assert f"their semgrad is {value} to {value}" in str(found[0].message)
    assert "--coverage 0.9" in str(found[0].message)
    assert heard(watching, 40) == []


@pytest.mark.parametrize("values", [(0.3, 0.001), (0.05,), (0.007,), (0.3,) * 19 + (0.03,)])
def test_answers_on_both_sides_or_near_are_not_told_of(values):
    assert heard(guard(*values), 45) == []


def test_any_raw_score_is_watched_and_a_threshold_that_nothing_reaches_too():
    watching = SemGradGuard(scripted(("draft", score(0.02, nll=9.0), "")), score_threshold=1.0, method="nll")
    (told,) = heard(watching, 20)
    assert "their nll is 9 to 9" in told
    assert len(heard(guard(0.02, threshold=0.0), 20)) == 1


def test_only_answers_that_have_a_score_count():
    for answer in (("", None, "the response is empty"), ("draft", None, ""), calling(("f", {}, 0.9))):
        watching = SemGradGuard(scripted(answer), score_threshold=1e-9)
        assert heard(watching, 25) == []
        assert watching.raw_watch._values == []


def test_copies_as_langchain_makes_them_count_together():
    watching = guard(0.3)
    assert heard(watching.bind(stop=["x"]), 5) == []
    assert heard(watching.with_config(tags=["tag"]), 5) == []
    configurable = watching.configurable_fields(score_threshold=ConfigurableField(id="limit"))
    assert heard(configurable.with_config(configurable={"limit": 0.01}), 5) == []
    assert len(heard(watching.model_copy(), 5)) == 1


def test_a_pickled_or_deep_copy_starts_anew():
    watch = RawWatch()
    watch.see(1.0, 0.1, "semgrad")
    for twin in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        assert twin._values == []


def test_threads_warn_once():
    watch, found = RawWatch(), []

    def see():
        for _ in range(50):
            try:
                watch.see(1.0, 0.1, "semgrad")
            except UserWarning as told:  # warnings are errors in tests
                found.append(told)

    threads = [threading.Thread(target=see) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1
