"""The HTTP application over a scripted model: policies, shapes of answers and errors, and who gets in."""

import asyncio
import json
import logging
import math
from contextlib import asynccontextmanager

import httpx
import pytest
import torch
from scripted import TOKENIZER, calling, profile, score, score_of, scripted
from starlette.testclient import TestClient

from semgrad_guard import SemGradGuard, SemGradScorer
from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.review import ReviewQueue
from semgrad_guard.routing.ladder import Outcome
from semgrad_guard.routing.routes import DEFAULT_PENDING
from semgrad_guard.serving.app import OPEN_PATHS, application
from semgrad_guard.serving.local import LocalEngine
from semgrad_guard.serving.server import server
from semgrad_guard.serving.service import Terms
from semgrad_guard.serving.work import Limits
from semgrad_guard.serving.worker import Worker
from semgrad_guard.web.keys import ApiKeys

QUESTION = {"role": "user", "content": "Why canary-7f3a?"}
KEY = "0123456789abcdef-first"
TOOL = {
    "type": "function",
    "function": {"name": "book", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}


def worker(*answers, **settings):
    fitted = profile()
    fitted = fitted.model_copy(update={"tool_call": fitted.answer, "argument": fitted.answer})
    return Worker(SemGradGuard(scripted(*answers), profile=fitted), name="tiny", **settings)


def serving(*answers, terms=None, metrics=None, queue_size=256, **settings):
    engine = LocalEngine(worker(*answers, **settings), max_wait=0.0, queue_size=queue_size)
    return TestClient(application(engine, terms, metrics))


def chat(client, **fields):
    return client.post("/v1/chat/completions", json={"model": "tiny", "messages": [QUESTION], **fields})


def events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_sure_answer_goes_out_with_its_record_beside_it_and_in_logprobs():
    with serving(0.9) as client:
        answer = chat(client).json()
    (choice,) = answer["choices"]
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny")
    assert choice["message"]["content"] == "draft"
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] == {"content": None, "refusal": None, "semgrad": choice["semgrad"]}
    record = choice["semgrad"]
    assert record["verdict"]["confidence"] == pytest.approx(0.9)
    assert record["score"] == pytest.approx(1 / 9)
    expected = {"decision": "pass", "answered": True, "cause": None, "review_id": None}
    assert {name: record[name] for name in expected} == expected
    expected = {"passed": True, "calibrated": True, "threshold": 0.8, "method": "fused"}
    assert {name: record["verdict"][name] for name in expected} == expected
    assert record["verdict"]["scores"]["semgrad"] == record["score"]
    assert record["version"]


@pytest.mark.parametrize(
    ("asked", "text", "decision"),
    [
        ({}, "I am not sure enough to answer that.", "abstain"),
        ({"message": "Pass."}, "Pass.", "abstain"),
        ({"policy": "annotate"}, "draft", "annotate"),
        ({"threshold": 0.2}, "draft", "pass"),
        ({"threshold": 0.9}, "I am not sure enough to answer that.", "abstain"),
    ],
)
def test_a_request_says_what_becomes_of_an_unsure_answer(asked, text, decision):
    with serving(0.3) as client:
        (choice,) = chat(client, semgrad=asked).json()["choices"]
    assert (choice["message"]["content"], choice["semgrad"]["decision"]) == (text, decision)


def test_the_operator_sets_the_default():
    with serving(0.3, terms=Terms(policy="annotate")) as client:
        assert chat(client).json()["choices"][0]["message"]["content"] == "draft"
        text = chat(client, semgrad={"policy": "abstain"}).json()["choices"][0]["message"]["content"]
    assert text == "I am not sure enough to answer that."


@pytest.mark.parametrize(
    "asked",
    [{"policy": "annotate"}, {"policy": "review"}, {"threshold": 0.5}, {"stream": "verdict"}],
)
def test_where_drafts_are_not_to_be_seen_no_request_gets_at_them(asked):
    terms = Terms(policies=("abstain",))
    with serving(0.6, terms=terms) as client:
        refused = chat(client, semgrad=asked, stream="stream" in asked)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "policy")
        assert chat(client, semgrad={"threshold": 0.9}).status_code == 200


def test_answers_that_failed_never_pass_and_say_why():
    for answer in (("draft", None, "scoring failed: OutOfMemoryError: full"), torch.OutOfMemoryError("full")):
        with serving(answer) as client:
            for asked in ({}, {"threshold": 0.0}):
                (choice,) = chat(client, semgrad=asked).json()["choices"]
                assert choice["semgrad"]["decision"] == "abstain"
                assert "OutOfMemoryError" in choice["semgrad"]["reason"]
                assert choice["message"]["content"] == "I am not sure enough to answer that."


def test_unsure_answers_wait_for_a_human(tmp_path):
    queue = ReviewQueue(f"sqlite:///{tmp_path}/reviews.db")
    with serving(0.3, reviews=queue) as client:
        (choice,) = chat(client, semgrad={"policy": "review"}).json()["choices"]
        item = queue.get(choice["semgrad"]["review_id"])
        assert (choice["message"]["content"], choice["semgrad"]["decision"]) == (DEFAULT_PENDING, "review")
        assert (item.request.question, item.request.draft) == (QUESTION["content"], "draft")
        queue.decide(item.id, "approve", "ann")
        assert chat(client, semgrad={"policy": "review"}).json()["choices"][0]["message"]["content"] == "draft"
    queue.close()


def test_without_a_queue_nothing_can_be_reviewed():
    with serving(0.3) as client:
        refused = chat(client, semgrad={"policy": "review"})
    assert refused.status_code == 400
    assert "review" in refused.json()["error"]["message"]


def test_routes_before_the_policy_are_tried_first():
    class Knows:
        decision, below = "retrieve", None

        def attempt(self, situation):
            return Outcome(True, "found", "looked up")

        aattempt = None

    with serving(0.3, first=[Knows()]) as client:
        (choice,) = chat(client).json()["choices"]
    assert (choice["message"]["content"], choice["semgrad"]["decision"]) == ("looked up", "retrieve")


def test_tool_calls_have_their_confidence(monkeypatch):
    with serving(calling(("book", {"place": "Rome"}, 0.9)), calling(("book", {"place": "Rome"}, 0.2))) as client:
        monkeypatch.setattr(TOKENIZER, "chat_template", TOKENIZER.chat_template + "{{ tools }}")
        (sure,) = chat(client, tools=[TOOL]).json()["choices"]
        (unsure,) = chat(client, tools=[TOOL]).json()["choices"]
    (call,) = sure["message"]["tool_calls"]
    assert (sure["finish_reason"], sure["message"]["content"]) == ("tool_calls", None)
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("book", {"place": "Rome"})
    record = sure["semgrad"]["tool_calls"][call["id"]]
    assert (record["name"], record["confidence"]) == ("book", pytest.approx(0.9))
    assert record["arguments"]["place"] == pytest.approx(0.45)
    assert unsure["message"]["tool_calls"] is None
    assert unsure["message"]["content"] == "I am not sure enough to answer that."


def test_half_a_surrogate_pair_in_a_call_breaks_nothing(monkeypatch):
    with serving(calling(("book", {"place": "\ud800"}, 0.9))) as client:
        monkeypatch.setattr(TOKENIZER, "chat_template", TOKENIZER.chat_template + "{{ tools }}")
        (call,) = chat(client, tools=[TOOL]).json()["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"place": "\ud800"}


def test_several_choices_are_rows_of_their_own():
    with serving(0.9, 0.3) as client:
        answer = chat(client, n=2).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert {choice["semgrad"]["decision"] for choice in answer["choices"]} == {"pass", "abstain"}


def test_a_stream_is_of_what_was_decided():
    with serving(0.3) as client:
        chunks = events(chat(client, stream=True, stream_options={"include_usage": True}))
    assert "draft" not in json.dumps(chunks)
    *pieces, last, usage = chunks
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in pieces)
    assert text == "I am not sure enough to answer that."
    assert (last["choices"][0]["finish_reason"], last["choices"][0]["delta"]) == ("stop", {})
    assert last["choices"][0]["semgrad"] == last["choices"][0]["logprobs"]["semgrad"]
    assert all("semgrad" not in chunk["choices"][0] for chunk in pieces)
    assert (usage["choices"], "total_tokens" in usage["usage"]) == ([], True)


def test_no_text_ends_an_event_or_begins_another():
    text = 'a\n\ndata: [DONE]\r\n\rdata: {"choices": []}\u2028\x85'
    with serving((text, score_of(0.9), "")) as client:
        for asked in ({}, {"semgrad": {"stream": "verdict"}}):
            chunks = events(chat(client, stream=True, **asked))
            assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text


def test_a_stream_of_the_draft_ends_with_the_verdict():
    with serving(0.3) as client:
        chunks = events(chat(client, stream=True, semgrad={"stream": "verdict"}))
        annotated = events(chat(client, stream=True, semgrad={"stream": "verdict", "policy": "annotate"}))
    texts = [[chunk["choices"][0]["delta"].get("content", "") for chunk in found] for found in (chunks, annotated)]
    assert texts[0] == ["", "draft", "\n\nI am not sure enough to answer that.", ""]
    assert texts[1] == ["", "draft", ""]
    assert chunks[-1]["choices"][0]["semgrad"]["decision"] == "abstain"


def test_unscored_answers_are_loud_and_never_pass():
    guard = SemGradGuard(scripted(("draft", None, {"kind": "scoring_off", "text": "off"})), profile=profile())
    guard.llm.scored = False
    with TestClient(application(LocalEngine(Worker(guard, name="tiny")))) as client:
        assert client.get("/v1/models").json()["data"][0]["semgrad"]["scored"] is False
        (choice,) = chat(client).json()["choices"]
        assert choice["message"]["content"] == "draft"
        record = choice["semgrad"]
        assert (record["decision"], record["answered"], record["score"]) == ("annotate", True, None)
        verdict = record["verdict"]
        assert (verdict["passed"], verdict["cause"], verdict["confidence"]) == (False, "scoring_off", None)
        asked = {"model": "tiny", "prompt": "Why?", "response": "So."}
        assert client.post("/v1/score", json=asked).status_code == 400


def test_models_are_told_and_others_are_not_served():
    with serving(0.9) as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["id"], model["semgrad"]["threshold"]) == ("tiny", 0.8)
        assert model["semgrad"]["policies"] == ["abstain", "annotate"]
        assert client.get("/v1/models/tiny").json() == model
        for refused in (client.get("/v1/models/org/other"), chat(client, model="other")):
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_scores_of_given_ids_are_those_of_the_scorer():
    guard = SemGradGuard(scripted(), profile=profile())
    ids = {"prompt_token_ids": [2, 40, 41, 42, 43, 44], "response_token_ids": [50, 51, 1]}
    with TestClient(application(LocalEngine(Worker(guard, name="tiny")))) as client:
        answer = client.post("/v1/score", json={"model": "tiny", "tokens": True, **ids}).json()
    (expected,) = guard.llm.scorer.score_ids([ids["prompt_token_ids"]], [ids["response_token_ids"]])
    assert answer["semgrad"]["verdict"]["scores"]["semgrad"] == pytest.approx(expected.semgrad, rel=1e-5)
    assert [token["token"] for token in answer["tokens"]] == ids["response_token_ids"]
    assert sum(token["share"] for token in answer["tokens"]) == pytest.approx(1, rel=1e-3)
    assert answer["usage"]["prompt_tokens"] == 6


def test_a_score_that_fails_is_not_sure_and_says_why(monkeypatch):
    def full(*args, **settings):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(SemGradScorer, "score", full)
    ids = {"prompt_token_ids": [2, 40, 41, 42, 43, 44], "response_token_ids": [50, 51, 1]}
    with serving() as client:
        asked = {"model": "tiny", **ids, "semgrad": {"threshold": 0.0}}
        answer = client.post("/v1/score", json=asked).json()
    assert (answer["semgrad"]["decision"], answer["semgrad"]["verdict"]["confidence"]) == ("abstain", 0.0)
    assert "OutOfMemoryError" in answer["semgrad"]["reason"]


def test_caps_in_tokens():
    with serving(0.9, limits=Limits(prompt_tokens=40, response_tokens=8)) as client:
        long = chat(client, messages=[{"role": "user", "content": "long " * 20}])
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert chat(client, messages=[{"role": "user", "content": "Why?"}], max_tokens=9).status_code == 400
        assert chat(client, messages=[{"role": "user", "content": "Why?"}], max_tokens=8).status_code == 200


class Slow(Worker):
    """Takes its time."""

    def run(self, jobs, callers=None):
        import time

        end = time.monotonic() + 2
        while time.monotonic() < end and not all(caller.gone() for caller in callers):
            time.sleep(0.005)
        self.ended = [caller.gone() for caller in callers]
        return super().run(jobs, callers)


def slow():
    return Slow(SemGradGuard(scripted(0.9), profile=profile()), name="tiny")


@pytest.mark.parametrize("terms", [Terms(deadline=0.1), Terms()])
def test_a_deadline_is_kept(terms):
    asked = {} if terms.deadline < 1 else {"semgrad": {"timeout": 0.1}}
    found = slow()
    with TestClient(application(LocalEngine(found), terms)) as client:
        for stream in (False, True):
            late = chat(client, stream=stream, **asked)
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert found.ended == [True]


@asynccontextmanager
async def running(engine, app):
    await engine.start()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        yield client
    await engine.stop(0.0)


async def test_too_many_are_told_when_to_come_back():
    metrics = Metrics()
    engine = LocalEngine(slow(), queue_size=1, max_wait=0.0)
    asked = {"model": "tiny", "messages": [QUESTION], "semgrad": {"timeout": 0.5}}
    async with running(engine, application(engine, metrics=metrics)) as client:
        found = await asyncio.gather(*(client.post("/v1/chat/completions", json=asked) for _ in range(8)))
    refused = [answer for answer in found if answer.status_code == 429]
    assert refused
    assert {answer.status_code for answer in found} == {429, 504}
    assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
    assert int(refused[0].headers["Retry-After"]) >= 1
    assert f'semgrad_failures_total{{kind="overloaded"}} {len(refused)}.0' in metrics.text()[0].decode()


class Tidy(LocalEngine):
    """Takes a while to clear up after a job that nobody waits for any more."""

    cleared = False

    async def answer(self, job):
        try:
            return await super().answer(job)
        finally:
            await asyncio.sleep(0.1)
            self.cleared = True


async def test_a_job_that_was_cancelled_has_ended_when_its_client_is_told():
    engine = Tidy(slow(), max_wait=0.0)
    asked = {"model": "tiny", "messages": [QUESTION], "semgrad": {"timeout": 0.1}}
    async with running(engine, application(engine)) as client:
        late = await client.post("/v1/chat/completions", json=asked)
        assert (late.status_code, engine.cleared) == (504, True)


async def test_a_client_that_goes_ends_its_job():
    found = slow()
    engine = LocalEngine(found, max_wait=0.0)
    app = application(engine)
    await engine.start()
    body = json.dumps({"model": "tiny", "messages": [QUESTION]}).encode()
    said = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        if len(said) == 1:
            await asyncio.sleep(0.1)
        return said.pop(0)

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": headers,
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 499
    await engine.stop(1.0)
    assert found.ended == [True]


async def test_a_service_that_is_stopped_says_so():
    engine = LocalEngine(worker(0.9))
    async with running(engine, application(engine)) as client:
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        await engine.stop(0.0)
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "not ready"})
        assert (await client.get("/healthz")).status_code == 200
        refused = await client.post("/v1/chat/completions", json={"model": "tiny", "messages": [QUESTION]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")


def test_a_fault_tells_clients_an_id_and_the_log_no_words(caplog):
    broken = KeyError("canary-7f3a of the draft")
    with serving(broken) as client, caplog.at_level(logging.DEBUG):
        failed = chat(client)
    error = failed.json()["error"]
    assert (failed.status_code, error["code"], error["type"]) == (500, "internal_error", "server_error")
    assert "canary" not in failed.text
    assert "KeyError" in caplog.text
    assert error["message"].split()[-1].rstrip(".") in caplog.text
    assert "canary" not in caplog.text


def test_prompts_and_answers_are_never_logged(caplog):
    answers = [("canary-draft", score_of(0.3), ""), ("canary-draft", None, "scoring failed: RuntimeError")]
    with caplog.at_level(logging.DEBUG), serving(*answers) as client:
        for asked in ({}, {"semgrad": {"policy": "annotate"}}, {"temperature": 9}, {"stream": True}):
            chat(client, **asked)
    assert "canary" not in caplog.text


def test_metrics_count_answers_and_failures():
    with serving(0.9, 0.3, KeyError("x"), metrics=Metrics()) as client:
        for _ in range(3):
            chat(client)
        scrape = client.get("/metrics")
    assert scrape.headers["Content-Type"].startswith("text/plain")
    for line in ('decisions_total{decision="pass"} 1.0', 'decisions_total{decision="abstain"} 1.0'):
        assert line in scrape.text
    assert 'failures_total{kind="error"} 1.0' in scrape.text


@pytest.mark.parametrize("streamed", [{}, {"stream": True}, {"stream": True, "semgrad": {"stream": "verdict"}}])
def test_every_answer_is_counted_once_however_it_goes_out(streamed):
    with serving(0.9, 0.3, metrics=Metrics()) as client:
        for _ in range(2):
            assert chat(client, **streamed).status_code == 200
        scrape = client.get("/metrics").text
    for line in (
        'semgrad_decisions_total{decision="pass"} 1.0',
        'semgrad_decisions_total{decision="abstain"} 1.0',
        "semgrad_confidence_count 2.0",
        "semgrad_answer_seconds_count 2.0",
        'semgrad_failures_total{kind="error"} 0.0',
    ):
        assert line in scrape.splitlines()


def test_a_stream_that_fails_is_counted_as_a_failure():
    with serving(0.9, KeyError("x"), metrics=Metrics()) as client:
        for _ in range(2):
            chat(client, stream=True, semgrad={"stream": "verdict"})
        scrape = client.get("/metrics").text.splitlines()
    assert 'semgrad_failures_total{kind="error"} 1.0' in scrape
    assert 'semgrad_decisions_total{decision="pass"} 1.0' in scrape


def test_without_a_key_every_route_but_the_open_ones_is_shut():
    engine = LocalEngine(worker(0.9))
    app = application(engine, metrics=Metrics())
    guarded = server(app, engine, keys=ApiKeys([KEY])).config.app
    with TestClient(guarded, base_url="http://127.0.0.1") as client:
        swept = [(method, route.path) for route in app.routes for method in route.methods]
        assert len(swept) > 8
        for method, path in [*swept, ("GET", "/unknown")]:
            answer = client.request(method, path.replace("{model:path}", "tiny"))
            assert (answer.status_code == 200) if path in OPEN_PATHS else (answer.status_code == 401), path
        authorized = client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        assert authorized.status_code == 200


def test_unknown_paths_and_methods_have_the_shape_too():
    with serving(0.9) as client:
        assert client.get("/v2").json()["error"]["code"] == "not_found"
        wrong = client.get("/v1/chat/completions")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
        assert wrong.headers["Allow"] == "POST"


def test_the_document_tells_of_the_statuses_there_are():
    document = application(LocalEngine(worker(0.9)), metrics=Metrics()).openapi()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            found = set(operation["responses"])
            assert "422" not in found
            if path not in OPEN_PATHS:
                assert {"200", "400", "401", "413"} <= found
    statuses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"404", "429", "500", "503", "504"} <= set(statuses)
    assert statuses["429"]["content"]["application/json"]["schema"]["$ref"].endswith("/Failed")


@pytest.mark.parametrize("stream", [False, True])
def test_a_score_that_is_no_number_is_null_and_the_cause_says_so(stream):
    with serving(("draft", score(math.nan), "")) as client:
        answer = chat(client, stream=stream)
    body = events(answer)[-1] if stream else answer.json()
    assert "NaN" not in answer.text
    record = body["choices"][0]["semgrad"]
    assert (record["decision"], record["answered"], record["cause"]) == ("abstain", False, "invalid_score")
    assert (record["score"], record["verdict"]["scores"]["semgrad"]) == (None, None)
