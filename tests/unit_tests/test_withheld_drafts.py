"""Nothing of a withheld answer is seen, however one listens; and what is seen instead."""

import asyncio
from typing import TypedDict
from unittest.mock import create_autospec

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.context import collect_runs
from langchain_core.tracers.langchain import wait_for_all_tracers
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langgraph.graph import START, MessagesState, StateGraph
from langsmith import Client
from langsmith.run_helpers import tracing_context
from scripted import profile, score_of, scripted

from semgrad_guard import Abstain, Escalate, HumanReview, Raise, Retrieve, SemGradGuard
from semgrad_guard.demo import embedded_model

CANARY = "Xanadu"
PASSAGES = RunnableLambda(lambda question: [Document("Paris is in France.")])
USAGE = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}


def saying(text, confidence):
    record = {"scores": score_of(confidence).model_dump(mode="json"), "failure": None, "tool_calls": {}}
    return AIMessage(
        text,
        usage_metadata=USAGE,
        additional_kwargs={"reasoning_content": text},
        response_metadata={"semgrad": record, "model_name": "m", "logprobs": {"content": [{"token": text}]}},
    )


def calling(text, confidence):
    scores = score_of(confidence).model_dump(mode="json")
    call = {"name": "find", "scores": scores, "arguments": {"place": scores}}
    message = saying("", confidence)
    message.tool_calls = [{"name": "find", "args": {"place": text}, "id": "1", "type": "tool_call"}]
    message.response_metadata["semgrad"]["tool_calls"] = {"1": call}
    return message


def guard(*answers, routes=None, **settings):
    judging = profile(0.8)
    judging = judging.model_copy(update={"tool_call": judging.answer})
    return SemGradGuard(
        scripted(*answers), profile=judging, routes=[Abstain("no")] if routes is None else routes, **settings
    )


ROUTES = {
    "abstain": [Abstain("no")],
    "none settles": [],
    "retrieve": [Retrieve(PASSAGES), Abstain("no")],
    "human": [HumanReview(lambda request: "reject")],
    "escalate": [Escalate(RunnableLambda(lambda messages: "Paris"))],
    "escalate with the draft": [Escalate(RunnableLambda(lambda text: "Paris"), prompt=lambda given: given.draft)],
    "escalate to a guard": [Escalate(guard(saying(CANARY, 0.1))), Abstain("no")],
}
withheld = pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES.keys())
drafts = pytest.mark.parametrize("draft", [saying(CANARY, 0.1), calling(CANARY, 0.1)], ids=["text", "call"])


def graph(node):
    return StateGraph(MessagesState).add_node("answer", node).add_edge(START, "answer").compile()


def seen_in_graphs(runnable):
    async def anode(state):
        return {"messages": [await runnable.ainvoke(state["messages"])]}

    async def astream(modes):
        stream = graph(anode).astream({"messages": [HumanMessage("q?")]}, stream_mode=modes, subgraphs=True)
        return [part async for part in stream]

    modes = ["messages", "updates", "values", "custom", "debug", "tasks"]
    sync = graph(lambda state: {"messages": [runnable.invoke(state["messages"])]})
    parts = [*sync.stream({"messages": [HumanMessage("q?")]}, stream_mode=modes, subgraphs=True)]
    return parts + asyncio.run(astream(modes))


async def events(runnable, version="v2"):
    return [event async for event in runnable.astream_events("q?", version=version)]


@pytest.mark.filterwarnings("ignore:astream")  # both old versions are deprecated, and still there
@withheld
@drafts
def test_no_stream_shows_anything_of_a_withheld_answer(routes, draft):
    runnable = guard(draft, routes=routes)
    seen = [*runnable.stream("q?")]

    async def astream():
        return [chunk async for chunk in runnable.astream("q?")]

    async def log():
        return [patch async for patch in runnable.astream_log("q?")]

    seen += asyncio.run(astream())
    seen += asyncio.run(events(runnable)) + asyncio.run(events(runnable, "v1")) + asyncio.run(log())
    seen += seen_in_graphs(runnable)
    assert len(seen) > 20
    assert CANARY not in repr(seen)
    assert CANARY not in dumps(seen)


class Listener(BaseCallbackHandler):
    """Keeps everything it hears."""

    def __init__(self):
        self.heard = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda *args, **kwargs: self.heard.append((name, args, kwargs))
        return super().__getattribute__(name)


def family(run):
    """List everything a trace keeps of a run and of those under it."""
    kept = run.model_dump(exclude={"parent_run", "ls_client"})
    return [kept, *(found for child in run.child_runs for found in family(child))]


@withheld
@drafts
def test_no_trace_keeps_anything_of_a_withheld_answer_unless_asked_to(routes, draft):
    for recorded in (False, True):
        runnable = guard(draft, routes=routes, record_drafts=recorded)
        listener, collector = Listener(), RunCollectorCallbackHandler()
        with collect_runs() as collected:
            runnable.invoke("q?", {"callbacks": [listener, collector]})
            asyncio.run(runnable.ainvoke("q?", {"callbacks": [listener, collector]}))
        runs = [run for root in (*collector.traced_runs, *collected.traced_runs) for run in family(root)]
        assert len(runs) > 8
        assert (CANARY in repr(listener.heard)) is recorded
        assert (CANARY in repr(runs)) is recorded


@withheld
def test_with_recorded_drafts_streams_still_show_nothing(routes):
    runnable = guard(saying(CANARY, 0.1), routes=routes, record_drafts=True)
    seen = asyncio.run(events(runnable)) + seen_in_graphs(runnable)
    assert CANARY not in repr(seen)


def test_an_answer_that_passes_goes_out_whole():
    answer = saying("Paris", 0.9)
    message = guard(answer).invoke("q?")
    assert (message.content, message.usage_metadata) == ("Paris", USAGE)
    assert message.additional_kwargs == answer.additional_kwargs
    assert message.response_metadata["logprobs"] == answer.response_metadata["logprobs"]


def test_what_is_left_of_a_withheld_message_is_its_usage():
    message = guard(saying(CANARY, 0.1)).invoke("q?")
    assert message.usage_metadata == USAGE
    assert set(message.response_metadata) == {"semgrad", "semgrad_decision", "model_name"}


def test_graphs_stream_the_message_that_goes_out_and_no_other():
    runnable = guard(saying(CANARY, 0.1))
    parts = graph(lambda state: {"messages": [runnable.invoke(state["messages"])]}).stream(
        {"messages": [HumanMessage("q?")]}, stream_mode="messages"
    )
    assert [message.content for message, _ in parts] == ["no"]


def test_a_run_has_children_that_say_what_was_done():
    runnable = guard(saying("a", 0.1), saying("b", 0.9), routes=[Retrieve(PASSAGES)])
    collector = RunCollectorCallbackHandler()
    runnable.invoke("q?", {"callbacks": [collector]})
    (run,) = collector.traced_runs
    generate, score, route = run.child_runs
    assert [run.name, generate.name, score.name, route.name] == ["SemGradGuard", "generate", "score", "route"]
    assert (generate.run_type, route.inputs) == ("llm", {"route": "retrieve"})
    assert score.outputs["confidence"] == pytest.approx(0.1)
    assert route.outputs["settled"]
    assert [child.name for child in route.child_runs] == ["RunnableLambda", "generate", "score"]


def test_async_runs_have_the_same_children():
    runnable = guard(saying("a", 0.1), saying("b", 0.9), routes=[Retrieve(PASSAGES)])
    found = asyncio.run(events(runnable))
    names = [event["name"] for event in found if event["event"].endswith("_start")]
    assert names == ["SemGradGuard", "generate", "score", "route", "RunnableLambda", "generate", "score"]


def test_tokens_are_counted_once():
    counter = UsageMetadataCallbackHandler()
    guard(saying("a", 0.1), saying("b", 0.9), routes=[Retrieve(PASSAGES)]).invoke("q?", {"callbacks": [counter]})
    assert counter.usage_metadata["m"]["total_tokens"] == 14


@pytest.mark.parametrize(("confidence", "decision"), [(0.9, "pass"), (0.1, "abstain")])
def test_the_decision_is_announced_without_a_text(confidence, decision):
    runnable = guard(saying("draft", confidence))
    (event,) = [event for event in asyncio.run(events(runnable)) if event["event"] == "on_custom_event"]
    assert event["name"] == "semgrad.decision"
    assert set(event["data"]) == {"decision", "answered", "cause", "confidence", "threshold", "reason"}
    assert (event["data"]["decision"], event["data"]["threshold"]) == (decision, 0.8)
    assert event["data"]["confidence"] == pytest.approx(confidence)
    listener = Listener()
    runnable.invoke("q?", {"callbacks": [listener]})
    assert [args[:2] for name, args, _ in listener.heard if name == "on_custom_event"] == [
        ("semgrad.decision", event["data"])
    ]


def test_an_error_of_low_confidence_is_announced_and_shows_nothing():
    listener = Listener()
    with pytest.raises(Exception, match="not sure enough") as caught:
        guard(saying(CANARY, 0.1), routes=[Raise()]).invoke("q?", {"callbacks": [listener]})
    assert "on_custom_event" in [name for name, *_ in listener.heard]
    assert CANARY not in repr(listener.heard)
    assert CANARY not in repr(caught.value.__dict__)


class Streamed(TypedDict):
    """What a stream gave."""

    chunks: list[AIMessageChunk]
    whole: AIMessageChunk


def both_streams(runnable):
    async def collect():
        return [chunk async for chunk in runnable.astream("q?")]

    for chunks in (list(runnable.stream("q?")), asyncio.run(collect())):
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        yield Streamed(chunks=chunks, whole=whole)


def test_stream_then_verdict_shows_first_answers_and_decides_at_the_end():
    for streamed in both_streams(guard(saying("Paris", 0.9), stream_drafts=True)):
        assert streamed["chunks"][0].content == "Paris"
        assert "semgrad" not in streamed["chunks"][0].response_metadata
        assert streamed["whole"].content == "Paris"
        assert streamed["whole"].response_metadata["semgrad_decision"]["decision"] == "pass"
        assert streamed["whole"].usage_metadata == USAGE


def test_stream_then_verdict_says_what_stands_in_the_place_of_what_was_shown():
    for streamed in both_streams(guard(saying("Rome", 0.1), stream_drafts=True)):
        assert [chunk.content for chunk in streamed["chunks"]] == ["Rome", "\n\nno"]
        assert streamed["whole"].response_metadata["semgrad_decision"]["decision"] == "abstain"


def test_stream_then_verdict_never_streams_a_call_before_the_verdict():
    for streamed in both_streams(guard(calling(CANARY, 0.1), stream_drafts=True)):
        assert streamed["whole"].tool_calls == []
        assert CANARY not in repr(streamed)
    for streamed in both_streams(guard(calling("Oslo", 0.9), stream_drafts=True)):
        (call,) = streamed["whole"].tool_calls
        assert call["args"] == {"place": "Oslo"}


def test_stream_then_verdict_buffers_where_nothing_is_streamed():
    runnable = guard(saying(CANARY, 0.1), stream_drafts=True)
    assert CANARY not in repr(runnable.invoke("q?"))
    failing = guard(RuntimeError("no memory"), stream_drafts=True)
    for streamed in both_streams(failing):
        assert streamed["whole"].content == "no"
        assert streamed["whole"].response_metadata["semgrad_decision"]["reason"] == "no answer: RuntimeError"


def test_the_model_s_own_callbacks_hear_of_its_runs():
    listener = Listener()
    runnable = guard(saying(CANARY, 0.1))
    runnable.llm.callbacks = [listener]
    runnable.invoke("q?")
    assert [name for name, *_ in listener.heard] == ["on_chat_model_start", "on_llm_end"]
    assert CANARY not in repr(listener.heard)


@pytest.mark.parametrize("recorded", [False, True])
def test_tracing_that_is_on_for_the_process_does_not_see_what_shows_the_draft(recorded):
    """As with LANGSMITH_TRACING in the environment; the prompt of the other quotes the draft."""
    client = create_autospec(Client, instance=True)
    route = Escalate(RunnableLambda(lambda text: "Paris"), prompt=lambda given: given.draft)
    runnable = guard(saying(CANARY, 0.1), routes=[route], record_drafts=recorded)
    with tracing_context(enabled=True, client=client):
        assert runnable.invoke("q?").content == "Paris"
        assert asyncio.run(runnable.ainvoke("q?")).content == "Paris"
    wait_for_all_tracers()
    created = [call.kwargs["name"] for call in client.create_run.call_args_list]
    assert created.count("SemGradGuard") == 2
    assert created.count("RunnableLambda") == (2 if recorded else 0)
    assert (CANARY in repr(client.mock_calls)) is recorded


def test_a_cache_of_the_process_keeps_whole_answers_and_no_empty_drafts():
    cache, runnable = InMemoryCache(), SemGradGuard(embedded_model(), score_threshold=1e9)
    set_llm_cache(cache)
    try:
        first, again = runnable.invoke("Who are you?"), runnable.invoke("Who are you?")
        asynchronous = asyncio.run(runnable.ainvoke("Who are you?"))
    finally:
        set_llm_cache(None)
    assert first.response_metadata["semgrad_decision"]["decision"] == "pass"
    for message in (again, asynchronous):
        assert message.content == first.content
        assert message.response_metadata["semgrad"] == first.response_metadata["semgrad"]
    kept = [generation.message for generations in cache._cache.values() for generation in generations]
    assert [message.content for message in kept] == [first.content] != [""]


def test_the_recorded_draft_stands_in_the_generate_run():
    collector = RunCollectorCallbackHandler()
    guard(saying(CANARY, 0.1), record_drafts=True).invoke("q?", {"callbacks": [collector]})
    generate = collector.traced_runs[0].child_runs[0]
    assert generate.name == "generate"
    assert CANARY in repr(generate.outputs)
