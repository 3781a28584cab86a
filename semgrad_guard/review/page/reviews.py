"""The list of reviews, one review, and what reviewers do with it."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, cast, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import Response

from semgrad_guard.errors import ConfigurationError, ReviewConflictError, ReviewError
from semgrad_guard.review.items import Order, ReviewFilter, ReviewItem, Status
from semgrad_guard.review.page import words
from semgrad_guard.review.page.words import AtDesk, Desk, Reviewer, render, to
from semgrad_guard.routing.routes import ReviewAnswer

router = APIRouter(prefix="/reviews")
_ON_A_PAGE = 25
_CALLS = {"yes": True, "no": False}
_NOTHING = {"decision": "", "text": ""}
_DONE = {"approve": "Approved", "edit": "Edited", "reject": "Rejected", "respond": "Answered"}


@router.get("")
def show_list(
    request: Request,
    desk: AtDesk,
    status: str = "pending",
    calls: str = "",
    q: str = "",
    least: str = "",
    most: str = "",
    sort: str = "oldest",
    page: str = "1",
) -> Response:
    """Show reviews; what a filter cannot be is left out."""
    only = ReviewFilter(
        status=cast(Status, status) if status in get_args(Status) else None,
        contains=_clean(q) or None,
        tool_calls=_CALLS.get(calls),
        least=_share(least),
        most=_share(most),
    )
    order = cast(Order, sort if sort in get_args(Order) else "oldest")
    count = desk.queue.count(only)
    last = max(1, math.ceil(count / _ON_A_PAGE))
    number = min(max(int(page[:9]), 1), last) if page.isascii() and page.isdigit() else 1
    items = desk.queue.items(only=only, order=order, limit=_ON_A_PAGE, offset=(number - 1) * _ON_A_PAGE)
    choices = {"status": status, "calls": calls, "q": q, "least": least, "most": most, "sort": order}
    pages = {
        name: f"/reviews?{urlencode(choices | {'page': there})}" if 1 <= there <= last else ""
        for name, there in (("before", number - 1), ("after", number + 1))
    }
    rows = [{"item": item, "age": _age(desk, item)} for item in items]
    return render(
        request,
        "list.html",
        rows=rows,
        count=count,
        number=number,
        last=last,
        choices=choices,
        pages=pages,
        statuses=get_args(Status),
        orders=get_args(Order),
    )


@router.post("/next")
def claim_next(request: Request, desk: AtDesk, reviewer: Reviewer) -> Response:
    """Claim the oldest pending review, and show it."""
    return _next(request, desk, reviewer, "")


@router.get("/{id_}")
def show(request: Request, desk: AtDesk, reviewer: Reviewer, id_: str) -> Response:
    """Show a review."""
    return _shown(request, desk, reviewer, desk.queue.get(id_))


@router.post("/{id_}/claim")
def claim(request: Request, desk: AtDesk, reviewer: Reviewer, id_: str) -> Response:
    """Claim a review that is pending."""
    try:
        desk.queue.claim(reviewer, desk.lease, id_=id_)
    except ReviewConflictError:
        return _conflict(request, desk, reviewer, id_)
    return to(request, f"/reviews/{id_}", "It is yours now.")


@router.post("/{id_}/renew")
def renew(request: Request, desk: AtDesk, reviewer: Reviewer, id_: str) -> Response:
    """Keep a review for longer."""
    try:
        desk.queue.renew(id_, reviewer, desk.lease)
    except ReviewConflictError:
        return _conflict(request, desk, reviewer, id_)
    return to(request, f"/reviews/{id_}", "You have more time for it now.")


@router.post("/{id_}/release")
def release(request: Request, desk: AtDesk, reviewer: Reviewer, id_: str) -> Response:
    """Give a review back."""
    try:
        desk.queue.release(id_, reviewer)
    except ReviewConflictError:
        return _conflict(request, desk, reviewer, id_)
    return to(request, "/reviews", "Given back, undecided.")


@router.post("/{id_}/decision")
def decide(
    request: Request,
    desk: AtDesk,
    reviewer: Reviewer,
    id_: str,
    decision: Annotated[str, Form()] = "",
    text: Annotated[str, Form()] = "",
) -> Response:
    """Decide, and go on with the next; what was typed is kept where that cannot be."""
    typed = {"decision": decision, "text": _clean(text)}
    try:
        answer = ReviewAnswer(decision=cast(Any, decision), text=typed["text"].strip() or None)
    except ConfigurationError:
        problem = "A decision to edit or to respond needs a text." if decision in _DONE else "Choose a decision."
        return _shown(request, desk, reviewer, desk.queue.get(id_), status=422, problem=problem, typed=typed)
    try:
        desk.queue.decide(id_, answer, reviewer)
    except ReviewConflictError:
        return _conflict(request, desk, reviewer, id_, typed)
    except ReviewError as error:
        status = 404 if error.__cause__ is None else 503
        return render(request, "problem.html", status, problem=str(error), typed=typed["text"])
    return _next(request, desk, reviewer, f"{_DONE[decision]}. ")


def _next(request: Request, desk: Desk, reviewer: str, done: str) -> Response:
    item = desk.queue.claim(reviewer, desk.lease)
    if item is None:
        return to(request, "/reviews", f"{done}Nothing else is waiting.")
    return to(request, f"/reviews/{item.id}", f"{done}This is the next one." if done else "It is yours now.")


def _conflict(request: Request, desk: Desk, reviewer: str, id_: str, typed: dict[str, str] | None = None) -> Response:
    item = desk.queue.get(id_)
    return _shown(request, desk, reviewer, item, status=409, problem=words.conflict(item, reviewer), typed=typed or {})


def _shown(
    request: Request,
    desk: Desk,
    reviewer: str,
    item: ReviewItem,
    *,
    status: int = 200,
    problem: str = "",
    typed: dict[str, str] | None = None,
) -> Response:
    before, after = desk.queue.neighbours(item.id)
    return render(
        request,
        "item.html",
        status,
        item=item,
        asked=item.request,
        tokens=words.shaded(item.request),
        tokens_show_draft=words.shows_draft(item.request),
        scores=words.scores(item.request),
        trail=desk.queue.trail(item.id),
        mine=item.status == "claimed" and item.reviewer == reviewer,
        age=_age(desk, item),
        before=before,
        after=after,
        problem=problem,
        typed=typed or _NOTHING,
    )


def _age(desk: Desk, item: ReviewItem) -> float:
    """Give the seconds since it was submitted."""
    now: datetime = desk.queue.now()
    return (now - item.created).total_seconds()


def _clean(text: str) -> str:
    """Undo what forms do to line ends, and leave out what no database keeps."""
    return text.replace("\r\n", "\n").replace("\0", "")


def _share(text: str) -> float | None:
    """Read a confidence; None if it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
