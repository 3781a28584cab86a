"""The page on which people review: `application` gives it for a queue. Needs the extra `review`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from semgrad_guard.errors import needs

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from semgrad_guard.review.queue import ReviewQueue

__all__ = ["application"]


def application(
    queue: ReviewQueue,
    *,
    token: str,
    hosts: Sequence[str] | None = None,
    lease: float = 900.0,
    secure: bool = False,
) -> ASGIApp:
    """Give the page as an ASGI application, for uvicorn or another server.

    Args:
        queue: what is reviewed.
        token: what reviewers log in with, 16 printable characters or more; another one logs everybody out.
        hosts: names the page answers to, "*.example.com" for all below; None for this machine's own.
        lease: seconds a reviewer has a review for.
        secure: it is reached by HTTPS only, so the cookie is for that only.

    Raises:
        ConfigurationError: the token cannot be used, the lease has no length, or the extra `review` is not installed.
    """
    with needs("review", "The review page needs fastapi, jinja2, itsdangerous and python-multipart"):
        from semgrad_guard.review.page.app import build
    return build(queue, token=token, hosts=hosts, lease=lease, secure=secure)
