"""The server: an application behind its shelter, on uvicorn, that ends what it has accepted before it stops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import uvicorn
from starlette.types import ASGIApp

from semgrad_guard.durations import check_seconds
from semgrad_guard.serving.app import OPEN_PATHS
from semgrad_guard.serving.engine import Engine
from semgrad_guard.web.keys import ApiKeys, check_address
from semgrad_guard.web.patient import KEPT, Patient
from semgrad_guard.web.shelter import LOCAL_HOSTS, sheltered

_LAST_WORDS = 5  # seconds for what is left to be told that it is over


class Server(uvicorn.Server):
    """A uvicorn server that goes on listening while accepted jobs end, so that /readyz can say what is going on."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace: float) -> None:
        """Take the engine that is to end its jobs, within so many seconds."""
        super().__init__(config)
        self._engine, self._grace = engine, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the engine end, unless that is cut short by a second interrupt, and then stop listening."""
        ending = asyncio.create_task(self._engine.stop(self._grace))
        while not ending.done() and not self.force_exit:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


def server(
    app: ASGIApp,
    engine: Engine,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    names: Sequence[str] = (),
    keys: ApiKeys | None = None,
    grace: float = 30.0,
    max_bytes: int = 1_000_000,
) -> Server:
    """Build the server of an application; its `run` serves until it is interrupted.

    Args:
        app: the application.
        engine: what answers behind it.
        host: address to listen to; without keys, one that only this machine can reach.
        port: to listen to; 0 for any that is free.
        names: hosts that requests may name, beside this machine and `host`.
        keys: who gets in; None or none: everybody on this machine.
        grace: seconds that accepted requests have when the server is stopped.
        max_bytes: the longest body that is read.

    Raises:
        ConfigurationError: others could reach it, and it has no keys; or `grace` is no number of seconds, >= 0.
    """
    check_address(host, keys or ApiKeys())
    check_seconds("grace", grace, zero=True)
    sheltering = sheltered(
        app, hosts=[*LOCAL_HOSTS, host, *names], keys=keys, open_paths=OPEN_PATHS, max_bytes=max_bytes
    )
    config = uvicorn.Config(
        sheltering,
        host=host,
        port=port,
        log_config=None,  # whoever runs it decides where logs go, and that they tell no text
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        http=Patient,
        ws="none",
        timeout_keep_alive=KEPT,
        timeout_graceful_shutdown=_LAST_WORDS,
    )
    return Server(config, engine, grace)
