"""Logs: what operators read in them, and that no text of anybody's gets there."""

import io
import json
import logging
import sys
from datetime import datetime

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from opentelemetry.sdk.trace import TracerProvider
from scripted import MODEL, TOKENIZER, failure_of, profile, score_of, scripted

from semgrad_guard import Abstain, ChatSemGrad, Escalate, HumanReview, Raise, Retrieve, SemGradGuard
from semgrad_guard.calibration.labels import tolerant
from semgrad_guard.errors import (
    ConfigurationError,
    LowConfidenceError,
    PromptTooLongError,
    ReviewConflictError,
    described,
)
from semgrad_guard.observability.logs import configure_logging
from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.observability.runs import RunTree
from semgrad_guard.observability.tracing import Tracing
from semgrad_guard.review import ReviewQueue
from semgrad_guard.scoring.scorer import SemGradScorer

CANARY = "Xanadu"


@pytest.fixture
def restored():
    """Leave logging as it was."""
    names = [None, "semgrad_guard", "also.me"]
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    handlers = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = handlers
    for logger, level in before:
        logger.setLevel(level)


@pytest.fixture
def lines(restored):
    stream = io.StringIO()
    configure_logging(level="DEBUG", stream=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def logger(name="semgrad_guard.tests"):
    return logging.getLogger(name)


def failing(text=CANARY):
    raise ValueError(text)


def test_a_line_is_one_json_object(lines):
    logger().info("All %s of\nthem, Ü", 3, extra={"rows": 8, "odd": {1}, "_of_a_library": 1})
    (line,) = lines()
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "INFO",
        "logger": "semgrad_guard.tests",
        "message": "All 3 of\nthem, Ü",
        "rows": 8,
        "odd": "{1}",
    }


@pytest.mark.parametrize("json_lines", [True, False])
def test_exceptions_are_told_by_type_and_place(restored, json_lines):
    """Also where another handler has formatted them before, as that of these tests has."""
    stream = io.StringIO()
    configure_logging(json=json_lines, stream=stream)
    try:
        failing()
    except ValueError:
        logger().exception("It failed")
    told = stream.getvalue()
    assert "It failed" in told
    assert "ValueError > test_observability_logs.py:" in told
    assert "in failing" in told
    assert CANARY not in told


def test_lines_within_a_span_name_it(lines):
    with TracerProvider().get_tracer("tests").start_as_current_span("work") as span:
        logger().warning("inside")
    logger().warning("outside")
    inside, outside = lines()
    assert inside["trace_id"] == format(span.get_span_context().trace_id, "032x")
    assert inside["span_id"] == format(span.get_span_context().span_id, "016x")
    assert "trace_id" not in outside


def test_without_opentelemetry_there_is_no_span(lines, monkeypatch):
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    logger().warning("anything")
    assert "trace_id" not in lines()[0]


def test_levels(restored):
    stream = io.StringIO()
    configure_logging(level="INFO", also=["also.me"], stream=stream)
    configure_logging(level="INFO", also=["also.me"], stream=stream)  # again, it tells nothing twice
    for name in ("semgrad_guard.tests", "also.me", "somebody.else"):
        logger(name).debug("debug")
        logger(name).info("info")
        logger(name).warning("warning")
    told = [(line["logger"], line["level"]) for line in map(json.loads, stream.getvalue().splitlines())]
    assert told == [
        ("semgrad_guard.tests", "INFO"),
        ("semgrad_guard.tests", "WARNING"),
        ("also.me", "INFO"),
        ("also.me", "WARNING"),
        ("somebody.else", "WARNING"),
    ]


def test_the_library_itself_is_silent_until_asked():
    assert [type(handler) for handler in logging.getLogger("semgrad_guard").handlers] == [logging.NullHandler]
    assert logging.getLogger("semgrad_guard").level == logging.NOTSET


def test_errors_described():
    assert described(PromptTooLongError("The prompt has 9 tokens.")) == "PromptTooLongError: The prompt has 9 tokens."
    assert described(ReviewConflictError("It is decided.")) == "ReviewConflictError: It is decided."
    assert described(ConfigurationError(CANARY)) == "ConfigurationError"
    with pytest.raises(ValueError, match=CANARY) as caught:
        failing()
    assert described(caught.value).endswith(" in failing")
    assert CANARY not in described(caught.value)


def saying(text, confidence, failure=""):
    record = {"scores": score_of(confidence).model_dump(mode="json"), "failure": failure_of(failure), "tool_calls": {}}
    return AIMessage(text, response_metadata={"semgrad": record})


def guard(*answers, **settings):
    return SemGradGuard(scripted(*answers), profile=profile(0.8), **settings)


def passes():
    guard(saying(CANARY, 0.9)).invoke(CANARY)


def routes():
    broken = Retrieve(RunnableLambda(lambda question: failing(question)))
    empty = Retrieve(RunnableLambda(lambda question: [Document(CANARY)]))
    escalate = Escalate(RunnableLambda(lambda messages: failing(str(messages))))
    reviewed = HumanReview(lambda request: failing(request.question + request.draft))
    odd = HumanReview(lambda request: CANARY)
    asked = guard(saying(CANARY, 0.3), routes=[broken, empty, escalate, reviewed, odd, Abstain()])
    asked.invoke(CANARY)
    list(asked.stream(CANARY))


async def routes_awaited():
    broken = Retrieve(RunnableLambda(lambda question: failing(question)))
    await guard(saying(CANARY, 0.3), routes=[broken, Abstain()]).ainvoke(CANARY)


def no_answer():
    guard(RuntimeError(CANARY)).invoke(CANARY)
    guard(PromptTooLongError("The prompt has 9 tokens.")).invoke(CANARY)


def raising():
    with pytest.raises(LowConfidenceError):
        guard(saying(CANARY, 0.3), routes=[Raise()]).invoke(CANARY)


def scoring():
    def fail(*given, **settings):
        raise RuntimeError(CANARY)

    chat = ChatSemGrad.from_model(MODEL, TOKENIZER, token_position=3, generation={"max_new_tokens": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemGradScorer, "score", fail)
        chat.invoke(CANARY)
        chat.batch([CANARY, CANARY])


def labels():
    assert tolerant(lambda question, answer, right: failing(question))(CANARY, CANARY, [CANARY]) is None


def handlers():
    class Broken(RunTree):
        def began(self, parent, start):
            failing(str(start.given))

        def ended(self, run, id_, given, output, error):
            failing(str(output))

        def decided(self, run, decision):
            failing(str(decision))

    guard(saying(CANARY, 0.3)).invoke(CANARY, {"callbacks": [Broken(), Tracing()]})


def metrics():
    watching = Metrics()
    watching.watch_reviews(failing)
    watching.watch_queue(failing, failing)
    watching.text()


CASES = [passes, routes, no_answer, raising, scoring, labels, handlers, metrics]


@pytest.fixture
def everything(restored, monkeypatch):
    """Collect every record of every logger, at every level, as any formatter might show it."""
    found = []

    class Collector(logging.Handler):
        def emit(self, record):
            found.append(logging.Formatter("%(name)s %(message)s").format(record) + repr(vars(record)))

    root = logging.getLogger()
    root.addHandler(Collector())
    root.setLevel(logging.DEBUG)
    return found


@pytest.mark.parametrize("case", CASES)
def test_no_text_is_in_any_log(everything, case):
    case()
    assert [told for told in everything if CANARY in told] == []
    assert bool(everything) == (case not in (passes, raising))  # or nothing would have been tested


async def test_no_text_is_in_any_log_awaited(everything):
    await routes_awaited()
    assert [told for told in everything if CANARY in told] == []
    assert any("The route retrieve failed: ValueError > " in told for told in everything)


def test_no_text_of_reviews_is_in_any_log(everything, tmp_path):
    queue = ReviewQueue(f"sqlite:///{tmp_path / 'reviews.db'}")
    asked = guard(saying(CANARY, 0.3), routes=[HumanReview(queue=queue)])
    id_ = asked.invoke(CANARY).response_metadata["semgrad_decision"]["review_id"]
    assert queue.items(contains=CANARY)
    queue.claim("ann")
    queue.decide(id_, {"decision": "edit", "text": CANARY}, "ann")
    with pytest.raises(ReviewConflictError):
        queue.decide(id_, "approve", "ann")
    assert queue.get(id_).text == CANARY
    queue.close()
    (tmp_path / "reviews.db").write_bytes(b"no database " * 1000)
    assert asked.invoke(CANARY).response_metadata["semgrad_decision"]["decision"] == "abstain"
    assert any("The route review failed: ReviewError: " in told for told in everything)
    assert [told for told in everything if CANARY in told] == []
