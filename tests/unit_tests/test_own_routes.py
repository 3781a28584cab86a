"""A route of a user's own, with a decision of its own, through chain, agent of records, traces, metrics and service."""

import asyncio
import math
import threading
from dataclasses import dataclass

import pytest
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scripted import profile, record, scripted

import semgrad_guard
from semgrad_guard import (
    Abstain,
    Answer,
    ConfigurationError,
    Escalate,
    LowConfidenceError,
    Outcome,
    Route,
    SemGradGuard,
    Situation,
    Source,
    get_confidence,
    get_decision,
)
from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.observability.tracing import Tracing
from semgrad_guard.records import Decision
from semgrad_guard.routing.attempts import as_routes
from semgrad_guard.serving.work import ChatJob
from semgrad_guard.serving.worker import Worker


@dataclass(frozen=True)
class Consult:
    """Settles with a text of its own; has what a route must have, and nothing else."""

    text: str = "Please call us."
    decision: str = "consult"

    def attempt(self, situation: Situation) -> Outcome:
        return Outcome(True, "consulted", f"{situation.question} {self.text}")


class Inheriting(Route):
    decision = "inherit"

    def attempt(self, situation):
        return Outcome(
            True, f"in the main thread: {threading.current_thread() is threading.main_thread()}", "inherited"
        )


class AskingAgain:
    """Puts the question in other words, and lets the answer out if it passes then."""

    decision = "reworded"
    below = None

    def attempt(self, situation):
        return self._settled(situation.ask(f"In other words: {situation.question}"))

    async def aattempt(self, situation):
        return self._settled(await situation.aask(f"In other words: {situation.question}"))

    def _settled(self, answer: Answer) -> Outcome:
        sources = [Source(text="a passage")]
        return Outcome(answer.verdict.passed, answer.verdict.reason, answer.text, answer, sources, as_drafted=True)


class OnlyAsync:
    decision = "later"

    async def aattempt(self, situation):
        return Outcome(True, "awaited", "awaited")


def guard(*answers, routes, **settings):
    return SemGradGuard(scripted(*answers), profile=profile(), routes=routes, **settings)


def test_it_settles_in_a_chain_with_its_own_decision():
    chain = guard(0.1, routes=[Consult(), Abstain()])
    message = chain.invoke("Where?")
    assert (message.content, record(message)["decision"]) == ("Where? Please call us.", "consult")
    assert [step["name"] for step in record(message)["steps"]] == ["answer", "consult"]
    assert (chain | StrOutputParser()).batch(["Where?", "When?"]) == ["Where? Please call us.", "When? Please call us."]
    assert next(iter(chain.stream("Where?"))).content == "Where? Please call us."
    assert asyncio.run(chain.ainvoke("Where?")).content == "Where? Please call us."
    assert Decision.model_validate(record(message)).decision == "consult"
    assert get_confidence(message) == pytest.approx(0.1)


def test_it_is_not_tried_for_an_answer_that_passes():
    assert record(guard(0.9, routes=[Consult()]).invoke("Where?"))["decision"] == "pass"


def test_it_may_ask_the_model_again():
    for call in (lambda asking: asking.invoke("Where?"), lambda asking: asyncio.run(asking.ainvoke("Where?"))):
        again = guard(0.1, 0.9, routes=[AskingAgain()])
        message = call(again)
        assert (message.content, record(message)["decision"]) == ("draft", "reworded")
        assert record(message)["sources"] == [{"text": "a passage", "metadata": {}}]
        assert again.llm._asked[1][-1].content == "In other words: Where?"
    assert record(guard(0.1, 0.2, routes=[AskingAgain()]).invoke("Where?"))["decision"] == "abstain"


def test_what_it_leaves_out_is_filled_in():
    for route in (Consult(), Inheriting()):
        assert asyncio.run(guard(0.1, routes=route).ainvoke("Where?")).content
    blocked = asyncio.run(guard(0.1, routes=Inheriting()).ainvoke("Where?"))
    assert record(blocked)["steps"][1]["reason"] == "in the main thread: False"  # an event loop is not held up
    banded = guard(0.5, routes=[type("Low", (Consult,), {"below": 0.2})(), Abstain()])
    assert record(banded.invoke("Where?"))["decision"] == "abstain"


def test_one_that_is_async_only_says_so_where_it_cannot_be_awaited():
    message = guard(0.1, routes=[OnlyAsync(), Abstain("no")]).invoke("Where?")
    assert message.content == "no"
    assert record(message)["steps"][1]["reason"] == "OnlyAsync has an aattempt only; call the guard with ainvoke"
    assert asyncio.run(guard(0.1, routes=OnlyAsync).ainvoke("Where?")).content == "awaited"


def having(**attributes):
    attributes = {"attempt": lambda self, situation: Outcome(True, "", "")} | attributes
    return type("Own", (), attributes)()


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (having(), "Own.decision is None; expected a text, the name that the guard reports"),
        (having(decision=""), "Own.decision is ''"),
        (having(decision="  "), "Own.decision is '  '"),
        (having(decision=3), "Own.decision is 3"),
        (having(decision="pass"), "Own.decision is 'pass', which is the name for sure answers"),
        (having(decision="x", below="0.5"), r"Own.below is '0.5'; expected a confidence in \[0, 1\]"),
        (having(decision="x", below=2), "Own.below is 2"),
        (having(decision="x", below=True), "Own.below is True"),
        (having(decision="x", below=math.nan), "Own.below is nan"),
        (having(decision="x", attempt=None), r"it has no method attempt\(situation\)"),
    ],
)
def test_one_that_cannot_work_is_refused_when_the_guard_is_built(route, message):
    with pytest.raises(ConfigurationError, match=message):
        guard(0.1, routes=[route])


@pytest.mark.parametrize(
    "outcome",
    [
        "a text",
        None,
        (True, "reason"),
        lambda: Outcome(True, "reason", None),
        lambda: Outcome("yes", "reason", "text"),
        lambda: Outcome(True, None, "text"),
        lambda: Outcome(True, "reason", "text", sources=[Document("x")]),
        lambda: Outcome(True, "reason", "text", sources="x"),
        lambda: Outcome(True, "reason", "text", answer="text"),
        lambda: Outcome(True, "reason", "text", review_id=3),
    ],
)
def test_one_that_gives_no_outcome_does_not_settle(outcome):
    route = having(decision="x", attempt=lambda self, _: outcome() if callable(outcome) else outcome)
    for call in (lambda asking: asking.invoke("Where?"), lambda asking: asyncio.run(asking.ainvoke("Where?"))):
        message = call(guard(0.1, routes=[route, Abstain("no")]))
        assert message.content == "no"
        assert record(message)["steps"][1]["reason"].startswith("RouteError: ")
        assert "Outcome" in record(message)["steps"][1]["reason"]
        if not callable(outcome):
            assert f"Own gave a {type(outcome).__name__}" in record(message)["steps"][1]["reason"]


def test_one_that_is_async_only_is_named_where_it_gives_no_outcome():
    async def aattempt(self, situation):
        return "text"

    asking = guard(0.1, routes=[type("Own", (), {"decision": "x", "aattempt": aattempt})(), Abstain("no")])
    assert "Own gave a str" in record(asyncio.run(asking.ainvoke("Where?")))["steps"][1]["reason"]


@pytest.mark.parametrize(
    ("methods", "hint"),
    [
        (["as_retriever"], "to look things up with it, write Retrieve(...)"),
        (["_get_relevant_documents"], "to look things up with it, write Retrieve(...)"),
        (["submit", "wait"], "to put answers into it, write HumanReview(queue=...)"),
        (["invoke"], "to ask it, write Escalate(...); to look things up with it, Retrieve(...)"),
        (["__call__"], "to let it decide, write HumanReview(...)"),
        (["submit"], "expected a list of routes, such as [Retrieve(retriever), Abstain()]"),
        (["wait"], "expected a list of routes, such as [Retrieve(retriever), Abstain()]"),
    ],
)
def test_what_is_no_route_is_answered_with_what_to_write(methods, hint):
    thing = type("Thing", (), dict.fromkeys(methods, print))()
    with pytest.raises(ConfigurationError) as raised:
        guard(0.1, routes=[thing])
    assert str(raised.value).endswith(f"it has no method attempt(situation); {hint}.")


@pytest.mark.parametrize("below", [0, 1, 0.0, 1.0])
def test_a_band_may_be_nothing_or_everything(below):
    route = having(decision="x", below=below, attempt=lambda self, _: Outcome(True, "r"))
    assert guard(0.1, routes=[route]).routes[0].below == below


def test_a_class_is_built_where_it_needs_nothing():
    class Free:
        decision = "free"

        def __init__(self, text="free", *more, **settings):
            self.text = text

        def attempt(self, situation):
            return Outcome(True, "reason", self.text)

    class Needy(Free):
        def __init__(self, place, text="free"):
            super().__init__(text)

    assert guard(0.1, routes=[Free]).invoke("Where?").content == "free"
    with pytest.raises(ConfigurationError, match=r"^Needy is a class; pass an instance: Needy\(place\)\.$"):
        guard(0.1, routes=[Needy])


def test_a_blank_question_is_none_of_its_business():
    assert record(guard(0.1, routes=[Consult()]).invoke(" "))["decision"] == "abstain"


def test_one_may_raise_in_the_place_of_answering():
    route = having(decision="x", attempt=lambda self, _: Outcome(True, "no", raises=True))
    with pytest.raises(LowConfidenceError) as raised:
        guard(0.1, routes=[route]).invoke("Where?")
    assert raised.value.decision.decision == "x"


def test_a_guard_that_is_escalated_to_may_have_one():
    outer = guard(0.1, routes=[Escalate(guard(0.2, routes=[Consult()]))])
    message = outer.invoke("Where?")
    assert (message.content, record(message)["decision"]) == ("Where? Please call us.", "escalate")
    assert record(message)["reason"].startswith("escalated: consult")


def test_metrics_count_it_as_other_or_by_its_name():
    for metrics, name in ((Metrics(), "other"), (Metrics(decisions=["consult"]), "consult")):
        metrics.answered(get_decision(guard(0.1, routes=[Consult()]).invoke("Where?")), 0.1)
        assert metrics.registry.get_sample_value("semgrad_decisions_total", {"decision": name}) == 1
        assert f'decision="{name}"' in metrics.text()[0].decode()


def test_traces_have_its_step_and_decision():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    guard(0.1, routes=[Consult()]).invoke("Where?", {"callbacks": [Tracing(provider)]})
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["semgrad.route"].attributes["semgrad.route"] == "consult"
    assert spans["semgrad.route"].attributes["semgrad.settled"]
    assert spans["chat"].events[0].attributes["gen_ai.evaluation.score.label"] == "consult"


def test_a_chain_of_a_user_s_own_is_not_taken_for_a_route_in_traces():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    inner = RunnableLambda(lambda _: [Document("x")], name="route")
    route = having(decision="x", attempt=lambda self, _: Outcome(True, "", str(inner.invoke({"route": "a secret"}))))
    guard(0.1, routes=[route]).invoke("Where?", {"callbacks": [Tracing(provider)]})
    routes = [span for span in exporter.get_finished_spans() if span.name == "semgrad.route"]
    assert [span.attributes["semgrad.route"] for span in routes] == ["x"]


def test_the_service_reports_its_decision():
    worker = Worker(guard(0.1, routes=[Abstain()]), name="m", first=[Consult()])
    (answer,) = worker.run([ChatJob(messages=({"role": "user", "content": "Where?"},))])
    assert (answer.text, answer.judgement.decision) == ("Where? Please call us.", "consult")
    (blank,) = worker.run([ChatJob(messages=({"role": "user", "content": "\u200b"},))])
    assert (blank.judgement.decision, blank.judgement.reason) == ("abstain", "the question is empty")


def test_a_service_refuses_one_that_cannot_work():
    with pytest.raises(ConfigurationError, match="is not a route"):
        Worker(guard(0.1, routes=[Abstain()]), name="m", first=["consult"])


def test_the_names_for_one_are_exported():
    for name in ("Answer", "Example", "Labeler", "Outcome", "Route", "Situation", "__version__"):
        assert name in semgrad_guard.__all__
    assert semgrad_guard.__version__ == "0.1.0"
    assert isinstance(as_routes(Inheriting)[0], Route)
