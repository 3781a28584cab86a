"""A guard inside LangGraph nodes: unsure answers interrupt the run, and what a human saw is what a human decides on."""

import asyncio

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from pydantic import ValidationError
from scripted import calling, profile, score, score_of, scripted
from scripted import record as flat

from semgrad_guard import ConfigurationError, HumanReview, Retrieve, ReviewAnswer, ReviewRequest, SemGradGuard
from semgrad_guard.agents import InterruptReview
from semgrad_guard.demo import embedded_model, embedded_profile
from semgrad_guard.routing.ladder import DEFAULT_ABSTENTION

CONFIG = {"configurable": {"thread_id": "1"}}
ASKED = {"messages": [("user", "Where?")]}
APPROVED = Command(resume={"decision": "approve"})


def guard(*answers, routes=None):
    return SemGradGuard(scripted(*answers), profile=profile(), routes=routes or [InterruptReview()])


def graph(*guards, saver=None, asynchronous=False):
    """Build a graph with one node, in which guards answer one after the other."""

    def node(state):
        return {"messages": [each.invoke(state["messages"]) for each in guards]}

    async def anode(state):
        return {"messages": [await each.ainvoke(state["messages"]) for each in guards]}

    built = StateGraph(MessagesState)
    built.add_node("answer", anode if asynchronous else node)
    built.add_edge(START, "answer")
    built.add_edge("answer", END)
    return built.compile(checkpointer=saver)


def record(state):
    return flat(state["messages"][-1])


def differing(*confidences):
    """Answers that are another text each time the model is asked."""
    return [(f"draft {number}", score_of(confidence), "") for number, confidence in enumerate(confidences, start=1)]


@pytest.fixture(params=["sync", "async", "sync node in an async run"])
def run(request, tmp_path):
    """Run a graph with each of the guards it is to have, over checkpoints in memory; give a function of its inputs."""

    def of(*guards):
        if request.param == "sync":
            compiled = graph(*guards, saver=InMemorySaver())
            return lambda given: compiled.invoke(given, CONFIG)
        compiled = graph(*guards, saver=InMemorySaver(), asynchronous=request.param == "async")
        return lambda given: asyncio.run(compiled.ainvoke(given, CONFIG))

    return of


@pytest.mark.parametrize(
    ("resume", "text"),
    [
        ({"decision": "approve"}, "draft 1"),
        ({"decision": "edit", "text": "better"}, "better"),
        ({"decision": "respond", "text": "mine"}, "mine"),
        ({"decision": "reject", "text": "No."}, "No."),
        ({"decision": "reject"}, DEFAULT_ABSTENTION),
    ],
)
def test_the_decision_is_about_what_the_human_saw_though_the_model_says_something_else_later(run, resume, text):
    asking = guard(*differing(0.3, 0.2))
    step = run(asking)
    state = step(ASKED)
    (asked,) = state["__interrupt__"]
    request = ReviewRequest.model_validate(asked.value)
    assert (request.question, request.draft) == ("Where?", "draft 1")
    assert request.verdict.confidence == pytest.approx(0.3)
    assert [message.type for message in state["messages"]] == ["human"]
    state = step(Command(resume=resume))
    assert len(asking.llm._asked) == 2  # LangGraph runs the node again
    assert state["messages"][-1].content == text
    assert "draft 2" not in str(state)
    assert record(state)["decision"] == "review"
    assert record(state)["reason"].endswith(f"; reviewer: {resume['decision']}")
    assert record(state)["confidence"] == pytest.approx(0.3)


def test_a_decision_that_does_not_fit_is_refused_and_can_be_made_again(run):
    step = run(guard(*differing(0.3, 0.2, 0.1)))
    step(ASKED)
    for wrong in ({"decision": "edit"}, {"decision": "maybe"}, "approve"):
        with pytest.raises(ValidationError):
            step(Command(resume=wrong))
    assert step(APPROVED)["messages"][-1].content == "draft 1"


def test_a_sure_answer_interrupts_nothing(run):
    state = run(guard(0.9))(ASKED)
    assert "__interrupt__" not in state
    assert record(state)["decision"] == "pass"


def test_an_answer_that_is_sure_when_the_run_resumes_goes_out_by_itself(run):
    step = run(guard(*differing(0.3, 0.9)))
    step(ASKED)
    state = step(Command(resume={"decision": "reject"}))
    assert (state["messages"][-1].content, record(state)["decision"]) == ("draft 2", "pass")


def test_guards_in_one_node_are_decided_on_one_by_one(run):
    step = run(guard(*differing(0.3, 0.3, 0.3)), guard(0.9), guard(("other", score_of(0.2), "")))
    assert step(ASKED)["__interrupt__"][0].value["draft"] == "draft 1"
    assert step(APPROVED)["__interrupt__"][0].value["draft"] == "other"
    state = step(Command(resume={"decision": "respond", "text": "mine"}))
    assert [message.content for message in state["messages"][1:]] == ["draft 1", "draft", "mine"]


def test_what_was_held_back_for_another_question_is_not_decided_on(run):
    """The first guard is sure when the node runs again, so that the second meets what the first had put aside."""
    first, second = guard(0.3, 0.9), guard(0.3)
    asked_otherwise = second.with_types()  # a plain copy

    class Otherwise:
        def invoke(self, messages):
            return asked_otherwise.invoke("Who?")

        async def ainvoke(self, messages):
            return await asked_otherwise.ainvoke("Who?")

    step = run(first, Otherwise())
    step(ASKED)
    state = step(APPROVED)
    assert [message.content for message in state["messages"][1:]] == ["draft", DEFAULT_ABSTENTION]
    assert "another question" in record(state)["steps"][1]["reason"]


def test_tool_calls_go_out_as_they_were_approved(run):
    step = run(guard(calling(("f", {"x": 1}, 0.1)), calling(("f", {"x": 2}, 0.1))))
    request = ReviewRequest.model_validate(step(ASKED)["__interrupt__"][0].value)
    assert request.draft == "f(x=1)"
    assert [call.name for call in request.tool_calls.values()] == ["f"]
    message = step(APPROVED)["messages"][-1]
    assert [call["args"] for call in message.tool_calls] == [{"x": 1}]


def test_scores_that_are_not_finite_are_put_before_the_human_and_never_pass(run):
    step = run(guard(("draft", score(float("nan")), "")))
    assert step(ASKED)["__interrupt__"][0].value["verdict"]["scores"]["semgrad"] == "NaN"
    assert record(step(Command(resume={"decision": "reject"})))["decision"] == "review"


def test_it_is_one_route_among_others(run):
    routes = [InterruptReview(below=0.2), Retrieve(RunnableLambda(lambda question: [])), InterruptReview()]
    step = run(guard(0.3, routes=routes))
    state = step(ASKED)
    assert state["__interrupt__"][0].value["draft"] == "draft"
    assert [done["name"] for done in record(step(APPROVED))["steps"]] == ["answer", "retrieve", "review"]


@pytest.mark.parametrize("wait", [None, 10])
def test_a_callback_may_interrupt_as_well(wait):
    asking = HumanReview(lambda request: ReviewAnswer.of(interrupt(request.question)), timeout_seconds=wait)
    compiled = graph(guard(0.3, routes=[asking]), saver=InMemorySaver())
    assert compiled.invoke(ASKED, CONFIG)["__interrupt__"][0].value == "Where?"
    assert compiled.invoke(APPROVED, CONFIG)["messages"][-1].content == "draft"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_without_a_checkpointer_or_a_graph_an_unsure_answer_is_a_clear_error(asynchronous):
    with pytest.raises(ConfigurationError, match="graph that has a checkpointer"):
        asyncio.run(graph(guard(0.3), asynchronous=asynchronous).ainvoke(ASKED))
    with pytest.raises(ConfigurationError, match=r"Elsewhere use HumanReview\(queue="):
        guard(0.3).invoke("Where?")


def test_a_graph_that_is_interrupted_resumes_from_a_file_in_another_process(tmp_path):
    """The model of each run is a new one; what was asked stands in the file."""
    with SqliteSaver.from_conn_string(str(tmp_path / "checkpoints.db")) as saver:
        graph(guard(*differing(0.3)), saver=saver).invoke(ASKED, CONFIG)
    with SqliteSaver.from_conn_string(str(tmp_path / "checkpoints.db")) as saver:
        later = graph(guard(("later", score_of(0.1), "")), saver=saver)
        (waiting,) = later.get_state(CONFIG).interrupts
        assert waiting.value["draft"] == "draft 1"
        assert later.invoke(APPROVED, CONFIG)["messages"][-1].content == "draft 1"


async def test_a_graph_resumes_from_a_file_also_asynchronously(tmp_path):
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "checkpoints.db")) as saver:
        compiled = graph(guard(*differing(0.3, 0.1)), saver=saver, asynchronous=True)
        await compiled.ainvoke(ASKED, CONFIG)
        state = await compiled.ainvoke(APPROVED, CONFIG)
    assert state["messages"][-1].content == "draft 1"


def test_a_guard_in_a_subgraph_interrupts_the_whole():
    outer = StateGraph(MessagesState)
    outer.add_node("inner", graph(guard(*differing(0.3, 0.1)), saver=None))
    outer.add_edge(START, "inner")
    outer.add_edge("inner", END)
    compiled = outer.compile(checkpointer=InMemorySaver())
    assert compiled.invoke(ASKED, CONFIG)["__interrupt__"][0].value["draft"] == "draft 1"
    assert compiled.invoke(APPROVED, CONFIG)["messages"][-1].content == "draft 1"


def test_the_embedded_model_waits_for_a_human():
    asking = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[InterruptReview()])
    compiled = graph(asking, saver=InMemorySaver())
    state = compiled.invoke({"messages": [("user", "What is the capital of Zubrovia?")]}, CONFIG)
    draft = state["__interrupt__"][0].value["draft"]
    message = compiled.invoke(APPROVED, CONFIG)["messages"][-1]
    assert isinstance(message, AIMessage)
    assert (message.content, message.response_metadata["semgrad_decision"]["decision"]) == (draft, "review")
