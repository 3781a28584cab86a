"""Feedback for LangSmith: what is sent, on which run, and that nothing of it can hurt."""

from unittest.mock import create_autospec
from uuid import uuid4

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.context import collect_runs
from langsmith import Client
from scripted import profile, scripted

from semgrad_guard import Abstain, LowConfidenceError, Raise, SemGradGuard
from semgrad_guard.observability.runs import CONFIDENCE, DECISION, FeedbackCallback, send_feedback

CANARY = "Xanadu"


@pytest.fixture
def client():
    return create_autospec(Client, instance=True)


def guard(*answers, **settings):
    return SemGradGuard(scripted(*answers), profile=profile(0.8), **settings)


def sent(client):
    return [(call.args[0], call.kwargs) for call in client.create_feedback.call_args_list]


def test_confidence_and_decision_of_a_message(client):
    run_id = uuid4()
    message = guard(0.3, routes=[Abstain()]).invoke("Where?")
    assert send_feedback(client, run_id, message)
    assert sent(client) == [
        (run_id, {"key": CONFIDENCE, "score": pytest.approx(0.3)}),
        (run_id, {"key": DECISION, "value": "abstain"}),
    ]


def test_a_record_without_confidence_in_a_project(client):
    record = {"decision": "review", "confidence": None}
    assert send_feedback(client, "run", record, session_id="project")
    assert sent(client) == [("run", {"key": DECISION, "value": "review", "session_id": "project"})]


@pytest.mark.parametrize("answer", [{}, {"decision": "pass"}, {"confidence": 0.5}])
def test_what_is_no_record_is_logged(client, caplog, answer):
    assert not send_feedback(client, "run", answer)
    assert "No feedback for run run: KeyError" in caplog.text


def test_a_network_that_is_down_is_logged(client, caplog):
    client.create_feedback.side_effect = ConnectionError(CANARY)
    assert not send_feedback(client, "run", guard(0.9).invoke("Where?"))
    assert "No feedback for run run: ConnectionError" in caplog.text
    assert CANARY not in caplog.text


def test_the_first_run_of_a_trace_gets_the_feedback(client):
    callback = FeedbackCallback(client, session_id="project")
    with collect_runs() as runs:
        (RunnableLambda(str) | guard(0.9)).invoke("Where?", {"callbacks": [callback]})
    callback.close()
    (root,) = runs.traced_runs
    assert [run_id for run_id, _ in sent(client)] == [root.id] * 2
    assert sent(client)[1][1] == {"key": DECISION, "value": "pass", "session_id": "project"}
    assert callback._runs == {}


def test_of_several_decisions_the_least_sure_speaks(client):
    callback = FeedbackCallback(client)
    (guard(0.3, routes=[Abstain()]) | RunnableLambda(lambda message: message.text) | guard(0.9)).invoke(
        "Where?", {"callbacks": [callback]}
    )
    callback.close()
    assert [settings.get("value", settings.get("score")) for _, settings in sent(client)] == [
        pytest.approx(0.3),
        "abstain",
    ]


async def test_rows_and_async_runs_are_traces_of_their_own(client):
    callback = FeedbackCallback(client)
    guard(0.9).batch(["a", "b", "c"], {"callbacks": [callback]})
    await guard(0.9).ainvoke("d", {"callbacks": [callback]})
    async for _ in guard(0.9).astream("e", {"callbacks": [callback]}):
        pass
    callback.close()
    assert len({run_id for run_id, _ in sent(client)}) == 5


def test_without_a_decision_nothing_is_sent(client):
    callback = FeedbackCallback(client)
    scripted(0.9).invoke("Where?", {"callbacks": [callback]})
    callback.close()
    assert sent(client) == []


def test_a_guard_that_raises_is_told_of(client):
    callback = FeedbackCallback(client)
    with pytest.raises(LowConfidenceError):
        guard(0.3, routes=[Raise()]).invoke("Where?", {"callbacks": [callback]})
    callback.close()
    assert sent(client)[1][1]["value"] == "raise"


def test_a_client_that_fails_breaks_nothing(client, caplog):
    client.create_feedback.side_effect = ConnectionError(CANARY)
    callback = FeedbackCallback(client)
    assert guard(0.9).invoke("Where?", {"callbacks": [callback]}).content == "draft"
    callback.close()
    assert guard(0.9).invoke("Where?", {"callbacks": [callback]}).content == "draft"  # closed, it sends no more
    assert "No feedback" in caplog.text
    assert CANARY not in caplog.text


def test_what_cannot_be_sent_in_time_is_dropped(client, caplog):
    callback = FeedbackCallback(client)
    while callback._places.acquire(blocking=False):
        pass
    guard(0.9).invoke("Where?", {"callbacks": [callback]})
    callback.close()
    assert sent(client) == []
    assert "1000 are waiting" in caplog.text
