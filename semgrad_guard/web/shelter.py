"""What stands between an application and the world: gates for hosts, keys and bodies, headers, answers to errors."""

from __future__ import annotations

import asyncio
import logging
import traceback
import uuid
from collections.abc import Callable, Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semgrad_guard._compat import H11Protocol
from semgrad_guard.settings import check_seconds
from semgrad_guard.web.keys import LOCAL_HOSTS, ApiKeys

logger = logging.getLogger(__name__)


class Contained:
    """Keeps exceptions from the server, which would log their texts: those may hold what was asked or answered."""

    def __init__(self, app: ASGIApp, answer: Callable[[Exception], Response]) -> None:
        """Guard an application; `answer` tells the client, where nothing has been sent yet."""
        self._app, self._answer = app, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through; where an answer breaks off, the connection ends with it."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            response = self._answer(error)
            if scope["type"] == "http" and not started:
                await response(scope, receive, send)


def logged(error: Exception) -> str:
    """Log what went wrong and where, without the error's own text, and give the id under which that stands."""
    id_ = uuid.uuid4().hex
    frames = "".join(traceback.format_tb(error.__traceback__, limit=-20))  # the innermost
    logger.error("Request %s failed: %s\n%s", id_, type(error).__name__, frames)
    return id_


# Seconds that a connection is kept without a request. Clients keep theirs for less (httpx for 5, as uvicorn would), so
# that it is they who hang up, and not the server on a request that is already under way.
KEPT = 75
_SECONDS = 10.0


class Patient(H11Protocol):
    """Hangs up where the head of a request has not come within ten seconds; uvicorn itself would wait for ever."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read on; a request whose head is there is being answered."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        elif self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(_SECONDS, self.transport.close)


NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def sheltered(
    app: ASGIApp,
    *,
    hosts: Sequence[str] = LOCAL_HOSTS,
    keys: ApiKeys | None = None,
    open_paths: Collection[str] = (),
    max_bytes: int = 1_000_000,
    patience: float = 30.0,
    policy: str = NOTHING,
) -> ASGIApp:
    """Put an application behind all of it.

    Args:
        app: the application.
        hosts: names it answers to, against DNS rebinding; "*.example.com" allows all below, "*" any.
        keys: who gets in; None or none: everybody.
        open_paths: paths that need no key.
        max_bytes: the longest body that is read.
        patience: seconds within which it must have come.
        policy: the Content-Security-Policy of every answer; by default nothing may be loaded or shown in a frame.

    Raises:
        ConfigurationError: `patience` is no number of seconds, > 0.
    """
    check_seconds("patience", patience)
    inner: ASGIApp = BodyLimit(app, max_bytes, patience)
    if keys:
        inner = KeyGate(inner, keys, frozenset(open_paths))
    return CarefulHeaders(HostGate(inner, hosts), policy)


class HostGate:
    """Answers 400 to a request for another host, or for several."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        """Guard an application."""
        self._app, self._hosts = app, list(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or not."""
        if scope["type"] == "lifespan" or await self._knows(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(400, "invalid_host", "The Host header names no host of this service.")(scope, receive, send)

    async def _knows(self, scope: Scope) -> bool:
        """Ask Starlette's own check, whose refusal is a plain text."""
        known = False

        async def reached(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal known
            known = len(Headers(scope=scope).getlist("host")) < 2

        async def nothing() -> Message:
            return {}

        async def unsent(message: Message) -> None:
            pass

        await TrustedHostMiddleware(reached, self._hosts, www_redirect=False)(scope, nothing, unsent)
        return known


class KeyGate:
    """Answers 401 to a request without a key, whatever it asks for."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, open_paths: frozenset[str]) -> None:
        """Guard an application."""
        self._app, self._keys, self._open = app, keys, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or not."""
        if scope["type"] == "lifespan" or scope["path"] in self._open or self._keys.admit(_bearer(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            refused = refusal(401, "invalid_api_key", "No valid API key was given; send 'Authorization: Bearer KEY'.")
            refused.headers["WWW-Authenticate"] = "Bearer"
            await refused(scope, receive, send)


class BodyLimit:
    """Answers 413 to bodies that are too long, before or while they are read, and 408 to those that take too long."""

    def __init__(self, app: ASGIApp, max_bytes: int, patience: float) -> None:
        """Guard an application."""
        self._app, self._most, self._patience = app, max_bytes, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, at most so much of it, and hand it on in one piece."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._patience):
                body = await self._body(scope, receive)
        except (TimeoutError, OverflowError) as error:
            refused = refusal(408, "too_slow", f"The body had not come within {self._patience:g} s.")
            if isinstance(error, OverflowError):
                refused = refusal(413, "too_large", f"The body is longer than {self._most:,} bytes.")
            refused.headers["Connection"] = "close"  # nobody waits for the rest of it
            await refused(scope, receive, send)
            return
        if body is None:
            return  # the client has gone
        delivered = False

        async def replay() -> Message:
            nonlocal delivered
            if delivered:
                return await receive()  # the next that can come is that the client has gone
            delivered = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Read it to its end; None where the client has gone.

        Raises:
            OverflowError: it is too long, or is said to be.
        """
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self._most:
            raise OverflowError
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                raise OverflowError
        return bytes(body)


class CarefulHeaders:
    """Puts headers on every answer that keep browsers from guessing, framing, caching and telling others."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        """Guard an application."""
        self._app = app
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the headers to what is sent."""

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, careful)


def refusal(status: int, code: str, message: str, kind: str = "invalid_request_error") -> Response:
    """Give an error in the shape of OpenAI's: `{"error": {"message", "type", "param", "code"}}`."""
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


def _bearer(scope: Scope) -> str | None:
    """Give the one key that a request brings; of several, a proxy may have looked at another."""
    headers = Headers(scope=scope).getlist("authorization")
    scheme, _, key = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    return key.strip() if scheme.lower() == "bearer" else None
