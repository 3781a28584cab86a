"""Asking somebody bigger, within a budget, and raising."""

import asyncio
import math
import pickle
import time

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from scripted import failure_of, profile, record, scripted

from semgrad_guard import (
    Abstain,
    ConfigurationError,
    Escalate,
    LowConfidenceError,
    Raise,
    RateLimit,
    Retrieve,
    SemGradGuard,
    get_confidence,
)
from semgrad_guard.calibration.guarantee import Guarantee


def guard(*answers, routes=None, **settings):
    return SemGradGuard(scripted(*answers), **{"profile": profile(0.8), "routes": routes or [Abstain("no")]} | settings)


def both_ways(runnable, given="q?"):
    messages = [runnable.invoke(given), asyncio.run(runnable.ainvoke(given))]
    assert record(messages[0]) == record(messages[1])
    assert messages[0].content == messages[1].content
    return messages[0]


def escalated(other, *, answer=0.3, **settings):
    return guard(answer, routes=[Escalate(other, **settings), Abstain("no")])


def promising(threshold):
    """A profile whose threshold promises something."""
    fitted = profile(threshold)
    guarantee = Guarantee(risk=0.05, delta=0.05, n=100, errors=0)
    return fitted.model_copy(update={"answer": fitted.answer.model_copy(update={"guarantee": guarantee})})


@pytest.mark.parametrize("answer", ["Paris", AIMessage("Paris", response_metadata={"model_name": "large"})])
def test_the_other_s_answer_goes_out_without_a_confidence(answer):
    message = both_ways(escalated(RunnableLambda(lambda messages: answer)))
    assert (message.content, record(message)["decision"]) == ("Paris", "escalate")
    assert get_confidence(message) is None
    assert record(message)["guarantee"] is None
    assert [step["confidence"] for step in record(message)["steps"]] == [pytest.approx(0.3), None]
    if isinstance(answer, AIMessage):
        assert message.response_metadata["model_name"] == "large"


def test_a_sure_answer_is_not_escalated():
    def fails(messages):
        raise AssertionError("asked")

    assert record(both_ways(escalated(RunnableLambda(fails), answer=0.9)))["decision"] == "pass"


def test_the_other_gets_the_conversation():
    conversation = [SystemMessage("Be brief."), HumanMessage("Where?")]
    seen = []
    escalated(RunnableLambda(lambda messages: seen.append(messages) or "there")).invoke(conversation)
    assert seen == [conversation]


def test_a_prompt_may_show_the_draft_with_its_confidence_and_scores():
    seen = []

    def prompt(request):
        seen.append(request)
        return {"question": request.question, "draft": request.draft}

    chain = ChatPromptTemplate.from_template("{question} Not {draft}?") | RunnableLambda(
        lambda value: value.to_string()
    )
    message = both_ways(escalated(chain, prompt=prompt))
    assert message.content == "Human: q? Not draft?"
    assert seen[0].verdict.confidence == pytest.approx(0.3)
    assert seen[0].verdict.scores.semgrad == pytest.approx(0.7 / 0.3)


@pytest.mark.parametrize(("confidence", "decision"), [(0.9, "escalate"), (0.3, "abstain")])
def test_a_guard_s_own_decision_counts(confidence, decision):
    other = guard(confidence, profile=promising(0.5), routes=[Abstain("theirs")])
    message = both_ways(escalated(other))
    assert record(message)["decision"] == decision
    assert message.content == {"escalate": "draft", "abstain": "no"}[decision]
    assert record(message)["steps"][1]["confidence"] == pytest.approx(confidence)
    assert record(message)["guarantee"] is None
    if decision == "escalate":
        assert get_confidence(message) == pytest.approx(0.9)
        assert record(message)["threshold"] == 0.5
        assert record(message)["reason"].startswith("escalated: pass: confidence 0.900 reaches")


def test_what_another_guard_found_is_told():
    search = RunnableLambda(lambda question: [Document("Paris is in France.")])
    found = record(escalated(guard(0.3, 0.9, routes=[Retrieve(search)])).invoke("q?"))
    assert (found["decision"], found["sources"][0]["text"]) == ("escalate", "Paris is in France.")


def sleeps(messages):
    time.sleep(1)


def low(messages):
    return guard(0.1, routes=[Raise()]).invoke("q?")


FAILED = {"semgrad": {"scores": None, "failure": failure_of("cut off")}}


@pytest.mark.parametrize(
    ("other", "settings", "reason"),
    [
        (lambda messages: 1 / 0, {}, "ZeroDivisionError"),
        (sleeps, {"timeout_seconds": 0.05}, "TimeoutError: no answer within 0.05 s"),
        (low, {}, "LowConfidenceError: The answer is not sure enough"),
        (lambda messages: "  ", {}, "answer is empty"),
        (lambda messages: 7, {}, "gave a int; expected an AIMessage or a text"),
        (lambda messages: AIMessage("x", response_metadata=FAILED), {}, "cut off"),
        (lambda messages: AIMessage("x", response_metadata={"semgrad_decision": {"decision": "?"}}), {}, "DataError"),
        (lambda messages: "x", {"budget": lambda: False}, "the budget for escalating is used up"),
        (lambda messages: "x", {"budget": lambda: 1 / 0}, "ZeroDivisionError"),
        (lambda messages: "x", {"prompt": lambda request: 1 / 0}, "ZeroDivisionError"),
    ],
)
def test_what_does_not_answer_does_not_settle(other, settings, reason):
    message = both_ways(escalated(RunnableLambda(other), **settings))
    assert (message.content, record(message)["decision"]) == ("no", "abstain")
    assert reason in record(message)["steps"][1]["reason"]


def test_a_budget_is_over_all_calls_and_comes_back_with_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("semgrad_guard.routing.limits.time.monotonic", lambda: now[0])
    runnable = escalated(RunnableLambda(lambda messages: "theirs"), budget=RateLimit(2, per=60))
    decisions = [record(message)["decision"] for message in runnable.batch(["q?"] * 3, {"max_concurrency": 1})]
    assert decisions == ["escalate", "escalate", "abstain"]
    now[0] += 59.9
    assert record(runnable.invoke("q?"))["decision"] == "abstain"
    now[0] += 0.1
    assert record(runnable.invoke("q?"))["decision"] == "escalate"


def test_a_budget_for_all_time_does_not_come_back():
    allow = RateLimit(1)
    assert [allow(), allow(), allow()] == [True, False, False]
    assert not RateLimit(0)()
    assert repr(allow) == "RateLimit(1, per=None)"


def test_a_window_may_be_shorter_than_a_second(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("semgrad_guard.routing.limits.time.monotonic", lambda: now[0])
    allow = RateLimit(1, per=0.5)
    assert [allow(), allow()] == [True, False]
    now[0] += 0.5
    assert allow()


@pytest.mark.parametrize(
    ("calls", "per"), [(-1, None), (True, None), (1.0, None), (math.nan, None), (1, 0), (1, -2.0), (1, math.nan)]
)
def test_a_budget_that_makes_no_sense_is_refused(calls, per):
    with pytest.raises(ConfigurationError, match="expected calls >= 0"):
        RateLimit(calls, per=per)
    with pytest.raises(ConfigurationError, match="per=True: expected seconds > 0"):
        RateLimit(1, per=True)


def test_raise_carries_the_decision_and_no_draft():
    for call in (lambda runnable: runnable.invoke("q?"), lambda runnable: asyncio.run(runnable.ainvoke("q?"))):
        with pytest.raises(LowConfidenceError, match=r"confidence 0\.300 is below the threshold 0\.800") as caught:
            call(guard(0.3, routes=[Raise()]))
        error = pickle.loads(pickle.dumps(caught.value))
        assert error.decision.decision == "raise"
        assert error.decision.confidence == pytest.approx(0.3)
        assert error.draft is None
        assert "draft" not in str(error)


def test_raise_carries_the_draft_where_that_is_asked_for():
    for call in (lambda runnable: runnable.invoke("q?"), lambda runnable: asyncio.run(runnable.ainvoke("q?"))):
        with pytest.raises(LowConfidenceError) as caught:
            call(guard(0.3, routes=[Raise(with_draft=True)]))
        assert caught.value.draft == "draft"
        assert "draft" not in str(caught.value)


def test_raise_has_a_band_too():
    runnable = guard(0.6, routes=[Raise(below=0.5), Abstain("no")])
    assert runnable.invoke("q?").content == "no"
    with pytest.raises(LowConfidenceError):
        guard(0.4, routes=[Raise(below=0.5), Abstain("no")]).invoke("q?")


def test_what_could_not_be_judged_is_raised_too():
    with pytest.raises(LowConfidenceError, match="no score"):
        guard(("draft", None, ""), routes=[Raise()]).invoke("q?")


def test_a_retried_answer_promises_only_what_its_own_section_does():
    search = RunnableLambda(lambda question: [Document("Paris is in France.")])
    found = record(guard(0.3, 0.9, profile=promising(0.8), routes=[Retrieve(search)]).invoke("q?"))
    assert (found["decision"], found["guarantee"]) == ("retrieve", None)
