"""The ladder by itself: what it tries, in which order, and what it makes of the outcomes."""

import asyncio
from dataclasses import replace

import pytest
from scripted import score_of

from semgrad_guard import Outcome, Route, RouteError, Source, Verdict
from semgrad_guard.records import CallConfidence
from semgrad_guard.routing.ladder import DEFAULT_ABSTENTION, Answer, climb


def answer(confidence, text="draft", **fields):
    passed = confidence >= 0.8
    verdict = Verdict(
        passed=passed,
        cause=None if passed else "low_confidence",
        confidence=confidence,
        scores=score_of(confidence),
        threshold=0.8,
        method="fused",
        reason=f"because {confidence}",
        guarantee={"risk": 0.1} if passed else None,
    )
    return Answer(text, verdict.model_copy(update=fields))


class Named(Route):
    """A route of a name and a band, for ladders that are climbed by hand."""

    decision = "named"

    def __init__(self, decision="named", below=None):
        self.decision, self.band = decision, below

    @property
    def below(self):
        return self.band

    def attempt(self, situation):
        return situation


def climbed(draft, routes, outcomes):
    """Climb, and give the routes tried with the sources seen by each, and the resolution."""
    ladder, tried, outcomes = climb(draft, routes), [], iter(outcomes)
    try:
        step = next(ladder)
        while True:
            tried.append((step[0].decision, step[1]))
            step = ladder.send(next(outcomes))
    except StopIteration as end:
        return tried, end.value


def test_a_sure_answer_goes_out_as_it_is():
    draft = answer(0.9)
    tried, resolution = climbed(draft, [Named()], [])
    assert (tried, resolution.text, resolution.as_drafted, resolution.raises) == ([], "draft", True, False)
    decision = resolution.decision
    assert (decision.decision, decision.answered, decision.cause, decision.reason) == (
        "pass",
        True,
        None,
        "because 0.9",
    )
    assert decision.verdict == draft.verdict
    (step,) = decision.steps
    assert (step.name, step.settled, step.confidence, step.reason) == ("answer", True, 0.9, "because 0.9")


def test_where_no_route_settles_it_abstains_with_the_standard_message():
    found = (Source(text="a"),), (Source(text="b"),)
    outcomes = [Outcome(False, "not here", sources=found[0]), Outcome(False, "nor here", sources=found[1])]
    tried, resolution = climbed(answer(0.3), [Named("one"), Named("two")], outcomes)
    assert tried == [("one", ()), ("two", found[0])]
    assert (resolution.text, resolution.as_drafted) == (DEFAULT_ABSTENTION, False)
    decision = resolution.decision
    assert (decision.decision, decision.answered, decision.cause) == ("abstain", False, "low_confidence")
    assert decision.sources == (*found[0], *found[1])
    assert [(step.name, step.settled, step.reason) for step in decision.steps] == [
        ("answer", False, "because 0.3"), ("one", False, "not here"), ("two", False, "nor here")
    ]  # fmt: skip


def test_a_route_settles_with_a_text_of_its_own_and_nothing_is_promised():
    draft = answer(0.3, guarantee={"risk": 0.1})
    _, resolution = climbed(draft, [Named("table"), Named("never")], [Outcome(True, "in the table", "From 9.")])
    decision = resolution.decision
    assert (resolution.text, decision.decision, decision.answered) == ("From 9.", "table", False)
    assert (decision.cause, decision.reason, decision.verdict.guarantee) == ("low_confidence", "because 0.3", None)


def test_a_route_settles_with_another_answer_of_the_model():
    again = answer(0.9, "again")
    outcome = Outcome(True, "sure now", "again", again, as_drafted=True)
    _, resolution = climbed(answer(0.3), [Named("reworded")], [outcome])
    decision = resolution.decision
    assert (decision.decision, decision.answered, decision.cause) == ("reworded", True, None)
    assert decision.verdict == again.verdict
    assert [step.confidence for step in decision.steps] == [0.3, 0.9]


def test_the_reason_of_a_review_says_what_the_reviewer_did():
    _, resolution = climbed(answer(0.3), [Named("review")], [Outcome(True, "reviewer: reject", "No.", review_id="7")])
    assert resolution.decision.reason == "because 0.3; reviewer: reject"
    assert resolution.decision.review_id == "7"


@pytest.mark.parametrize(("confidence", "below", "applies"), [(0.3, 0.4, True), (0.4, 0.4, False), (0.5, None, True)])
def test_a_route_applies_below_its_confidence(confidence, below, applies):
    tried, _ = climbed(answer(confidence), [Named(below=below)], [Outcome(False, "no")] * applies)
    assert bool(tried) is applies


def test_a_route_that_does_not_apply_is_passed_over():
    tried, resolution = climbed(answer(0.5), [Named("low", below=0.4), Named("any")], [Outcome(True, "done", "x")])
    assert ([name for name, _ in tried], resolution.text) == (["any"], "x")


def test_tool_calls_errors_and_causes_are_handed_on():
    sure = {"1": CallConfidence(name="look", confidence=0.9, arguments={})}
    _, resolution = climbed(replace(answer(0.9), tool_calls=sure), [], [])
    assert resolution.decision.tool_calls == sure
    error = KeyError("stop")
    _, resolution = climbed(answer(0.3), [Named()], [Outcome(True, "interrupted", error=error, raises=True)])
    assert (resolution.error, resolution.raises) == (error, True)
    for cause, told in (("cut_off", "cut_off"), (None, "low_confidence")):
        draft = answer(0.3)
        draft = replace(draft, verdict=draft.verdict.model_copy(update={"cause": cause}))
        assert climbed(draft, [], [])[1].decision.cause == told


def test_an_answer_without_a_confidence_is_in_every_band():
    draft = answer(0.3)
    unknown = Answer(draft.text, draft.verdict.model_copy(update={"confidence": None}))
    tried, _ = climbed(unknown, [Named(below=0.1)], [Outcome(False, "no")])
    assert tried == [("named", ())]


def test_a_route_without_an_async_twin_gets_the_situation_in_a_thread():
    situation = object()
    assert asyncio.run(Named().aattempt(situation)) is situation


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"settled": 1}, r"Outcome\(settled=...\) has a int; expected bool\."),
        ({"reason": None}, r"Outcome\(reason=...\) has a NoneType; expected str\."),
        ({"answer": "x"}, r"Outcome\(answer=...\) has a str; expected .*Answer \| None\."),
        ({"review_id": 7}, r"Outcome\(review_id=...\) has a int; expected str \| None\."),
        ({"sources": ["x"]}, r"Outcome\(sources=...\) has a str; expected Source\(text=...\)\."),
    ],
)
def test_an_outcome_says_which_field_is_wrong(fields, message):
    with pytest.raises(RouteError, match=message):
        Outcome(**{"settled": True, "reason": "r"} | fields)
