"""Real agents: which calls ran, how often the model was asked, and what a consumer of their streams gets to see."""

import json
from functools import cache

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware, hook_config
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, RemoveMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from pydantic import BaseModel, ValidationError
from scripted import calling, profile, record, score_of, scripted

from semgrad_guard import ChatSemGrad, ConfigurationError, ProfileError, SemGradScorer, get_confidence
from semgrad_guard.agents import ConfidenceMiddleware, confidence_gate, low_confidence, model_node
from semgrad_guard.demo import embedded_model, embedded_profile

CONFIG = {"configurable": {"thread_id": "1"}}
ASKED = {"messages": [("user", "q?")]}
CANARY = "canary"


def fitted():
    """A profile with which calls pass at 0.8, as answers do."""
    found = profile(0.8)
    return found.model_copy(update={"tool_call": found.answer, "argument": found.answer})


class World:
    """Two tools that keep a list of what was done, and an agent over a scripted model."""

    def __init__(self, *script, saver=None, middleware=(), after=(), **settings):
        self.ran = []
        self.chat = scripted(*script)
        guards = [ConfidenceMiddleware(fitted(), **settings)]
        saver = InMemorySaver() if saver is None else saver
        self.agent = create_agent(
            self.chat, self.tools(), middleware=[*middleware, *guards, *after], checkpointer=saver or None
        )

    def tools(self):
        def look(place: str) -> str:
            """Look at a place."""
            self.ran.append(("look", place))
            return "nothing"

        def mail(text: str) -> str:
            """Send a mail."""
            self.ran.append(("mail", text))
            return "sent"

        return [look, mail]

    @property
    def asked(self):
        return len(self.chat._asked)

    def start(self):
        return self.agent.invoke(ASKED, CONFIG)

    def resume(self, *decisions):
        return self.agent.invoke(Command(resume={"decisions": list(decisions)}), CONFIG)


def look(confidence, place="Oslo"):
    return ("look", {"place": place}, confidence)


def mail(confidence, text="hi"):
    return ("mail", {"text": text}, confidence)


APPROVE, REJECT = {"type": "approve"}, {"type": "reject", "message": "not now"}


def edit(name, **arguments):
    return {"type": "edit", "edited_action": {"name": name, "args": arguments}}


def test_sure_calls_run_and_sure_answers_go_out():
    world = World(calling(look(0.9)), 0.9)
    messages = world.start()["messages"]
    assert world.ran == [("look", "Oslo")]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[-1].content == "draft"
    assert record(messages[-1])["decision"] == "pass"
    assert get_confidence(messages[-1]) == pytest.approx(0.9)
    assert world.asked == 2


def test_an_unsure_call_waits_for_a_human_who_sees_how_sure_it_is():
    world = World(calling(look(0.4)), 0.9)
    (asked,) = world.start()["__interrupt__"]
    assert world.ran == []
    (request,), (review,) = asked.value["action_requests"], asked.value["review_configs"]
    assert (request["name"], request["args"]) == ("look", {"place": "Oslo"})
    assert "place = 'Oslo' (confidence 0.20)" in request["description"]
    assert "look: confidence 0.400 is below the threshold 0.800" in request["description"]
    assert review == {"action_name": "look", "allowed_decisions": ["approve", "edit", "reject", "respond"]}
    json.dumps(asked.value)


@pytest.mark.parametrize(
    ("decision", "ran", "answer", "status"),
    [
        (APPROVE, [("look", "Oslo")], "nothing", "success"),
        (edit("look", place="Rome"), [("look", "Rome")], "nothing", "success"),
        (edit("mail", text="Hello"), [("mail", "Hello")], "sent", "success"),
        (REJECT, [], "not now", "error"),
        ({"type": "respond", "message": "It is closed."}, [], "It is closed.", "success"),
    ],
)
def test_a_human_decides_and_the_run_goes_on_without_asking_the_model_again(decision, ran, answer, status):
    world = World(calling(look(0.4)), 0.9)
    world.start()
    assert world.asked == 1
    messages = world.resume(decision)["messages"]
    assert world.ran == ran
    assert world.asked == 2  # for the answer
    (told,) = [message for message in messages if isinstance(message, ToolMessage)]
    assert answer in told.content
    assert told.status == status
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert [step["reason"] for step in record(messages[1])["steps"]][1:] == [f"look: {decision['type']}"]
    assert messages[1].tool_calls[0]["id"] == told.tool_call_id


def test_of_several_calls_the_doubtful_ones_are_asked_about_and_none_runs_before():
    world = World(calling(look(0.9, "A"), mail(0.4, "B"), look(0.3, "C"), mail(0.95, "D")), 0.9)
    (asked,) = world.start()["__interrupt__"]
    assert [request["args"] for request in asked.value["action_requests"]] == [{"text": "B"}, {"place": "C"}]
    assert world.ran == []
    messages = world.resume(REJECT, edit("look", place="E"))["messages"]
    assert sorted(world.ran) == [("look", "A"), ("look", "E"), ("mail", "D")]
    assert world.asked == 2
    assert [call["args"] for call in messages[1].tool_calls] == [
        {"place": "A"}, {"text": "B"}, {"place": "E"}, {"text": "D"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        ({"decisions": [APPROVE]}, "at least 2 items"),
        ({"decisions": [APPROVE] * 3}, "at most 2 items"),
        ("yes", "valid dictionary"),
        ({"decisions": [APPROVE, {"type": "maybe"}]}, "'approve', 'edit', 'reject', 'respond'"),
        ({"decisions": [APPROVE, {"type": "edit"}]}, "edited_action"),
        ({"decisions": [APPROVE, "approve"]}, "valid dictionary"),
    ],
)
def test_decisions_that_do_not_fit_run_nothing_and_can_be_made_again(resume, message):
    world = World(calling(look(0.4), mail(0.4)), 0.9)
    world.start()
    with pytest.raises(ValidationError, match=message):
        world.agent.invoke(Command(resume=resume), CONFIG)
    assert world.ran == []
    world.resume(APPROVE, REJECT)
    assert world.ran == [("look", "Oslo")]
    assert world.asked == 2


def test_tools_have_thresholds_of_their_own():
    world = World(calling(look(0.5), mail(0.9)), 0.9, threshold=0.4, thresholds={"mail": 0.95})
    (asked,) = world.start()["__interrupt__"]
    assert [request["name"] for request in asked.value["action_requests"]] == ["mail"]


def test_without_a_section_for_calls_every_call_is_asked_about():
    world = World()
    agent = create_agent(
        scripted(calling(look(0.99))),
        world.tools(),
        middleware=[ConfidenceMiddleware(profile(0.8))],
        checkpointer=InMemorySaver(),
    )
    (asked,) = agent.invoke(ASKED, CONFIG)["__interrupt__"]
    assert "no section for answers of the kind 'tool_call'" in asked.value["action_requests"][0]["description"]


@pytest.mark.parametrize("calls", ["interrupt", "block"])
def test_calls_of_a_message_that_failed_never_run_unseen(calls):
    world = World(calling(look(0.99), failure="it was cut off"), 0.9, calls=calls)
    world.start()
    assert world.ran == []


def test_a_call_that_no_score_is_of_is_held():
    message = calling(look(0.99))
    message.tool_calls[0]["id"] = "another"
    world = World(message)
    (asked,) = world.start()["__interrupt__"]
    assert "the call has no confidence" in asked.value["action_requests"][0]["description"]


def test_a_blocked_call_does_not_run_and_the_model_is_told():
    world = World(calling(look(0.4, CANARY), mail(0.9)), 0.9, calls="block")
    messages = world.start()["messages"]
    assert world.ran == [("mail", "hi")]
    assert world.asked == 2
    blocked = next(message for message in messages if isinstance(message, ToolMessage) and message.status == "error")
    assert blocked.name == "look"
    assert "confidence 0.400 is below" in blocked.content
    assert "least sure argument is place" in blocked.content
    assert [call["args"] for call in messages[1].tool_calls] == [{}, {"text": "hi"}]
    assert CANARY not in str(messages)
    seen = world.chat._asked[1]
    assert any(isinstance(message, ToolMessage) and message.status == "error" for message in seen)


@pytest.mark.parametrize(("retries", "asked"), [(0, 1), (1, 2), (3, 4)])
def test_a_model_that_keeps_making_unsure_calls_is_stopped(retries, asked):
    world = World(*[calling(look(0.4)) for _ in range(6)], calls="block", retries=retries)
    last = world.start()["messages"][-1]
    assert world.asked == asked
    assert (last.content, last.tool_calls) == ("I am not sure enough to answer that.", [])
    again = World(*[calling(look(0.4)) for _ in range(6)], calls="block")
    again.start()
    again.start()  # another question: blocked calls of the first do not count
    assert again.asked == 4


def test_a_blocked_call_is_no_passage_to_answer_from():
    sections = fitted().model_copy(update={"grounded": fitted().answer.model_copy(update={"threshold": 0.1})})
    agent = create_agent(
        scripted(calling(look(0.4)), 0.5),
        World().tools(),
        middleware=[ConfidenceMiddleware(sections, calls="block")],
    )
    last = agent.invoke(ASKED)["messages"][-1]
    assert record(last)["threshold"] == 0.8
    assert record(last)["decision"] == "abstain"


def test_annotated_calls_run():
    world = World(calling(look(0.4)), 0.9, calls="annotate", saver=False)
    messages = world.start()["messages"]
    assert world.ran == [("look", "Oslo")]
    assert record(messages[1])["decision"] == "annotate"
    (sure,) = record(messages[1])["tool_calls"].values()
    assert sure["confidence"] == pytest.approx(0.4)
    assert list(record(messages[1])["held"]) == [messages[1].tool_calls[0]["id"]]


@pytest.mark.parametrize(
    ("answers", "said", "decision"),
    [("abstain", "Ask a colleague.", "abstain"), ("end", "", "abstain"), ("annotate", "draft", "annotate")],
)
def test_unsure_answers(answers, said, decision):
    last = World(0.4, answers=answers, abstention="Ask a colleague.").start()["messages"][-1]
    assert last.content == said
    assert record(last)["decision"] == decision
    assert get_confidence(last) == pytest.approx(0.4)
    assert World(0.79, answers=answers, answer_threshold=0.7).start()["messages"][-1].content == "draft"


def test_an_answer_without_a_score_does_not_go_out():
    last = World(("draft", None, "scoring failed: MemoryError")).start()["messages"][-1]
    assert last.content != "draft"
    assert "MemoryError" in record(last)["reason"]


def test_what_holds_the_text_again_does_not_go_out():
    message = calling(look(0.4, CANARY), failure="cut off")
    message.content = message.additional_kwargs["reasoning_content"] = CANARY
    message.response_metadata["logprobs"] = {"content": [{"token": CANARY}]}
    message.invalid_tool_calls.append(
        {"type": "invalid_tool_call", "name": None, "args": CANARY, "id": None, "error": ""}
    )
    for calls in ([], message.tool_calls):
        given = message.model_copy(update={"tool_calls": calls}, deep=True)
        first = World(given, 0.9, calls="block").start()["messages"][1]
        assert CANARY not in str(first)
        assert first.response_metadata["semgrad_decision"]["decision"] == "abstain"


def test_doubtful_text_beside_calls_does_not_go_out():
    message = calling(look(0.9), text=CANARY)
    message.response_metadata["semgrad"]["scores"] = score_of(0.1).model_dump(mode="json")
    world = World(message, 0.9)
    messages = world.start()["messages"]
    assert world.ran == [("look", "Oslo")]
    assert messages[1].content == ""
    sure = World(calling(look(0.9), text="I will look."), 0.9).start()["messages"]
    assert sure[1].content == "I will look."


class Trip(BaseModel):
    """Plan a trip."""

    place: str


@pytest.mark.parametrize(("confidence", "given"), [(0.9, Trip(place="Oslo")), (0.4, None)])
def test_an_unsure_structured_response_is_left_out(confidence, given):
    agent = create_agent(
        scripted(calling(("Trip", {"place": "Oslo"}, confidence))),
        World().tools(),
        middleware=[ConfidenceMiddleware(fitted())],
        checkpointer=InMemorySaver(),
        response_format=Trip,
    )
    result = agent.invoke(ASKED, CONFIG)
    assert result.get("structured_response") == given
    assert ("Oslo" in str(result["messages"])) == (given is not None)


def test_interrupting_needs_a_checkpointer_and_says_so_before_the_model_is_asked():
    world = World(0.9, saver=False)
    with pytest.raises(ConfigurationError, match=r"checkpointer=InMemorySaver\(\)"):
        world.start()
    assert world.asked == 0


def test_a_checkpointer_of_the_parent_graph_serves():
    world = World(calling(look(0.4)), 0.9, saver=False)
    graph = StateGraph(MessagesState).add_node("agent", world.agent).add_edge(START, "agent").add_edge("agent", END)
    outer = graph.compile(checkpointer=InMemorySaver())
    assert "__interrupt__" in outer.invoke(ASKED, CONFIG)
    outer.invoke(Command(resume={"decisions": [APPROVE]}), CONFIG)
    assert world.ran == [("look", "Oslo")]
    assert world.asked == 2


def test_models_that_give_no_scores_are_refused():
    agent = create_agent(
        FakeListChatModel(responses=["hi"]), middleware=[ConfidenceMiddleware(fitted(), calls="block")]
    )
    with pytest.raises(ConfigurationError, match=r"FakeListChatModel, which gives no scores.*ChatSemGrad.from_model"):
        agent.invoke(ASKED)
    with pytest.raises(ConfigurationError, match="List ConfidenceMiddleware last"):
        World(AIMessage("made up")).start()
    with pytest.raises(ProfileError, match="was fitted on"):
        create_agent(scripted(0.9), middleware=[ConfidenceMiddleware(embedded_profile(), calls="block")]).invoke(ASKED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calls": "ask"}, "calls='ask': expected one of interrupt, block, annotate"),
        ({"answers": "stop"}, "answers='stop': expected one of abstain, end, annotate"),
        ({"threshold": 2}, "threshold=2"),
        ({"thresholds": {"mail": -1}}, "threshold=-1"),
        ({"retries": -1}, "retries=-1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ConfidenceMiddleware(fitted(), **settings)


@pytest.mark.parametrize("mode", ["batched", "per_call"])
def test_langchain_s_own_middleware_asks_when_confidence_is_low(mode):
    when = {"allowed_decisions": ["approve", "edit", "reject"], "when": low_confidence(0.8)}
    own = HumanInTheLoopMiddleware({"look": when, "mail": when}, interrupt_mode=mode)
    world = World(calling(look(0.9), mail(0.4)), 0.9, middleware=[own], calls="annotate")
    (asked,) = world.start()["__interrupt__"]
    if mode == "batched":
        assert [request["name"] for request in asked.value["action_requests"]] == ["mail"]
        messages = world.resume(REJECT)["messages"]
    else:
        assert asked.value["name"] == "mail"
        messages = world.agent.invoke(Command(resume={asked.id: REJECT}), CONFIG)["messages"]
    assert world.ran == [("look", "Oslo")]
    assert world.asked == 2
    assert messages[-1].content == "draft"


def test_a_run_is_kept_in_a_database_and_resumed_by_another_process(tmp_path):
    path = str(tmp_path / "agent.sqlite")
    with SqliteSaver.from_conn_string(path) as saver:
        assert "__interrupt__" in World(calling(look(0.4)), saver=saver).start()
    with SqliteSaver.from_conn_string(path) as saver:
        after = World(0.9, saver=saver)
        messages = after.resume(edit("look", place="Rome"))["messages"]
    assert after.ran == [("look", "Rome")]
    assert after.asked == 1
    assert record(messages[1])["steps"][-1]["reason"] == "look: edit"


async def test_async_agents_are_the_same(tmp_path):
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "agent.sqlite")) as saver:
        world = World(calling(look(0.9), mail(0.4)), 0.4, saver=saver)
        (asked,) = (await world.agent.ainvoke(ASKED, CONFIG))["__interrupt__"]
        assert [request["name"] for request in asked.value["action_requests"]] == ["mail"]
        result = await world.agent.ainvoke(Command(resume={"decisions": [APPROVE]}), CONFIG)
    assert sorted(world.ran) == [("look", "Oslo"), ("mail", "hi")]
    assert world.asked == 2
    assert result["messages"][-1].content == "I am not sure enough to answer that."


async def test_async_agents_are_refused_alike():
    world = World(0.9, saver=False)
    with pytest.raises(ConfigurationError, match="checkpointer"):
        await world.agent.ainvoke(ASKED, CONFIG)
    blocking = World(calling(look(0.4)), 0.9, calls="block", saver=False)
    await blocking.agent.ainvoke(ASKED)
    assert blocking.ran == []


@pytest.mark.parametrize("gate", [0.8, 0.3])
def test_a_graph_written_by_hand(gate):
    world = World()
    graph = StateGraph(MessagesState)
    graph.add_node("model", model_node(scripted(calling(look(0.4)), 0.9), fitted(), world.tools()))
    graph.add_node("tools", ToolNode(world.tools()))
    graph.add_node("ask", lambda state: {"messages": [AIMessage("Which place?")]})
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", confidence_gate(gate), {"call": "tools", "answer": END, "unsure": "ask"})
    graph.add_edge("tools", "model")
    last = graph.compile().invoke(ASKED)["messages"][-1]
    assert (world.ran, last.content) == (([], "Which place?") if gate == 0.8 else ([("look", "Oslo")], "draft"))


class Jump(AgentMiddleware):
    """Sends the run to the tools whenever the last message of the model has calls, as LangChain documents it."""

    @hook_config(can_jump_to=["tools"])
    def after_model(self, state, runtime):
        last = next(message for message in reversed(state["messages"]) if isinstance(message, AIMessage))
        return {"jump_to": "tools"} if last.tool_calls else None

    @hook_config(can_jump_to=["tools"])
    async def aafter_model(self, state, runtime):
        return self.after_model(state, runtime)


async def result_of(world, given, mode):
    return await world.agent.ainvoke(given, CONFIG) if mode == "async" else world.agent.invoke(given, CONFIG)


def told(messages):
    return [message for message in messages if isinstance(message, ToolMessage)]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    ("decision", "ran"),
    [
        (REJECT, []),
        ({"type": "respond", "message": "It is closed."}, []),
        (APPROVE, [("look", "Oslo")]),
        (edit("look", place="Rome"), [("look", "Rome")]),
        (edit("mail", text="Hello"), [("mail", "Hello")]),
    ],
)
async def test_a_jump_to_the_tools_runs_what_a_human_let_run_and_nothing_else(decision, ran, mode):
    world = World(calling(look(0.4)), 0.9, middleware=[Jump()])
    await result_of(world, ASKED, mode)
    assert world.ran == []
    messages = (await result_of(world, Command(resume={"decisions": [decision]}), mode))["messages"]
    assert world.ran == ran
    (answer,) = told(messages)  # the message that stands for the call is there once
    assert (answer.status == "error") == (decision is REJECT)
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert list(record(messages[1])["decided"].values()) == [decision["type"]]


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_after_a_jump_parallel_calls_run_as_they_were_decided_on(mode):
    world = World(calling(look(0.9, "A"), mail(0.4, "B"), look(0.3, "C"), mail(0.2, "D")), 0.9, middleware=[Jump()])
    await result_of(world, ASKED, mode)
    decisions = {"decisions": [REJECT, edit("look", place="E"), APPROVE]}
    messages = (await result_of(world, Command(resume=decisions), mode))["messages"]
    assert sorted(world.ran) == [("look", "A"), ("look", "E"), ("mail", "D")]
    calls = messages[1].tool_calls
    assert {message.tool_call_id: message.status for message in told(messages)} == {
        call["id"]: "error" if call["args"] == {"text": "B"} else "success" for call in calls
    }
    assert len(told(messages)) == 4


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("place", ["middleware", "after"])
async def test_after_a_jump_blocked_calls_do_not_run(place, mode):
    world = World(calling(look(0.4, CANARY), mail(0.9)), 0.9, calls="block", **{place: [Jump()]})
    messages = (await result_of(world, ASKED, mode))["messages"]
    assert world.ran == [("mail", "hi")]
    assert CANARY not in str(messages)
    assert sorted(message.status for message in told(messages)) == ["error", "success"]


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_jump_that_skips_the_human_runs_no_held_call(mode):
    world = World(calling(look(0.4), mail(0.9)), 0.9, after=[Jump()])
    messages = (await result_of(world, ASKED, mode))["messages"]
    assert world.ran == [("mail", "hi")]
    refused = next(message for message in told(messages) if message.status == "error")
    assert refused.content.startswith("Not run: look: confidence 0.400 is below the threshold 0.800")


def test_a_rejected_call_does_not_run_when_its_rejection_is_taken_out():
    class Forget(Jump):
        @hook_config(can_jump_to=["tools"])
        def after_model(self, state, runtime):
            gone = [RemoveMessage(message.id) for message in told(state["messages"])]
            return {**(super().after_model(state, runtime) or {}), "messages": gone}

    world = World(calling(look(0.4)), 0.9, middleware=[Forget()])
    world.start()
    world.resume(REJECT)
    assert world.ran == []


def test_calls_that_another_middleware_makes_up_do_not_run():
    class MakesUp(Jump):
        @hook_config(can_jump_to=["tools"])
        def after_model(self, state, runtime):
            if any(isinstance(message, ToolMessage) for message in state["messages"]):
                return None
            calls = [{"name": "look", "args": {"place": "Oslo"}, "id": "made-up", "type": "tool_call"}]
            return {"messages": [AIMessage("", tool_calls=calls)], "jump_to": "tools"}

    world = World(0.9, middleware=[MakesUp()])
    (refused,) = told(world.start()["messages"])
    assert (world.ran, refused.status) == ([], "error")
    annotated = World(0.9, middleware=[MakesUp()], calls="annotate")
    annotated.start()
    assert annotated.ran == [("look", "Oslo")]


def test_held_calls_of_an_earlier_turn_do_not_run_in_the_next():
    class JumpFirst(AgentMiddleware):
        @hook_config(can_jump_to=["end"])
        def after_model(self, state, runtime):
            return {"jump_to": "end"}

        @hook_config(can_jump_to=["tools"])
        def before_model(self, state, runtime):
            calls = any(isinstance(message, AIMessage) for message in state["messages"])
            return {"jump_to": "tools"} if calls and not told(state["messages"]) else None

    world = World(calling(look(0.4)), 0.9, after=[JumpFirst()])
    world.start()
    (refused,) = told(world.start()["messages"])
    assert (world.ran, refused.status) == ([], "error")


def test_what_other_middleware_rejected_does_not_run_after_a_jump():
    when = {"allowed_decisions": ["approve", "edit", "reject"], "when": low_confidence(0.8)}
    human = HumanInTheLoopMiddleware({"look": when, "mail": when})
    world = World(calling(look(0.4), mail(0.9)), 0.9, middleware=[Jump(), human], calls="annotate")
    world.start()
    world.resume(REJECT)
    assert world.ran == [("mail", "hi")]


def test_an_agent_within_an_agent_keeps_to_the_decisions_on_its_own_calls():
    inner = World(calling(look(0.4)), 0.9, middleware=[Jump()], saver=False)

    def delegate(task: str) -> str:
        """Let another agent do it."""
        return inner.agent.invoke({"messages": [("user", task)]})["messages"][-1].content

    outer = create_agent(
        scripted(calling(("delegate", {"task": "look"}, 0.9)), 0.9),
        [delegate],
        middleware=[Jump(), ConfidenceMiddleware(fitted())],
        checkpointer=InMemorySaver(),
    )
    assert "__interrupt__" in outer.invoke(ASKED, CONFIG)
    outer.invoke(Command(resume={"decisions": [REJECT]}), CONFIG)
    assert inner.ran == []


def test_a_rejected_call_does_not_run_after_a_jump_in_another_process(tmp_path):
    path = str(tmp_path / "agent.sqlite")
    with SqliteSaver.from_conn_string(path) as saver:
        assert "__interrupt__" in World(calling(look(0.4), mail(0.3)), saver=saver, middleware=[Jump()]).start()
    with SqliteSaver.from_conn_string(path) as saver:
        after = World(0.9, saver=saver, middleware=[Jump()])
        after.resume(REJECT, APPROVE)
    assert after.ran == [("mail", "hi")]


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_tool_node_by_itself_takes_the_same_check(mode):
    world = World()
    careful = ConfidenceMiddleware(fitted())
    node = ToolNode(world.tools(), wrap_tool_call=careful.wrap_tool_call, awrap_tool_call=careful.awrap_tool_call)
    model = model_node(scripted(calling(look(0.4), mail(0.9))), fitted(), world.tools())
    graph = StateGraph(MessagesState).add_node("model", model).add_node("tools", node)
    app = graph.add_edge(START, "model").add_edge("model", "tools").add_edge("tools", END).compile()
    messages = (await app.ainvoke(ASKED) if mode == "async" else app.invoke(ASKED))["messages"]
    assert world.ran == [("mail", "hi")]
    assert [message.status for message in told(messages)] == ["error", "success"]


@cache
def small_model():
    return ChatSemGrad.from_model(*embedded_model(), generation={"max_new_tokens": 48, "do_sample": False})


class Weather:
    """An agent over the embedded model with two of the tools it knows."""

    def __init__(self, monkeypatch=None, saver=None, guarded=True, **settings):
        self.ran, self.scored, self.generated = [], 0, 0
        if monkeypatch is not None:
            self._count(monkeypatch)
        guards = [ConfidenceMiddleware(embedded_profile(), **settings)] if guarded else []
        self.agent = create_agent(small_model(), self.tools(), middleware=guards, checkpointer=saver)

    def tools(self):
        def get_weather(place: str) -> str:
            """Tell the weather at a place."""
            self.ran.append(place)
            return "sunny, 21 degrees"

        def find_route(origin: str, destination: str) -> str:
            """Find the way from one place to another."""
            self.ran.append((origin, destination))
            return "go north for 12 miles"

        return [get_weather, find_route]

    def _count(self, monkeypatch):
        score, generate = SemGradScorer.score, SemGradScorer.generate

        def counted_score(scorer, *args, **kwargs):
            self.scored += 1
            return score(scorer, *args, **kwargs)

        def counted_generate(scorer, *args, **kwargs):
            self.generated += 1
            return generate(scorer, *args, **kwargs)

        monkeypatch.setattr(SemGradScorer, "score", counted_score)
        monkeypatch.setattr(SemGradScorer, "generate", counted_generate)

    def ask(self, question, thread="1"):
        config = {"configurable": {"thread_id": thread}}
        return self.agent.invoke({"messages": [("user", question)]}, config)


def test_the_embedded_model_drives_an_agent(monkeypatch):
    world = Weather(monkeypatch, saver=InMemorySaver())
    messages = world.ask("What is the weather in Zubrovia?")["messages"]
    assert world.ran == ["Zubrovia"]
    assert messages[-1].content == "The weather in Zubrovia: sunny, 21 degrees."
    assert (world.generated, world.scored) == (2, 2)
    asked = world.ask("What is the weather like?", "2")["__interrupt__"][0].value["action_requests"][0]
    assert asked["name"] == "get_weather"
    assert (world.generated, world.scored) == (3, 3)
    decision = edit("get_weather", place="Oslo")
    config = {"configurable": {"thread_id": "2"}}
    messages = world.agent.invoke(Command(resume={"decisions": [decision]}), config)["messages"]
    assert world.ran == ["Zubrovia", "Oslo"]
    assert messages[-1].content == "The weather in Oslo: sunny, 21 degrees."
    assert (world.generated, world.scored) == (4, 4)  # once more, for the answer


def seen(agent, question, mode):
    """Give everything a stream shows."""
    return "\n".join(str(part) for part in agent.stream({"messages": [("user", question)]}, stream_mode=mode))


MODES = ["messages", "updates", "values", "debug", ["messages", "updates"]]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize(
    ("question", "kept"), [("What is the capital of Zubrovia?", "content"), ("What is the weather like?", "arguments")]
)
def test_no_stream_shows_what_is_withheld(question, kept, mode):
    bare = Weather(guarded=False)
    first = bare.agent.invoke({"messages": [("user", question)]})["messages"][1]
    secret = first.content if kept == "content" else first.tool_calls[0]["args"]["place"]
    assert secret in seen(Weather(guarded=False).agent, question, "updates")  # it would be seen
    guarded = Weather(calls="block").agent
    assert secret not in seen(guarded, question, mode)
    assert "Zubrovia: sunny" in seen(guarded, "What is the weather in Zubrovia?", mode)


@pytest.mark.parametrize("mode", MODES, ids=str)
async def test_no_async_stream_shows_what_is_withheld(mode):
    asked = {"messages": [("user", "What is the capital of Zubrovia?")]}
    secret = (await Weather(guarded=False).agent.ainvoke(asked))["messages"][-1].content
    agent = Weather(calls="block").agent
    shown = "\n".join([str(part) async for part in agent.astream(asked, stream_mode=mode)])
    assert secret not in shown
    assert "I am not sure enough" in shown


@pytest.mark.parametrize("question", ["What is the capital of Zubrovia?", "What is the weather like?"])
async def test_no_event_of_a_stream_shows_what_is_withheld(question):
    asked = {"messages": [("user", question)]}
    first = (await Weather(guarded=False).agent.ainvoke(asked))["messages"][1]
    secret = first.content or first.tool_calls[0]["args"]["place"]

    async def events(agent):
        return "\n".join([str(event) async for event in agent.astream_events(asked, version="v2")])

    assert secret in await events(Weather(guarded=False).agent)
    assert secret not in await events(Weather(calls="block").agent)
