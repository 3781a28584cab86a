"""Load the HTTP service and write the page about it: `python tests/production/load.py --page docs/load.md`.

Three services run side by side, and are loaded in turns, so that whatever else the machine does, it does to all: as it
is, with scoring off, and without batches. Then the first one gets so many requests more, to see whether memory grows.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import psutil
import typer
from tqdm import tqdm

from semgrad_guard import __version__
from tools.embedded.questions import CLOSED_BOOK, questions

_LOOKS = 10  # at memory, while it is under load
SETUPS = {
    "as it is": [],
    "scoring off": ["--unscored"],
    "no batches": ["--batch-size", "1"],
}


@dataclass
class Seen:
    """What clients saw: status codes, the seconds that answers took, and how long it went on."""

    statuses: Counter[int | str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def answers_per_second(self) -> float:
        return self.statuses[200] / self.seconds

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies, 100 * share))

    @property
    def errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status not in (200, 429))


@dataclass
class Service:
    """A service in a process of its own."""

    url: str
    process: psutil.Process

    def resident(self) -> float:
        """Give its memory in MiB."""
        return float(self.process.memory_info().rss) / 2**20


@contextmanager
def service(arguments: list[str]) -> Iterator[Service]:
    """Start a service, wait until it is ready, and stop it in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("semgrad-guard")), "serve", "--port", str(port), *arguments]
    few_arenas = os.environ | {"MALLOC_ARENA_MAX": "2"}  # as docs/serving.md advises
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=few_arenas)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        else:
            raise RuntimeError(f"{command} was not ready within two minutes")
        yield Service(url, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)


async def load(url: str, clients: int, seen: Seen, *, seconds: float = np.inf, requests: int | None = None) -> None:
    """Let clients ask one question after another, until time is up or so many have been asked."""
    asked = [item.prompt for stratum in CLOSED_BOOK for item in questions(stratum, "report")]
    random.Random(0).shuffle(asked)
    turns = itertools.islice(itertools.cycle(asked), requests)
    begun = time.monotonic()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def ask() -> None:
            for question in turns:
                if time.monotonic() - begun > seconds:
                    return
                body = {"model": "demo", "messages": [{"role": "user", "content": question}]}
                start = time.monotonic()
                try:
                    status: int | str = (await client.post("/v1/chat/completions", json=body)).status_code
                except httpx.HTTPError as error:
                    status = type(error).__name__
                seen.statuses[status] += 1
                seen.latencies.append(time.monotonic() - start)

        await asyncio.gather(*(ask() for _ in range(clients)))
    seen.seconds += time.monotonic() - begun


def main(
    page: Annotated[Path | None, typer.Option(help="Write a page about it.")] = None,
    clients: int = 64,
    seconds: Annotated[float, typer.Option(help="How long each service is loaded, in all.")] = 60.0,
    rounds: Annotated[int, typer.Option(help="Turns that the time is divided into.")] = 3,
    requests: Annotated[int, typer.Option(help="Requests between the first look at memory and the last.")] = 10_000,
    warm: Annotated[int, typer.Option(help="Requests before the first of them, beside the load.")] = 1_000,
) -> None:
    """Load, measure, and tell."""
    found = {name: Seen() for name in SETUPS}
    with ExitStack() as stack:
        services = {name: stack.enter_context(service(arguments)) for name, arguments in SETUPS.items()}
        for _ in tqdm(range(rounds), desc="rounds"):
            for name, running in services.items():
                asyncio.run(load(running.url, clients, found[name], seconds=seconds / rounds))
        own = services["as it is"]
        asyncio.run(load(own.url, clients, Seen(), requests=warm))
        memory, long = [own.resident()], Seen()
        for _ in tqdm(range(_LOOKS), desc="memory"):
            asyncio.run(load(own.url, clients, long, requests=requests // _LOOKS))
            memory.append(own.resident())
    text = report(found, clients, seconds, long, memory)
    print(text)
    if page is not None:
        page.write_text(text, encoding="utf-8")


def report(found: dict[str, Seen], clients: int, seconds: float, long: Seen, memory: list[float]) -> str:
    """Write what was seen as Markdown."""
    own, unscored, unbatched = found.values()
    rows = [
        f"| {name} | {seen.statuses[200]:,} | {seen.statuses[429]:,} | {seen.errors:,} | {seen.percentile(0.5):.2f} | "
        f"{seen.percentile(0.95):.2f} | {seen.answers_per_second:.1f} |"
        for name, seen in found.items()
    ]
    beside_unscored = own.answers_per_second / unscored.answers_per_second
    beside_unbatched = own.answers_per_second / unbatched.answers_per_second
    growth = memory[-1] / memory[0] - 1
    return f"""# The HTTP service under load

Written by `python tests/production/load.py --page docs/load.md`: version {__version__}, the embedded model,
{psutil.cpu_count()} cores ({platform.machine()}) that service and clients share; {clients} clients that each ask
one question after another, {seconds:g} s for each service, in turns. Seconds are as clients see them.

| service | answered | 429 | errors | p50 s | p95 s | answers/s |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

With scoring it gives {beside_unscored:.2f} times the answers of the same service with scoring off (to reach: 0.75),
and {beside_unbatched:.2f} times those of the same without batches (to reach: 2).

Memory of the first service, in MiB, after the load and a warm-up, and then after every tenth of
{long.statuses[200]:,} more answers ({long.errors} errors, {long.statuses[429]} times 429):
{", ".join(f"{found:.0f}" for found in memory)}.
From the first to the last {growth:+.1%} (to reach: below +5 %).
"""


if __name__ == "__main__":
    typer.run(main)
