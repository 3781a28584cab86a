"""How the page puts numbers, times and uncertainty: small pure functions for the templates."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import jinja2
from fastapi import Depends
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from semgrad_guard.records import TokenUncertainty
from semgrad_guard.review.items import ReviewItem
from semgrad_guard.review.page import words
from semgrad_guard.review.page.sessions import Attempts, Sessions
from semgrad_guard.review.queue import ReviewQueue
from semgrad_guard.routing.routes import ReviewRequest
from semgrad_guard.web.keys import ApiKeys

_LEVELS = 5  # shades in the style sheet
_FAINT = 0.02  # smaller shares are not marked


def number(value: float | None, digits: int = 3) -> str:
    """Write a number; what is none, or not finite, is unknown."""
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Write a share in per cent."""
    return "unknown" if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"


def duration(seconds: float | None) -> str:
    """Write a length of time in its largest unit, rounded down."""
    if seconds is None:
        return "none"
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"


def moment(at: datetime | None) -> str:
    """Write a moment."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M} UTC"


def points(pairs: Sequence[tuple[float, float]]) -> str:
    """Write points as SVG takes them."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


@dataclass(frozen=True)
class Shaded:
    """A token with its uncertainty, and its shade from 0 (not marked) to 5; `outside` the draft proper are marks."""

    uncertainty: TokenUncertainty
    level: int
    outside: bool

    @property
    def lead(self) -> str:
        """The blanks before the token, which are not marked."""
        text = self.uncertainty.text
        return text[: len(text) - len(text.lstrip())]

    @property
    def text(self) -> str:
        """The token without those."""
        return self.uncertainty.text.lstrip()

    @property
    def probability(self) -> float:
        """The probability the model gave it, in [0, 1]."""
        return math.exp(self.uncertainty.log_prob)


def shaded(request: ReviewRequest) -> list[Shaded]:
    """Shade the tokens of a draft by their shares of the uncertainty."""
    whole = "".join(token.text for token in request.tokens)
    begin = whole.find(request.draft) if shows_draft(request) else -1
    end = begin + len(request.draft)
    place, pieces = 0, []
    for token in request.tokens:
        stop = place + len(token.text)
        share = token.share if math.isfinite(token.share) else 0.0
        level = min(_LEVELS, math.ceil(_LEVELS * share)) if share >= _FAINT else 0
        pieces.append(Shaded(token, level, outside=begin >= 0 and (stop <= begin or place >= end)))
        place = stop
    return pieces


def shows_draft(request: ReviewRequest) -> bool:
    """Tell whether the tokens, joined, show the draft itself; tool calls are shown otherwise than they were written."""
    return bool(request.draft.strip()) and request.draft in "".join(token.text for token in request.tokens)


def scores(request: ReviewRequest) -> dict[str, float]:
    """Name the scores of a draft that are one number."""
    plain = {} if request.verdict.scores is None else request.verdict.scores.model_dump(exclude={"length"})
    return {name.replace("_", " "): value for name, value in plain.items() if isinstance(value, float)}


def conflict(item: ReviewItem, reviewer: str) -> str:
    """Say why something could not be done with a review, from how it stands now."""
    if item.status == "decided" and item.answer is not None:
        return f"{item.reviewer} has decided on this review in the meantime: {item.answer.decision}."
    if item.status == "expired":
        return "This review has expired; nobody can decide on it any more."
    if item.status == "claimed" and item.reviewer != reviewer:
        return f"{item.reviewer} has this review until {moment(item.lease_until)}."
    if item.status == "claimed":
        return "You have this review already."
    return "You do not have this review any more: your time for it ran out. Claim it again to go on."


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


def to(request: Request, path: str, notice: str = "") -> RedirectResponse:
    """Send the browser on after a form, so that reloading sends nothing twice; `told` is shown there."""
    if notice:
        request.session["told"] = notice
    return RedirectResponse(path, 303)


def form_token(session: dict[str, Any]) -> str:
    """Give the session's token that every form carries; another site cannot know it."""
    if "form_token" not in session:
        session["form_token"] = secrets.token_urlsafe(24)
    return str(session["form_token"])
