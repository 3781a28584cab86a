"""What every route of the page works with: the queue, who may log in, and how a template becomes an answer."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Annotated, Any

import jinja2
from fastapi import Depends
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from semgrad_guard.review.page import words
from semgrad_guard.review.page.attempts import Attempts
from semgrad_guard.review.page.sessions import Sessions
from semgrad_guard.review.queue import ReviewQueue
from semgrad_guard.web.keys import ApiKeys


@dataclass(frozen=True)
class Desk:
    """The queue, the token that lets reviewers in, and the seconds they have a review for."""

    queue: ReviewQueue
    keys: ApiKeys
    lease: float
    attempts: Attempts = field(default_factory=Attempts)
    sessions: Sessions = field(default_factory=Sessions)


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _reviewer(request: Request) -> str:
    return str(request.session["reviewer"])


AtDesk = Annotated[Desk, Depends(_desk)]
Reviewer = Annotated[str, Depends(_reviewer)]

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__ or "semgrad_guard.review.page"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {
    "number": words.number,
    "percent": words.percent,
    "duration": words.duration,
    "moment": words.moment,
    "points": words.points,
}


def render(request: Request, template: str, status: int = 200, **shown: Any) -> HTMLResponse:
    """Fill in a template; what it shows is escaped, all of it."""
    session = request.session
    html = _templates.get_template(template).render(
        reviewer=session.get("reviewer"), form_token=form_token(session), told=session.pop("told", ""), **shown
    )
    # The default, no-referrer, makes browsers send "Origin: null" with forms, which then tells nothing.
    return HTMLResponse(html, status, {"Referrer-Policy": "same-origin"})


def to(request: Request, path: str, told: str = "") -> RedirectResponse:
    """Send the browser on after a form, so that reloading sends nothing twice; `told` is shown there."""
    if told:
        request.session["told"] = told
    return RedirectResponse(path, 303)


def form_token(session: dict[str, Any]) -> str:
    """Give the session's token that every form carries; another site cannot know it."""
    if "form_token" not in session:
        session["form_token"] = secrets.token_urlsafe(24)
    return str(session["form_token"])
