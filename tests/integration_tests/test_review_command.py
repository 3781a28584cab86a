"""The review page as a process of its own, as people start it."""

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest
from scripted import request_of

from semgrad_guard.review import ReviewQueue

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]


@pytest.fixture
def started(tmp_path):
    """Start the page; gives the process, its address and the token it shows."""
    processes = []

    def start(*arguments, **environment):
        command = [sys.executable, "-c", "from semgrad_guard.cli import app; app()", "review", "--port", "0"]
        process = subprocess.Popen(
            [*command, "--queue", f"sqlite:///{tmp_path / 'reviews.db'}", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        )
        processes.append(process)
        told = ""
        while "Token to log in" not in told:
            line = process.stdout.readline()
            assert line, told
            told += line
        return process, re.search(r"(http://127\.0\.0\.1:\d+)/", told)[1], told

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def log_in(client, token):
    hidden = re.search(r'name="form_token" value="([^"]+)"', client.get("/login").text)[1]
    return client.post("/login", data={"name": "ann", "token": token, "form_token": hidden})


def test_a_newcomer_sees_something_at_once_and_the_page_ends_when_told(started):
    process, address, told = started("--demo")
    assert re.search(r"^[1-9]\d* answers of the embedded model were held back", told)
    token = re.search(r"log in: (\S+) \(new", told)[1]
    with httpx.Client(base_url=address, headers={"Origin": address}, follow_redirects=True) as client:
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
        assert log_in(client, "x" * 40).status_code == 401
        page = log_in(client, token)
    assert (page.status_code, page.url.path) == (200, "/reviews")
    assert "What is the capital of Zubrovia?" in page.text
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_a_token_that_was_set_is_not_shown_and_a_queue_that_is_not_empty_gets_no_demo(started, tmp_path):
    queue = ReviewQueue(f"sqlite:///{tmp_path / 'reviews.db'}")
    queue.submit(request_of(question="Mine?", draft="", confidence=None, scores=None, reason=""))
    token = "a-token-of-our-own"
    _, address, told = started("--demo", SEMGRAD_GUARD_REVIEW_TOKEN=token)
    assert token not in told
    assert "not empty" in told
    with httpx.Client(base_url=address, headers={"Origin": address}, follow_redirects=True) as client:
        assert "Mine?" in log_in(client, token).text
    assert len(queue.items()) == 1
    queue.close()
