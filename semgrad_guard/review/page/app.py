"""The page's application: its routes, its templates, and what stands before them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from semgrad_guard.errors import ReviewError
from semgrad_guard.review.archive import check
from semgrad_guard.review.page import access, reviews, statistics
from semgrad_guard.review.page.sessions import LONGEST
from semgrad_guard.review.page.words import Desk, render
from semgrad_guard.review.queue import ReviewQueue
from semgrad_guard.web.keys import LOCAL_HOSTS
from semgrad_guard.web.shelter import Contained, logged, sheltered

_STATIC = Path(__file__).parent / "static"
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


def build(queue: ReviewQueue, *, token: str, hosts: Sequence[str] | None, lease: float, secure: bool) -> ASGIApp:
    """Give the page as an ASGI application; `semgrad_guard.review.page.application` describes the arguments."""
    check("page", lease)
    keys = access.keys_of(token)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(access.own_form)])
    app.state.desk = desk = Desk(queue, keys, lease)
    for room in (access, reviews, statistics):
        app.include_router(room.router)
    app.add_api_route("/", lambda: RedirectResponse("/reviews", 303), methods=["GET"], response_class=RedirectResponse)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(ReviewError, _failed)
    app.add_middleware(Contained, answer=_broken)
    sessions = SessionMiddleware(
        access.Gate(app, desk.sessions),
        secret_key=access.secret_of(token),
        session_cookie="semgrad_guard_review",
        max_age=LONGEST,
        same_site="strict",
        https_only=secure,
    )
    return sheltered(sessions, hosts=LOCAL_HOSTS if hosts is None else hosts, policy=_POLICY)


def _refused(request: Request, error: Exception) -> Response:
    """Show what is not there, or not allowed."""
    assert isinstance(error, HTTPException)  # it is registered for these
    return render(request, "problem.html", error.status_code, problem=error.detail)


def _malformed(request: Request, error: Exception) -> Response:
    return render(request, "problem.html", 422, problem="The form was not filled in as expected.")


def _failed(request: Request, error: Exception) -> Response:
    """Show that a review is gone, or, where something else is behind it, that the database is out of reach."""
    return render(request, "problem.html", 404 if error.__cause__ is None else 503, problem=str(error))


def _broken(error: Exception) -> Response:
    """Tell of what nobody has foreseen; a page could fail again."""
    return PlainTextResponse(f"The page failed; its log has more under {logged(error)}.", 500)
