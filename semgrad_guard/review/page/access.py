"""Who gets in: the login, the gate before every other page, and proof that a form is our own."""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated

from fastapi import APIRouter, Form, HTTPException
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.review.archive import check
from semgrad_guard.review.page.sessions import Sessions
from semgrad_guard.review.page.words import AtDesk, form_token, render, to
from semgrad_guard.web.keys import ApiKeys

router = APIRouter()
_LOGIN, _STATIC = "/login", "/static/"


def keys_of(token: str) -> ApiKeys:
    """Take the token that reviewers log in with.

    Raises:
        ConfigurationError: it is too short, or cannot be typed.
    """
    try:
        return ApiKeys([token])
    except ConfigurationError as error:
        raise ConfigurationError(
            "The review token cannot be used: expected at least 16 printable ASCII characters without blanks; "
            "`openssl rand -hex 24` makes one."
        ) from error


def secret_of(token: str) -> str:
    """Derive what sessions are signed with, so that they outlive the server and end with the token."""
    return hmac.new(token.encode(), b"semgrad-guard review session", hashlib.sha256).hexdigest()


class Gate:
    """Lets nobody without a session past the login, and no form in from another site, whatever is asked for."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        """Guard an application; the session of a request must be there already."""
        self._app, self._sessions = app, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            refused = await self._refused(Request(scope, receive))
            await (refused or self._app)(scope, receive, send)

    async def _refused(self, request: Request) -> Response | None:
        # The path that is routed, not that of `request.url`, which is put together with what the client says.
        reads, path = request.method in ("GET", "HEAD"), str(request.scope["path"])
        if not reads and not _from_here(request.headers):
            return render(request, "problem.html", 403, problem="This form was sent from another site.")
        form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        if self._sessions.ended(request.session):
            request.session.clear()
        if path == _LOGIN or path.startswith(_STATIC) or "reviewer" in request.session:
            if reads or form or request.headers.get("content-length") == "0":
                return None
            return render(request, "problem.html", 415, problem="The forms of this page are sent URL-encoded.")
        if reads:
            if path.startswith("/reviews"):  # never a path that a browser takes for another host
                request.session["wanted"] = path
            return to(request, _LOGIN)
        typed = (await request.form()).get("text") if form else None  # nobody should lose what they wrote
        return render(request, "problem.html", 401, problem="You are not logged in, or no longer.", typed=typed)


async def own_form(request: Request) -> None:
    """Refuse a form without the token of the session it was shown in.

    Raises:
        HTTPException: it is not our own.
    """
    if request.method not in ("GET", "HEAD"):
        token = str((await request.form()).get("form_token", ""))
        if not hmac.compare_digest(token.encode(), form_token(request.session).encode()):
            raise HTTPException(403, "This form is not one of this session's. Go back, reload the page and try again.")


@router.get(_LOGIN)
def ask(request: Request) -> Response:
    """Show the login."""
    return to(request, "/reviews") if "reviewer" in request.session else render(request, "login.html", problem="")


@router.post(_LOGIN)
def log_in(
    request: Request, desk: AtDesk, name: Annotated[str, Form()] = "", token: Annotated[str, Form()] = ""
) -> Response:
    """Let a reviewer in who knows the token."""
    if not desk.attempts.allow(request.client.host if request.client else ""):
        refused = render(request, "login.html", 429, problem="Too many attempts; try again in a minute.")
        refused.headers["Retry-After"] = "60"
        return refused
    if not desk.keys.admit(token):
        return render(request, "login.html", 401, problem="That is not the token.")
    name = " ".join(name.split())
    try:
        check(name)
        named = name.isprintable()
    except ConfigurationError:
        named = False
    if not named:
        return render(request, "login.html", 422, problem="Give a name of 1 to 200 letters; the audit trail needs it.")
    wanted = str(request.session.get("wanted", "/reviews"))
    request.session.clear()  # nothing of before the login stays, the form's token neither
    desk.sessions.begin(request.session, name)
    return to(request, wanted)


@router.post("/logout")
def log_out(request: Request, desk: AtDesk) -> Response:
    """End the session, copies of its cookie too; what was claimed stays claimed until its lease ends."""
    desk.sessions.end(request.session)
    return to(request, _LOGIN, "You are logged out.")


def _from_here(headers: Headers) -> bool:
    """Tell whether the browser, as far as it says so, was on a page of ours."""
    site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
    host = headers.get("host")
    return site in ("same-origin", "none") and origin in (None, f"http://{host}", f"https://{host}")
