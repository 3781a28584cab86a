"""What stands before an application: allowed hosts, API keys, a limit on what is sent, and careful headers.

Pure ASGI, so that streams pass through untouched and whatever the application does not know is refused as well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
    policy: str = NOTHING,
) -> ASGIApp:
    """Put an application behind all of it.

    Args:
        app: the application.
        hosts: names it answers to, against DNS rebinding; "*.example.com" allows all below, "*" any.
        keys: who gets in; None or none: everybody.
        open_paths: paths that need no key.
        max_bytes: the longest body that is read.
        policy: the Content-Security-Policy of every answer; by default nothing may be loaded or shown in a frame.
    """
    inner: ASGIApp = BodyLimit(app, max_bytes)
    if keys:
        inner = KeyGate(inner, keys, frozenset(open_paths))
    return CarefulHeaders(TrustedHostMiddleware(inner, list(hosts), www_redirect=False), policy)


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
    """Answers 413 to bodies that are too long, before or while they are read."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        """Guard an application."""
        self._app, self._most = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, at most so much of it, and hand it on in one piece."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        body = b""
        too_long = announced.isdigit() and int(announced) > self._most
        more = not too_long
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                too_long, more = True, False
        if too_long:
            await refusal(413, "too_large", f"The body is longer than {self._most:,} bytes.")(scope, receive, send)
            return
        handed = False

        async def replay() -> Message:
            nonlocal handed
            if handed:
                return await receive()  # the next that can come is that the client has gone
            handed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)


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
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
