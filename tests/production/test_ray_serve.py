"""`semgrad-guard serve --ray`: two replicas behind OpenAI's API, and one of them killed in the middle of load."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest

from semgrad_guard.review import ReviewQueue
from tools.embedded.questions import questions

pytestmark = pytest.mark.enable_socket
KEY = "a-key-that-is-long-enough"
AT_ONCE, QUEUE, TOO_MANY = 100, 128, 400


def processes(session, name):
    """Give the processes of a command's Ray by what stands in their title."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            _, _, rest = (place / "stat").read_text().rpartition(")")
            title = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if int(rest.split()[3]) == session and name in title:
            found.append(int(place.name))
    return found


def until(condition, seconds):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds} s"
        time.sleep(0.1)


class Served:
    """The command, while it runs."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.queue = f"http://127.0.0.1:{port}", f"sqlite:///{folder / 'reviews.db'}"
        self.log = folder / "log"
        arguments = [
            "--ray",
            "--replicas",
            "2",
            "--port",
            str(port),
            "--reviews",
            self.queue,
            "--queue-size",
            str(QUEUE),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from semgrad_guard.cli import app; app()", "serve", *arguments],
                env=os.environ | {"OMP_NUM_THREADS": "1", "SEMGRAD_GUARD_API_KEY": KEY},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self):
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz").status_code == 200
        return False

    def replicas(self):
        return processes(self.process.pid, "ServeReplica:semgrad-guard:replicas")

    def client(self, kind=openai.OpenAI):
        return kind(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    found = Served(tmp_path_factory.mktemp("served"))
    try:
        until(found.ready, 180)
        until(lambda: len(found.replicas()) == 2, 60)
        yield found
    finally:
        with suppress(ProcessLookupError):
            os.killpg(found.process.pid, signal.SIGKILL)
        found.process.wait()


def ask(question):
    return [{"role": "user", "content": question}]


def test_completions_carry_their_record(served):
    client = served.client()
    told = client.chat.completions.create(model="demo", messages=ask("What is the capital of France?"))
    assert "Paris" in told.choices[0].message.content
    record = told.choices[0].model_extra["semgrad"]
    assert (record["decision"], record["verdict"]["confidence"] > 0.8) == ("pass", True)
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=ask("What is the capital of France?"),
            stream=True,
            extra_body={"semgrad": {"stream": "verdict"}},
        )
    )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == told.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="tokens"):
        client.chat.completions.create(model="demo", messages=ask("word " * 5000))


def test_nobody_gets_in_without_a_key(served):
    document = httpx.get(f"{served.url}/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
    assert document.status_code == 200
    for path, methods in document.json()["paths"].items():
        for method in methods:
            found = httpx.request(method, served.url + re.sub(r"{.*?}", "demo", path)).status_code
            assert found == (200 if path in ("/healthz", "/readyz") else 401), path
    assert httpx.get(f"{served.url}/nothing").status_code == 401
    assert httpx.get(f"{served.url}/healthz", headers={"Host": "elsewhere.example"}).status_code == 400


def kill_a_replica_under_load(served):
    """Kill one of the replicas while requests are answered, and check that nothing is lost."""
    asked = [item.prompt for name in ("known", "invented") for item in questions(name, "report")[: AT_ONCE // 2]]
    assert len(set(asked)) == AT_ONCE
    killed = served.replicas()[0]

    async def load():
        async with served.client(openai.AsyncOpenAI) as client:

            async def one(question):
                told = await client.chat.completions.create(
                    model="demo", messages=ask(question), extra_body={"semgrad": {"policy": "review"}}
                )
                return told.choices[0].model_extra["semgrad"]

            tasks = [asyncio.create_task(one(question)) for question in asked]
            while not any(task.done() for task in tasks):
                await asyncio.sleep(0.01)
            os.kill(killed, signal.SIGKILL)
            open_then = sum(not task.done() for task in tasks)
            return await asyncio.gather(*tasks), open_then

    records, open_then = asyncio.run(load())
    assert open_then > AT_ONCE // 2
    assert {record["decision"] for record in records} == {"pass", "review"}
    waiting = {record["review_id"] for record in records if record["decision"] == "review"}
    queued = ReviewQueue(served.queue).items(limit=None)
    assert {item.id for item in queued} == waiting  # none is lost, and none is there twice
    assert len({item.request.question for item in queued}) == len(queued)
    until(lambda: len(served.replicas()) == 2 and killed not in served.replicas(), 60)  # Serve starts another one


def test_a_killed_replica_loses_no_request(served):
    kill_a_replica_under_load(served)
    until(lambda: "its job goes to another one" in served.log.read_text(), 15)  # some were tried again


def test_what_has_no_place_is_refused_and_nothing_else(served):
    body = {"model": "demo", "messages": ask("What is the capital of France?")}

    async def load():
        limits = httpx.Limits(max_connections=TOO_MANY)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=120) as client:
            url = f"{served.url}/v1/chat/completions"
            return await asyncio.gather(*(client.post(url, json=body) for _ in range(TOO_MANY)))

    found = asyncio.run(load())
    refused = [response for response in found if response.status_code == 429]
    assert {response.status_code for response in found} == {200, 429}
    assert len(found) - len(refused) >= QUEUE
    assert {response.headers["Retry-After"] for response in refused} == {"1"}
    assert refused[0].json()["error"]["code"] == "queue_full"


def test_asked_to_end_it_ends(served):
    served.process.terminate()
    assert served.process.wait(60) == 0
    until(lambda: not processes(served.process.pid, "ServeReplica"), 30)
