"""What goes wrong, in the shape of OpenAI's errors: what clients are told, and what stays in here."""

from __future__ import annotations

import logging
import traceback
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from semgrad_guard.errors import ConfigurationError, EmptyResponseError, PromptTooLongError, TokenPositionError
from semgrad_guard.observability.metrics import Failure
from semgrad_guard.serving.engine import BusyError, StoppingError
from semgrad_guard.serving.replies import Failed
from semgrad_guard.web.shelter import refusal

logger = logging.getLogger(__name__)

# Of what a job can fail with: the job's own fault, whose message is for whoever sent it.
_OWN_FAULT = (ConfigurationError, EmptyResponseError, PromptTooLongError, TokenPositionError)


class GoneError(Exception):
    """The client has gone before there was an answer."""


class DeadlineError(Exception):
    """There was no answer in time."""

    def __init__(self, seconds: float) -> None:
        """Tell how much time there was."""
        super().__init__(f"There was no answer within {seconds:g} s.")


class RefusedError(Exception):
    """The request asks for what is not served, or not allowed."""

    def __init__(self, status: int, code: str, message: str) -> None:
        """Say what, as status, code and text."""
        super().__init__(message)
        self.status, self.code = status, code


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document statuses of failures, among them those that every request may meet."""
    about = {
        400: "The request cannot be answered as it is",
        401: "No valid API key",
        404: "No such model",
        413: "The body is too long",
        429: "Too many requests wait; `Retry-After` says when to come back",
        500: "The service failed",
        503: "The service is being stopped",
        504: "No answer in time",
    }
    return {status: {"model": Failed, "description": about[status]} for status in sorted({400, 401, 413, *statuses})}


def failure_of(error: Exception) -> Failure | None:
    """Name the kind that metrics count a failure as; None for what is the request's own fault."""
    kinds: dict[type[Exception], Failure] = {
        BusyError: "overloaded",
        StoppingError: "overloaded",
        DeadlineError: "deadline",
        GoneError: "cancelled",
    }
    return None if isinstance(error, (*_OWN_FAULT, RefusedError)) else kinds.get(type(error), "error")


def told(error: Exception) -> Response:
    """Give the answer to a request that failed; of a fault of the service's own, clients learn an id only."""
    if isinstance(error, RefusedError):
        return refusal(error.status, error.code, str(error))
    if isinstance(error, _OWN_FAULT):
        too_long = isinstance(error, PromptTooLongError)
        return refusal(400, "context_length_exceeded" if too_long else "invalid_request", str(error))
    if isinstance(error, BusyError):
        busy = refusal(429, "queue_full", str(error), "rate_limit_error")
        busy.headers["Retry-After"] = str(error.retry_after)
        return busy
    if isinstance(error, StoppingError):
        return refusal(503, "stopping", str(error), "server_error")
    if isinstance(error, DeadlineError):
        return refusal(504, "deadline_exceeded", str(error), "server_error")
    if isinstance(error, GoneError):
        return Response(status_code=499)  # nobody reads it
    id_ = uuid.uuid4().hex
    # The innermost frames, without the error's own text, which may hold what was asked.
    frames = "".join(traceback.format_tb(error.__traceback__, limit=-20))
    logger.error("Request %s failed: %s\n%s", id_, type(error).__name__, frames)
    return refusal(500, "internal_error", f"The service failed; its log has more under {id_}.", "server_error")


def shape_errors(app: FastAPI) -> None:
    """Let an application answer what it refuses by itself in the same shape."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        text = _SAID.get(first["type"], str(first["msg"]).removeprefix("Value error, "))
        return refusal(400, "invalid_request", f"{place}: {text}" if place else text)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        answer = refusal(error.status_code, codes.get(error.status_code, "invalid_request"), str(error.detail))
        answer.headers.update(error.headers or {})
        return answer


_SAID = {
    "extra_forbidden": "this parameter is not known or not supported here; leave it out",
    "missing": "this is required",
    "json_invalid": "The body is no JSON.",
    "finite_number": "expected a finite number",
}
