"""A promise is told of those answers alone that it was tested on."""

import asyncio

import pytest
from scripted import profile, score_of, scripted
from scripted import record as record_of

from semgrad_guard import SemGradGuard
from semgrad_guard.calibration.guarantee import Guarantee
from semgrad_guard.calibration.verdict import Standard

ANSWER = Guarantee(risk=0.05, delta=0.1, n=100, errors=1)
GROUNDED = Guarantee(risk=0.2, delta=0.05, n=50, errors=2)


def promising(**sections):
    """A profile with sections that promise what is given."""
    fitted = profile()
    return fitted.model_copy(
        update={
            kind: None if promise is None else fitted.answer.model_copy(update={"guarantee": promise})
            for kind, promise in sections.items()
        }
    )


@pytest.mark.parametrize(
    ("sections", "passages", "promise", "in_words"),
    [
        ({"answer": ANSWER}, "optional", ANSWER, "of what passes at most 5 % is wrong, with 90 % certainty"),
        ({"answer": ANSWER}, "in_prompt", None, "nothing is promised of what passes"),
        ({"answer": ANSWER, "grounded": GROUNDED}, "in_prompt", GROUNDED, "at most 20 % is wrong, with 95 % certainty"),
        ({"answer": ANSWER, "grounded": GROUNDED}, "optional", ANSWER, "at most 5 % is wrong, with 90 % certainty"),
    ],
)
def test_what_is_promised_of_answers_from_passages_was_tested_on_such(sections, passages, promise, in_words):
    fitted = promising(**sections)
    runnable = SemGradGuard(scripted(0.9), profile=fitted, passages=passages)
    expected = None if promise is None else promise.model_dump(include={"risk", "delta", "n"})
    for message in (runnable.invoke("q?"), asyncio.run(runnable.ainvoke("q?"))):
        record = record_of(message)
        assert (record["decision"], record["guarantee"]) == ("pass", expected)
    kind = "answer" if passages == "optional" else "grounded"
    assert in_words in Standard(fitted, None, None, None).judge(score_of(0.9), "", kind).policy


@pytest.mark.parametrize("kind", ["answer", "grounded"])
def test_a_threshold_of_the_caller_promises_nothing(kind):
    verdict = Standard(promising(answer=ANSWER, grounded=GROUNDED), 0.5, None, None).judge(score_of(0.9), "", kind)
    assert verdict.passed
    assert verdict.guarantee is None
    assert "nothing is promised of what passes" in verdict.policy


@pytest.mark.parametrize("kind", ["answer", "grounded"])
def test_nothing_is_promised_of_what_does_not_pass(kind):
    standard = Standard(promising(answer=ANSWER, grounded=GROUNDED), None, None, None)
    assert standard.judge(score_of(0.1), "", kind).guarantee is None
