"""Spans: how they nest, what they tell, and what they do not."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tracers import context as hooks
from langgraph.errors import GraphInterrupt
from langgraph.types import Interrupt
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from scripted import MODEL, profile, score_of, scripted

from semgrad_guard import Abstain, Escalate, LowConfidenceError, Raise, Retrieve, SemGradGuard
from semgrad_guard.observability.runs import attach
from semgrad_guard.observability.tracing import Tracing

CANARY = "Xanadu"
GUARDED = ["semgrad.generate", "semgrad.score", "chat tiny"]


class Spans:
    def __init__(self, **settings):
        self._exporter, self.provider = InMemorySpanExporter(), TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.handler = Tracing(self.provider, **settings)
        self.config = {"callbacks": [self.handler]}

    @property
    def all(self):
        assert self.handler._runs == {}  # whatever began has ended
        return self._exporter.get_finished_spans()

    @property
    def names(self):
        return [span.name for span in self.all]

    def named(self, name):
        (span,) = [span for span in self.all if span.name == name]
        return span

    def above(self, span):
        """Name the spans above one, the nearest first."""
        by_id = {other.context.span_id: other for other in self.all}
        names = []
        while span.parent is not None:
            span = by_id[span.parent.span_id]
            names.append(span.name)
        return names

    def text(self):
        return "".join(span.to_json() for span in self.all)


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture(autouse=True)
def name(monkeypatch):
    monkeypatch.setattr(MODEL.config, "_name_or_path", "tiny")


def saying(text, confidence):
    record = {"scores": score_of(confidence).model_dump(mode="json"), "failure": None, "tool_calls": {}}
    return AIMessage(
        text,
        usage_metadata={"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
        response_metadata={"semgrad": record, "finish_reason": "stop"},
    )


def guard(*answers, **settings):
    return SemGradGuard(scripted(*answers), profile=profile(0.8), **settings)


def found(question):
    return [Document("Paris is in France.")]


def broken(question):
    raise ValueError(f"no passages about {question}")


def test_an_answer_that_passes(spans):
    guard(saying("Paris", 0.9)).invoke("Where?", spans.config)
    assert spans.names == GUARDED
    chat = spans.named("chat tiny")
    assert chat.parent is None
    assert chat.kind == SpanKind.INTERNAL
    assert dict(chat.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "semgrad",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 2,
    }
    (event,) = chat.events
    assert event.name == "gen_ai.evaluation.result"
    assert dict(event.attributes) == {
        "gen_ai.evaluation.name": "semgrad",
        "gen_ai.evaluation.score.value": pytest.approx(0.9),
        "gen_ai.evaluation.score.label": "pass",
    }
    assert dict(spans.named("semgrad.score").attributes) == {
        "semgrad.grounded": False,
        "semgrad.passed": True,
        "semgrad.confidence": pytest.approx(0.9),
        "semgrad.threshold": 0.8,
        "semgrad.method": "fused",
    }
    assert {spans.above(span)[0] for span in spans.all if span is not chat} == {"chat tiny"}


def test_a_route_s_own_questions_are_below_it(spans):
    routes = [Retrieve(RunnableLambda(found)), Abstain()]
    guard(saying("Lyon", 0.3), saying("Paris", 0.9), routes=routes).invoke("Where?", spans.config)
    route = spans.named("semgrad.route")
    assert dict(route.attributes) == {"semgrad.route": "retrieve", "semgrad.settled": True}
    below = [span.name for span in spans.all if spans.above(span) == ["semgrad.route", "chat tiny"]]
    assert below == ["semgrad.generate", "semgrad.score"]
    chat = spans.named("chat tiny")
    assert chat.attributes["gen_ai.usage.input_tokens"] == 10  # of both
    assert chat.events[0].attributes["gen_ai.evaluation.score.label"] == "retrieve"


def test_a_question_that_is_asked_with_passages_only(spans):
    routes = [Retrieve(RunnableLambda(found))]
    guard(0.9, routes=routes, passages="required").invoke("Where?", spans.config)
    assert [spans.above(span) for span in spans.all] == [
        ["semgrad.route", "chat tiny"],
        ["semgrad.route", "chat tiny"],
        ["chat tiny"],
        [],
    ]


def test_a_guard_that_never_asks_tells_its_decision(spans):
    guard(0.9, routes=[], passages="required").invoke("Where?", spans.config)
    (chat,) = spans.all
    assert chat.name == "chat"
    assert chat.events[0].attributes["gen_ai.evaluation.score.label"] == "abstain"
    assert chat.events[0].attributes["gen_ai.evaluation.score.value"] == 0


def test_a_chat_model_alone(spans):
    scripted(saying("Paris", 0.9)).invoke("Where?", spans.config)
    (chat,) = spans.all
    assert chat.name == "chat tiny"
    assert chat.attributes["gen_ai.usage.output_tokens"] == 2
    assert chat.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert not chat.events


def test_in_a_chain_everything_is_one_trace(spans):
    both = RunnableLambda(str) | RunnableParallel(a=guard(0.9), b=guard(0.3))
    both.with_config(run_name="both").invoke("Where?", spans.config)
    assert len({span.context.trace_id for span in spans.all}) == 1
    assert [spans.above(span) for span in spans.all if span.name == "chat tiny"] == [["both"]] * 2
    assert spans.names.count("both") == 1
    labels = [span.events[0].attributes["gen_ai.evaluation.score.label"] for span in spans.all if span.events]
    assert sorted(labels) == ["abstain", "pass"]


def test_a_chain_with_nothing_of_ours_has_no_span(spans):
    (RunnableLambda(str) | RunnableLambda(len)).invoke("Where?", spans.config)
    RunnableLambda(str, name="route").invoke({"route": CANARY}, spans.config)
    (RunnableLambda(str) | RunnableLambda(len, name="score")).invoke({"grounded": True}, spans.config)
    assert spans.all == ()


def test_rows_of_a_batch_keep_apart(spans):
    guard(0.9).batch([f"question {index}" for index in range(8)], spans.config)
    assert sorted(spans.names) == sorted(GUARDED * 8)
    assert len({span.context.trace_id for span in spans.all}) == 8
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: guard(0.3).invoke("Where?", spans.config), range(8)))
    trees = {}
    for span in spans.all[24:]:
        trees.setdefault(span.context.trace_id, []).append(span.name)
    assert [sorted(names) for names in trees.values()] == [sorted([*GUARDED, "semgrad.route"])] * 8


async def test_async(spans):
    routes = [Retrieve(RunnableLambda(found)), Abstain()]
    asked = [guard(0.3, 0.9, routes=routes).ainvoke("Where?", spans.config) for _ in range(4)]
    await asyncio.gather(*asked)
    assert spans.names.count("chat tiny") == 4
    for span in spans.all:
        assert spans.above(span)[-1:] == ([] if span.name == "chat tiny" else ["chat tiny"])
    await guard(0.9).abatch(["a", "b"], spans.config)
    assert spans.names.count("chat tiny") == 6


@pytest.mark.parametrize("stream_drafts", [False, True])
async def test_streams(spans, stream_drafts):
    asked = guard(0.3, stream_drafts=stream_drafts)
    list(asked.stream("Where?", spans.config))
    assert [chunk async for chunk in asked.astream("Where?", spans.config)]
    assert spans.names == ["semgrad.generate", "semgrad.score", "semgrad.route", "chat tiny"] * 2
    for chat in spans.all[3::4]:
        assert chat.events[0].attributes["gen_ai.evaluation.score.label"] == "abstain"


def test_a_stream_that_is_left_ends_its_spans(spans):
    stream = guard(0.3, stream_drafts=True).stream("Where?", spans.config)
    next(stream)
    stream.close()
    assert sorted(spans.names) == ["chat tiny", "semgrad.generate"]
    assert {span.status.status_code for span in spans.all} == {StatusCode.UNSET}


def test_the_caller_s_span_is_above(spans):
    with spans.provider.get_tracer("app").start_as_current_span("request"):
        guard(0.9).invoke("Where?", spans.config)
    assert spans.above(spans.named("semgrad.score")) == ["chat tiny", "request"]


def test_agents(spans):
    agent = create_agent(scripted(saying("Paris", 0.9)), [])
    agent.invoke({"messages": [("user", "Where?")]}, spans.config)
    assert spans.above(spans.named("chat tiny")) == ["LangGraph"]


def test_a_route_that_fails(spans):
    guard(0.3, routes=[Retrieve(RunnableLambda(broken)), Abstain()]).invoke(CANARY, spans.config)
    failed, abstained = [span for span in spans.all if span.name == "semgrad.route"]
    assert failed.status.status_code == StatusCode.ERROR
    assert failed.attributes["error.type"] == failed.status.description == "ValueError"
    assert dict(failed.events[0].attributes) == {"exception.type": "ValueError"}
    assert abstained.status.status_code == spans.named("chat tiny").status.status_code == StatusCode.UNSET
    assert CANARY not in spans.text()


def test_a_guard_that_raises(spans):
    with pytest.raises(LowConfidenceError):
        guard(0.3, routes=[Raise()]).invoke("Where?", spans.config)
    chat = spans.named("chat tiny")
    assert chat.attributes["error.type"] == "LowConfidenceError"
    assert chat.events[0].name == "gen_ai.evaluation.result"


def test_a_model_that_fails(spans):
    with pytest.raises(ValueError, match=CANARY):
        guard(ValueError(CANARY)).invoke("Where?", spans.config)
    assert spans.named("semgrad.generate").attributes["error.type"] == "ValueError"
    assert spans.named("chat tiny").attributes["error.type"] == "ValueError"
    assert CANARY not in spans.text()


@pytest.mark.parametrize("error", [GraphInterrupt([Interrupt(CANARY)]), asyncio.CancelledError()])
def test_what_ends_a_run_on_purpose_is_no_error(spans, error):
    def leave(question):
        raise error

    with pytest.raises(type(error)):
        (guard(0.9) | RunnableLambda(leave)).invoke("Where?", spans.config)
    chain = spans.named("RunnableSequence")
    assert chain.status.status_code == StatusCode.UNSET
    assert chain.events[0].attributes["exception.type"] == type(error).__name__
    assert CANARY not in spans.text()


def everything(config):
    """Let the canary be in the question, answers, passages, an error and an escalation."""
    retrieve = Retrieve(RunnableLambda(lambda question: [Document(CANARY)]))
    escalate = Escalate(RunnableLambda(lambda text: CANARY), prompt=lambda request: request.draft)
    guard(saying(CANARY, 0.9)).invoke(CANARY, config)
    guard(saying(CANARY, 0.3), routes=[retrieve, Retrieve(RunnableLambda(broken)), escalate]).invoke(CANARY, config)
    scripted(saying(CANARY, 0.9)).invoke(CANARY, config)
    list(guard(saying(CANARY, 0.3), stream_drafts=True).stream(CANARY, config))


def test_no_content_by_default(spans):
    everything(spans.config)
    assert spans.names.count("chat tiny") == 4
    assert CANARY not in spans.text()


def test_content_when_asked_for():
    spans = Spans(record_content=True)
    guard(saying("It is Paris", 0.9)).invoke("Where?", spans.config)
    chat, draft = spans.named("chat tiny"), spans.named("semgrad.generate")
    said = [{"role": "user", "parts": [{"type": "text", "content": "Where?"}]}]
    assert json.loads(chat.attributes["gen_ai.input.messages"]) == said
    (answer,) = json.loads(chat.attributes["gen_ai.output.messages"])
    assert answer == {"role": "assistant", "parts": [{"type": "text", "content": "It is Paris"}]}
    assert json.loads(draft.attributes["gen_ai.output.messages"])[0]["parts"] == []
    assert "reaches the threshold" in chat.events[0].attributes["gen_ai.evaluation.explanation"]


def test_held_back_drafts_stay_unseen_also_with_content():
    spans = Spans(record_content=True)
    guard(saying(CANARY, 0.3), routes=[Retrieve(RunnableLambda(broken)), Abstain()]).invoke("Where?", spans.config)
    assert CANARY not in spans.text()
    assert "no passages about Where?" in spans.text()
    list(guard(saying("Lyon", 0.3), stream_drafts=False).stream("Why?", spans.config))
    assert "Lyon" not in spans.text()
    list(guard(saying("Lyon", 0.3), stream_drafts=True).stream("Why?", spans.config))
    assert "Lyon" in spans.text()  # everybody has seen it


@contextmanager
def attached(spans):
    before = list(hooks._configure_hooks)
    try:
        attach(spans.handler)
        yield
    finally:
        hooks._configure_hooks[:] = before


def test_attached_to_all_runs_of_the_process(spans):
    with attached(spans), ThreadPoolExecutor(1) as pool:
        guard(0.9).invoke("Where?")
        pool.submit(guard(0.9).invoke, "Where?", spans.config).result()  # given as well, it hears it once
    assert spans.names == GUARDED * 2


def test_what_a_guard_hides_from_callbacks_is_hidden_from_attached_ones():
    spans = Spans(record_content=True)
    with attached(spans):
        other = guard(saying("Paris", 0.9))
        escalate = Escalate(other, prompt=lambda request: request.draft)
        guard(saying(CANARY, 0.3), routes=[escalate]).invoke("Where?")
    assert spans.names.count("chat tiny") == 1
    assert CANARY not in spans.text()


def test_a_failing_handler_is_logged_by_its_kind_and_breaks_nothing(spans, monkeypatch, caplog):
    def fail(*given):
        raise ValueError(CANARY)

    monkeypatch.setattr(spans.handler, "_begin", fail)
    assert guard(0.9).invoke("Where?", spans.config).content == "draft"
    assert "Tracing failed: ValueError" in caplog.text
    assert CANARY not in caplog.text
