"""Drift seen while answering: what counts, when it is told, and what copies of a guard share."""

import copy
import logging
import pickle
import threading

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda
from scripted import profile, score_of, scripted

from semgrad_guard import Abstain, ConfigurationError, ProfileError, Retrieve, SemGradGuard
from semgrad_guard.calibration.drift import Watch

SPREAD = tuple(index / 100 for index in range(101))
LIKE = [(index + 0.5) / 20 for index in range(20)]


def spread(quantiles=SPREAD):
    """A profile whose confidences in fitting were spread evenly."""
    plain = profile()
    return plain.model_copy(
        update={"answer": plain.answer.model_copy(update={"quantiles": quantiles, "spread_of": 1000})}
    )


def guard(*answers, watch=20, **settings):
    return SemGradGuard(scripted(*answers), profile=spread(), watch=watch, **settings)


def seen(watching):
    return len(watching.watch._scores)


def test_answers_that_are_less_sure_than_those_of_fitting_are_told_of_once(caplog):
    watching = guard(0.3)
    with caplog.at_level(logging.WARNING):
        watching.batch(["q?"] * 19)
        assert not caplog.messages
        watching.batch(["q?"] * 19)
    (told,) = caplog.messages
    assert "the last 20 answers" in told
    assert "median confidence 0.300 against 0.500, Kolmogorov-Smirnov statistic 0.700, p = " in told
    assert "Calibrate again" in told
    assert seen(watching) == 18


def test_answers_like_those_of_fitting_are_not_told_of(caplog):
    watching = guard(*LIKE)
    with caplog.at_level(logging.WARNING):
        for _ in LIKE:
            watching.invoke("q?")
    assert seen(watching) == 0
    assert not caplog.messages


def test_only_first_answers_from_memory_that_can_be_judged_count():
    search = RunnableLambda(lambda question: [question])
    again = guard(0.3, 0.9, routes=[Retrieve(search), Abstain()])
    again.invoke("q?")
    assert seen(again) == 1
    call = {"scores": score_of(0.9).model_dump(mode="json"), "name": "f", "arguments": {}}
    record = {"scores": call["scores"], "failure": None, "tool_calls": {"1": call}}
    calling = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}], response_metadata={"semgrad": record})
    for answer in (("", None, "the response is empty"), RuntimeError("no memory"), ("text", None, ""), calling):
        watching = guard(answer)
        watching.invoke("q?")
        assert seen(watching) == 0


def test_only_numbers_are_kept():
    watching = guard(("a secret", score_of(0.9), ""))
    watching.invoke("another secret")
    assert "secret" not in repr(vars(watching.watch))


def test_copies_as_langchain_makes_them_count_together():
    watching = guard(0.9)
    configurable = watching.configurable_fields(threshold=ConfigurableField(id="threshold"))
    watching.bind(stop=["x"]).invoke("q?")
    watching.with_config(tags=["tag"]).invoke("q?")
    configurable.with_config(configurable={"threshold": 0.1}).invoke("q?")
    watching.model_copy().invoke("q?")
    assert seen(watching) == 4


def test_a_pickled_or_deep_copy_starts_anew():
    watch = Watch(spread().answer, 50)
    watch.see(score_of(0.5))
    for twin in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        assert (twin.section, twin.every, twin._scores) == (watch.section, 50, [])


def test_threads_lose_no_answer(caplog):
    watch = Watch(spread().answer, 20)
    threads = [threading.Thread(target=lambda: [watch.see(score_of(0.3)) for _ in range(105)]) for _ in range(4)]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(caplog.messages) == 21
    assert watch._scores == []


def test_watching_is_off_unless_asked_for_and_needs_what_it_compares_with():
    assert SemGradGuard(scripted(0.9), profile=spread()).watch is None
    assert guard(0.9, watch=0).watch is None
    with pytest.raises(ConfigurationError, match="watch=5: expected at least 20"):
        guard(0.9, watch=5)
    with pytest.raises(ConfigurationError, match="needs a profile"):
        SemGradGuard(scripted(0.9), score_threshold=1.0, watch=20)
    with pytest.raises(ProfileError, match="how its confidences were spread"):
        SemGradGuard(scripted(0.9), profile=profile(), watch=20)


def test_with_another_profile_the_watch_begins_anew():
    watching = guard(0.9, watch=30)
    watching.invoke("q?")
    other = SemGradGuard(watching.llm, profile=spread(SPREAD[::10]), watch=watching.watch)
    assert other.watch is not watching.watch
    assert (other.watch.every, seen(other)) == (30, 0)
