"""`semgrad-guard serve` as a process: it answers, and when it is told to stop it ends what it has accepted."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]


@pytest.fixture
def service():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from semgrad_guard.cli import app; app()", "serve", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--batch-size", "2"], env={**os.environ, "SEMGRAD_GUARD_API_KEY": ""}, stderr=subprocess.PIPE
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
        for _ in range(600):
            try:
                if client.get("/readyz").status_code == 200:
                    break
            except httpx.ConnectError:
                time.sleep(0.1)
        yield process, client
    process.kill()
    process.wait()
    process.stderr.close()


def test_it_ends_what_it_has_accepted(service):
    process, client = service
    asked = {"model": "demo", "messages": [{"role": "user", "content": "What is the capital of France?"}]}

    def ask(_):
        return client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]

    assert ask(0) == "Paris"
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(ask, place) for place in range(16)]
        while "semgrad_queue_depth 0.0" in client.get("/metrics").text:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        found = [answer.exception() or answer.result() for answer in answers]
    assert found == ["Paris"] * 16
    assert process.wait(10) in (0, -signal.SIGTERM)
    said = process.stderr.read().decode()
    assert "from this machine only" in said
    assert "Traceback" not in said
