"""Who gets in: keys, hosts, sizes, and the headers of every answer."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.web.keys import VARIABLE, ApiKeys, check_address
from semgrad_guard.web.shelter import LOCAL_HOSTS, sheltered

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
