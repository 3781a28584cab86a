"""What clients may ask for: everything else is refused with a message that says what and where."""

import json

import pytest
from scripted import profile, scripted
from starlette.testclient import TestClient

from semgrad_guard import SemGradGuard
from semgrad_guard.serving.app import application
from semgrad_guard.serving.local import LocalEngine
from semgrad_guard.serving.worker import Worker

QUESTION = {"role": "user", "content": "Why?"}
TOOL = {"type": "function", "function": {"name": "book", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "book", "arguments": "{}"}}


@pytest.fixture(scope="module")
def client():
    guard = SemGradGuard(scripted(0.9), profile=profile())
    with TestClient(application(LocalEngine(Worker(guard, name="tiny"), max_wait=0.0))) as found:
        yield found


def ask(client, path="/v1/chat/completions", **fields):
    return client.post(path, json={"model": "tiny", **({"messages": [QUESTION]} if "chat" in path else {}), **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        {"temperature": 2, "top_p": 0.0, "seed": -3, "stop": ["a", "\n"], "n": 1, "max_tokens": 5},
        {"max_completion_tokens": 5, "max_tokens": 5, "stop": "x", "user": "me", "metadata": {"a": "b"}},
        {"response_format": {"type": "text"}, "modalities": ["text"], "store": False, "service_tier": "auto"},
        {"tools": [TOOL], "tool_choice": "none"},
        {"messages": [{"role": "developer", "content": "Be brief."}, QUESTION]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}]}]},
        {"messages": [QUESTION, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                      {"role": "tool", "content": "so", "tool_call_id": "1"}]},
        {"messages": [QUESTION, {"role": "assistant", "content": "So."}, QUESTION]},
        {"logprobs": False, "top_logprobs": None, "stream": False, "stream_options": None, "tool_choice": None},
        {"semgrad": {}},
    ],
)  # fmt: skip
def test_accepted(client, fields):
    answer = ask(client, **fields)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": "x" * 101}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": []}, "tools"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "other"),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": True}}]}, "strict"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "human message"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "x" * 200_001}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0"),
        ({"messages": [QUESTION] * 257}, "messages"),
        ({"messages": [QUESTION, {"role": "assistant", "content": None}]}, "content or tool_calls"),
        ({"messages": [QUESTION, {"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "book", "arguments": "{"}}]}]}, "no JSON"),
        ({"semgrad": {"policy": "trust"}}, "semgrad.policy"),
        ({"semgrad": {"threshold": 1.5}}, "semgrad.threshold"),
        ({"semgrad": {"timeout": 0}}, "semgrad.timeout"),
        ({"semgrad": {"stream": "verdict"}}, "stream: true"),
        ({"semgrad": {"stream": "verdict"}, "stream": True, "n": 2}, "n: 1"),
        ({"semgrad": {"other": 1}}, "semgrad.other"),
        ({"semgrad": None}, "semgrad"),
        ({"model": ""}, "model"),
    ],
)  # fmt: skip
def test_refused(client, fields, place):
    answer = ask(client, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert place in error["message"]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"response": "So."}, "one of messages"),
        ({"prompt": "a", "prompt_token_ids": [1], "response": "So."}, "one of messages"),
        ({"prompt": "a"}, "one of response"),
        ({"prompt": "a", "response": "b", "response_token_ids": [1]}, "one of response"),
        ({"prompt": "", "response": "b"}, "prompt"),
        ({"prompt": "some text", "response": " "}, "empty"),
        ({"prompt_token_ids": [-1], "response_token_ids": [1]}, "prompt_token_ids"),
        ({"prompt_token_ids": [5] * 9, "response_token_ids": [99_999]}, "vocabulary"),
        ({"prompt_token_ids": [5] * 9, "response_token_ids": []}, "response_token_ids"),
        ({"prompt_token_ids": [5, 6], "response_token_ids": [1]}, "give all of it"),
        ({"prompt_token_ids": [5] * 4000, "response_token_ids": [1]}, "context"),
        ({"prompt_token_ids": [5] * 5000, "response_token_ids": [1]}, "4096"),
        ({"prompt_token_ids": [5] * 9, "response_token_ids": [7] * 257, "tokens": True}, "256"),
        ({"prompt": "a" * 9, "response": "b", "tokens": "yes"}, "tokens"),
    ],
)
def test_scores_refused(client, fields, place):
    answer = ask(client, "/v1/score", **fields)
    assert answer.status_code == 400
    assert place in answer.json()["error"]["message"]


@pytest.mark.parametrize("depth", [40, 200, 900, 30_000])
def test_deeply_nested_values_are_refused(client, depth):
    nest = '{"a":' * depth + "1" + "}" * depth
    head = '{"model": "tiny", "messages": [{"role": "user", "content": "x"}'
    tool = head + '], "tools": [{"type": "function", "function": {"name": "f", "parameters": ' + nest + "}}]}"
    call = json.dumps({"name": "book", "arguments": nest})
    turn = head + ', {"role": "assistant", "tool_calls": [{"id": "1", "function": ' + call + "}]}]}"
    for body in (tool, turn):
        answer = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000,
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "top_p": Infinity}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", '
        b'"function": {"name": "a", "parameters": {"x": NaN}}}]}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(client, body):
    answer = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("text", ["\x00", "😀\u200d🏽", "\u202e", "<|im_end|>", "{{ x }}", "a" * 300, "\r\n\t"])
def test_odd_texts_are_texts(client, text):
    fields = {"messages": [{"role": "user", "content": text or "x"}], "stop": text[:50]}
    answer = ask(client, **fields)
    assert answer.status_code in (200, 400), answer.text
    assert json.loads(answer.text)
