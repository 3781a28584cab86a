"""Nothing of a draft that is held back is in any byte that the service sends, and no text at all in logs and spans."""

import itertools
import json
import logging

import pytest
import torch
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers import context as hooks
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scripted import TOKENIZER, calling, profile, score_of, scripted
from starlette.testclient import TestClient

from semgrad_guard import HumanReview, Retrieve, SemGradGuard, SemGradScorer
from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.observability.runs import attach
from semgrad_guard.observability.tracing import Tracing
from semgrad_guard.review import ReviewQueue
from semgrad_guard.serving.app import application
from semgrad_guard.serving.local import LocalEngine
from semgrad_guard.serving.worker import Worker

QUESTION, DRAFT, PASSAGE, FAILURE = "Xanadu-question", "Xanadu-draft", "Xanadu-passage", "Xanadu-failure"
IDS = {"prompt_token_ids": [2, 40, 41, 42, 43, 44], "response_token_ids": [50, 51, 1]}


def told(failure=""):
    """A draft that says the same in every way there is."""
    logprob = {"token": DRAFT, "logprob": -1.0, "bytes": [], "top_logprobs": [{"token": DRAFT, "logprob": -1.0}]}
    scores = None if failure else score_of(0.3).model_dump(mode="json")
    return AIMessage(
        DRAFT,
        additional_kwargs={"reasoning_content": DRAFT},
        response_metadata={
            "semgrad": {"scores": scores, "failure": failure, "tool_calls": {}},
            "logprobs": {"content": [logprob]},
        },
    )


def broken(*given, **settings):
    raise ConnectionError(FAILURE + DRAFT)


class Broken:
    """A queue that fails."""

    submit = wait = await_ = broken


HELD_BACK = {
    "not sure": lambda: told(),
    "a call": lambda: calling((TOOL["function"]["name"], {DRAFT: DRAFT, "place": DRAFT}, 0.3), text=DRAFT),
    "scoring failed": lambda: told(f"scoring failed: OutOfMemoryError: {FAILURE} {DRAFT}"),
    "no memory": lambda: torch.OutOfMemoryError(f"{FAILURE} {DRAFT}"),
    "a fault": lambda: KeyError(f"{FAILURE} {DRAFT}"),
}
TOOL = {
    "type": "function",
    "function": {"name": "book", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}
FIRST = {
    "nothing": [],
    "passages": [Retrieve(RunnableLambda(lambda question: [Document(PASSAGE)]))],
    "a retriever that fails": [Retrieve(RunnableLambda(broken))],
    "a reviewer that fails": [HumanReview(broken)],
}


@pytest.fixture
def spans():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = list(hooks._configure_hooks)
    attach(Tracing(provider))
    yield exporter
    hooks._configure_hooks[:] = before


@pytest.fixture(params=["reviewed", "no review"])
def reviews(request, tmp_path):
    queue = ReviewQueue(f"sqlite:///{tmp_path / 'reviews.db'}")
    yield queue if request.param == "reviewed" else Broken()
    queue.close()


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST.keys())
@pytest.mark.parametrize("draft", HELD_BACK.values(), ids=HELD_BACK.keys())
def test_a_draft_that_is_held_back_is_nowhere(draft, first, reviews, spans, monkeypatch, caplog):
    monkeypatch.setattr(TOKENIZER, "chat_template", TOKENIZER.chat_template + "{{ tools }}")
    fitted, metrics = profile(), Metrics()
    fitted = fitted.model_copy(update={"tool_call": fitted.answer, "argument": fitted.answer})
    guard = SemGradGuard(scripted(draft()), profile=fitted)
    worker = Worker(guard, name="tiny", first=first, reviews=reviews)
    ways = itertools.product(("abstain", "review"), (False, True))
    sent = []
    with caplog.at_level(logging.DEBUG), TestClient(application(LocalEngine(worker), metrics=metrics)) as client:
        for policy, stream in ways:
            asked = {
                "model": "tiny",
                "messages": [{"role": "user", "content": QUESTION}],
                "n": 2,
                "logprobs": True,
                "top_logprobs": 1,
                "tools": [TOOL],
                "stream": stream,
                "semgrad": {"policy": policy},
            }
            answer = client.post("/v1/chat/completions", json=asked)
            sent.append(f"{answer.headers} {answer.text}")
        scrape = client.get("/metrics").text
    assert len(sent) == 4
    assert DRAFT not in "".join(sent)
    assert FAILURE not in "".join(sent)
    assert "Xanadu" not in scrape
    seen = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "semgrad" in seen
    assert "Xanadu" not in seen
    assert "Xanadu" not in logged(caplog)


def logged(caplog):
    """Give all that was logged, tracebacks as well; lines of code in these are none of ours."""
    return "".join(f"{record.getMessage()} {record.exc_info and record.exc_info[1]!r}" for record in caplog.records)


@pytest.mark.parametrize("tokens", [False, True])
def test_scoring_tells_the_kind_of_a_failure_only(tokens, monkeypatch, caplog):
    guard = SemGradGuard(scripted(0.9), profile=profile())
    with caplog.at_level(logging.DEBUG), TestClient(application(LocalEngine(Worker(guard, name="tiny")))) as client:
        monkeypatch.setattr(SemGradScorer, "attribute" if tokens else "score", broken)
        answer = client.post("/v1/score", json={"model": "tiny", "tokens": tokens, **IDS})
    assert answer.status_code == 200
    assert ("ConnectionError" in answer.json()["semgrad"]["reason"]) is not tokens
    assert "Xanadu" not in answer.text + logged(caplog)
    assert "ConnectionError" in caplog.text


def test_a_failure_in_the_middle_of_a_stream_tells_nothing(caplog):
    guard = SemGradGuard(scripted(KeyError(FAILURE)), profile=profile())
    asked = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    with caplog.at_level(logging.DEBUG), TestClient(application(LocalEngine(Worker(guard, name="tiny")))) as client:
        answer = client.post("/v1/chat/completions", json=asked | {"semgrad": {"stream": "verdict"}})
    assert answer.status_code == 500
    assert "Xanadu" not in answer.text + logged(caplog)


def test_requests_that_are_refused_are_not_told_again(caplog):
    guard = SemGradGuard(scripted(0.9), profile=profile())
    turn = {"role": "user", "content": QUESTION}
    bad = [
        {"temperature": QUESTION},
        {"messages": [{"role": QUESTION, "content": QUESTION}]},
        {"messages": [{"role": "user", "content": [{"type": QUESTION}]}]},
        {"stop": [QUESTION] * 9},
        {"tools": [TOOL], "tool_choice": QUESTION},
        {"semgrad": {"policy": QUESTION}},
        {"messages": [turn | {"content": QUESTION * 1000}]},
    ]
    with caplog.at_level(logging.DEBUG), TestClient(application(LocalEngine(Worker(guard, name="tiny")))) as client:
        for fields in bad:
            answer = client.post("/v1/chat/completions", json={"model": "tiny", "messages": [turn]} | fields)
            assert (answer.status_code, QUESTION in json.dumps(answer.json())) == (400, False), fields
    assert "Xanadu" not in logged(caplog)
