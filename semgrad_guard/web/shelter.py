"""What stands before an application: allowed hosts, API keys, a limit on what is sent, and careful headers.

Pure ASGI, so that streams pass through untouched and whatever the application does not know is refused as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semgrad_guard.durations import check_seconds
from semgrad_guard.web.keys import ApiKeys

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]", "::1")
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
    """Answers 400 to whoever asks for another host, or names several."""

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
    """Answers 401 to whoever brings no key, whatever is asked for."""

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
        handed = False

        async def replay() -> Message:
            nonlocal handed
            if handed:
                return await receive()  # the next that can come is that the client has gone
            handed = True
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
    given = Headers(scope=scope).getlist("authorization")
    scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return key.strip() if scheme.lower() == "bearer" else None
