"""Which tool calls are sure enough, read off the metadata of a message; whatever is missing counts as low."""

import math
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from scripted import calling, decided, profile, scripted

import semgrad_guard.agents
from semgrad_guard import ConfigurationError
from semgrad_guard.agents import confidence_gate, filter_tool_calls, low_confidence, model_node
from semgrad_guard.langchain.metadata import with_record
from semgrad_guard.records import CallConfidence


def message(**confidences):
    """A message with a call of each tool, as `model_node` gives it."""
    calls = {
        name: CallConfidence(name=name, confidence=value, arguments={"x": 0.5}) for name, value in confidences.items()
    }
    whole = AIMessage("", tool_calls=[{"name": name, "args": {"x": 1}, "id": name} for name in confidences])
    return with_record(whole, decided(tool_calls=calls))


def request(found, id_):
    call = next((call for call in found.tool_calls if call["id"] == id_), {"name": id_, "args": {}, "id": id_})
    return SimpleNamespace(tool_call=call, state={"messages": [HumanMessage("q?"), found]})


@pytest.mark.parametrize(
    ("confidence", "low"), [(0.9, False), (0.8, False), (0.79, True), (0.0, True), (math.nan, True)]
)
def test_the_predicate_reads_what_is_stored(confidence, low):
    found = message(a=confidence, b=1.0)
    assert low_confidence(0.8)(request(found, "a")) is low
    assert low_confidence(0.8)(request(found, "b")) is False


def test_a_missing_confidence_is_low():
    assert low_confidence(0.0)(request(message(a=None), "a"))
    assert low_confidence(0.0)(request(message(a=0.9), "another"))
    bare = message(a=0.9).model_copy(update={"response_metadata": {}})
    assert low_confidence(0.0)(request(bare, "a"))


def test_scores_alone_are_no_confidence():
    scored = calling(("a", {}, 0.99))
    assert low_confidence(0.0)(request(scored, scored.tool_calls[0]["id"]))


def test_unsure_calls_are_taken_out_and_told():
    sure, held = filter_tool_calls(message(a=0.9, b=0.3, c=None, d=0.9), 0.8, thresholds={"d": 0.95})
    assert [call["name"] for call in sure.tool_calls] == ["a"]
    assert [(item.call["name"], item.confidence, item.threshold) for item in held] == [
        ("b", 0.3, 0.8), ("c", None, 0.8), ("d", 0.9, 0.95)
    ]  # fmt: skip
    assert held[0].arguments == {"x": 0.5}


@given(
    st.dictionaries(st.text(min_size=1), st.none() | st.floats(0, 1) | st.just(math.nan), max_size=5), st.floats(0, 1)
)
def test_every_call_is_either_sure_or_held(confidences, threshold):
    sure, held = filter_tool_calls(message(**confidences), threshold)
    kept = [call["name"] for call in sure.tool_calls]
    assert sorted([*kept, *(item.call["name"] for item in held)]) == sorted(confidences)
    assert all(confidences[name] is not None and confidences[name] >= threshold for name in kept)


def test_the_gate():
    gate = confidence_gate(0.8, thresholds={"b": 0.5})
    answer = with_record(AIMessage("x"), decided(confidence=0.9))
    for found, way in (
        (message(a=0.9, b=0.6), "call"),
        (message(a=0.9, b=0.4), "unsure"),
        (answer, "answer"),
        (with_record(AIMessage("x"), decided(confidence=0.7)), "unsure"),
        (AIMessage("x"), "unsure"),
    ):
        assert gate({"messages": [found]}) == way


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_thresholds_are_confidences(threshold):
    with pytest.raises(ConfigurationError, match="expected a confidence"):
        low_confidence(threshold)
    with pytest.raises(ConfigurationError, match="expected a confidence"):
        filter_tool_calls(AIMessage("x"), threshold)
    with pytest.raises(ConfigurationError, match="expected a confidence"):
        confidence_gate(0.5, thresholds={"a": threshold})


async def test_a_node_puts_confidences_into_the_message():
    fitted = profile(0.8)
    fitted = fitted.model_copy(update={"tool_call": fitted.answer, "argument": fitted.answer})
    node = model_node(scripted(calling(("a", {"x": 1}, 0.4)), 0.9), fitted)
    state = {"messages": [HumanMessage("q?")]}
    (first,) = node.invoke(state)["messages"]
    (held,) = filter_tool_calls(first, 0.8).held
    assert held.confidence == pytest.approx(0.4)
    assert held.arguments == {"x": pytest.approx(0.2)}
    (second,) = (await node.ainvoke(state))["messages"]
    assert confidence_gate(0.8)({"messages": [second]}) == "answer"


def test_without_the_extra_the_middleware_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "semgrad_guard.agents.middleware", raising=False)
    monkeypatch.setitem(sys.modules, "langchain.agents.middleware", None)
    with pytest.raises(ConfigurationError, match=r'pip install "semgrad-guard\[agents\]"'):
        _ = semgrad_guard.agents.ConfidenceMiddleware
    assert all(hasattr(semgrad_guard.agents, name) for name in semgrad_guard.agents.__all__ if name[0].islower())
