"""Drift seen while answering: what counts, when it is told, and what copies of a guard share."""

import copy
import logging
import math
import pickle
import threading

import numpy as np
import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda
from scripted import profile, score_of, scripted
from scripted import score as scored

from semgrad_guard import Abstain, ConfigurationError, ProfileError, Retrieve, SemGradGuard
from semgrad_guard.calibration.drift import Martingale, Watch

SPREAD = tuple(index / 100 for index in range(101))
LIKE = [(index + 0.5) / 20 for index in range(20)]


def spread(quantiles=SPREAD):
    """A profile whose confidences in fitting were spread evenly."""
    plain = profile()
    return plain.model_copy(
        update={"answer": plain.answer.model_copy(update={"quantiles": quantiles, "spread_of": 1000})}
    )


def guard(*answers, watch=True, **settings):
    return SemGradGuard(scripted(*answers), profile=spread(), watch=watch, **settings)


def seen(watching):
    return watching.watch._seen


def test_answers_that_are_less_sure_than_those_of_fitting_are_told_of_once(caplog):
    watching = guard(0.05)
    with caplog.at_level(logging.WARNING):
        watching.batch(["q?"] * 9)
        assert not caplog.messages
        watching.batch(["q?"] * 9)
    (told,) = caplog.messages
    assert "by their confidence, the last 1" in told
    assert "it reaches 100 with a probability of at most 0.01" in told
    assert "Calibrate again" in told


def test_answers_like_those_of_fitting_are_not_told_of(caplog):
    watching = guard(*LIKE)
    with caplog.at_level(logging.WARNING):
        for _ in LIKE:
            watching.invoke("q?")
    assert seen(watching) == len(LIKE)
    assert not caplog.messages


def wealths(sample, fresh, seed=0):
    bet, found = Martingale(sample, seed), []
    for value in fresh:
        bet.see(value)
        found.append(bet.wealth)
    return np.array(found)


def test_false_alarms_are_as_rare_as_promised_however_long_the_watch_goes_on():
    """Sample and stream come from one source; 300 calibrations, each watched for 600 answers."""
    rng = np.random.default_rng(1)
    for values in (lambda n: rng.normal(size=n), lambda n: rng.integers(0, 3, n).astype(float)):
        highest = np.array([wealths(values(80), values(600), seed).max() for seed in range(300)])
        for alpha in (0.2, 0.05, 0.01):
            assert (highest >= 1 / alpha).mean() <= alpha + 2 * (alpha * (1 - alpha) / 300) ** 0.5


@pytest.mark.parametrize(("shift", "within"), [(-2.0, 25), (2.0, 25), (1.0, 60), (0.5, 250)])
def test_a_change_to_either_side_is_noticed(shift, within):
    rng = np.random.default_rng(2)
    late = 0
    for seed in range(40):
        wealth = wealths(rng.normal(size=200), rng.normal(shift, 1, within), seed)
        late += wealth.max() < 100
    assert late <= 4


def test_a_change_after_a_long_quiet_time_is_noticed():
    rng = np.random.default_rng(3)
    wealth = wealths(rng.normal(size=200), np.concatenate([rng.normal(size=1000), rng.normal(1.5, 1, 120)]))
    assert wealth[:1000].max() < 100 < wealth[1000:].max()


def test_core_and_hidden_states_are_watched_where_the_profile_knows_them(caplog):
    section = spread().answer.model_copy(
        update={"core_sample": tuple(np.linspace(-1, 1, 99)), "distance_sample": tuple(np.linspace(0.8, 1.2, 99))}
    )
    near, far, odd = (
        [scored(1.0, distance=1 + (-1) ** place * place / 160, nll=math.exp(place / 15 - 1)) for place in range(30)],
        [scored(1.0, distance=3.0)] * 20,
        [scored(1.0, distance=1.0, nll=50.0, mean_nll=50.0, max_nll=50.0)] * 20,
    )
    for stream, told in ((near, ""), (far, "hidden states"), (odd, "scores")):
        caplog.clear()
        watch = Watch(section)
        with caplog.at_level(logging.WARNING):
            for one in stream:
                watch.see(one)
        assert [f"by their {told}" in message for message in caplog.messages[:1]] == ([True] if told else [])


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
    watch = Watch(spread().answer, 0.05)
    watch.see(score_of(0.5))
    for twin in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        assert (twin.section, twin.alpha, twin._seen) == (watch.section, 0.05, 0)


def test_threads_lose_no_answer(caplog):
    watch = Watch(spread().answer, 1e-9)
    threads = [
        threading.Thread(target=lambda: [watch.see(score_of((37 * place % 106 + 0.5) / 106)) for place in range(105)])
        for _ in range(4)
    ]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert watch._seen == 420
    assert len(watch._bets["confidence"]._values) == 101 + 420


def test_watching_is_off_unless_asked_for_and_needs_what_it_compares_with():
    assert SemGradGuard(scripted(0.9), profile=spread()).watch is None
    assert guard(0.9, watch=0).watch is None
    for wrong in (-0.1, -3):
        with pytest.raises(ConfigurationError, match="expected the probability of a false alarm"):
            guard(0.9, watch=wrong)
    with pytest.warns(DeprecationWarning, match="watch=200, a number of answers, is now watch=True"):
        assert guard(0.9, watch=200).watch.alpha == 0.01
    with pytest.raises(ConfigurationError, match="needs a profile"):
        SemGradGuard(scripted(0.9), score_threshold=1.0, watch=True)
    with pytest.raises(ProfileError, match="how its confidences were spread"):
        SemGradGuard(scripted(0.9), profile=profile(), watch=True)


def test_with_another_profile_the_watch_begins_anew():
    watching = guard(0.9, watch=0.2)
    watching.invoke("q?")
    other = SemGradGuard(watching.llm, profile=spread(SPREAD[::10]), watch=watching.watch)
    assert other.watch is not watching.watch
    assert (other.watch.alpha, seen(other)) == (0.2, 0)
