"""Send the service what it is not to be sent, and write what it answers.

    python tests/production/bad_input.py --page docs/bad_input.md

Exit code 1 where an answer is no 4xx of the right shape, or tells more of the input than it must.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

KEY = "0123456789abcdef-first"
MOST = 400  # characters of an answer; what was sent is told again in part at most
_PAGE = """\
# Bad input

Written by `python tests/production/bad_input.py --page docs/bad_input.md`, which sends each of these to the service
with the embedded model, and fails where an answer is no 4xx in the shape of OpenAI's errors, or is longer than
{most} characters. After all of them the service answers as before, and so it answers texts of very many accents, astral
letters, control characters or marks from right to left, which are texts like others.

| request | what is wrong | status | message |
|---|---|---|---|
{rows}
"""
_CHAT, _SCORE = "/v1/chat/completions", "/v1/score"
_TOOL = {"type": "function", "function": {"name": "find"}}
_SCORED = {"model": "demo", "prompt": "Why?", "response": "So."}
_ASKED = {"model": "demo", "messages": [{"role": "user", "content": "What is the capital of France?"}]}


@dataclass(frozen=True)
class Bad:
    """A request, and what is wrong with it; a body that is no bytes is sent as JSON."""

    wrong: str
    path: str = _CHAT
    body: Any = None
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def _asked(**fields: Any) -> dict[str, Any]:
    return {**_ASKED, **fields}


def _said(content: Any, role: Any = "user") -> dict[str, Any]:
    return _asked(messages=[{"role": role, "content": content}])


def _raw(fields: str, of: dict[str, Any] | None = None) -> bytes:
    """Add fields to a request as they are written, for what Python's JSON does not write."""
    return f"{json.dumps(of or _ASKED)[:-1]}, {fields}}}".encode()


def _function(parameters: str) -> bytes:
    return _raw(f'"tools": [{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}]')


def _endless() -> Iterator[bytes]:
    for _ in range(20):
        yield b" " * 100_000


def _bodies(path: str, good: dict[str, Any]) -> Iterator[Bad]:
    """Give what is wrong with any body."""
    text = json.dumps(good).encode()
    yield Bad("no body", path, b"")
    yield Bad("a body that is too long", path, b" " * 1_000_001)
    yield Bad("a body that is too long, and does not say so", path, _endless())
    yield Bad("no JSON", path, b'{"model": ')
    yield Bad("an array", path, [])
    yield Bad("null", path, b"null")
    yield Bad("no UTF-8", path, b'{"model": "\xff\xfe"}')
    yield Bad("100,000 arrays in one another", path, b"[" * 100_000 + b"]" * 100_000)
    yield Bad("text/plain", path, text, headers={"Content-Type": "text/plain"})
    yield Bad("no content type", path, text, headers={"Content-Type": ""})
    yield Bad("a form", path, b"model=demo", headers={"Content-Type": "application/x-www-form-urlencoded"})
    yield Bad("a compressed body", path, gzip.compress(text), headers={"Content-Encoding": "gzip"})
    yield Bad("an unknown model", path, {**good, "model": "gpt-4o"})
    yield Bad("a path as model", path, {**good, "model": "../../etc/passwd"})
    yield Bad("a model of 100,000 letters", path, {**good, "model": "x" * 100_000})
    yield Bad("an unknown field", path, {**good, "top_k": 3})
    yield Bad("an unknown field of 100,000 letters", path, {**good, "x" * 100_000: 3})
    yield Bad("60,000 unknown fields", path, {f"{number:x}": 0 for number in range(60_000)})
    yield Bad("half a surrogate pair as a field", path, _raw(r'"\ud800": 1', good))
    yield Bad("half a surrogate pair as model", path, json.dumps({**good, "model": "\ud800"}).encode())
    yield Bad("a threshold that is not a number", path, _raw('"semgrad": {"threshold": NaN}', good))
    yield Bad("a threshold without end", path, _raw('"semgrad": {"threshold": 1e999}', good))
    yield Bad("a negative threshold", path, {**good, "semgrad": {"threshold": -0.1}})
    yield Bad("a negative timeout", path, {**good, "semgrad": {"timeout": -1}})


def _chats() -> Iterator[Bad]:
    yield from (Bad("no messages", body={"model": "demo"}), Bad("an empty list of messages", body=_asked(messages=[])))
    yield Bad("100,000 messages", body=_asked(messages=[{}] * 100_000))
    yield Bad("messages of one letter each, too many", body=_asked(messages=[{"role": "user", "content": "a"}] * 257))
    yield Bad("half a surrogate pair", body=json.dumps(_said("a\ud800")).encode())
    yield Bad("a prompt that is too long", body=_said("word " * 30_000))
    yield Bad("an unknown role", body=_said("a", role="oracle"))
    yield Bad("a role of 100,000 letters", body=_said("a", role="x" * 100_000))
    yield Bad("an image", body=_said([{"type": "image_url", "image_url": {"url": "http://a"}}]))
    yield Bad("a number as content", body=_said(7))
    yield Bad("instructions only", body=_said("a", role="system"))
    for name, value in (
        ("temperature", -1),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("n", 0),
        ("n", 9),
        ("top_p", -0.1),
    ):
        yield Bad(f"{name} {value}", body=_asked(**{name: value}))
    for name, value in (("temperature", "hot"), ("seed", 1.5), ("n", True), ("stream", "yes"), ("stop", [1])):
        yield Bad(f"{name} {json.dumps(value)}", body=_asked(**{name: value}))
    for value in ("NaN", "Infinity", "-Infinity", "9" * 400):
        yield Bad(f"temperature {value[:20]}", body=_raw(f'"temperature": {value}'))
    yield Bad("a seed of 400 digits", body=_raw(f'"seed": {"9" * 400}'))
    yield Bad("a seed of 5,000 digits", body=_raw(f'"seed": {"9" * 5000}'))
    yield Bad("more tokens than are allowed", body=_asked(max_tokens=1_000_000))
    yield Bad("70,000 biases that are none", body=_asked(logit_bias={f"{n:x}": "1" for n in range(70_000)}))
    yield Bad("an unknown policy", body=_asked(semgrad={"policy": "x" * 100_000}))
    yield Bad("tools without end", body=_asked(tools=[_TOOL] * 10_000))
    yield Bad("tools of one name", body=_asked(tools=[_TOOL] * 2))
    yield Bad("a tool without a name", body=_asked(tools=[{"type": "function", "function": {}}]))
    yield Bad(
        "a tool with a name of its own kind", body=_asked(tools=[{"type": "function", "function": {"name": "a\nb"}}])
    )
    yield Bad("a tool of 900 arrays in one another", body=_function('{"a":' + "[" * 900 + "]" * 900 + "}"))
    yield Bad("a tool with what is not a number", body=_function('{"a": NaN}'))
    yield Bad("a tool with half a surrogate pair", body=_function(r'{"\ud800": 1}'))
    yield Bad("tool_choice without tools", body=_asked(tool_choice="required"))
    yield Bad(
        "tool_choice of no tool",
        body=_asked(tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "other"}}),
    )
    yield Bad("an unknown tool_choice", body=_asked(tools=[_TOOL], tool_choice="x" * 10_000))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "no JSON"}}
    yield Bad("arguments that are no JSON", body=_asked(messages=[{"role": "assistant", "tool_calls": [call]}]))


def _scores() -> Iterator[Bad]:
    ids = {"model": "demo", "prompt_token_ids": [5] * 9, "response_token_ids": [5]}
    yield Bad("no response", _SCORE, {"model": "demo", "prompt": "Why?"})
    yield Bad("two prompts", _SCORE, {**_SCORED, "prompt_token_ids": [5]})
    yield Bad("an empty response", _SCORE, {**_SCORED, "response": " "})
    yield Bad("no ids", _SCORE, {**ids, "response_token_ids": []})
    yield Bad("a negative id", _SCORE, {**ids, "prompt_token_ids": [-1] * 9})
    yield Bad("ids of another vocabulary", _SCORE, {**ids, "prompt_token_ids": [2**31 - 1] * 9})
    yield Bad("190,000 ids that are none", _SCORE, {**ids, "prompt_token_ids": [0.5] * 190_000})
    yield Bad("more ids than are allowed", _SCORE, {**ids, "prompt_token_ids": [5] * 100_000})
    yield Bad("half a surrogate pair", _SCORE, json.dumps({**_SCORED, "response": "\ud800"}).encode())


def _others() -> Iterator[Bad]:
    for path in ("/v1/models", "/v1/models/demo", "/healthz", "/readyz", "/metrics"):
        yield from (Bad("a wrong method", path, method=method) for method in ("POST", "DELETE"))
    for path in (_CHAT, _SCORE):
        yield from (Bad("a wrong method", path, method=method) for method in ("GET", "PUT", "OPTIONS", "TRACE", "FOO"))
    for path in ("/v2", "/V1/models", "//v1/models", "/v1/chat/completions/", "/healthz/", "/v1%2fmodel", "/.env"):
        yield Bad("no such path", path, method="GET")
    for name in ("..%2f..%2fetc%2fpasswd", "%00", "%ff%fe", "x" * 20_000, "a%0d%0aSet-Cookie:%20a=b"):
        yield Bad("no such model", f"/v1/models/{name}", method="GET")
    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil", "a/b", ""):
        yield Bad(f"the Host {host!r}", "/v1/models", method="GET", headers={"Host": host})
    for key in ("", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer " + "x" * 10_000):
        yield Bad(f"the Authorization {key[:24]!r}", "/v1/models", method="GET", headers={"Authorization": key})


def requests() -> Iterator[Bad]:
    """Give all bad requests."""
    yield from _bodies(_CHAT, _ASKED)
    yield from _chats()
    yield from _bodies(_SCORE, _SCORED)
    yield from _scores()
    yield from _others()


def odd() -> Iterator[Bad]:
    """Give texts that are odd, and allowed."""
    for text in ("a" + "\u0301" * 150_000, "\U0001f600" * 100_000, "\u202e" * 150_000, "a\0\x1b[31m\r\n"):
        yield Bad("nothing", body=json.dumps(_said(text), ensure_ascii=False).encode())


def answer(client: httpx.Client, bad: Bad) -> httpx.Response:
    """Send a request, and give what comes of it."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **bad.headers}
    body = json.dumps(bad.body).encode() if isinstance(bad.body, dict | list) else bad.body
    return client.request(bad.method, bad.path, content=body, headers=headers)


def fault(found: httpx.Response) -> str:
    """Say what is wrong with an answer; nothing where it is a 4xx with a message, in the right shape."""
    if not 400 <= found.status_code < 500:
        return f"the status is {found.status_code}"
    try:
        error = found.json()["error"]
    except (ValueError, KeyError, TypeError):
        return "it has not the shape of an error"
    if set(error) != {"message", "type", "param", "code"} or not error["message"]:
        return "it has not the shape of an error"
    return "" if len(found.text) <= MOST else f"it has {len(found.text)} characters"


def main() -> int:
    """Send all, write, and tell whether all is as it should be."""
    sys.path.append(str(Path(__file__).parent.parent))
    from serving import served

    from semgrad_guard.web.keys import ApiKeys

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--page", type=Path, help="where to write the page; default: print it")
    given = options.parse_args()
    rows, failed = [], 0
    with served(keys=ApiKeys([KEY])) as (_, url), httpx.Client(base_url=url, timeout=60) as client:
        for bad in requests():
            found = answer(client, bad)
            if wrong := fault(found):
                failed += 1
                print(f"{bad.method} {bad.path[:60]}, {bad.wrong}: {wrong}: {found.text[:300]}", file=sys.stderr)
                continue
            path = bad.path if len(bad.path) < 60 else f"{bad.path[:30]}…"
            cells = (f"{bad.method} `{path}`", bad.wrong, str(found.status_code), found.json()["error"]["message"])
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        failed += sum(answer(client, good).status_code != 200 for good in (*odd(), Bad("nothing", body=_ASKED)))
    text = _PAGE.format(rows="\n".join(rows), most=MOST)
    if given.page is None:
        print(text)
    else:
        given.page.write_text(text, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
