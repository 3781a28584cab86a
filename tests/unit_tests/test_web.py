"""Who gets in: keys, hosts, sizes, and the headers of every answer."""

import asyncio
import logging
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.web import shelter
from semgrad_guard.web.keys import LOCAL_HOSTS, VARIABLE, ApiKeys, check_address
from semgrad_guard.web.shelter import Contained, logged, refusal, sheltered

KEY = "0123456789abcdef-first"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(await request.body())


def client(**settings):
    app = Starlette(routes=[Route("/echo", echo, methods=["GET", "POST"]), Route("/healthz", echo)])
    return TestClient(sheltered(app, **{"hosts": ["testserver", *LOCAL_HOSTS], "open_paths": ["/healthz"], **settings}))


def test_keys_come_from_the_environment_or_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n\n second-{KEY} \n")
    for keys in (
        ApiKeys.read(environment={VARIABLE: f"{KEY}, second-{KEY},"}),
        ApiKeys.read(file, environment={VARIABLE: "third" * 5}),
    ):
        assert keys
        assert keys.admit(KEY)
        assert keys.admit(f"second-{KEY}")
        assert not any(keys.admit(other) for other in (None, "", KEY[:-1], KEY + "x", "third" * 5, "ä" * 20))


@pytest.mark.parametrize("bad", ["short", "with blanks in the middle", "ümläute-ümläute-ümläute"])
def test_a_bad_key_is_refused_without_being_told(bad):
    with pytest.raises(ConfigurationError, match="API key 2 of 2") as refused:
        ApiKeys([KEY, bad])
    assert bad not in str(refused.value)


def test_a_file_without_keys_is_an_error(tmp_path):
    (tmp_path / "empty").write_text("\n")
    for file in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match=file.name):
            ApiKeys.read(file)


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_without_keys_only_this_machine_is_listened_to(host, local):
    check_address(host, ApiKeys([KEY]))
    if local:
        check_address(host, ApiKeys())
    else:
        with pytest.raises(ConfigurationError, match=VARIABLE):
            check_address(host, ApiKeys())


def test_whoever_has_no_key_gets_401_everywhere_but_at_open_paths():
    guarded = client(keys=ApiKeys([KEY]))
    assert guarded.get("/healthz").status_code == 200
    for path in ("/echo", "/unknown", "/healthz/", "//healthz", "/docs"):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            answer = guarded.get(path, headers=header)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert guarded.post("/echo", content="yes", headers={"Authorization": f"bearer {KEY}"}).text == "yes"


def test_other_hosts_are_refused():
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert client().get("/echo", headers={"Host": host}).status_code == 400
    for host in ("127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        assert client().get("/echo", headers={"Host": host}).status_code == 200


def test_long_bodies_are_refused_announced_or_not():
    small = client(max_bytes=10)
    assert small.post("/echo", content="x" * 10).text == "x" * 10
    assert small.post("/echo", content="x" * 11).status_code == 413
    assert small.post("/echo", content=iter([b"x" * 6, b"x" * 6])).json()["error"]["code"] == "too_large"


def test_every_answer_has_careful_headers():
    for path in ("/echo", "/unknown"):
        headers = client().get(path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert (headers["X-Content-Type-Options"], headers["X-Frame-Options"]) == ("nosniff", "DENY")
        assert (headers["Cache-Control"], headers["Referrer-Policy"]) == ("no-store", "no-referrer")


def test_of_several_hosts_or_keys_none_counts():
    guarded = client(keys=ApiKeys([KEY]))
    own = ("Authorization", f"Bearer {KEY}")
    assert guarded.get("/echo", headers=[own]).status_code == 200
    assert guarded.get("/echo", headers=[own, ("Authorization", "Bearer wrong")]).status_code == 401
    assert guarded.get("/echo", headers=[own, ("Host", "localhost"), ("Host", "localhost")]).status_code == 400


@pytest.mark.parametrize("announced", ["²", "9" * 5000, "-1", "x", "1_0", ""])
def test_lengths_that_are_none_are_no_fault_of_the_service(announced):
    # a server refuses most of them, but not every server
    answer = client(max_bytes=10).post(
        "/echo", content=b"x", headers=[(b"Content-Length", announced.encode("latin-1"))]
    )
    assert answer.status_code == (413 if announced.startswith("9") else 200)


class Slowly:
    """Sends a body so slowly that it never ends."""

    def __init__(self):
        self.sent = []

    async def receive(self):
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(self, message):
        self.sent.append(message)


async def test_bodies_that_take_too_long_are_refused():
    app = sheltered(Starlette(routes=[Route("/echo", echo, methods=["POST"])]), hosts=["*"], patience=0.05)
    slow, began = Slowly(), time.monotonic()
    await app({"type": "http", "method": "POST", "path": "/echo", "headers": []}, slow.receive, slow.send)
    assert slow.sent[0]["status"] == 408
    assert (b"connection", b"close") in slow.sent[0]["headers"]
    assert time.monotonic() - began < 2


@contextmanager
def running(app):
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", http=shelter.Patient, ws="none", loop="asyncio")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_connections_without_a_request_do_not_last(monkeypatch):
    import socket

    monkeypatch.setattr(shelter, "_SECONDS", 0.3)

    async def slowly(request):
        await asyncio.sleep(0.6)  # an answer may take longer
        return PlainTextResponse("there")

    with running(Starlette(routes=[Route("/slowly", slowly)])) as address:
        for begun in (b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "):
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(begun)
                assert connection.recv(100) == b""
        with httpx.Client(base_url=f"http://{address[0]}:{address[1]}") as kept:
            assert [kept.get("/slowly").text for _ in range(2)] == ["there"] * 2


@pytest.mark.parametrize("begun", [False, True])
def test_what_nobody_has_foreseen_is_logged_without_its_text(begun, caplog):
    async def broken(scope, receive, send):
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("can" + "ary")  # lines of code are logged, what they make is not

    app = Contained(broken, lambda error: refusal(500, "internal_error", logged(error)))
    with caplog.at_level(logging.DEBUG):
        if begun:
            sent = Slowly()
            asyncio.run(app({"type": "http"}, sent.receive, sent.send))
            assert len(sent.sent) == 1
        else:
            told = TestClient(app).get("/").json()["error"]["message"]
            assert told in caplog.text
    assert "KeyError" in caplog.text
    assert "canary" not in caplog.text
